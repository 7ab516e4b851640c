"""csham share: the folder is complete, says what was measured and nothing of the machine, and needs no run."""

import json
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

import csham
from csham.errors import UserError
from csham.files import SUMS
from csham.share import HubModel, model_card, share
from csham.share.card import PAPER, SOFTWARE
from csham.training.checkpoints import load_checkpoint, save_checkpoint
from csham.training.run_folder import RunFolder

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shared(attended, tmp_path_factory):
    folder = tmp_path_factory.mktemp("share") / "shared"
    share(attended, folder, weights="last", license="Apache-2.0", repo="user/name")
    return folder


def metrics_of(card):
    return {(m["type"], m["name"]): m["value"] for m in card.data.to_dict()["model-index"][0]["results"][0]["metrics"]}


def test_the_same_answers_without_the_run(attended, shared):
    ours, theirs = csham.load(shared), csham.load(attended, weights="last")
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(ours.network(x), theirs.network(x))
    assert (ours.info, ours.weights, ours.transform) == (theirs.info, "last", theirs.transform)
    assert sorted(path.name for path in shared.iterdir()) == ["README.md", "config.json", SUMS, "model.safetensors"]


def test_a_place_among_the_classes_of_its_images(finished):
    images = Path(RunFolder(finished).read_config().data)
    with pytest.raises(UserError, match=r"as a class of its own .*Name another place"):
        share(finished, images / "shared")
    assert not (images / "shared").exists()


def test_the_card_of_few_classes_has_no_top5(finished):
    assert "top5" not in json.loads((finished / "summary.json").read_text())
    text = model_card(RunFolder(finished), weights="last", license="mit")
    assert set(metrics_of(ModelCard(text))) == {("accuracy", "top-1 accuracy, %"), ("f1", "F1, macro, %")}
    assert "top-5" not in text


def test_the_card_counts_what_was_left_out(finished, copy_unlisted, tmp_path):
    run = RunFolder(copy_unlisted(finished, tmp_path / "run"))
    run.write_json("summary.json", run.read_summary() | {"absent_classes": 1, "bad_files": 2})
    text = model_card(run, weights="last", license="mit")
    assert "- Macro averages leave out 1 class without test images.\n" in text
    assert "- Left out: 2 files of the data that could not be read.\n" in text


@pytest.mark.parametrize("weights", ["best", "last"])
def test_the_card_has_the_numbers_of_its_weights_and_no_others(finished, copy_unlisted, tmp_path, weights):
    summary = json.loads((finished / "summary.json").read_text())
    # numbers of a length that no time, share or version of the card has by chance
    last, best = ([first + 0.53719 + index for index in range(4)] for first in (11, 21))
    for index, key in enumerate(("top1", "top5", "f1", "loss")):
        summary[key], summary["validation_chosen"][key] = last[index], best[index]
    run = RunFolder(copy_unlisted(finished, tmp_path / "run"))
    (run.path / "confusion.csv").unlink()
    run.write_json("summary.json", summary)
    text = model_card(run, weights=weights, license="mit")
    shown, other = (last, best) if weights == "last" else (best, last)
    assert metrics_of(ModelCard(text)) == {
        ("accuracy", "top-1 accuracy, %"): shown[0],
        ("accuracy", "top-5 accuracy, %"): shown[1],
        ("f1", "F1, macro, %"): shown[2],
    }
    page = text.split("---", 2)[2]
    which = "the last epoch, 2" if weights == "last" else r"epoch \d of 2, chosen by validation top-1"
    assert re.search(f"On the 12 test images of animals. These are the weights of {which}; no test image", page)
    assert f"| top-1 accuracy, % | {shown[0]:.4f} |" in page
    assert f"| cross-entropy | {shown[3]:.4f} |" in page
    assert not [number for number in other if f"{number:.4f}" in text or str(number) in text]


def test_the_header_is_the_hubs(shared):
    data = ModelCard.load(shared / "README.md").data.to_dict()
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == (
        "apache-2.0",
        "csham",
        "image-classification",
    )
    assert "datasets" not in data
    result = data["model-index"][0]["results"][0]
    assert result["task"]["type"] == "image-classification"
    assert result["dataset"] == {"name": "animals", "type": "imagefolder", "split": "test"}


def test_a_known_dataset_is_linked(finished, copy_unlisted, tmp_path):
    run = RunFolder(copy_unlisted(finished, tmp_path / "run"))
    run.config_file.write_text(re.sub("^data: .*", "data: cifar100", run.config_file.read_text(), flags=re.M))
    card = ModelCard(model_card(run, weights="best", license="mit"))
    assert card.data.datasets == ["uoft-cs/cifar100"]
    assert "# resnet20, trained on CIFAR-100" in card.text


def test_nothing_of_the_machine_is_in_it(attended, copy_unlisted, tmp_path):
    run = copy_unlisted(attended, tmp_path / "run")
    text = (run / "config.yaml").read_text()
    text = re.sub("^weights_file: .*", "weights_file: /home/alice/secret/w.pth", text, flags=re.M)
    (run / "config.yaml").write_text(re.sub("^data: .*", "data: /home/alice/secret/a_[b]|c/", text, flags=re.M))
    share(run, tmp_path / "shared")
    for path in (tmp_path / "shared").iterdir():
        content = path.read_bytes()
        for word in (b"alice", b"secret", b"/home", b"/tmp", str(attended.parent).encode(), b".ckpt"):
            assert word not in content, (path, word)
    card = (tmp_path / "shared/README.md").read_text()
    assert "| `data` | a\\_\\[b\\]\\|c |" in card
    assert "| `weights_file` | w.pth |" in card
    assert "weights that others trained" in card


def test_the_cards_code_works(attended, tmp_path, monkeypatch, capsys):
    share(attended, tmp_path / "shared")
    Image.new("RGB", (20, 30)).save(tmp_path / "shared/image.jpg")
    monkeypatch.chdir(tmp_path / "shared")
    code = re.search(r"```python\n(.*?)```", Path("README.md").read_text(), flags=re.DOTALL)[1]
    exec(compile(code, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.partition(":")[0] for line in lines) == ["ant", "bee", "cow"]
    assert all(re.fullmatch(r"\w+: \d+\.\d%", line) for line in lines)


def test_the_example_names_the_repository(shared):
    assert 'csham.load("hf:user/name")' in (shared / "README.md").read_text()


def test_what_is_cited_is_the_citation_file(attended, shared, finished):
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    paper = cff["preferred-citation"]
    authors = " and ".join(f"{a['family-names']}, {a['given-names']}" for a in paper["authors"])
    for words in (paper["title"], paper["doi"], str(paper["year"]), paper["collection-title"], authors):
        assert f"{{{words}}}" in PAPER
    assert f"{{{cff['title']}}}" in SOFTWARE
    assert f"{{{cff['version']}}}" in SOFTWARE
    card = (shared / "README.md").read_text()
    assert PAPER in card
    assert SOFTWARE in card
    assert PAPER not in model_card(RunFolder(finished), weights="best", license="mit")  # has no attention of the paper


def test_what_cannot_be_shared(finished, copy_unlisted, tmp_path):
    run = copy_unlisted(finished, tmp_path / "run")
    (run / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary.json is damaged"):
        share(run, tmp_path / "a")
    (run / "summary.json").write_text('{"epochs": 2}')
    with pytest.raises(UserError, match="lacks the numbers of the last weights"):
        share(run, tmp_path / "a", weights="last")
    (run / "summary.json").unlink()
    with pytest.raises(UserError, match=r"has not finished.*csham train --resume"):
        share(run, tmp_path / "a")
    for choice, message in (
        ({"weights": "first"}, "best"),
        ({"license": "my own\nthing"}, "--license takes"),
        ({"repo": "../x"}, "--repo takes"),
        ({"repo": "https://hub/x"}, "--repo takes"),
    ):
        with pytest.raises(UserError, match=message):
            share(finished, tmp_path / "a", **choice)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_folder_that_is_not_free(finished, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for place in ("full", "file"):
        with pytest.raises(UserError, match="is not an empty folder"):
            share(finished, tmp_path / place)
    with pytest.raises(UserError, match="is a file"):
        share(finished, tmp_path / "file/deeper")
    (tmp_path / "empty").mkdir()
    share(finished, tmp_path / "empty")
    assert len(list((tmp_path / "empty").iterdir())) == 4


def test_complete_or_not_at_all(finished, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("csham.share.folder.shared_config", full)
    with pytest.raises(OSError, match="No space"):
        share(finished, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_weights_that_are_no_numbers_are_not_shared(finished, copy_unlisted, tmp_path):
    run = RunFolder(copy_unlisted(finished, tmp_path / "run"))
    content = load_checkpoint(run.last)
    content["model"]["fc.bias"][0] = float("nan")
    save_checkpoint(run.last, content)
    run.weights.unlink()
    with pytest.raises(UserError, match=r"'fc\.bias' holds numbers that are not finite"):
        share(run.path, tmp_path / "shared")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", SUMS])
def test_whatever_changes_on_the_way_is_refused_by_its_name(shared, tmp_path, name):
    folder = shutil.copytree(shared, tmp_path / "shared")
    content, draw = (folder / name).read_bytes(), random.Random(name)
    for _ in range(60):
        place = draw.randrange(len(content))
        other = bytearray(content)
        if draw.random() < 0.7:
            other[place] ^= 1 << draw.randrange(8)
        else:
            del other[place:]
        (folder / name).write_bytes(other)
        with pytest.raises(UserError, match=f"{name}.* was changed since it was written"):
            csham.load(folder)
    (folder / name).unlink()
    if name == SUMS:
        csham.load(folder)


def test_the_card_is_the_users_to_edit(shared, tmp_path):
    folder = shutil.copytree(shared, tmp_path / "shared")
    (folder / "README.md").write_text("What I know of the images.")
    csham.load(folder)
    assert HubModel.from_pretrained(folder).card == "What I know of the images."
