"""Run a network with new attention once, and the user's own attentions by themselves, and refuse what cannot work."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from csham.attach.graph.values import Trace
from csham.attach.installed.attached import Attached
from csham.errors import UserError
from csham.ops import use_kernels
from csham.own_code import described
from csham.probing import blank_image, evaluating, unchanged

__all__ = ["image_sizes", "try_network"]


class _WrongAttentionError(UserError):
    """An attention does what no size of the images changes, and what a network may take without a word."""


def image_sizes(run: Trace, input_size: Sequence[int] | None) -> list[Sequence[int]]:
    """List the sizes of images, (C, H, W), at which attention may show that it runs."""
    size = run.values[0].shape[1:]
    if input_size is not None or size[1:] == (224, 224):
        return [size]
    # An attention may need larger maps than the last stages have at the small size that the points were found with.
    return [size, (size[0], 224, 224)]


def try_network(
    model: nn.Module, built: Sequence[Attached], sizes: Sequence[Sequence[int]], own: bool
) -> Sequence[int]:
    """See that a network runs with its attention, and note which attentions write into their maps.

    Args:
        model: The network, with attention attached.
        built: All of its attention.
        sizes: Sizes of images, (C, H, W), one of which is enough.
        own: True for an attention of the user's own, of which less is known.

    Returns:
        The size at which it runs.

    Raises:
        UserError: It runs at none, or an attention is not one, or would never learn.
    """
    failures = []
    for sides in sizes:
        try:
            with unchanged(model), evaluating(model), use_kernels("reference"):
                trial = _Trial(model, built, sides)
                alone = {attached.name: _Alone(attached, trial.like.get(attached.name)) for attached in built if own}
        except _WrongAttentionError:
            raise
        except Exception as err:
            failures.append(err)
        else:
            break
    else:
        raise UserError(
            f"attach: with this attention {type(model).__name__} no longer runs on images of "
            f"{'x'.join(map(str, sizes[0][1:]))}: {described(failures[0])}. Nothing was attached."
        ) from failures[0]
    if strange := trial.strange():
        raise UserError(
            f"attach: {strange[0]} ({type(model.get_submodule(strange[0])).__name__}) runs all its children one after "
            "another, and would run the attention among them. Choose modules inside it, or around it, with points=."
        )
    for attached in built:
        attached.copies_map = attached.name in trial.writing or (own and alone[attached.name].writes)
        if own and attached.gate is not None and alone[attached.name].is_identity:
            raise UserError(
                f"attach: {_kind(attached)} at {attached.name} starts as the identity: behind a gate that starts "
                "closed neither of them would ever get a gradient. Leave gated out (--no-gated): the network's output "
                "is at first what it was without a gate too. Nothing was attached."
            )
    return sides


class _Trial:
    """One run of a network, without the gates, which would mix in what attention must not change.

    Attributes:
        like: Of the map that each point was given one number, stretched to its shape.
        writing: Points whose attention wrote into its map.
    """

    def __init__(self, model: nn.Module, built: Sequence[Attached], sides: Sequence[int]) -> None:
        self.like: dict[str, Tensor] = {}
        self.writing: set[str] = set()
        self._surplus = dict.fromkeys([attached.name for attached in built], 0)  # of its runs over its host's
        self._versions: dict[str, int] = {}
        handles = []
        for attached in built:
            attached.gate = None
            handles.append(attached.register_forward_pre_hook(self._before))
            handles.append(attached.register_forward_hook(self._after))
            host = model.get_submodule(attached.name)
            handles.append(host.register_forward_pre_hook(partial(self._count_host, attached.name)))
        before = {attached.name: _parameters_of(attached) for attached in built}
        try:
            model(blank_image(model, sides))
        finally:
            for handle in handles:
                handle.remove()
        for attached in built:
            _refuse_late_parameters(attached, before[attached.name])

    def strange(self) -> list[str]:
        """Name the points whose attention ran more or less often than its host."""
        return [name for name, surplus in self._surplus.items() if surplus]

    def _before(self, attached: Any, args: Any) -> None:
        self._surplus[attached.name] += 1
        self._versions[attached.name] = _version(args[0])
        self.like[attached.name] = args[0].new_empty(1).expand(args[0].shape)

    def _after(self, attached: Any, args: Any, y: Any) -> None:
        _check_output(attached, args[0], y)
        if _version(args[0]) != self._versions[attached.name]:
            self.writing.add(attached.name)

    def _count_host(self, name: str, host: nn.Module, args: Any) -> None:
        self._surplus[name] -= 1


class _Alone:
    """A pass of one attention in each mode, on two random maps of its point's shape.

    Attributes:
        writes: True if it wrote into its map, as some do in training alone.
        is_identity: True if it gave its map back as it was in both modes: in one, branches may be dropped.
    """

    def __init__(self, attached: Attached, like: Tensor | None) -> None:
        self.writes, self.is_identity = False, like is not None and not like.is_meta
        if like is None or not self.is_identity:
            return
        before = _parameters_of(attached)
        for training in (True, False):
            x = torch.randn(2, *like.shape[1:], dtype=like.dtype, device=like.device)
            given, version = x.clone(), _version(x)
            try:
                y = attached.attention.train(training)(x)
            except Exception:  # it need not run by itself, or on two maps
                self.is_identity = False
                return
            _refuse_late_parameters(attached, before)
            self.writes = self.writes or _version(x) != version
            self.is_identity = self.is_identity and isinstance(y, Tensor) and torch.equal(y, given)


def _kind(attached: Attached) -> str:
    return type(attached.attention).__name__


def _parameters_of(attached: Attached) -> set[str]:
    return {name for name, _ in attached.attention.named_parameters()}


def _refuse_late_parameters(attached: Attached, before: set[str]) -> None:
    if late := sorted(_parameters_of(attached) - before):
        raise _WrongAttentionError(
            f"attach: {_kind(attached)} makes {late[0]} in its first pass, and optimizers and checkpoints made before "
            "know nothing of it. Make it in __init__, of the number of channels. Nothing was attached."
        )


def _version(x: Tensor) -> int:
    """Count the writes into a tensor; under inference_mode nobody does."""
    return 0 if x.is_inference() else x._version


def _check_output(attached: Attached, x: Tensor, y: Any) -> None:
    if isinstance(y, Tensor) and y.shape == x.shape:
        return
    what = f"a map of {tuple(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
    raise _WrongAttentionError(
        f"attach: {_kind(attached)} at {attached.name} made {what} of one of {tuple(x.shape)}. An attention returns a "
        "map of its input's shape: the input, scaled by its weights. Nothing was attached."
    )
