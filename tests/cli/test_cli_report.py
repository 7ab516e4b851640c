"""``csham report``: the headline and the path, or why not."""

import json
import subprocess
import sys

import pytest
from study_cases import network, write_study


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("csham.report.study_pictures.png_bytes", lambda figure: b"")
    monkeypatch.setattr("csham.report.study_pictures.svg_bytes", lambda figure: b"")
    networks = [network(), network(attention="se")]
    write_study(tmp_path / "studies" / "small", networks=networks, epochs=1, missing={(1, 2)}, costs=False)
    return tmp_path / "studies" / "small"


def test_headline_and_path(csham, study):
    code, out, err = csham("report", "studies/small")
    assert code == 0
    assert out.splitlines()[-1] == "report: studies/small/report/index.html"
    assert "se on resnet20" in out.splitlines()[0]
    assert "note: 1 run of 6 has no record yet" in err
    assert (study / "report" / "index.html").is_file()


def test_json_output_and_open(csham, study, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    code, out, _ = csham("report", "studies/small", "--json", "--output", "my report", "--open")
    found = json.loads(out)
    assert code == 0
    assert found["comparisons"][0]["label"] == "resnet20 + se"
    assert found["missing"] == [{"label": "resnet20 + se", "seed": 2}]
    assert not (study / "report").exists()
    [address] = opened
    assert address.startswith("file:///")
    assert address.endswith("/my%20report/index.html")


@pytest.mark.usefixtures("study")
def test_several_studies_together(csham, tmp_path):
    write_study(tmp_path / "studies" / "other", networks=[network(), network(attention="se")], epochs=1, costs=False)
    command = ("report", "studies/small", "studies/other", "--output", "both", "--markdown", "both.md")
    code, out, err = csham(*command)
    assert code == 0, err
    assert out.splitlines()[0].startswith("11 of 12 planned runs are done, of 2 studies, of which 1 is complete.")
    assert out.splitlines()[-1] == "report: both/index.html"
    assert (tmp_path / "both.md").read_text().startswith("11 of 12 planned runs")
    code, out, _ = csham(*command, "--json")
    assert [one["name"] for one in json.loads(out)["studies"]] == ["small", "other"]


@pytest.mark.usefixtures("study")
@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("report studies/small studies/small", "where should the page of all go"),
        ("report studies/small studies/small --output both", "folders of the same name"),
        ("report studies/small --markdown x.md", "--markdown is of several studies"),
        ("report studies/smal", "there is no study studies/smal"),
        ("report studies", "studies is not a study: it has no study.yaml"),
        ("report studies/small --output studies", "studies holds small"),
        ("report studies/small --output studies/small/study.yaml", "study.yaml is not a folder"),
    ],
)
def test_bad_input(csham, command, message):
    code, out, err = csham(*command.split())
    assert (code, out) == (2, "")
    assert message in err
    if "there is no study" in message or "is not a study" in message:
        assert "Studies there: studies/small." in err


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet20", "convnext_nano"])
def test_torch_is_not_imported(tmp_path, monkeypatch, backbone):
    networks = [network(backbone=backbone), network(backbone=backbone, attention="se")]
    write_study(tmp_path / "study", networks=networks, epochs=1, costs=False)
    monkeypatch.chdir(tmp_path)
    program = "import sys; from csham.cli import main; main(['report', 'study']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
