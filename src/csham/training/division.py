"""The images of a part, divided as a run divided them: as long as they are those that it divided."""

from __future__ import annotations

import numpy as np

from csham.data import PackedDataset
from csham.data.dataset import describe_data
from csham.data.split import TEST, VALIDATION
from csham.errors import UserError
from csham.training.checkpoints import load_checkpoint
from csham.training.config import TrainConfig
from csham.training.run_folder import RunFolder

__all__ = ["rows_of_part"]


def rows_of_part(dataset: PackedDataset, folder: RunFolder, config: TrainConfig, part: str) -> np.ndarray:
    """Return the rows of a part.

    A part that the source does not give is drawn; of other images than the run's, another draw would take some that
    it was trained on.

    Args:
        dataset: The images.
        folder: The run.
        config: Its settings.
        part: ``"test"``, ``"validation"`` or ``"train"``.

    Raises:
        UserError: The part is drawn and the images are others, or it has none.
    """
    drawn = {
        "test": not (dataset.parts == TEST).any(),
        "validation": config.validation > 0 and not (dataset.parts == VALIDATION).any(),
    }
    drawn["train"] = any(drawn.values())
    if drawn[part] and _fingerprint(folder) not in (None, describe_data(dataset)["fingerprint"]):
        raise UserError(
            f"{dataset.source} gives no {part} part, and its images are not those that {folder.path} drew one from: "
            "drawn anew, it would hold images of another part. Put them back as they were, or give a test part: "
            "train/<class>/* and test/<class>/*."
        )
    rows: np.ndarray = getattr(dataset.split(config.seed, config.validation), part)
    if not len(rows):
        raise UserError(f"the {part} part of {dataset.source} has no images.")
    return rows


def _fingerprint(folder: RunFolder) -> str | None:
    """Fingerprint of a run's images; None if a run of before its summary said so has no checkpoint any more."""
    if folder.finished and (known := folder.read_json("summary.json").get("data_fingerprint")) is not None:
        return str(known)
    for path in (folder.last, folder.best):
        try:
            return str(load_checkpoint(path, ("data",))["data"]["fingerprint"])
        except UserError:
            continue  # the weights may be read from elsewhere
    return None
