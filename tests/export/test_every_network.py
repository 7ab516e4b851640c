"""Every backbone under every strategy, and every attention, comes out of ONNX and PT2 answering as it went in."""

import os

import numpy as np
import pytest
import torch

import csham
from csham.attach.names import STRATEGIES
from csham.backbones import BACKBONES
from csham.errors import UserError
from csham.export.exporting import export
from csham.layers.names import ATTENTIONS

# `make test-exports` does them all, which takes hours on two cores; -k takes a part, such as -k "resnet18 and onnx".
ALL = bool(os.environ.get("CSHAM_ALL_NETWORKS"))
FEW = {
    ("lenet5", "csham", "sequential"),
    ("resnet14", "csham", "reapply"),
    ("vgg11_bn", "csham", "transfer"),
    ("mobilenetv2_100", "csham", "alternate"),
    ("googlenet", "csham", "parallel"),
}
CASES = [
    *((backbone, "csham", strategy) for backbone in BACKBONES for strategy in STRATEGIES),
    *(("resnet18", attention, "sequential") for attention in ATTENTIONS if attention != "csham"),
]
# LeNet-5 pools to 5 x 5, for which ONNX has no operator. SCSA pools in windows as large as the map where that is small.
FIXED = {("lenet5", "csham", "onnx"), ("resnet18", "scsa", "onnx"), ("resnet18", "scsa", "pt2")}
# One point in each stage, at its block's end, is nothing to alternate with: one at the end of every layer.
NO_PAIRS = {"densenet161", "densenet169", "densenet201"}
SIDE = 32


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3)).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(3600)  # a hundred layers and their sizes as formulas: minutes on a slow core
@pytest.mark.parametrize("file_format", ["onnx", "pt2"])
@pytest.mark.parametrize(("backbone", "attention", "strategy"), CASES, ids=["-".join(case) for case in CASES])
def test_exports(backbone, attention, strategy, file_format, images, as_trained, tmp_path):
    if not ALL and (backbone, attention, strategy) not in FEW:
        pytest.skip("a few are exported; CSHAM_ALL_NETWORKS=1 exports them all")
    torch.manual_seed(0)
    settings = {"attention": attention, "strategy": strategy}
    if backbone in NO_PAIRS and STRATEGIES[strategy].needs_pairs:
        settings["points"] = "*.conv2"
    if backbone == "lenet5" and STRATEGIES[strategy].needs_pairs:
        with pytest.raises(UserError, match="here every stage has one"):
            csham.create_model(backbone, num_classes=5, image_size=SIDE, **settings)
        return
    network = csham.create_model(backbone, num_classes=5, image_size=SIDE, **settings)
    trained = as_trained(network, side=SIDE, classes=5, backbone=backbone, **settings)
    found = export(trained, tmp_path / f"model.{file_format}", images=images)
    print(found)
    assert found.top1_agreement == 100
    if (backbone, attention, file_format) in FIXED:
        assert found.dynamic == ("batch",)
        assert "takes images of 32 x 32 pixels only: " in found.notes[0]
    else:
        assert found.dynamic == ("batch", "height", "width"), found.notes
