import pytest
import torch
from torch import nn

from csham.backbones import CifarResNet
from csham.cost.passes import forward_of, inference, training, unchanged

CPU = torch.device("cpu")


@pytest.fixture
def network():
    return CifarResNet(8, num_classes=4)


def test_inference_runs_without_gradients_in_evaluation_mode(network):
    images = torch.randn(2, 3, 16, 16)
    with inference(network, forward_of(network, CPU, "fp32", False), images) as run:
        y = run()
    assert y.is_inference()
    assert not network.training
    torch.testing.assert_close(y, network(images))


def test_a_training_step_does_all_the_work_and_changes_no_weight(network):
    weights = [p.detach().clone() for p in network.parameters()]
    reached = []
    for parameter in network.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: reached.append(p.grad.abs().sum() > 0))
    with training(network, forward_of(network, CPU, "fp32", False), torch.randn(4, 3, 16, 16)) as step:
        step()
        step()
        assert network.training
    assert len(reached) == 2 * len(weights)
    assert sum(map(bool, reached)) > len(weights)
    assert all(a.equal(b) for a, b in zip(weights, network.parameters(), strict=True))
    assert all(p.grad is None for p in network.parameters())


def test_bf16_is_autocast(network):
    seen = []
    network.layer1[0].conv1.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with inference(network, forward_of(network, CPU, "bf16", False), torch.randn(2, 3, 16, 16)) as run:
        run()
    assert seen == [torch.bfloat16]


def test_unchanged(network):
    network.train()
    network.layer2.eval()
    network.fc.bias.grad = torch.ones(4)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    with (
        unchanged(network),
        training(network, forward_of(network, CPU, "fp32", False), torch.randn(4, 3, 16, 16)) as step,
    ):
        step()
        assert not network.bn1.running_mean.equal(state["bn1.running_mean"])
    assert all(value.equal(state[name]) for name, value in network.state_dict().items())
    assert (network.training, network.layer2.training) == (True, False)
    assert network.fc.bias.grad.equal(torch.ones(4))
    assert network.fc.weight.grad is None


@pytest.mark.slow
def test_every_compiled_network_is_compiled(monkeypatch):
    """More networks of one class than torch compiles for one function by default."""
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **settings: compile(function, backend=counter, **settings))
    networks = [nn.Sequential(nn.Linear(4, 4)).eval() for _ in range(12)]
    x = torch.randn(2, 4)
    for network in networks:
        forward = forward_of(network, CPU, "fp32", True)
        with inference(network, forward, x) as run:
            torch.testing.assert_close(run(), network(x))
            run()
    assert counter.frame_count == 12
