import pickle
import resource
import signal

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


def test_the_other_checkpoint_is_named_where_there_is_one(tmp_path):
    save_checkpoint(tmp_path / "best.ckpt", {})
    (tmp_path / "last.ckpt").write_bytes(b"PK")
    with pytest.raises(UserError, match="copy it over"):
        load_checkpoint(tmp_path / "last.ckpt")


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
