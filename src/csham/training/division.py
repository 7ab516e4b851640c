"""The images of a part, divided as a run divided them: as long as they are those that it divided."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np

from csham.data import PackedDataset
from csham.data.dataset import describe_data
from csham.data.duplicates import MOST, also_among
from csham.data.packing import open_packed
from csham.data.split import TEST, VALIDATION
from csham.errors import UserError
from csham.training.checkpoints import load_checkpoint
from csham.training.config import TrainConfig
from csham.training.run_folder import RunFolder
from csham.words import counted

__all__ = ["drawn_parts", "rows_of_part", "words_on_all"]


def drawn_parts(dataset: PackedDataset, config: TrainConfig) -> list[str]:
    """Name the parts that a run draws by its seed, since its images do not give them."""
    test = [] if (dataset.parts == TEST).any() else ["test"]
    return test + (["validation"] if config.validation > 0 and not (dataset.parts == VALIDATION).any() else [])


def rows_of_part(dataset: PackedDataset, folder: RunFolder, config: TrainConfig, part: str) -> np.ndarray:
    """Return the rows of a part.

    A part that the source does not give is drawn; of other images than the run's, another draw would take some that
    it was trained on. So may a part that is given by now, of images that the run divided itself.

    Args:
        dataset: The images.
        folder: The run.
        config: Its settings.
        part: ``"test"``, ``"validation"`` or ``"train"``.

    Raises:
        UserError: The images are others and the part is drawn, or most of it are images that the run was trained on or
            may be; or it has none.
    """
    dataset, is_other = _as_divided(dataset, folder)
    if is_other:
        _check_drawn(dataset, folder, config, part)
    rows: np.ndarray = getattr(dataset.split(config.seed, config.validation), part)
    if not len(rows):
        raise UserError(f"the {part} part of {dataset.source} has no images.")
    if is_other and part != "train":
        _check_trained_on(dataset, rows, folder, config, part)
    return rows


def words_on_all(dataset: PackedDataset, folder: RunFolder, config: TrainConfig) -> str:
    """Say how many of all images a run was trained on or chosen by, as far as it knows; empty if none."""
    dataset, is_other = _as_divided(dataset, folder)
    is_other = is_other or (dataset.source != config.data and _fingerprint(folder) is None)
    images = f"of these {counted(len(dataset), 'image')}"
    if not is_other:
        parts = dataset.split(config.seed, config.validation)
        trained, validated = len(parts.train), len(parts.validation)
    elif own := None if dataset.source == config.data else _own_images(folder, config, dataset.image_size):
        rows, parts = np.arange(len(dataset)), own.split(config.seed, config.validation)
        trained, validated = (len(also_among(dataset, rows, own, part)) for part in (parts.train, parts.validation))
    else:
        return f"{folder.path} may have been trained on some {images}"
    if not trained + validated:
        return ""
    return f"{folder.path} was trained on {trained:,} {images}" + (f", validated on {validated:,}" if validated else "")


def _as_divided(dataset: PackedDataset, folder: RunFolder) -> tuple[PackedDataset, bool]:
    """Return images with the parts that a run saw given, and True if they are other images than the run's."""
    known = _fingerprint(folder)
    if known in (None, _content(dataset)):
        return dataset, False
    undivided = replace(dataset, parts=np.zeros_like(dataset.parts))
    if known == _content(undivided):  # what says the parts was added, or is read, since
        return undivided, False
    return dataset, True


def _check_drawn(dataset: PackedDataset, folder: RunFolder, config: TrainConfig, part: str) -> None:
    """Refuse to draw a part of other images than the run's."""
    drawn = drawn_parts(dataset, config)
    if part not in drawn and not (part == "train" and drawn):
        return
    if dataset.source == config.data:
        raise UserError(
            f"{dataset.source} gives no {part} part, and its images are not those that {folder.path} drew one from: "
            "drawn anew, it would hold images of another part. Put them back as they were, or give a test part of "
            "images that it was not trained on: test/<class>/* beside train/<class>/*."
        )
    raise UserError(
        f"{dataset.source} gives no {part} part, such as {part}/<class>/*, and {folder.path} drew its own from other "
        "images."
    )


def _check_trained_on(
    dataset: PackedDataset, rows: np.ndarray, folder: RunFolder, config: TrainConfig, part: str
) -> None:
    """Refuse to measure a run on what it was trained on, as far as that is known; warn where a few images are it."""
    own = None if dataset.source == config.data else _own_images(folder, config, dataset.image_size)
    if own is not None:
        trained = also_among(dataset, rows, own, own.split(config.seed, config.validation).train)
        if not len(trained):
            return
        found = f"{folder.path} was trained on {len(trained):,} of the {len(rows):,} {part} images of {dataset.source}"
        named = f"such as {dataset.path_of(int(trained[0]))}"
        if len(trained) > MOST * len(rows):
            raise UserError(f"{found}, {named}. Give a {part} part of other images.")
        warnings.warn(f"{found}, {named}", stacklevel=4)
        return
    drew = _summary(folder).get("drawn_parts")
    if drew is not None and part not in drew:
        return
    if drew is not None and dataset.source == config.data:
        raise UserError(
            f"{dataset.source} gives a {part} part that it did not give when {folder.path} drew one from it: it may "
            "hold images that the run was trained on. Put the images back as they were, or name others."
        )
    warnings.warn(
        f"{dataset.source} is not what {folder.path} was trained on, which is not here to compare with: the "
        f"{part} part may hold images that it was trained on",
        stacklevel=4,
    )


def _own_images(folder: RunFolder, config: TrainConfig, image_size: int) -> PackedDataset | None:
    """Open the images that a run was trained on; None if they are not packed here, or not what they were."""
    try:
        own = open_packed(config.data, image_size=image_size)
    except (UserError, OSError):
        return None
    return own if own is not None and _content(own) == _fingerprint(folder) else None


def _content(dataset: PackedDataset) -> str:
    return str(describe_data(dataset)["fingerprint"])


def _summary(folder: RunFolder) -> dict[str, Any]:
    return folder.read_json("summary.json") if folder.finished else {}


def _fingerprint(folder: RunFolder) -> str | None:
    """Fingerprint of a run's images; None if a run of before its summary said so has no checkpoint any more."""
    if (known := _summary(folder).get("data_fingerprint")) is not None:
        return str(known)
    for path in (folder.last, folder.best):
        try:
            return str(load_checkpoint(path, ("data",))["data"]["fingerprint"])
        except UserError:
            continue  # the weights may be read from elsewhere
    return None
