"""A full disk during everything that writes: a sentence that names it, nothing left behind, and the next call goes on.

The disk is a small one in memory, of several sizes, so that it is full at several moments. Only root may mount it.
"""

import contextlib
import json
import shutil
import subprocess

import pytest

from csham import ops
from csham.cli import main

SHARES = (0.02, 0.3, 0.6, 0.95)


@pytest.fixture(autouse=True)
def _reference():
    with ops.use_kernels("reference"):
        yield


class Disk:
    """A disk of a size that can be changed, at ``path``."""

    def __init__(self, path):
        self.path = path
        path.mkdir()
        self._mount("size=1g")

    def resize(self, size):
        self._mount(f"remount,size={size}")

    def used(self):
        return sum(-(-path.stat().st_size // 4096) * 4096 for path in self.path.rglob("*") if path.is_file())

    def clear(self):
        for path in self.path.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _mount(self, options):
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(self.path)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("cannot mount a disk in memory")


@pytest.fixture
def disk(tmp_path):
    disk = Disk(tmp_path / "disk")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk.path)], check=False)


def temporary(path):
    return sorted(str(file) for file in path.rglob("*") if file.name.endswith((".tmp", ".new", ".old")))


@pytest.fixture
def fill(disk, capfd):
    """Function that gives a command on a disk of several sizes, and once more where there is room."""

    def run(*words):
        code = main([str(word) for word in words])
        out, err = capfd.readouterr()
        return code, out, err

    def call(words, again=None, before=lambda: None, shares=SHARES):
        before()
        begun = disk.used()
        code, _, err = run(*words)
        assert code == 0, err
        needed = disk.used() - begun
        told = []
        for share in shares:
            disk.clear()
            before()
            disk.resize(max(4096, int(begun + share * needed) // 4096 * 4096))
            code, out, err = run(*words)
            disk.resize("1g")
            if code == 0:  # what was left out was of no importance, and its absence was told
                assert "note" in err or "warning" in err, (share, err)
                continue
            told.append(err)
            assert (code, out) == (2, ""), (share, code, err)
            assert "Traceback" not in err, (share, err)
            assert "fault of csham" not in err, (share, err)
            assert str(disk.path) in err, (share, err)
            assert "No space left" in err or "is full" in err or "are free" in err, (share, err)
            assert not temporary(disk.path), (share, err)
            code, _, err = run(*(again() if again else words))
            assert code == 0, (share, err)
            assert not temporary(disk.path), share
        assert told
        return told

    return call


def test_prepare(fill, disk, images, monkeypatch):
    monkeypatch.setenv("CSHAM_CACHE", str(disk.path / "cache"))
    fill(["prepare", images, "--image-size", "32", "--quiet"])


@pytest.mark.slow
def test_train(fill, disk, images):
    run = disk.path / "runs/one"
    words = (
        f"train {images} --backbone lenet5 --image-size 32 --epochs 2 --batch-size 8 --no-compile --quiet --device cpu"
    )

    def again():
        return ["train", "--resume", run, "--quiet", "--json"] if run.exists() else [*words.split(), "--run", run]

    fill([*words.split(), "--run", run], again, shares=(0.02, 0.2, 0.4, 0.6, 0.8, 0.98))


@pytest.mark.slow
def test_share(fill, disk, finished):
    fill(["share", finished, disk.path / "shared", "--json"])


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["safetensors", pytest.param("onnx", marks=pytest.mark.long), "pt2"])
def test_export(fill, disk, finished, ending):
    if ending == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    file = disk.path / f"network.{ending}"
    size = [] if ending == "safetensors" else ["--no-dynamic-size"]
    fill(["export", finished, "--output", file, "--format", ending, *size, "--quiet"], shares=(0.02, 0.7))


@pytest.mark.slow
def test_explain(fill, disk, finished, images):
    words = ["explain", finished, next(images.glob("*/*.png")), "--output", disk.path / "pictures", "--quiet"]
    fill(words, shares=(0.02, 0.6))


@pytest.mark.long
@pytest.mark.slow
def test_compare(fill, disk, images):
    study = disk.path / "study"
    words = f"compare {images} --backbones lenet5 --attentions none,simam --seeds 1 --image-size 32 --epochs 1 --quiet "
    words += f"--batch-size 8 --no-compile --device cpu --study {study}"
    fill(words.split(), shares=(0.02, 0.3, 0.7))
    records = [json.loads(line) for line in (study / "records.jsonl").read_text().splitlines()]
    assert [record["status"] for record in records] == ["done", "done"]


@pytest.mark.long
@pytest.mark.slow
def test_report(fill, disk, images, tmp_path):
    words = f"compare {images} --backbones lenet5 --attentions none,simam --seeds 1 --image-size 32 --epochs 1 --quiet "
    words += f"--batch-size 8 --no-compile --device cpu --study {tmp_path / 'study'}"
    assert main(words.split()) == 0
    fill(["report", tmp_path / "study", "--output", disk.path / "report"])


def test_the_disk_is_full_when_it_should_be(disk):
    disk.resize(8192)
    with contextlib.suppress(OSError):
        (disk.path / "file").write_bytes(bytes(20_000))
    assert disk.used() <= 8192
