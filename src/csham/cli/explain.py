"""``csham explain``: pictures of where and what a trained network attends to, and how far they can be believed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import csham
from csham.cli.common import check_trained, print_json, print_table
from csham.cli.options import (
    MACHINE,
    OUTPUT,
    DebugOption,
    DeviceOption,
    JsonOption,
    QuietOption,
    TrainedArgument,
    WeightsOption,
)
from csham.errors import UserError, unknown_name
from csham.files import write_atomically
from csham.inference.image_files import ImageFiles
from csham.report.tables import write_csv
from csham.training.progress import QuietProgress, create_progress
from csham.words import say

if TYPE_CHECKING:
    from csham.explain import Explanation, Faithfulness
    from csham.inference import Trained

__all__ = ["explain"]

_FORMATS = ("png", "svg", "pdf")
_LONGEST_STEM = 180  # bytes; file systems take names of 255, and a temporary name is longer


def explain(
    run: TrainedArgument,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            help="Image files, folders (searched to the bottom), or - for paths on standard input, one a line.",
            show_default=False,
        ),
    ] = None,
    *,
    compare: Annotated[
        Path | None, typer.Option(help="A second run, shown below the first.", show_default="none")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Class that Grad-CAM is for.", show_default="what each image is taken for")
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="Module whose output Grad-CAM looks at.", show_default="the last feature map")
    ] = None,
    top_k: Annotated[int, typer.Option(help="Predictions shown.")] = 3,
    weights: WeightsOption = None,
    samples: Annotated[
        int | None,
        typer.Option(help="Measure how faithful each map is on this many test images.", show_default="none"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Chooses the test images.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Images at a time.", rich_help_panel=MACHINE)] = 16,
    device: DeviceOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the pictures, and of the scores of --samples as CSV.",
            show_default="explanations, and scores are printed only",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    picture_format: Annotated[str, typer.Option("--format", help="png, svg or pdf.", rich_help_panel=OUTPUT)] = "png",
    npz: Annotated[
        bool, typer.Option("--npz", help="Write every map as a file of numpy's, too.", rich_help_panel=OUTPUT)
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """A picture for each image: attention of each stage, Grad-CAM, the answers; and how faithful the maps are."""
    _check_values({"--top-k": top_k, "--batch-size": batch_size, "--samples": samples}, picture_format)
    if not images and samples is None:
        raise UserError("there is nothing to explain. Name images or folders, or --samples N for a table of scores.")
    folder = output or Path("explanations")
    paths = _image_paths(images or [], folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder} is not a folder. Name another.")
    for one in filter(None, (run, compare)):
        check_trained(one, weights)
    from csham.explain import explain_together  # noqa: PLC0415  torch takes seconds

    table = None if output is None or samples is None else output / "faithfulness.csv"
    if table is not None:
        table.parent.mkdir(parents=True, exist_ok=True)
    progress = create_progress(quiet=quiet)
    try:
        progress.preparing(0, 0, f"loading {run}")
        networks = [csham.load(one, weights=weights, device=device) for one in (run, compare) if one is not None]
        for network in networks:
            progress.note(network.described)
        drawn = _Drawn(folder, picture_format, npz)
        if paths:
            together = explain_together(
                networks,
                paths,
                top=top_k,
                target=target,
                layer=layer,
                batch_size=batch_size,
                on_error=lambda image, err: drawn.unreadable.append((str(image), str(err))),
            )
            _draw_all(drawn, together, len(paths), progress, tell=not as_json)
        scores = _measure(networks, samples, layer, seed, batch_size, progress) if samples is not None else []
    finally:
        progress.close()
    if table is not None:
        write_csv(table, _score_rows(scores))
    if as_json:
        faithfulness = [{"network": one.network, "images": one.images, "maps": one.rows()} for one in scores]
        print_json(
            {
                "networks": [{"network": one.label, **one.run_weights.to_dict()} for one in networks],
                "images": drawn.images,
                "unreadable": [{"image": _printable(name), "reason": reason} for name, reason in drawn.unreadable],
                "faithfulness": faithfulness,
            }
        )
    for found in [] if as_json else scores:
        _print_scores(found)
    if table is not None and not as_json:
        say(f"scores in {table}")


@dataclass
class _Drawn:
    """The pictures that were written."""

    folder: Path
    format: str
    npz: bool
    images: list[dict[str, Any]] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    _taken: set[str] = field(default_factory=set)

    def write(self, explanations: Sequence[Explanation]) -> dict[str, Any]:
        """Draw one image's explanations, and write them and their arrays."""
        from csham.explain import draw, picture_bytes  # noqa: PLC0415  torch takes seconds

        self.folder.mkdir(parents=True, exist_ok=True)
        stem = self._stem(explanations[0].name)
        picture = self.folder / f"{stem}.{self.format}"
        content = picture_bytes(draw(explanations), self.format)
        write_atomically(picture, lambda file: file.write(content))
        arrays = []
        for number, explanation in enumerate(explanations if self.npz else (), 1):
            arrays.append(self.folder / (f"{stem}.npz" if len(explanations) == 1 else f"{stem}.{number}.npz"))
            explanation.save_npz(arrays[-1])
        found = {
            "image": _printable(explanations[0].name),
            "picture": _printable(str(picture)),
            "npz": [_printable(str(path)) for path in arrays],
            "networks": [_as_json(one) for one in explanations],
        }
        self.images.append(found)
        return found

    def _stem(self, name: str) -> str:
        """Return a name for an image's files that no other has: its own, with its folders' where that is taken."""
        path = Path(name)
        folders = [part for part in path.parts[:-1] if part not in (path.anchor, "..")]
        stems = ["-".join([*folders[len(folders) - depth :], path.stem]) for depth in range(len(folders) + 1)]
        stems += [f"{stems[-1]}-{number}" for number in range(2, len(self._taken) + 3)]
        short = (stem.encode("utf-8", "surrogateescape")[-_LONGEST_STEM:].decode("utf-8", "ignore") for stem in stems)
        # Some file systems do not tell capital letters from small ones.
        stem = next(stem for stem in short if stem.casefold() not in self._taken)
        self._taken.add(stem.casefold())
        return stem


def _draw_all(
    drawn: _Drawn, together: Iterator[tuple[Explanation, ...]], total: int, progress: QuietProgress, *, tell: bool
) -> None:
    start = time.monotonic()
    progress.start(0, total)
    noted = False
    for done, explanations in enumerate(together, 1):
        if not noted:
            for one in explanations:
                if one.no_maps is not None:
                    progress.note(f"{one.network}: {one.no_maps}; its pictures show Grad-CAM alone")
            noted = True
        found = drawn.write(explanations)
        seen = done + len(drawn.unreadable)
        progress.step(f"{seen} of {total} images", seen, None, seen / (time.monotonic() - start))
        if tell:
            for network in found["networks"]:
                answers = ", ".join(f"{one['class']} {one['probability']:.1%}" for one in network["predictions"])
                which = f"{network['network']}: " if len(found["networks"]) > 1 else ""
                say(f"{found['image']}: {which}{answers}")
    progress.close()
    if drawn.unreadable:
        say(f"{len(drawn.unreadable)} of {total} images could not be read:", error=True)
    for _, reason in drawn.unreadable:
        say(f"  {reason}", error=True)
    if not drawn.images:
        raise UserError(f"none of the {total} images could be read.")
    if tell:
        say(f"{len(drawn.images)} pictures in {drawn.folder}")


def _measure(
    networks: Sequence[Trained],
    samples: int,
    layer: str | None,
    seed: int,
    batch_size: int,
    progress: QuietProgress,
) -> list[Faithfulness]:
    from csham.explain import measure_faithfulness, sample_test_images  # noqa: PLC0415  torch takes seconds

    images = sample_test_images(networks[0], samples, seed=seed, progress=progress.preparing)
    progress.close()
    if len(images) < samples:
        progress.note(f"the test part has {len(images)} images; all of them are measured")
    start = time.monotonic()
    progress.start(0, len(images))

    def tell(done: int) -> None:
        progress.step(f"{done} of {len(images)} test images", done, None, done / (time.monotonic() - start))

    # Many small changes to one image: larger batches than those of different images, and no maps to keep.
    return measure_faithfulness(networks, images, layer=layer, batch_size=4 * batch_size, seed=seed, on_image=tell)


def _print_scores(found: Faithfulness) -> None:
    header = ["map", "deletion", "95%", "insertion", "95%", "deletion - random", "insertion - random", "verdict"]
    rows = []
    for row in found.rows():
        rows.append(
            [
                row["map"],
                row["deletion"],
                _interval(row["deletion_interval"]),
                row["insertion"],
                _interval(row["insertion_interval"]),
                _difference(row, "deletion_minus_random"),
                _difference(row, "insertion_minus_random"),
                row["verdict"],
            ]
        )
    print_table(f"{found.network}: how faithful each map is, {found.images} test images", header, rows)
    say(
        "deletion: mean probability of the given class while pixels become the mean colour, first those with the "
        "largest weights; lower is more faithful",
        "insertion: the same while pixels replace a blurred image; higher is more faithful",
        "intervals of the mean, Student t; differences are paired by image",
        "",
    )


def _score_rows(scores: Sequence[Faithfulness]) -> list[dict[str, Any]]:
    """Return all scores as rows of the same columns, an interval as two."""
    rows = []
    for found in scores:
        for row in found.rows():
            flat: dict[str, Any] = {"network": found.network, "images": found.images}
            for key, value in row.items():
                if key.endswith("_interval"):
                    name = key.removesuffix("interval")
                    flat[f"{name}low"], flat[f"{name}high"] = value or (None, None)
                else:
                    flat[key] = value
            rows.append(flat)
    columns = dict.fromkeys(key for row in rows for key in row)  # what is compared with the baselines has more
    return [{**dict.fromkeys(columns), **row} for row in rows]


def _difference(row: dict[str, Any], key: str) -> str:
    if key not in row:
        return ""
    interval = row[f"{key}_interval"]
    return f"{row[key]:+.3f}" + (f" ({interval[0]:+.3f} to {interval[1]:+.3f})" if interval else "")


def _interval(interval: tuple[float, float] | None) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else ""


def _as_json(explanation: Explanation) -> dict[str, Any]:
    return {
        "network": explanation.network,
        "predictions": [{"class": name, "probability": value} for name, value in explanation.predictions],
        "target": explanation.classes[explanation.target],
        "gradcam_layer": explanation.gradcam_layer,
        "stages": [stage.label for stage in explanation.stages.values()],
        "no_maps": explanation.no_maps,
    }


def _check_values(counts: dict[str, int | None], picture_format: str) -> None:
    for name, value in counts.items():
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}.")
    if picture_format not in _FORMATS:
        raise unknown_name("format", picture_format, _FORMATS)


def _image_paths(names: Sequence[str], output: Path) -> list[str]:
    """List the images that were named, but for the pictures that this command wrote below a folder among them."""
    files = ImageFiles(names)
    files.check()
    own = output.resolve()
    paths = [path for path in files if path in names or not Path(path).resolve().is_relative_to(own)]
    if names and not paths:
        raise UserError(f"there are no images but those in {output}, where the pictures go. Name another --output.")
    return paths


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
