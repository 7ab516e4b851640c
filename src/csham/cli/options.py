"""The options of a run that more than one command has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from csham.cli.common import MACHINE, split_list, split_numbers
from csham.data.names import CROP_SCALE

__all__ = [
    "AllowLeaksOption",
    "BatchSizeOption",
    "ChannelsLastOption",
    "CheckpointSecondsOption",
    "CheckpointStepsOption",
    "CompileOption",
    "CropOption",
    "CropScaleOption",
    "EpochsOption",
    "GatedOption",
    "ImageSizeOption",
    "LabelSmoothingOption",
    "LrOption",
    "MaxBadOption",
    "PeriodOption",
    "PointsOption",
    "PositionOption",
    "PrecisionOption",
    "PretrainedOption",
    "RecipeOption",
    "StagesOption",
    "TrackTestOption",
    "ValidationOption",
    "WeightDecayOption",
    "WeightsFileOption",
    "option",
    "split_places",
]

NETWORK, TRAINING, DATA, RUN = "Network", "Training", "Data", "Run"
DATA_HELP = "A dataset (csham list datasets), or images: a folder, a zip or tar of one, a CSV or TSV of paths, Parquet"
_RECIPE = "from the recipe"


def option(help: str, panel: str, default: str, *names: str) -> Any:
    """Describe an option; ``default`` is what help shows, where the default itself is None."""
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=default)


def split_places(given: Mapping[str, Any]) -> dict[str, Any]:
    """Take apart those of the options that are lists of places in a network, where they were given."""
    found = dict(given)
    if found.get("points") is not None:
        found["points"] = tuple(split_list(found["points"]))
    if found.get("stages") is not None:
        found["stages"] = tuple(split_numbers("--stages", found["stages"]))
    return found


def _switch(help: str, panel: str, default: str, name: str) -> Any:
    return option(help, panel, default, f"--{name}/--no-{name}")


PeriodOption = Annotated[int | None, option("Of transfer: points to each channel step.", NETWORK, "2")]
PositionOption = Annotated[str | None, option("csham list positions.", NETWORK, "auto")]
PointsOption = Annotated[
    str | None, option("Instead of a position: modules' names or patterns, with commas.", NETWORK, "none")
]
StagesOption = Annotated[str | None, option("Only these stages: 0,1,... or from the last: -1.", NETWORK, "all")]
GatedOption = Annotated[bool | None, _switch("Start attention as the identity.", NETWORK, "no-gated", "gated")]
PretrainedOption = Annotated[
    bool | None, _switch("Start from published weights.", NETWORK, "no-pretrained", "pretrained")
]
WeightsFileOption = Annotated[
    str | None, option("Start from the backbone's weights in this local file.", NETWORK, "none")
]
RecipeOption = Annotated[str | None, option("quick, fast or paper.", TRAINING, "fast")]
EpochsOption = Annotated[int | None, option("Passes over the training images.", TRAINING, _RECIPE)]
BatchSizeOption = Annotated[
    int | None,
    option("Images per step, over all devices.", TRAINING, "the recipe's, smaller for few images"),
]
LrOption = Annotated[float | None, option("Highest learning rate.", TRAINING, _RECIPE)]
WeightDecayOption = Annotated[float | None, option("Weight decay.", TRAINING, _RECIPE)]
LabelSmoothingOption = Annotated[float | None, option("Of the training loss.", TRAINING, "0")]
TrackTestOption = Annotated[
    bool | None,
    _switch(
        "Measure the test part after every epoch; nothing is chosen by it.", TRAINING, "no-track-test", "track-test"
    ),
]
ImageSizeOption = Annotated[int | None, option("Height and width in pixels.", DATA, "the dataset's own")]
CropOption = Annotated[
    str | None, option("pad (a shifted square) or resized (a random box).", DATA, "pad up to 64 px, then resized")
]
CropScaleOption = Annotated[float | None, option("Least area of a resized crop, above 0 to 1.", DATA, str(CROP_SCALE))]
ValidationOption = Annotated[float | None, option("Fraction of the training images held out.", DATA, "0.1")]
MaxBadOption = Annotated[int | None, option("Unreadable files to skip before giving up.", DATA, "10")]
AllowLeaksOption = Annotated[
    bool | None,
    _switch("Train although most test images are training images.", DATA, "no-allow-leaks", "allow-leaks"),
]
CheckpointSecondsOption = Annotated[float | None, option("Most seconds between two checkpoints.", RUN, "60")]
CheckpointStepsOption = Annotated[int | None, option("Most steps between two checkpoints.", RUN, "by time alone")]
PrecisionOption = Annotated[str | None, option("auto, fp32, bf16 or fp16.", MACHINE, "what the machine does fast")]
CompileOption = Annotated[bool | None, _switch("Use torch.compile.", MACHINE, "where it pays", "compile")]
ChannelsLastOption = Annotated[
    bool | None, _switch("Channels innermost in memory.", MACHINE, "on CPU and CUDA", "channels-last")
]
