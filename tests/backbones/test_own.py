import functools
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import csham
from csham.attach import STRATEGIES
from csham.backbones import BACKBONES
from csham.backbones.own import backbone_code_of, pack_code, use_code
from csham.backbones.spec import NetworkSpec
from csham.errors import UserError
from csham.layers.own import code_of
from csham.training.config import TrainConfig

pytestmark = pytest.mark.usefixtures("own_names")


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(x + self.norm(self.conv(x)))


class Net(nn.Module):
    """A small residual network. Two stages."""

    def __init__(self, num_classes=10, in_chans=3, *, pretrained=False, image_size=48):
        super().__init__()
        self.given = {"in_chans": in_chans, "pretrained": pretrained, "image_size": image_size}
        self.stem = nn.Conv2d(in_chans, 8, 3, padding=1)
        self.blocks = nn.Sequential(Block(8), Block(8), nn.Conv2d(8, 16, 3, 2, 1), Block(16), Block(16))
        self.head = nn.Linear(16, num_classes)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def plain(num_classes):
    return Net(num_classes)


def after_timm(pretrained=False, **kwargs):
    return Net(**kwargs, pretrained=pretrained)


SIZES = {"num_classes": 5, "image_size": 16}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_it_is_a_backbone_under_every_strategy(strategy):
    model = csham.create_model(plain, attention="csham", strategy=strategy, **SIZES)
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 5)
    model.train()(torch.randn(2, 3, 16, 16)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_it_is_given_what_its_signature_has():
    assert csham.create_model(Net, **SIZES, in_chans=1, pretrained=True).given == {
        "in_chans": 1,
        "pretrained": True,
        "image_size": 16,
    }
    assert csham.create_model(after_timm, **SIZES, pretrained=True).given["pretrained"]
    assert csham.create_model(functools.partial(Net, in_chans=3), **SIZES).given["image_size"] == 16
    with pytest.raises(UserError, match="plain takes no in_chans, so its images have 3 channels, got 1"):
        csham.create_model(plain, **SIZES, in_chans=1)
    with pytest.raises(UserError, match="plain takes no pretrained"):
        csham.create_model(plain, **SIZES, pretrained=True)
    csham.register_backbone("own", plain)
    with pytest.raises(UserError, match="own takes no pretrained"):
        TrainConfig(data="digits", backbone="own", pretrained=True).check_names()


def test_weights_of_a_file_go_into_it(tmp_path):
    torch.save(Net(num_classes=7).state_dict(), tmp_path / "own.pth")
    with pytest.warns(UserWarning, match="other shapes for head of Net: new weights there"):
        model = csham.create_model(Net, **SIZES, weights_file=tmp_path / "own.pth", pretrained=True)
    assert not model.given["pretrained"]
    torch.testing.assert_close(model.stem.weight, torch.load(tmp_path / "own.pth")["stem.weight"])


def test_every_attention_starts_from_the_same_backbone():
    weights = []
    for attention in (None, "csham"):
        torch.manual_seed(3)
        weights.append(csham.create_model(Net, attention=attention, **SIZES).head.weight)
    torch.testing.assert_close(*weights)


ONE = Net(5)


class Logits(Net):
    def __init__(self, num_classes, wrong):
        super().__init__(num_classes)
        self.wrong = wrong

    def forward(self, x):
        return self.wrong(self, super().forward(x))


def wrong(change):
    return lambda num_classes: Logits(num_classes, change)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (Net(5), "Net is a network, and a backbone is a function or class of num_classes"),
        (7, "int is a int, and a backbone is a function or class"),
        (lambda n: Net(n + 1), "lambda takes no num_classes. A backbone is a function or class that takes"),
        (lambda num_classes, depth: Net(num_classes), "lambda needs depth too"),
        (lambda num_classes: 1 / 0, r"lambda\(num_classes=5\) failed: ZeroDivisionError: division by zero"),
        (lambda num_classes: None, r"lambda\(num_classes=5\) returned None, and a backbone is an nn.Module"),
        (lambda num_classes: ONE, "lambda returned the network it had made before"),
        (lambda num_classes: Net(3), r"no classifier of 5 classes: it returns \(1, 3\), not logits, \(1, 5\)"),
        (wrong(lambda net, y: {"logits": y}), "it returns a dict, not logits"),
        (wrong(lambda net, y: (y, y) if net.training else y), "in training it returns a tuple, not logits"),
        (wrong(lambda net, y: net.nothing if net.training else y), "fails in training, on two blank images: Attrib"),
        (wrong(lambda net, y: y / 0 if 1 / len(y) == 0 else net.nothing), "cannot classify images of 16 pixels"),
        ("own_module:make", "add --code own_module:make; in Python, call csham.register_backbone"),
    ],
)
def test_what_is_no_backbone_is_refused(factory, message):
    if message.endswith("made before"):
        csham.create_model(factory, **SIZES)
    with pytest.raises(UserError, match=message):
        csham.create_model(factory, **SIZES)


def dense(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, num_classes))


def test_points_that_are_not_there_are_said():
    assert csham.create_model(dense, **SIZES)(torch.randn(1, 3, 16, 16)).shape == (1, 5)
    with pytest.raises(UserError, match="attach: Sequential"):
        csham.create_model(dense, attention="se", **SIZES)


def test_weights_of_a_file_without_the_classifier_alone(tmp_path):
    torch.save(dense(5).state_dict(), tmp_path / "dense.pth")
    model = csham.create_model(dense, **SIZES, weights_file=tmp_path / "dense.pth")
    torch.testing.assert_close(model[1].weight, torch.load(tmp_path / "dense.pth")["1.weight"])


def test_a_registered_name_is_known_everywhere():
    csham.register_backbone("own", Net, summary="a net", source="Doe, 2025")
    assert (BACKBONES["own"].source, BACKBONES["own"].usual_size) == ("Doe, 2025", 48)
    spec = NetworkSpec("own", "se").with_code()
    spec.check_names()
    assert spec.label.startswith("own (code ")
    assert spec.without_code().label == "own + se"
    model = spec.build(**SIZES)
    assert model(torch.randn(1, 3, 16, 16)).shape == (1, 5)
    csham.register_backbone("own", plain)
    assert BACKBONES["own"].usual_size is None


@pytest.mark.parametrize(
    "name", ["resnet18", "alexnet", "torchvision/alexnet", "none", "", "a b", "a,b", "a@width=2", "own.v1", 3]
)
def test_names_that_cannot_be(name):
    with pytest.raises(UserError, match="register_backbone"):
        csham.register_backbone(name, Net)


@pytest.mark.parametrize("name", ["resnet_own", "own_module:resnet"])
def test_it_has_no_other_width(name):
    csham.register_backbone(name, Net)
    with pytest.raises(UserError, match="has no width that could be changed here"):
        NetworkSpec(f"{name}@width=2").check_names()


def test_the_code_is_known_by_its_file():
    csham.register_backbone("own", Net)
    code = backbone_code_of("own")
    assert (code.module, code.name, code.file) == (__name__, "Net", __file__)
    assert code.sha256 == hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    assert backbone_code_of("resnet20") is None
    spec = NetworkSpec("own", "se").with_code()
    assert (spec.backbone_sha256, spec.attention_sha256) == (code.sha256, None)


MODULE = """
import csham
from torch import nn

class Scale(nn.Module):
    def __init__(self, channels=3):
        super().__init__()
        self.slope = nn.Parameter({value} * __import__("torch").ones(channels))

    def forward(self, x):
        return x * self.slope[:, None, None]

def make_net(num_classes):
    return nn.Sequential(Scale(), nn.Conv2d(3, num_classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())

csham.register_backbone("six", make_net)
"""


def test_code_that_is_named_is_what_it_can_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own_kinds.py").write_text(MODULE.format(value=6))
    for reference in ("own_kinds:make_net", "own_kinds:Scale"):
        use_code(reference)
    assert backbone_code_of("own_kinds:make_net").reference == "own_kinds:make_net"
    assert code_of("own_kinds:make_net") is None
    assert code_of("own_kinds:Scale") is not None
    assert backbone_code_of("own_kinds:Scale") is None
    with pytest.raises(UserError, match="own_kinds:Scale takes no num_classes"):
        use_code("own_kinds:Scale", kind="backbone")


SCRIPT = """
import json, sys
import csham
from csham.backbones.own import unpack_code

unpack_code(json.loads(sys.argv[1]))
for name in sys.argv[2:]:
    print(name, csham.create_model(name, num_classes=5, image_size=16)[0].slope.sum().item())
"""


@pytest.mark.slow
def test_another_process_gets_what_the_user_named_in_this_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own_six.py").write_text(MODULE.format(value=6))
    use_code("own_six:make_net")
    import own_six

    csham.register_backbone("again", own_six.make_net)
    names = ["own_six:make_net", "six", "again"]
    packed = json.dumps(pack_code([*map(NetworkSpec, names), NetworkSpec("resnet20", "se")]))
    monkeypatch.chdir("/")
    command = [sys.executable, "-c", SCRIPT, packed, *names]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.split() == ["own_six:make_net", "18.0", "six", "18.0", "again", "18.0"]
