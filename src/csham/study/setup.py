"""From what was asked for to a study: a new one, or one that exists and is gone on with or extended.

Imports PyTorch only where networks are new, which are built once, or a new study leaves the precision to the machine.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from csham.backbones.spec import CODE_FIELDS, CONNECTION_FIELDS
from csham.backbones.zoo import weights_path
from csham.data import PackedDataset, prepare
from csham.data.checks import check_images
from csham.data.dataset import describe_data
from csham.data.sources import check_apart
from csham.errors import UserError
from csham.files import sha256_of
from csham.settings import Help, check_choice, check_known, declared, split_names
from csham.study.grid import (
    MACHINE_FIELDS,
    SHARED_FIELDS,
    WORTHWHILE,
    Data,
    Network,
    Study,
    differing_setting,
    expand_networks,
    read_seeds,
    shared_settings,
    with_plain,
)
from csham.study.store import Store
from csham.study.study_file import FILE, is_edited, no_study
from csham.training.config import BEFORE, TrainConfig, check_trackers, read_settings, resolve
from csham.training.course import check_patience
from csham.training.recipes import RECIPES
from csham.training.steps import fit_batch, steps_notes
from csham.words import counted

__all__ = ["Request", "Setup", "check_records", "merged", "read_request_file", "set_up"]

_ATTENTIONS = ("none", "se", "eca", "cbam", "csham")
_BACKBONES = ("resnet18",)
_SEEDS = 5  # fewer can hardly say anything
_ATTACHED = tuple(name for name in CONNECTION_FIELDS if name != "strategy")

Preparing = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """Request: everything a call asks for; what it leaves out is None or empty.

    Attributes:
        data: Name of a dataset or path of a folder.
        folder: Of the study.
        backbones: Names.
        attentions: Names, perhaps with a strategy: ``csham:transfer``.
        strategies: Names.
        networks: Networks that the names above cannot say.
        attached: Of :data:`csham.backbones.spec.CONNECTION_FIELDS`, for all with attention.
        seeds: Seeds of the runs.
        settings: Of :data:`csham.study.grid.SHARED_FIELDS`, from the command line.
        file_settings: The same, from a file, over which the command line wins.
        machine: Of :data:`csham.study.grid.MACHINE_FIELDS`.
        worthwhile: Smallest difference worth having, in percent.
        command: The line.
    """

    data: str | None = None
    folder: Path | None = None
    backbones: Sequence[str] = ()
    attentions: Sequence[str] = ()
    strategies: Sequence[str] = ()
    networks: Sequence[Network] = ()
    attached: Mapping[str, Any] = field(default_factory=dict)
    seeds: Sequence[int] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    file_settings: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    worthwhile: float | None = None
    command: str = ""


@dataclass(frozen=True)
class Setup:
    """A study, ready to be run.

    Attributes:
        store: Its folder, which does not exist yet if nothing was written.
        study: Study that is, or would be, in it.
        dataset: Its images, if they had to be opened.
        notes: Notes for the user.
    """

    store: Store
    study: Study
    dataset: PackedDataset | None
    notes: tuple[str, ...]


def read_request_file(path: Path) -> Request:
    """Read a grid from YAML: the names of the command line with underscores, and ``networks:``.

    A ``study.yaml`` is one too, and gives the same study again; a run's ``config.yaml`` gives one of its settings.

    Raises:
        UserError: It is no YAML, or holds an unknown name; names the file.
    """
    content = read_settings(path)
    try:
        return _request(_in_plural(_flattened(content)))
    except UserError as err:
        raise UserError(f"{path}: {err}") from err


def set_up(
    request: Request,
    note: Callable[[str], None],
    preparing: Preparing,
    *,
    write: bool = True,
    check: Callable[[Setup], None] = lambda _: None,
) -> Setup:
    """Make the study that was asked for, or open and extend the one that is there.

    Args:
        request: Settings and networks that were asked for.
        note: Told what is found damaged in the store.
        preparing: Told how far the reading of the images is.
        write: True to write ``study.yaml``; without, no folder is made.
        check: Given what would be written, refuses it by an error.

    Raises:
        UserError: Something asked for cannot be, or differs from what the study began with.
    """
    check_trackers(TrainConfig(data="-", **request.machine).trackers)
    store = Store(_folder(request), note)
    if write:
        store.remove_leftovers()
    _check_place(store, request)
    if not write:
        return _extended(request, store, preparing) if store.exists else _new(request, store, preparing)
    tried: tuple[Network, ...] = ()
    if not store.exists:
        setup = _new(request, store, preparing)  # before anything is left behind
        check(setup)
        tried = setup.study.networks
        _try_networks(setup.study, tried)
        with store.changing_study():
            if not store.exists:
                store.write_study(setup.study)
                return setup
    while True:
        with store.changing_study():  # also where another process has made the study a moment ago
            before, edited = store.study, is_edited(store.path)
            setup = _extended(request, store, preparing)
            check(setup)
            new = tuple(network for network in setup.study.networks if network not in (*before.networks, *tried))
            if not new:
                if edited:
                    store.repair()
                    check_records(setup.study, store.records(), store.path)
                if edited or setup.study != before:
                    store.write_study(setup.study)
                return setup
        _try_networks(setup.study, new)  # without the lock, for which others wait a minute at most
        tried += new


def check_records(
    study: Study,
    records: Iterable[Mapping[str, Any]],
    where: Path,
    advice: str = "Put study.yaml back, or begin another study with --study OTHER.",
    way_in: str = "",
) -> list[str]:
    """Refuse records of other settings than the study's, whose file was edited since.

    Args:
        study: The study.
        records: Records that should be of its cells.
        where: Folder of the records.
        advice: Said behind a refusal.
        way_in: Said behind the note on records that the study would have if it had their networks and seeds.

    Returns:
        Notes on records that belong to networks or seeds no longer in the study.

    Raises:
        UserError: Names a cell, and the setting.
    """
    cells = {(cell.network.label, cell.seed): cell for cell in study.cells()}
    keys = {cell.key for cell in cells.values()}
    fitting, others = 0, []
    for record in records:
        if record["key"] in keys:
            _check_data(record, study, where)
            continue
        cell = cells.get((record["label"], record["seed"]))
        if cell is not None:
            raise UserError(
                f"{where / 'records.jsonl'} holds results of other settings than the study's: of {cell.label}, "
                f"{_what_differs(record, study, cell.config)}. {advice}"
            )
        differs = _would_differ(record, study)
        others += [differs] if differs else []
        fitting += not differs
    notes = [f"{_unnamed(fitting)}{way_in}"] if fitting else []
    return notes + ([f"{_unnamed(len(others))}, of other settings too: {others[0]}"] if others else [])


def _unnamed(number: int) -> str:
    are = "is" if number == 1 else "are"
    return f"{counted(number, 'record')} of networks or seeds that study.yaml does not name {are} left out"


def _would_differ(record: Mapping[str, Any], study: Study) -> str:
    """Say what keeps a record from being the study's if this had its network and seed; nothing if nothing does."""
    try:
        cell = study.cell(Network.from_dict(record.get("network", {})), record["seed"])
    except (UserError, TypeError) as err:
        return str(err)
    return "" if cell.key == record["key"] else _what_differs(record, study, cell.config)


def _check_data(record: Mapping[str, Any], study: Study, where: Path) -> None:
    """Refuse a description of the data that is not that of a record of the same content."""
    for name, value in record.get("data", {}).items():
        ours = getattr(study.data, name, value)
        if ours != value:
            raise UserError(f"{where / FILE} says data: {name}: {ours!r}, and the records have {value!r}. Put it back.")


def _folder(request: Request) -> Path:
    """The study's folder: the one named, or one named after the data and the recipe."""
    if request.folder is not None:
        return request.folder
    if request.data is None:
        raise UserError(
            "no data: name a dataset (such as digits) or an image folder, or a study to go on with: --study DIR."
        )
    config = resolve({"data": request.data, **request.settings}, dict(request.file_settings))
    name = f"{Path(request.data).name or 'data'}-{config.recipe}-{config.epochs}epochs"
    return Path("studies") / (f"{name}-pretrained" if config.pretrained or config.weights_file else name)


def _check_place(store: Store, request: Request) -> None:
    path = store.path
    if path.exists() and not path.is_dir():
        raise UserError(f"--study {path} is a file. Name a folder.")
    if request.data is None and not store.exists:
        raise no_study(path)
    # Of a study that was being made, or is at this moment.
    left = re.compile(rf"locks|logs|\.DS_Store|\.{re.escape(FILE)}\..+\.tmp")
    if request.data is not None and not store.exists:
        check_apart(request.data, path, "Name a folder elsewhere with --study DIR.")
    if path.is_dir() and not store.exists and not all(left.fullmatch(entry.name) for entry in path.iterdir()):
        raise UserError(f"{path} exists, and is neither a study nor empty. Name another folder with --study DIR.")


def _new(request: Request, store: Store, preparing: Preparing) -> Setup:
    assert request.data is not None
    config = resolve({"data": request.data, **request.settings}, dict(request.file_settings))
    networks = _networks(request, request.backbones or _BACKBONES, request.attentions or _ATTENTIONS, config.recipe)
    networks, added = with_plain(network.with_code() for network in networks)
    _check_weights_file(config, networks)
    for network in networks:
        replace(config, **network.network_settings).check_names()
    dataset = _open(request, config.image_size, preparing)
    check_patience(config, len(dataset.split(0, config.validation).validation))
    config = _resolved(config, dataset, request.machine)
    study = Study(
        data=_data(request.data, dataset),
        settings=shared_settings(config),
        networks=tuple(networks),
        seeds=tuple(request.seeds) or tuple(range(_SEEDS)),
        worthwhile=WORTHWHILE if request.worthwhile is None else request.worthwhile,
        command=request.command,
        weights_sha256=None if config.weights_file is None else sha256_of(weights_path(config.weights_file)),
    )
    _try_weights(study)
    steps = steps_notes(config, _train_images(config, dataset))
    return Setup(store, study, dataset, (*_added(added), *steps, *_found(request, study, dataset)))


def _extended(request: Request, store: Store, preparing: Preparing) -> Setup:
    study, dataset = store.study, None
    if request.data is not None:
        dataset = _open(request, study.data.image_size, preparing)
    _check_settings(request, study, store.path, dataset)
    if dataset is not None:
        assert request.data is not None
        _check_fingerprint(study, dataset, store.path)
        study = replace(study, data=replace(study.data, source=request.data))
    more = [network.with_code() for network in _more_networks(request, study)]
    kept, code_notes = _with_todays_code(study, store)
    _check_names(study, kept, store.path / FILE)
    networks, added = with_plain([*kept, *more])
    _check_names(study, networks)
    extended = study.extended(networks, request.seeds)
    extended = replace(extended, networks=tuple(networks))
    if request.worthwhile is not None:
        extended = replace(extended, worthwhile=request.worthwhile)
    if len(extended.cells()) > len(study.cells()) and request.command:
        extended = replace(extended, command=" && ".join(filter(None, [study.command, request.command])))
    found = [] if dataset is None else _found(request, extended, dataset)
    edited = [f"{store.path / FILE} was edited: it counts as it is now"] if is_edited(store.path) else []
    return Setup(store, extended, dataset, (*edited, *code_notes, *_added(added), *found))


def _check_names(study: Study, networks: Iterable[Network], file: Path | None = None) -> None:
    """Refuse names that nothing has, with the file that says them."""
    for network in networks:
        try:
            study.config(network, 0).check_names()
        except UserError as err:
            if file is None:
                raise
            raise UserError(f"{file}: {err}") from err


def _with_todays_code(study: Study, store: Store) -> tuple[list[Network], list[str]]:
    """Give networks whose code was edited the new code where nothing of the old one is done.

    Returns:
        The networks, and notes.
    """
    old = [network for network in study.networks if network.changed_code and network.codes]
    if not old:
        return list(study.networks), []
    done = {record["label"] for record in store.records() if record["status"] == "done"}
    anew = {n: n.without_code().with_code() for n in old if n.label not in done}
    notes = [
        f"{network.label} is {new.label} now: it was edited before a run was done" for network, new in anew.items()
    ]
    notes += [
        f"{network.label}: its code was edited since. What is done stays, and the new code, named, is another network"
        for network in old
        if network not in anew
    ]
    return [anew.get(network, network) for network in study.networks], notes


def _added(backbones: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{name} without attention is added: the others are compared with it" for name in backbones)


def _found(request: Request, study: Study, dataset: PackedDataset) -> list[str]:
    parts = dataset.split(study.seeds[0], study.settings["validation"])
    return check_images(dataset, parts, allow_leaks=request.machine.get("allow_leaks", False))


def _networks(request: Request, backbones: Sequence[str], attentions: Sequence[str], recipe: str) -> list[Network]:
    """Combine the names of a request; a list of networks stands alone where no names are given.

    Names are attached as the recipe has it, where nothing else is asked for; networks of a list say it themselves.
    """
    if request.networks and not (request.backbones or request.attentions):
        return list(request.networks)
    attached = {**RECIPES[recipe].attached, **request.attached}
    return expand_networks(backbones, attentions, request.strategies, **attached) + list(request.networks)


def _more_networks(request: Request, study: Study) -> list[Network]:
    """Return what a request names beside a study; backbones alone get the study's attentions, and the reverse."""
    ours = [network for network in study.networks if network.instead_of is None]
    if request.attentions:
        backbones = request.backbones or list(dict.fromkeys(network.backbone for network in ours))
        return _networks(request, backbones, request.attentions, study.settings["recipe"])
    if request.strategies or request.attached:
        raise UserError("a study that exists is extended by --attentions; name them beside their strategies.")
    networks = [replace(network.without_code(), backbone=name) for name in request.backbones for network in ours]
    for network in networks:
        network.check_names()
    return networks + list(request.networks)


def _check_settings(request: Request, study: Study, where: Path, dataset: PackedDataset | None) -> None:
    """Refuse a setting that differs from the study's.

    Where the study was named, what a call leaves out is as in the study; where only its settings led to it, they count
    as a whole.
    """
    said = {**request.file_settings, **request.settings}
    if request.folder is None:
        # A study of before there was the setting goes on without it.
        last_batch = {"last_batch": said.get("last_batch", study.settings["last_batch"])}
        config = resolve({"data": "-", **last_batch, **request.settings}, dict(request.file_settings))
        config = config if dataset is None else fit_batch(config, _train_images(config, dataset))
        said = shared_settings(config)
    elif said.get("recipe", study.settings["recipe"]) != study.settings["recipe"]:
        check_choice("recipe", said["recipe"], RECIPES)
        said = {**RECIPES[said["recipe"]].settings, **said}
    for name in ("image_size", "batch_size", "crop", "precision"):
        if said.get(name) in (None, "auto"):
            said.pop(name, None)
    changed = study.changed(said)
    if study.weights_sha256 is not None and said.get("weights_file") is not None:
        same = sha256_of(weights_path(said["weights_file"])) == study.weights_sha256
        changed = [change for change in changed if change[0] != "weights_file" or not same]
    if [name for name, _, _ in changed] == ["recipe"]:
        return  # a name for the same settings
    if changed:
        differences = "; ".join(f"{name} is {old!r} there and {new!r} now" for name, old, new in changed)
        raise UserError(
            f"{where} was begun with other settings: {differences}. Results of both would not be comparable. Give the "
            "old values, or begin another study: --study OTHER."
        )


def _check_fingerprint(study: Study, dataset: PackedDataset, where: Path) -> None:
    now = describe_data(dataset)
    if now["fingerprint"] == study.data.fingerprint:
        return
    counts = [(study.data.images, "images", now["images"]), (study.data.classes, "classes", len(now["classes"]))]
    changes = [f"it had {old} {what} and has {new}" for old, what, new in counts if old != new]
    change = changes[0] if changes else "its images changed"
    raise UserError(
        f"the data of {where} is not what the study began with: {change}. Put it back, or begin another study: "
        "--study OTHER."
    )


def _open(request: Request, image_size: int | None, preparing: Preparing) -> PackedDataset:
    assert request.data is not None
    given = {"max_bad": request.machine["max_bad"]} if "max_bad" in request.machine else {}
    return prepare(request.data, image_size=image_size, progress=preparing, **given)


def _data(source: str, dataset: PackedDataset) -> Data:
    data = describe_data(dataset)
    return Data(source, len(data["classes"]), data["images"], data["image_size"], data["fingerprint"])


def _resolved(config: TrainConfig, dataset: PackedDataset, machine: Mapping[str, Any]) -> TrainConfig:
    """Replace what is left to the machine and the data, once for all runs of the study."""
    # Imported here: the rest needs no PyTorch.
    from csham.data.crops import check_crop  # noqa: PLC0415
    from csham.training.machine import choose  # noqa: PLC0415

    train_images = _train_images(config, dataset)
    config = fit_batch(config, train_images)
    return replace(
        config,
        precision=choose(replace(config, **machine), train_images).config.precision,
        image_size=dataset.image_size,
        crop=check_crop(config.crop, config.crop_scale, dataset.image_size),
    )


def _train_images(config: TrainConfig, dataset: PackedDataset) -> int:
    """Count the training images, which are as many for every seed."""
    return len(dataset.split(0, config.validation).train)


def _check_weights_file(config: TrainConfig, networks: Sequence[Network]) -> None:
    backbones = {network.backbone for network in networks}
    if config.weights_file is not None and len(backbones) > 1:
        raise UserError(
            f"--weights-file holds the weights of one backbone, and the study has {len(backbones)}: "
            f"{', '.join(sorted(backbones))}. Make a study of each."
        )


def _try_weights(study: Study) -> None:
    """Refuse a weights file that does not fit: every cell would fail with it, one after the other."""
    config = study.config(Network(study.networks[0].backbone), 0)
    if config.weights_file is not None:
        from csham.probing import same_randomness  # noqa: PLC0415  imports torch

        with warnings.catch_warnings(), same_randomness():
            warnings.simplefilter("ignore")  # of what stays new: each run says so
            config.build(num_classes=study.data.classes, image_size=config.image_size, weights_file=config.weights_file)


def _try_networks(study: Study, networks: Iterable[Network]) -> None:
    """Refuse networks that cannot be built: every cell would fail of it, one after the other."""
    # Imported here: without networks to build, PyTorch is not needed.
    from csham.cost.task import reason  # noqa: PLC0415
    from csham.probing import same_randomness  # noqa: PLC0415

    reasons = []
    for network in networks:
        try:
            with warnings.catch_warnings(), same_randomness():
                warnings.simplefilter("ignore")  # each run says them
                network.build(num_classes=study.data.classes, image_size=study.data.image_size)
        except Exception as err:  # whatever a network fails with
            reasons.append(f"{network.label} cannot be built: {reason(err)}")
    if reasons:
        raise UserError(*reasons)


def _what_differs(record: Mapping[str, Any], study: Study, config: TrainConfig) -> str:
    if different := differing_setting(record.get("config", {}), config):
        return different
    if record.get("data", {}).get("fingerprint") != study.data.fingerprint:
        return "the data has another fingerprint"
    return "they differ in what their key stands for"


_NAMES = ("data", "backbones", "attentions", "strategies", "networks", "seeds", "worthwhile")
_PLURAL = {
    name: rule.plural
    for name, (_, rules) in declared(TrainConfig).items()
    for rule in rules
    if isinstance(rule, Help) and rule.plural
}


def _flattened(content: dict[str, Any]) -> dict[str, Any]:
    """Make a request's file of a study's."""
    if "format" not in content:
        return content
    data, settings = content.get("data"), content.get("settings")
    source = {"data": data["source"]} if isinstance(data, dict) and "source" in data else {}
    rest = {key: content[key] for key in content if key in ("networks", "seeds", "worthwhile")}
    before = {name: value for name, value in BEFORE.items() if name in SHARED_FIELDS}
    return source | rest | before | (settings if isinstance(settings, dict) else {})


def _in_plural(content: Mapping[str, Any]) -> dict[str, Any]:
    """Make a study's file, which has several of some settings, of a run's."""
    for one, several in _PLURAL.items():
        if one in content and several in content:
            raise UserError(f"{one} and {several} are the same key. Write one of them.")
    rest = {key: value for key, value in content.items() if key not in CODE_FIELDS}  # of the code as it is now
    return {_PLURAL.get(key, key): [value] if key in _PLURAL else value for key, value in rest.items()}


def _request(content: Mapping[str, Any]) -> Request:
    check_known("key", content, (*_NAMES, *_ATTACHED, *SHARED_FIELDS, *MACHINE_FIELDS))
    data, worthwhile = content.get("data"), content.get("worthwhile")
    if data is not None and not isinstance(data, str):
        raise UserError(f"data must be the name of a dataset or the path of a folder, got {data!r}.")
    if worthwhile is not None and (isinstance(worthwhile, bool) or not isinstance(worthwhile, int | float)):
        raise UserError(f"worthwhile must be a number of percent, got {worthwhile!r}.")
    networks = content.get("networks", [])
    if not isinstance(networks, list):
        raise UserError(f"networks must be a list of mappings, got {networks!r}.")
    settings = {name: content[name] for name in SHARED_FIELDS if name in content}
    TrainConfig(data="-", **settings)  # checks types and ranges, with the file's name
    return Request(
        data=data,
        backbones=_words("backbones", content),
        attentions=_words("attentions", content),
        strategies=_words("strategies", content),
        networks=tuple(Network.from_dict(value) for value in networks),
        attached={
            name: tuple(value) if isinstance(value, list) else value
            for name, value in content.items()
            if name in _ATTACHED
        },
        seeds=read_seeds(content["seeds"]) if "seeds" in content else (),
        file_settings=settings,
        machine={name: content[name] for name in MACHINE_FIELDS if name in content},
        worthwhile=worthwhile,
    )


def _words(name: str, content: Mapping[str, Any]) -> tuple[str, ...]:
    """Read a list of names, which may be written with commas."""
    value = content.get(name, ())
    if isinstance(value, str):
        return tuple(split_names(value))
    # YAML reads a bare none as text, and ~ or null as nothing.
    words = ["none" if word is None else word for word in value] if isinstance(value, list | tuple) else None
    if words is None or not all(isinstance(word, str) for word in words):
        raise UserError(f"{name} must be a list of names, got {value!r}.")
    return tuple(words)


def merged(file: Request, given: Request) -> Request:
    """Put what the command line says over what a file says."""
    parts: dict[str, Any] = {}
    for part in fields(Request):
        ours, theirs = getattr(given, part.name), getattr(file, part.name)
        if isinstance(ours, Mapping):
            parts[part.name] = {**theirs, **ours}
        elif isinstance(ours, int | float):
            parts[part.name] = ours
        else:
            parts[part.name] = ours or theirs
    return Request(**parts)
