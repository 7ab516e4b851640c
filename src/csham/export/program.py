"""A network captured as one graph of plain operations, by torch.export."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config
from torch.utils._sympy.value_ranges import bound_sympy

from csham.data.batches import scale_and_shift
from csham.inference import Trained

__all__ = ["Content", "Deployed", "capture", "is_dynamic", "quietly", "smallest"]


class Deployed(nn.Module):
    """The network of a run as its file will be: in float32, on the CPU, in evaluation mode.

    Args:
        trained: Trained network that is copied.
        preprocessing: True if it takes the bytes of images, and scales and normalises them itself.

    Attributes:
        image_size: S, side of the images it was trained on, in pixels.
        preprocessing: As given.
    """

    def __init__(self, trained: Trained, preprocessing: bool = False) -> None:
        super().__init__()
        self.network = copy.deepcopy(trained.network).to("cpu", torch.float32)
        self.image_size = trained.info.image_size
        self.preprocessing = preprocessing
        self.network.to(memory_format=torch.contiguous_format)
        scale, shift = (values[:, None, None] for values in scale_and_shift(trained.info.mean, trained.info.std))
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", scale, persistent=preprocessing)
        self.register_buffer("shift", shift, persistent=preprocessing)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Classify images.

        Args:
            images: (B, 3, H, W) float32, normalised, or with preprocessing (B, H, W, 3) uint8.

        Returns:
            Logits, (B, classes).
        """
        return self.network(self._normalised(images) if self.preprocessing else images)

    def input(self, pixels: Tensor) -> Tensor:
        """Return what it takes of the bytes of images, (B, H, W, 3) uint8."""
        return pixels if self.preprocessing else self._normalised(pixels)

    @property
    def side_axes(self) -> tuple[int, int]:
        """Axes of height and width in its input."""
        return (1, 2) if self.preprocessing else (2, 3)

    def _normalised(self, pixels: Tensor) -> Tensor:
        return pixels.movedim(-1, 1).to(torch.float32) * self.scale + self.shift


@dataclass(frozen=True)
class Content:
    """Content of a file.

    Attributes:
        trained: The network as it was loaded.
        deployed: As the file is to answer.
        program: That captured, with one input and one output; None for files of weights.
        metadata: Names and values that the file is to say of itself, as texts.
        opset: Version of ONNX's operators, if one was asked for.
    """

    trained: Trained
    deployed: Deployed
    program: ExportedProgram | None
    metadata: Mapping[str, str]
    opset: int | None = None


def capture(deployed: Deployed, *, dynamic_size: bool) -> ExportedProgram:
    """Export a network for any number of images, and of any size if wanted.

    Raises:
        Exception: Whatever torch.export raises.
    """
    # Of sides and counts of one torch.export takes it that they always are one, so there are two images, and sides at
    # which the deepest maps have more than one position. They differ, or could be taken for one number.
    side = deployed.image_size
    sides = (max(2 * side, 128), max(2 * side, 128) + 32) if dynamic_size else (side, side)
    example = deployed.input(torch.zeros(2, *sides, 3, dtype=torch.uint8))
    axes = (0, *deployed.side_axes) if dynamic_size else (0,)
    # Without this sizes at which some map has one position would be refused, for how its values lie in memory alone.
    oblivious: Any = _config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with torch.no_grad(), oblivious:
        return torch.export.export(deployed, (example,), dynamic_shapes=(dict.fromkeys(axes, Dim.AUTO),))


def is_dynamic(program: ExportedProgram, axis: int) -> bool:
    """Return True if the captured graph takes any extent along an axis of its input; torch.export may have fixed it."""
    return not isinstance(_extent(program, axis), int)


def smallest(program: ExportedProgram, axis: int) -> int:
    """Return the smallest extent along an axis of its input for which the captured graph holds.

    Below it the network would have gone another way. PT2 files refuse such inputs, ONNX files may answer them wrongly.
    """
    extent = _extent(program, axis)
    return extent if isinstance(extent, int) else int(bound_sympy(extent.node.expr, program.range_constraints).lower)


def _extent(program: ExportedProgram, axis: int) -> Any:
    (name,) = program.graph_signature.user_inputs
    node = next(node for node in program.graph.nodes if node.name == name)
    return node.meta["val"].shape[axis]


@contextmanager
def quietly(verbose: bool = False) -> Iterator[None]:
    """Keep to themselves what libraries would write to the terminal, unless ``verbose``."""
    if verbose:
        yield
        return
    before: Any = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
