"""What the tests of backbones share."""

import socket

import pytest


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    """Caches that are empty, and no host to be found: what a machine without a network meets."""
    import huggingface_hub.constants

    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


@pytest.fixture(scope="session")
def count():
    """Function that counts a network's parameters."""
    return lambda model: sum(p.numel() for p in model.parameters())
