"""An exported network in 8-bit integers, and what that gains and costs, measured.

Static quantization by onnxruntime: QDQ nodes, weights of each output channel with a scale of their own, ranges of the
maps found on real images.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from csham.errors import UserError
from csham.export.exporting import draft_of
from csham.export.files import session
from csham.export.program import quietly
from csham.export.real_images import LabelledImages
from csham.files import SEAL, sealed
from csham.inference import Trained
from csham.training.progress import QuietProgress
from csham.training.sums import check_seal

__all__ = ["Measured", "Quantized", "quantize"]

_BATCHES = (1, 32)
_CALIBRATION_BATCH = 32
_ROUNDS, _SECONDS = 30, 20.0


@dataclass(frozen=True)
class Measured:
    """Cost and accuracy of one file.

    Attributes:
        bytes: Its size.
        latency_ms: Median time of a call in onnxruntime, on this machine's CPU, by batch size.
        top1: Of the images asked about, how many it classifies right, in percent.
    """

    bytes: int
    latency_ms: dict[int, float]
    top1: float


@dataclass(frozen=True)
class Quantized:
    """A file that :func:`quantize` wrote.

    Attributes:
        path: The file.
        before: The file it was made of.
        after: Itself.
        images: Number of images that both were asked about.
        calibration_images: Number of images that the ranges were found on.
    """

    path: Path
    before: Measured
    after: Measured
    images: int
    calibration_images: int

    @property
    def lost(self) -> float:
        """By how many points the accuracy fell."""
        return self.before.top1 - self.after.top1


def quantize(
    trained: Trained,
    source: Path | str,
    path: Path | str,
    *,
    calibration: np.ndarray,
    test: LabelledImages,
    force: bool = False,
    verbose: bool = False,
    progress: QuietProgress | None = None,
) -> Quantized:
    """Make a file in 8-bit integers of an exported one, and measure both.

    Convolutions, linear layers and the additions and activations between them work on integers; the gates of
    attention, its pooling and its products stay in floating point. Weights take 7 of the 8 bits: on processors without
    VNNI, onnxruntime adds two products in 16 bits, which 8 would overflow.

    Args:
        trained: The network that ``source`` was exported from, for its preprocessing.
        source: ONNX file that :func:`csham.export` wrote.
        path: The file to write; its metadata is the source's.
        calibration: Images of the training part, (n, S, S, 3) uint8.
        test: Images to measure the accuracy on.
        force: Replace a file that exists.
        verbose: Let onnxruntime's quantizer talk.
        progress: Told what is going on.

    Raises:
        UserError: The file exists, the source was changed, there are no images, or the quantizer refuses the graph; no
            file is left then.
    """
    source, path = Path(source), Path(path)
    progress = progress or QuietProgress()
    if not (len(calibration) and len(test.pixels)):
        raise UserError("quantizing needs images to calibrate on and images to measure the accuracy on.")
    check_seal(source, "Export it again.")
    with draft_of(path, force) as draft, quietly(verbose):
        progress.note(f"quantizing, calibrated on {len(calibration):,} training images")
        _quantize(source, draft, _Feed(trained, source), calibration)
        progress.note(f"measuring both files on {len(test.pixels):,} images")
        before, after = _measure([source, draft], _Feed(trained, source), test)
    return Quantized(path, before, after, len(test.pixels), len(calibration))


class _Feed:
    """Makes inputs of a file from pixels."""

    def __init__(self, trained: Trained, path: Path) -> None:
        self._transform = trained.transform
        self._bytes = session(path).get_inputs()[0].type == "tensor(uint8)"

    def __call__(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        values = pixels if self._bytes else self._transform.normalise(torch.from_numpy(pixels)).numpy()
        return {"images": np.ascontiguousarray(values)}

    def batches(self, pixels: np.ndarray, size: int) -> Iterator[dict[str, np.ndarray]]:
        return (self(pixels[start : start + size]) for start in range(0, len(pixels), size))


def _quantize(source: Path, path: Path, feed: _Feed, calibration: np.ndarray) -> None:
    import onnx  # noqa: PLC0415  an extra
    from onnxruntime import quantization  # noqa: PLC0415  an extra
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415

    batches = feed.batches(calibration, _CALIBRATION_BATCH)

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(batches, None)

    prepared = path.with_name("prepared.onnx")
    # Symbolic shape inference fails on some graphs of any size, and the quantizer only needs types and ranks.
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantization.quantize_static(
        prepared,
        path,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Gemm", "MatMul", "Add", "Relu", "MaxPool", "Concat"],
        nodes_to_exclude=_gates(onnx.load(prepared)),
        per_channel=True,
        reduce_range=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    _copy_metadata(onnx, source, path)


def _gates(model: Any) -> list[str]:
    """Name the convolutions to one channel, which attention's gates are made of.

    There is nothing to gain: two nodes more for each, around a thousandth of the arithmetic. A ResNet-20 took 400 ms
    for 32 images without them and 448 ms with, at the same accuracy.
    """
    channels = {tensor.name: tensor.dims[0] for tensor in model.graph.initializer if tensor.dims}
    return [node.name for node in model.graph.node if node.op_type == "Conv" and channels.get(node.input[1]) == 1]


def _copy_metadata(onnx: Any, source: Path, path: Path) -> None:
    kept, model = onnx.load(source), onnx.load(path)
    del model.metadata_props[:]
    model.metadata_props.extend(entry for entry in kept.metadata_props if entry.key != "seal")
    model.metadata_props.add(key="seal", value=SEAL)
    model.doc_string = kept.doc_string
    path.write_bytes(sealed(model.SerializeToString()))


def _measure(paths: list[Path], feed: _Feed, test: LabelledImages) -> list[Measured]:
    opened = [session(path) for path in paths]
    top1 = [_top1(run, feed, test) for run in opened]
    latencies = _latencies(opened, feed, test.pixels)
    return [Measured(*values) for values in zip((p.stat().st_size for p in paths), latencies, top1, strict=True)]


def _top1(run: Any, feed: _Feed, test: LabelledImages) -> float:
    answers = [run.run(["logits"], batch)[0].argmax(1) for batch in feed.batches(test.pixels, 64)]
    return float(100 * (np.concatenate(answers) == test.labels).mean())


def _latencies(opened: list[Any], feed: _Feed, pixels: np.ndarray) -> list[dict[int, float]]:
    """Time all files by turns, so that what else the machine does meets them alike."""
    times: list[dict[int, list[float]]] = [{batch: [] for batch in _BATCHES} for _ in opened]
    for batch in _BATCHES:
        given = feed(np.resize(pixels, (batch, *pixels.shape[1:])))
        for run in opened:
            run.run(["logits"], given)
        end = time.monotonic() + _SECONDS / len(_BATCHES)
        for _ in range(_ROUNDS):
            for run, samples in zip(opened, times, strict=True):
                start = time.perf_counter()
                run.run(["logits"], given)
                samples[batch].append(1000 * (time.perf_counter() - start))
            if time.monotonic() > end:
                break
    return [{batch: statistics.median(samples) for batch, samples in each.items()} for each in times]
