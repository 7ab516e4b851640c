"""cost: what one network costs, or what many cost side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from csham.cost.comparison import Comparison, Progress, Settings
from csham.cost.result import Cost
from csham.errors import UserError

__all__ = ["cost"]


def cost(
    networks: nn.Module | Mapping[str, nn.Module | Callable[[], nn.Module]],
    *,
    image_size: int | None = None,
    input_size: tuple[int, int, int] | None = None,
    batch_sizes: Sequence[int] | None = None,
    precisions: Sequence[str] = ("fp32",),
    compiled: Sequence[bool] = (False,),
    device: torch.device | str | None = None,
    channels_last: bool | None = None,
    training: bool = True,
    rounds: int | None = None,
    seconds: float = 480.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Cost | list[Cost]:
    """Measure parameters, FLOPs, latency, throughput, training step and peak memory.

    Everything is timed in turns: in each round every network is timed once at everything, in an order drawn for the
    round, so that whatever else the machine does meets all of them alike. What one network cannot do (its maps are too
    small, it runs out of memory, it does not compile) is said in its ``failed``, and the others go on. On the CPU
    :func:`csham.retain_memory` is called first, as training does.

    Args:
        networks: A network; or several by name, each a network or a function that builds one. They are moved to
            ``device`` and its memory format, and their weights, buffers, gradients and modes left as they were.
        image_size: Side of the images, in pixels, with three channels.
        input_size: (C, H, W), instead.
        batch_sizes: Images of a batch, by default 8 on a CPU and 64 elsewhere.
        precisions: ``"fp32"``, ``"bf16"`` (autocast) or both.
        compiled: False, True (torch.compile) or both.
        device: Device to run on; by default that of the first network.
        channels_last: True if channels are innermost in memory; by default so on CPU and CUDA, as in training.
        training: True if training steps are measured too.
        rounds: Exactly so many; by default 3 to 15, as ``seconds`` allow.
        seconds: After so many no further round begins, once there are three. Compiling counts.
        seed: Of the order and the images.
        progress: Told what happens.

    Returns:
        For one network its :class:`Cost`; for several one for each of them and each batch size, precision and way of
        running it, the networks in the order given, their ratios against the first.

    Raises:
        UserError: A setting that cannot work, or a single network that cannot be measured.

    Example:
        >>> import csham
        >>> csham.cost(csham.create_model("resnet20", image_size=32), image_size=32).flops_matmul
        81753088
    """
    settings = Settings(
        input_size=_input_size(image_size, input_size),
        batch_sizes=None if batch_sizes is None else tuple(batch_sizes),
        precisions=tuple(precisions),
        compiled=tuple(compiled),
        device=None if device is None else torch.device(device),
        channels_last=channels_last,
        training=training,
        rounds=rounds,
        seconds=seconds,
        seed=seed,
    )
    alone = isinstance(networks, nn.Module)
    if alone and len(settings.precisions) * len(settings.compiled) * len(settings.batch_sizes or [0]) > 1:
        raise UserError("cost: one network gives one Cost. For many settings name it: cost({'name': network}, ...).")
    comparison = Comparison({"network": networks} if isinstance(networks, nn.Module) else networks, settings, progress)
    comparison.run()
    found = comparison.costs()
    if not alone:
        return found
    if found[0].failed:
        raise UserError(f"cost: {found[0].failed}")
    return found[0]


def _input_size(image_size: int | None, input_size: tuple[int, int, int] | None) -> tuple[int, int, int]:
    if (image_size is None) == (input_size is None):
        raise UserError("cost: give image_size=pixels or input_size=(C, H, W), one of the two.")
    return input_size if input_size is not None else (3, int(image_size or 0), int(image_size or 0))
