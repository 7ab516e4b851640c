"""scSE against the paper's sum of both recalibrations."""

import numpy as np
import pytest
import torch


@pytest.mark.parametrize("settings", [{}, {"reduction": 100}])
def test_equals_the_formulas_whole_and_in_parts(drawn, loops, settings):
    layer, state = drawn("scse", 6, **settings)
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    hidden = loops.relu(loops.dense(x.numpy().mean((2, 3)), state, "channel.fc1"))
    channel = x.numpy() * loops.sigmoid(loops.dense(hidden, state, "channel.fc2"))[:, :, None, None]
    spatial = x.numpy() * loops.sigmoid(loops.dense(x.numpy(), state, "spatial.conv"))
    for part, expected in ((layer, channel + spatial), (layer.channel, channel), (layer.spatial, spatial)):
        np.testing.assert_allclose(part(x).detach(), expected, rtol=1e-10, atol=1e-12)
    assert layer.channel.weights(x).shape == (2, 6)
    assert layer.spatial.weights(x).shape == (2, 1, 4, 5)
