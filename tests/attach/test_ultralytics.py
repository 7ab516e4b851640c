from __future__ import annotations

import copy
import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import csham
from csham.attach.install import attached_modules

ultralytics = pytest.importorskip("ultralytics", reason="Ultralytics is not installed: make test-yolo")

_PAGE = Path(__file__).parents[2] / "docs/yolo.md"


def _shapes(folder: Path) -> None:
    """Write a small detection dataset: red and green boxes on dark noise."""
    chance = np.random.default_rng(0)
    for part, count in (("train", 16), ("val", 8)):
        for kind in ("images", "labels"):
            (folder / kind / part).mkdir(parents=True)
        for number in range(count):
            image, lines = chance.integers(0, 80, (64, 64, 3), np.uint8), []
            for _ in range(chance.integers(1, 3)):
                (w, h), label = chance.integers(16, 32, 2), int(chance.integers(0, 2))
                x, y = chance.integers(0, 64 - w), chance.integers(0, 64 - h)
                image[y : y + h, x : x + w] = ((60, 220, 60), (220, 60, 60))[label]
                lines.append(f"{label} {(x + w / 2) / 64} {(y + h / 2) / 64} {w / 64} {h / 64}")
            Image.fromarray(image).save(folder / f"images/{part}/{number}.png")
            (folder / f"labels/{part}/{number}.txt").write_text("\n".join(lines))
    yaml = f"path: {folder}\ntrain: images/train\nval: images/val\nnames: [green, red]\n"
    (folder / "shapes.yaml").write_text(yaml)


@pytest.mark.parametrize(("name", "points"), [("yolo11n", 13), ("yolov8n", 6)])
def test_a_fused_network_keeps_its_attention(name: str, points: int):
    torch.manual_seed(0)
    model = ultralytics.YOLO(f"{name}.yaml").model.eval()
    assert len(csham.attach(model, "csham", gated=False)) == points
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # a norm that does something
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = copy.deepcopy(model)(x)[0]
        fused = copy.deepcopy(model).fuse(verbose=False)
        found = fused(x)[0]

    assert len(attached_modules(fused)) == points
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.long
def test_the_page_trains_with_attention_and_ends_in_a_verdict(tmp_path: Path):
    _shapes(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", _PAGE.read_text(), re.DOTALL))
    small = code.replace("range(5)", "range(2)").replace('("plain", "csham", "se")', '("plain", "csham")')
    quick = f"epochs=1, imgsz=64, batch=8, workers=0, plots=False, device='cpu', project={str(tmp_path / 'runs')!r}"
    small = small.replace("epochs=100", quick)
    assert small.count("imgsz=64") == small.count("range(2)") == 1
    (tmp_path / "study.py").write_text(small)
    environment = os.environ | {"YOLO_CONFIG_DIR": str(tmp_path), "YOLO_AUTOINSTALL": "false", "YOLO_OFFLINE": "true"}
    subprocess.run([sys.executable, "study.py"], cwd=tmp_path, env=environment, check=True)
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["plain", "csham"] * 2

    words = [sys.executable, "-m", "csham", "verdict", "results.csv", "--metric", "map50,map", "--unit", "fraction"]
    said = subprocess.run(words, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert "csham cannot be told from plain" in said.stdout

    weights = sorted(tmp_path.rglob("best.pt"), key=lambda path: path.stat().st_mtime)
    assert len(weights) == 4
    trained = ultralytics.YOLO(weights[-1])
    assert len(attached_modules(trained.model)) == 13
    assert not attached_modules(ultralytics.YOLO(weights[-2]).model)
    exported = trained.export(format="onnx", imgsz=64)
    image = str(tmp_path / "images/val/0.png")
    ours, theirs = (
        ultralytics.YOLO(path, task="detect").predict(image, imgsz=64, conf=0.0)[0] for path in (weights[-1], exported)
    )
    np.testing.assert_allclose(ours.boxes.conf[:5], theirs.boxes.conf[:5], atol=1e-4)
