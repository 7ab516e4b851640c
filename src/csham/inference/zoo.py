"""Trained networks that come with the package: the shared folders in ``csham/zoo``, by their names.

``zoo:NAME`` stands wherever a run or a shared folder does, and is read, checked and refused as any shared folder is.
The table of everything that was measured, ``results.json``, lies beside them. ``scripts/zoo.py`` writes both. Nothing
here imports PyTorch.
"""

from __future__ import annotations

import json
from typing import Any

import yaml

from csham.backbones.zoo import PREFIX, ZOO, zoo_names

__all__ = ["TABLE", "zoo_rows"]

TABLE = ZOO / "results.json"
"""File of the table, as ``csham list results --json`` prints it."""


def zoo_rows() -> list[dict[str, Any]]:
    """Return what there is to know of each network before it is loaded, by its card."""
    return [_row(name) for name in zoo_names()]


def _row(name: str) -> dict[str, Any]:
    config = json.loads((ZOO / name / "config.json").read_bytes())
    header = yaml.safe_load((ZOO / name / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    (measured,) = header["model-index"]
    (result,) = measured["results"]
    return {
        "name": f"{PREFIX}{name}",
        "summary": f"{measured['name']}, {config['weights']} weights",
        "data": f"{result['dataset']['name']}, {config['preprocessing']['center_crop']} px",
        "top1": next(metric["value"] for metric in result["metrics"] if metric["type"] == "accuracy"),
        "bytes": (ZOO / name / "model.safetensors").stat().st_size,
        "license": header["license"],
    }
