from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch

from csham.errors import UserError
from csham.training.config import resolve
from csham.training.machine import choose, choose_device

MANY = 10_000_000


@pytest.fixture(autouse=True)
def _the_machine_answers(monkeypatch):
    monkeypatch.delenv("CSHAM_AUTO_PRECISION", raising=False)


def settings(**given):
    return resolve({"data": "digits", "device": "cpu", **given})


def test_no_auto_is_left():
    values = choose(settings(), 1000).config.to_dict()
    assert "auto" not in [values[key] for key in ("device", "precision", "compile", "graph", "channels_last")]


def test_what_was_asked_for_is_kept():
    config = choose(settings(precision="bf16", compile=False, channels_last=False), MANY).config
    assert (config.precision, config.compile, config.channels_last) == ("bf16", False, False)


@pytest.fixture
def cuda(monkeypatch):
    """A machine that says that it has a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    return settings(device="cuda", compile=False)


def test_the_precision_is_that_of_the_gpu_that_was_named(cuda, monkeypatch):
    current = []

    @contextmanager
    def device(name):
        current.append(name)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: current == ["cuda:1"])
    precisions = [choose(replace(cuda, device=name), 1).config.precision for name in ("cuda:0", "cuda:1")]
    assert precisions == ["fp32", "bf16"]


def test_graphs_are_chosen_on_cuda(cuda):
    choices = choose(cuda, 1)
    assert choices.config.graph is True
    assert "CUDA graphs" in choices.reasons
    assert choose(replace(cuda, graph=False), 1).config.graph is False
    assert choose(replace(cuda, graph=True), 1).config.graph is True


def test_graphs_only_where_steps_can_be_replayed(cuda, monkeypatch):
    assert choose(settings(), 1).config.graph is False
    with pytest.raises(UserError, match=r"--graph: only CUDA has graphs, and this run is on cpu. Use --no-graph"):
        choose(settings(graph=True), 1)
    half = replace(cuda, precision="fp16")
    assert "no CUDA graphs (the scale of fp16's loss is changed on the host)" in choose(half, 1).reasons
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "no CUDA graphs (several processes wait for each other in every step)" in choose(cuda, 1).reasons
    with pytest.raises(UserError, match="--graph: several processes"):
        choose(replace(cuda, graph=True), 1)


def test_compiling_only_where_it_pays(monkeypatch):
    monkeypatch.setenv("CXX", "sh")  # something that is there
    assert choose(settings(), MANY).config.compile is True
    few = choose(settings(epochs=1), 1000)
    assert few.config.compile is False
    assert "longer than it saves" in ", ".join(few.reasons)


def test_norms_are_recomputed_in_networks_that_are_not_compiled(monkeypatch):
    monkeypatch.setenv("CXX", "sh")
    choices = choose(settings(recompute_norms=True), MANY)
    assert choices.config.compile is False
    assert "no torch.compile (norms are recomputed in eager code alone)" in choices.reasons
    with pytest.raises(UserError, match=r"--recompute-norms: it acts in eager code.* or use --no-compile"):
        choose(settings(recompute_norms=True, compile=True), MANY)


def test_a_gpu_is_through_with_more_images_before_it_has_compiled(cuda, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("CC", "sh")  # something that is there
    for epochs, compiled in ((10, False), (30, False), (200, True)):  # of CIFAR-100
        assert choose(replace(cuda, compile="auto", epochs=epochs), 45_000).config.compile is compiled


def test_on_a_gpu_compiling_needs_the_c_compiler_that_triton_would_take(cuda, monkeypatch, tmp_path):
    pytest.importorskip("triton")
    images = {"epochs": 200, "compile": "auto"}
    monkeypatch.setenv("CC", "no-such-compiler")
    choices = choose(replace(cuda, **images), 45_000)
    assert choices.config.compile is False
    assert "needs a C compiler on CUDA, and there is no no-such-compiler" in ", ".join(choices.reasons)
    with pytest.raises(UserError, match=r"--compile: .*no no-such-compiler. Install it, or use --no-compile"):
        choose(replace(cuda, compile=True), 45_000)
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no gcc" in ", ".join(choose(replace(cuda, **images), 45_000).reasons)
    clang = tmp_path / "clang"
    clang.touch(0o755)
    assert choose(replace(cuda, **images), 45_000).config.compile is True


def test_without_a_compiler_auto_goes_on_and_explicit_refuses(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    choices = choose(settings(), MANY)
    assert choices.config.compile is False
    assert "no no-such-compiler" in ", ".join(choices.reasons)
    with pytest.raises(UserError, match=r"--compile: .*no no-such-compiler"):
        choose(settings(compile=True), MANY)


def test_bf16_only_on_processors_that_multiply_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    assert choose(settings(), 1).config.precision == "fp32"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert choose(settings(), 1).config.precision == "bf16"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("multiplies", [False, True])
def test_a_setting_stands_in_for_the_processors_answer(monkeypatch, precision, multiplies):
    monkeypatch.setattr("csham.training.machine.cpu_multiplies_bf16", lambda: multiplies)
    monkeypatch.setenv("CSHAM_AUTO_PRECISION", precision)
    choices = choose(settings(), 1)
    assert choices.config.precision == precision
    assert f"{precision} (CSHAM_AUTO_PRECISION says so)" in choices.reasons
    assert choose(settings(precision="fp32"), 1).config.precision == "fp32"


def test_a_setting_that_is_no_precision_is_refused(monkeypatch):
    monkeypatch.setenv("CSHAM_AUTO_PRECISION", "bf32")
    with pytest.raises(UserError, match=r"unknown precision 'bf32'.*CSHAM_AUTO_PRECISION in the environment"):
        choose(settings(), 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_device_that_is_not_there(device):
    with pytest.raises(UserError, match="no CUDA device"):
        choose(settings(device=device), 1)


@pytest.mark.parametrize("device", ["tpu", "meta", "xpu:0", "cpu:x", "cpu:", "cpu:1", "auto:0"])
def test_a_device_that_nothing_runs_on(device):
    with pytest.raises(UserError, match="unknown device"):
        choose_device(device)


def test_numbered_devices(cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [choose_device(device) for device in ("cpu:0", "cuda", "cuda:1")] == ["cpu:0", "cuda", "cuda:1"]
    for device in ("cuda:2", "cuda:", "cuda:x", "cuda:01"):
        with pytest.raises(UserError, match=f"unknown device '{device}'.*Known: cuda, cuda:0, cuda:1"):
            choose_device(device)


def test_fp16_needs_cuda():
    with pytest.raises(UserError, match="fp16 needs CUDA"):
        choose(settings(precision="fp16"), 1)
