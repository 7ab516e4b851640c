"""``study.yaml``: a study as a file, checked in every field when it is read, since people edit it.

Its first line has the SHA-256 of the others as csham wrote them, by which an edit is recognised.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from csham.errors import UserError
from csham.files import write_atomically
from csham.settings import check_known
from csham.study.grid import SHARED_FIELDS, Data, Network, Study, read_seeds, shared_settings
from csham.training.config import BEFORE, TrainConfig, read_settings

__all__ = ["FILE", "FORMAT", "is_edited", "no_study", "read_study", "write_study"]

FILE = "study.yaml"
FORMAT = 2
"""Of a file with a sum; one of format 1 is from before there was any."""

_REQUIRED = ("format", "data", "settings", "networks", "seeds", "worthwhile")
_FIELDS = (*_REQUIRED, "command", "weights_sha256", "controlled")


def write_study(folder: Path, study: Study) -> None:
    """Write ``study.yaml`` at once; the folder exists."""
    settings = TrainConfig(data="-", **study.settings).to_dict()
    content: dict[str, Any] = {
        "format": FORMAT,
        "data": {field.name: getattr(study.data, field.name) for field in fields(Data)},
        "settings": {name: settings[name] for name in SHARED_FIELDS},
        "networks": [_short(network) for network in study.networks],
        "seeds": list(study.seeds),
        "worthwhile": study.worthwhile,
        "command": study.command,
    }
    if study.weights_sha256 is not None:
        content["weights_sha256"] = study.weights_sha256
    if study.controlled:
        content["controlled"] = list(study.controlled)
    lines = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000).encode()
    write_atomically(folder / FILE, lambda file: file.write(_head(lines) + lines))


def is_edited(folder: Path) -> bool | None:
    """Tell whether ``study.yaml`` is other than csham wrote it; None where it is from before that could be told."""
    content = (folder / FILE).read_bytes()
    head, newline, lines = content.partition(b"\n")
    before = not head.startswith(b"#") and re.search(rb"^format: *1 *$", content, re.MULTILINE)
    return None if before else head + newline != _head(lines)


_HEAD = b"# csham wrote this, and sees edits by the SHA-256 of the lines below: "


def _head(lines: bytes) -> bytes:
    return _HEAD + hashlib.sha256(lines).hexdigest().encode() + b"\n"


def read_study(folder: Path) -> Study:
    """Read and check ``study.yaml``.

    Raises:
        UserError: There is none, it is no YAML, or something in it cannot be; names the file and the field.
    """
    path = folder / FILE
    if not path.is_file():
        raise no_study(folder)
    content = read_settings(path)
    try:
        return _study(content)
    except UserError as err:
        raise UserError(f"{path}: {err}") from err


def no_study(folder: Path) -> UserError:
    """Build the error for a folder without a plan."""
    what = f"{folder} is not a study: it has no {FILE}" if folder.exists() else f"there is no study {folder}"
    return UserError(f"{what}. csham compare DATA --study DIR makes one.{_neighbours(folder)}")


def _neighbours(folder: Path) -> str:
    parent = folder if folder.is_dir() else folder.parent
    studies = sorted(str(file.parent) for file in parent.glob(f"*/{FILE}"))
    return f" Studies there: {', '.join(studies[:5])}{', ...' if len(studies) > 5 else ''}." if studies else ""


def _short(network: Network) -> dict[str, Any]:
    """Return what of a network is not at its default."""
    defaults = Network(network.backbone).to_dict()
    return {key: value for key, value in network.to_dict().items() if key == "backbone" or value != defaults[key]}


def _study(content: Mapping[str, Any]) -> Study:
    check_known("field", content, _FIELDS)
    missing = [name for name in _REQUIRED if name not in content]
    if missing:
        raise UserError(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing.")
    if content["format"] not in (1, FORMAT):
        raise UserError(f"format {content['format']!r} is not one this version of csham reads (up to {FORMAT}).")
    return Study(
        data=_data(content["data"]),
        settings=_settings(content["settings"]),
        networks=_networks(content["networks"]),
        seeds=read_seeds(_list("seeds", content["seeds"])),
        worthwhile=content["worthwhile"],
        command=_text("command", content.get("command", "")),
        weights_sha256=_text("weights_sha256", content["weights_sha256"]) if "weights_sha256" in content else None,
        controlled=tuple(_text("controlled", label) for label in _list("controlled", content.get("controlled", []))),
    )


def _data(values: Any) -> Data:
    known = {field.name: field.type for field in fields(Data)}
    if not isinstance(values, dict) or set(values) != set(known):
        raise UserError(f"data must hold {', '.join(known)}, got {values!r}.")
    for name, kind in known.items():
        good = isinstance(values[name], str) if kind == "str" else type(values[name]) is int and values[name] > 0
        if not good:
            raise UserError(f"data: {name} is {values[name]!r}.")
    return Data(**values)


def _settings(values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise UserError(f"settings must be a mapping, got {values!r}.")
    check_known("setting", values, SHARED_FIELDS)
    if missing := [name for name in SHARED_FIELDS if name not in values and name not in BEFORE]:
        raise UserError(f"settings: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing.")
    config = TrainConfig(data="-", **(BEFORE | values))
    return shared_settings(config)


def _networks(values: Any) -> tuple[Network, ...]:
    networks = [Network.from_dict(value) for value in _list("networks", values)]
    for network in networks:
        network.check_connection(to_build=False)  # for a report needs neither a library of networks nor others' code
    if not networks:
        raise UserError("networks is empty.")
    return tuple(dict.fromkeys(networks))


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise UserError(f"{name} must be a list, got {value!r}.")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"{name} must be text, got {value!r}.")
    return value
