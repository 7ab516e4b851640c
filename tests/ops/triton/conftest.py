import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
maps = pytest.importorskip("csham.ops.triton.maps")

# Relative to the largest value (or 0.1, for sums that cancel; or 1 where all positions add up to one number): sums in
# another order, then one rounding to the type.
# The interpreter cuts bfloat16 off where a GPU rounds to nearest, so its error is up to a unit in the last place.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-11}


@pytest.fixture(scope="session")
def device():
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch):
    """Keep the interpreter quick, in which every program is a loop in Python; loops still come in chunks."""
    monkeypatch.setattr(maps, "_PROGRAMS", 3)


@pytest.fixture(scope="session")
def make_map(device):
    """Function that makes a feature map: noise, or whole numbers with many equal maxima."""

    def make(shape, dtype=torch.float32, channels_last=False, tied=False):
        x = torch.randint(-1, 2, shape).float() if tied else torch.randn(shape)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return x.to(device, dtype).contiguous(memory_format=layout)

    return make


@pytest.fixture(scope="session")
def assert_close():
    """Function that compares named tensors with their expectation."""

    def check(got, expected, dtype=torch.float32):
        assert got.keys() == expected.keys()
        for name, want in expected.items():
            value = got[name]
            if want is None or value is None:  # no gradient is a gradient of zeros
                assert all(one is None or not one.any() for one in (want, value)), name
                continue
            assert value.shape == want.shape, name
            value, exact = value.detach().double().cpu(), want.detach().double().cpu()
            least = 1 if exact.numel() == 1 else 0.1
            bound = TOLERANCES[dtype] * max(float(exact.abs().max()), least)
            wrong = ~((value - exact).abs() <= bound)
            if wrong.any():
                index = tuple(wrong.nonzero()[0].tolist())
                raise AssertionError(
                    f"{name}: {int(wrong.sum())} of {wrong.numel()} differ by more than {bound:.1e}, first at {index}: "
                    f"{value[index]} instead of {exact[index]} (seed {torch.initial_seed()})"
                )

    return check
