"""attach and detach: find the points, plan the steps, build the modules, and only then change the network."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from csham.attach.fusing.endings import find_epilogues
from csham.attach.fusing.epilogue import Epilogue, fuse_block, unfuse_block
from csham.attach.graph.hosts import norm_within
from csham.attach.graph.points import PointChoice, common_path, find_points, in_stages
from csham.attach.graph.trace import trace
from csham.attach.graph.values import Trace
from csham.attach.installed.attached import (
    Attached,
    accept_weights_of,
    accepts_weights,
    attends,
    hang,
    places_below,
    take_away,
)
from csham.attach.installed.host_class import unmark_host
from csham.attach.installed.keeping import watch, watches
from csham.attach.installed.transfer import ChannelWeightTransfer
from csham.attach.names import check_position, check_strategy
from csham.attach.strategies import Step, plan
from csham.attach.trial import image_sizes, try_network
from csham.errors import UserError
from csham.layers.create import create_attention
from csham.layers.names import AttentionName, check_opens
from csham.layers.own import Attention, OwnAttention, find_attention, try_attention
from csham.ops import use_kernels
from csham.probing import blank_image, copies_shared, evaluating, is_compiled, likeness, unchanged

__all__ = ["AttachedPoint", "attach", "attached_modules", "detach"]


@dataclass(frozen=True)
class AttachedPoint:
    """Record of what was attached at one point.

    Attributes:
        name: The module whose output is attended to.
        channels: Channels of that output.
        stage: Number of the stage, from 0.
        attention: Name of the attention, or of its class or function.
        part: ``"whole"``, ``"channel"``, ``"spatial"``, or the strategy that connects the parts: ``"reversed"``,
            ``"parallel"``, ``"reapply"``.
        weights_from: Name of the point whose channel weights are applied first, or None.
        params: Parameters that the point adds.
        fused: True if the attention also adds the block's shortcut and activates the sum, all in one call.
    """

    name: str
    channels: int
    stage: int
    attention: str
    part: str
    weights_from: str | None
    params: int
    fused: bool


def attach(
    model: nn.Module,
    attention: Attention = "csham",
    *,
    strategy: str = "sequential",
    period: int | None = None,
    position: str = "auto",
    points: PointChoice | None = None,
    stages: Iterable[int] | int | None = None,
    gated: bool = False,
    open_gates: bool = False,
    input_size: tuple[int, int, int] | None = None,
    fuse: bool = True,
    dry_run: bool = False,
    **settings: Any,
) -> list[AttachedPoint]:
    """Put an attention into a network, in place.

    The points and their channels are found by running the network once. Its own ``state_dict`` keys stay as they are: a
    checkpoint of the plain network loads before and after. Nothing is changed when an error is raised.
    The order is: attach, wrap in DDP, compile. Attention stays where modules are replaced later, as by
    ``SyncBatchNorm``'s conversion or timm's ``freeze``; where it cannot, the next forward pass raises.

    Args:
        model: An unmodified convolutional network: timm's, torchvision's or your own.
        attention: One of ``csham list attentions``, a name of :func:`csham.register_attention`, or a class or function
            from a number of channels to a module. With ``device`` and ``dtype`` in its signature it gets those of the
            network; without, the module is moved there.
        strategy: One of ``csham list strategies``.
        period: For ``strategy="transfer"``: points to each channel step, whose weights serve the others; default 2.
        position: One of ``csham list positions``.
        points: Instead of a position: names of modules, a glob pattern such as ``"layer4.*.bn3"``, or a function of a
            module's name and the module. Their outputs are attended to.
        stages: Only points of these stages: numbers from 0, or negative ones from the last. A stage is a run of points
            with the same number of channels.
        gated: Give every point a learnable gate, so that the output is unchanged until training lets attention in.
        open_gates: Let the weights of every attention start near 1, by their biases, where the authors' start near 1/2.
            One that has no bias before its weights gets one.
        input_size: (C, H, W) of the network's images, where the common sizes do not fit. Attention is to run at it.
        fuse: Let the attention compute the end of a block that ends with ``relu(branch + shortcut)`` in one call. The
            network computes the same without.
        dry_run: Only list the points.
        **settings: Settings of the attention, such as ``kernel_size`` or ``act`` of CSHAM.

    Returns:
        Attached points, in execution order.

    Raises:
        UserError: A name or setting that cannot work; a network without such points, of tokens, signals or volumes
            instead of feature maps, wrapped for training already, or with attention attached already.

    Examples:
        >>> import csham, timm
        >>> model = timm.create_model("resnet50", num_classes=100)
        >>> points = csham.attach(model, "csham", strategy="transfer")
    """
    entry = find_attention(attention)
    check_strategy(entry, strategy, period)
    check_position(position, points)
    if open_gates:
        check_opens(entry)
        settings = {**settings, "open_gates": True}
    if fixed := [name for name in ("name", "channels") if name in settings]:
        raise UserError(
            f"attach: {' and '.join(fixed)} cannot be set: attention= says which attention, and the network how many "
            "channels. Leave it out."
        )
    _check_model(model)
    if not dry_run and likeness(model).device.type == "meta":
        warnings.warn(
            "attach: the network is on the meta device, where nothing has a value: what its attention starts from, the "
            "gates' 1 among it, is lost when values are filled in. Attach after that: after from_pretrained, not in "
            "__init__.",
            stacklevel=2,
        )
    with copies_shared():  # of the network's tensors, for all the runs
        run = trace(model, input_size)
        chosen = in_stages(find_points(model, run, position, points), stages)
        # Again: what a class has shows in one that is built, for as many channels as the network has.
        check_strategy(try_attention(entry, chosen[0].channels, settings), strategy, period)
        steps = plan(chosen, strategy, period)
        transfers = {s.point.stage: ChannelWeightTransfer() for s in steps if s.lends}
        places = places_below(model, [step.point.name for step in steps])
        epilogues = find_epilogues(model, run, places) if fuse else {}
        if dry_run:  # without memory, and without drawing random numbers
            settings = {**settings, "device": torch.device("meta")}
        with torch.inference_mode(False):  # weights made within it could never be trained
            built = [
                _build(model, run, step, entry, transfers.get(step.point.stage), gated, settings) for step in steps
            ]
        _check_separate(built, entry.name)
        if not dry_run:
            sizes, own = image_sizes(run, input_size), isinstance(entry, OwnAttention)
            see_it_run = partial(try_network, model, built, sizes, own)
            epilogues = _install(model, run, steps, built, places, transfers, epilogues, see_it_run)
    fused = {f"{block}.{end.host}".lstrip(".") for block, epilogue in epilogues.items() for end in epilogue.ends}
    return [
        _report(step, entry.name, attached, step.point.name in fused)
        for step, attached in zip(steps, built, strict=True)
    ]


def detach(model: nn.Module) -> nn.Module:
    """Take every attached attention out of a network again, in place.

    Args:
        model: A network that :func:`attach` changed, or a copy of one.

    Returns:
        The same network, with the modules and hooks of the plain one.
    """
    for module in list(model.modules()):
        unfuse_block(module)
        unmark_host(module)
        for hook in module._forward_hooks.values():
            if attends(hook):
                take_away(module, hook)
        for name, child in list(module.named_children()):
            if isinstance(child, Attached):  # whose host is gone
                delattr(module, name)
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for number, hook in list(hooks.items()):
                if attends(hook) or watches(hook) or ChannelWeightTransfer.owns(hook):
                    del hooks[number]
                    module._forward_hooks_always_called.pop(number, None)
                    module._forward_pre_hooks_with_kwargs.pop(number, None)
        for number, hook in list(module._load_state_dict_pre_hooks.items()):
            if accepts_weights(hook):
                del module._load_state_dict_pre_hooks[number]
    return model


def attached_modules(model: nn.Module) -> list[Attached]:
    """Return the attached attentions of a network, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, Attached)]


def _check_model(model: nn.Module) -> None:
    kind = type(model).__name__
    if not isinstance(model, nn.Module):
        raise UserError(f"attach: expected a network, an nn.Module, got {kind}. csham.create_model builds one by name.")
    if attached_modules(model):
        raise UserError(
            f"attach: {kind} has attention attached already. csham.detach(model) takes it out, with its weights."
        )
    for name, module in model.named_modules():
        if reason := _unfit(module):
            raise UserError(f"attach: {name or 'this network'} {reason}")
    _check_unwrapped(model)


def _unfit(module: nn.Module) -> str:
    """Say why a module can be neither looked into nor changed, if that is so."""
    if isinstance(module, torch.jit.ScriptModule):
        return "is scripted and can be neither looked into nor changed. Attach first, then export."
    if isinstance(module, torch.fx.GraphModule) and "eval" in vars(module):  # which raises
        return "was exported, for training or for evaluation, and cannot be changed. Attach first, then export."
    if _QUANTIZED.match(type(module).__module__):
        return (
            "works on 8-bit integers, which attention does not rescale and which cannot be trained. Attach to the "
            "network before it is quantized."
        )
    if is_compiled(module):
        return "is compiled already, and would not see the change. Attach, then compile."
    return ""


# FloatFunctional lives there too, and is how a network of floats adds that may be quantized later.
_QUANTIZED = re.compile(r"torch\.(ao\.)?nn\.(intrinsic\.)?quantized\.(?!modules\.functional_modules)")


def _check_unwrapped(model: nn.Module) -> None:
    sharding = sys.modules.get("torch.distributed.fsdp")  # looked up, as the compiler is
    kinds = [getattr(sharding, name, None) for name in ("FullyShardedDataParallel", "FSDPModule")]
    sharded = tuple(kind for kind in kinds if kind is not None)
    for module in model.modules():
        if isinstance(module, (nn.parallel.DistributedDataParallel, *sharded)):
            raise UserError(
                f"attach: {type(module).__name__} shares its work with other processes, and would not see the new "
                "parameters. Attach, then wrap."
            )
        if isinstance(module, nn.DataParallel):
            raise UserError(
                "attach: this network is wrapped in DataParallel. Attach to the network within, its .module: the "
                "copies that DataParallel makes have its attention too."
            )


def _report(step: Step, attention: str, attached: Attached, fused: bool) -> AttachedPoint:
    return AttachedPoint(
        name=step.point.name,
        channels=step.point.channels,
        stage=step.point.stage,
        attention=attention,
        part=step.part,
        weights_from=step.weights_from,
        params=sum(p.numel() for p in attached.parameters()),
        fused=fused,
    )


def _build(
    model: nn.Module,
    run: Trace,
    step: Step,
    attention: AttentionName,
    transfer: ChannelWeightTransfer | None,
    gated: bool,
    settings: dict[str, Any],
) -> Attached:
    host = model.get_submodule(step.point.name)
    tensors = [*host.parameters(), *model.parameters()]
    like = next((t for t in tensors if t.is_floating_point()), None)
    # The map's type, which behind a norm in float32 may be another; but not that of autocast, which no weights have.
    dtype = run.values[run.outputs_of(step.point.name)[0] or 0].dtype
    place: dict[str, Any] = {}
    if like is not None:
        place = {"device": like.device, "dtype": dtype if any(t.dtype == dtype for t in tensors) else like.dtype}
    layer = create_attention(attention, step.point.channels, **(place | settings))
    if step.part in ("channel", "spatial"):
        # The whole is built and one part kept, so that names and settings mean the same under every strategy.
        layer = layer.get_submodule(step.part)
    attached = Attached(
        step.point.name,
        layer,
        step.part,
        gated=gated,
        lends=transfer if step.lends else None,
        borrows=transfer if step.weights_from else None,
        lender=step.weights_from,
        **place,
    )
    return attached.train(host.training)


def _check_separate(built: Sequence[Attached], name: str) -> None:
    """Refuse a function of channels that gives two points one module."""
    if len({id(attached.attention) for attached in built}) < len(built):
        raise UserError(
            f"attach: {name} returned the same module for two points, which would share its weights. It is to make a "
            "new one each time."
        )


def _install(
    model: nn.Module,
    run: Trace,
    steps: Sequence[Step],
    built: Sequence[Attached],
    places: dict[str, str],
    transfers: dict[int, ChannelWeightTransfer],
    epilogues: dict[str, Epilogue],
    see_it_run: Callable[[], Sequence[int]],
) -> dict[str, Epilogue]:
    """Change the network, and see that it runs; if anything goes wrong it is what it was before.

    Returns:
        The epilogues that it has.
    """
    try:
        for step, attached in zip(steps, built, strict=True):
            host = model.get_submodule(step.point.name)
            hang(attached, host, places[step.point.name], _levels(run, step.point.name))
            if inner := norm_within(run, step.point.name):
                accept_weights_of(host, inner)
        for stage, transfer in transfers.items():
            _surround(model, run, [step for step in steps if step.point.stage == stage], transfer)
        # Last, so that what the transfer's hooks open is closed when one of these raises.
        watch(model, [step.point.name for step in steps], {call.name for call in run.calls})
        return _fuse(model, epilogues, see_it_run())
    except BaseException:
        detach(model)
        raise


def _fuse(model: nn.Module, epilogues: dict[str, Epilogue], sides: Sequence[int]) -> dict[str, Epilogue]:
    """Fuse all of the blocks; none if the network, which ran, would not run with them."""
    for name, epilogue in epilogues.items():
        fuse_block(model.get_submodule(name), epilogue)
    try:
        with unchanged(model), evaluating(model), use_kernels("reference"):
            model(blank_image(model, sides))
    except Exception:  # to fuse is to compute the same in less time, and no reason to fail
        for name in epilogues:
            unfuse_block(model.get_submodule(name))
        return {}
    return epilogues


def _levels(run: Trace, host: str) -> int:
    """Count the modules around a host that put out what it does, and nothing else."""
    levels, outputs = 0, run.outputs_of(host)
    while (host := host.rpartition(".")[0]) and run.outputs_of(host) == outputs:
        levels += 1
    return levels


def _blocks_between(run: Trace, names: Sequence[str], above: set[str]) -> dict[str, int]:
    """Name the blocks without a point that run between the first and the last of a stage's, and what they put out.

    Args:
        run: One run of the network.
        names: The points, in order.
        above: Names of the stage and of what holds the points below it.
    """
    called = {call.name for call in run.calls}
    first, last = (run.outputs_of(name)[0] or 0 for name in (names[0], names[-1]))
    between = {}
    for number, call in enumerate(run.calls):
        around = call.name.rpartition(".")[0]
        is_block = call.name not in above and around in above and (around in run.containers or around not in called)
        holds_modules = any(inner.parent == number for inner in run.calls[number + 1 :])
        if is_block and holds_modules and first < (call.output or 0) < last:
            between[call.name] = call.output or 0
    return between


def _surround(model: nn.Module, run: Trace, steps: Sequence[Step], transfer: ChannelWeightTransfer) -> None:
    """Put the transfer's hooks around the stage's points: on what holds them all, and on what lies between."""
    # A container that the network never calls itself, only its children, would never open.
    called = {call.name for call in run.calls}
    names = [step.point.name for step in steps]
    stage = common_path(names)
    while stage in names or stage not in called:
        stage = stage.rpartition(".")[0]
    transfer.surround(model.get_submodule(stage), hands_on=False)
    paths = [name.split(".") for name in names]
    blocks = {".".join(path[:end]) for path in paths for end in range(1, len(path) + 1)}
    inside = stage + "." if stage else ""
    between = _blocks_between(run, names, {stage, *blocks})
    for block in sorted(between):
        later = [step for step in steps if (run.outputs_of(step.point.name)[0] or 0) > between[block]]
        transfer.surround(model.get_submodule(block), hands_on=any(step.weights_from is not None for step in later))
    for block in sorted(blocks & called):
        module = model.get_submodule(block)
        leaf = all(isinstance(child, Attached) for child in module.children())
        if block.startswith(inside) and block != stage and not leaf:
            last = max(number for number, name in enumerate(names) if f"{name}.".startswith(f"{block}."))
            borrowed = any(step.weights_from is not None for step in steps[last + 1 :])
            transfer.surround(module, hands_on=borrowed)
