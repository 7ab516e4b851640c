"""An addition of each kind works from outside the package, as CONTRIBUTING.md says under "How to add"."""

import csv
import json
import os
from pathlib import Path

import pytest
import torch

import csham
from csham.cli import main
from csham.data.sources import SOURCES
from csham.errors import UserError
from csham.export.formats import FORMATS
from csham.layers.names import ATTENTIONS
from csham.study.comparison_statistics import STATISTICS
from csham.training.metrics import METRICS

WORDS = "--backbones lenet5 --attentions mean --seeds 2 --epochs 1 --batch-size 8 --precision fp32 --device cpu"


@pytest.fixture(scope="module")
def additions():
    """The module of additions, known to this process and to workers."""
    here = str(Path(__file__).parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(here)
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")])))
        patch.setattr("csham.study.engines.local._WORKER", "additions")
        import additions

        before = [dict(names) for names in (ATTENTIONS, METRICS, STATISTICS, FORMATS)]
        kinds = [*SOURCES]
        additions.add()
        yield additions
        SOURCES[:] = kinds
        for names, entries in zip((ATTENTIONS, METRICS, STATISTICS, FORMATS), before, strict=True):
            names.clear()
            names.update(entries)


@pytest.fixture(scope="module")
def study(additions, tmp_path_factory):
    """A study of the added attention on the added source."""
    path = tmp_path_factory.mktemp("studies") / "stripes"
    words = ["compare", "stripes:", *WORDS.split(), "--no-compile", "--no-costs", "--quiet", "--study", str(path)]
    assert main(words) == 0
    return path


def test_an_attention(additions, capsys):
    layer = csham.create_attention("mean", 8, power=2)
    assert type(layer) is additions.Mean
    with pytest.raises(UserError, match=r"does not take these settings: powr\. It takes: power, device, dtype"):
        csham.create_attention("mean", 8, powr=2)
    model = csham.create_model("resnet20", num_classes=3, attention="mean")
    with csham.attention_maps(model) as maps:
        model(torch.randn(2, 3, 32, 32))
    assert {name for found in maps.values() for name in found} == {"channel"}
    assert main(["list", "attentions", "--json"]) == 0
    assert "gate of channel means" in [entry["summary"] for entry in json.loads(capsys.readouterr().out)]


@pytest.mark.slow
def test_a_source_a_metric_and_statistics_in_a_study(study, capsys):
    assert main(["report", str(study), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    results = results.get("results", results)
    [one] = results["comparisons"]
    assert one["label"] == "lenet5 + mean"
    low, high = sorted(one["differences"])
    assert (one["median"], one["range"]) == (pytest.approx((low + high) / 2), [low, high])
    assert results["networks"][0]["missed"]["n"] == 2
    tables = study / "report" / "tables"
    with (tables / "verdicts.csv").open(encoding="utf-8", newline="") as file:
        [row] = csv.DictReader(file)
    assert [float(row[key]) for key in ("median", "range_low", "range_high")] == [one["median"], low, high]
    head = (tables / "verdicts.md").read_text(encoding="utf-8").splitlines()[0]
    assert head.endswith("| seeds needed | median | least, most |")


@pytest.mark.slow
def test_an_export_format(additions, study, capsys):
    run = next(path.parent for path in study.glob("runs/*/summary.json"))
    assert main(["export", str(run), "--format", "packed", "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == str(run / "export" / "model.gz")
    assert found["dynamic"][0] == "batch"
    assert additions.open_packed(Path(found["path"]))(torch.zeros(5, 3, 32, 32)).shape == (5, 2)
