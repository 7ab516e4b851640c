"""detach gives the plain network back, and attach leaves one alone when it fails."""

import copy
import pickle

import pytest
import timm
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import csham
from csham.attach.names import POSITIONS, STRATEGIES
from csham.backbones import CifarResNet

HOOKS = (
    *("_forward_hooks", "_forward_hooks_always_called", "_forward_hooks_with_kwargs"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
)


def shape_of(model):
    """Everything of a network that attaching could change."""
    return (
        [(name, type(module)) for name, module in model.named_modules()],
        [list(getattr(module, kind).values()) for module in model.modules() for kind in HOOKS],
        [(name, id(value)) for name, value in model.named_parameters()],
        [sorted(set(vars(module)) - {"_is_full_backward_hook"}) for module in model.modules()],
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("position", POSITIONS)
def test_detaching_undoes_attaching(strategy, position):
    model = CifarResNet(14, num_classes=3)
    before = shape_of(model)
    if strategy in ("alternate", "transfer") and position in ("stage", "last"):
        with pytest.raises(ValueError, match="needs a stage with two attachment points"):
            csham.attach(model, strategy=strategy, position=position)
    else:
        csham.attach(model, strategy=strategy, position=position)
        assert shape_of(model) != before
        assert csham.detach(model) is model
    assert shape_of(model) == before
    csham.attach(model, "se")  # nothing is left that would stand in the way


def test_copies_and_pickles_detach_too():
    model = CifarResNet(14, num_classes=3).eval()
    x = torch.randn(1, 3, 16, 16)
    expected = model(x)
    csham.attach(model, strategy="transfer")
    attended = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(csham.detach(other)(x), expected)
        assert not any(list(getattr(module, kind)) for module in other.modules() for kind in HOOKS)
    assert torch.equal(model(x), attended)


def test_detaching_leaves_the_hooks_of_others():
    model = CifarResNet(14, num_classes=3)
    seen = []
    handles = [
        model.layer1[0].bn2.register_forward_hook(lambda m, a, y: seen.append(y)),
        model.layer1.register_forward_pre_hook(lambda m, a: seen.append(a[0])),
    ]
    csham.attach(model, strategy="transfer")
    csham.detach(model)
    seen.clear()  # attach ran the network
    model(torch.randn(1, 3, 16, 16))
    assert len(seen) == 2
    for handle in handles:
        handle.remove()
    csham.detach(model)


def test_hooks_that_were_there_see_what_attention_gives():
    """As timm's features_only networks collect feature maps with hooks."""
    model = CifarResNet(14, num_classes=3).eval()
    seen = []
    model.layer3[1].register_forward_hook(lambda m, a, y: seen.append(y))
    csham.attach(model, "csham_channel", position="last")
    seen.clear()
    given = []
    model.layer3[1].attached.register_forward_hook(lambda m, a, y: given.append(y))
    model(torch.randn(1, 3, 16, 16))
    assert torch.equal(seen[0], given[0])


class Touchy(nn.Module):
    """Runs plain, and refuses what attention makes of its map."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x):
        y = self.conv(x)
        if not torch.equal(y, nn.functional.conv2d(x, self.conv.weight, self.conv.bias, padding=1)):
            raise RuntimeError("these are not the values I know")
        return y.mean((2, 3))


class AllInTurn(nn.Module):
    """A container that does not say that it is one."""

    def __init__(self, *layers):
        super().__init__()
        for number, layer in enumerate(layers):
            self.add_module(f"layer{number}", layer)

    def forward(self, x):
        for layer in self.children():
            x = layer(x)
        return x


class Runs(nn.Module):
    def __init__(self):
        super().__init__()
        self.all = AllInTurn(nn.Conv2d(3, 8, 3), nn.ReLU())

    def forward(self, x):
        return self.all(x).mean((2, 3))


def layers():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())


def compiled_within():
    return nn.Sequential(torch.compile(layers(), backend="eager"), nn.ReLU())


def compiled_in_place():
    model = layers()
    model.compile(backend="eager")
    return model


def exported():
    return torch.export.export(layers(), (torch.zeros(1, 3, 8, 8),)).module()


@pytest.mark.parametrize(
    ("build", "choice", "message"),
    [
        (Touchy, {}, "no longer runs on images of 64x64: RuntimeError: these are not the values I know"),
        (Runs, {"points": "all"}, "all (AllInTurn) runs all its children one after another"),
        (lambda: CifarResNet(14), {"kernel_size": 4}, "kernel_size must be an odd whole number"),
        (lambda: CifarResNet(14), {"stages": 9}, "must be numbers of stages"),
        (lambda: CifarResNet(14), {"input_size": (3, 1, 1), "points": "nope"}, "names no module"),
        (lambda: CifarResNet(14), {"input_size": (4, 32, 32)}, "could not be run"),
        (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), {}, "has lazy layers without shapes yet"),
        (lambda: torch.compile(CifarResNet(14), backend="eager"), {}, "Attach, then compile"),
        (compiled_within, {}, "0 is compiled already, and would not see the change"),
        (compiled_in_place, {}, "this network is compiled already"),
        (exported, {}, "this network was exported"),
        (
            lambda: nn.DataParallel(CifarResNet(14)),
            {},
            "wrapped in DataParallel. Attach to the network within, its .module",
        ),
        (lambda: nn.Sequential(nn.DataParallel(CifarResNet(14))), {}, "wrapped in DataParallel"),
        (
            lambda: torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3))),
            {},
            "this network is scripted and can be neither",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3), torch.jit.script(nn.Conv2d(4, 4, 3))),
            {},
            "1 is scripted and",
        ),
    ],
)
def test_a_failed_attach_leaves_the_network_as_it_was(build, choice, message):
    model = build()
    before = shape_of(model)
    with pytest.raises(ValueError) as caught:
        csham.attach(model, **choice)
    assert message in str(caught.value)
    assert shape_of(model) == before


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_what_is_wrapped_for_several_processes_is_refused():
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    for wrap in (nn.parallel.DistributedDataParallel, lambda model: fully_shard(model, mesh=mesh)):
        with pytest.raises(ValueError, match=r"would not see the new parameters\. Attach, then wrap"):
            csham.attach(wrap(CifarResNet(8)))


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("strategy", ["sequential", "transfer"])
def test_a_gated_network_is_sharded_and_trains(strategy):
    model = CifarResNet(14)
    csham.attach(model, strategy=strategy, gated=True)
    plain = copy.deepcopy(model)
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    for part in (*model.layer1, model):
        fully_shard(part, mesh=mesh)
    x = torch.randn(2, 3, 16, 16)
    for network in (model, plain):
        network(x).pow(2).sum().backward()
    for (name, sharded), whole in zip(model.named_parameters(), plain.parameters(), strict=True):
        if whole.grad is not None:
            torch.testing.assert_close(sharded.grad.full_tensor(), whole.grad, msg=name)
    assert plain.layer1[0].bn2.attached.gate.grad is not None


def test_gates_of_before_they_had_an_axis_load():
    model = CifarResNet(8)
    csham.attach(model, gated=True)
    saved = {key: value[0] / 2 if key.endswith("gate") else value for key, value in model.state_dict().items()}
    model.load_state_dict(saved)
    assert model.layer1[0].bn2.attached.gate.tolist() == [0.5]


def test_copies_as_data_parallel_makes_them_attend_with_their_own_weights():
    """Its replicas, which need several GPUs, share the hooks of the network and get other parameters."""
    model = CifarResNet(14).eval()
    csham.attach(model, strategy="transfer")
    replicas = {name: module._replicate_for_data_parallel() for name, module in model.named_modules()}
    for name, module in model.named_modules():
        for key in module._modules:
            replicas[name]._modules[key] = replicas[f"{name}.{key}".lstrip(".")]
        for key, parameter in module._parameters.items():
            if parameter is None:
                replicas[name]._parameters[key] = None
            else:
                setattr(replicas[name], key, parameter * (2 if ".attached" in name else 1))
    for name, parameter in model.named_parameters():
        parameter.data *= 2 if ".attached" in name else 1
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(replicas[""](x), model(x))


def test_attaching_twice_names_detach():
    model = CifarResNet(14)
    csham.attach(model)
    before = shape_of(model)
    with pytest.raises(ValueError, match=r"has attention attached already\. csham\.detach\(model\) takes it out"):
        csham.attach(model, "se")
    assert shape_of(model) == before


def test_features_only_backbones_attend_in_every_stage():
    model = timm.create_model("resnet10t", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    x = torch.randn(1, 3, 64, 64)
    plain = model(x)
    points = csham.attach(model, "csham_channel", position="stage")
    assert [point.channels for point in points] == [64, 128, 256, 512]
    for before, after in zip(plain, model(x), strict=True):
        assert before.shape == after.shape
        assert not torch.equal(before, after)


@pytest.mark.parametrize("kind", ["Sequential", "ModuleDict"])
def test_a_container_runs_its_own_layers_and_attention_after_them(kind):
    """Not the attention among its layers, as a child more would be."""

    class Dense(nn.ModuleDict):
        def forward(self, x):
            features = [x]
            for layer in self.values():
                features.append(layer(torch.cat(features, 1)))
            return torch.cat(features, 1)

    layers = {"a": nn.Conv2d(3, 4, 3, padding=1), "b": nn.Conv2d(7, 4, 3, padding=1)}
    chain = nn.Sequential(nn.Conv2d(3, 7, 3), nn.Sequential(layers["b"]))
    host = Dense(layers) if kind == "ModuleDict" else chain
    model = nn.Sequential(host, nn.AdaptiveAvgPool2d(1)).eval()
    x = torch.randn(2, 3, 8, 8)
    plain = host(x)
    csham.attach(model, "se", points="0")
    attached = next(m for m in model.modules() if type(m).__name__ == "Attached")
    assert torch.equal(host(x), attached.attention(plain))
    csham.detach(model)
    assert torch.equal(host(x), plain)


def test_a_host_with_an_attribute_of_that_name_keeps_it():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    model[1].attached = "mine"
    csham.attach(model, "csham_channel")
    assert model[1].attached == "mine"
    assert list(csham.detach(model).state_dict()) == ["0.weight", "0.bias"]


def test_maps_too_small_only_for_the_probe_are_no_reason_to_refuse():
    """The points are found at 64 pixels, where these maps have 2; a refusal there says nothing about 224."""

    class Choosy(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.Conv2d(3, 8, 32, stride=32)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            y = self.down(x)
            if hasattr(self.down, "attached") and y.shape[-1] < 4:
                raise ValueError("maps of 4 pixels at least")
            return self.head(y.mean((2, 3)))

    model = Choosy()
    csham.attach(model, "se")
    assert model(torch.randn(2, 3, 224, 224)).shape == (2, 2)
