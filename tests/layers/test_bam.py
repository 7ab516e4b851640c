"""BAM against eq. 1 to 4 of its paper."""

import numpy as np
import pytest
import torch


def channel_logits(x, state, o):
    hidden = o.relu(o.batch_norm(o.dense(x.mean((2, 3)), state, "channel.mlp.0"), state, "channel.mlp.1"))
    return o.batch_norm(o.dense(hidden, state, "channel.mlp.3"), state, "channel.mlp.4")


def spatial_logits(x, state, o, dilation):
    maps = o.relu(o.batch_norm(o.dense(x, state, "spatial.convs.0"), state, "spatial.convs.1"))
    for conv, norm in ((3, 4), (6, 7)):
        maps = o.convolve(maps, state, f"spatial.convs.{conv}", dilation)
        maps = o.relu(o.batch_norm(maps, state, f"spatial.convs.{norm}"))
    return o.batch_norm(o.dense(maps, state, "spatial.convs.9"), state, "spatial.convs.10")


@pytest.mark.parametrize("settings", [{}, {"reduction": 4}, {"reduction": 3, "dilation": 1}])
def test_equals_the_formulas_whole_and_in_parts(drawn, loops, settings):
    layer, state = drawn("bam", 8, **settings)
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64)
    channel = channel_logits(x.numpy(), state, loops)[:, :, None, None]
    spatial = spatial_logits(x.numpy(), state, loops, settings.get("dilation", 4))
    for part, logits in ((layer, channel + spatial), (layer.channel, channel), (layer.spatial, spatial)):
        expected = x.numpy() * (1 + loops.sigmoid(logits))
        np.testing.assert_allclose(part(x).detach(), expected, rtol=1e-10, atol=1e-12)


def test_parts_give_the_factors_they_multiply_with(drawn):
    layer, _ = drawn("bam", 8)
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64)
    assert layer.channel.weights(x).shape == (2, 8)
    assert layer.spatial.weights(x).shape == (2, 1, 6, 5)
    for part in (layer.channel, layer.spatial):
        assert (part.weights(x) > 1).all()
