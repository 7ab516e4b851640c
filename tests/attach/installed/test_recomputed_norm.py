"""Norms that are recomputed in the backward pass: less is kept, and every gradient stays the same to the bit."""

import contextlib
import copy
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import csham
from csham.backbones import CifarResNet

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))]


@pytest.mark.parametrize("device", DEVICES)
def test_attention_keeps_what_the_plain_network_keeps(device, benchmark_script):
    kept_bytes = benchmark_script("network_memory").kept_in_eager_code
    images = torch.randn(4, 3, 32, 32, device=device).to(memory_format=torch.channels_last)

    def network(attention=None, strategy="sequential"):
        settings = {"attention": attention, "strategy": strategy, "num_classes": 10, "image_size": 32}
        model = csham.create_model("resnet18@width=0.5", **settings)
        return model.to(device).to(memory_format=torch.channels_last)

    plain = kept_bytes(network(), images)
    for choice in (("se",), ("csham",), ("csham", "transfer")):
        model = network(*choice)
        before = kept_bytes(model, images)
        csham.recompute_norms(model)
        after = kept_bytes(model, images)
        assert before > 1.15 * plain, choice
        assert after < 1.03 * plain, choice


class InPlace(nn.Module):
    """An attention that changes its map in place, and keeps what it then is."""

    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(channels, 1, 1))

    def forward(self, x):
        return x.mul_(2.0) * self.scale


class Views(nn.Module):
    """An attention that keeps views of its map, one of them a part of it."""

    def __init__(self, channels):
        super().__init__()
        self.fc = nn.Linear(channels, channels)

    def forward(self, x):
        w = self.fc(x.flatten(2).square().mean(2)) + self.fc(x[:, :, 1:, ::2].transpose(2, 3).square().mean((2, 3)))
        return x * w.sigmoid()[:, :, None, None]


def gradients(model, images, precision=torch.float32):
    model.zero_grad()
    torch.manual_seed(1)
    images = images.detach().clone().requires_grad_()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
        logits = model(images)
        F.cross_entropy(logits, torch.arange(len(images), device=images.device) % logits.shape[1]).backward()
    buffers = [buffer.clone() for buffer in model.buffers()]
    learn = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [logits.detach(), images.grad, *learn, *buffers]


def assert_same_with_recomputing(model, images, precision=torch.float32, recomputed=True):
    """Train two copies of a network, one of which recomputes."""
    other = copy.deepcopy(model)
    csham.recompute_norms(other)
    assert (norms_run(other, images) > norms_run(model, images)) == recomputed
    for _ in range(2):
        for one, two in zip(gradients(model, images, precision), gradients(other, images, precision), strict=True):
            assert torch.equal(one, two)


def norms_run(model, images):
    """Count the batch norms of a training step."""

    class Count(TorchDispatchMode):
        norms = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.norms += "batch_norm" in function.name() and "backward" not in function.name()
            return function(*args, **(kwargs or {}))

    with Count() as count:
        copy.deepcopy(model)(images).logsumexp(1).sum().backward()
    return count.norms


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("attention", ["csham", "cbam", "eca", "se", "bam", "triplet", InPlace, Views])
def test_gradients_are_the_same_to_the_bit(attention, layout, precision, device):
    torch.manual_seed(0)
    model = CifarResNet(8)
    csham.attach(model, attention)
    model = model.to(device).to(memory_format=layout)
    images = torch.randn(4, 3, 16, 16, device=device).to(memory_format=layout)
    assert_same_with_recomputing(model, images, precision, recomputed=attention is not InPlace)


@pytest.mark.parametrize("choice", [{"strategy": "transfer"}, {"gated": True}, {"fuse": False}, {"position": "post"}])
def test_however_it_is_attached(choice):
    torch.manual_seed(0)
    model = timm.create_model("resnet26", num_classes=10)
    csham.attach(model, "csham", **choice)
    images = torch.randn(2, 3, 32, 32)
    assert_same_with_recomputing(model, images, recomputed="position" not in choice)  # there, ReLU follows the norm


def small_network(attention="csham"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
    model(torch.randn(2, 3, 8, 8))
    csham.attach(model, attention, points=["1"], input_size=(3, 8, 8))
    return model


def test_norms_in_evaluation_use_their_running_statistics():
    model = small_network()
    model[1].running_mean.uniform_()
    model[1].eval()
    assert_same_with_recomputing(model, torch.randn(3, 3, 8, 8))


@pytest.mark.parametrize("freeze", ["bias", "weight"])
def test_norms_that_do_not_learn(freeze):
    model = small_network()
    nn.init.uniform_(model[1].bias)
    getattr(model[1], freeze).requires_grad_(False)
    assert_same_with_recomputing(model, torch.randn(3, 3, 8, 8), recomputed=freeze != "bias")


def test_a_bias_that_changes_before_the_backward_pass():
    model, images = small_network(), torch.randn(3, 3, 8, 8)
    found = []
    for recompute in (False, True):
        csham.recompute_norms(model, recompute)
        model.zero_grad()
        nn.init.zeros_(model[1].bias)
        loss = model(images).square().sum()
        with torch.no_grad():
            model[1].bias += 1
        loss.backward()
        found.append([p.grad.clone() for p in model.parameters()])
    assert all(map(torch.equal, *found))


def test_a_graph_that_is_gone_through_twice_and_differentiated_twice():
    model, images = small_network(), torch.randn(3, 3, 8, 8)
    found = []
    for recompute in (False, True):
        csham.recompute_norms(model, recompute)
        with csham.ops.use_kernels("reference"):
            loss = model(images).square().sum()
            first = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
            penalty = sum(grad.square().sum() for grad in first)
            found.append([*first, *torch.autograd.grad(penalty, list(model.parameters()), allow_unused=True)])
    assert all(one is two is None or torch.equal(one, two) for one, two in zip(*found, strict=True))
    assert sum(grad is not None for grad in found[0]) > len(list(model.parameters()))


@pytest.mark.parametrize("others", ["checkpoint", "save_on_cpu"])
def test_others_hooks_on_saved_tensors_are_left_alone(others):
    model = small_network()
    body = model[:2]

    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.rest = body, model[2:]

        def forward(self, x):
            if others == "checkpoint":
                return self.rest(checkpoint(self.body, x, use_reentrant=False))
            with torch.autograd.graph.save_on_cpu() if others == "save_on_cpu" else contextlib.nullcontext():
                return self.rest(self.body(x))

    assert_same_with_recomputing(Inside(), torch.randn(3, 3, 8, 8), recomputed=False)


def test_functional_transforms_run():
    model, images = small_network().eval(), torch.randn(3, 3, 8, 8)
    csham.recompute_norms(model)
    parameters = dict(model.named_parameters())

    def loss(parameters):
        return torch.func.functional_call(model, parameters, images).square().sum()

    found = torch.func.grad(loss)(parameters)
    csham.recompute_norms(model, False)
    for name, grad in torch.func.grad(loss)(parameters).items():
        assert torch.equal(found[name], grad)


class Picks(nn.Module):
    """An attention that keeps whole numbers beside its map."""

    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        return x * x.gather(1, x.argmax(1, keepdim=True)).sigmoid()


def test_tensors_without_data_run():
    model = small_network(Picks)
    csham.recompute_norms(model)
    model.to("meta")(torch.randn(3, 3, 8, 8, device="meta")).square().sum().backward()
    assert all(p.grad.shape == p.shape for p in model.parameters())


def test_no_map_stays_after_the_backward_pass(benchmark_script):
    model, images = small_network(), torch.randn(3, 3, 8, 8)
    csham.recompute_norms(model)
    with benchmark_script("network_memory").Made() as made:
        model(images).square().sum().backward()
    learnt = [tensor for parameter in model.parameters() for tensor in (parameter, parameter.grad)]
    assert made.left((*learnt, *model.buffers())) == 0


def test_copies_and_pickles_recompute_too():
    model = small_network()
    csham.recompute_norms(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert norms_run(other, torch.randn(3, 3, 8, 8)) == 2


def test_a_network_without_attention_is_refused():
    with pytest.raises(csham.errors.UserError, match=r"recompute_norms: Linear has no attached attention\. csham"):
        csham.recompute_norms(nn.Linear(2, 2))


# The second splits the graph as inductor does, and compiles no C++.
@pytest.mark.slow
@pytest.mark.parametrize("backend", [pytest.param("inductor", marks=pytest.mark.long), "aot_eager_decomp_partition"])
def test_compiled_networks_run_as_before(backend):
    model, images = small_network("eca"), torch.randn(3, 3, 8, 8)
    csham.recompute_norms(model)
    expected = gradients(copy.deepcopy(model), images)
    found = gradients(torch.compile(model, fullgraph=True, backend=backend), images)
    for one, two in zip(expected, found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
