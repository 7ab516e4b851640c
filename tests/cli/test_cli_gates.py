import csv
import json
import shutil

import pytest
import torch
from study_cases import network, write_study

from csham import load
from csham.study.store import Store

pytestmark = pytest.mark.usefixtures("reference")


def test_the_table_of_two_runs(csham, attended, finished):
    code, out, err = csham("gates", attended, finished, "--samples", "4", "--quiet")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    rows = [line for line in lines if line[:3] == ["resnet20", "+", "csham"]]
    assert [row[4:7] for row in rows] == [
        [stage, kind, "1"] for stage in ("layer1", "layer2", "layer3") for kind in ("channel", "spatial")
    ]
    assert "weights of attention by stage, 1 run, 4 test images each" in out
    assert "resnet20: no weights seen, no attention attached" in out
    assert "dead: weights that vary by less than 0.01 over images" in out


def test_page_and_json(csham, attended, tmp_path):
    again = shutil.copytree(attended, tmp_path / "again")
    words = ["gates", attended, again, "--samples", "4", "--output", tmp_path / "page", "--json", "--quiet"]
    code, out, _ = csham(*words)
    assert code == 0
    found = json.loads(out)
    assert found["report"] == str(tmp_path / "page/index.html")
    assert [row["runs"] for row in found["stages"]] == [2] * 6
    page = (tmp_path / "page/index.html").read_text()
    for word in ("Channel weights", "Spatial weights", "below 0.01", "resnet20 + csham (transfer)", "layer3"):
        assert word in page
    for kind in ("channel", "spatial"):
        assert (tmp_path / f"page/figures/{kind}-weights.svg").is_file()
    with (tmp_path / "page/tables/gates.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["mean"]) for row in rows] == pytest.approx([row["mean"] for row in found["stages"]], abs=1e-5)
    with (tmp_path / "page/tables/runs.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 12


def test_other_trainings_are_no_seeds_of_one(csham, attended, tmp_path):
    longer = shutil.copytree(attended, tmp_path / "longer")
    assert csham("train", "--resume", longer, "--epochs", "2", "--quiet")[0] == 0
    code, out, _ = csham("gates", attended, longer, "--samples", "4", "--json", "--quiet")
    assert code == 0
    found = json.loads(out)
    networks = list(dict.fromkeys(row["network"] for row in found["stages"]))
    assert [name.split(", ")[:2] for name in networks] == [
        ["resnet20 + csham (transfer)", f"epochs {number}"] for number in (1, 2)
    ]
    assert {row["runs"] for row in found["stages"]} == {1}
    assert {row["network"] for row in found["runs"]} == set(networks)


def test_the_same_page_twice_and_nothing_to_draw(csham, attended, finished, tmp_path):
    for place in ("one", "two"):
        assert csham("gates", attended, "--samples", "3", "--output", tmp_path / place)[0] == 0
    files = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*")}
    assert len(files) > 8
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
    assert csham("gates", finished, "--samples", "3", "--output", tmp_path / "one")[0] == 0
    assert "No weights were seen." in (tmp_path / "one/index.html").read_text()


def test_runs_of_a_study_that_are_not_here_are_told(csham, attended, tmp_path):
    study = write_study(tmp_path / "study", networks=[network(), network(attention="se")], missing={(0, 1)}, epochs=1)
    cell = next(cell for cell in Store(study).study.cells() if not cell.network.plain)
    shutil.copytree(attended, study / "runs" / cell.name)
    code, out, err = csham("gates", study, "--samples", "3", "--output", tmp_path / "page", "--json", "--quiet")
    assert code == 0, err
    notes = [
        f"{study}: 2 of 2 runs of resnet20 have no run folder here",
        f"{study}: 2 of 3 runs of resnet20 + se have no run folder here",
    ]
    assert err.splitlines() == [f"note: {note}" for note in notes]
    assert json.loads(out)["notes"] == notes
    assert "2 of 3 runs of resnet20 + se" in (tmp_path / "page/index.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "there is no run folder"),
        (["RUN", "--samples", "1"], "the number of samples must be at least 2"),
        (["RUN", "--samples", "0"], "--samples must be at least 1"),
        (["RUN", "--seed", "-1"], "--seed must be from 0 to below 2**63, got -1"),
        (["RUN", "--device", "meta"], "unknown device 'meta'"),
        (["RUN", "--data", "digits"], "has other classes than the data of"),
        (["RUN", "--output", "RUN"], "is the folder of a run"),
    ],
)
def test_what_cannot_be_measured(csham, attended, tmp_path, words, message):
    words = [str(attended) if word == "RUN" else word for word in words]
    code, _, err = csham("gates", *words)
    assert code == 2
    assert message in err


def test_open_gates_from_the_command_line(csham, small, tmp_path):
    words = [*small, "--attention", "eca", "--open-gates", "--run", tmp_path / "run"]
    assert csham(*words)[0] == 0
    assert "open_gates: true" in (tmp_path / "run/config.yaml").read_text()
    code, out, _ = csham("gates", tmp_path / "run", "--samples", "4", "--json", "--quiet")
    assert code == 0
    assert all(row["mean"] > 0.85 for row in json.loads(out)["stages"])
    for words in (["evaluate", tmp_path / "run"], ["share", tmp_path / "run", tmp_path / "shared"]):
        code, _, err = csham(*words)
        assert code == 0, err
    assert "open gates" in (tmp_path / "shared/README.md").read_text()
    one, two = (load(tmp_path / place).network.state_dict() for place in ("run", "shared"))
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    code, _, err = csham(*small, "--attention", "simam", "--open-gates", "--run", tmp_path / "other")
    assert code == 2
    assert "simam has no bias that its weights start from" in err
    assert not (tmp_path / "other").exists()
