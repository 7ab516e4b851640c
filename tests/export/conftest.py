"""Small trained networks to export, without a run: untrained weights export as trained ones do."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import csham
from csham.inference import ImageTransform, Trained
from csham.training.network import NetworkInfo


class Tiny(nn.Module):
    """A convolution, CSHAM, an addition and a head: seconds to export."""

    def __init__(self, classes=3):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.attention = csham.CSHAM(8)
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        return self.head((x + self.attention(self.body(x))).relu().mean((2, 3)))


def _ready(network, side):
    """Give the norms statistics of images and the zeros that networks start with values: nothing is left unseen."""
    generator = torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        if parameter.abs().max() < 1e-3:
            parameter.data = torch.rand(parameter.shape, generator=generator) + 0.5
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.randn(4, 3, side, side, generator=generator))
    return network.eval()


@pytest.fixture(scope="session")
def as_trained():
    """Function that makes of a network what csham.load would return."""

    def make(network, side=16, classes=3, **names):
        info = NetworkInfo(
            **{"backbone": "tiny", "attention": "none", "strategy": "sequential", "position": "auto", **names},
            gated=False,
            num_classes=classes,
            image_size=side,
            classes=[f"class {number} é" for number in range(classes)],
            mean=[0.5, 0.4, 0.3],
            std=[0.25, 0.3, 0.2],
        )
        transform = ImageTransform(side, tuple(info.mean), tuple(info.std))
        return Trained(_ready(network, side), info, transform, Path("nowhere/model.safetensors"), "best")

    return make


@pytest.fixture(scope="session")
def _tiny(as_trained):
    torch.manual_seed(1)
    return as_trained(Tiny())


@pytest.fixture
def tiny(_tiny):
    """A trained network of three classes, for images of 16 pixels."""
    return copy.deepcopy(_tiny)


@pytest.fixture(scope="session")
def pixels():
    """Images of 16 pixels as the network sees them."""
    return np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3)).astype(np.uint8)


@pytest.fixture(scope="session")
def tiny_onnx(_tiny, pixels, tmp_path_factory):
    """What export returned for the small network in ONNX."""
    return csham.export(_tiny, tmp_path_factory.mktemp("onnx") / "deep" / "tiny.onnx", images=pixels)
