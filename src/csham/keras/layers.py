"""Channel attention, spatial attention and both, as Keras 3 layers: what :mod:`csham.layers` computes by ``keras.ops``.

All of them are registered with Keras once one is imported, so that a saved model finds them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from csham.errors import UserError
from csham.keras._keras import keras
from csham.layers.checks import check_act, check_dropout, check_odd
from csham.settings import check_choice

__all__ = ["CSHAM", "ChannelAttention", "Gated", "SpatialAttention"]

CONNECTIONS = ("sequential", "reversed", "parallel", "reapply")
"""Orders of the two steps within one :class:`CSHAM`; strategies of :func:`csham.attach` of the same names."""

ops = keras.ops


class _Attention(keras.layers.Layer):
    """A layer that scales a feature map, in either order of its dimensions."""

    def __init__(self, act: str | None, data_format: str | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_act(act)
        self.act = act
        self.data_format = data_format or keras.config.image_data_format()
        check_choice("data_format", self.data_format, ("channels_last", "channels_first"))

    @property
    def channel_axis(self) -> int:
        """Axis of the channels in a feature map."""
        return 3 if self.data_format == "channels_last" else 1

    def build(self, input_shape: Any) -> None:
        """Make the weights for feature maps of this shape, whose channels must be known."""
        name = type(self).__name__
        if len(input_shape) != 4 or input_shape[self.channel_axis] is None:
            dimensions = "(B, H, W, C)" if self.channel_axis == 3 else "(B, C, H, W)"
            raise UserError(
                f"{name}: expected a feature map {dimensions} with a known number of channels C, got the shape "
                f"{tuple(input_shape)}; data_format is {self.data_format!r}."
            )
        self.channels = int(input_shape[self.channel_axis])
        self.input_spec = keras.layers.InputSpec(ndim=4, axes={self.channel_axis: self.channels})
        self._build_parts(tuple(input_shape))
        super().build(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Return the settings that make the layer again."""
        return {**super().get_config(), "act": self.act, "data_format": self.data_format}

    def compute_output_spec(
        self, x: Any, channel_weights: Any = None, training: bool | None = None, return_weights: bool = False
    ) -> Any:
        """Return what a call returns, without computing it: any H and W may be unknown."""
        y = keras.KerasTensor(x.shape, dtype=self.compute_dtype)
        if not return_weights:
            return y
        return (y, *(keras.KerasTensor(shape, dtype=self.compute_dtype) for shape in self._weights_shapes(x.shape)))

    def _build_parts(self, input_shape: tuple[int | None, ...]) -> None:
        raise NotImplementedError

    def _weights_shapes(self, shape: Any) -> list[tuple[int | None, ...]]:
        raise NotImplementedError

    def _scale_channels(self, x: Any, weights: Any) -> Any:
        shape = [1, 1, 1]
        shape[self.channel_axis - 1] = self.channels
        return x * ops.reshape(weights, (-1, *shape))

    def _channel_shape(self, shape: Any) -> tuple[int | None, ...]:
        return (shape[0], shape[self.channel_axis])

    def _spatial_shape(self, shape: Any) -> tuple[int | None, ...]:
        return (shape[0], *(size for axis, size in enumerate(shape) if axis not in (0, self.channel_axis)))


@keras.saving.register_keras_serializable(package="csham")
class ChannelAttention(_Attention):
    """Scale each channel by a weight computed from its average, its maximum and those of its neighbours.

    ``y = w ⊙ x`` with ``w = σ(act(join([act(avg(mean_hw x)) ; act(max(max_hw x))])))``, as
    :class:`csham.ChannelAttention` computes it. ``4 * kernel_size + 3`` parameters, whatever the number of channels:
    the kernels and biases of ``avg``, ``max`` and ``join``, which start positive where ReLU follows, as in PyTorch.

    Args:
        kernel_size: Length of the filters along the channels; odd.
        act: ``"relu"`` as in the authors' layer class (weights in [0.5, 1)) or None as in their functional version.
        data_format: ``"channels_last"``, (B, H, W, C), or ``"channels_first"``, (B, C, H, W); by default
            ``keras.config.image_data_format()``.
        **kwargs: Keras' own: ``name``, ``dtype``, ``trainable``.

    Shape:
        A feature map to the same, any H, W >= 1, known or not; the number of channels has to be known. With
        ``return_weights=True`` a call returns the channel weights too, (B, C).

    Raises:
        UserError: A setting or an input that cannot work; a ``ValueError``.

    Examples:
        >>> x = csham.keras.ChannelAttention()(x)
        >>> y, weights = csham.keras.ChannelAttention(act=None)(x, return_weights=True)

    Source: Pan et al., ICPR 2022, doi:10.1109/ICPR56361.2022.9956146, and the authors' released code.
    """

    def __init__(
        self, kernel_size: int = 3, act: str | None = "relu", *, data_format: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(act, data_format, **kwargs)
        check_odd("ChannelAttention", "kernel_size", kernel_size)
        self.kernel_size = kernel_size
        self.avg, self.max, self.join = (self._conv(name, rows) for name, rows in (("avg", 1), ("max", 1), ("join", 2)))

    def weights_of(self, x: Any) -> Any:
        """Return the channel weights of a feature map, (B, C), without applying them."""
        axes = tuple(axis for axis in (1, 2, 3) if axis != self.channel_axis)
        average = self.avg(ops.expand_dims(ops.mean(x, axes), -1))  # (B, C, 1)
        maximum = self.max(ops.expand_dims(ops.max(x, axes), -1))
        logits = self.join(ops.concatenate([average, maximum], -1))
        return ops.sigmoid(ops.squeeze(logits, -1))

    def call(self, x: Any, training: bool | None = None, return_weights: bool = False) -> Any:
        """Scale the channels of a feature map."""
        weights = self.weights_of(x)
        y = self._scale_channels(x, weights)
        return (y, weights) if return_weights else y

    def get_config(self) -> dict[str, Any]:
        """Return the settings that make the layer again."""
        return {**super().get_config(), "kernel_size": self.kernel_size}

    def _conv(self, name: str, rows: int) -> Any:
        # As in PyTorch: one filter serves all channels, and where its sign makes every input of a ReLU negative, it
        # never trains. Without ReLU Keras' own, as the authors have it.
        start = {}
        if self.act == "relu":
            for part in ("kernel", "bias"):
                limit = (rows * self.kernel_size) ** -0.5
                start[f"{part}_initializer"] = keras.initializers.RandomUniform(0.0, limit)
        return keras.layers.Conv1D(
            1,
            self.kernel_size,
            padding="same",
            data_format="channels_last",
            activation=self.act,
            dtype=self.dtype_policy,
            name=name,
            **start,
        )

    def _build_parts(self, input_shape: tuple[int | None, ...]) -> None:
        for part, rows in ((self.avg, 1), (self.max, 1), (self.join, 2)):
            part.build((input_shape[0], self.channels, rows))

    def _weights_shapes(self, shape: Any) -> list[tuple[int | None, ...]]:
        return [self._channel_shape(shape)]


@keras.saving.register_keras_serializable(package="csham")
class SpatialAttention(_Attention):
    """Scale each position by a weight computed from its own statistics and from a coarser view of its surroundings.

    ``y = s ⊙ x`` with ``s = σ(act(main_bn(main([mean_c x ; max_c x]))) + upsample(neighbor_bn(neighbor(pool x))))``,
    as :class:`csham.SpatialAttention` computes it: a 7x7 convolution, and a 3x3 one of stride 2 of the map pooled by 2.
    ``9 * C + 102`` parameters. The batch norms are Keras' own with its epsilon (1e-3) and momentum (0.99), as the
    authors'. Those of the PyTorch layer forget their start sooner, so that early in training moving statistics differ.

    Args:
        act: ``"relu"`` as in the authors' layer class or None as in their functional version.
        dropout: Probability of dropout between the 7x7 convolution and its batch norm; the authors use 0.3 on
            MobileNetV2 and none elsewhere.
        data_format: ``"channels_last"``, (B, H, W, C), or ``"channels_first"``, (B, C, H, W); by default
            ``keras.config.image_data_format()``.
        **kwargs: Keras' own: ``name``, ``dtype``, ``trainable``.

    Shape:
        A feature map to the same, any H, W >= 1, known or not; the number of channels has to be known. Where a side is
        1 the surroundings are left out. With ``channel_weights``, (B, C), a call applies these first and computes
        ``s(w ⊙ x) ⊙ w ⊙ x``; with ``return_weights=True`` it returns the spatial weights too, (B, H, W).

    Raises:
        UserError: A setting or an input that cannot work; a ``ValueError``.

    Examples:
        >>> x = csham.keras.SpatialAttention(dropout=0.3)(x)

    Source: Pan et al., ICPR 2022, doi:10.1109/ICPR56361.2022.9956146, and the authors' released code.
    """

    def __init__(
        self, act: str | None = "relu", *, dropout: float = 0.0, data_format: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(act, data_format, **kwargs)
        check_dropout("SpatialAttention", dropout)
        self.dropout = dropout
        # Of maps of one channel, and of the pooled one, whose last axis is that of the channels: weights and file are
        # then the same in both data formats, and TensorFlow on a CPU has no other convolution.
        self.main = self._conv(7, 1, "main")
        self.main_dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout") if dropout else None
        self.main_bn = self._norm("main_bn")
        self.neighbor = self._conv(3, 2, "neighbor")
        self.neighbor_bn = self._norm("neighbor_bn")

    def weights_of(self, x: Any, training: bool | None = None) -> Any:
        """Return the spatial weights of a feature map, (B, H, W), without applying them."""
        axis = self.channel_axis
        position = self.main(ops.stack([ops.mean(x, axis), ops.max(x, axis)], -1))  # (B, H, W, 1)
        if self.main_dropout is not None:
            position = self.main_dropout(position, training=training)
        position = keras.activations.get(self.act)(self.main_bn(position, training=training))
        return ops.sigmoid(ops.squeeze(position, -1) + self._surroundings(x, training))

    def call(
        self, x: Any, channel_weights: Any = None, training: bool | None = None, return_weights: bool = False
    ) -> Any:
        """Scale the positions of a feature map; with channel weights scale its channels before."""
        if channel_weights is not None:
            x = self._scale_channels(x, channel_weights)
        weights = self.weights_of(x, training)
        y = x * ops.expand_dims(weights, self.channel_axis)
        return (y, weights) if return_weights else y

    def get_config(self) -> dict[str, Any]:
        """Return the settings that make the layer again."""
        return {**super().get_config(), "dropout": self.dropout}

    def _surroundings(self, x: Any, training: bool | None) -> Any:
        """The neighbour term of each position, (B, H, W); 0 where a side of one pixel leaves none to pool."""
        sizes = ops.shape(x)
        height, width = (sizes[axis] for axis in (1, 2, 3) if axis != self.channel_axis)

        def pooled() -> Any:
            pooled = ops.average_pool(x, 2, 2, "valid", self.data_format)
            if self.channel_axis == 1:
                pooled = ops.transpose(pooled, (0, 2, 3, 1))
            coarse = ops.squeeze(self.neighbor_bn(self.neighbor(pooled), training=training), -1)
            for axis, size in ((1, height), (2, width)):
                # Whole numbers: what resizes images rounds in float32 and is off by one at sides like 142.
                side = (size // 2 + 1) // 2
                count = np.arange if isinstance(size, int) else ops.arange
                coarse = ops.take(coarse, (2 * count(size, dtype="int32") + 1) * side // (2 * size), axis)
            return coarse

        def none() -> Any:
            return ops.zeros((sizes[0], height, width), dtype=self.compute_dtype)

        known = [size for size in (height, width) if isinstance(size, int)]
        if min(known, default=2) < 2:
            return none()
        # Only TensorFlow has sizes that are not known before it runs.
        return pooled() if len(known) == 2 else ops.cond(ops.minimum(height, width) > 1, pooled, none)

    def _conv(self, kernel_size: int, strides: int, name: str) -> Any:
        return keras.layers.Conv2D(
            1,
            kernel_size,
            strides,
            padding="same",
            data_format="channels_last",
            use_bias=False,
            dtype=self.dtype_policy,
            name=name,
        )

    def _norm(self, name: str) -> Any:
        return keras.layers.BatchNormalization(axis=-1, momentum=0.99, epsilon=1e-3, dtype=self.dtype_policy, name=name)

    def _build_parts(self, input_shape: tuple[int | None, ...]) -> None:
        maps = self._spatial_shape(input_shape)
        for part, channels in (
            (self.main, 2),
            (self.main_bn, 1),
            (self.neighbor, self.channels),
            (self.neighbor_bn, 1),
        ):
            part.build((*maps, channels))

    def _weights_shapes(self, shape: Any) -> list[tuple[int | None, ...]]:
        return [self._spatial_shape(shape)]


@keras.saving.register_keras_serializable(package="csham")
class CSHAM(_Attention):
    """Channel-spatial hybrid attention module: the channel step, then the spatial step.

    ``y = s(w ⊙ x) ⊙ w ⊙ x``, as :class:`csham.CSHAM` computes it. ``4 * kernel_size + 9 * C + 105`` parameters, in the
    layers ``channel`` and ``spatial``.

    Args:
        kernel_size: Length of the channel step's filters; odd.
        act: ``"relu"`` as in the authors' layer classes or None as in their functional version.
        dropout: Probability of dropout in the spatial step.
        connection: ``"sequential"`` as the authors have it, ``"reversed"``, ``"parallel"`` (``w`` and ``s`` of the same
            map) or ``"reapply"`` (``w`` once more at the end).
        data_format: ``"channels_last"``, (B, H, W, C), or ``"channels_first"``, (B, C, H, W); by default
            ``keras.config.image_data_format()``.
        **kwargs: Keras' own: ``name``, ``dtype``, ``trainable``.

    Shape:
        A feature map to the same, any H, W >= 1, known or not; the number of channels has to be known. With
        ``return_weights=True`` a call returns the channel weights, (B, C), and the spatial weights, (B, H, W), too.

    Raises:
        UserError: A setting or an input that cannot work; a ``ValueError``.

    Examples:
        >>> inputs = keras.Input((None, None, 64))
        >>> model = keras.Model(inputs, csham.keras.CSHAM()(inputs))

    Source: Pan et al., ICPR 2022, doi:10.1109/ICPR56361.2022.9956146, and the authors' released code.
    """

    def __init__(
        self,
        kernel_size: int = 3,
        act: str | None = "relu",
        *,
        dropout: float = 0.0,
        connection: str = "sequential",
        data_format: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(act, data_format, **kwargs)
        check_choice("connection", connection, CONNECTIONS)
        self.kernel_size, self.dropout, self.connection = kernel_size, dropout, connection
        shared = {"data_format": self.data_format, "dtype": self.dtype_policy}
        self.channel = ChannelAttention(kernel_size, act, **shared, name="channel")
        self.spatial = SpatialAttention(act, dropout=dropout, **shared, name="spatial")

    def call(self, x: Any, training: bool | None = None, return_weights: bool = False) -> Any:
        """Scale the channels, then the positions of a feature map."""
        connection = self.connection
        if connection in ("reversed", "parallel"):
            y, spatial = self.spatial(x, training=training, return_weights=True)
            channel = self.channel(x if connection == "parallel" else y, return_weights=True)[1]
            y = self._scale_channels(y, channel)
        else:
            y, channel = self.channel(x, return_weights=True)
            y, spatial = self.spatial(y, training=training, return_weights=True)
            if connection == "reapply":
                y = self._scale_channels(y, channel)
        return (y, channel, spatial) if return_weights else y

    def get_config(self) -> dict[str, Any]:
        """Return the settings that make the layer again."""
        own = {"kernel_size": self.kernel_size, "dropout": self.dropout, "connection": self.connection}
        return {**super().get_config(), **own}

    def _build_parts(self, input_shape: tuple[int | None, ...]) -> None:
        self.channel.build(input_shape)
        self.spatial.build(input_shape)

    def _weights_shapes(self, shape: Any) -> list[tuple[int | None, ...]]:
        return [self._channel_shape(shape), self._spatial_shape(shape)]


@keras.saving.register_keras_serializable(package="csham")
class Gated(keras.layers.Wrapper):
    """Give an attention a gate that begins closed: a network computes what it did until training lets attention in.

    ``y = (1 - θ) layer(x) + θ x`` with one learnable scalar ``θ``, the weight ``gate``, which starts at 1. The authors'
    code has this scalar too.

    Args:
        layer: Any layer from a feature map to one of the same shape.
        **kwargs: Keras' own: ``name``, ``dtype``, ``trainable``.

    Shape:
        That of ``layer``. Further arguments of a call are its own; of several values it returns the first is gated.

    Examples:
        >>> x = csham.keras.Gated(csham.keras.CSHAM())(x)
    """

    def build(self, input_shape: Any) -> None:
        """Make the gate, and the weights of the layer."""
        self.gate = self.add_weight(name="gate", shape=(), initializer="ones")
        super().build(input_shape)

    def compute_output_spec(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Return what a call returns, without computing it."""
        return self.layer.compute_output_spec(x, *args, **kwargs)

    def call(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Attend to a feature map as far as the gate is open."""
        result = self.layer(x, *args, **kwargs)
        y, *weights = result if isinstance(result, tuple) else (result,)
        y = (1 - self.gate) * y + self.gate * x
        return (y, *weights) if weights else y
