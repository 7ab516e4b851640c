"""The optimizer, and the groups of parameters that have a rate and a decay of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from csham.training.config import TrainConfig
from csham.training.parts import PARTS, parts_of

__all__ = ["create_optimizer", "describe_groups", "rates_at", "set_rates"]

# Parameters in a row that count as one layer where a network does not say its layers: timm's own number.
_PARAMETERS_PER_LAYER = 12


def create_optimizer(network: nn.Module, config: TrainConfig, new: Iterable[str] = ()) -> torch.optim.Optimizer:
    """Make the optimizer of a run.

    Its groups carry their ``name``, for people, and ``lr_scale``, their highest rate as a multiple of the run's.

    Args:
        network: On its device.
        config: The settings.
        new: Modules that did not get the trained weights the backbone started from (:func:`csham.training.parts`).
    """
    groups = _groups(network, config, new)
    fused = next(network.parameters()).device.type in ("cpu", "cuda") or None
    common: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": fused}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, **common)
    sgd = torch.optim.SGD(groups, momentum=config.momentum, nesterov=config.momentum > 0, **common)
    if config.precision == "fp16" and config.momentum > 0:
        _begin_momentum(sgd)
        sgd.register_load_state_dict_post_hook(_begin_momentum)  # a checkpoint may be of before the first step
    return sgd


def _begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Make the momentum that parameters lack, 0, with which the first step does what it does without.

    Where gradients overflow, a fused first step makes it and writes nothing into it, and the second goes on from that.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def rates_at(optimizer: Any, rate: float) -> list[float]:
    """Return each group's multiple of the schedule's rate."""
    # A checkpoint of before there were multiples has none.
    return [rate * group.get("lr_scale", 1.0) for group in optimizer.param_groups]


def set_rates(optimizer: Any, rates: Sequence[float | Tensor]) -> None:
    """Give every group its rate, a number or a tensor of one."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def describe_groups(optimizer: Any, config: TrainConfig) -> list[dict[str, Any]]:
    """Return the name, highest rate, decay and number of values of each group."""
    return [
        {
            "name": group["name"],
            "highest_lr": config.lr * group["lr_scale"],
            "weight_decay": group["weight_decay"],
            "values": sum(parameter.numel() for parameter in group["params"]),
        }
        for group in optimizer.param_groups
    ]


def _groups(network: nn.Module, config: TrainConfig, new: Iterable[str]) -> list[dict[str, Any]]:
    """Put parameters of one rate and decay together, gates last.

    A backbone that is frozen at first stays apart: the fused SGD cannot begin the momentum of some parameters of a
    group when others have theirs.
    """
    parts = parts_of(network, new)
    scales = _scales(network, config, parts)
    exempt = _without_decay(network) if config.optimizer == "adamw" else frozenset()
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        gate = name.rpartition(".")[2] == "gate"
        decay = 0.0 if gate or name in exempt else config.weight_decay
        apart = config.freeze_backbone > 0 and parts[name] == "backbone"
        key = (gate, apart, scales[name], decay)
        group = found.setdefault(key, {"params": [], "lr_scale": scales[name], "weight_decay": decay, "parts": set()})
        group["params"].append(parameter)
        group["parts"].add("gates" if gate else parts[name])
    ordered = [found[key] for key in sorted(found, key=lambda key: key[0])]
    return [{**group, "name": _name(group.pop("parts"), group)} for group in ordered]


def _scales(network: nn.Module, config: TrainConfig, parts: Mapping[str, str]) -> dict[str, float]:
    """Return each parameter's highest rate as a multiple of the run's."""
    rates = {"backbone": config.backbone_lr, "head": config.head_lr, "attention": config.attention_lr}
    scale = {part: 1.0 if rate is None else rate / config.lr for part, rate in rates.items()}
    if config.layer_decay == 1:
        return {name: scale[part] for name, part in parts.items()}
    layers = _layers(network, parts)
    return {
        name: scale[part] * (config.layer_decay ** layers[name] if part == "backbone" else 1.0)
        for name, part in parts.items()
    }


def _layers(network: Any, parts: Mapping[str, str]) -> dict[str, int]:
    """Return how many layers below the head each parameter of the backbone is."""
    from timm.models import group_parameters  # noqa: PLC0415  takes seconds to import

    names = [name for name, part in parts.items() if part == "backbone"]
    if hasattr(network, "group_matcher"):
        numbers = group_parameters(network, network.group_matcher(coarse=False), reverse=True)
        head = max(numbers[name] for name, part in parts.items() if part != "attention")
    else:
        numbers = {name: index // _PARAMETERS_PER_LAYER for index, name in enumerate(names)}
        head = max(numbers.values(), default=0) + 1
    return {name: head - numbers[name] for name in names}


def _without_decay(network: Any) -> frozenset[str]:
    """Return the parameters that AdamW's recipes leave undecayed: biases, those of norms, and what timm names."""
    named = set(network.no_weight_decay()) if hasattr(network, "no_weight_decay") else set()
    return frozenset(name for name, p in network.named_parameters() if p.ndim <= 1 or name in named)


def _name(parts: set[str], group: Mapping[str, Any]) -> str:
    named = ", ".join(part for part in (*PARTS, "gates") if part in parts)
    scale = "" if group["lr_scale"] == 1 else f", lr x {group['lr_scale']:.3g}"
    return f"{named}{scale}{'' if group['weight_decay'] else ', no decay'}"
