from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from csham.cli import main


@pytest.fixture
def table(tmp_path: Path) -> Path:
    chance = random.Random(0)
    lines = ["name,seed,backbone,map50,val_loss"]
    for backbone in ("yolo11n", "yolov8n"):
        for seed in range(6):
            base = 0.5 + chance.gauss(0, 0.004)
            for name, gain in (("plain", 0.0), ("gate", 0.012), ("cbam", 0.0005)):
                value = base + gain + chance.gauss(0, 0.0015)
                lines.append(f"{name},{seed},{backbone},{value:.5f},{1.7 - value:.5f}")
    path = tmp_path / "results.csv"
    path.write_text("\n".join(lines))
    return path


def test_a_table_of_another_trainer_gets_its_verdicts(table: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["verdict", str(table), "--metric", "map50", "--group", "backbone"]) == 0

    out, err = capsys.readouterr()
    assert "gate helps yolo11n: +1." in out
    assert "baseline" in out
    assert "note: map50 was read as fractions of one" in err


def test_numbers_of_a_column_have_as_many_decimals(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tops = {"plain": [56.9, 57.1, 57.0], "gate": [56.4, 56.8, 56.6]}
    rows = [f"{name},{seed},{top}" for name, values in tops.items() for seed, top in enumerate(values)]
    (tmp_path / "runs.csv").write_text("\n".join(["name,seed,acc", *rows]))

    assert main(["verdict", str(tmp_path / "runs.csv"), "--metric", "acc"]) == 0

    out, _ = capsys.readouterr()
    assert " 57.00 " in out
    assert " 56.60 " in out


def test_several_metrics_have_margins_of_their_own(table: Path, capsys: pytest.CaptureFixture[str]):
    words = ["verdict", str(table), "--metrics", "map50,val_loss", "--groups", "backbone", "--json"]
    words += ["--lower-is-better", "val_loss", "--worthwhile", "map50=0.5,val_loss=0.001"]

    assert main(words) == 0

    content = json.loads(capsys.readouterr().out)
    assert [metric["worthwhile"] for metric in content["metrics"]] == [0.5, 0.001]
    assert [metric["better"] for metric in content["metrics"]] == ["higher", "lower"]
    gate = content["metrics"][1]["comparisons"][0]
    assert (gate["group"], gate["variant"], gate["verdict"]) == ("yolo11n", "gate", "helps")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metric", "map5", "--group", "backbone"], "Did you mean 'map50'"),
        (["--metric", "map50"], "two runs of plain, seed 0"),
        (
            ["--metric", "map50", "--group", "backbone", "--worthwhile", "much"],
            "--worthwhile takes numbers, got 'much'",
        ),
        (["--metric", "map50", "--group", "backbone", "--worthwhile", "=1"], "name=value for each"),
        (["--metric", "val_loss", "--group", "backbone"], "is lower better for val_loss"),
    ],
)
def test_slips_end_in_a_sentence(table: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["verdict", str(table), *words]) == 2
    assert message in capsys.readouterr().err
