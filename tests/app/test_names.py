"""Networks on one page have names that are short, and tell them apart."""

from dataclasses import dataclass

import pytest

from csham.app.names import short_names


@dataclass
class Network:
    label: str
    origin: str


HUB = "cache/hub/models--{}--{}/snapshots/0123abcd"


@pytest.mark.parametrize(
    ("networks", "names"),
    [
        ([("resnet20", "runs/a")], ["resnet20"]),
        ([("resnet20", "runs/a"), ("resnet20 + se", "runs/b")], ["resnet20", "resnet20 + se"]),
        ([("resnet20", "runs/a"), ("resnet20", "runs/b")], ["a", "b"]),
        ([("resnet20", "one/run"), ("resnet20", "two/run")], ["one/run", "two/run"]),
        ([("resnet20", "a"), ("resnet20", "b"), ("vgg", "c")], ["resnet20 in a", "resnet20 in b", "vgg"]),
        ([("resnet20", "a"), ("resnet20", "a")], ["a (1)", "a (2)"]),
        ([("vgg", HUB.format("jo", "x")), ("vgg", HUB.format("jo", "y"))], ["x", "y"]),
        ([("vgg", HUB.format("jo", "x")), ("vgg", HUB.format("al", "x"))], ["jo/x", "al/x"]),
    ],
)
def test_names(networks, names):
    assert short_names([Network(label, path) for label, path in networks]) == names
