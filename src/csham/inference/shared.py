"""The shared folder: a trained network as others get it, without its run, here or on the Hugging Face Hub.

``config.json`` says which network it is and how images are prepared for it, ``model.safetensors`` has its weights,
``README.md`` is the model card, which people edit. ``csham.sha256`` has the sums of the first two; a folder without it
is from before there were any. Nothing else in the folder is ever opened, but pictures in ``examples`` by ``csham app``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from textwrap import shorten
from typing import Any

from torch import nn

from csham._version import __version__
from csham.data.dataset import stored_side
from csham.errors import UserError
from csham.files import SUMS, parse_json
from csham.settings import check_keys, names_of
from csham.training.network import SELDOM, NetworkInfo, held_weights, read_network
from csham.training.run_folder import CHOICES, RunWeights
from csham.training.sums import check_unchanged

__all__ = [
    "CARD",
    "CONFIG",
    "FILES",
    "FORMAT",
    "WEIGHTS",
    "download",
    "is_on_hub",
    "is_shared",
    "read_card",
    "read_shared",
    "shared_config",
]

FORMAT = 1
"""Raised when the folder changes in a way that older code cannot read."""

CONFIG, WEIGHTS, CARD = FILES = ("config.json", "model.safetensors", "README.md")

# Of config.json and README.md, in bytes: 100,000 classes take two millions.
_LARGEST = 2**24

_PREFIX = "hf:"

# The attributes of NetworkInfo that stand elsewhere in the configuration.
_ELSEWHERE = ("image_size", "classes", "mean", "std")


def shared_config(info: NetworkInfo, weights: str) -> str:
    """Return the text of config.json.

    Args:
        info: Description of the network.
        weights: ``"best"`` or ``"last"``, which ones of the run.
    """
    content = {
        "library_name": "csham",
        "csham_version": __version__,
        "format": FORMAT,
        "weights": weights,
        "network": {key: value for key, value in info.to_dict().items() if key not in _ELSEWHERE},
        "preprocessing": _preprocessing(info),
        "classes": info.classes,
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _preprocessing(info: NetworkInfo) -> dict[str, Any]:
    """Return what :class:`csham.inference.ImageTransform` does, for other code that is to do the same."""
    return {
        "color": "RGB, upright, over white",
        "resize": stored_side(info.image_size),
        "interpolation": "bicubic, of the centre square",
        "center_crop": info.image_size,
        "mean": info.mean,
        "std": info.std,
    }


def is_shared(path: Path) -> bool:
    """Return True if a folder is a shared one: it has a config.json and is no run folder."""
    return os.path.lexists(path / CONFIG) and not os.path.lexists(path / "config.yaml")


def read_shared(folder: Path) -> tuple[nn.Module, NetworkInfo, RunWeights]:
    """Build the network of a folder that anyone may have written.

    Returns:
        The network, on the CPU; what it is; and which weights of its run it has.

    Raises:
        UserError: A file is missing, damaged, or says what cannot be.
    """
    path = folder / CONFIG
    if os.path.lexists(folder / SUMS):
        _inside(folder, SUMS)
    for name in (CONFIG, WEIGHTS):
        _inside(folder, name)
        check_unchanged(folder / name, f"Take it anew from where it came from; without {SUMS} it is read unchecked.")
    try:
        content = parse_json(_read(folder, CONFIG))
    except ValueError as err:
        if isinstance(err, UserError):
            raise
        raise UserError(f"{path} is damaged or not JSON: {str(err)[:200]}") from err
    info, weights = _understood(content, path)
    path = _inside(folder, WEIGHTS)
    network, _ = read_network(path, info)
    return network, info, RunWeights(weights, held_weights(path).epoch)


def is_on_hub(path: Path | str) -> bool:
    """Return True if ``hf:user/name`` is meant, not something on this machine."""
    return str(path).startswith(_PREFIX)


def download(name: str, **settings: Any) -> Path:
    """Return the folder to which the Hub's client downloads the files of a shared folder, once.

    Args:
        name: ``hf:user/name`` or ``hf:user/name@revision``.
        **settings: Other arguments of :func:`huggingface_hub.snapshot_download`, such as ``token``.

    Raises:
        UserError: There is no such repository, or it is out of reach and not in the client's cache.
    """
    repo, _, revision = name.removeprefix(_PREFIX).strip("/").partition("@")
    if repo.count("/") != 1:
        raise UserError(f"{name} names no repository of the Hub. Write hf:user/name or hf:user/name@revision.")
    try:
        from huggingface_hub import snapshot_download  # noqa: PLC0415  optional, and slow to import
    except ImportError as err:
        raise UserError(f'{name} needs huggingface_hub. Install it: pip install "csham[share]".') from err
    try:
        settings = {"revision": revision or None, **settings}
        return Path(snapshot_download(repo, allow_patterns=[*FILES, SUMS], **settings))
    except Exception as err:  # whatever the Hub's client raises means the same
        reason = shorten(str(err) or type(err).__name__, 160, placeholder=" ...").rstrip(".")
        where = os.environ.get("HF_ENDPOINT") or "the Hugging Face Hub"
        raise UserError(
            f"{name} could not be had from {where}: {reason}. Without a network, give the path of the shared folder."
        ) from err


def read_card(folder: Path) -> str:
    """Return the model card of a shared folder, as text."""
    try:
        return _read(folder, CARD).decode()
    except UnicodeDecodeError as err:
        raise UserError(f"{folder / CARD} is not text in UTF-8.") from err


def _understood(content: Any, path: Path) -> tuple[NetworkInfo, str]:
    if not isinstance(content, dict) or content.get("library_name") != "csham" or "format" not in content:
        raise UserError(f"{path} was not written by csham share: it is no configuration of library_name 'csham'.")
    if content["format"] != FORMAT or type(content["format"]) is not int:
        given = ascii(content["format"])[:40]
        raise UserError(f"{path} has format {given}, this version of csham reads {FORMAT}. Install a newer csham.")
    check_keys(
        content, ("library_name", "csham_version", "format", "weights", "network", "preprocessing", "classes"), path
    )
    network, preprocessing = content["network"], content["preprocessing"]
    own = {name for name in SELDOM if isinstance(network, dict) and name not in network}
    check_keys(network, set(names_of(NetworkInfo)) - {*_ELSEWHERE, *own}, f"{path}, network")
    check_keys(
        preprocessing, ("color", "resize", "interpolation", "center_crop", "mean", "std"), f"{path}, preprocessing"
    )
    if content["weights"] not in CHOICES:
        raise UserError(f"{path}: weights should be 'best' or 'last', got {ascii(content['weights'])[:80]}.")
    values = {**network, "classes": content["classes"], "image_size": preprocessing["center_crop"]}
    info = NetworkInfo.from_dict({**values, "mean": preprocessing["mean"], "std": preprocessing["std"]}, path)
    expected = _preprocessing(info)
    differs = [key for key, value in preprocessing.items() if value != expected[key]]
    if differs:
        raise UserError(
            f"{path} asks for a preprocessing that this version of csham does not do: {', '.join(differs)}."
        )
    return info, content["weights"]


def _read(folder: Path, name: str) -> bytes:
    """Read a small file of the folder."""
    path = _inside(folder, name)
    with path.open("rb") as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise UserError(f"{folder / name} is larger than {_LARGEST // 2**20} MiB, which none is that csham writes.")
    return content


def _inside(folder: Path, name: str) -> Path:
    """Return the path of a file that is really in the folder, or in the cache that the Hub's client links it to."""
    try:
        path, home = (folder / name).resolve(), folder.resolve()
    except (OSError, RuntimeError) as err:  # links in a circle
        raise UserError(f"{folder / name} cannot be followed: {err}") from err
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if path.parent not in homes:
        raise UserError(f"{folder / name} is a link out of its folder. It was not read.")
    if not path.is_file():
        raise UserError(f"{folder} has no file {name}. A shared folder holds {', '.join(FILES)}.")
    return path
