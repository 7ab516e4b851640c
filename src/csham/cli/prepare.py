"""``csham prepare``: read or download a dataset, check it, pack it, and say what was found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

import csham.data
from csham.cli.common import print_json
from csham.cli.options import DATA_HELP, DebugOption, JsonOption, QuietOption, takes_settings
from csham.training.config import DataSettings
from csham.training.progress import create_progress
from csham.words import counted, say

__all__ = ["prepare"]

_BAD_FILES_SHOWN = 10
_SAME_SHOWN = 3


@takes_settings(DataSettings, only=("image_size", "max_bad"))
def prepare(
    data: Annotated[str, typer.Argument(help=DATA_HELP)],
    *,
    settings: dict[str, Any],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Download or read a dataset, check it and pack it."""
    progress = create_progress(quiet=quiet)
    try:
        dataset = csham.data.prepare(data, thorough=True, **settings, progress=progress.preparing)
    finally:
        progress.close()
    found = dataset.describe()
    if as_json:
        print_json(found)
        return
    parts = ", ".join(f"{count:,} {part}" for part, count in found["parts"].items() if count)
    size = f"{dataset.image_size}x{dataset.image_size}"
    say(f"{dataset.name}: {len(dataset.labels):,} images of {size} pixels in {len(dataset.classes)} classes")
    say(f"  parts    {parts}; test part: {found['test_part']}")
    counts = found["images_per_class"].values()
    say(f"  classes  {min(counts):,} to {max(counts):,} images each")
    for line in _duplicate_lines(found):
        say(f"  same     {line}")
    for note in found["notes"]:
        say(f"  note     {note}")
    if dataset.ignored_files:
        say(f"  ignored  {counted(dataset.ignored_files, 'file')} without an image's ending")
    for bad in dataset.bad_files[:_BAD_FILES_SHOWN]:
        say(f"  bad      {bad.path}: {bad.reason}")
    if len(dataset.bad_files) > _BAD_FILES_SHOWN:
        say(f"  bad      and {len(dataset.bad_files) - _BAD_FILES_SHOWN} more (--json lists all)")
    say(f"  packed   {dataset.path} ({found['bytes'] / 2**20:.1f} MiB)")


def _duplicate_lines(found: dict[str, Any]) -> Iterator[str]:
    """Say which images are there more than once."""
    same = found["duplicates"]
    kinds = {
        "test_and_training": "in the test and the training part",
        "test_and_validation": "in the test and the validation part",
        "validation_and_training": "in the validation and the training part",
        "under_two_classes": "under two classes",
    }
    for kind, where in kinds.items():
        if same[kind]:
            named = [" = ".join(names) for names in same[kind][:_SAME_SHOWN]]
            more = f"; and {len(same[kind]) - _SAME_SHOWN:,} more (--json lists all)" * (len(same[kind]) > _SAME_SHOWN)
            yield f"{counted(len(same[kind]), 'image')} {where}: {'; '.join(named)}{more}"
    if same["repeated"]:
        drawn = "; by the seed, one may train and the other test" if not found["parts"]["test"] else ""
        are = "is the copy" if same["repeated"] == 1 else "are copies"
        yield f"{same['repeated']:,} of all {found['images']:,} {are} of another{drawn}"
