"""``csham profile``: rows, files, failures, Ctrl-C."""

import csv
import json

import pytest

import csham.backbones
from csham.cost.task import Task
from csham.layers.names import ATTENTIONS

SMALL = "profile --backbone resnet14 --num-classes 10 --image-size 16 --batch-size 2 --rounds 1 --device cpu --quiet"
QUICK = f"{SMALL} --no-training"


@pytest.fixture
def profile(csham, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words, base=QUICK: csham(*base.split(), *words)


def test_table_and_files(profile, tmp_path):
    files = "--csv rows.csv --output all.json --plot cost.png"
    strategies = "sequential,transfer"
    code, out, err = profile("--attention", "se,csham", "--strategy", strategies, *files.split(), base=SMALL)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("resnet14, 16 pixels, on ")
    assert "fp32, eager, batch 2" in lines[0]
    names = ["none", "se sequential", "csham sequential", "csham transfer"]
    rows = [line for line in lines if line.strip().startswith(tuple(names))]
    assert [" ".join(row.split()[: len(name.split())]) for row, name in zip(rows, names, strict=True)] == names
    assert "±: half the distance between the quartiles" in out

    content = json.loads((tmp_path / "all.json").read_text())
    assert content["finished"] is True
    assert content["machine"]["threads"] == 1
    assert [(row["attention"], row["strategy"]) for row in content["costs"]] == [
        ("none", ""), ("se", "sequential"), ("csham", "sequential"), ("csham", "transfer"),
    ]  # fmt: skip
    plain, se, whole, transfer = content["costs"]
    assert plain["params_extra"] == 0
    assert se["params_ratio"] == se["params"] / plain["params"] > 1
    assert whole["flops"] > transfer["flops"] > plain["flops"] > plain["flops_matmul"]
    assert all(row["train_step_ms_q1"] <= row["train_step_ms"] <= row["train_step_ms_q3"] for row in content["costs"])

    with (tmp_path / "rows.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [row["attention"] for row in written] == ["none", "se", "csham", "csham"]
    assert {"processor", "threads", "python", "torch", "commit", "date", "backbone", "height"} <= written[0].keys()
    assert float(written[1]["params_ratio"]) == pytest.approx(se["params_ratio"], rel=1e-5)
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["all.json", "cost.png", "rows.csv"]


def test_json_and_several_batches(profile):
    code, out, _ = profile("--attention", "csham_channel", "--batch-size", "1,3", "--precision", "fp32,bf16", "--json")
    assert code == 0
    rows = json.loads(out)["costs"]
    assert len(rows) == 8
    assert {(row["precision"], row["batch_size"]) for row in rows} == {
        ("fp32", 1),
        ("fp32", 3),
        ("bf16", 1),
        ("bf16", 3),
    }
    assert all(row["train_step_ms"] is None for row in rows)


@pytest.mark.long
@pytest.mark.slow
def test_all_is_every_attention(profile):
    code, out, err = profile("--attention", "all", "--backbone", "resnet14", "--json")
    assert (code, err) == (0, "")
    rows = json.loads(out)["costs"]
    assert [row["attention"] for row in rows] == ["none", *(name for name in ATTENTIONS if name != "none")]
    assert {row["attention"]: row["failed"] for row in rows if row["failed"]} == {}
    assert {row["flops_uncounted"] for row in rows} == {""}


def test_all_beside_a_name_is_all(profile):
    code, out, _ = profile("--attention", "csham", "--precision", "bf16,all", "--strategy", "transfer", "--json")
    assert code == 0
    assert [row["precision"] for row in json.loads(out)["costs"]] == ["fp32", "bf16"] * 2


def test_progress_is_told(csham):
    words = [word for word in QUICK.split() if word != "--quiet"]
    code, _, err = csham(*words, "--attention", "csham")
    assert code == 0
    assert "timing 2 networks, 1 rounds" in err


def test_an_attention_that_fails_is_a_row(profile, monkeypatch):
    create = csham.backbones.create_model

    def failing(backbone, **settings):
        if settings["attention"] == "se":
            raise RuntimeError("maps too small")
        return create(backbone, **settings)

    monkeypatch.setattr(csham.backbones, "create_model", failing)
    code, out, _ = profile("--attention", "se,csham_channel", "--plot", "cost.svg")
    assert code == 0
    assert "se: RuntimeError: maps too small" in out
    monkeypatch.setattr(csham.backbones, "create_model", lambda backbone, **settings: 1 / 0)
    code, out, err = profile()
    assert (code, out) == (2, "")
    assert "resnet14 cannot be measured: ZeroDivisionError" in err


def test_ctrl_c_leaves_what_was_measured(profile, tmp_path, monkeypatch):
    sample, count = Task.sample, []

    def interrupted(task):
        count.append(task)
        if len(count) == 4:  # of four in a round
            raise KeyboardInterrupt
        sample(task)

    monkeypatch.setattr(Task, "sample", interrupted)
    code, out, err = profile("--attention", "csham", "--csv", "rows.csv", "--output", "all.json", "--plot", "cost.png")
    assert code == 130
    assert "stopped; this is what had been measured by then" in err
    assert "csham" in out
    content = json.loads((tmp_path / "all.json").read_text())
    assert content["finished"] is False
    assert [row["flops"] > 0 for row in content["costs"]] == [True, True]
    assert sum(row["latency_ms"] is not None for row in content["costs"]) >= 1
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--backbone resnet19", "unknown backbone 'resnet19'. Did you mean 'resnet"),
        ("--attention csham,cshan", "unknown attention 'cshan'. Did you mean 'csham'"),
        ("--attention ,", "--attention names nothing"),
        ("--strategy transfr", "unknown strategy 'transfr'. Did you mean 'transfer'"),
        ("--attention se,eca --strategy transfer", "none of these attentions has the parts"),
        ("--position middle", "unknown position 'middle'"),
        ("--device gpu", "unknown device 'gpu'"),
        ("--precision fp23", "unknown precision 'fp23'. Did you mean 'fp32'"),
        ("--batch-size 1,x", "--batch-size takes whole numbers with commas between them, got '1,x'"),
        ("--batch-size 0", "--batch-size must be at least 1, got 0"),
        ("--image-size 0", "--image-size must be at least 1"),
        ("--rounds 0", "--rounds must be at least 1"),
        ("--num-classes 0", "--num-classes must be at least 1"),
        ("--threads 0", "--threads must be at least 1"),
        ("--seed -1", "seed must be a whole number from 0 to below 2**63, got -1"),
        ("--seconds nan", "seconds must be a number of 0 or more, got nan"),
        ("--attention cshan,all", "unknown attention 'cshan'. Did you mean 'csham'"),
        ("--csv nowhere/rows.csv", "there is no folder nowhere"),
        ("--output .", ". is a folder"),
        ("--plot cost.gif", "must end in .png, .svg, .pdf"),
        ("--compile", "torch.compile needs a C++ compiler, and there is no no-such-compiler"),
        ("--both", "Install it, or use --no-compile"),
    ],
)
def test_bad_input(profile, tmp_path, monkeypatch, words, message):
    monkeypatch.setenv("CXX", "no-such-compiler")
    code, out, err = profile(*words.split())
    assert (code, out) == (2, "")
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_help(csham):
    code, out, _ = csham("profile", "--help")
    assert code == 0
    for panel in ("Network", "Measuring", "Machine", "Output"):
        assert f" {panel} " in out
