"""A trained network to one file, which is checked before anybody sees it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import NamedTuple, Unpack

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram

from csham import ops
from csham.errors import UserError, first_line_of
from csham.export.files import describe
from csham.export.formats import FORMATS, Format, check_format, check_free, format_of
from csham.export.parity import Parity, Runner, compare, reference_logits, resized
from csham.export.program import Content, Deployed, capture, is_dynamic, quietly, smallest
from csham.export.real_images import as_pixels, run_images
from csham.files import new_file
from csham.inference import Trained
from csham.inference.modules import ModuleFacts
from csham.inference.trained import as_trained
from csham.inference.transform import ImageLike
from csham.training.outputs import check_file
from csham.training.progress import QuietProgress
from csham.words import counted

__all__ = ["Exported", "draft_of", "export"]

_TOLERANCE = 1e-4
_SAMPLES = 1000


@dataclass(frozen=True)
class Exported:
    """A file that :func:`export` wrote.

    Attributes:
        path: The file.
        format: One of :data:`csham.export.formats.FORMATS`.
        bytes: Its size.
        images: How many real images were compared, at the size that the network was trained on.
        max_error: The largest difference between its logits and the network's, at all sizes compared.
        largest_logit: Of the network's logits, by magnitude.
        top1_agreement: Of those images, how many have the same class, in percent.
        dynamic: The axes of its input that may have any extent, of ``"batch"``, ``"height"`` and ``"width"``.
        smallest_side: The smallest height and width that its graph is for, in pixels; None if it takes one size only.
        sizes: Heights and widths at which it was compared, in pixels.
        notes: Sentences for the user about what was found.
    """

    path: Path
    format: str
    bytes: int
    images: int
    max_error: float
    largest_logit: float
    top1_agreement: float
    dynamic: tuple[str, ...]
    smallest_side: int | None
    sizes: tuple[tuple[int, int], ...]
    notes: tuple[str, ...]


def export(
    trained: Trained | nn.Module,
    path: Path | str,
    format: str | None = None,
    *,
    preprocessing: bool = False,
    dynamic_size: bool | str = "auto",
    images: Iterable[ImageLike] | np.ndarray | None = None,
    tolerance: float = _TOLERANCE,
    opset: int | None = None,
    force: bool = False,
    verbose: bool = False,
    progress: QuietProgress | None = None,
    **module: Unpack[ModuleFacts],
) -> Exported:
    """Write a trained network as one file for deployment, after comparing it with the network on real images.

    - ``"onnx"``: a graph of plain operations, from ``images`` to ``logits``, with class names and preprocessing in its
      metadata;
    - ``"pt2"``: the same as a program of torch.export;
    - ``"safetensors"``: the weights, from which :func:`csham.load` builds the network again.

    The file takes any number of images. It appears under its name only once its answers, given by onnxruntime, by the
    loaded program or by the loaded weights, have been found to be the network's.

    Args:
        trained: What :func:`csham.load` returned, or any module that classifies images; the file is of a copy of it.
        path: The file; its folder is made.
        format: None goes by the ending of ``path``.
        preprocessing: Let the file take bytes, (B, H, W, 3) uint8 RGB, and scale and normalise them itself. Images are
            cut and resized outside either way.
        dynamic_size: Whether it takes images of any height and width: True, False, or ``"auto"``, where that works,
            which is found out by trying.
        images: What to compare on: files, Pillow's or arrays, or all as one array of (n, S, S, 3) uint8, as the network
            sees them; None takes 1000 test images of the run's dataset, which a module does not have.
        tolerance: How far the logits may be off: absolutely up to 1, beyond that as a part of the largest logit.
        opset: Version of ONNX's operators; None takes the converter's own.
        force: Replace a file that exists.
        verbose: Let torch's exporter talk.
        progress: Told what is going on.
        **module: Of a module, what it does not say itself: ``image_size``, ``classes``, ``mean`` and ``std``; see
            :meth:`csham.Trained.of`.

    Raises:
        UserError: The file exists or is one of a run, there are no images to compare on, the network cannot be
            exported, or what came out answers differently; no file is left then.

    Examples:
        >>> trained = csham.load("runs/digits-resnet20-csham")
        >>> csham.export(trained, "digits.onnx").max_error
    """
    path = Path(path)
    if dynamic_size not in (True, False, "auto"):
        raise UserError(f"dynamic_size is True, False or 'auto', got {dynamic_size!r}.")
    check_free(path, force)
    format = format or format_of(path)
    check_format(format, preprocessing=preprocessing, dynamic_size=dynamic_size is True, opset=opset)
    trained = as_trained(trained, module)
    check_file("path", path, runs=[] if trained.path is None else [trained.path])
    if trained.path is None and not FORMATS[format].graph:
        raise UserError(
            f"a {format} file of csham's has weights for a network that csham.load can build by its name, and "
            f"{trained.label} is a module of your own: safetensors.torch.save_model(model, path) keeps its weights."
        )
    progress = progress or QuietProgress()
    pixels = (
        run_images(trained, count=_SAMPLES, progress=progress).pixels if images is None else as_pixels(trained, images)
    )
    task = _Task(trained, Deployed(trained, preprocessing), FORMATS[format], opset, tolerance, pixels, progress)
    with draft_of(path, force) as draft, quietly(verbose), ops.use_kernels("reference"):
        outcome = task.write(draft, dynamic_size)
        _judge(outcome, tolerance, format)
    native, everything = outcome.native, outcome.everything
    return Exported(
        path=path,
        format=format,
        bytes=path.stat().st_size,
        images=native.images,
        max_error=everything.max_error,
        largest_logit=everything.largest_logit,
        top1_agreement=native.top1_agreement,
        dynamic=outcome.dynamic,
        smallest_side=outcome.smallest_side,
        sizes=outcome.sizes,
        notes=outcome.notes,
    )


@contextmanager
def draft_of(path: Path, force: bool) -> Iterator[Path]:
    """Give a place to make a file in; at the end of the block it appears under its name.

    If the block raises, nothing is left, neither of the file nor of the folders that were made for it.

    Raises:
        UserError: Something is there already.
        OSError: The folder cannot be made or written to.
    """
    check_free(path, force)
    missing = [parent for parent in path.absolute().parents if not parent.exists()]
    try:
        with new_file(path) as draft:
            yield draft
    finally:
        for parent in missing:
            with suppress(OSError):  # it holds the file
                parent.rmdir()


class _Outcome(NamedTuple):
    """The comparison of a written file with the network: at the network's own size, and at all sizes."""

    native: Parity
    everything: Parity
    dynamic: tuple[str, ...] = ()
    smallest_side: int | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    notes: tuple[str, ...] = ()


class _FixedSizeError(Exception):
    """The file would take images of one size only; says why."""


@dataclass(frozen=True)
class _Task:
    trained: Trained
    deployed: Deployed
    format: Format
    opset: int | None
    tolerance: float
    pixels: np.ndarray
    progress: QuietProgress

    def write(self, draft: Path, dynamic_size: bool | str) -> _Outcome:
        return self._graph(draft, dynamic_size) if self.format.graph else self._weights(draft)

    def _weights(self, draft: Path) -> _Outcome:
        self.progress.note("writing the weights")
        run = self._run_of(draft, None, None)
        with torch.no_grad():
            parity = compare(self.deployed, run, self.pixels)
        return _Outcome(parity, parity, sizes=(self.pixels.shape[1:3],))

    def _graph(self, draft: Path, dynamic_size: bool | str) -> _Outcome:
        """Write a graph for images of any size if that is wanted and works, else of the network's own."""
        if dynamic_size is False:
            return self._fixed(draft)
        try:
            return self._any_size(draft)
        except (UserError, OSError):
            raise
        except Exception as err:
            reason = (
                str(err) if isinstance(err, _FixedSizeError) else f"as a graph for any size it fails ({_said(err)})"
            )
            if dynamic_size is True:
                raise UserError(f"{self.trained.label} cannot be exported for images of any size: {reason}.") from err
        S = self.deployed.image_size
        outcome = self._fixed(draft)
        return outcome._replace(notes=(f"takes images of {S} x {S} pixels only: {reason}", *outcome.notes))

    def _fixed(self, draft: Path) -> _Outcome:
        self.progress.note(f"exporting to {self.format.name}")
        try:
            native = self._compare(self._written(draft, dynamic_size=False)[0], self.pixels)
        except (UserError, OSError):
            raise
        except Exception as err:
            raise UserError(f"{self.trained.label} cannot be exported to {self.format.name}: {_said(err)}.") from err
        return _Outcome(native, native, ("batch",), sizes=(self.pixels.shape[1:3],))

    def _any_size(self, draft: Path) -> _Outcome:
        S = self.deployed.image_size
        larger, smaller = _other_sizes(S)
        self._ask_network(larger)
        self.progress.note(f"exporting to {self.format.name}")
        run, least = self._written(draft, dynamic_size=True)
        native = self._compare(run, self.pixels)
        if not native.within(self.tolerance):
            raise _FixedSizeError(f"at {S} x {S} its logits are off by {native.max_error:.2g}")
        everything, sizes, notes = native, [(S, S)], []
        for height, width in (larger, smaller):
            if min(height, width) < least:
                continue
            try:
                parity = self._compare(run, resized(self.pixels[:3], height, width))
            except Exception as err:
                # Below some size the deepest maps of a network vanish, whatever the format.
                if (height, width) == larger:
                    raise _FixedSizeError(f"at {height} x {width} the file says: {_said(err)}") from err
                notes.append(f"takes no images as small as {height} x {width} pixels")
                continue
            if not parity.within(self.tolerance):
                raise _FixedSizeError(f"at {height} x {width} its logits are off by {parity.max_error:.2g}")
            everything += parity
            sizes.append((height, width))
        return _Outcome(native, everything, ("batch", "height", "width"), least, tuple(sizes), tuple(notes))

    def _ask_network(self, size: tuple[int, int]) -> None:
        try:
            reference_logits(self.deployed, torch.zeros(1, *size, 3, dtype=torch.uint8))
        except Exception as err:
            raise _FixedSizeError(f"the network takes no other size ({_said(err)})") from err

    def _written(self, draft: Path, *, dynamic_size: bool) -> tuple[Runner, int]:
        """Write the file, and return what runs it, and the smallest side, in pixels, for which its graph was made."""
        deployed = self.deployed
        program = capture(deployed, dynamic_size=dynamic_size)
        axes = {"batch": 0} | (dict(zip(("height", "width"), deployed.side_axes, strict=True)) if dynamic_size else {})
        for name, axis in axes.items():
            if not is_dynamic(program, axis):
                raise _FixedSizeError(f"torch.export fixes the {name} of its input")
        least = max(smallest(program, axis) for axis in deployed.side_axes)
        if dynamic_size and least > deployed.image_size:
            raise _FixedSizeError(f"its graph for other sizes holds from {least} pixels on")
        return self._run_of(draft, program, least if dynamic_size else None), least

    def _run_of(self, draft: Path, program: ExportedProgram | None, least: int | None) -> Runner:
        """Write the file, and return what runs it."""
        about = describe(self.trained, preprocessing=self.deployed.preprocessing, least=least)
        self.format.write(Content(self.trained, self.deployed, program, about, self.opset), draft)
        run: Runner = self.format.open(draft)
        return run

    def _compare(self, run: Runner, pixels: np.ndarray) -> Parity:
        count, height, width = pixels.shape[:3]
        self.progress.note(f"checking on {counted(count, 'image')} of {height} x {width} pixels")
        return compare(self.deployed, run, pixels)


def _judge(outcome: _Outcome, tolerance: float, format: str) -> None:
    parity = outcome.everything
    if not parity.within(tolerance):
        native = outcome.native
        raise UserError(
            f"the {format} file does not answer as the network does: its logits are off by up to "
            f"{parity.max_error:.3g}, where the largest is {parity.largest_logit:.3g} and the tolerance {tolerance:g}; "
            f"top-1 agrees on {native.top1_agreement:.2f}% of {counted(native.images, 'image')}. The file was not "
            "kept. --tolerance allows more."
        )


def _other_sizes(S: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return a larger and a smaller size to try, heights and widths, odd ones among them."""
    return (S + S // 4 + 1, S + S // 2 + 1), (S - S // 4, S - S // 8 - 1)


def _said(err: Exception) -> str:
    """Return the first line of what went wrong."""
    return shorten(first_line_of(err), 200, placeholder=" ...").rstrip(".:")
