import pickle
import random
import re
import resource
import signal
import zipfile

import pytest
import torch
from torch import nn

from csham.errors import UserError
from csham.files import write_atomically
from csham.training.checkpoints import load_checkpoint, load_weights, save_checkpoint


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return exec, (f"open({str(self.marker)!r}, 'w').close()",)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_hostile_checkpoint_is_refused_and_not_run(tmp_path, how):
    path, marker = tmp_path / "last.ckpt", tmp_path / "was-run"
    with path.open("wb") as file:
        (torch.save if how == "torch" else pickle.dump)({"format": 1, "model": Hostile(marker)}, file)
    with pytest.raises(UserError, match="nothing in it was run" if how == "torch" else "not a checkpoint"):
        load_checkpoint(path)
    assert not marker.exists()


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_truncated_checkpoint_is_refused(tmp_path, keep):
    path = tmp_path / "last.ckpt"
    save_checkpoint(path, {"model": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"last\.ckpt"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [[1], {"format": 0}, {"format": 1, "other": 2}])
def test_another_kind_of_checkpoint_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="not a checkpoint of this version"):
        load_checkpoint(tmp_path / "last.ckpt", ("model",))


def mutations(content, count, seed=0):
    """Flipped bits, changed bytes, zeroed blocks and cuts of a file's content, each of which changes it."""
    draw = random.Random(seed)
    while count:
        place, block = draw.randrange(len(content)), draw.choice([1, 16, 512, 4096])
        kind, other = draw.choice(["bit", "byte", "zero", "cut", "more"]), bytearray(content)
        if kind == "bit":
            other[place] ^= 1 << draw.randrange(8)
        elif kind == "byte":
            other[place] = draw.randrange(256)
        elif kind == "zero":
            other[place : place + block] = bytes(len(other[place : place + block]))
        elif kind == "cut":
            del other[place:]
        else:
            other += draw.randbytes(block)
        if bytes(other) != content:
            count -= 1
            yield bytes(other)


def test_no_changed_checkpoint_gives_other_numbers(tmp_path):
    """Of a folder without a list of sums: those in the archive are looked at."""
    path = tmp_path / "checkpoints" / "last.ckpt"
    path.parent.mkdir()
    weights = {"conv.weight": torch.randn(64, 32, 3, 3), "bn.num_batches_tracked": torch.tensor(7)}
    save_checkpoint(path, {"model": weights, "epoch": 3, "history": [{"loss": 1.3898738}]})
    content, refused, read = path.read_bytes(), 0, 0
    for changed in mutations(content, 400):
        path.write_bytes(changed)
        try:
            loaded = load_checkpoint(path, ("model",))
        except UserError as err:
            refused += str(path) in str(err)
        else:  # in what is not read, such as dates and padding
            read += 1
            assert loaded["epoch"] == 3
            assert loaded["history"] == [{"loss": 1.3898738}]
            assert all(torch.equal(value, weights[name]) for name, value in loaded["model"].items())
    assert refused + read == 400
    assert refused > 250


def test_an_archive_that_grows_when_it_is_read_is_not_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "last.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**7))
    with pytest.raises(UserError, match="torch compresses nothing"):
        load_checkpoint(tmp_path / "last.ckpt")


def test_what_can_be_had_in_place_of_a_checkpoint_is_said(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    advice = {"last.ckpt": f"csham train --config {tmp_path}/run/config.yaml", "best.ckpt": "csham train --config"}
    for missing in (True, False):
        for name, words in advice.items():
            if not missing:
                (folder / name).write_bytes(b"PK")
            with pytest.raises(UserError, match=re.escape(words)):
                load_checkpoint(folder / name)
            (folder / name).unlink(missing_ok=True)
    for name in advice:
        (folder / name).write_bytes(b"PK")
    with pytest.raises(UserError, match=re.escape(f"csham train --resume {tmp_path}/run goes on from best.ckpt")):
        load_checkpoint(folder / "last.ckpt")
    with pytest.raises(UserError, match=re.escape(f"csham evaluate {tmp_path}/run --weights last")):
        load_checkpoint(folder / "best.ckpt")


def test_weights_that_are_no_numbers_are_refused():
    for number in (float("nan"), float("inf")):
        weights = {"weight": torch.full((2, 3), number), "bias": torch.zeros(2)}
        with pytest.raises(UserError, match=r"x\.ckpt: 'weight' holds numbers that are not finite"):
            load_weights(nn.Linear(3, 2), weights, "x.ckpt")


def test_a_full_disk_keeps_the_old_checkpoint_and_names_it(tmp_path):
    path = tmp_path / "last.ckpt"
    save_checkpoint(path, {"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"last\.ckpt"):
            save_checkpoint(path, {"step": 2, "model": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert load_checkpoint(path)["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(file):
        file.write(b"half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "it has no weight 'weight'"),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "more": torch.zeros(1)}, "has no weight 'more'"),
        ({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, r"'weight' is \(3, 2\), not \(2, 3\)"),
        ({"weight": "text", "bias": torch.zeros(2)}, "'weight' is str"),
    ],
)
def test_weights_of_another_architecture_are_refused(weights, message):
    with pytest.raises(UserError, match=message):
        load_weights(nn.Linear(3, 2), weights, "x.ckpt does not fit")
