"""Images to begin with: of the test part that the runs have in common, or those that lie in a shared folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from csham.app.sentences import in_markdown
from csham.data.dataset import PackedDataset
from csham.data.decode import decode
from csham.data.packing import open_packed
from csham.data.sources.folder import image_files
from csham.data.split import generator
from csham.errors import UserError, any_of
from csham.explain.picture import enlarged
from csham.inference import Trained
from csham.inference.shared import is_shared
from csham.training.division import rows_of_part
from csham.training.run_folder import RunFolder

__all__ = ["FOLDER", "Example", "Examples", "find_examples"]

FOLDER = "examples"
"""Folder of a shared folder whose pictures are shown."""

_SIDE = 320
_SALT = 0xE6
_MOST = 6
_MOST_TRIED = 100


@dataclass(frozen=True, eq=False)
class Example:
    """One image.

    Attributes:
        image: What the networks are given: a file, or pixels of the packed dataset.
        picture: The same to look at, (P, P, 3) uint8.
        name: Name of its file or place.
        answer: Class that it is of; None if that is not known.
    """

    image: Path | np.ndarray
    picture: np.ndarray
    name: str
    answer: str | None = None


@dataclass(frozen=True, eq=False)
class Examples:
    """A few images, and a sentence on where they are from; or why there are none.

    Attributes:
        images: In the order in which they are shown.
        note: In Markdown.
    """

    images: Sequence[Example]
    note: str


def find_examples(networks: Sequence[Trained], names: Sequence[str]) -> Examples:
    """Find images that none of these networks was trained on, of as many classes as there are.

    What has to be downloaded or packed first is left alone.

    Args:
        networks: At least one.
        names: What they are called.
    """
    parts = _test_parts(networks)
    there = [part for part in parts if isinstance(part, _TestPart)]
    if there:
        return _of_tests(max(there, key=lambda part: part.dataset.image_size), parts, networks, names)
    for network, name in zip(networks, names, strict=True):
        if network.path is not None and (images := _shared_pictures(network.path)):
            return Examples(images, f"Pictures that came with {in_markdown(name)}.")
    return Examples([], f"No examples: {parts[0]} Drop an image of your own, or paste one.")


@dataclass(frozen=True, eq=False)
class _TestPart:
    """The test part of a run.

    Attributes:
        dataset: The run's.
        rows: Of the test images, sorted.
    """

    dataset: PackedDataset
    rows: np.ndarray


def _test_parts(networks: Sequence[Trained]) -> list[_TestPart | str]:
    """Find the test part of each network, or say why there is none."""
    opened: dict[tuple[str, int], PackedDataset | str] = {}
    return [_test_part(network, opened) for network in networks]


def _test_part(network: Trained, opened: dict[tuple[str, int], PackedDataset | str]) -> _TestPart | str:
    if network.path is None:
        return "a module does not say which images it was trained on."
    run = RunFolder(network.path)
    if is_shared(network.path):
        return f"a shared folder has no images but those in its folder `{FOLDER}`, and there are none."
    if not run.config_file.is_file():
        return "a file of weights does not say which images it was trained on; the run folder does."
    config = run.read_config()
    key = config.data, network.info.image_size
    if key not in opened:
        opened[key] = _dataset(*key)
    dataset = opened[key]
    if isinstance(dataset, str):
        return dataset
    try:
        return _TestPart(dataset, rows_of_part(dataset, run, config, "test"))
    except UserError:  # whose words say where the images lie
        return f"{in_markdown(dataset.name)} has no test part, or no longer the images that this was trained on."


def _dataset(data: str, image_size: int) -> PackedDataset | str:
    # Whoever reads this may be elsewhere, behind a proxy: the folder's name, not its path.
    name = in_markdown(Path(data).name)
    try:
        dataset = open_packed(data, image_size=image_size)
    except (UserError, OSError):
        return f"the images that this was trained on, {name}, are not where they were."
    if dataset is None:
        return (
            f"the images that this was trained on, {name}, are not packed on this machine, or have changed since. "
            f"`csham prepare` packs them, with `--image-size {image_size}`."
        )
    return dataset


def _of_tests(
    first: _TestPart, parts: Sequence[_TestPart | str], networks: Sequence[Trained], names: Sequence[str]
) -> Examples:
    """Choose test images of one dataset, if there are some those of all that learnt from it."""
    dataset = first.dataset
    same = [part for part in parts if isinstance(part, _TestPart) and part.dataset.source == dataset.source]
    others = [name for name, part in zip(names, parts, strict=True) if part not in same]
    common = [row for row in first.rows.tolist() if all(row in part.rows for part in same)]
    known = set(dataset.classes).intersection(*(network.classes for network in networks))
    rows = _different(dataset, common or first.rows.tolist(), known)
    note = f"Images of the test part of {in_markdown(dataset.name)}"
    if not common:
        note += "; no image is in the test part of all runs, so some of them may have been trained on these"
    elif others:
        note += f"; what {any_of([*map(in_markdown, others)], 'and')} learnt from are others, or not known"
    else:
        note += f", on which {'this network was not' if len(networks) == 1 else 'no network here was'} trained"
    return Examples([_example(dataset, row) for row in rows], f"{note}.")


def _different(dataset: PackedDataset, rows: Sequence[int], known: set[str]) -> list[int]:
    """Draw rows: one of each class, then a second, first of the classes that all networks know."""
    drawn = generator(0, _SALT).permutation(rows).tolist()
    seen: dict[int, int] = {}
    order = []
    for place, row in enumerate(drawn):
        label = int(dataset.labels[row])
        seen[label] = seen.get(label, -1) + 1
        order.append((dataset.classes[label] not in known, seen[label], place, row))
    return [row for *_, row in sorted(order)[:_MOST]]


def _example(dataset: PackedDataset, row: int) -> Example:
    answer, name = dataset.classes[dataset.labels[row]], dataset.name_of(row)
    pixels = np.array(dataset.images[row])
    file = Path(dataset.source, dataset.files[row]) if dataset.files is not None else None
    if file is not None and file.is_file():
        with suppress(Exception):  # whatever Pillow's plugins raise: the pixels are there
            return Example(file, decode(file, _SIDE)[0], name, answer)
    return Example(pixels, enlarged(pixels, _SIDE), name, answer)


def _shared_pictures(folder: Path) -> list[Example]:
    """Read what pictures a shared folder has, none from outside of it."""
    place, home = folder / FOLDER, folder.resolve()
    if not is_shared(folder) or not place.is_dir():
        return []
    files = map(Path, islice(image_files(str(place)), _MOST_TRIED))
    return list(islice(_readable(file for file in files if file.resolve().is_relative_to(home)), _MOST))


def _readable(files: Iterable[Path]) -> Iterator[Example]:
    for file in files:
        with suppress(Exception):  # whatever Pillow's plugins raise
            yield Example(file, decode(file, _SIDE)[0], file.name)
