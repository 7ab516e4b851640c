"""Which parameters share a rate and a decay, and how a schedule's rate reaches them."""

import pytest
import torch
from torch import nn

import csham
from csham.training.config import resolve
from csham.training.optimizer import create_optimizer, describe_groups, rates_at


@pytest.fixture
def timm_optim():
    """timm.optim, whose import would leave the compiler a limit of a million recompilations."""
    from torch._dynamo import config

    with config.patch(recompile_limit=config.recompile_limit):
        from timm import optim

        yield optim


def config_of(**given):
    return resolve({"data": "digits", "lr": 0.1, "weight_decay": 0.01, **given})


def gated(backbone="resnet14", **settings):
    return csham.create_model(backbone, attention="cbam", gated=True, num_classes=5, image_size=32, **settings)


def groups_of(model, **given):
    """Name, multiple and decay of each parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = create_optimizer(model, config_of(**given)).param_groups
    found = {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert set(found) == set(names.values())
    assert sum(len(group["params"]) for group in groups) == len(names)
    return found


def test_without_a_setting_there_are_the_groups_that_checkpoints_have_always_had():
    model = gated()
    optimizer = create_optimizer(model, config_of())
    gates = [p for name, p in model.named_parameters() if name.endswith(".gate")]
    others = [p for name, p in model.named_parameters() if not name.endswith(".gate")]
    ours = [list(map(id, group["params"])) for group in optimizer.param_groups]
    assert ours == [list(map(id, others)), list(map(id, gates))]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    assert len(create_optimizer(model, config_of(weight_decay=0.0)).param_groups) == 2
    assert optimizer.defaults["nesterov"]


def test_each_part_has_its_rate_and_the_schedule_multiplies_all():
    model = gated()
    config = config_of(backbone_lr=0.01, head_lr=0.2)
    optimizer = create_optimizer(model, config)
    names = [group["name"] for group in optimizer.param_groups]
    rates = dict(zip(names, rates_at(optimizer, 0.05), strict=True))  # half of the highest
    assert rates == pytest.approx(
        {"backbone, lr x 0.1": 0.005, "head, lr x 2": 0.1, "attention": 0.05, "gates, no decay": 0.05}
    )
    described = {group["name"]: group for group in describe_groups(optimizer, config)}
    assert described["head, lr x 2"] == {
        "name": "head, lr x 2", "highest_lr": 0.2, "weight_decay": 0.01, "values": 64 * 5 + 5,
    }  # fmt: skip
    assert sum(group["values"] for group in described.values()) == sum(p.numel() for p in model.parameters())


def test_gates_have_the_rate_of_attention():
    found = groups_of(gated(), attention_lr=0.3, optimizer="adamw")
    assert {round(scale, 6) for name, (scale, _) in found.items() if ".attached." in name} == {3.0}
    assert {decay for name, (_, decay) in found.items() if name.endswith(".gate")} == {0.0}


def test_adamw_leaves_biases_and_norms_undecayed_and_sgd_does_not(timm_optim):
    """As timm's rule for AdamW's recipes has it, gates and what a network names included."""
    model = gated()
    expected = timm_optim.param_groups_weight_decay(model, 0.01)
    undecayed = {id(p) for group in expected if group["weight_decay"] == 0 for p in group["params"]}
    for name, (_, decay) in groups_of(model, optimizer="adamw").items():
        assert decay == (0.0 if id(model.get_parameter(name)) in undecayed else 0.01), name
    assert {decay for name, (_, decay) in groups_of(model).items() if not name.endswith(".gate")} == {0.01}

    class Named(nn.Linear):
        def no_weight_decay(self):
            return {"weight"}

    assert groups_of(nn.Sequential(Named(2, 2)), optimizer="adamw")["0.weight"][1] == 0.01
    assert groups_of(Named(2, 2), optimizer="adamw")["weight"][1] == 0.0


def test_adamws_betas_are_torchs():
    optimizer = create_optimizer(gated(), config_of(optimizer="adamw"))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["betas"] == torch.optim.AdamW([nn.Parameter(torch.ones(1))]).defaults["betas"]


@pytest.mark.parametrize(
    "backbone", ["resnet18", "mobilenetv2_100", "densenet121", "convnext_atto", "resnet20", "wrn16_8"]
)
def test_layers_decay_as_in_timm(backbone, timm_optim):
    """Of csham's own networks too, which say their layers as timm's do. Attention is new everywhere: undecayed."""
    plain = csham.create_model(backbone, num_classes=5, image_size=64)
    expected = {}
    names = {id(parameter): name for name, parameter in plain.named_parameters()}
    for group in timm_optim.param_groups_layer_decay(plain, 0.01, layer_decay=0.7):
        expected |= {names[id(parameter)]: group["lr_scale"] for parameter in group["params"]}
    assert len(set(expected.values())) > 4
    model = csham.create_model(backbone, attention="se", gated=True, num_classes=5, image_size=64)
    found = {name: scale for name, (scale, _) in groups_of(model, layer_decay=0.7).items()}
    assert {name: scale for name, scale in found.items() if name in expected} == pytest.approx(expected)
    assert {scale for name, scale in found.items() if name not in expected} == {1.0}


def test_a_network_that_says_nothing_of_its_layers_has_one_of_every_twelve_parameters():
    plain = csham.create_model("torchvision/resnet18", num_classes=5, image_size=64)
    found = {name: scale for name, (scale, _) in groups_of(plain, layer_decay=0.5).items()}
    assert found["fc.weight"] == 1.0
    backbone = [scale for name, scale in found.items() if not name.startswith("fc.")]
    assert backbone == [0.5**layer for layer in (5, 4, 3, 2, 1) for _ in range(12)]
    model = csham.create_model("torchvision/resnet18", attention="se", num_classes=5, image_size=64)
    attended = {name: scale for name, (scale, _) in groups_of(model, layer_decay=0.5).items()}
    assert found.items() <= attended.items()


def test_names_and_multiples_survive_a_checkpoint():
    config = config_of(backbone_lr=0.01, optimizer="adamw", layer_decay=0.7)
    first, second = (create_optimizer(gated(), config) for _ in range(2))
    second.load_state_dict(first.state_dict())
    for ours, theirs in zip(second.param_groups, first.param_groups, strict=True):
        assert (ours["name"], ours["lr_scale"]) == (theirs["name"], theirs["lr_scale"])
    older = create_optimizer(gated(), config_of()).state_dict()
    for group in older["param_groups"]:
        del group["name"], group["lr_scale"]
    third = create_optimizer(gated(), config_of())
    third.load_state_dict(older)
    assert set(rates_at(third, 0.05)) == {0.05}


def test_a_backbone_that_was_frozen_begins_its_momentum_later():
    """In one group with others, the fused SGD would meet parameters with and without momentum."""
    model = csham.create_model("resnet14", num_classes=5, image_size=16)
    optimizer = create_optimizer(model, config_of(freeze_backbone=1))
    backbone = [p for name, p in model.named_parameters() if not name.startswith("fc.")]
    for frozen in (True, False, False):
        for parameter in backbone:
            parameter.requires_grad_(not frozen)
        before = [p.detach().clone() for p in backbone]
        model(torch.randn(4, 3, 16, 16)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert [torch.equal(p, b) for p, b in zip(backbone, before, strict=True)] == [frozen] * len(before)


@pytest.fixture
def written_memory():
    """Memory that nobody wrote is NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_first_step_that_overflows_changes_nothing(written_memory, resumed):
    torch.manual_seed(0)
    network, expected, images = nn.Linear(3, 3), nn.Linear(3, 3), torch.randn(2, 3)
    expected.load_state_dict(network.state_dict())
    scaler, ours, theirs = (
        torch.amp.GradScaler("cpu"),
        create_optimizer(network, config_of(precision="fp16")),
        create_optimizer(expected, config_of(precision="fp32")),
    )
    if resumed:  # where there had been no step
        ours.load_state_dict(theirs.state_dict())
    for factor in (float("inf"), 1.0, 1.0):
        ours.zero_grad()
        scaler.scale(network(images).square().sum() * factor).backward()
        scaler.step(ours)
        scaler.update()
    for _ in range(2):
        theirs.zero_grad()
        expected(images).square().sum().backward()
        theirs.step()
    assert torch.equal(network.weight, expected.weight)
    saved = ours.state_dict()
    ours.load_state_dict(saved)
    assert torch.equal(ours.state[network.weight]["momentum_buffer"], theirs.state[expected.weight]["momentum_buffer"])
