"""Attentions and backbones of the user's own on the command line: named, remembered, never run for a file's sake."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import csham
from csham.backbones.own import use_code
from csham.errors import UserError
from csham.study.cell import adopt_runs
from csham.study.grid import Network
from csham.study.store import Store
from csham.study.study_file import write_study
from csham.training import train
from csham.training.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_names")]

GATE = """
import torch
from torch import nn

class Gate(nn.Module):
    \"\"\"Gate of each channel by how much it varies.\"\"\"

    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return x * (self.scale * x.std((2, 3), unbiased=False)).sigmoid()[:, :, None, None]
"""
NAME = "own_gate:Gate"
WORDS = ["digits", "--recipe", "quick", "--epochs", "1", "--no-compile", "--device", "cpu", "--quiet"]
STUDY = ["--no-costs", "--seeds", "1", "--study", "study"]


def run(folder, calls):
    """Call commands in a process of their own, one after the other."""
    code = "import json, sys; from csham.cli import main; sys.exit(any(map(main, json.loads(sys.argv[1]))))"
    command = [sys.executable, "-c", code, json.dumps(calls)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a gate, a run of it, what was shared of that, and a study."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_gate.py").write_text(GATE)
    calls = [
        ["train", *WORDS, "--backbone", "lenet5", "--attention", NAME, "--run", "runs/one"],
        ["share", "runs/one", "shared", "--code", NAME, "--quiet"],
        ["compare", *WORDS, *f"--backbones lenet5 --attentions none,{NAME}:entry".split(), *STUDY],
    ]
    run(folder, calls)
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A copy of that folder, and the working folder."""
    shutil.copytree(made, tmp_path / "own", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path / "own")
    return tmp_path / "own"


def test_a_run_remembers_where_its_attention_came_from(made):
    folder = RunFolder(made / "runs/one")
    code = folder.read_json("environment.json")["attention"]
    assert (code["module"], code["name"], code["file"]) == ("own_gate", "Gate", str(made / "own_gate.py"))
    config = yaml.safe_load(folder.config_file.read_text())
    assert (config["attention"], config["attention_sha256"]) == (NAME, code["sha256"])
    shared = json.loads((made / "shared/config.json").read_text())
    assert shared["network"]["attention_sha256"] == code["sha256"]
    assert 'csham.register_attention("own_gate:Gate", Gate)' in (made / "shared/README.md").read_text()


def test_a_run_is_named_after_the_class(here, csham):
    code, _, err = csham("train", *WORDS, "--backbone", "lenet5", "--attention", NAME)
    assert code == 0, err
    assert (here / "runs/digits-lenet5-Gate-quick-1epochs-seed0/summary.json").is_file()


READING = [
    "evaluate runs/one",
    "predict runs/one image.png",
    "predict shared image.png",
    "predict runs/one/model.safetensors image.png",
    "explain runs/one image.png",
    "export runs/one",
    "share runs/one elsewhere",
    "app runs/one",
    "train --resume runs/one",
    "train --config runs/one/config.yaml --run runs/two",
    "compare --study study",
    "compare --study study --attentions se",
    "compare digits --config study/study.yaml --study other",
    "compare digits --attentions none --recipe quick --epochs 1 --study study --adopt runs",
]


@pytest.mark.parametrize("words", READING)
def test_a_file_that_names_code_does_not_run_it(words, here, csham, images):
    shutil.copy(next(images.rglob("*.png")), "image.png")
    for module in ("own_gate.py", "own_gate/__init__.py", "runs/one/own_gate.py", "study/own_gate.py"):
        Path(module).parent.mkdir(exist_ok=True)
        Path(module).write_text("open('/'.join([__import__('os').getcwd(), 'ran']), 'w').close()\n" + GATE)
    code, _, err = csham(*words.split())
    assert code == 2
    assert f"To run it, add --code {NAME};" in err
    assert not (here / "ran").exists()
    assert "own_gate" not in sys.modules


def test_code_that_is_named_is_all_that_runs(here, csham):
    Path("own_gate.py").write_text("open('ran', 'w').close()\n" + GATE)
    Path("own_other.py").write_text(GATE)
    code, _, err = csham("evaluate", "runs/one", "--code", "own_other:Gate", "--quiet")
    assert code == 2
    assert f"add --code {NAME}" in err
    assert not (here / "ran").exists()
    assert csham("evaluate", "runs/one", "--code", NAME, "--quiet")[0] == 0
    assert (here / "ran").exists()


def test_a_study_and_its_report_need_no_code_to_be_read(here, csham):
    code, out, err = csham("report", "study")
    assert code == 0, err
    assert "own_gate:Gate" in out
    assert "own_gate" not in sys.modules


def test_named_code_is_run_and_agrees(here, csham, images):
    code, out, err = csham("evaluate", "runs/one", "--code", NAME, "--json")
    assert code == 0, err
    assert json.loads(out)["top1"] == RunFolder(Path("runs/one")).read_summary()["top1"]
    assert "was changed" not in err
    image = next(images.rglob("*.png"))
    code, out, err = csham("explain", "runs/one", image, "--code", NAME, "--json", "--quiet")
    assert code == 0, err
    assert "own_gate:Gate has no method weights" in out
    code, _, err = csham("predict", "shared", image, "--code", NAME, "--json", "--quiet")
    assert code == 0, err
    code, out, err = csham("compare", "--study", "study", "--code", NAME, "--no-costs", "--json")
    assert code == 0, err
    assert len(json.loads(out)["cells"]) == 2


def test_python_loads_a_run_once_its_attention_is_registered(here):
    with pytest.raises(UserError, match="is run only where you name it"):
        csham.load("shared")
    sys.path.insert(0, str(here))
    import own_gate

    csham.register_attention(NAME, own_gate.Gate)
    for path in ("shared", "runs/one"):
        assert csham.load(path).info.attention == NAME


def test_edited_code_is_noticed(here, csham):
    Path("own_gate.py").write_text(GATE + "\n# another\n")
    code, _, err = csham("evaluate", "runs/one", "--code", NAME, "--quiet")
    assert code == 0
    assert "note: the code of own_gate:Gate was changed: its SHA-256 began with" in err
    (here / "runs/one/summary.json").unlink()
    code, _, err = csham("train", "--resume", "runs/one", "--code", NAME, "--quiet")
    assert code == 2
    assert "was changed" in err
    assert "Results of both would mix" in err
    code, _, err = csham("train", "--config", "runs/one/config.yaml", "--run", "runs/two", "--code", NAME, "--quiet")
    assert code == 0, err
    with pytest.raises(UserError, match="Results of both would mix"):
        train(RunFolder(Path("runs/one")).read_config(), run="runs/three")
    assert not Path("runs/three").exists()
    one, two = (RunFolder(Path("runs", name)).read_config().attention_sha256 for name in ("one", "two"))
    assert one != two


def test_a_run_of_other_code_is_not_adopted(here):
    use_code(NAME)
    store, notes = Store(here / "study"), []

    def adopt(network):
        write_study(store.path, replace(store.study, networks=(Network("lenet5"), network)))
        return adopt_runs(store, Path("runs/one"), notes.append)

    assert adopt(Network("lenet5", NAME, attention_sha256="0" * 64)) == []
    assert "runs/one is left out: the code of its attention is another than the study's" in notes[0]
    assert [cell.network.attention for cell in adopt(Network("lenet5", NAME).with_code())] == [NAME]


def test_edited_code_makes_new_cells_of_a_study(here, csham):
    before = RunFolder(here / "study/runs").path
    assert len(list(before.iterdir())) == 2
    Path("own_gate.py").write_text(GATE + "\n# another\n")
    code, out, err = csham("compare", "--study", "study", "--attentions", f"{NAME}:entry", "--dry-run", "--json")
    assert code == 0, err
    states = [cell["state"] for cell in json.loads(out)["cells"]]
    assert len(states) == 3
    assert "its code was edited since. What is done stays" in err


def test_code_edited_before_anything_is_done_takes_the_olds_place(here, csham):
    records = (here / "study/records.jsonl").read_text().splitlines(keepends=True)
    (here / "study/records.jsonl").write_text("".join(line for line in records if NAME not in line))
    for path in (here / "study/runs").glob("*Gate*"):
        shutil.rmtree(path)
    Path("own_gate.py").write_text(GATE + "\n# another\n")
    code, out, err = csham("compare", "--study", "study", "--code", NAME, "--dry-run", "--json")
    assert code == 0, err
    assert len(json.loads(out)["cells"]) == 2
    assert "it was edited before a run was done" in err


def test_profile_measures_it_beside_others(here, csham):
    words = ["--backbone", "lenet5", "--num-classes", 10, "--rounds", 1, "--no-training", "--quiet", "--json"]
    code, out, err = csham("profile", "--attention", f"se,{NAME}", *words)
    assert code == 0, err
    costs = {row["attention"]: row for row in json.loads(out)["costs"]}
    assert costs[NAME]["params"] == costs["none"]["params"] + 6 + 16


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train digits --attention own_gat:Gate", "there is no module own_gat"),
        ("train digits --attention own_gate:Gat", "has no Gat. Did you mean 'Gate'"),
        ("train digits --backbone lenet5 --attention csham:transfer", "unknown attention 'csham:transfer'"),
        ("compare digits --attentions own_gate:Gate:transfer", "'own_gate:Gate' has none. Use strategy"),
        ("compare digits --attentions own_gate:Gate:transfr", "unknown strategy 'transfr'. Did you mean 'transfer'"),
        ("compare digits --attentions csham:transfr", "unknown strategy 'transfr'"),
        ("compare digits --attentions own_gate:Gate:entry:entry", "unknown attention 'own_gate:Gate:entry'"),
        ("evaluate runs/one --code own_gate.py", "names no code"),
    ],
)
def test_what_cannot_be_named(words, message, here, csham):
    code, _, err = csham(*words.split())
    assert code == 2
    assert message in err


NET = """
from torch import nn

class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, x):
        return (x + self.norm(self.conv(x))).relu()

class Net(nn.Sequential):
    \"\"\"A net of two blocks.\"\"\"

    def __init__(self, num_classes, image_size=24):
        pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(nn.Conv2d(3, 8, 3, 2, 1), Block(8), Block(8), pool, nn.Linear(8, num_classes))
"""
BACKBONE = "own_net:Net"


@pytest.fixture(scope="module")
def made_net(tmp_path_factory):
    """A folder with a network, a run of it with an attention of the user's own too, and a study."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_net.py").write_text(NET)
    (folder / "own_gate.py").write_text(GATE)
    calls = [
        ["train", *WORDS, "--backbone", BACKBONE, "--attention", NAME, "--run", "runs/one"],
        ["share", "runs/one", "shared", "--code", NAME, "--code", BACKBONE, "--quiet"],
        ["compare", *WORDS, *f"--backbones {BACKBONE} --attentions none,se".split(), *STUDY],
    ]
    run(folder, calls)
    return folder


@pytest.fixture
def net_here(made_net, tmp_path, monkeypatch):
    """A copy of that folder, and the working folder."""
    shutil.copytree(made_net, tmp_path / "own", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path / "own")
    return tmp_path / "own"


@pytest.mark.slow
@pytest.mark.long
def test_a_run_remembers_where_its_backbone_came_from(made_net):
    folder = RunFolder(made_net / "runs/one")
    environment = folder.read_json("environment.json")
    assert environment["backbone"]["file"] == str(made_net / "own_net.py")
    config = yaml.safe_load(folder.config_file.read_text())
    assert (config["backbone"], config["backbone_sha256"]) == (BACKBONE, environment["backbone"]["sha256"])
    shared = json.loads((made_net / "shared/config.json").read_text())["network"]
    assert (shared["backbone_sha256"], shared["attention_sha256"]) == (
        config["backbone_sha256"],
        config["attention_sha256"],
    )
    card = (made_net / "shared/README.md").read_text()
    assert 'csham.register_backbone("own_net:Net", Net)' in card
    assert 'csham.register_attention("own_gate:Gate", Gate)' in card
    assert "The backbone `own_net:Net` (A net of two blocks, no paper)" in card


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("words", [*(line for line in READING if "study" not in line), "compare --study study"])
def test_a_file_that_names_a_backbone_does_not_run_it(words, net_here, csham, images):
    shutil.copy(next(images.rglob("*.png")), "image.png")
    for module in ("own_net.py", "runs/one/own_net.py", "study/own_net.py"):
        Path(module).write_text("open('/'.join([__import__('os').getcwd(), 'ran']), 'w').close()\n" + NET)
    code, _, err = csham(*words.split(), *([] if "study" in words else ["--code", NAME]))
    assert code == 2
    assert f"the backbone '{BACKBONE}' is code that did not come with csham" in err
    assert f"add --code {BACKBONE};" in err
    assert not (net_here / "ran").exists()
    assert "own_net" not in sys.modules


@pytest.mark.slow
@pytest.mark.long
def test_a_backbone_that_is_named_is_run_and_agrees(net_here, csham, images):
    both = ["--code", NAME, "--code", BACKBONE]
    code, out, err = csham("evaluate", "runs/one", *both, "--json")
    assert code == 0, err
    assert json.loads(out)["top1"] == RunFolder(Path("runs/one")).read_summary()["top1"]
    image = next(images.rglob("*.png"))
    for words in (["explain", "runs/one", image], ["predict", "shared", image], ["export", "runs/one", "--format=pt2"]):
        code, _, err = csham(*words, *both, "--quiet")
        assert code == 0, err
        assert "was changed" not in err
    code, out, err = csham("report", "study")
    assert code == 0, err
    assert "own_net:Net" in out


@pytest.mark.slow
@pytest.mark.long
def test_an_edited_backbone_is_noticed(net_here, csham):
    Path("own_net.py").write_text(NET + "\n# another\n")
    both = ["--code", NAME, "--code", BACKBONE]
    code, _, err = csham("evaluate", "runs/one", *both, "--quiet")
    assert code == 0
    assert "note: the code of own_net:Net was changed: its SHA-256 began with" in err
    (net_here / "runs/one/summary.json").unlink()
    code, _, err = csham("train", "--resume", "runs/one", *both, "--quiet")
    assert code == 2
    assert "Results of both would mix" in err
    # In a study it is another network, with a plain one of its own to be compared with.
    words = ["compare", "--study", "study", "--attentions", "se", "--code", BACKBONE, "--dry-run", "--json"]
    code, out, err = csham(*words)
    assert code == 0, err
    cells = json.loads(out)["cells"]
    assert [cell["state"] for cell in cells].count("done") == 2
    assert len(cells) == 4
    assert "without attention is added" in err


@pytest.mark.slow
@pytest.mark.long
def test_a_study_of_an_own_backbone_is_extended_by_another(net_here, csham):
    words = ["compare", "--study", "study", "--backbones", "lenet5", "--code", BACKBONE, "--dry-run", "--json"]
    code, out, err = csham(*words)
    assert code == 0, err
    cells = [(cell["network"], cell["seed"]) for cell in json.loads(out)["cells"]]
    assert [cell for cell in cells if "lenet5" in cell[0]] == [("lenet5", 0), ("lenet5 + se", 0)]
    assert len(cells) == 4


@pytest.mark.slow
@pytest.mark.long
def test_profile_measures_an_own_backbone_at_its_own_size(net_here, csham):
    words = ["--num-classes", 10, "--rounds", 1, "--no-training", "--quiet", "--json", "--attention", "se"]
    code, out, err = csham("profile", "--backbone", BACKBONE, *words)
    assert code == 0, err
    rows = json.loads(out)["costs"]
    assert {row["backbone"] for row in rows} == {BACKBONE}
    assert {(row["height"], row["width"]) for row in rows} == {(24, 24)}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train digits --backbone own_net:Nett", "has no Nett. Did you mean 'Net'"),
        ("train digits --backbone ./own_net.py:Net", "names no code. Write my_module:MyGate"),
        ("train digits --backbone own_net:Block", "own_net:Block takes no num_classes"),
        ("train digits --backbone own_net:Net --pretrained", "own_net:Net takes no pretrained"),
        ("train digits --backbone own_net:Net@width=2", "has no width that could be changed here"),
        ("compare digits --backbones own_net:Net --budget-control", "can be neither widened nor deepened here"),
    ],
)
def test_backbones_that_cannot_be_named(words, message, net_here, csham):
    code, _, err = csham(*words.split())
    assert code == 2
    assert message in err
