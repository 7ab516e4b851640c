"""What is said of images before anything is trained with them, and what is refused."""

from __future__ import annotations

from csham.data.dataset import PackedDataset
from csham.data.duplicates import check_leaks
from csham.data.split import Split
from csham.errors import UserError

__all__ = ["check_images"]

_NAMED = 3


def check_images(dataset: PackedDataset, parts: Split, *, allow_leaks: bool = False) -> list[str]:
    """Say what was left out of a dataset, and which images a run would be measured on that it is trained with.

    Args:
        dataset: The images.
        parts: As the run splits them.
        allow_leaks: True if most test images may be training images.

    Returns:
        Sentences for the user.

    Raises:
        UserError: There is no test image, or most are training images.
    """
    if not len(parts.test):
        raise UserError(
            f"no class of {dataset.source} has two images, so that there is none to test with. Add images, or give "
            "a test part: train/<class>/* and test/<class>/*."
        )
    return [*dataset.notes, *_left_out(dataset), *check_leaks(dataset, parts, allow=allow_leaks)]


def _left_out(dataset: PackedDataset) -> list[str]:
    bad = dataset.bad_files
    if not bad:
        return []
    files = "1 file could not be read and is" if len(bad) == 1 else f"{len(bad):,} files could not be read and are"
    named = "; ".join(f"{file.path}: {file.reason}" for file in bad[:_NAMED])
    return [f"{files} left out: {named}{'; ... (csham prepare names more)' if len(bad) > _NAMED else ''}"]
