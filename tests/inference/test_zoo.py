"""Networks that come with the package: by name, whole, and right on images they were measured on."""

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import csham
from csham.backbones import zoo
from csham.cli import main
from csham.data import prepare
from csham.data.split import TEST
from csham.errors import UserError
from csham.inference.evaluation import evaluate_shared
from csham.inference.zoo import zoo_rows
from csham.training.run_folder import RunFolder

SHARED = Path(os.environ.get("CSHAM_CIFAR100_TEST") or Path(__file__).parents[2] / "../shared/data/cifar100-test.zip")
NAMES = zoo.zoo_names()


@pytest.fixture
def own_zoo(tmp_path, monkeypatch):
    """A copy of one network, as the whole zoo."""
    place = tmp_path / "zoo"
    shutil.copytree(zoo.ZOO / NAMES[0], place / "one")
    monkeypatch.setattr(zoo, "ZOO", place)
    return place


@pytest.mark.parametrize("name", NAMES)
def test_each_is_ready_to_predict(name):
    trained = csham.load(f"zoo:{name}")
    assert trained.path == zoo.ZOO / name
    noise = np.random.default_rng(0).integers(0, 256, (2, 40, 30, 3), dtype=np.uint8)
    answers = trained.probabilities(list(noise))
    assert answers.shape == (2, len(trained.classes))
    torch.testing.assert_close(answers.sum(1), torch.ones(2))


@pytest.mark.parametrize("name", NAMES)
def test_each_has_what_its_card_says_and_nothing_of_the_machine_that_made_it(name):
    folder = zoo.ZOO / name
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "csham.sha256", "model.safetensors"}
    (row,) = (row for row in zoo_rows() if row["name"] == f"zoo:{name}")
    assert row["license"] == "apache-2.0"
    assert f"{row['top1']:,.4f}" in (folder / "README.md").read_text(encoding="utf-8")
    for path in folder.iterdir():
        assert b"/tmp" not in path.read_bytes()
        assert b"/work" not in path.read_bytes()


@pytest.mark.parametrize("name", [name for name in NAMES if "digits" in name])
def test_digits_are_read_as_well_as_the_card_says(name):
    found = evaluate_shared(csham.load(f"zoo:{name}"), "digits", device="cpu")
    (row,) = (row for row in zoo_rows() if row["name"] == f"zoo:{name}")
    assert found.summary["images"] == 359
    assert found.summary["top1"] == pytest.approx(row["top1"], abs=1)  # whatever the precision is here


@pytest.mark.parametrize("name", [name for name in NAMES if "cifar100" in name])
def test_photographs_are_told_apart_far_more_often_than_by_chance(name, tmp_path):
    if not SHARED.is_file():
        pytest.skip("the images of CIFAR-100 are not beside the repository")
    trained = csham.load(f"zoo:{name}")
    with zipfile.ZipFile(SHARED) as archive:
        images = [one for one in archive.namelist() if one.endswith(".webp")][:: 10_000 // 200]
        files = [archive.extract(one, tmp_path) for one in images]
    given = trained.probabilities(files).argmax(1)
    right = [trained.classes[index] == Path(file).parent.name for index, file in zip(given, files, strict=True)]
    assert sum(right) > 0.3 * len(right)


def test_an_unknown_name_lists_the_others():
    with pytest.raises(UserError, match="unknown network of the zoo 'resnet20'") as caught:
        csham.load("zoo:resnet20")
    assert NAMES[0] in str(caught.value)
    with pytest.raises(UserError, match=r"unknown network of the zoo '\.\./layers'"):
        csham.load("zoo:../layers")


def test_damage_is_noticed(own_zoo):
    file = own_zoo / "one" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="was changed since it was written"):
        csham.load("zoo:one")


def test_a_network_begins_with_the_weights_of_one():
    name = "zoo:resnet14-digits"
    model, theirs = csham.create_model("resnet14", num_classes=10, image_size=32, weights_file=name), csham.load(name)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in theirs.network.state_dict().items())
    with pytest.raises(UserError, match="it holds attention too"):
        csham.create_model("resnet14", num_classes=10, image_size=32, weights_file=f"{name}-csham-transfer")


def test_damage_is_noticed_before_a_network_begins_with_it(own_zoo):
    test_damage_is_noticed(own_zoo)
    with pytest.raises(UserError, match="was changed since csham wrote it"):
        csham.create_model("resnet14", num_classes=10, image_size=32, weights_file="zoo:one")


@pytest.mark.slow
def test_a_run_keeps_the_name_of_the_weights_that_it_began_with(tmp_path, write_images):
    data = write_images(tmp_path / "data", count=10)
    words = ["--weights-file", "zoo:resnet14-digits", "--backbone", "resnet14", "--image-size", "32", "--epochs", "1"]
    words += ["--batch-size", "8", "--device", "cpu", "--no-compile", "--quiet", "--run", str(tmp_path / "run")]
    assert main(["train", str(data), "--recipe", "finetune", *words]) == 0
    assert RunFolder(tmp_path / "run").read_config().weights_file == "zoo:resnet14-digits"


def test_a_named_part_has_to_be_one_that_the_data_gives(images):
    trained = csham.load(f"zoo:{NAMES[0]}")
    with pytest.raises(UserError, match="does not say where its images are"):
        evaluate_shared(trained, None)
    with pytest.raises(UserError, match="--part test or all"):
        evaluate_shared(trained, "digits", part="validation")


def test_without_a_test_part_of_its_own_nothing_is_taken_for_one(tmp_path, write_images):
    from csham.share import share
    from csham.training.config import resolve
    from csham.training.loop import train

    data = write_images(tmp_path / "data", count=5)
    words = {"backbone": "lenet5", "image_size": 16, "epochs": 1, "batch_size": 4, "compile": False, "device": "cpu"}
    train(resolve({"data": str(data), **words}), run=tmp_path / "run")
    share(tmp_path / "run", tmp_path / "shared")
    trained = csham.load(tmp_path / "shared")
    assert (prepare(str(data), image_size=16).parts != TEST).all()
    with pytest.raises(UserError, match=r"has no test part of its own.*--part all"):
        evaluate_shared(trained, str(data), device="cpu")
    assert evaluate_shared(trained, str(data), part="all", device="cpu").summary["images"] == 15
