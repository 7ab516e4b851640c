"""Grad-CAM: which places of a network's last feature map speak for a class.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017,
arXiv:1610.02391. With the feature map A, (C, h, w), of one layer and the logit y of a class,

    alpha[c] = mean_hw(dy / dA[c]),    map = relu(sum_c alpha[c] A[c])            (equations 1 and 2)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from csham.attach.graph.hosts import outputs_at
from csham.attach.graph.kinds import works_on_tokens
from csham.attach.graph.positions import last_map, stage_ends
from csham.attach.graph.trace import trace
from csham.attach.graph.values import Trace
from csham.attach.installed.attached import Attached
from csham.errors import UserError, unknown_name
from csham.probing import eagerly, evaluating, uncompiled

__all__ = ["GradCam", "find_layer"]


class GradCam:
    """Grad-CAM of one network at one layer.

    The gradient is computed from the logits back to the layer and no further, whatever the layers after it overwrite,
    whether parameters are frozen, and whether the caller computes gradients at all. Modes, gradients and hooks of the
    network are afterwards what they were before. A compiled network runs without its compiled code.

    Args:
        model: A network from (B, 3, H, W) to logits, (B, classes); it may be compiled or wrapped in DDP.
        input_size: (C, H, W) of its images.
        layer: Name of the module at whose output to look; by default that with the last feature map that all logits
            depend on (:func:`find_layer`). Of a module that runs several times it is the last output.

    Raises:
        UserError: No such module, one that puts out no feature map, or a network without feature maps.

    Examples:
        >>> maps, logits = GradCam(model, (3, 224, 224))(images)
    """

    def __init__(self, model: nn.Module, input_size: Sequence[int], layer: str | None = None) -> None:
        self.model = uncompiled(model)
        if any(tensor.is_inference() for tensor in self.model.parameters()):
            raise UserError(
                "Grad-CAM needs gradients, which a network that was made under torch.inference_mode() cannot give. "
                "Load it outside of that."
            )
        self.layer = find_layer(self.model, input_size, layer)

    def __call__(self, images: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute the maps of a batch.

        Args:
            images: (B, C, H, W), normalised.
            targets: For each image the class whose map it is, (B,) int64; by default the one that it is given.

        Returns:
            The maps, (B, h, w) float32 in the size of the layer's output, each divided by its largest value, 0 where
            nothing speaks for the class; and the logits, (B, classes) float32. Neither has a graph.
        """
        with torch.inference_mode(False), evaluating(self.model), eagerly():
            images = images.clone() if images.is_inference() else images
            with _watched(self.model.get_submodule(self.layer), self.layer) as seen:
                logits = self.model(images)
            logits = _checked(logits, self.model)
            targets = logits.argmax(1) if targets is None else targets.to(logits.device)
            maps = seen[-1]
            grad = self._gradient(logits, targets, maps)
        maps, grad = maps.detach().float(), grad.float()
        return _to_unit((grad.mean((2, 3), keepdim=True) * maps).sum(1).relu()), logits.detach().float()

    def _gradient(self, logits: Tensor, targets: Tensor, maps: Tensor) -> Tensor:
        with torch.enable_grad():
            chosen = logits.gather(1, targets[:, None]).sum()  # in evaluation mode no image sees another
        grad = torch.autograd.grad(chosen, maps, allow_unused=True)[0] if chosen.requires_grad else None
        if grad is None:
            raise UserError(f"Grad-CAM: the logits do not depend on the output of {self.layer}. Name another layer.")
        return grad


def find_layer(model: nn.Module, input_size: Sequence[int], layer: str | None = None) -> str:
    """Find the module whose output Grad-CAM is to look at, or check the one that was named.

    It is the one that puts out the last feature map of more than one place which all logits depend on: the map that
    the head pools or flattens. Where that is the output of no module, it is the last before it that is.

    Args:
        model: Any network that takes one batch of images.
        input_size: (C, H, W) of these.
        layer: A module's name.

    Raises:
        UserError: No such module, one that puts out no feature map, or a network without feature maps.
    """
    channels, height, width = input_size
    with eagerly():
        run = trace(model, (channels, height, width))
    if layer is not None:
        return _check_layer(model, run, layer)
    kind = type(model).__name__
    if works_on_tokens(run):
        raise UserError(
            f"Grad-CAM: {kind} works on tokens, not on feature maps (B, C, H, W). Name a layer that puts one out."
        )
    layer = _last_map(run)
    if layer is None:
        raise UserError(f"Grad-CAM: {kind} has no feature map of more than one place at {height}x{width} pixels.")
    return _outside_attention(model, layer)


def _last_map(run: Trace) -> str | None:
    names, _ = last_map(run)
    for index in [] if names else reversed(run.trunk()):
        value = run.values[index]
        if index and value.is_map and not value.is_pooled:
            names, _ = outputs_at(run, [index])
        if names:
            break
    return names[0] if names else None


def _check_layer(model: nn.Module, run: Trace, layer: str) -> str:
    modules = dict(model.named_modules())
    if layer not in modules or not layer:
        likely = stage_ends(run)[0] or [name for name, _ in model.named_children()]
        raise unknown_name("layer", layer, likely, unlisted=filter(None, modules))
    outputs = run.outputs_of(layer)
    kind = type(modules[layer]).__name__
    if not outputs:
        raise UserError(f"Grad-CAM: {layer} ({kind}) does not run, so there is nothing to look at.")
    value = run.values[outputs[-1]] if outputs[-1] is not None else None
    if value is None or not value.is_map:
        got = "no single tensor" if value is None else " x ".join(map(str, value.shape))
        raise UserError(f"Grad-CAM: {layer} ({kind}) puts out {got}, not a feature map (B, C, H, W).")
    return layer


def _outside_attention(model: nn.Module, layer: str) -> str:
    """Name, instead of an attached attention or a part of it, which kernels do not call, the module it is attached to.

    Both put out the same.
    """
    path = layer.split(".")
    modules = (model.get_submodule(".".join(path[:depth])) for depth in range(1, len(path) + 1))
    return next((str(module.name) for module in modules if isinstance(module, Attached)), layer)


@contextmanager
def _watched(module: nn.Module, name: str) -> Iterator[list[Tensor]]:
    """Keep what a module puts out, and begin the graph there."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or output.dim() != 4:
            raise UserError(f"Grad-CAM: {name} ({type(module).__name__}) puts out no feature map (B, C, H, W).")
        # What comes before runs without gradients: it is not asked for any, and would keep its maps in memory.
        torch.set_grad_enabled(True)
        seen.append(output.detach().clone().requires_grad_())
        # A copy goes on: the next layer may write into it, as ReLU(inplace=True) does.
        return seen[-1].clone()

    remove: Callable[[], None] = module.register_forward_hook(keep).remove
    try:
        yield seen
    finally:
        remove()
    if not seen:
        raise UserError(f"Grad-CAM: {name} ({type(module).__name__}) did not run, so there is nothing to look at.")


def _checked(logits: Any, model: nn.Module) -> Tensor:
    if isinstance(logits, Tensor) and logits.dim() == 2:
        return logits
    raise UserError(f"Grad-CAM: {type(model).__name__} does not put out logits, (B, classes), in evaluation mode.")


def _to_unit(maps: Tensor) -> Tensor:
    top = maps.amax((1, 2), keepdim=True)
    return maps / torch.where(top > 0, top, 1)
