"""The model card: what a network is, what was measured of it, and what that does not say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from csham._named import Named
from csham._version import __version__
from csham.backbones.lookup import find_backbone
from csham.data.dataset import stored_side
from csham.errors import UserError
from csham.layers.names import ATTENTIONS
from csham.own_code import NO_PAPER, Code
from csham.training.config import TrainConfig
from csham.training.metrics import in_tables
from csham.training.run_folder import RunFolder
from csham.words import counted, path_word

__all__ = ["PAPER", "SOFTWARE", "model_card"]

# As CITATION.cff has them.
PAPER = """@inproceedings{pan2022csham,
  title     = {A Channel-Spatial Hybrid Attention Mechanism using Channel Weight Transfer Strategy},
  author    = {Pan, Jie and Hu, Haigen and Liu, Aizhu and Zhou, Qianwei and Guan, Qiu},
  booktitle = {2022 26th International Conference on Pattern Recognition (ICPR)},
  year      = {2022},
  doi       = {10.1109/ICPR56361.2022.9956146},
}"""

SOFTWARE = f"""@software{{csham,
  title   = {{csham: channel-spatial hybrid attention for convolutional networks}},
  author  = {{{{The csham developers}}}},
  version = {{{__version__}}},
  year    = {{2026}},
}}"""

# Datasets that csham knows by name: what the Hub calls them, and people.
_DATASETS = {
    "cifar10": ("uoft-cs/cifar10", "CIFAR-10"),
    "cifar100": ("uoft-cs/cifar100", "CIFAR-100"),
    "caltech101": ("caltech101", "Caltech-101"),
    "digits": ("digits", "scikit-learn's handwritten digits"),
}


def model_card(run: RunFolder, *, weights: str, license: str, repo: str | None = None) -> str:
    """Return the text of README.md: the header that the Hub reads, and the page.

    Args:
        run: A finished run.
        weights: ``"best"`` or ``"last"``: whose numbers it has.
        license: Of the weights, as the Hub names it.
        repo: ``user/name`` on the Hub, for the example.

    Raises:
        UserError: The run is not finished, or what it measured cannot be read.
    """
    config = run.read_config()
    summary, environment = _summary(run), run.read_json("environment.json")
    measured = summary if weights == "last" else summary.get("validation_chosen")
    wanted = {"top1", "f1", "images"}
    if not isinstance(measured, dict) or not wanted <= set(measured):
        raise UserError(f"{run.summary_file} lacks the numbers of the {weights} weights. Train the run again.")
    if not isinstance(summary.get("classes"), int):
        raise UserError(f"{run.summary_file} is not that of a run: it does not say how many classes there are.")
    if not isinstance(environment.get("versions"), dict):
        raise UserError(f"{run.path / 'environment.json'} is not that of a run: it names no versions.")
    parts = [
        _header(config, measured, license),
        f"# {_text(config.label)}, trained on {_text(_data_name(config))}",
        _introduction(config, summary, environment, license),
        "## Use\n\n" + _use(config, repo),
        "## Measured\n\n" + _measured(config, summary, measured, weights),
        "## What the numbers do not say\n\n" + _limits(config, summary, measured),
        "## Training\n\n" + _training(config, summary, environment),
        "## Citation\n\n" + _citation(config),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(run: RunFolder) -> dict[str, Any]:
    if not run.finished:
        raise UserError(
            f"{run.path} has not finished: nothing was measured on its test images yet, which is what a model card "
            f"says. csham train --resume {path_word(run.path)} goes on with it."
        )
    return run.read_summary()


def _header(config: TrainConfig, measured: Mapping[str, Any], license: str) -> str:
    try:
        from huggingface_hub import EvalResult, ModelCardData  # noqa: PLC0415  optional
    except ImportError as err:
        raise UserError('a model card needs huggingface_hub. Install it: pip install "csham[share]".') from err
    kind, name = _DATASETS.get(config.data, ("imagefolder", _data_name(config)))
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="Image classification",
            dataset_type=kind,
            dataset_name=name,
            dataset_split="test",
            metric_type=metric.hub,
            metric_name=metric.with_unit(metric.label),
            metric_value=measured[metric.name],
        )
        for metric in in_tables()
        if metric.hub and metric.name in measured
    ]
    data = ModelCardData(
        license=license,
        library_name="csham",
        pipeline_tag="image-classification",
        tags=["image-classification", "csham", "attention", "pytorch"],
        datasets=[kind] if "/" in kind else None,
        metrics=list(dict.fromkeys(metric.hub for metric in in_tables() if metric.hub)),
        model_name=config.label,
        eval_results=results,
    )
    return f"---\n{data.to_yaml().rstrip()}\n---"


def _introduction(
    config: TrainConfig,
    summary: Mapping[str, Any],
    environment: Mapping[str, Any],
    license: str,
) -> str:
    entry = find_backbone(config.backbone).entry
    backbone = f"`{config.backbone}`" + (f" ({_text(_origin(entry))})" if entry else "")
    network = f"The backbone {backbone}, plain, without attention."
    if config.attention != "none":
        attention = ATTENTIONS[config.attention]
        network = (
            f"The backbone {backbone} with the attention `{config.attention}` ({_text(attention.source)}: "
            f"{_text(attention.summary)}), strategy `{config.strategy}`, position `{config.position}`"
            f"{', gated' if config.gated else ''}{', open gates' if config.open_gates else ''}."
        )
    terms = (
        "Whoever shared it has not said under which licence its weights may be used."
        if license == "unknown"
        else f"Licence of the weights: `{license}`."
    )
    return (
        f"{network} It tells {summary['classes']} classes apart, which `config.json` lists. "
        f"Trained with csham {_text(environment['versions'].get('csham', 'of an unknown version'))}. {terms}"
    )


def _origin(entry: Named) -> str:
    return entry.source if entry.source != NO_PAPER else f"{entry.summary}, {NO_PAPER}"


def _use(config: TrainConfig, repo: str | None) -> str:
    where = f"hf:{repo}" if repo else "."
    other = "from the Hugging Face Hub" if repo else "this folder; from the Hub: hf:user/name"
    return f"""With csham {__version__} or later installed, with its extra `share`:

```python
import csham
{_own_code(config)}
trained = csham.load("{where}")  # {other}
probabilities = trained.probabilities(["image.jpg"])[0]
for index in probabilities.argsort(descending=True)[:3]:
    print(f"{{trained.classes[index]}}: {{probabilities[index]:.1%}}")
```

{_preparation(config)}"""


def _own_code(config: TrainConfig) -> str:
    """Return the lines that make known what of a network is not csham's."""
    return "\n\n".join(_made_known(kind, getattr(config, kind), code) for kind, code in config.codes.items())


def _made_known(kind: str, name: str, code: Code) -> str:
    what = f"SHA-256 {code.sha256}" if code.sha256 else "of an unknown version"
    note = f"# The {kind} is code of whoever trained it, and not in this folder: {code.reference}, {what}."
    if code.name is None:
        return f"import {code.module}  # registers the {kind}\n\n{note}"
    known = f'csham.register_{kind}("{name}", {code.name})'
    return f"from {code.module} import {code.name.partition('.')[0]}\n\n{note}\n{known}"


def _preparation(config: TrainConfig) -> str:
    size = config.image_size
    if size is None:
        return "Images are prepared as `preprocessing` in `config.json` says, which `trained.transform` does."
    resized = stored_side(size)
    cut = f", of which the centre {size} x {size} is taken" if resized != size else ""
    return (
        f"Images are turned upright, put over white, cut to their centre square and resized to {resized} x {resized} "
        f"pixels (bicubic){cut}, and normalised with `mean` and `std` of `config.json`: `trained.transform` does that. "
        "`trained.network` is a plain `torch.nn.Module` from such images, (B, 3, S, S), to logits."
    )


def _measured(config: TrainConfig, summary: Mapping[str, Any], measured: Mapping[str, Any], weights: str) -> str:
    which = f"the last epoch, {summary.get('epochs')}"
    if "course" in summary:
        which += f" (trained for {_text(summary['course'])})"
    if weights == "best":
        epoch, chosen_by = measured.get("epoch"), _text(measured.get("chosen_by"))
        which = f"epoch {epoch} of {summary.get('epochs')}, chosen by {chosen_by}"
    rows = [
        (metric.with_unit(metric.label), measured[metric.name])
        for metric in in_tables()
        if measured.get(metric.name) is not None
    ]
    costs = (
        ("params", "parameters"),
        ("flops", "FLOPs an image (an addition and a product are two)"),
        ("flops_matmul", "of these in products"),
    )
    rows += [(name, summary[key]) for key, name in costs if isinstance(summary.get(key), int)]
    opening = (
        f"On the {measured['images']} test images of {_text(_data_name(config))}. These are the weights of {which}; "
        "no test image had a part in that choice."
    )
    numbers = [(name, f"{value:,.4f}" if isinstance(value, float) else f"{value:,}") for name, value in rows]
    return opening + "\n\n" + _table(("", "value"), numbers)


def _limits(config: TrainConfig, summary: Mapping[str, Any], measured: Mapping[str, Any]) -> str:
    points = [
        f"This is **one run with one seed** ({config.seed}). The same network with another seed gives another number, "
        "and two networks may change places. How far apart runs lie, and whether the attention is what helps, is said "
        "by an interval over several seeds, which one run does not have (`csham compare`).",
        "The accuracy holds for images like the test images, prepared as above. On others it was not measured.",
        f"The network answers any image with one of its {summary['classes']} classes, also one that shows none of "
        "them. Its probabilities were not calibrated.",
        "Whether it errs more for some groups of people or things than for others was not examined.",
    ]
    if config.pretrained or config.weights_file:
        points.append(
            "Training began from weights that others trained, on other images: their licence and their limits apply "
            "too."
        )
    if absent := measured.get("absent_classes"):
        points.append(f"Macro averages leave out {counted(absent, 'class', 'es')} without test images.")
    if repeated := summary.get("test_images_trained_with"):
        points.append(f"Training images among the test images: {repeated:,}.")
    if bad := summary.get("bad_files"):
        points.append(f"Left out: {counted(bad, 'file')} of the data that could not be read.")
    return "\n".join(f"- {point}" for point in points)


def _training(config: TrainConfig, summary: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    machine = summary.get("machine")
    facts: dict[str, Any] = {
        "training images": summary.get("train_images"),
        "validation images": summary.get("validation_images"),
        "seconds": summary.get("seconds"),
        "images per second": summary.get("images_per_s"),
        **{key: environment.get(key) for key in ("processor", "threads", "processes", "commit")},
        **(machine if isinstance(machine, dict) else {}),
    }
    versions = environment["versions"]
    rows = [(f"`{key}`", value) for key, value in _settings(config).items() if value is not None]
    return "\n\n".join(
        [
            _table(("setting", "value"), rows),
            _table(("circumstance", "value"), [(key, value) for key, value in facts.items() if value is not None]),
            "Versions: " + ", ".join(f"{_text(name)} {_text(number)}" for name, number in versions.items()) + ".",
        ]
    )


def _settings(config: TrainConfig) -> dict[str, Any]:
    """Return the run's settings without where its files lay."""
    settings = config.to_dict() | {"data": _data_name(config)}
    if config.weights_file is not None:
        settings["weights_file"] = _last_part(config.weights_file)
    return settings


def _data_name(config: TrainConfig) -> str:
    return _DATASETS[config.data][1] if config.data in _DATASETS else _last_part(config.data)


def _last_part(path: str) -> str:
    """Return a file's or folder's name; the run may come from another system."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or "images"


def _citation(config: TrainConfig) -> str:
    entries = [SOFTWARE]
    words = "If you use the network, please cite the software"
    if config.attention.startswith("csham"):
        entries.insert(0, PAPER)
        words = "If you use the network, please cite the paper of its attention and the software"
    elif config.attention != "none" and ATTENTIONS[config.attention].source != NO_PAPER:
        words += f", and the attention's authors: {_text(ATTENTIONS[config.attention].source.removeprefix('after '))}"
    return f"{words}.\n\n```bibtex\n" + "\n\n".join(entries) + "\n```"


def _table(header: Sequence[str], rows: Iterable[tuple[str, Any]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---|---|"]
    lines += [f"| {name} | {_text(_shown(value))} |" for name, value in rows]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _text(value: object) -> str:
    """Return text that stands in a line of Markdown for itself."""
    plain = " ".join(str(value).split())
    return re.sub(r"([\\`*_{}\[\]<>|#~$&])", r"\\\1", plain)
