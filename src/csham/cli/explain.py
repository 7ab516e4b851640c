"""``csham explain``: pictures of where and what a trained network attends to, and how far they can be believed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import csham
from csham.cli.common import (
    check_counts,
    check_seed,
    check_stdin,
    check_trained,
    print_json,
    print_table,
    use_named_code,
)
from csham.cli.options import (
    IMAGES_HELP,
    MACHINE,
    OUTPUT,
    CodeOption,
    DebugOption,
    DeviceOption,
    JsonOption,
    QuietOption,
    TrainedArgument,
    WeightsOption,
)
from csham.errors import UserError, any_of
from csham.explain.folder import FORMATS, PictureFolder
from csham.explain.methods import METHODS, OWN, check_library, find_method
from csham.report.tables import write_csv
from csham.training.outputs import check_folder
from csham.training.progress import QuietProgress, create_progress
from csham.words import counted, say

if TYPE_CHECKING:
    from csham.explain import Explanation, Faithfulness
    from csham.inference import Trained

__all__ = ["explain"]


def explain(
    run: TrainedArgument,
    images: Annotated[
        list[str] | None,
        typer.Argument(help=IMAGES_HELP, show_default=False),
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
    method: Annotated[
        str,
        typer.Option(help=f"Map of what speaks for a class: {any_of([*METHODS])}; all but the first need csham[cam]."),
    ] = OWN,
    top_k: Annotated[int, typer.Option(help="Predictions shown.")] = 3,
    weights: WeightsOption = None,
    samples: Annotated[
        int | None,
        typer.Option(help="Measure how faithful each map is on this many test images.", show_default="none"),
    ] = None,
    road: Annotated[
        bool, typer.Option("--road", help="Measure ROAD too, with --samples; seconds for each map. Needs csham[cam].")
    ] = False,
    seed: Annotated[int, typer.Option(help="Chooses the test images.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Images at a time.", rich_help_panel=MACHINE)] = 16,
    device: DeviceOption = None,
    code: CodeOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the pictures, and of the scores of --samples as CSV.",
            show_default="explanations, and scores are printed only",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    picture_format: Annotated[
        str, typer.Option("--format", help=f"{any_of(FORMATS)}.", rich_help_panel=OUTPUT)
    ] = FORMATS[0],
    npz: Annotated[
        bool, typer.Option("--npz", help="Write every map as a file of numpy's, too.", rich_help_panel=OUTPUT)
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """A picture for each image: attention of each stage, Grad-CAM, the answers; and how faithful the maps are."""
    check_counts(top_k=top_k, batch_size=batch_size, samples=samples)
    check_seed(seed)
    check_stdin(images or [])
    if not images and samples is None:
        raise UserError("there is nothing to explain. Name images or folders, or --samples N for a table of scores.")
    if not images and target is not None:
        raise UserError("--target is for pictures; scores are of the class that each image is given. Name images too.")
    _check_method(method, samples, road=road)
    folder = PictureFolder(output or Path("explanations"), picture_format, npz=npz)
    paths, runs = folder.images(images or []), [one for one in (run, compare) if one is not None]
    if output is not None or paths:
        check_folder("--output", folder.path, runs=runs, images=images or [])
    for one in runs:
        check_trained(one, weights)
    use_named_code(code)
    from csham.explain.explanation import explain_together  # noqa: PLC0415  torch takes seconds
    from csham.explain.faithfulness import score_table  # noqa: PLC0415

    table = None if output is None or samples is None else output / "faithfulness.csv"
    drawn: list[dict[str, Any]] = []
    unreadable: list[tuple[str, str]] = []
    progress = create_progress(quiet=quiet)
    try:
        progress.preparing(0, 0, f"loading {run}")
        networks = [csham.load(one, weights=weights, device=device) for one in runs]
        for network in networks:
            progress.note(network.described)
        if paths:
            together = explain_together(
                networks,
                paths,
                top=top_k,
                target=target,
                layer=layer,
                method=method,
                batch_size=batch_size,
                on_error=lambda image, err: unreadable.append((str(image), str(err))),
            )
            drawn = _draw(folder, together, len(paths), unreadable, progress, tell=not as_json)
        scores = []
        if samples is not None:
            how = {"layer": layer, "method": method, "road": road, "seed": seed}
            scores = _measure(networks, samples, batch_size, progress, how)
    finally:
        progress.close()
    if table is not None:
        table.parent.mkdir(parents=True, exist_ok=True)
        write_csv(table, score_table(scores))
    if as_json:
        print_json(
            {
                "networks": [{"network": one.label, **one.run_weights.to_dict()} for one in networks],
                "images": drawn,
                "unreadable": [{"image": _text(name), "reason": reason} for name, reason in unreadable],
                "faithfulness": [{"network": one.network, "images": one.images, "maps": one.rows()} for one in scores],
            }
        )
        return
    for faithfulness in scores:
        _print_scores(faithfulness)
    if table is not None:
        say(f"scores in {table}")


def _check_method(method: str, samples: int | None, *, road: bool) -> None:
    """Refuse what could not be computed."""
    find_method(method)
    if road:
        check_library("--road")
        if samples is None:
            raise UserError("--road is a score of test images. Give --samples N, how many of them.")


def _draw(
    folder: PictureFolder,
    together: Iterable[tuple[Explanation, ...]],
    total: int,
    unreadable: Sequence[tuple[str, str]],
    progress: QuietProgress,
    *,
    tell: bool,
) -> list[dict[str, Any]]:
    """Draw image after image, and say what came of each; at the end, list what could not be read."""
    start, drawn = time.monotonic(), []
    progress.start(0, total)
    for done, explanations in enumerate(together, 1):
        for one in explanations if done == 1 else ():
            if one.no_maps is not None:
                progress.note(f"{one.network}: {one.no_maps}; its pictures show Grad-CAM alone")
        picture, arrays = folder.write(explanations)
        seen = done + len(unreadable)
        progress.step(f"{seen} of {total} images", seen, None, seen / (time.monotonic() - start))
        drawn.append(
            {
                "image": _text(explanations[0].name),
                "picture": _text(picture),
                "npz": [_text(path) for path in arrays],
                "networks": [one.to_dict() for one in explanations],
            }
        )
        if tell:
            _tell(drawn[-1])
    progress.close()
    if unreadable:
        say(f"{len(unreadable)} of {counted(total, 'image')} could not be read:", error=True)
    for _, reason in unreadable:
        say(f"  {reason}", error=True)
    if not drawn:
        raise UserError("no image could be read.")
    if tell:
        say(f"{counted(len(drawn), 'picture')} in {folder.path}")
    return drawn


def _tell(drawn: Mapping[str, Any]) -> None:
    for network in drawn["networks"]:
        answers = ", ".join(f"{one['class']} {one['probability']:.1%}" for one in network["predictions"])
        which = f"{network['network']}: " if len(drawn["networks"]) > 1 else ""
        say(f"{drawn['image']}: {which}{answers}")


def _measure(
    networks: Sequence[Trained],
    samples: int,
    batch_size: int,
    progress: QuietProgress,
    how: Mapping[str, Any],
) -> list[Faithfulness]:
    from csham.explain import measure_faithfulness, sample_test_images  # noqa: PLC0415  torch takes seconds

    images = sample_test_images(networks[0], samples, seed=how["seed"], progress=progress.preparing)
    progress.close()
    if len(images) < samples:
        progress.note(f"the test part has {counted(len(images), 'image')}; all of them are measured")
    start = time.monotonic()
    progress.start(0, len(images))

    def tell(done: int) -> None:
        progress.step(f"{done} of {len(images)} test images", done, None, done / (time.monotonic() - start))

    # Many small changes to one image: larger batches than those of different images, and no maps to keep.
    return measure_faithfulness(networks, images, batch_size=4 * batch_size, on_image=tell, **how)


def _print_scores(found: Faithfulness) -> None:
    scores = found.maps[0].scores
    header = ["map", *(name for score in scores for name in (score, "95%")), *(f"{score} - random" for score in scores)]
    rows = []
    for row in found.rows():
        means = [cell for score in scores for cell in (row[score], _interval(row[f"{score}_interval"]))]
        rows.append([row["map"], *means, *(_difference(row, f"{score}_minus_random") for score in scores)])
        rows[-1].append(row["verdict"])
    header.append("verdict")
    print_table(f"{found.network}: how faithful each map is, {found.images} test images", header, rows)
    say(
        "deletion: mean probability of the given class while pixels become the mean colour, first those with the "
        "largest weights; lower is more faithful",
        "insertion: the same while pixels replace a blurred image; higher is more faithful",
        *(["ROAD: " + _ROAD] if "road" in scores else []),
        "intervals of the mean, Student t; differences are paired by image",
        "",
    )


_ROAD = (
    "half of how much more the last pixels of an order may be replaced by their neighbours' mean than the first, in "
    "probability of the given class, mean over four shares; higher is more faithful; no part of the verdict"
)


def _difference(row: dict[str, Any], key: str) -> str:
    if key not in row:
        return ""
    interval = row[f"{key}_interval"]
    return f"{row[key]:+.3f}" + (f" ({interval[0]:+.3f} to {interval[1]:+.3f})" if interval else "")


def _interval(interval: tuple[float, float] | None) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else ""


def _text(name: str | Path) -> str:
    """Return a path as JSON can hold it."""
    return str(name).encode("utf-8", "replace").decode()
