"""Studies whose cells are done by a stand-in for workers, which trains nothing; grid, store and words are real."""

import json
import os
import shlex
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
import yaml

from csham.backbones.zoo import weights_path
from csham.files import sha256_of
from csham.report.study_report import Report
from csham.study.results import assess
from csham.study.store import Store
from csham.study.study_file import read_study
from csham.training.interrupt import STOP_SIGNALS, TimeLimit


def results_alone(path):
    """What the report's writer returns, without a report."""
    store = Store(path)
    results = assess(store.study, store.records(), keys=[cell.key for cell in store.study.cells()])
    return Report(path / "report" / "index.html", results, [])


@pytest.fixture
def compare(csham, images, tmp_path, monkeypatch):
    """Call csham compare in an empty folder; ``.seeds()`` says which cells were run, ``.deeds`` what they shall do."""
    monkeypatch.setattr("csham.study.engines.local._WORKER", "worker_without_torch")
    places = [str(Path(__file__).parent.parent / "study"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, places)))
    monkeypatch.setenv("DIARY", str(tmp_path / "diary"))
    monkeypatch.setenv("DEEDS", "{}")
    # Pictures take seconds, and have tests of their own.
    monkeypatch.setattr("csham.report.study_report.write_report", results_alone)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*words, data=images, deeds=None):
        monkeypatch.setenv("DEEDS", json.dumps(deeds or {}))
        (tmp_path / "diary").write_text("")
        return csham("compare", *([data] if data else []), "--no-costs", *words)

    call.ran = lambda: [int(line.split()[0]) for line in (tmp_path / "diary").read_text().splitlines()]
    return call


SMALL = ["--backbones", "lenet5", "--attentions", "se", "--seeds", "2", "--epochs", "1", "--batch-size", "8"]
SMALL += ["--image-size", "32", "--precision", "fp32"]
STUDY = Path("studies/animals-fast-1epochs")


def test_a_study_is_made_run_and_gone_on_with(compare, images):
    code, out, err = compare(*SMALL)
    assert code == 0, err
    assert "lenet5 without attention is added" in err
    assert "[4/4] lenet5 + se, seed 1: top-1 50.00%" in err
    assert str(STUDY) in out
    assert f"report: {STUDY}/report/index.html" in out
    rows = [row for row in out.splitlines() if "lenet5" in row and "50.0" in row]
    assert len(rows) == 2, out
    assert "cannot tell yet" in rows[1]
    study = read_study(STUDY)
    assert [cell.label for cell in study.cells()][:2] == ["lenet5, seed 0", "lenet5 + se, seed 0"]
    assert study.settings["crop"] == "pad"
    assert study.data.source == str(images)
    assert compare.ran() == [0, 0, 1, 1]
    assert compare(*SMALL)[0] == 0
    assert compare.ran() == []


@pytest.mark.slow
def test_more_seeds_and_attentions_run_only_what_is_new(compare):
    compare(*SMALL)
    assert compare("--study", STUDY, "--seeds", "0,5", data=None)[0] == 0
    assert compare.ran() == [5, 5]
    assert compare("--study", STUDY, "--attentions", "eca,se,cbam:reversed", data=None)[0] == 0
    assert compare.ran() == [0, 0, 1, 1, 5, 5]
    assert compare("--study", STUDY, "--backbones", "resnet20", data=None)[0] == 0
    study = read_study(STUDY)
    assert [network.label for network in study.networks][4:] == [
        "resnet20", "resnet20 + se", "resnet20 + eca", "resnet20 + cbam (reversed)",
    ]  # fmt: skip
    assert len(Store(STUDY).records()) == len(study.cells()) == 24
    assert study.command.count("csham compare") == 4
    assert compare("--study", STUDY, "--worthwhile", "1.5", data=None)[0] == 0
    assert read_study(STUDY).worthwhile == 1.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "2", "--study", STUDY], "epochs is 1 there and 2 now"),
        (
            ["--lr", "0.3", "--batch-size", "16", "--study", STUDY],
            "batch_size is 8 there and 16 now; lr is 0.2 there and",
        ),
        (["--precision", "bf16", "--study", STUDY], "precision is 'fp32' there and 'bf16' now"),
        (["--image-size", "16", "--study", STUDY], "image_size is 32 there and 16 now"),
        (["--recipe", "paper", "--study", STUDY], "recipe is 'fast' there and 'paper' now; epochs is 1 there and 200"),
        (["--epochs", "1", "--lr", "0.1"], "lr is 0.2 there and 0.1 now"),
    ],
)
def test_a_changed_setting_is_refused(compare, words, message):
    compare(*SMALL)
    before = (STUDY / "study.yaml").read_text()
    code, _, err = compare(*words)
    assert code == 2
    assert message in err
    assert "--study OTHER" in err
    assert (STUDY / "study.yaml").read_text() == before
    assert compare.ran() == []


def test_where_settings_led_to_the_study_all_of_them_count(compare):
    compare(*SMALL, "--label-smoothing", "0.1", "--batch-size", "4")
    code, _, err = compare(*SMALL[:-6], "--precision", "fp32")
    assert code == 2
    assert "batch_size is 4 there and 8 now; label_smoothing is 0.1 there and 0.0 now" in err


def test_the_batch_fits_the_images_once_for_all_runs_and_the_steps_are_said(compare):
    words = [*SMALL[:-6], "--image-size", "32", "--precision", "fp32"]
    assert "--batch-size" not in words
    code, _, err = compare(*words)
    assert code == 0, err
    assert "42 training images in 6 batches of 8: 6 steps in 1 epoch" in err
    assert err.count("warning: 6 steps are few") == 1
    study = read_study(STUDY)
    assert (study.settings["batch_size"], study.settings["last_batch"]) == (8, "fill")
    assert compare(*words)[0] == 0
    assert compare.ran() == []


@pytest.mark.slow
def test_a_study_from_before_batches_were_fitted_goes_on_as_it_was(compare):
    compare(*SMALL[:-4], "--batch-size", "128", "--image-size", "32", "--precision", "fp32")
    text = (STUDY / "study.yaml").read_text()
    (STUDY / "study.yaml").write_text(text.replace("  last_batch: fill\n", ""))
    records = STUDY / "records.jsonl"
    records.unlink()
    keys = [cell.key for cell in read_study(STUDY).cells()]
    code, _, err = compare(*SMALL[:-6], "--seeds", "3", "--image-size", "32", "--precision", "fp32")
    assert code == 0, err
    study = read_study(STUDY)
    assert (study.settings["batch_size"], study.settings["last_batch"]) == (128, "drop")
    assert [cell.key for cell in study.cells()][: len(keys)] == keys
    again = compare("--config", STUDY / "study.yaml", "--study", "again", data=None)
    assert again[0] == 0, again[2]
    assert [cell.key for cell in read_study(Path("again")).cells()] == [cell.key for cell in study.cells()]
    code, _, err = compare("--config", STUDY / "study.yaml", "--study", STUDY, data=None)
    assert code == 0, err


def test_what_does_not_change_results_may_differ(compare):
    compare(*SMALL)
    words = ["--no-compile", "--device", "cpu", "--checkpoint-steps", "3", "--max-bad", "2", "--recipe", "fast"]
    assert compare(*words, "--study", STUDY)[0] == 0


def test_images_are_known_by_content(compare, images, tmp_path, write_images):
    compare(*SMALL)
    shutil.copytree(images, tmp_path / "moved")
    assert compare("--study", STUDY, data=tmp_path / "moved")[0] == 0
    assert read_study(STUDY).data.source == str(tmp_path / "moved")
    other = write_images(tmp_path / "other", seed=5)
    code, _, err = compare("--study", STUDY, data=other)
    assert code == 2
    assert "its images changed" in err
    next((tmp_path / "moved" / "ant").iterdir()).unlink()
    code, _, err = compare("--study", STUDY, data=tmp_path / "moved")
    assert "it had 60 images and has 59" in err


def test_a_grid_from_a_file_under_the_command_line(compare, tmp_path):
    grid = {
        "backbones": ["lenet5"], "attentions": ["none", None, "se"], "seeds": [3], "epochs": 1, "lr": 0.05,
        "batch_size": 8, "precision": "fp32", "worthwhile": 1,
        "networks": [{"backbone": "lenet5", "attention": "se", "gated": True}],
    }  # fmt: skip
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    code, _, err = compare("--config", tmp_path / "grid.yaml", "--lr", "0.07", "--study", "mine")
    assert code == 0, err
    study = read_study(Path("mine"))
    assert [network.label for network in study.networks] == ["lenet5", "lenet5 + se", "lenet5 + se (gated)"]
    assert (study.seeds, study.settings["lr"], study.worthwhile) == ((3,), 0.07, 1.0)
    assert study.settings["weight_decay"] == 5e-4  # of the recipe
    code, _, err = compare("--config", "mine/study.yaml", "--study", "again", data=None)
    assert code == 0, err
    assert [cell.key for cell in read_study(Path("again")).cells()] == [cell.key for cell in study.cells()]


def test_a_study_of_a_runs_settings(compare, csham, images, tmp_path):
    words = "--backbone lenet5 --attention csham --strategy reversed --recipe quick --epochs 1 --batch-size 8 --lr 0.07"
    run = tmp_path / "run"
    assert csham("train", images, *words.split(), "--image-size", "32", "--device", "cpu", "--run", run)[0] == 0
    code, _, err = compare("--config", run / "config.yaml", "--seeds", "0,4", "--study", "of-run", data=None)
    assert code == 0, err
    study = read_study(Path("of-run"))
    assert [network.label for network in study.networks] == ["lenet5", "lenet5 + csham (reversed)"]
    assert (study.seeds, study.settings["lr"], study.settings["recipe"]) == ((0, 4), 0.07, "quick")
    code, _, err = compare(
        "--config", run / "config.yaml", "--attention", "se", "--seed", "3", "--study", "b", data=None
    )
    assert code == 0, err
    assert [network.label for network in read_study(Path("b")).networks] == ["lenet5", "lenet5 + se"]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("attention: se\nattentions: [eca]", "attention and attentions are the same key"),
        ("attention: [se]", "attentions must be a list of names"),
        ("epoch: 3", "unknown key 'epoch'. Did you mean 'epochs'"),
        ("epochs: '3'", "--epochs must be a whole number"),
        ("networks: se", "networks must be a list"),
        ("networks: [{backbone: lenet5, gate: true}]", "Did you mean 'gated'"),
        ("seeds: many", "--seeds takes"),
        ("worthwhile: [1]", "worthwhile must be a number"),
        ("- 1", "should hold settings such as"),
        ("a: [", "is not a YAML file"),
    ],
)
def test_a_grid_that_cannot_be(compare, tmp_path, grid, message):
    (tmp_path / "grid.yaml").write_text(grid)
    code, _, err = compare("--config", tmp_path / "grid.yaml")
    assert code == 2
    assert message in err
    assert str(tmp_path / "grid.yaml") in err
    assert not Path("studies").exists()


def test_weights_that_do_not_fit_are_refused_before_any_cell(compare, tmp_path):
    torch.save({"conv1.weight": torch.zeros(6, 3, 3, 3)}, tmp_path / "weights.pth")
    code, _, err = compare(*SMALL, "--weights-file", tmp_path / "weights.pth")
    assert code == 2
    assert "weights.pth does not fit lenet5: " in err
    assert list(Path().iterdir()) == []
    assert compare.ran() == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--backbones lenet6", "Did you mean 'lenet5'"),
        ("--attentions cbma", "Did you mean 'cbam'"),
        ("--attentions csham:tranfer", "Did you mean 'transfer'"),
        ("--attentions se:transfer", "'se' has none"),
        ("--strategies tranfer", "Did you mean 'transfer'"),
        ("--attentions ,", "--attentions names nothing"),
        ("--attentions se --period 3", "--period is a setting of strategy 'transfer'"),
        ("--seeds 0", "--seeds takes"),
        ("--seed 0,x", "--seed takes whole numbers with commas between them, got '0,x'"),
        ("--shard 0/2", "--shard takes"),
        ("--shard 3/2", "--shard takes"),
        ("--shard half", "--shard takes"),
        ("--jobs 0", "--jobs must be at least 1"),
        ("--recipe fats", "Did you mean 'fast'"),
        ("--epochs 0", "--epochs must be at least 1"),
        ("--worthwhile -1", "--worthwhile"),
        ("--study taken.txt", "is a file"),
        ("--study taken", "is neither a study nor empty"),
        ("--precision fp16 --device cpu", "fp16 needs CUDA"),
        ("--weights-file nowhere.pt", "there is no file of weights nowhere.pt"),
        ("--backbones lenet5 --pretrained", "no pretrained weights"),
        ("--config nowhere.yaml", "nowhere.yaml"),
    ],
)
def test_what_cannot_be_leaves_nothing_behind(compare, words, message):
    Path("taken").mkdir()
    Path("taken/thesis.txt").touch()
    Path("taken.txt").touch()
    code, _, err = compare(*words.split())
    assert code == 2
    assert message in err
    assert sorted(path.name for path in Path().iterdir()) == ["taken", "taken.txt"]
    assert compare.ran() == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--engine rai", "unknown engine 'rai'. Did you mean 'ray'"),
        ("--address auto", "--address is an option of --engine ray"),
        ("--cpus-per-cell 2", "--cpus-per-cell is an option of --engine ray"),
        ("--engine ray --cpus-per-cell 0", "--cpus-per-cell must be at least 1"),
        ("--engine ray --together", "--together is an option of --engine local"),
        ("--backbones googlenet --budget-control", "googlenet can be neither widened nor deepened"),
    ],
)
def test_engines_and_controls_that_cannot_be(compare, words, message):
    code, _, err = compare(*words.split())
    assert code == 2
    assert message in err
    assert list(Path().iterdir()) == []


def test_budget_controls_are_looked_for_once(compare, monkeypatch):
    asked = []

    def measure(networks):
        asked.append([network.label for network in networks])
        # What an attention adds, and a factor of the width.
        return {
            n.label: float(n.backbone.partition("@width=")[2] or 1) + 0.3 * (n.attention != "none") for n in networks
        }

    monkeypatch.setattr("csham.study.run.step_times", lambda **_: measure)
    assert compare(*SMALL, "--budget-control")[0] == 0
    study = read_study(STUDY)
    assert [network.label for network in study.networks] == [
        "lenet5", "lenet5 + se", "lenet5@width=1.3 (instead of lenet5 + se)",
    ]  # fmt: skip
    assert study.controlled == ("lenet5 + se",)
    assert compare.ran() == [0, 0, 0, 1, 1, 1]
    calls = len(asked)
    assert compare("--study", STUDY, "--budget-control", data=None)[0] == 0
    assert len(asked) == calls
    assert compare.ran() == []


@pytest.mark.slow
def test_costs_are_measured_once_at_the_end(compare):
    assert compare(*SMALL, "--costs", "--seeds", "1", "--shard", "1/2")[0] == 0
    assert not (STUDY / "costs.json").exists()  # another part's cells are not done
    assert compare("--study", STUDY, "--costs", data=None)[0] == 0
    costs = json.loads((STUDY / "costs.json").read_text())
    assert [row["network"] for row in costs["costs"]] == ["lenet5", "lenet5 + se"]
    assert all(row["train_step_ms"] > 0 and row["latency_ms"] > 0 for row in costs["costs"])
    before = (STUDY / "costs.json").stat().st_mtime_ns
    assert compare("--study", STUDY, "--costs", data=None)[0] == 0
    assert (STUDY / "costs.json").stat().st_mtime_ns == before


def test_without_the_packages_of_the_report_it_trains_and_says_what_to_install(compare, monkeypatch):
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "jinja2", None)
        code, out, err = compare(*SMALL, "--json")
        assert code == 0
        assert 'needs jinja2. Install them: pip install "csham[report]". Then: csham report ' in err
        found = json.loads(out)
        assert found["report"] is found["results"] is None
        assert len(compare.ran()) == len([cell for cell in found["cells"] if cell["state"] == "done"]) == 4
    assert compare("--study", STUDY, data=None)[0] == 0
    assert compare.ran() == []


def test_without_data(compare):
    code, _, err = compare(data=None)
    assert code == 2
    assert "no data" in err
    code, _, err = compare("--study", "nowhere", data=None)
    assert code == 2
    assert "there is no study nowhere" in err
    Path("lost").mkdir()
    Path("lost/records.jsonl").touch()
    code, _, err = compare("--study", "lost", data=None)
    assert code == 2
    assert "lost is not a study: it has no study.yaml" in err


def test_failed_cells_are_listed_with_the_way_on(compare):
    code, out, err = compare(*SMALL, deeds={"1": ["fail"]})
    assert code == 1
    assert "1 failed:\n  lenet5, seed 1: E: m\n" in err
    assert f"csham compare --study {STUDY} --retry-failed --no-costs --precision fp32\n" in err
    assert "1/2" in out
    assert compare("--study", STUDY, data=None)[0] == 1
    assert compare.ran() == []
    assert compare("--study", STUDY, "--retry-failed", data=None)[0] == 0
    assert compare.ran() == [1]


def test_json(compare):
    code, out, _ = compare(*SMALL, "--json", "--quiet", deeds={"1": ["fail"]})
    found = json.loads(out)
    assert code == 1
    assert (found["study"], found["finished"]) == (str(STUDY), False)
    assert found["results"]["comparisons"][0]["verdict"] == "cannot tell yet"
    assert [(cell["network"], cell["seed"], cell["state"], cell["top1"]) for cell in found["cells"]] == [
        ("lenet5", 0, "done", 50.0),
        ("lenet5 + se", 0, "done", 50.0),
        ("lenet5", 1, "failed", None),
        ("lenet5 + se", 1, "done", 50.0),
    ]


def test_shards_do_their_part(compare):
    assert compare(*SMALL, "--shard", "2/2")[0] == 0
    assert {record["label"] for record in Store(STUDY).records()} == {"lenet5 + se"}
    assert compare(*SMALL, "--shard", "1/2", "--quiet")[0] == 0
    assert len(Store(STUDY).records()) == 4


@pytest.mark.slow
def test_a_plan_is_written_trained_on_two_machines_and_put_together(compare, tmp_path):
    code, out, err = compare(*SMALL, "--study", "plan", "--no-train")
    assert code == 0, err
    assert compare.ran() == []
    assert "4 of 4 cells are not done" in err
    assert "4 runs are still to come" in out
    for number in (1, 2):
        shutil.copytree("plan", f"machine{number}")
        assert compare("--study", f"machine{number}", "--shard", f"{number}/2", data=None)[0] == 0
    merge = ("--study", "plan", "--merge", "machine1", "--merge", "machine2/records.jsonl")
    code, _, err = compare(*merge, "--no-train", data=None)
    assert code == 0
    assert "machine1: 2 taken over" in err
    assert "machine2: 2 taken over" in err
    assert compare.ran() == []
    code, _, err = compare(*merge, data=None)  # nothing is left to train
    assert (code, compare.ran()) == (0, [])
    assert "2 known already" in err
    assert len(Store(tmp_path / "here" / "plan").records()) == 4
    assert compare("--study", "plan", "--merge", "nowhere", data=None)[0] == 2


def test_a_store_that_cannot_be_merged_leaves_the_study_as_it_is(compare):
    compare(*SMALL)
    compare(*SMALL, "--lr", "0.1", "--seeds", "2,3", "--study", "other")
    before = (STUDY / "study.yaml").read_bytes()
    code, _, err = compare("--study", STUDY, "--no-train", "--seeds", "4", "--merge", "other", data=None)
    assert code == 2
    assert "lr is 0.1 there, and 0.2 in the study. Only stores of one study can be put together" in err
    assert (STUDY / "study.yaml").read_bytes() == before
    code, _, err = compare(*SMALL, "--study", "new", "--seeds", "4", "--no-train", "--merge", "other")
    assert code == 2
    assert not Path("new").exists()


@pytest.fixture
def signalled(monkeypatch):
    """Function that sends this process a signal once a cell sleeps."""
    from csham.study.progress import PlainStudyProgress

    def send(signum):
        def stop(self, job, label, where, fraction, images_per_s):
            if fraction:
                os.kill(os.getpid(), signum)

        monkeypatch.setattr(PlainStudyProgress, "cell", stop)

    return send


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_signal_says_how_to_go_on(compare, signalled, signum):
    signalled(signum)
    code, _, err = compare(*SMALL, deeds={"1": ["sleep"]})
    assert code == 128 + signum, err
    assert f"To go on: csham compare --study {STUDY} --no-costs --precision fp32\n" in err
    assert len(Store(STUDY).records()) == 2


def test_the_command_that_goes_on_keeps_the_machines_settings(compare, signalled, tmp_path):
    signalled(signal.SIGINT)
    (tmp_path / "grid.yaml").write_text("device: cpu\nmax_bad: 3\ncheckpoint_seconds: 60\n")
    words = ["--config", tmp_path / "grid.yaml", "--no-compile", "--checkpoint-steps", "5", "--trackers", "none"]
    code, _, err = compare(*SMALL, *words, "--retry-failed", "--apart", deeds={"1": ["sleep"]})
    assert code == 130, err
    (again,) = [line for line in err.splitlines() if "To go on: " in line]
    words = "--max-bad 3 --device cpu --precision fp32 --no-compile --checkpoint-steps 5 --trackers none --apart"
    assert again.endswith(f"--study {STUDY} --retry-failed --no-costs {words}")
    signalled(0)
    assert compare(*shlex.split(again)[shlex.split(again).index("--study") :], data=None)[0] == 0


def test_a_study_of_the_zoos_weights_has_their_name_and_their_sum(compare):
    words = [*SMALL[4:], "--backbones", "resnet14", "--attentions", "none", "--recipe", "finetune"]
    code, _, err = compare(*words, "--weights-file", "zoo:resnet14-digits", "--study", "study", "--no-train")
    study = Store("study").study
    assert study.settings["weights_file"] == "zoo:resnet14-digits", err
    assert study.weights_sha256 == sha256_of(weights_path("zoo:resnet14-digits"))
    assert compare("--weights-file", "zoo:resnet14-digits", "--study", "study", "--no-train")[0] == code == 0


@pytest.mark.usefixtures("own_names")
def test_the_command_that_goes_on_names_the_code_of_the_whole_study(compare, signalled):
    signalled(signal.SIGINT)
    gate = "from torch import nn\n\nclass Gate(nn.Conv2d):\n    def __init__(self, channels):\n"
    Path("own_gate.py").write_text(f"{gate}        super().__init__(channels, channels, 1)\n")
    words = [*SMALL, "--seeds", "1", "--attentions", "own_gate:Gate", "--shard", "1/2"]
    code, _, err = compare(*words, deeds={"0": ["sleep"]})
    assert code == 130, err
    assert f"To go on: csham compare --study {STUDY} --code own_gate:Gate" in err
    assert [cell.label for cell in Store(STUDY).study.part((1, 2))] == ["lenet5, seed 0"]


def test_a_study_whose_name_begins_with_a_dash(compare, signalled):
    signalled(signal.SIGINT)
    code, _, err = compare(*SMALL, "--study", "./-dash", deeds={"1": ["sleep"]})
    assert code == 130, err
    assert "To go on: csham compare --study ./-dash" in err
    assert compare("--study", "./-dash", data=None)[0] == 0
    assert len(Store("-dash").records()) == 4


def test_the_end_of_the_time_says_how_to_go_on(compare, monkeypatch):
    from csham.study.progress import PlainStudyProgress

    def stop(self, job, label, where, fraction, images_per_s):
        if fraction:  # an hour later
            TimeLimit.left = lambda limit: -1.0

    monkeypatch.setattr(TimeLimit, "left", TimeLimit.left)
    monkeypatch.setattr(PlainStudyProgress, "cell", stop)
    code, _, err = compare(*SMALL, "--minutes", "60", "--jobs", "2", "--together", deeds={"1": ["sleep"]})
    assert code == 142, err
    last = err.splitlines()[-1]
    assert last.startswith("stopped for time (--minutes 60), and saved. To go on: csham compare --study")
    assert last.endswith(f"--study {STUDY} --no-costs --precision fp32 --jobs 2 --together --minutes 60")
    assert Store(STUDY).study.settings.keys().isdisjoint({"minutes"})


def test_what_is_no_time_is_refused(compare):
    code, _, err = compare(*SMALL, "--minutes", "-3")
    assert code == 2
    assert "--minutes must be a number above 0, got -3" in err
    assert not STUDY.exists()


def test_a_study_edited_by_hand_no_longer_fits_its_records(compare):
    compare(*SMALL)
    text = (STUDY / "study.yaml").read_text()
    (STUDY / "study.yaml").write_text(text.replace("lr: 0.2\n", "lr: 0.3\n"))
    code, _, err = compare("--study", STUDY, data=None)
    assert code == 2
    assert "of lenet5, seed 0, lr is 0.2 there, and 0.3 in the study" in err
    (STUDY / "study.yaml").write_text(text.replace("backbone: lenet5\n", "backbone: lenet6\n"))
    code, _, err = compare("--study", STUDY, data=None)
    assert code == 2
    assert "unknown backbone 'lenet6'. Did you mean 'lenet5'" in err
    (STUDY / "study.yaml").write_text(text.replace("- 0\n- 1\n", "- 1\n"))
    code, _, err = compare("--study", STUDY, data=None)
    assert code == 0
    assert "2 records of networks or seeds that study.yaml does not name are left out" in err


def test_a_torn_line_is_told_and_its_cell_done_again(compare):
    compare(*SMALL)
    content = (STUDY / "records.jsonl").read_bytes()
    (STUDY / "records.jsonl").write_bytes(content[:-30])
    code, _, err = compare("--study", STUDY, data=None)
    assert code == 0
    assert "was being written by a process that was killed" in err
    assert compare.ran() == [1]


def test_a_dry_run_lists_cells_and_hours_and_makes_nothing(compare, monkeypatch):
    small = [word if word != "se" else "simam" for word in SMALL]
    code, out, err = compare(*small, "--dry-run", "--device", "cpu")
    assert code == 0, err
    assert out.count("to do") == 5
    assert "4 cells to do: about 1 minute, estimated from a few training steps" in out
    assert not Path("studies").exists()
    compare(*small)
    run = STUDY / "runs" / "lenet5-seed7"
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    (run / "metrics.csv").write_text("epoch\n")
    before = (STUDY / "study.yaml").read_text()
    code, out, _ = compare("--dry-run", "--seeds", "0,7", "--device", "cpu", "--json", "--study", STUDY)
    found = json.loads(out)
    assert [(cell["network"], cell["seed"], cell["state"]) for cell in found["cells"]][4:] == [
        ("lenet5", 7, "cut off"),
        ("lenet5 + simam", 7, "to do"),
    ]
    assert found["cells"][0]["state"] == "done"
    assert found["cells"][0]["estimated_hours"] is None
    hours = [cell["estimated_hours"] for cell in found["cells"][4:]]
    assert all(0 < value < 0.1 for value in hours)
    assert found["estimated_hours"] == pytest.approx(sum(hours))
    assert (STUDY / "study.yaml").read_text() == before


def test_a_dry_run_names_a_network_that_cannot_be_trained(compare):
    words = [word if word != "se" else "csham:transfer" for word in SMALL]
    code, out, err = compare(*words, "--dry-run", "--device", "cpu")
    assert code == 0
    assert "lenet5 + csham (transfer) cannot be trained: UserError: strategy 'transfer' needs a stage with two" in err
    assert "about" not in out


def test_adopting_needs_runs(compare):
    code, _, err = compare(*SMALL, "--adopt", "nowhere")
    assert code == 2
    assert "--adopt nowhere: there is no run folder in it" in err
