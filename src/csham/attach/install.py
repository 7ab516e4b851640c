"""attach: find the points, plan the steps, build the modules, and only then change the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from csham.attach.attached import Attached
from csham.attach.points import find_points
from csham.attach.strategies import Step, check_strategy, plan
from csham.attach.transfer import ChannelWeightTransfer
from csham.errors import UserError
from csham.layers import create_attention

__all__ = ["AttachedPoint", "attach"]

_CHILD = "attached"


@dataclass(frozen=True)
class AttachedPoint:
    """What was attached at one point.

    Attributes:
        name: The module whose output is attended to.
        channels: Channels of that output.
        stage: Number of the stage, from 0.
        attention: Name of the attention.
        part: ``"whole"``, ``"channel"`` or ``"spatial"``.
        weights_from: Name of the point whose channel weights are applied first, or None.
        params: Parameters that the point adds.
    """

    name: str
    channels: int
    stage: int
    attention: str
    part: str
    weights_from: str | None
    params: int


def attach(
    model: nn.Module,
    attention: str = "csham",
    *,
    strategy: str = "sequential",
    position: str = "residual",
    gated: bool = False,
    input_size: tuple[int, int, int] | None = None,
    dry_run: bool = False,
    **settings: Any,
) -> list[AttachedPoint]:
    """Put an attention into a network, in place.

    The points and their channels are found by running the network once. Its own ``state_dict`` keys stay as they are: a
    checkpoint of the plain network loads before and after. Nothing is changed when an error is raised. Convert to
    ``SyncBatchNorm`` before attaching, not after, since that conversion drops the hooks of the modules it replaces.

    Args:
        model: An unmodified network: timm's, torchvision's or your own.
        attention: One of ``csham list attentions``.
        strategy: One of ``csham list strategies``.
        position: One of ``csham list positions``.
        gated: Give every point a learnable gate, so that the output is unchanged until training lets attention in.
        input_size: (C, H, W) of the network's images, where the common sizes do not fit.
        dry_run: Only list the points.
        **settings: What the attention takes, such as ``kernel_size`` or ``act`` of CSHAM.

    Returns:
        What was attached where, in execution order.

    Raises:
        UserError: A name or setting that cannot work, a network without such points, or with attention already.

    Example:
        >>> import csham, timm
        >>> model = timm.create_model("resnet50", num_classes=100)
        >>> points = csham.attach(model, "csham", strategy="transfer")
    """
    check_strategy(attention, strategy)
    if any(isinstance(module, Attached) for module in model.modules()):
        raise UserError(
            f"attach: {type(model).__name__} has attention attached already. Build a new network to attach another."
        )
    steps = plan(find_points(model, position, input_size), strategy)
    transfers = {s.point.stage: ChannelWeightTransfer() for s in steps if s.lends}
    built = [_build(model, step, attention, transfers.get(step.point.stage), gated, settings) for step in steps]
    if not dry_run:
        for step, attached in zip(steps, built, strict=True):
            _install(model.get_submodule(step.point.name), attached)
        for stage, transfer in transfers.items():
            _surround(model, [s.point.name for s in steps if s.point.stage == stage], transfer)
    return [
        AttachedPoint(
            name=step.point.name,
            channels=step.point.channels,
            stage=step.point.stage,
            attention=attention,
            part=step.part,
            weights_from=step.weights_from,
            params=sum(p.numel() for p in attached.parameters()),
        )
        for step, attached in zip(steps, built, strict=True)
    ]


def _build(
    model: nn.Module,
    step: Step,
    attention: str,
    transfer: ChannelWeightTransfer | None,
    gated: bool,
    settings: dict[str, Any],
) -> Attached:
    host = model.get_submodule(step.point.name)
    tensors = [*host.parameters(), *model.parameters()]
    like = next((t for t in tensors if t.is_floating_point()), None)
    place: dict[str, Any] = {} if like is None else {"device": like.device, "dtype": like.dtype}
    layer = create_attention(attention, step.point.channels, **place, **settings)
    if step.part != "whole":
        # The whole is built and one part kept, so that names and settings mean the same under every strategy.
        layer = layer.get_submodule(step.part)
    attached = Attached(
        step.point.name,
        layer,
        gated=gated,
        lends=transfer if step.lends else None,
        borrows=transfer if step.weights_from else None,
        lender=step.weights_from,
        **place,
    )
    return attached.train(host.training)


def _install(host: nn.Module, attached: Attached) -> None:
    host.add_module(_CHILD, attached)
    host.register_forward_hook(_attend)


def _attend(host: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    # The module is looked up, not bound, so that a deep copy of the network uses its own.
    return getattr(host, _CHILD)(output)


def _surround(model: nn.Module, names: Sequence[str], transfer: ChannelWeightTransfer) -> None:
    """Put the transfer's hooks around the stage's points: on what holds them all, and on what lies between."""
    paths = [name.split(".") for name in names]
    depth = next(d for d in range(len(paths[0])) if len({path[d] for path in paths}) > 1)
    transfer.surround_stage(model.get_submodule(".".join(paths[0][:depth])))
    blocks = {".".join(path[:end]) for path in paths for end in range(depth + 1, len(path))}
    for block in sorted(blocks):
        transfer.surround_block(model.get_submodule(block))
