"""The same questions to every attention by name, and the settings that only ours have."""

import copy
import io
import math
import pickle
import re

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn

import csham
from csham.errors import UserError
from csham.layers.names import ATTENTIONS

OURS = ["csham", "csham_linear", "csham_channel", "csham_spatial"]
# One, odd, prime, no multiple of 4 or 8, no multiple of the usual group counts, and the usual ones.
CHANNELS = [1, 3, 6, 12, 16, 17, 24, 40, 64, 256]
# What the channels must be a multiple of.
REFUSED = {"shuffle": 2, "scsa": 4}
FORMATS = [torch.contiguous_format, torch.channels_last]


def same_format(y, x, memory_format):
    return y.is_contiguous(memory_format=memory_format) and y.shape == x.shape and y.dtype == x.dtype


def count_parameters(layer):
    return sum(p.numel() for p in layer.parameters())


def evaluate(formula, channels):
    """Compute a formula of the table, such as ``2CR + C, R = r8(C / 16)``, in the functions of its legend."""

    def r8(z):
        return max(8, int(z + 4) // 8 * 8)

    def d(n, m):
        return max(divisor for divisor in range(1, int(m) + 1) if n % divisor == 0)

    kernel = int((math.log2(channels) + 1) / 2)
    known = {
        "C": channels,
        "k": max(kernel + (kernel % 2 == 0), 3),
        "r8": r8,
        "g8": lambda z: r8(z) + 8 * (r8(z) < 0.9 * z),
        "r1": lambda z: max(1, int(z + 0.5)),
        "f": lambda z: max(1, int(z)),
        "d": d,
    }
    formula, _, definition = formula.partition(", ")
    if definition:
        symbol, _, value = definition.partition(" = ")
        known[symbol] = eval(value, known)
    return eval(re.sub(r"(?<=[\dA-Zk])(?=[A-Z])", "*", formula).replace("²", "**2"), known)


@pytest.mark.parametrize("name", ATTENTIONS)
class TestEveryAttention:
    def build(self, name, channels=16, **settings):
        return csham.create_attention(name, channels, **settings)

    @pytest.mark.parametrize("memory_format", FORMATS)
    def test_every_parameter_and_the_input_get_a_gradient(self, name, memory_format):
        layer = self.build(name)
        assert layer.training
        x = torch.randn(4, 16, 8, 8).contiguous(memory_format=memory_format).requires_grad_()
        y = layer(x)
        assert same_format(y, x, memory_format)
        (y * torch.randn_like(y)).sum().backward()
        for key, tensor in [("x", x), *layer.named_parameters()]:
            assert tensor.grad is not None, key
            assert tensor.grad.isfinite().all(), key

    def test_copies_and_pickles_and_state_dicts_compute_the_same(self, name):
        layer = self.build(name).eval()
        x = torch.randn(2, 16, 7, 5)
        stored = io.BytesIO()
        torch.save(layer.state_dict(), stored)
        stored.seek(0)
        loaded = self.build(name).eval()
        loaded.load_state_dict(torch.load(stored, weights_only=True))
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
            assert torch.equal(other(x), layer(x))
        assert repr(layer)

    def test_autocast_keeps_the_type_of_the_map(self, name):
        layer = self.build(name)
        x = torch.randn(2, 16, 8, 8)
        exact = layer.eval()(x)
        with torch.autocast("cpu", torch.bfloat16):
            for dtype in (torch.float32, torch.bfloat16):
                y = layer(x.to(dtype))
                assert y.dtype == dtype
                # 8 bits of mantissa, weights in (0, 1), values of order 1
                torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.05)

    @pytest.mark.slow
    def test_compiles_to_one_graph(self, name):
        torch.compiler.reset()  # one forward that many layers inherit may be compiled for eight of them only
        layer = self.build(name)
        x = torch.randn(2, 16, 8, 8, requires_grad=True)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), copy.deepcopy(layer)(x))
        compiled(x).sum().backward()

    def test_has_the_parameters_its_table_says(self, name):
        assert count_parameters(self.build(name, 256, device="meta")) == ATTENTIONS[name].params
        for channels in (*CHANNELS, 88):  # 88 / 8 = 11 is where ECA's hidden layer is rounded up by more than half
            if name not in REFUSED or channels % REFUSED[name] == 0:
                layer = self.build(name, channels, device="meta")
                assert count_parameters(layer) == evaluate(ATTENTIONS[name].formula, channels), channels

    def test_takes_device_and_dtype(self, name):
        layer = self.build(name, device="meta", dtype=torch.float64)
        assert {p.device.type for p in layer.parameters()} <= {"meta"}
        assert {p.dtype for p in layer.parameters()} <= {torch.float64}
        y = self.build(name, dtype=torch.float64).eval()(torch.randn(2, 16, 3, 5, dtype=torch.float64))
        assert y.dtype == torch.float64

    def test_gradients_agree_with_finite_differences(self, name):
        layer = self.build(name, 4, dtype=torch.float64)
        with torch.no_grad():
            for parameter in layer.parameters():  # away from the constant gates that some begin with
                parameter.normal_()
        x = torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True)

        def with_parameters(x, *values):
            keys = dict(layer.named_parameters())
            return torch.func.functional_call(layer, dict(zip(keys, values, strict=True)), (x,))

        torch.autograd.gradcheck(with_parameters, (x, *layer.parameters()), fast_mode=True)

    @pytest.mark.parametrize("training", [True, False])
    def test_small_and_odd_maps(self, name, training):
        layer = self.build(name).train(training)
        # One pixel, one row, one column, sides below every kernel, odd sides; a batch of one, of two and of none.
        for shape in [(1, 1, 1), (2, 1, 1), (1, 1, 7), (1, 7, 1), (2, 2, 3), (1, 5, 9), (0, 4, 4)]:
            x = torch.randn(shape[0], 16, *shape[1:]).requires_grad_()
            y = layer(x)
            assert y.shape == x.shape, shape
            assert y.isfinite().all(), shape
            y.sum().backward()
            assert x.grad.isfinite().all(), shape

    @pytest.mark.parametrize("channels", CHANNELS)
    def test_any_number_of_channels_works_or_is_refused_when_built(self, name, channels):
        if name in REFUSED and channels % REFUSED[name]:
            with pytest.raises(UserError, match=rf"needs .* got {channels}\. Use another"):
                self.build(name, channels)
            return
        layer = self.build(name, channels)
        for sides in ((1, 1), (4, 5)):
            x = torch.randn(1, channels, *sides)
            y = layer(x)
            assert y.shape == x.shape
            assert y.isfinite().all()

    @pytest.mark.parametrize(
        ("x", "message"),
        [
            (torch.zeros(2, 5, 4, 4), "C = 16 channels, got (2, 5, 4, 4)"),
            (torch.zeros(16, 4, 4), "got (16, 4, 4)"),
            (torch.zeros(1, 16, 4, 4, dtype=torch.uint8), "floating-point numbers, got torch.uint8"),
        ],
    )
    def test_wrong_input_is_named(self, name, x, message):
        with pytest.raises(UserError) as caught:
            self.build(name)(x)
        assert message in str(caught.value)

    def test_wrong_settings_are_named(self, name):
        with pytest.raises(
            UserError, match=f"{name} does not take these settings: reductoin. It takes: .*device, dtype"
        ):
            self.build(name, reductoin=2)
        for channels in (0, -3, 2.0, True):
            with pytest.raises(UserError, match="channels must be a whole number of at least 1"):
                self.build(name, channels)


@pytest.mark.parametrize("name", OURS)
class TestOurs:
    @given(
        shape=st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
        dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
        memory_format=st.sampled_from(FORMATS),
        training=st.booleans(),
    )
    def test_any_shape_type_and_layout(self, name, shape, dtype, memory_format, training):
        layer = csham.create_attention(name, shape[1], dtype=dtype).train(training)
        x = torch.randn(shape).to(dtype).contiguous(memory_format=memory_format).requires_grad_()
        y = layer(x)
        assert same_format(y, x, memory_format)
        y.sum().backward()
        assert y.isfinite().all()
        assert x.grad.isfinite().all()

    @pytest.mark.parametrize(
        ("dtype", "tolerance"),
        # half a unit in the last place of weights and of products, on values up to 4
        [(torch.float32, 1e-5), (torch.bfloat16, 5e-2), (torch.float16, 5e-3)],
    )
    def test_lower_precision_stays_near_double(self, name, dtype, tolerance):
        layer = csham.create_attention(name, 8, dtype=torch.float64).eval()
        x = torch.randn(2, 8, 9, 6, dtype=torch.float64)
        y = copy.deepcopy(layer).to(dtype)(x.to(dtype))
        torch.testing.assert_close(y.double(), layer(x), rtol=0, atol=tolerance)

    def test_a_large_mean_does_not_cancel(self, name):
        layer = csham.create_attention(name, 8, dtype=torch.float64).eval()
        x = 1000 + torch.randn(2, 8, 8, 8, dtype=torch.float64)
        y = copy.deepcopy(layer).float()(x.float())
        torch.testing.assert_close(y.double(), layer(x), rtol=1e-3, atol=0.05)

    def test_a_strided_view_gives_what_its_copy_gives(self, name):
        layer = csham.create_attention(name, 6).eval()
        x = torch.randn(2, 9, 7, 6).permute(0, 3, 1, 2)[:, :, 1:]
        torch.testing.assert_close(layer(x), layer(x.contiguous()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["csham", "eca", "scsa", "shuffle"])
def test_exported_once_for_any_batch(name):
    layer = csham.create_attention(name, 8).eval()
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    exported = torch.export.export(layer, (torch.randn(2, 8, 6, 5),), dynamic_shapes=shapes).module()
    for batch in (1, 5):
        x = torch.randn(batch, 8, 6, 5)
        torch.testing.assert_close(exported(x), layer(x))


@pytest.mark.long
@pytest.mark.slow
def test_compiled_with_inductor_in_training():
    layer = csham.CSHAM(4)
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(torch.compile(copy.deepcopy(layer), fullgraph=True)(x), layer(x))


def test_parameter_counts_are_the_papers():
    for channels in (1, 16, 256):
        assert count_parameters(csham.ChannelAttention(channels)) == 15
        assert count_parameters(csham.ChannelAttention(channels, kernel_size=5)) == 23
        assert count_parameters(csham.SpatialAttention(channels)) == 98 + 9 * channels + 4
        assert count_parameters(csham.CSHAM(channels)) == 15 + 98 + 9 * channels + 4


def test_relu_keeps_channel_weights_above_one_half():
    x = torch.randn(4, 32, 8, 8)
    weights = csham.ChannelAttention(32).weights(x)
    assert weights.shape == (4, 32)
    assert ((weights >= 0.5) & (weights < 1)).all()
    assert (csham.ChannelAttention(32, act=None).weights(x) < 0.5).any()


def test_csham_is_the_channel_step_then_the_spatial_step():
    layer = csham.CSHAM(8).eval()
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(layer(x), layer.spatial(layer.channel(x)))


def test_batch_norm_learns_as_tensorflows_does_after_its_beginning():
    layer = csham.SpatialAttention(4)
    x = torch.randn(8, 4, 8, 8)
    statistics = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
    position = nn.functional.conv2d(statistics, layer.main.weight, padding=3)
    layer(x)
    torch.testing.assert_close(layer.main_bn.running_mean, position.mean().reshape(1))
    torch.testing.assert_close(layer.main_bn.running_var, position.var().reshape(1))
    layer.main_bn.num_batches_tracked.fill_(10_000)
    layer.main_bn.running_mean.fill_(5.0)
    layer(x)
    torch.testing.assert_close(layer.main_bn.running_mean, 0.99 * 5 + 0.01 * position.mean().reshape(1))
    assert layer.main_bn.eps == 1e-3


@pytest.mark.parametrize("name", list(ATTENTIONS))
def test_running_statistics_of_every_attention_are_unbiased_from_the_first_batch(name):
    layer = csham.create_attention(name, 32)
    norms = [m for m in layer.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    inputs = {}
    for norm in norms:
        norm.register_forward_hook(lambda module, args, output: inputs.setdefault(module, args[0]))
    with csham.ops.use_kernels("reference"):
        layer(3 + 5 * torch.randn(4, 32, 8, 8))
    for norm in norms:
        x = inputs[norm]
        torch.testing.assert_close(norm.running_mean, x.mean((0, 2, 3)))
        torch.testing.assert_close(norm.running_var, x.var((0, 2, 3)))


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
@pytest.mark.parametrize("name", list(ATTENTIONS))
def test_every_parameter_gets_a_gradient_on_the_smallest_maps(name, kernels, cpu_kernels):
    # DistributedDataParallel waits for it.
    for side in (1, 2, 3):
        layer = csham.create_attention(name, 32)
        with csham.ops.use_kernels(kernels):
            layer(torch.randn(4, 32, 1, side, requires_grad=True)).sum().backward()
        without = [key for key, parameter in layer.named_parameters() if parameter.grad is None]
        assert not without, side


def test_a_single_value_is_normalised_by_the_running_statistics():
    layer = csham.SpatialAttention(3)
    x = torch.randn(1, 3, 1, 1)
    before = copy.deepcopy(layer.state_dict())
    torch.testing.assert_close(layer.train()(x), copy.deepcopy(layer).eval()(x))
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_dropout_acts_in_training_only():
    layer = csham.CSHAM(4, dropout=0.9)
    x = torch.randn(2, 4, 8, 8)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_works_as_timms_attn_layer():
    import timm

    model = timm.create_model("resnet18", block_args={"attn_layer": csham.CSHAM}, num_classes=3)
    assert sum(isinstance(m, csham.CSHAM) for m in model.modules()) == 8
    model(torch.randn(2, 3, 32, 32)).sum().backward()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: csham.CSHAM(0), "channels must be a whole number of at least 1, got 0"),
        (lambda: csham.CSHAM(8, 4), "kernel_size must be an odd whole number, got 4"),
        (lambda: csham.CSHAM(8, act="gelu"), "act must be 'relu' or None"),
        (lambda: csham.SpatialAttention(8, dropout=1.0), "dropout must be at least 0 and below 1, got 1.0"),
        (lambda: csham.create_attention("cshm", 8), "Did you mean 'csham'"),
        (lambda: csham.create_attention("csham", 8, reduction=2), "csham does not take these settings"),
    ],
)
def test_wrong_settings_are_named(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert message in str(caught.value)


@pytest.mark.parametrize("size", [-1, 0, 2, 1.0, True, "3", None])
def test_a_kernel_size_is_odd_and_one_at_least(size):
    with pytest.raises(UserError, match="kernel_size must be an odd whole number, got"):
        csham.CSHAM(8, size)
    assert csham.CSHAM(8, 1)(torch.randn(2, 8, 3, 5)).shape == (2, 8, 3, 5)


@pytest.mark.parametrize("seed", range(20))
def test_no_parameter_of_csham_is_born_dead(seed):
    torch.manual_seed(seed)
    layer = csham.CSHAM(16)
    x = torch.randn(4, 16, 12, 12)
    (layer(x) * torch.randn_like(x)).sum().backward()
    assert [name for name, p in layer.named_parameters() if p.grad.abs().max() == 0] == []
