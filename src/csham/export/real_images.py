"""Real images to ask an exported file about: those of the run's own dataset, or files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from csham.data import PackedDataset, prepare
from csham.data.decode import image_suffixes
from csham.data.sources import check_there
from csham.data.split import generator
from csham.errors import UserError
from csham.inference import Trained
from csham.inference.transform import ImageLike
from csham.training.division import rows_of_part
from csham.training.progress import QuietProgress
from csham.training.run_folder import RunFolder

__all__ = ["LabelledImages", "as_pixels", "folder_images", "run_images"]

_CHOICE_SALT = 0xE4B0
_OTHERS = "Other images to check an exported file on: images=[...] (--images FOLDER)."


class LabelledImages(NamedTuple):
    """Images as the network sees them.

    Attributes:
        pixels: (n, S, S, 3) uint8, RGB.
        labels: Class numbers, (n,) int64.
    """

    pixels: np.ndarray
    labels: np.ndarray


def run_images(
    trained: Trained,
    part: str = "test",
    count: int | None = None,
    *,
    data: str | None = None,
    progress: QuietProgress | None = None,
) -> LabelledImages:
    """Return images of the dataset that a network was trained on, the same ones every time.

    Args:
        trained: Loaded from a run folder, or from a file in one.
        part: ``"test"``, ``"validation"`` or ``"train"``; divided as the run divided them.
        count: Number of images; None or more than there are for all.
        data: The dataset, if it is not where the run says; its classes must be the same.
        progress: Told about the reading of the dataset.

    Raises:
        UserError: There is no run, its dataset cannot be read or has other classes, or the part is empty.
    """
    progress = progress or QuietProgress()
    folder = _folder(trained)
    config = folder.read_config()
    if data is None:
        check_there(config.data, str(folder.path), f"Put them back, or link them there. {_OTHERS}")
    dataset = prepare(
        data or config.data, image_size=trained.info.image_size, max_bad=config.max_bad, progress=progress.preparing
    )
    if set(dataset.classes) != set(trained.classes):
        raise UserError(f"the classes of {dataset.source} are not the {len(trained.classes)} of the network.")
    try:
        rows = rows_of_part(dataset, folder, config, part)
    except UserError as err:
        raise UserError(f"{err} {_OTHERS}") from err
    if count is not None:
        rows = np.sort(generator(config.seed, _CHOICE_SALT).permutation(rows)[:count])
    order = np.array([trained.classes.index(name) for name in dataset.classes])
    return LabelledImages(_centres(dataset, rows), order[dataset.labels[rows]])


def folder_images(trained: Trained, folder: Path, count: int | None = None) -> np.ndarray:
    """Return the images of a folder and those below it as the network sees them, (n, S, S, 3) uint8.

    Args:
        trained: Trained network whose preprocessing is applied.
        folder: Files that are images by their names are tried in the order of their paths; others are left out.
        count: Number of images; None for all.

    Raises:
        UserError: There is no folder, or no image in it that can be read.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder of images {folder}.")
    images: list[np.ndarray] = []
    for path in sorted(folder.rglob("*")):
        if len(images) == count:
            break
        if path.suffix.lower() in image_suffixes() and path.is_file():
            try:
                images.append(trained.transform.pixels(path))
            except UserError:
                continue  # unreadable files are no reason to check on nothing
    if not images:
        raise UserError(f"{folder} has no image that can be read.")
    return np.stack(images)


def as_pixels(trained: Trained, images: Iterable[ImageLike] | np.ndarray) -> np.ndarray:
    """Return images as the network sees them, (n, S, S, 3) uint8; an array of that shape as it is.

    Raises:
        UserError: One cannot be read, or there are none.
    """
    S = trained.info.image_size
    if isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape[1:] == (S, S, 3):
        pixels = images
    else:
        pixels = np.array([trained.transform.pixels(image) for image in images])
    if not len(pixels):
        raise UserError("there are no images to check the exported file on.")
    return pixels


def _folder(trained: Trained) -> RunFolder:
    path = trained.path
    folder = None if path is None else RunFolder(path if path.is_dir() else path.parent)
    if folder is None or not folder.config_file.is_file():
        raise UserError(
            f"{trained.origin} belongs to no run folder, so the images of its dataset cannot be found. {_OTHERS}"
        )
    return folder


def _centres(dataset: PackedDataset, rows: np.ndarray) -> np.ndarray:
    S = dataset.image_size
    edge = (dataset.images.shape[1] - S) // 2
    return np.ascontiguousarray(dataset.images[rows, edge : edge + S, edge : edge + S])
