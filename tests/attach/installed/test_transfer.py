"""Reused channel weights under everything that a training framework does to a network."""

import copy
import gc
import pickle
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
import timm
import torch
from networks import NARROW
from torch import nn
from torch.utils.checkpoint import checkpoint

import csham
from csham import ops
from csham.backbones import CifarResNet


def network(depth=20, gated=False):
    torch.manual_seed(1)
    model = CifarResNet(depth, num_classes=5)
    csham.attach(model, "csham_linear", strategy="transfer", gated=gated)
    return model


def gradients(model, x, run=None):
    model.zero_grad()
    (model if run is None else run)(x).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name in got:
        torch.testing.assert_close(got[name], expected[name], msg=lambda m, n=name: f"{n}: {m}")


def test_gradients_flow_through_the_reused_weights():
    """The lender's parameters get gradient from the borrower alone when its own product is cut off."""
    model = network().eval()
    lender = model.layer1[0].bn2.attached
    x = torch.randn(2, 3, 16, 16)
    full = gradients(model, x)["layer1.0.bn2.attached.attention.avg.weight"]

    def scaled_without_gradient(x, weights):
        return (x * weights.detach()[:, :, None, None]).detach() + 0 * x

    attend = lender._attend

    def cut(x, shortcut, source):
        weights = lender.attention.weights(x)
        lender.lends.lend(lender.name, weights)
        return ops.finish(scaled_without_gradient(x, weights), shortcut)

    lender._attend = cut
    part = gradients(model, x)["layer1.0.bn2.attached.attention.avg.weight"]
    lender._attend = attend
    assert part.abs().max() > 0
    assert not torch.allclose(part, full)


def test_a_deep_copy_is_on_its_own():
    model = network()
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.data.zero_()
    x = torch.randn(2, 3, 16, 16)
    expected = gradients(network(), x)
    other(x)
    assert_same(gradients(model, x), expected)
    transfers = [
        {id(m.lends) for m in net.modules() if getattr(m, "lends", None) is not None} for net in (model, other)
    ]
    assert len(transfers[0]) == 3
    assert not transfers[0] & transfers[1]


def test_a_pickled_network_computes_the_same():
    model = network().eval()
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))


LONG = (pytest.mark.slow, pytest.mark.long)


@pytest.mark.parametrize("backend", ["eager", *(pytest.param(name, marks=LONG) for name in ("aot_eager", "inductor"))])
def test_compiles_to_one_graph(backend):
    torch.compiler.reset()  # what tests before it left uncompiled would stay so
    model = network()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend=backend)
    x = torch.randn(2, 3, 16, 16)
    got = gradients(compiled._orig_mod, x, compiled)
    expected = gradients(model, x)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-3, atol=1e-3)


@pytest.mark.long
@pytest.mark.slow
def test_compiles_block_by_block_and_around_a_graph_break():
    model = network().eval()
    x = torch.randn(2, 3, 16, 16)
    expected = gradients(model, x)
    regional = copy.deepcopy(model)
    for block in regional.layer1:
        block.compile(backend="aot_eager")
    assert_same(gradients(regional, x), expected)

    broken = copy.deepcopy(model)
    broken.layer1[1].conv1.register_forward_pre_hook(lambda *_: torch._dynamo.graph_break())
    assert_same(gradients(broken, x, torch.compile(broken, backend="aot_eager")), expected)


def through_blocks(model, x, every):
    """What timm's checkpoint_seq does: runs of blocks, regardless of the stages that hold them."""
    blocks = [*model.layer1, *model.layer2, *model.layer3]
    x = model.act1(model.bn1(model.conv1(x)))
    for start in range(0, len(blocks), every):
        x = checkpoint(nn.Sequential(*blocks[start : start + every]), x, use_reentrant=False)
    return model.fc(x.mean((2, 3)))


@pytest.mark.parametrize("every", [1, 2, 3, 4])
def test_activation_checkpointing_of_blocks(every):
    model = network().eval()
    x = torch.randn(2, 3, 16, 16)
    assert_same(gradients(model, x, lambda x: through_blocks(model, x, every)), gradients(model, x))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_of_stages(reentrant):
    model = network().eval()
    x = torch.randn(2, 3, 16, 16)

    def run(x):
        x = model.act1(model.bn1(model.conv1(x)))
        for stage in (model.layer1, model.layer2, model.layer3):
            x = checkpoint(stage, x, use_reentrant=reentrant)
        return model.fc(x.mean((2, 3)))

    assert_same(gradients(model, x, run), gradients(model, x))


def test_timms_own_checkpointing_and_features():
    model = timm.create_model("resnet18", num_classes=5, **NARROW).eval()
    csham.attach(model, "csham_linear", strategy="transfer")
    x = torch.randn(2, 3, 64, 64)
    expected = gradients(model, x)
    model.set_grad_checkpointing()
    assert_same(gradients(model, x), expected)
    features = model.forward_features(x)
    torch.testing.assert_close(model.forward_head(features), model(x))


def test_blocks_without_a_point_hand_weights_on():
    """Those of one way to run blocks, which is not within a call of what holds them, and of another."""
    model = CifarResNet(20).eval()
    csham.attach(model, strategy="transfer", points=["layer1.0.bn2", "layer1.2.bn2"])
    x = torch.randn(2, 3, 16, 16)
    for every in (1, 2):
        assert_same(gradients(model, x, lambda x: through_blocks(model, x, every)), gradients(model, x))  # noqa: B023
    narrow = timm.create_model("mobilenetv2_050", num_classes=5).eval()
    points = csham.attach(narrow, strategy="transfer")
    assert [p for p in points if p.weights_from and p.weights_from.split(".")[1] != p.name.split(".")[1]]
    expected = gradients(narrow, torch.ones(2, 3, 64, 64))
    narrow.set_grad_checkpointing()
    assert_same(gradients(narrow, torch.ones(2, 3, 64, 64)), expected)


@pytest.mark.slow
def test_checkpointing_and_compiling_together():
    """torch.compile leaves checkpointed blocks that hand something on to eager mode; the numbers stay."""
    model = timm.create_model("resnet18", num_classes=5, **NARROW).eval()
    csham.attach(model, "csham_linear", strategy="transfer")
    x = torch.randn(2, 3, 64, 64)
    expected = gradients(model, x)
    model.set_grad_checkpointing()
    assert_same(gradients(model, x, torch.compile(model, backend="aot_eager")), expected)


@pytest.mark.slow
def test_checkpointing_of_blocks_that_are_compiled_one_by_one():
    torch.compiler.reset()
    model = network().eval()
    x = torch.randn(2, 3, 16, 16)
    expected = gradients(model, x)
    for block in model.layer1:
        block.compile(backend="aot_eager", fullgraph=True)
    assert_same(gradients(model, x, lambda x: through_blocks(model, x, 1)), expected)


def test_reentrant_checkpointing_of_blocks_is_refused_and_not_wrong():
    model = network().eval()
    x = torch.randn(2, 3, 16, 16, requires_grad=True)
    y = model.act1(model.bn1(model.conv1(x)))
    for block in model.layer1:
        y = checkpoint(block, y, use_reentrant=True)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        y.sum().backward()


def test_a_borrower_on_its_own_says_what_is_missing():
    model = network()
    with pytest.raises(RuntimeError, match=r"layer1\.1\.bn2 applies the channel weights of layer1\.0\.bn2"):
        model.layer1[1](torch.randn(1, 16, 8, 8))


class Skips(nn.Module):
    """A residual block that a network may skip, as stochastic depth does."""

    def __init__(self):
        super().__init__()
        self.body, self.skipped = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)), False

    def forward(self, x):
        return x if self.skipped else torch.relu(x + self.body(x))


def of_skips():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(*(Skips() for _ in range(4))), nn.Flatten())
    points = csham.attach(model, "csham", strategy="transfer")
    assert [point.weights_from for point in points] == [None, "1.0.body.1", None, "1.2.body.1"]
    return model


def one_by_one(model, x):
    """As under activation checkpointing of every block."""
    x = model[0](x)
    for block in model[1]:
        x = checkpoint(block, x, use_reentrant=False)
    return model[2](x)


@pytest.mark.parametrize("run", [lambda model, x: model(x), one_by_one], ids=["whole", "checkpointed"])
@pytest.mark.parametrize(("skipped", "borrower"), [(0, 1), (2, 3)])
def test_a_lender_that_is_skipped_lends_nothing_and_nobody_elses_weights_are_applied(run, skipped, borrower):
    model = of_skips()
    model[1][skipped].skipped = True
    message = rf"1\.{borrower}\.body\.1 applies .* of 1\.{skipped}\.body\.1, .* skips blocks .* another strategy"
    with pytest.raises(RuntimeError, match=message):
        run(model, torch.randn(2, 3, 8, 8))
    assert not in_flight(model)
    model[1][borrower].skipped = True
    run(model, torch.randn(2, 3, 8, 8)).sum().backward()


def test_a_graph_without_a_lender_is_not_drawn_with_anothers_weights():
    model = of_skips()
    model[1][2].skipped = True
    with pytest.raises(RuntimeError, match=r"1\.3\.body\.1 applies the channel weights of 1\.2\.body\.1"):
        torch.fx.symbolic_trace(model)


def test_two_forward_passes_interleaved_on_two_threads():
    model = network().eval()
    inputs = [torch.randn(2, 3, 16, 16), torch.randn(3, 3, 16, 16)]
    expected = [model(x) for x in inputs]
    barrier = threading.Barrier(2, timeout=60)
    # both threads stop inside each stage, between a lender and its borrower
    for stage in (model.layer1, model.layer2, model.layer3):
        stage[1].conv1.register_forward_pre_hook(lambda *_: (barrier.wait(), None)[1])
    results = [None, None]

    def run(i):
        results[i] = model(inputs[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for got, right in zip(results, expected, strict=True):
        torch.testing.assert_close(got, right)


def in_flight(model):
    """Weights that any transfer still holds."""
    transfers = {m.lends for m in model.modules() if getattr(m, "lends", None) is not None}
    return [t for t in transfers if t._slot != ((), None)]


@pytest.mark.parametrize("checkpointed", [False, True])
def test_no_memory_of_a_batch_outlives_its_backward(checkpointed):
    model = network()
    run = (lambda x: through_blocks(model, x, 1)) if checkpointed else model
    lent = []
    for module in model.modules():
        if getattr(module, "lends", None) is not None:
            lend = module.lends.lend
            module.lends.lend = lambda name, w, lend=lend: (lent.append(weakref.ref(w)), lend(name, w))[1]

    def tensors():
        gc.collect()
        return sum(isinstance(o, torch.Tensor) for o in gc.get_objects())

    run(torch.randn(2, 3, 16, 16)).sum().backward()
    before = tensors()
    for _ in range(3):
        loss = run(torch.randn(2, 3, 16, 16)).sum()
        loss.backward()
        del loss
    assert tensors() <= before  # fewer where the compiler lets go of what a test before left
    assert not in_flight(model)
    assert lent
    assert not [ref for ref in lent if ref() is not None]


class TwoBranches(nn.Module):
    """A block whose second branch is a module of its own, which is given what the first is given."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)) for _ in range(2))

    def forward(self, x):
        return self.first(x) + self.second(x)


def test_no_memory_outlives_a_pass_without_a_backward():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), TwoBranches())
    csham.attach(model, "csham", strategy="transfer", points=["1.first.1", "1.second.1"])
    gone = []
    model[0].register_forward_hook(lambda m, args, y: gone.append(weakref.ref(y)))
    model(torch.randn(2, 3, 8, 8))
    gc.collect()
    assert gone
    assert not [ref for ref in gone if ref() is not None]


def test_a_stage_puts_out_nothing_but_its_map():
    model = network()
    stage = model.layer1
    assert not vars(stage(torch.randn(2, 16, 8, 8)))
    assert len(vars(stage[0](torch.randn(2, 16, 8, 8)))) == 1  # the weights for the next block


def test_a_forward_pass_that_fails_halfway_leaves_nothing_behind():
    model = network()
    handle = model.layer1[2].conv2.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(torch.randn(2, 3, 16, 16))
    gc.collect()
    assert not in_flight(model)
    handle.remove()
    model(torch.randn(2, 3, 16, 16))


def test_a_forward_pass_that_is_interrupted_does_not_touch_the_next():
    """Ctrl-C is no Exception, and torch calls no hook that would tidy up."""

    def interrupt(*_):
        raise KeyboardInterrupt

    model = network().eval()
    x = torch.randn(2, 3, 16, 16)
    expected = gradients(model, x)
    handle = model.layer1[2].conv2.register_forward_hook(interrupt)
    for run in (model, lambda x: through_blocks(model, x, 1)):
        with pytest.raises(KeyboardInterrupt):
            run(x)
    handle.remove()
    assert_same(gradients(model, x, lambda x: through_blocks(model, x, 1)), expected)
    assert not in_flight(model)
    assert_same(gradients(model, x), expected)


def test_activation_checkpointing_of_blocks_that_are_called_by_keyword():
    class Keywords(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            model = self.model
            x = model.act1(model.bn1(model.conv1(x)))
            for block in (*model.layer1, *model.layer2, *model.layer3):
                x = checkpoint(block, x=x, use_reentrant=False)
            return model.fc(x.mean((2, 3)))

    model = network().eval()
    x = torch.randn(2, 3, 16, 16)
    assert_same(gradients(model, x, Keywords(model)), gradients(model, x))


@pytest.mark.parametrize("holder", [lambda x: (x, None), lambda x: [x], lambda x: {"maps": [(x,)]}])
def test_activation_checkpointing_of_blocks_that_take_more_than_a_map(holder):
    def first(held):
        while not isinstance(held, torch.Tensor):
            held = next(iter(held.values() if isinstance(held, dict) else held))
        return held

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, held):
            x = first(held)
            return holder(x + self.conv(x.relu()))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.blocks = nn.Conv2d(3, 4, 1), nn.Sequential(Block(), Block(), Block(), Block())

        def forward(self, x, checkpointed=False):
            held = holder(self.stem(x))
            for block in self.blocks:
                held = checkpoint(block, held, use_reentrant=False) if checkpointed else block(held)
            return first(held).mean((2, 3))

    model = Network()
    points = csham.attach(model, "csham", strategy="transfer", input_size=(3, 16, 16))
    assert [point.part for point in points] == ["channel", "spatial"] * 2
    x = torch.randn(2, 3, 16, 16)
    assert_same(gradients(model, x, lambda x: model(x, checkpointed=True)), gradients(model, x))


def test_without_gradients_nothing_is_kept_either():
    model = network().eval()
    with torch.no_grad():
        model(torch.randn(2, 3, 16, 16))
    with torch.inference_mode():
        model(torch.randn(2, 3, 16, 16))
    gc.collect()
    assert not in_flight(model)


def test_exports_to_one_graph():
    model = network().eval()
    x = torch.randn(2, 3, 16, 16)
    exported = torch.export.export(model, (x,))
    torch.testing.assert_close(exported.module()(x), model(x))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("side", [16, 4])  # of 4 pixels the last stage has one position, and no neighbours to weigh
def test_ddp_gives_the_gradients_of_one_process(tmp_path, side):
    script = Path(__file__).parent / "ddp_worker.py"
    rendezvous = f"file://{tmp_path / 'rendezvous'}"
    command = [sys.executable, script, rendezvous]
    workers = [subprocess.Popen([*command, str(rank), str(tmp_path), str(side)]) for rank in range(2)]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    got = torch.load(tmp_path / "gradients.pt", weights_only=True)
    model = network().eval()
    x = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(7))
    expected = gradients(model, x)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-4)
