"""The documentation does what it says: its Python runs, its commands end well."""

import csv
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import csham
from csham.backbones import BACKBONES
from csham.cli import main
from csham.study.study_file import read_study

ROOT = Path(__file__).parent.parent


def run_python(page):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    names = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    return names


def run(command, capsys):
    assert main(shlex.split(command)) == 0, capsys.readouterr().err


def run_commands(page, number, capsys):
    """Run the lines of a page that are marked with $, of which there are so many."""
    commands = re.findall(r"^    \$ csham (.*)$", (ROOT / page).read_text(encoding="utf-8"), flags=re.M)
    assert len(commands) == number
    for command in commands:
        run(command, capsys)


@pytest.mark.slow
def test_the_readmes_python_runs():
    names = run_python("README.md")
    assert names["logits"].shape == (2, 100)
    assert names["points"]


@pytest.mark.slow
def test_the_attaching_pages_python_prints_what_it_says(capsys):
    run_python("docs/attaching.md")
    shown = re.search(r"    layer1\.0\.bn2 64 .*?\.\.\.", (ROOT / "docs/attaching.md").read_text(), flags=re.DOTALL)
    expected = [line.strip() for line in shown.group().splitlines()[:-1]]
    assert capsys.readouterr().out.splitlines()[: len(expected)] == expected


def test_the_backbones_pages_python_does_what_it_says(capsys):
    with pytest.warns(UserWarning, match="has other shapes for fc of resnet18: new weights there"):
        names = run_python("docs/backbones.md")
    assert names["model"].num_classes == 10
    page = (ROOT / "docs/backbones.md").read_text(encoding="utf-8")
    shown = re.search(r"    (inception_v3 cannot .*? \()\.\.\.(.*)", page)
    assert capsys.readouterr().out.startswith(shown[1])
    rows = dict(re.findall(r"^\| `(\w+)` \|[^|]*\| ([\d,]+) \|", page, flags=re.M))
    assert {name: int(count.replace(",", "")) for name, count in rows.items()} == {
        name: entry.params for name, entry in BACKBONES.items()
    }


@pytest.mark.slow
@pytest.mark.long
def test_every_command_of_the_training_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_commands("docs/training.md", 9, capsys)
    assert "finished" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.long
def test_every_command_of_the_fine_tuning_page_runs(write_images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_images(Path("photos"), ("auk", "emu", "jay", "owl"), count=25)
    run_commands("docs/finetuning.md", 3, capsys)
    assert "new weights there" in capsys.readouterr().err


@pytest.mark.slow
def test_everything_on_the_predict_page_runs(finished, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/first").symlink_to(finished)
    Path("photos").symlink_to(images / "bee")
    run_commands("docs/predict.md", 4, capsys)
    assert len(Path("answers.csv").read_text(encoding="utf-8").splitlines()) == 21
    names = run_python("docs/predict.md")
    out = capsys.readouterr().out
    assert any(f"photos/2.png {name}" in out for name in names["trained"].classes)
    assert names["probabilities"].shape == (2, 3)
    assert names["logits"].shape == (1, 3)
    assert names["cost"].params == sum(p.numel() for p in names["model"].parameters())
    assert Path("model.pt2").is_file()


@pytest.mark.slow
@pytest.mark.long
def test_from_zero_to_a_verdict(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
    steps = re.findall(r"^```python\n(.*?)^```|^    \$ csham ([^\n]*)$", page, flags=re.M | re.S)
    assert len(steps) == 10
    for code, command in steps:
        if code:
            exec(compile(code, "docs/tutorial.md", "exec"), {})
        else:
            run(command, capsys)
    out = capsys.readouterr().out
    assert "533 images of 32x32 pixels in 3 classes" in out
    assert re.search(r"^eight +\d+\.\d\d%  shapes/test/eight/", out, flags=re.M)
    with Path("answers.csv").open(encoding="utf-8", newline="") as file:
        answers = list(csv.DictReader(file))
    assert len(answers) == sum(1 for _ in Path("shapes/test").rglob("*.png"))
    assert [row["path"] for row in answers] == sorted(row["path"] for row in answers)
    assert "cannot tell yet" in out
    assert Path("studies/one/report/index.html").is_file()


@pytest.mark.slow
@pytest.mark.long
def test_every_command_of_the_comparing_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_commands("docs/comparing.md", 4, capsys)
    assert "3/3" in capsys.readouterr().out
    assert run_python("docs/comparing.md")["finished"].to_dict()["finished"]
    assert Path("studies/digits-quick-1epochs/report/index.html").is_file()
    assert read_study(Path("plan")).seeds == (0, 1, 2, 3)
    assert not Path("plan/runs").exists()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.usefixtures("own_names")
def test_from_a_gate_of_ones_own_to_a_verdict(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    page = (ROOT / "docs/own-attention.md").read_text(encoding="utf-8")
    steps = re.findall(r"^```python(?: (\w+\.py))?\n(.*?)^```|^    \$ csham ([^\n]*)$", page, flags=re.M | re.S)
    assert len(steps) == 11
    names = {}
    for file, code, command in steps:
        if file:
            Path(file).write_text(code, encoding="utf-8")
        elif code:
            exec(compile(code, "docs/own-attention.md", "exec"), names)
        else:
            run(command, capsys)
    assert names["trained"].info.attention == "my_gate:EdgeGate"
    out = capsys.readouterr().out
    shown = re.search(r"prints `([^`]*)`", page)[1]
    assert shown in out
    assert "lenet5 + my_gate:EdgeGate (code " in out
    assert Path("studies/edge/report/index.html").is_file()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.usefixtures("own_names")
def test_a_network_of_ones_own_from_a_file_to_a_study(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    page = (ROOT / "docs/own-network.md").read_text(encoding="utf-8")
    (file, code), (_, lines) = re.findall(r"^```python(?: (\w+\.py))?\n(.*?)^```", page, flags=re.M | re.S)
    Path(file).write_text(code, encoding="utf-8")
    names = {}
    exec(compile(lines, "docs/own-network.md", "exec"), names)
    assert csham.attach(csham.detach(names["model"]), "se", dry_run=True)
    run_commands("docs/own-network.md", 4, capsys)
    assert "my_net:make_net (code " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.long
def test_every_command_of_the_share_page_and_its_python_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_commands("docs/share.md", 2, capsys)
    names = run_python("docs/share.md")
    assert names["trained"].label == "lenet5"
    assert names["logits"].shape == (1, 10)


@pytest.mark.slow
@pytest.mark.long
def test_every_command_of_the_explain_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_commands("docs/explain.md", 4, capsys)
    (tmp_path / "photos/more").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3)).astype(np.uint8)
    for name in ("cat.jpg", "more/dog.png"):
        Image.fromarray(pixels).save(tmp_path / "photos" / name)
    run("explain runs/seen photos/cat.jpg photos/more --compare runs/plain", capsys)
    assert sorted(path.name for path in Path("explanations").iterdir()) == ["cat.png", "dog.png"]
    run("explain runs/seen photos/cat.jpg --npz", capsys)
    assert run_python("docs/explain.md")["content"].startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.long
def test_every_command_of_the_export_page_runs(tmp_path, monkeypatch, capsys):
    commands = re.findall(r"^    csham (.*?)(?: +#.*)?$", (ROOT / "docs/export.md").read_text("utf-8"), flags=re.M)
    assert len(commands) == 4
    monkeypatch.chdir(tmp_path)
    train = "train digits --backbone lenet5 --recipe quick --epochs 1 --run runs/digits --no-compile --quiet"
    for command in [train, *commands[:3], f"{commands[3]} --force"]:
        run(command, capsys)
    assert {path.name for path in Path("runs/digits/export").iterdir()} == {
        "model.onnx", "model-int8.onnx", "model.pt2", "model.safetensors"
    }  # fmt: skip


def test_the_architecture_names_every_room_and_no_other():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    table = page[page.index("| room |") : page.index("`import csham`")]
    named = {
        name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1] if row else "")
    }
    package = ROOT / "src/csham"
    rooms = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert named == {room for room in rooms if not room.startswith("_")}
    parts = set(re.findall(r"`(\w+)/`", table))
    assert parts == {path.parent.name for path in package.glob("*/*/__init__.py")}


@pytest.mark.slow
def test_every_command_of_the_zoo_page_and_its_python_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photos" / "cat.jpg")
    run_commands("docs/zoo.md", 4, capsys)
    assert run_python("docs/zoo.md")["trained"].label == "resnet14 + csham (transfer)"
