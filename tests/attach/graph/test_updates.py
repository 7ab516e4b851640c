"""Layers with a low-rank update beside them: the points are those of the network before it was given updates."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from networks import NARROW
from torch import nn

import csham


class Updated(nn.Module):
    """``base(x) + B(A(x))``, as LoRA trains it; ``between`` is what stands between the two new layers."""

    def __init__(self, base, between=None):
        super().__init__()
        self.base, self.drop, self.between = base, nn.Dropout(0.1), between or nn.Identity()
        if isinstance(base, nn.Linear):
            self.down = nn.Linear(base.in_features, 2, bias=False)
            self.up = nn.Linear(2, base.out_features, bias=False)
        else:
            how = {"stride": base.stride, "padding": base.padding, "bias": False}
            self.down = nn.Conv2d(base.in_channels, 2, base.kernel_size, **how)
            self.up = nn.Conv2d(2, base.out_channels, 1, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.between(self.down(self.drop(x)))) * 2.0


def updated(model, kinds=(nn.Conv2d,), times=1):
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) in kinds and getattr(child, "groups", 1) == 1:
                for _ in range(times):
                    child = Updated(child) if not isinstance(child, Updated) else Twice(child)  # noqa: PLW2901
                setattr(module, name, child)
    return model


class Twice(Updated):
    """Two updates of one layer, one after the other."""

    def __init__(self, first):
        super().__init__(first.base)
        self.more = nn.Sequential(copy.deepcopy(first.down), copy.deepcopy(first.up))

    def forward(self, x):
        return super().forward(x) + self.more(x)


class Chain(nn.Sequential):
    """Nothing adds, but for the updates; the last layer has no norm."""

    def __init__(self):
        pairs = ((3, 8), (8, 8), (8, 12), (12, 12))
        layers = [[nn.Conv2d(*pair, 3, padding=1), nn.BatchNorm2d(pair[1]), nn.ReLU()] for pair in pairs]
        super().__init__(*[layer for three in layers for layer in three], nn.Conv2d(12, 12, 3), nn.Flatten())


def names(model, **choice):
    return [point.name for point in csham.attach(model, "se", dry_run=True, **choice)]


@pytest.mark.parametrize("position", ["auto", "post", "stage"])
@pytest.mark.parametrize(
    ("build", "times"),
    [
        (lambda: timm.create_model("resnet18", **NARROW), 1),  # the shortcuts' projections too
        (lambda: timm.create_model("resnet18", **NARROW), 2),
        (Chain, 1),
    ],
)
def test_points_are_those_of_the_network_without_updates(build, times, position):
    with torch.device("meta"):
        assert names(updated(build(), times=times), position=position) == names(build(), position=position)


def test_updates_of_layers_among_tokens_are_no_branches_of_theirs(recwarn):
    with torch.device("meta"):
        model = timm.create_model("convnext_atto", depths=(1, 1, 1, 1))
        assert len(names(updated(model, kinds=(nn.Linear,)))) == 4
    assert not recwarn.list


def test_attention_on_an_updated_network_computes_what_it_does_without_fusing():
    torch.manual_seed(1)
    model = updated(timm.create_model("resnet18", zero_init_last=False, **NARROW)).eval()
    other = copy.deepcopy(model)
    assert all(point.fused for point in csham.attach(model, "se"))
    csham.attach(other, "se", fuse=False)
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), other(x))


class Block(nn.Module):
    """A residual block with a projection for its shortcut, or a long branch around it."""

    def __init__(self, inner):
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 8, 1), inner

    def forward(self, x):
        return self.inner(F.relu(self.stem(x))).mean((2, 3))


@pytest.mark.parametrize("between", [nn.ReLU(), nn.BatchNorm2d(2), nn.MaxPool2d(3, 1, 1)])
def test_a_projection_beside_layers_with_something_between_them_is_a_block(between):
    inner = Updated(nn.Conv2d(8, 8, 3, padding=1), between)
    assert names(Block(inner), position="residual") == ["inner.up"]


def test_a_layer_whose_result_is_used_twice_has_no_update():
    class Shows(Updated):
        def forward(self, x):
            y = self.base(x)
            return y * 0.5 + self.up(self.down(x)) + y.mean((2, 3), keepdim=True)

    assert names(Block(Shows(nn.Conv2d(8, 8, 3, padding=1))), position="residual") == ["inner.up"]
