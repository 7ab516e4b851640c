"""Floating-point operations of one forward pass: torch's count of products, and of everything it skips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, log2, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count

from csham.ops import use_kernels
from csham.probing import blank_image, evaluating, unchanged

__all__ = ["Flops", "count_flops"]


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one forward pass.

    Attributes:
        total: All of them.
        matmul: Those of convolutions, linear layers and matrix products, two to a multiply-add: what papers quote,
            often halved, as multiply-adds.
        uncounted: Operators that ran and have neither a formula nor a place among those that only move data.
    """

    total: int
    matmul: int
    uncounted: tuple[str, ...] = ()

    @property
    def macs(self) -> int:
        """Multiply-adds of convolutions, linear layers and matrix products."""
        return self.matmul // 2


def count_flops(network: nn.Module, input_size: Sequence[int]) -> Flops:
    """Count what a network computes for one image, in evaluation mode.

    A product of matrices or a convolution counts two to a multiply-add (its bias is the addition that this counts too
    many); an arithmetic operation or elementary function of one number (exp, sqrt, tanh, the sigmoid, ReLU) counts one
    to an element of its output, a sum, mean or maximum one to an element of its input, a pooling one to an element of
    its windows, batch norm with fixed statistics two to an element; other functions as the operations that they are
    made of. Whole numbers, masks and moved data count nothing. The formulas are in this file.

    Args:
        network: Any network from a batch of images to a tensor; left as it was.
        input_size: (C, H, W).
    """
    image = blank_image(network, input_size)
    rest, products = _Elementwise(), FlopCounterMode(display=False, custom_mapping=_MORE_PRODUCTS)
    # By the reference, because a mode does not see what a kernel computes.
    with unchanged(network), evaluating(network), use_kernels("reference"), _transformers_in_parts(), rest, products:
        network(image)  # what was entered last is asked first: torch's mode takes operators apart, ours sees the parts
    matmul = int(products.get_total_flops())
    return Flops(matmul + rest.flops, matmul, tuple(sorted(rest.uncounted)))


@contextmanager
def _transformers_in_parts() -> Iterator[None]:
    """Keep PyTorch's transformer layers from running as one operator each, which they do in evaluation."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _Elementwise(TorchDispatchMode):
    """Counts what torch's counter skips."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.uncounted: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__ if func.namespace == "aten" else str(func.overloadpacket)
        name = name.removesuffix("_") if not name.startswith("_") else name
        if name in _FORMULAS:
            first = out[0] if isinstance(out, tuple | list) else out
            if first.is_floating_point() or first.is_complex():
                self.flops += _FORMULAS[name](args, first)
        elif name not in _MOVES and func.overloadpacket not in {**flop_registry, **_MORE_PRODUCTS}:
            self.uncounted[name] += 1
        return out


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Count the two products of a transformer's attention, of the shapes of its operands."""
    return sdpa_flop_count(query, key, value)


def _with_vector(first: Any, *_: Any, **__: Any) -> int:
    """Count the product of a matrix or a vector with a vector: each number of the first is used once."""
    return 2 * prod(first)


_MORE_PRODUCTS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,  # torch 2.8 counts it on GPUs alone
    torch.ops.aten.mv: _with_vector,
    torch.ops.aten.dot: _with_vector,
}

Formula = Callable[[tuple[Any, ...], Tensor], int]


def _per_output(count: int) -> Formula:
    return lambda args, out: count * out.numel()


def _per_input(count: int) -> Formula:
    return lambda args, out: count * args[0].numel()


def _window(sides: int) -> Formula:
    """Count one for each element of each window of a pooling; padding too."""

    def formula(args: tuple[Any, ...], out: Tensor) -> int:
        kernel = list(args[1])
        return out.numel() * (kernel[0] ** sides if len(kernel) == 1 else prod(kernel))

    return formula


def _batch_norm(args: tuple[Any, ...], out: Tensor) -> int:
    """Fixed statistics fold into one product and one sum; others are computed first (instance norm does)."""
    return (6 if args[5] else 2) * out.numel()


def _fourier(real: bool) -> Formula:
    """Count 5 N log2 N for a complex transform of length N, half of it where one side is real (radix 2, as in FFTW)."""

    def formula(args: tuple[Any, ...], out: Tensor) -> int:
        larger = max(args[0], out, key=Tensor.numel)
        length = prod(larger.shape[dim] for dim in args[1])
        return ceil((2.5 if real else 5) * larger.numel() * log2(max(length, 1)))

    return formula


def _table(formula: Formula, names: str) -> dict[str, Formula]:
    return dict.fromkeys(names.split(), formula)


_FORMULAS: dict[str, Formula] = {
    **_table(
        _per_output(1),
        "add sub rsub mul div neg abs reciprocal maximum minimum pow square sqrt rsqrt exp exp2 log log2 log10 "
        "log1p expm1 sin cos tan asin acos atan atan2 sinh cosh tanh erf sigmoid relu relu6 clamp clamp_min clamp_max "
        "hardtanh leaky_relu threshold _prelu_kernel sign floor ceil round fmod remainder",
    ),
    **_table(_per_output(2), "silu glu addcmul addcdiv"),  # x sigmoid(x); a sigmoid(b); a + b c
    # clamp((x + 3) / 6); exp, add, log
    **_table(_per_output(3), "hardsigmoid softplus elu celu lerp log_sigmoid_forward"),
    **_table(_per_output(4), "hardswish"),  # x hardsigmoid(x)
    # softmax: max, subtract, exp, sum, divide
    **_table(_per_output(5), "gelu mish _softmax _log_softmax _safe_softmax"),
    **_table(_per_input(1), "mean sum nansum prod amax amin aminmax max min argmax argmin cumsum cumprod"),
    **_table(_per_input(1), "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d col2im"),
    **_table(_per_input(2), "linalg_vector_norm norm"),  # square, add
    **_table(_per_input(3), "logsumexp"),  # max; subtract and exp; sum
    **_table(_per_input(4), "var var_mean std std_mean"),  # mean; subtract, square, add
    **_table(_window(1), "avg_pool1d max_pool1d max_pool1d_with_indices"),
    **_table(_window(2), "avg_pool2d max_pool2d max_pool2d_with_indices"),
    **_table(_window(3), "avg_pool3d max_pool3d_with_indices"),
    **_table(_per_output(2), "_native_batch_norm_legit_no_training"),
    **_table(
        _batch_norm,
        "native_batch_norm _native_batch_norm_legit _batch_norm_with_update cudnn_batch_norm miopen_batch_norm",
    ),
    **_table(_per_output(6), "native_layer_norm native_group_norm"),  # mean 1, variance 3, scale and shift 2
    **_table(_per_output(3), "upsample_linear1d"),
    **_table(_per_output(7), "upsample_bilinear2d _upsample_bilinear2d_aa grid_sampler_2d"),  # 4 products, 3 sums
    **_table(_per_output(31), "upsample_bicubic2d"),
    **_table(_fourier(real=True), "_fft_r2c _fft_c2r"),
    **_table(_fourier(real=False), "_fft_c2c"),
}

# Operators that move, make or select data and compute no floating-point number.
_MOVE_NAMES = """
    empty empty_like empty_strided zeros zeros_like ones ones_like full full_like new_empty new_zeros new_ones
    new_full scalar_tensor arange linspace eye lift_fresh clone copy _to_copy to alias detach contiguous view
    _unsafe_view reshape _reshape_alias view_as_real view_as_complex as_strided permute transpose t numpy_T expand
    unsqueeze squeeze select slice split split_with_sizes unsafe_split chunk unbind narrow diagonal movedim swapaxes
    cat stack constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d index index_select
    _unsafe_index index_put gather scatter take_along_dim roll flip rot90 repeat repeat_interleave tile where
    masked_fill masked_select fill zero tril triu unfold im2col upsample_nearest1d upsample_nearest2d
    _upsample_nearest_exact1d _upsample_nearest_exact2d pixel_shuffle pixel_unshuffle channel_shuffle
    native_channel_shuffle native_dropout bernoulli rand randn rand_like randn_like randint randperm uniform normal
    topk kthvalue median nanmedian sort argsort eq ne lt le gt ge logical_and logical_or logical_not bitwise_and
    bitwise_or bitwise_not isnan isinf any all _local_scalar_dense item floor_divide real imag complex _conj
    resolve_conj is_same_size one_hot
"""
_MOVES = frozenset(_MOVE_NAMES.split())
