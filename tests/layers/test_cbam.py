"""CBAM and its light variant against timm's modules, and both against the formulas."""

import numpy as np
import pytest
import timm.layers.cbam
import torch

import csham

TIMM = {"cbam": timm.layers.cbam.CbamModule, "lcbam": timm.layers.cbam.LightCbamModule}


@pytest.mark.usefixtures("reference")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", TIMM)
def test_equals_timms_module_and_loads_its_state(name, training):
    torch.manual_seed(1)
    theirs = TIMM[name](16, mlp_bias=True).train(training)
    torch.manual_seed(1)
    drawn_alike = csham.create_attention(name, 16, mlp_bias=True)
    ours = csham.create_attention(name, 16, mlp_bias=True).train(training)
    theirs.spatial.conv.bn.num_batches_tracked.fill_(10_000)  # ours average otherwise in the beginning
    ours.load_state_dict(theirs.state_dict(), strict=True)
    for key, value in theirs.named_parameters():
        assert torch.equal(drawn_alike.state_dict()[key], value), key
    x = torch.randn(2, 16, 9, 6)
    assert torch.equal(ours(x), theirs(x))
    for key, value in theirs.state_dict().items():  # the running statistics moved alike
        torch.testing.assert_close(ours.state_dict()[key], value, msg=key)


@pytest.mark.parametrize("name", TIMM)
def test_equals_the_formula(drawn, loops, name):
    layer, state = drawn(name, 8, rd_channels=3)
    x = torch.randn(2, 8, 4, 5, dtype=torch.float64)

    def mlp(pooled):
        return loops.dense(loops.relu(loops.dense(pooled, state, "channel.fc1")), state, "channel.fc2")

    y = x.numpy()
    average, maximum = y.mean((2, 3)), y.max((2, 3))
    logits = mlp((average + maximum) / 2) if name == "lcbam" else mlp(average) + mlp(maximum)
    y = y * loops.sigmoid(logits)[:, :, None, None]
    average, maximum = y.mean(1), y.max(1)
    pooled = ((average + maximum) / 2)[:, None] if name == "lcbam" else np.stack([average, maximum], 1)
    logits = loops.batch_norm(loops.convolve(pooled, state, "spatial.conv.conv"), state, "spatial.conv.bn")
    np.testing.assert_allclose(layer(x).detach(), y * loops.sigmoid(logits), rtol=1e-10, atol=1e-12)


def test_the_gate_can_be_chosen():
    layer = csham.create_attention("cbam", 8, gate_layer="hard_sigmoid")
    assert "Hardsigmoid" in repr(layer.channel)
    assert "Hardsigmoid" in repr(layer.spatial)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("cbam", {"spatial_kernel_size": 4}, "CBAM: spatial_kernel_size must be an odd whole number, got 4"),
        ("cbam", {"rd_channels": 0}, "CBAM: rd_channels must be a whole number of at least 1, got 0"),
        ("lcbam", {"gate_layer": "hard_sigmoid"}, "lcbam does not take these settings: gate_layer"),
    ],
)
def test_wrong_settings_are_named(name, settings, message):
    with pytest.raises(ValueError, match=message):
        csham.create_attention(name, 8, **settings)
