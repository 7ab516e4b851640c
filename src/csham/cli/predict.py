"""``csham predict``: the most probable classes of any number of images."""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.cells import cell_len

import csham
import csham.inference
from csham.cli.common import check_counts, check_stdin, check_trained, use_named_code
from csham.cli.options import (
    IMAGES_HELP,
    MACHINE,
    OUTPUT,
    CodeOption,
    DebugOption,
    DeviceOption,
    QuietOption,
    TrainedArgument,
    TtaOption,
    WeightsOption,
    setting_option,
)
from csham.data.decode import BadFile
from csham.errors import UserError
from csham.files import write_atomically
from csham.inference.image_files import ImageFiles
from csham.memory import retain_memory
from csham.training.config import MachineSettings
from csham.training.outputs import check_output
from csham.training.progress import BarProgress, QuietProgress, create_progress, speed
from csham.words import counted, printable, say

if TYPE_CHECKING:
    from csham.inference import Prediction

__all__ = ["csv_lines", "json_lines", "predict", "table_lines"]

_WIDEST_NAME = 40
_NOT_SURE = "not sure"
_BAD_FILES_LISTED = 1000  # and the rest counted, so that memory stays constant
_SECONDS_BETWEEN_STEPS = 0.1


def predict(
    run: TrainedArgument,
    images: Annotated[
        list[str],
        typer.Argument(help=IMAGES_HELP, show_default=False),
    ],
    *,
    top_k: Annotated[int, typer.Option(help="Classes for each image.")] = 5,
    weights: WeightsOption = None,
    tta: TtaOption = False,
    threshold: Annotated[
        float | None,
        typer.Option(
            help='Least probability, 0 to 1, of an answer; an image whose first class has less gets none: "not sure".',
            show_default="every image gets its first",
        ),
    ] = None,
    null: Annotated[
        bool, typer.Option("--null", help="Paths on standard input end with NUL, as find -print0 writes them.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Images at a time.", rich_help_panel=MACHINE)] = 64,
    device: DeviceOption = None,
    precision: Annotated[str | None, setting_option(MachineSettings, "precision", "the run's")] = None,
    code: CodeOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="An object of JSON for each image, one a line.", rich_help_panel=OUTPUT)
    ] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="A row of CSV for each image.", rich_help_panel=OUTPUT)] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Write to this file, which appears complete.", show_default="standard output", rich_help_panel=OUTPUT
        ),
    ] = None,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """The most probable classes of images; unreadable files are listed at the end and stop nothing."""
    if as_json and as_csv:
        raise UserError("predict: --json and --csv exclude each other. Give one of them.")
    check_counts(top_k=top_k, batch_size=batch_size)
    check_stdin(images)
    MachineSettings(device=device or "auto", precision=precision or "auto")  # checks them
    check_trained(run, weights)
    check_output("--output", output, runs=[run])
    use_named_code(code)
    files = ImageFiles(images, null=null)
    files.check()
    if threshold is not None:
        from csham.inference.prediction import check_threshold  # noqa: PLC0415  torch takes seconds

        check_threshold(threshold)

    progress = create_progress(quiet=quiet)
    above_bar = isinstance(progress, BarProgress) and sys.stdout.isatty()  # asked before the bar stands in for it
    try:
        progress.preparing(0, 0, f"loading {run}")
        retain_memory()
        trained = csham.load(run, weights=weights, device=device)
        progress.note(trained.described)
        results = csham.inference.predict(
            trained,
            files,
            top_k=top_k,
            batch_size=batch_size,
            precision=precision,
            tta=tta,
            threshold=threshold,
        )
        if tta:
            progress.note(f"test-time augmentation: {trained.views}")
        if as_json:
            lines = json_lines()
        else:
            lines = csv_lines(min(top_k, len(trained.classes))) if as_csv else table_lines(trained.classes)
        told = _told(results, progress, None if quiet else files.count(), threshold)
        _write(told, lines, output, progress if above_bar else None)
    finally:
        progress.close()


def _told(
    results: Iterable[Prediction | BadFile], progress: QuietProgress, total: int | None, threshold: float | None
) -> Iterator[Prediction | BadFile]:
    """Pass results through and tell of them; at the end, list what could not be read and count who is not sure.

    Raises:
        UserError: None could.
    """
    start = time.monotonic()
    progress.start(0, total or 0)
    last_step, done, bad_count, unsure = start, 0, 0, 0
    bad: list[BadFile] = []
    of_all = f" of {total:,}" if total else ""
    for done, result in enumerate(results, 1):
        yield result
        if isinstance(result, BadFile):
            bad_count += 1
            bad += [result] if len(bad) < _BAD_FILES_LISTED else []
        else:
            unsure += not result.sure
        if (now := time.monotonic()) - last_step >= _SECONDS_BETWEEN_STEPS:
            progress.step(f"{done:,}{of_all} images", done, None, done / (now - start))
            last_step = now
    progress.close()
    _list_bad(bad, bad_count, done)
    if done == bad_count:
        raise UserError("none of the images could be read." if done else "standard input named no images.")
    seconds = time.monotonic() - start
    progress.note(f"{counted(done - bad_count, 'image')} in {seconds:.1f} s, {speed(done / seconds)}")
    if threshold is not None:
        progress.note(f"not sure of {unsure:,} of them: no class has a probability of {threshold:g} or more")


def _list_bad(bad: list[BadFile], count: int, of: int) -> None:
    if bad:
        say(f"{count:,} of {counted(of, 'image')} could not be read:", error=True)
    for path, reason in bad:
        say(f"  {path}: {reason}", error=True)
    if count > len(bad):
        say(f"  and {count - len(bad):,} more", error=True)


def _write(
    results: Iterable[Prediction | BadFile], lines: Lines, output: Path | None, above: QuietProgress | None
) -> None:
    """Write each result where it belongs, as soon as it is known: to a file, above a bar on a terminal, or plainly."""
    if output is not None:
        write_atomically(output, lambda file: _each(results, lines, lambda text: file.write(_as_bytes(text))))
    elif above is not None:
        _each(results, lines, lambda text: _each_line(text, above.note))
    elif sys.stdout.isatty():
        _each(results, lines, lambda text: _each_line(text, say))
    else:
        _each(results, lines, _to_pipe)


def _each(results: Iterable[Prediction | BadFile], lines: Lines, write: Callable[[str], object]) -> None:
    head = lines.head
    for result in results:
        write(head + lines.of(result))
        head = ""


def _each_line(text: str, write: Callable[[str], object]) -> None:
    for line in text.removesuffix("\n").split("\n"):
        write(line)


def _to_pipe(text: str) -> None:
    sys.stdout.buffer.write(_as_bytes(text))
    sys.stdout.buffer.flush()


class Lines(NamedTuple):
    """A way to write answers.

    Attributes:
        head: Text before the first, with its line end; may be empty.
        of: Writes one answer, with its line end.
    """

    head: str
    of: Callable[[Prediction | BadFile], str]


def json_lines() -> Lines:
    """An object for each image, in ASCII alone: no name can break a line or be invalid."""

    def write(result: Prediction | BadFile) -> str:
        if isinstance(result, BadFile):
            return json.dumps({"path": result.path, "error": result.reason}) + "\n"
        if not result.sure:
            largest = float(_digits(result.probabilities[0]))
            return json.dumps({"path": result.path, "predictions": [], "not_sure": largest}) + "\n"
        pairs = zip(result.classes, result.probabilities, strict=True)
        answers = [{"class": name, "probability": float(_digits(value))} for name, value in pairs]
        return json.dumps({"path": result.path, "predictions": answers}) + "\n"

    return Lines("", write)


def csv_lines(top_k: int) -> Lines:
    """A row for each image: its path, ``top_k`` classes with their probabilities, and why it could not be read."""

    def write(result: Prediction | BadFile) -> str:
        if isinstance(result, BadFile):
            return _csv_row([result.path, *[""] * (2 * top_k), result.reason])
        if not result.sure:
            return _csv_row([result.path, "", _digits(result.probabilities[0]), *[""] * (2 * top_k - 2), ""])
        pairs = zip(result.classes, map(_digits, result.probabilities), strict=True)
        return _csv_row([result.path, *(cell for pair in pairs for cell in pair), ""])

    columns = [f"{what}_{rank}" for rank in range(1, top_k + 1) for what in ("class", "probability")]
    return Lines(_csv_row(["path", *columns, "error"]), write)


def table_lines(classes: Sequence[str]) -> Lines:
    """A row for each class of an image, whose path stands in its first; last, since paths may be of any length."""
    width = min(max(cell_len(printable(name)) for name in ["class", _NOT_SURE, *classes]), _WIDEST_NAME)

    def row(name: str, probability: str, path: str) -> str:
        return f"{name}{' ' * (width - cell_len(name))}  {probability:>11}  {path}".rstrip() + "\n"

    def write(result: Prediction | BadFile) -> str:
        path = printable(result.path)
        if isinstance(result, BadFile):
            return row("-", "", f"{path}: {result.reason}")
        if not result.sure:
            return row(_NOT_SURE, f"{result.probabilities[0]:.2%}", path)
        pairs = zip(result.classes, result.probabilities, strict=True)
        rows = (row(printable(name), f"{value:.2%}", "" if rank else path) for rank, (name, value) in enumerate(pairs))
        return "".join(rows)

    return Lines(row("class", "probability", "image"), write)


def _as_bytes(text: str) -> bytes:
    """Encode as UTF-8, giving back the bytes of paths that are none."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character, which no path holds, but a class name in a file may
        return text.encode("utf-8", "backslashreplace")


def _digits(value: float) -> str:
    return f"{value:.7g}"  # all that float32 has


def _csv_row(cells: Iterable[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
