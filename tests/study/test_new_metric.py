"""A metric is declared in one place: an entry from outside is measured, written down and shown wherever others are."""

import csv
import json
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from csham.cli import main
from csham.data import prepare
from csham.data.dataset import describe_data
from csham.report.study_report import write_report
from csham.share import model_card
from csham.study.cell import CellRunner
from csham.study.grid import Data, Network
from csham.study.store import Store
from csham.training.metrics import METRICS, Metric, StudyColumn
from csham.training.run_folder import RunFolder

MISSED = Metric(
    name="missed",
    title="missed",
    label="images missed",
    summary="Share of the images that are named wrong.",
    compute=lambda predictions, classes: 1 - predictions.hits[:, 0].mean(),
    unit="%",
    better="lower",
    every_epoch=True,
    study=StudyColumn("missed", "missed", "Of the last epoch.", every_run=True, digits=1),
    hub="error",
)


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setitem(METRICS, MISSED.name, MISSED)


@pytest.fixture
def study(images, make_study, tmp_path):
    """Function that runs a study of one cell and returns its folder and that of the run."""

    def run():
        found = describe_data(prepare(str(images), image_size=32))
        study = make_study([Network("lenet5")], [0], data=str(images), batch_size=8, lr=0.05)
        study = replace(study, data=Data(str(images), 3, found["images"], 32, found["fingerprint"]))
        store = Store(tmp_path / "study")
        with store.changing_study():
            store.write_study(study)
        record = CellRunner(store, {"device": "cpu", "compile": False}).run(study.cells()[0].key)
        return store.path, store.path / record["run"]

    return run


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("known")
def test_a_new_metric_is_everywhere(study, capsys):
    folder, run = study()
    summary = json.loads((run / "summary.json").read_text())
    missed = summary["missed"]
    assert missed == pytest.approx(100 - summary["top1"], abs=1e-3)
    assert rows(run / "metrics.csv")[-1]["val_missed"]

    assert main(["evaluate", str(run), "--quiet"]) == 0
    head = next(line for line in capsys.readouterr().out.splitlines() if "kappa" in line)
    # After what is better when higher, in the order of the declarations.
    assert head.split()[-5:] == ["loss", "Brier", "ECE", "missed", "images"]

    card = ModelCard(model_card(RunFolder(run), weights="last", license="mit"))
    assert f"| images missed, % | {missed:,.4f} |" in card.text
    measured = card.data.to_dict()["model-index"][0]["results"][0]["metrics"]
    assert {"type": "error", "name": "images missed, %", "value": missed} in measured

    report = write_report(folder)
    tables = report.page.parent / "tables"
    assert float(rows(tables / "networks.csv")[0]["missed_mean"]) == missed
    assert float(rows(tables / "runs.csv")[0]["missed"]) == missed
    assert report.results.to_dict()["networks"][0]["missed"]["mean"] == missed
    for table in ("networks", "runs"):
        assert "missed, % |" in (tables / f"{table}.md").read_text(encoding="utf-8")
    assert "missed, %" in report.page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_runs_from_before_it_are_shown_without_it(study, monkeypatch):
    folder, run = study()
    before = write_report(folder, folder / "before").page.parent
    card = model_card(RunFolder(run), weights="last", license="mit")
    monkeypatch.setitem(METRICS, MISSED.name, MISSED)
    after = write_report(folder, folder / "after").page.parent
    for table in ("networks", "runs"):
        name = f"tables/{table}.csv"
        assert (before / name).read_bytes() == (after / name).read_bytes()
    assert "images missed" not in card
    assert "images missed" not in model_card(RunFolder(run), weights="last", license="mit")
