"""docs/networks.md: attention in other libraries' networks, trained, saved and loaded as each library does."""

import copy
import re
import warnings
from contextlib import nullcontext
from pathlib import Path

import accelerate
import pytest
import torch
import torchvision
from torch import nn

import csham

_PAGE = Path(__file__).parents[2] / "docs/networks.md"


def blocks(heading):
    """Return the Python of a section of the page."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", _PAGE.read_text("utf-8"), flags=re.M | re.S)[1]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def answer(model, images):
    """Return all that a network says of images, as one row of numbers."""
    torch.manual_seed(7)
    with torch.no_grad():
        output = model.eval()(images)
    leaves = torch.utils._pytree.tree_leaves(dict(output) if isinstance(output, dict) else output)
    return torch.cat([leaf.flatten().double() for leaf in leaves if isinstance(leaf, torch.Tensor)])


def _reached_in(model, train):
    """Return the names of the parameters that a gradient reaches in training."""
    reached = set()
    for name, parameter in model.named_parameters():
        parameter.register_hook(lambda gradient, name=name: reached.add(name) if gradient.any() else None)
    train()
    return reached


def walk(code, names, count):
    """Run the four blocks of a network, and look at it between them."""
    build, attach, train, save = code
    torch.manual_seed(0)
    exec(build, names)
    model = names["model"]
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    before = answer(model, names["images"])
    exec(attach, names)
    assert len(names["points"]) == count
    torch.testing.assert_close(answer(model, names["images"]), before)
    copy.deepcopy(model).load_state_dict(plain)
    assert not set(dict(model.named_parameters())) - _reached_in(model, lambda: exec(train, names))
    exec(save, names)
    torch.testing.assert_close(answer(names["again"], names["images"]), answer(model, names["images"]))
    assert names["again"].state_dict().keys() == model.state_dict().keys()


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "count"), [pytest.param(0, 16, marks=pytest.mark.long), (4, 16)], ids=["Faster R-CNN", "DeepLabV3"]
)
def test_torchvision(first, count):
    walk(blocks("torchvision")[first : first + 4], {"torch": torch, "csham": csham}, count)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("Unet", 21), ("DeepLabV3Plus", 17)])
def test_segmentation_models_pytorch(kind, count):
    smp = pytest.importorskip("segmentation_models_pytorch", reason="not installed: make test-libraries")
    names = {}
    walk([code.replace("smp.Unet(", f"smp.{kind}(") for code in blocks("segmentation_models_pytorch")], names, count)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*attached"):
        smp.from_pretrained("unet")
    assert not any("attached" in name for name in smp.from_pretrained("unet", strict=False).state_dict())


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("ResNet", 16), ("ConvNext", 18)])
def test_transformers(kind, count):
    transformers = pytest.importorskip("transformers", reason="not installed: make test-libraries")
    names = {}
    # New weights of a ConvNeXt make so little of its branches that two steps move no gate.
    scaled = "num_labels=3, layer_scale_init_value=0.1" if kind == "ConvNext" else "num_labels=3"
    walk(
        [code.replace("ResNet", kind).replace("num_labels=3", scaled) for code in blocks("transformers")], names, count
    )
    plain = getattr(transformers, f"{kind}ForImageClassification").from_pretrained("resnet")
    assert not any("attached" in name for name in plain.state_dict())

    class Attached(type(plain)):
        def __init__(self, config):
            super().__init__(config)
            csham.attach(self, "csham", gated=True)

    with pytest.warns(UserWarning, match="the network is on the meta device"):
        mine = Attached.from_pretrained("resnet")
    torch.testing.assert_close(answer(mine, names["images"]), answer(names["model"], names["images"]))


@pytest.mark.slow
def test_monai():
    nets = pytest.importorskip("monai.networks.nets", reason="not installed: make test-libraries")
    names = {}
    walk(blocks("MONAI"), names, 9)
    for kind in (nets.UNet, nets.SegResNet):
        sizes = names["sizes"] if kind is nets.UNet else {}
        with pytest.raises(ValueError, match=r"has 3-D convolutions \([\w.]+\): its maps are \(B, C, D, H, W\)"):
            csham.attach(kind(spatial_dims=3, in_channels=1, out_channels=2, **sizes), "se")


class Timed(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1))

    def forward(self, sample, timestep):
        return sample + self.block(sample) * timestep


def test_what_takes_more_than_images():
    (code,) = re.findall(r"```python\n(.*?)```", _PAGE.read_text("utf-8").partition("\n## ")[0], re.DOTALL)
    names, model, x = {}, Timed(), torch.rand(1, 3, 16, 16)
    before = model(x, 0.5)
    exec(code, names)
    assert names["put_attention_into"](model)
    torch.testing.assert_close(model(x, 0.5), before)
    assert any("attached" in name for name in model.state_dict())


@pytest.mark.parametrize("gated", [True, False])
def test_a_network_without_values_is_warned_of(gated):
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    with pytest.warns(UserWarning, match="the network is on the meta device, where nothing has a value"):
        csham.attach(model, "se", gated=gated)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        csham.attach(csham.detach(model), "se", gated=gated, dry_run=True)


@pytest.mark.filterwarnings("ignore:attach. the network is on the meta device")
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("strategy", ["sequential", "transfer"])
def test_weights_left_out_by_accelerate(inside, strategy):
    def build(empty):
        with accelerate.init_empty_weights() if empty else nullcontext():
            model = torchvision.models.resnet18(num_classes=3)
            if inside:
                csham.attach(model, "csham", strategy=strategy)
        if not inside:
            csham.attach(model, "csham", strategy=strategy)
        return model.eval()

    model, expected = build(empty=True), build(empty=False)
    statistics = model.get_buffer(next(name for name, _ in model.named_buffers()))
    assert statistics.device.type == "cpu"
    model.load_state_dict(expected.state_dict(), assign=True)
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model(x), expected(x), rtol=0, atol=0)
