"""Attention stays where it was attached, whatever replaces the modules it hangs on, or the next forward pass raises."""

import copy
import pickle
from functools import partial

import accelerate
import pytest
import timm
import torch
from networks import NARROW
from timm.utils import freeze, reparameterize_model, unfreeze
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

import csham
from csham.attach.install import attached_modules
from csham.backbones import CifarResNet


def shaken(model):
    """In evaluation mode, with weights of which each matters."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.7, 1.3)
    return model.eval()


def resnet(**choice):
    torch.manual_seed(1)
    # timm's ResNets start their branches at zero, which hides all that happens to them.
    model = timm.create_model("resnet18", num_classes=5, zero_init_last=False, **NARROW)
    csham.attach(model, **choice)
    return shaken(model)


def images(side=64, dtype=torch.float32):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(2)).to(dtype)


def check_kept(model, x, expected, points):
    """That a network computes what it did, and other than without attention."""
    plain = csham.detach(copy.deepcopy(model))(x)
    scale = expected.abs().max()
    assert (plain - expected).abs().max() > 1e-3 * scale
    torch.testing.assert_close(model(x) / scale, expected / scale, rtol=0, atol=1e-5)
    assert len(attached_modules(model)) == points


def freeze_and_unfreeze(model):
    freeze(model)
    unfreeze(model)


def freeze_norms_of(*names):
    return lambda model: freeze(model, list(names))


CONVERSIONS = {
    "freeze": freeze,
    "freeze and unfreeze": freeze_and_unfreeze,
    "freeze parts": freeze_norms_of("layer1", "layer2.0.bn2"),
    "SyncBatchNorm": nn.SyncBatchNorm.convert_sync_batchnorm,
    "timm's synchronised norms": timm.layers.convert_sync_batchnorm,
    "reparameterize": reparameterize_model,
}


@pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS)
@pytest.mark.parametrize(
    "choice",
    [{"strategy": "transfer"}, {"position": "post"}, {"points": "layer2"}, {"fuse": False}, {"gated": True}],
    ids=lambda choice: "-".join(map(str, *choice.items())),
)
def test_conversions_keep_attention(convert, choice):
    model = resnet(**choice)
    if choice.get("gated"):
        for attached in attached_modules(model):
            attached.gate.data.fill_(0.3)
    x = images()
    expected = model(x)
    keys, points = set(model.state_dict()), len(attached_modules(model))
    assert any(".attached." in key for key in keys)
    converted = convert(model) or model
    check_kept(converted.eval(), x, expected, points)
    counted = {key for key in keys if key.endswith("num_batches_tracked")}
    assert keys - counted <= set(converted.state_dict()) <= keys
    for other in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        check_kept(other, x, expected, points)


def test_a_frozen_network_trains_what_is_not_frozen():
    model = resnet(strategy="transfer")
    freeze(model, ["conv1", "bn1", "layer1", "layer2"])
    model.train()
    model(images()).square().mean().backward()
    for name, parameter in model.named_parameters():
        trained = not name.startswith(("conv1", "bn1", "layer1", "layer2"))
        assert parameter.requires_grad == trained, name
        if ".attached." in name:
            assert (parameter.grad is not None) == trained, name


def test_a_second_call_freezes_the_norms_of_attention():
    model = resnet()
    freeze(model)
    freeze(model)
    before = copy.deepcopy(model.state_dict())
    model.train()(images())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_weights_of_a_converted_network_go_back_and_forth():
    model, other = resnet(strategy="transfer"), resnet(strategy="transfer")
    x = images()
    expected = model(x)
    stored = model.state_dict()
    freeze(other)
    for parameter in other.parameters():
        parameter.data.zero_()
    other.load_state_dict(stored)
    torch.testing.assert_close(other(x), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("name", "position", "dtype"),
    # A deep network makes much of the rounding where layers are folded; timm folds RepViT in float32 alone.
    [
        ("repvit_m0_9", "residual", torch.float32),
        ("mobileone_s0", "post", torch.float64),
        ("repghostnet_050", "residual", torch.float64),
        ("fastvit_t8", "stage", torch.float64),
    ],
)
def test_attention_at_the_end_of_what_is_folded_stays(name, position, dtype):
    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=5)
    points = csham.attach(model, "csham", position=position)
    shaken(model).to(dtype)
    x = images(dtype=dtype)
    expected = model(x)
    check_kept(reparameterize_model(model), x, expected, len(points))
    assert torch.equal(model(x), expected)  # a copy was converted


@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0", "fastvit_t8"])
def test_attention_within_what_is_folded_is_missed(name):
    """It stands between the branches and their sum, where folding them leaves no place for it."""
    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=5)
    csham.attach(model, "csham", position="residual")
    folded = reparameterize_model(model.eval())
    with pytest.raises(ValueError, match=r"attention that csham\.attach put at .* is gone: that module was taken out"):
        folded(images())
    csham.detach(folded)(images())


def small():
    torch.manual_seed(1)
    model = CifarResNet(14, num_classes=5)
    csham.attach(model, "csham_linear", strategy="transfer")
    return shaken(model)


def write_past_torch(model):
    model.layer2[0]._modules["bn2"] = nn.BatchNorm2d(32)


def clear_hooks(model):
    model.layer2[0].bn2._forward_hooks.clear()


def take_out_and_put_in(model):
    del model.layer2[0].bn2
    model.layer2[0].bn2 = nn.BatchNorm2d(32)


def delete_the_attention(model):
    del model.layer2[0].bn2.attached


def replace_the_block(model):
    model.layer2[0] = nn.Conv2d(16, 32, 1, 2)


def replace_the_stage(model):
    model.layer2 = nn.Conv2d(16, 32, 1, 2)


LOSSES = {
    write_past_torch: r"layer2\.0\.bn2 is gone: a BatchNorm2d is there now",
    clear_hooks: r"layer2\.0\.bn2 is gone: a BatchNorm2d is there now",
    take_out_and_put_in: r"layer2\.0\.bn2 is gone: a BatchNorm2d is there now",
    delete_the_attention: r"layer2\.0\.bn2 is gone: a BatchNorm2d is there now",
    replace_the_block: r"layer2\.0 is gone: a Conv2d is there now",
    replace_the_stage: r"layer2 is gone: a Conv2d is there now",
}


@pytest.mark.parametrize(("lose", "message"), LOSSES.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_what_cannot_stay_is_missed(lose, message):
    model = small()
    lose(model)
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for mode in (True, False):
            with pytest.raises(ValueError, match=message):
                other.train(mode)(images(16))
    if lose not in (replace_the_block, replace_the_stage):
        with pytest.raises(ValueError, match=message):
            model.layer2(torch.randn(1, 16, 8, 8))  # a part alone
    csham.detach(model)(images(16))


@pytest.mark.slow
def test_a_network_that_lost_attention_is_not_compiled():
    model = small()
    write_past_torch(model)
    with pytest.raises(Exception, match=r"layer2\.0\.bn2 is gone"):
        torch.compile(model, backend="eager")(images(16))


def test_a_module_that_is_replaced_by_hand_is_attended_to():
    model = small()
    x = images(16)
    before = model(x)
    model.layer2[0].bn2 = nn.Identity()
    after = model(x)
    assert not torch.equal(after, before)
    assert not torch.equal(after, csham.detach(copy.deepcopy(model))(x))
    assert isinstance(csham.detach(model).layer2[0].bn2, nn.Identity)


def test_wrapping_leaves_attention_where_it_is():
    class Wrapper(nn.Module):
        def __init__(self, wrapped):
            super().__init__()
            self.wrapped = wrapped

        def forward(self, x):
            return self.wrapped(x)

    model = small()
    x = images(16)
    expected = model(x)
    model.layer1[0].bn2 = Wrapper(model.layer1[0].bn2)
    model.layer2[0] = Wrapper(model.layer2[0])
    model.layer3 = Wrapper(model.layer3)
    check_kept(model, x, expected, 6)
    model.layer1[0].bn2 = model.layer1[0].bn2.wrapped
    check_kept(model, x, expected, 6)


@pytest.mark.parametrize("wrap", [checkpoint_wrapper, partial(torch.compile, backend="eager"), nn.Sequential])
@pytest.mark.parametrize("strategy", ["sequential", "transfer"])
def test_what_is_put_around_attention_itself_leaves_it_there(wrap, strategy):
    torch.manual_seed(1)
    csham.attach(model := CifarResNet(14, num_classes=5), "csham", strategy=strategy)
    x = images(16)
    expected = shaken(model).eval()(x)
    for host in (model.layer1[0].bn2, model.layer2[1].bn2):
        host.attached = wrap(host.attached)
    torch.testing.assert_close(model(x), expected)
    keys = csham.detach(model).eval().state_dict()
    assert not any("attached" in name for name in (*keys, *dict(model.named_modules())))
    assert len(csham.attach(model, "csham", strategy=strategy)) == 6


def test_a_gated_network_that_accelerate_offloads_computes_what_it_did():
    torch.manual_seed(1)
    csham.attach(model := CifarResNet(14, num_classes=5).eval(), "csham", gated=True)
    x = images(16)
    expected = model(x)
    torch.testing.assert_close(accelerate.cpu_offload(model, torch.device("cpu"))(x), expected)


def test_attention_that_was_attached_in_inference_mode_can_be_trained():
    model = CifarResNet(8, num_classes=5)
    with torch.inference_mode():
        csham.attach(model, "csham", gated=True)
    model(images(16)).sum().backward()
    assert model.layer1[0].bn2.attached.gate.grad is not None


def test_parts_that_are_taken_out_take_their_attention_along():
    """As timm prunes what comes after the features that are wanted."""
    model = small()
    x = images(16)
    model.layer3 = nn.Identity()
    model.fc = nn.Identity()
    plain = csham.detach(copy.deepcopy(model))
    assert not torch.equal(model(x), plain(x))

    model = timm.create_model("convnext_atto", num_classes=5)
    csham.attach(model, "csham")
    features = model.forward_intermediates(images(), intermediates_only=True, indices=[0, 1])
    model.prune_intermediate_layers([0, 1])
    for before, after in zip(features, model.forward_intermediates(images(), intermediates_only=True), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("position", ["last", "post"])
@pytest.mark.parametrize("left", [lambda stage: stage[:1], lambda stage: nn.Identity(), lambda stage: nn.Sequential()])
def test_attention_does_not_move_to_what_is_left_of_a_stage(position, left):
    model = CifarResNet(14).eval()
    csham.attach(model, position=position, stages=-1)
    pruned = csham.detach(copy.deepcopy(model))
    model.layer3, pruned.layer3 = left(model.layer3), left(pruned.layer3)
    x = images(16)
    features = [network.layer3(network.layer2(network.layer1(network.conv1(x)))) for network in (model, pruned)]
    attended = position == "post" and len(list(model.layer3.children())) == 1
    assert torch.equal(*features) is not attended
    model.fc = pruned.fc = nn.Identity()
    assert torch.equal(model(x), pruned(x)) is not attended


def test_other_modules_are_replaced_as_ever():
    model = small()
    new = nn.Linear(64, 7)
    model.fc = new
    assert model.fc is new
    assert not new._forward_hooks
    assert type(new) is nn.Linear
    assert model(images(16)).shape == (2, 7)
    model.layer1[0].conv1 = None
    assert model.layer1[0].conv1 is None


class _ConvNorm(nn.Module):
    """A convolution as Ultralytics and EfficientViT write it, whose norm can be folded away."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.norm(self.conv(x)))

    def fold(self) -> None:
        self.conv = fuse_conv_bn_eval(self.conv, self.norm)
        del self.norm
        self.forward = lambda x: self.act(self.conv(x))


class _Folding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.branches = nn.ModuleList(_ConvNorm(8) for _ in range(2))
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for branch in self.branches:
            x = (x + branch(x)).relu()
        return self.head(x.mean((2, 3)))


def test_a_norm_that_is_folded_away_leaves_attention_where_it_was():
    model = _Folding().eval()
    points = csham.attach(model, "csham", strategy="transfer")
    for branch in model.branches:
        nn.init.uniform_(branch.norm.running_var, 0.5, 2)
    x = torch.randn(2, 3, 16, 16)
    expected = model(x)
    state = model.state_dict()

    for branch in model.branches:
        branch.fold()

    assert [point.name for point in points] == ["branches.0", "branches.1"]
    torch.testing.assert_close(model(x), expected)
    assert {key for key in state if "attached" in key} == {key for key in model.state_dict() if "attached" in key}


def test_weights_of_attention_at_the_norm_itself_load_as_ever():
    model, other = _Folding(), _Folding()
    csham.attach(model, "csham")
    csham.attach(other, "csham")
    state = {key.replace(".attached.", ".norm.attached."): value for key, value in model.state_dict().items()}

    for network in (other, copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        network.load_state_dict(state)
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in network.state_dict().items())
    csham.detach(other)
    assert not any(module._load_state_dict_pre_hooks for module in other.modules())


def test_attention_that_stayed_once_is_missed_where_more_is_replaced():
    """It went to what took the place of a block; what takes the place of more than that puts out something else."""
    block = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    model = nn.Sequential(nn.Sequential(block, nn.ReLU()), nn.Conv2d(8, 2, 1))
    csham.attach(model, "se", points=["0.0.1"])
    model[0][0] = nn.Conv2d(3, 8, 1)
    model(images(8))
    model[0] = nn.Conv2d(3, 8, 1)
    with pytest.raises(ValueError, match="is gone: a Conv2d is there now"):
        model(images(8))
