"""Every setting of a run: its type, its range, where it comes from, and the YAML file it is kept in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any

import yaml

from csham.backbones.spec import CODE_FIELDS, NetworkSpec
from csham.data.names import CROP_SCALE, CROPS, LAST_BATCHES, POLICIES
from csham.errors import UserError, any_of
from csham.own_code import is_reference
from csham.settings import Auto, Help, Mark, OneOf, Settings, Within, check_choice, check_known, marked, names_of
from csham.training.course import check_course, is_continued
from csham.training.recipes import RECIPES

__all__ = [
    "BEFORE",
    "MACHINE_SETTINGS",
    "SOURCE_SETTINGS",
    "DataSettings",
    "MachineSettings",
    "TrainConfig",
    "TrainingSettings",
    "check_trackers",
    "read_settings",
    "resolve",
    "timed_precision",
]

BEFORE: dict[str, Any] = {
    "crop": "pad",
    "last_batch": "drop",
    **dict.fromkeys(CODE_FIELDS),
    "open_gates": False,
    "mixup": 0.0,
    "cutmix": 0.0,
    "augment": "none",
    "class_weights": "none",
    "patience": None,
    "continued": (),
    "trackers": ("tensorboard",),
    "optimizer": "sgd",
    "backbone_lr": None,
    "head_lr": None,
    "attention_lr": None,
    "freeze_backbone": 0,
    "layer_decay": 1.0,
    "ema": None,
    "clip_norm": None,
    "accumulate": 1,
    "graph": "auto",
    "deterministic": False,
    "recompute_norms": False,
}
"""Settings of a run or a study from before each of them existed; every setting that is added later belongs here too."""

_AT_LEAST_0 = Within(lambda v: v >= 0, "0 or more")
_BELOW_1 = Within(lambda v: 0 <= v < 1, "from 0 to below 1")
_ALPHA = Within(lambda v: v == 0 or 1e-3 <= v <= 1e3, "0, or from 0.001 to 1000")  # beyond, numpy draws NaN
_FRACTION = Within(lambda v: 0 < v <= 1, "above 0, at most 1")
_RATE_OR_NONE = Within(lambda v: v is None or v > 0, "above 0")
_OF_RECIPE = "from the recipe"

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("one-cycle", "cosine", "steps", "constant")
CLASS_WEIGHTS = ("none", "balanced")
TRACKERS = ("tensorboard", "wandb", "mlflow", "none")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class Images(Settings):
    """Images of a run."""

    data: Annotated[
        str,
        Mark.SOURCE,
        Help(
            "A dataset (csham list datasets), or images: a folder, a zip or tar of one, a CSV or TSV of paths, "
            "Parquet.",
            option=False,
        ),
    ]


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Settings):
    """Settings of a network's training."""

    panel = "Training"

    pretrained: Annotated[bool, Help("Start from the backbone's published weights.")] = False
    weights_file: Annotated[
        str | None,
        Mark.SOURCE,
        Help("Start from the backbone's weights in this local file, or zoo:NAME; goes before --pretrained."),
    ] = None
    recipe: Annotated[
        str, OneOf(tuple(RECIPES)), Mark.SOURCE, Help(f"{any_of([*RECIPES])}: gives what is not set otherwise.")
    ] = "fast"
    epochs: Annotated[
        int, Within(lambda v: v >= 1, "at least 1"), Help("Passes over the training images.", default=_OF_RECIPE)
    ] = 30
    patience: Annotated[
        int | None,
        Within(lambda v: v is None or v >= 1, "at least 1"),
        Mark.LATER,
        Help("Epochs without a better validation top-1 after which training stops.", default="none: all are trained"),
    ] = None
    continued: Annotated[
        tuple[str, ...],
        Within(is_continued, "a list of 'after 30 of 30 epochs: constant, lr 0.1'"),
        Mark.LATER,
        Help("What was added to a finished run by --resume RUN --epochs N.", option=False),
    ] = ()
    batch_size: Annotated[
        int | Auto,
        Within(lambda v: v == "auto" or v >= 2, "at least 2 (batch normalisation needs two values)"),
        Help("Images per step, over all devices.", default="the recipe's, smaller for few images"),
    ] = 128
    last_batch: Annotated[
        str,
        OneOf(LAST_BATCHES),
        Mark.LATER,
        Help(
            "Use of the images left over after the last full batch: drop leaves an epoch's out, fill makes a batch of "
            "them and of the epoch's first.",
            option=False,
        ),
    ] = "drop"
    accumulate: Annotated[
        int,
        Within(lambda v: v >= 1, "at least 1"),
        Mark.LATER,
        Help("Steps whose gradients are averaged for one update of the weights."),
    ] = 1
    optimizer: Annotated[str, OneOf(OPTIMIZERS), Mark.LATER, Help(f"{any_of(OPTIMIZERS)}.", default=_OF_RECIPE)] = "sgd"
    lr: Annotated[float, Within(lambda v: v > 0, "above 0"), Help("Highest learning rate.", default=_OF_RECIPE)] = 0.2
    backbone_lr: Annotated[
        float | None, _RATE_OR_NONE, Mark.LATER, Help("Highest rate of the backbone.", default="the recipe's, or --lr")
    ] = None
    head_lr: Annotated[
        float | None,
        _RATE_OR_NONE,
        Mark.LATER,
        Help(
            "Highest rate of the head, and of whatever else starts from new weights.", default="the recipe's, or --lr"
        ),
    ] = None
    attention_lr: Annotated[
        float | None, _RATE_OR_NONE, Mark.LATER, Help("Highest rate of the attention.", default="the recipe's, or --lr")
    ] = None
    layer_decay: Annotated[
        float,
        _FRACTION,
        Mark.LATER,
        Help("Factor on a backbone layer's rate for each layer between it and the head.", default="1: off"),
    ] = 1.0
    freeze_backbone: Annotated[
        int,
        _AT_LEAST_0,
        Mark.LATER,
        Help("First epochs in which the backbone stays as it is.", default=_OF_RECIPE),
    ] = 0
    momentum: Annotated[float, _BELOW_1, Help("Momentum of sgd, in Nesterov's form.", option=False)] = 0.9
    weight_decay: Annotated[
        float,
        _AT_LEAST_0,
        Help(
            "Weight decay, on every parameter but the gates; of adamw not on biases and norms either.",
            default=_OF_RECIPE,
        ),
    ] = 5e-4
    clip_norm: Annotated[
        float | None,
        _RATE_OR_NONE,
        Mark.LATER,
        Help("Greatest norm of an update's gradients, of all parameters together.", default="no limit"),
    ] = None
    ema: Annotated[
        float | None,
        Within(lambda v: v is None or 0 < v < 1, "between 0 and 1"),
        Mark.LATER,
        Help("Decay of an average of the weights, which is measured and kept in their place.", default="no average"),
    ] = None
    schedule: Annotated[
        str, OneOf(SCHEDULES), Help(f"Course of the learning rate: {any_of(SCHEDULES)}.", default=_OF_RECIPE)
    ] = "one-cycle"
    warmup_epochs: Annotated[
        float, _AT_LEAST_0, Help("Linear warm-up, of the schedules other than one-cycle.", default=_OF_RECIPE)
    ] = 0.0
    milestones: Annotated[
        tuple[float, ...],
        Within(lambda v: list(v) == sorted(v) and all(0 < m < 1 for m in v), "rising, between 0 and 1"),
        Help("Fractions of the run after which steps multiplies the rate by decay.", option=False),
    ] = ()
    decay: Annotated[float, _FRACTION, Help("See milestones.", option=False)] = 0.2
    label_smoothing: Annotated[float, _BELOW_1, Help("Of the training loss; the other losses are without.")] = 0.0
    class_weights: Annotated[
        str,
        OneOf(CLASS_WEIGHTS),
        Mark.LATER,
        Help(
            "Weight of an image in the training loss: balanced counts every class alike, the fewer its images the more "
            "each; none counts every image alike. The other losses are without."
        ),
    ] = "none"
    mixup: Annotated[
        float,
        _ALPHA,
        Mark.LATER,
        Help("Alpha of mixup, which blends the images of a batch in pairs, and their classes; 0 is off, 0.2 usual."),
    ] = 0.0
    cutmix: Annotated[
        float,
        _ALPHA,
        Mark.LATER,
        Help(
            "Alpha of CutMix, which pastes a box of one image of a pair into the other; 0 is off, 1 usual. With "
            "--mixup too, each batch gets one of them."
        ),
    ] = 0.0
    seed: Annotated[
        int,
        Within(lambda v: 0 <= v < 2**63, "from 0 to below 2**63"),
        Help("Of the first weights, the split, the order of images and their crops.", plural="seeds", counted=True),
    ] = 0


@dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """Settings of how images are read, cut and split."""

    panel = "Data"

    image_size: Annotated[
        int | None,
        Within(lambda v: v is None or 8 <= v <= 1024, "from 8 to 1024"),
        Help("Height and width in pixels.", default="the dataset's own"),
    ] = None
    crop: Annotated[
        str,
        OneOf(CROPS),
        Help(
            "Cut of training images: pad, a square of the image in a black border (above 64 px of the larger stored "
            "image), or resized, a box of random area and ratio, resampled.",
            default="pad up to 64 px, then resized",
        ),
    ] = "auto"
    crop_scale: Annotated[
        float, _FRACTION, Help("Least area of a resized crop, as a fraction of the stored image's.")
    ] = CROP_SCALE
    augment: Annotated[
        str,
        OneOf(POLICIES),
        Mark.LATER,
        Help(
            "Change of each training image after its crop: trivial, one random operation of random strength "
            "(TrivialAugment), rand, two of a fixed one (RandAugment), or none."
        ),
    ] = "none"
    validation: Annotated[
        float, _BELOW_1, Help("Fraction of the training images held out to choose the best checkpoint.")
    ] = 0.1
    track_test: Annotated[bool, Help("Measure the test part after every epoch too; nothing is chosen by it.")] = False
    max_bad: Annotated[int, _AT_LEAST_0, Mark.MACHINE, Help("Unreadable files to skip before giving up.")] = 10
    allow_leaks: Annotated[bool, Mark.MACHINE, Help("Train although most test images are training images.")] = False


@dataclass(frozen=True, kw_only=True)
class MachineSettings(Settings):
    """Settings of a run that decide where it works, how fast, and how often it saves."""

    panel = "Machine"

    device: Annotated[
        str,
        OneOf(("auto", "cpu", "cuda", "cuda:0", "mps"), part=lambda v: v.partition(":")[0]),
        Mark.MACHINE,
        Help("cpu, cuda, cuda:N or mps.", default="what the machine has"),
    ] = "auto"
    precision: Annotated[
        str, OneOf(PRECISIONS), Mark.MACHINE, Help(f"{any_of(PRECISIONS)}.", default="what the machine does fast")
    ] = "auto"
    compile: Annotated[bool | Auto, Mark.MACHINE, Help("Use torch.compile.", default="where it pays")] = "auto"
    graph: Annotated[
        bool | Auto, Mark.MACHINE, Help("Replay whole steps as CUDA graphs.", default="on CUDA, where it can be done")
    ] = "auto"
    deterministic: Annotated[
        bool, Mark.MACHINE, Help("Compute the same bits every time on a GPU too, which takes longer there.")
    ] = False
    recompute_norms: Annotated[
        bool, Mark.MACHINE, Help("Keep less memory: recompute the norms before attentions in the backward pass.")
    ] = False
    channels_last: Annotated[
        bool | Auto, Mark.MACHINE, Help("Keep channels innermost in memory.", default="on CPU and CUDA")
    ] = "auto"
    checkpoint_seconds: Annotated[float, _AT_LEAST_0, Mark.MACHINE, Help("Most seconds between two checkpoints.")] = (
        60.0
    )
    checkpoint_steps: Annotated[
        int | None,
        Within(lambda v: v is None or v >= 1, "at least 1"),
        Mark.MACHINE,
        Help("Most steps between two checkpoints.", default="by time alone"),
    ] = None
    trackers: Annotated[
        tuple[str, ...],
        OneOf(TRACKERS),
        Within(lambda v: "none" not in v or len(v) == 1, "none alone, or names of trackers"),
        Mark.MACHINE,
        Help(f"Where each epoch's numbers go besides metrics.csv: {any_of(TRACKERS)}; several with commas."),
    ] = ("tensorboard",)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(MachineSettings, DataSettings, TrainingSettings, NetworkSpec, Images):
    """Every setting of one run; the fields are those of the bases, from the last to the first.

    Creating it checks types and ranges; :meth:`check_names` checks the names.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        check_course(self)

    def check_names(self) -> None:
        """Refuse unknown backbones, attentions, strategies and positions, mostly without importing PyTorch.

        Also refuses to begin with new weights what is of use with trained ones only.
        """
        self.check_backbone(pretrained=self.pretrained, weights_file=self.weights_file)
        self.check_connection()
        self._check_start()

    def _check_start(self) -> None:
        if self.pretrained or self.weights_file is not None or is_reference(self.backbone):
            return  # code of the user's own may load weights itself
        where = (
            f"--pretrained takes the published weights of {self.backbone}, --weights-file FILE those of a file, such "
            "as the model.safetensors of a run without attention"
        )
        if RECIPES[self.recipe].fine_tunes:
            raise UserError(f"recipe {self.recipe} starts from trained weights: {where}. Other recipes need none.")
        if self.freeze_backbone:
            raise UserError(f"--freeze-backbone would hold random weights: {where}.")

    @property
    def images_per_step(self) -> int:
        """``batch_size``, of settings in which it has been fitted to the training part."""
        assert self.batch_size != "auto"
        return self.batch_size

    def to_yaml(self) -> str:
        """Return the settings as YAML, in the order of the fields."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def default_name(self) -> str:
        """Name a run folder after the settings that tell runs apart."""
        # Names of files have no colon on Windows.
        backbone, attention = (name.rpartition(":")[2] for name in (self.backbone, self.attention))
        parts = [Path(self.data).name or "data", backbone.replace("/", "-"), attention]
        if self.attention != "none":
            parts += [self.strategy] if self.strategy != "sequential" else []
            parts += [f"period{self.period}"] if self.period else []
            parts += [self.position] if self.position != "auto" else []
            parts += ["points"] if self.points else []
            parts += [f"stages{'+'.join(map(str, self.stages))}"] if self.stages else []
            parts += ["gated"] if self.gated else []
            parts += ["open"] if self.open_gates else []
        if self.weights_file or self.pretrained:
            parts.append(Path(self.weights_file).stem.rpartition(":")[2] if self.weights_file else "pretrained")
        parts += [self.recipe, f"{self.epochs}epochs", f"seed{self.seed}"]
        return "-".join(parts)


MACHINE_SETTINGS = marked(TrainConfig, Mark.MACHINE)
"""Settings that change where and when things happen, not what a run computes."""

SOURCE_SETTINGS = marked(TrainConfig, Mark.SOURCE)
"""Settings that say where input and other settings come from, which count themselves."""


def check_trackers(names: Iterable[str]) -> None:
    """Refuse trackers whose library is not installed.

    Raises:
        UserError: Names the packages to install.
    """
    missing = [name for name in names if name != "none" and find_spec(name) is None]
    if missing:
        raise UserError(
            f"--trackers: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed. "
            f'pip install {" ".join(missing)}, or for all trackers: pip install "csham[tracking]".'
        )


def resolve(given: Mapping[str, Any], file: Mapping[str, Any] | None = None) -> TrainConfig:
    """Put settings together: ``given`` wins over ``file``, which wins over the recipe.

    A recipe named in ``given`` wins over ``file`` as a whole, in every setting that some recipe has. What a recipe says
    of how attention is attached applies where there is attention.

    Args:
        given: Values that the command line or the caller set.
        file: Values that a configuration file set (:func:`read_settings`).
    """
    file = dict(file or {})
    name = given.get("recipe", file.get("recipe", "fast"))
    check_choice("recipe", name, RECIPES)
    attends = given.get("attention", file.get("attention", "none")) != "none"
    recipe = {"recipe": name, **_FITTED, **_of_recipe(name), **(RECIPES[name].attached if attends else {})}
    layers = (file, recipe, given) if "recipe" in given else (recipe, file, given)
    settings = {key: value for layer in layers for key, value in layer.items()}
    check_known("setting", settings, names_of(TrainConfig))
    if "data" not in settings:
        raise UserError("no data: name a dataset (such as digits) or the path of an image folder.")
    config = TrainConfig(**settings)
    if given.get("warmup_epochs") and config.schedule == "one-cycle":
        raise UserError("--warmup-epochs: one-cycle has a rise of its own. Leave it out, or give --schedule cosine.")
    return config


def timed_precision(precision: str) -> str:
    """Return the precision that is timed for a run's: fp16 and bf16 take the same time wherever there is fp16."""
    return "fp32" if precision == "fp32" else "bf16"


def _of_recipe(name: str) -> dict[str, Any]:
    """Return a recipe's value of every training setting that some recipe has."""
    own = RECIPES[name].settings
    return {
        field.name: own.get(field.name, field.default)
        for field in fields(TrainConfig)
        if any(field.name in recipe.settings for recipe in RECIPES.values())
    }


# What no recipe sets, and a run that is begun today does.
_FITTED = {"batch_size": "auto", "last_batch": "fill"}


def read_settings(path: Path) -> dict[str, Any]:
    """Read a configuration file, which anyone may have written; :func:`resolve` checks its keys and values.

    Raises:
        UserError: It is not YAML, or of a kind that needs far more memory than its length.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_LONGEST + 1)
        if len(text) > _LONGEST:
            raise ValueError(f"it is longer than {_LONGEST // 2**20} MiB")
        content = yaml.load(text.decode(), _PlainLoader)  # noqa: S506 (a safe loader)
    except (LookupError, AttributeError, TypeError) as err:  # what yaml raises there
        raise UserError(f"{path} is not a YAML file: a value is not of the kind that its tag (!!) says") from err
    except (yaml.YAMLError, ValueError, ArithmeticError) as err:
        raise UserError(f"{path} is not a YAML file: {shorten(' '.join(str(err).split()), 300)}") from err
    if not isinstance(content, dict):
        raise UserError(f"{path} should hold settings such as 'epochs: 30', one on a line.")
    return {str(key): value for key, value in content.items()}


# Of a file, in bytes: a study of a thousand networks takes a third of a megabyte. Of its values, how deep they lie.
_LONGEST, _DEEPEST = 2**22, 20


class _PlainLoader(yaml.SafeLoader):
    """Reads YAML without aliases, of which ten lines may make billions of values, without depth, and each key once."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ValueError(f"line {self.peek_event().start_mark.line + 1} has an alias (*), which is not understood")
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ValueError("it is nested too deeply")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        content = super().construct_mapping(node, deep)
        if len(content) < len(node.value):
            raise ValueError(f"a key is there twice in what begins on line {node.start_mark.line + 1}")
        return content
