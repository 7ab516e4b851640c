"""The layers against arrays computed with the authors' released code."""

from pathlib import Path

import numpy as np
import pytest
import torch

import csham
from csham import ops

FILES = sorted((Path(__file__).parent.parent / "golden").glob("*.npz"))


def load(file):
    kind, act, _ = file.stem.split("_")
    arrays = {key: torch.from_numpy(value) for key, value in np.load(file, allow_pickle=False).items()}
    layer = {"channel": csham.ChannelAttention, "spatial": csham.SpatialAttention}[kind]
    layer = layer(arrays["x"].shape[1], act=None if act == "linear" else act).eval()
    layer.load_state_dict({key[2:]: value for key, value in arrays.items() if key.startswith("w.")}, strict=True)
    return layer, arrays


def test_there_are_golden_arrays():
    assert len(FILES) == 14


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_outputs_and_input_gradients_equal_the_authors(cpu_kernels, file, channels_last, kernels):
    layer, arrays = load(file)
    x = arrays["x"].contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    x.requires_grad_()
    with ops.use_kernels(kernels):
        y = layer(x)
    y.backward(arrays["grad_y"])
    # float32 sums in another order; the values are of order 1 (y) and 4 (gradients)
    torch.testing.assert_close(y, arrays["y"], rtol=0, atol=2e-6)
    torch.testing.assert_close(x.grad, arrays["grad_x"], rtol=0, atol=5e-6)
