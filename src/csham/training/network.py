"""What must be known to build a trained network again and to feed it, and the file its weights travel in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from csham.backbones import create_model
from csham.errors import UserError
from csham.files import write_atomically
from csham.training.config import TrainConfig

__all__ = ["NetworkInfo", "read_weights", "write_weights"]


@dataclass(frozen=True, kw_only=True)
class NetworkInfo:
    """A trained network without its weights.

    Attributes:
        backbone: Name of the backbone.
        attention: Name of the attention, or ``"none"``.
        strategy: How its steps are arranged.
        position: Where in the network it sits.
        gated: Whether it is gated.
        num_classes: Number of classes.
        image_size: Height and width of the images it was trained on, in pixels.
        classes: Name of each class.
        mean: Of each channel of the training images, of values from 0 to 1.
        std: Likewise.
        period: Of strategy ``"transfer"``.
        points: Names or patterns of modules instead of a position.
        stages: The stages it is in, if not all.
    """

    backbone: str
    attention: str
    strategy: str
    position: str
    gated: bool
    num_classes: int
    image_size: int
    classes: list[str]
    mean: list[float]
    std: list[float]
    period: int | None = None
    points: list[str] | None = None
    stages: list[int] | None = None

    @classmethod
    def of(
        cls, config: TrainConfig, classes: list[str], image_size: int, mean: list[float], std: list[float]
    ) -> NetworkInfo:
        """Describe the network that a run with these settings trains."""
        return cls(
            backbone=config.backbone,
            attention=config.attention,
            strategy=config.strategy,
            position=config.position,
            gated=config.gated,
            num_classes=len(classes),
            image_size=image_size,
            classes=classes,
            mean=mean,
            std=std,
            period=config.period,
            points=None if config.points is None else list(config.points),
            stages=None if config.stages is None else list(config.stages),
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: Path) -> NetworkInfo:
        """Read the description back from a file's content; ``where`` is for the message."""
        missing = {field.name for field in fields(cls) if field.default is MISSING} - set(values)
        if missing:
            raise UserError(f"{where} does not describe its network: {sorted(missing)} are missing.")
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})

    def to_dict(self) -> dict[str, Any]:
        """Return the description as plain values."""
        return asdict(self)

    def build(self, *, pretrained: bool = False, weights_file: str | None = None) -> nn.Module:
        """Create the network, with new weights but for what :func:`csham.create_model` loads into its backbone."""
        return create_model(
            self.backbone,
            attention=None if self.attention == "none" else self.attention,
            strategy=self.strategy,
            period=self.period,
            position=self.position,
            points=self.points,
            stages=self.stages,
            gated=self.gated,
            num_classes=self.num_classes,
            image_size=self.image_size,
            pretrained=pretrained,
            weights_file=weights_file,
        )


def write_weights(path: Path, weights: Mapping[str, Tensor], info: NetworkInfo) -> None:
    """Write weights as safetensors, each value of ``info`` as JSON in the file's metadata."""
    metadata = {key: json.dumps(value, ensure_ascii=False) for key, value in info.to_dict().items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    content = safetensors.torch.save(tensors, metadata={"format": "pt", **metadata})
    write_atomically(path, lambda file: file.write(content))


def read_weights(path: Path) -> tuple[NetworkInfo, dict[str, Tensor]]:
    """Read what :func:`write_weights` wrote.

    Raises:
        UserError: The file is missing, damaged, or does not say what network it is for.
    """
    if not path.is_file():
        raise UserError(f"there is no file of weights {path}.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = {key: value for key, value in (file.metadata() or {}).items() if key != "format"}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        values = {key: json.loads(value) for key, value in metadata.items()}
    except (safetensors.SafetensorError, json.JSONDecodeError) as err:
        raise UserError(f"{path} is damaged or not a safetensors file: {err}") from err
    return NetworkInfo.from_dict(values, path), weights
