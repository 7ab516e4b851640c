"""A trained network back from disk: same answers as evaluation gives, from any kind of image."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import csham
from csham.data import prepare
from csham.data.batches import Batches
from csham.errors import UserError
from csham.inference import ImageTransform
from csham.training import evaluate


def test_answers_as_evaluation_does(finished, images):
    trained = csham.load(finished)
    found = evaluate(finished, str(images), weights="best", part="all", device="cpu")
    files = sorted(path for path in images.rglob("*.png"))
    answers = trained.network(trained.batch(files)).argmax(1).tolist()
    truth = [trained.classes.index(path.parent.name) for path in files]
    right = sum(answer == true for answer, true in zip(answers, truth, strict=True))
    assert found.summary["top1"] == pytest.approx(100 * right / len(files), abs=1e-4)  # rounded so
    assert trained.classes == ["ant", "bee", "cow"]
    assert not trained.network.training
    assert trained.label == "resnet20"


@pytest.mark.parametrize("size", [16, 96])
def test_transform_gives_the_values_of_evaluation_to_the_bit(images, size, tmp_path):
    dataset = prepare(images, image_size=size, cache_dir=tmp_path)
    mean, std = dataset.normalisation(np.arange(len(dataset)))
    batches = Batches(dataset, np.arange(3), batch_size=3, seed=0, mean=mean, std=std, augment=False)
    expected = next(iter(batches.in_order())).images
    transform = ImageTransform(size, mean, std)
    files = [images / "ant" / f"{name}.png" for name in range(20)]
    given = [transform(path) for path in files]
    assert all(any(torch.equal(row, other) for other in given) for row in expected)


def test_any_kind_of_image(finished, tmp_path):
    transform = csham.load(finished).transform
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    before = image.tobytes()
    values = [transform(what) for what in (tmp_path / "a.png", str(tmp_path / "a.png"), image, pixels)]
    assert all(torch.equal(values[0], other) for other in values)
    assert values[0].shape == (3, 16, 16)
    assert image.tobytes() == before
    assert transform(pixels[:, :, 0]).shape == (3, 16, 16)


@pytest.mark.parametrize("size", [16, 96])  # read as it is, and with an edge cut off
def test_pixels_of_an_image_of_pillow_can_be_written_to(size):
    image = Image.fromarray(np.zeros((size, size, 3), np.uint8))
    pixels = ImageTransform(size, (0.5,) * 3, (0.2,) * 3).pixels(image)
    assert pixels.flags.writeable  # torch warns of those that cannot
    assert pixels.flags.c_contiguous


def test_without_the_packages_that_only_training_needs(finished):
    blocked = ["accelerate", "joblib", "matplotlib", "rich", "sklearn", "tensorboard", "typer"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
        "import csham, numpy; trained = csham.load(sys.argv[1])\n"
        "print(tuple(trained.probabilities([numpy.zeros((20, 24, 3), 'uint8')]).shape))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(finished)], capture_output=True, text=True, check=False)
    assert done.stdout == "(1, 3)\n", done.stderr


def test_upright_image_of_pillow_is_left_as_it_is(finished, tmp_path):
    transform = csham.load(finished).transform
    image = Image.fromarray(np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        assert torch.equal(transform(opened), transform(tmp_path / "turned.png"))
        assert opened.size == (30, 20)


def test_last_weights_differ_and_a_file_is_enough(finished):
    best, last = csham.load(finished, weights="best"), csham.load(finished)
    alone = csham.load(finished / "model.safetensors")
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(last.network(x), alone.network(x))
    assert (best.weights, last.weights, alone.weights) == ("best", "last", "last")
    assert last.epoch == alone.epoch == 2
    assert last.described == "resnet20, last epoch (2)"
    with pytest.raises(UserError, match="holds the last weights of its run, no others"):
        csham.load(finished / "model.safetensors", weights="best")
    with pytest.raises(UserError, match="best"):
        csham.load(finished, weights="bset")


@pytest.mark.parametrize(
    "bad", ["text", np.zeros((4, 4, 3)), np.zeros((2, 2, 2, 2), np.uint8), np.zeros((0, 3), np.uint8), 7]
)
def test_what_is_no_image_is_named(bad, tmp_path):
    transform = ImageTransform(16, (0.5,) * 3, (0.2,) * 3)
    if isinstance(bad, str):
        bad = tmp_path / "a.png"
        bad.write_text("no image")
    with pytest.raises(UserError, match=r"a.png: not an image|an image is"):
        transform(bad)


@pytest.mark.parametrize(
    ("name", "hint"), [("net.onnx", "onnxruntime"), ("net.PT2", "torch.export.load"), ("a.pth", "--weights-file")]
)
def test_a_file_that_another_program_opens_is_named(tmp_path, name, hint):
    (tmp_path / name).write_bytes(bytes(100))
    with pytest.raises(UserError, match=f"{re.escape(name)}: csham loads .*{hint}"):
        csham.load(tmp_path / name)


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        csham.load(tmp_path / "nothing")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="safetensors"):
        csham.load(tmp_path / "notes.txt")
