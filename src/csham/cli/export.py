"""``csham export``: a trained run as one file for deployment."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

import csham
from csham.cli.common import check_counts, check_trained, print_json, print_table, use_named_code
from csham.cli.options import OUTPUT, CodeOption, DebugOption, JsonOption, QuietOption, TrainedArgument, WeightsOption
from csham.errors import UserError, any_of
from csham.export.formats import FORMATS, check_format, check_free, format_of
from csham.training.outputs import check_file
from csham.training.progress import create_progress
from csham.words import counted, say

if TYPE_CHECKING:
    from csham.export import Exported, Quantized

__all__ = ["export"]

QUANTIZATION = "Quantization"

# What quantizing may cost without a word, in points of top-1.
_LOST = 1.0


def export(
    run: TrainedArgument,
    data: Annotated[
        str | None,
        typer.Argument(help="The run's dataset, if it lies elsewhere now.", show_default="the run's"),
    ] = None,
    *,
    file_format: Annotated[
        str | None,
        typer.Option("--format", help=f"{any_of([*FORMATS])}.", show_default="by the ending of --output, else onnx"),
    ] = None,
    weights: WeightsOption = None,
    preprocessing: Annotated[
        bool, typer.Option("--preprocessing", help="Let the file take bytes and normalise them itself.")
    ] = False,
    dynamic_size: Annotated[
        bool | None,
        typer.Option(
            "--dynamic-size/--no-dynamic-size", help="Any height and width.", show_default="where the network can"
        ),
    ] = None,
    opset: Annotated[int | None, typer.Option(help="Version of ONNX's operators.", show_default="newest")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="The file, or a folder that exists.", show_default="RUN/export/model.*", rich_help_panel=OUTPUT
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.", rich_help_panel=OUTPUT)] = False,
    samples: Annotated[int, typer.Option(help="Test images to check on; 0 for all.")] = 1000,
    images: Annotated[
        Path | None, typer.Option(help="Check on the images of this folder.", show_default="the run's test images")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="How far logits may be off, beyond 1 as a part of the largest.")
    ] = 1e-4,
    quantize: Annotated[
        bool, typer.Option("--quantize", help="Write one in 8-bit integers too.", rich_help_panel=QUANTIZATION)
    ] = False,
    calibration_images: Annotated[
        int, typer.Option(help="Training images to find ranges on.", rich_help_panel=QUANTIZATION)
    ] = 256,
    code: CodeOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """One file for deployment, its answers checked against the network's on real images."""
    file = None if output is None or output.is_dir() else output
    file_format = file_format or ("onnx" if file is None else format_of(file))
    check_format(file_format, preprocessing=preprocessing, dynamic_size=dynamic_size is True, opset=opset)
    _check_options(samples, tolerance, calibration_images, quantize, file_format, images, data)
    place = run if run.is_dir() else run.parent if run.exists() else Path()  # hf:user/name and zoo:name are no places
    path = file or (output or place / "export") / f"model{FORMATS[file_format].ending}"
    small = path.with_name(f"{path.stem}-int8{path.suffix}")
    for target in [path, small] if quantize else [path]:
        check_free(target, force)
        check_file("--output", target, runs=[run], data=data, images=[] if images is None else [str(images)])
    check_trained(run, weights)
    use_named_code(code)
    from csham.export.exporting import export as export_file  # noqa: PLC0415  torch takes seconds
    from csham.export.quantization import quantize as quantize_file  # noqa: PLC0415
    from csham.export.real_images import LabelledImages, folder_images, run_images  # noqa: PLC0415

    quantized, count = None, samples or None
    progress = create_progress(quiet=quiet)
    try:
        trained = csham.load(run, weights=weights)
        if images is None:
            test = run_images(trained, "test", count, data=data, progress=progress)
        else:
            pixels = folder_images(trained, images, count)
            test = LabelledImages(pixels, np.full(len(pixels), -1))  # whose classes nobody knows
        exported = export_file(
            trained,
            path,
            file_format,
            preprocessing=preprocessing,
            dynamic_size="auto" if dynamic_size is None else dynamic_size,
            images=test.pixels,
            tolerance=tolerance,
            opset=opset,
            force=force,
            verbose=debug,
            progress=progress,
        )
        if quantize:
            calibration = run_images(trained, "train", calibration_images, data=data, progress=progress)
            quantized = quantize_file(
                trained,
                path,
                small,
                calibration=calibration.pixels,
                test=test,
                force=force,
                verbose=debug,
                progress=progress,
            )
    finally:
        progress.close()
    if as_json:
        which = trained.run_weights.to_dict()
        print_json({**_record(exported), **which, "quantized": quantized and _record(quantized)})
        return
    _show(trained.described, exported)
    if quantized is not None:
        _show_quantized(quantized)


def _check_options(
    samples: int,
    tolerance: float,
    calibration_images: int,
    quantize: bool,
    file_format: str,
    images: Path | None,
    data: str | None,
) -> None:
    if samples < 0:
        raise UserError(f"--samples must be at least 1, or 0 for all, got {samples}.")
    check_counts(calibration_images=calibration_images)
    if not 0 <= tolerance < math.inf:
        raise UserError(f"--tolerance must be a number of 0 or more, got {tolerance}.")
    if quantize and file_format != "onnx":
        raise UserError(f"--quantize is for --format onnx, got {file_format}.")
    if quantize and images is not None:
        raise UserError(
            "--quantize measures the accuracy, for which it needs the run's test images: leave --images out."
        )
    if data is not None and images is not None:
        raise UserError(f"the file is checked on {data} or on the images of --images, not on both. Leave one out.")


def _record(found: Exported | Quantized) -> dict[str, Any]:
    return {**asdict(found), "path": str(found.path)}


def _show(label: str, exported: Exported) -> None:
    say(f"{exported.path}: {label}, {exported.bytes / 1e6:.2f} MB")
    if exported.dynamic:
        least = exported.smallest_side
        any_size = "" if least is None else f", of any height and width from {least} pixels on"
        say(f"takes any number of images{any_size}")
    for note in exported.notes:
        say(note)
    sizes = ", ".join(f"{height} x {width}" for height, width in exported.sizes)
    say(
        f"logits differ from the network's by at most {exported.max_error:.2g} (the largest is "
        f"{exported.largest_logit:.3g}), at {sizes} pixels",
        f"top-1 agrees on {exported.top1_agreement:.2f}% of {counted(exported.images, 'image')}",
    )


def _show_quantized(quantized: Quantized) -> None:
    before, after = quantized.before, quantized.after
    say("", f"{quantized.path}: 8-bit integers, calibrated on {quantized.calibration_images:,} training images", "")
    print_table(
        "",
        ["", "MB", *(f"ms, batch {batch}" for batch in before.latency_ms), f"top-1 of {quantized.images:,} images"],
        [
            [name, each.bytes / 1e6, *each.latency_ms.values(), each.top1]
            for name, each in (("float32", before), ("int8", after))
        ],
    )
    if quantized.lost > _LOST:
        say(
            f"warning: quantizing cost {quantized.lost:.2f} points of top-1. More --calibration-images may help; the "
            "float32 file is unchanged.",
            error=True,
        )
