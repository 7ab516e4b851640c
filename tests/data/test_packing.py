"""From a folder of files to an opened dataset: what is found, what is refused, what many processes do."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import csham.data
from csham.data import cache, packing, prepare
from csham.data.decode import Unreadable
from csham.data.packing import open_packed
from csham.errors import UserError


def refused(*words, data, **settings):
    with pytest.raises(UserError) as caught:
        prepare(data, **settings)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def leftovers(cache_dir):
    return [path.name for path in (cache_dir / "packed").glob("*") if not path.name.endswith(".lock")]


def test_pixels_labels_and_progress(two_classes, cache_dir):
    heard = []
    dataset = prepare(two_classes, cache_dir=cache_dir, progress=lambda *said: heard.append(said))
    assert not dataset.from_cache
    assert dataset.rebuilt is None
    assert (dataset.name, dataset.source) == ("pets", str(two_classes))
    assert dataset.path.parent == cache_dir / "packed"
    assert dataset.path.name.startswith("pets-32px-")
    assert dataset.labels.tolist() == [0] * 6 + [1] * 5
    for row, name in enumerate([f"cat/{i:03}" for i in range(6)] + [f"dog/{i:03}" for i in range(5)]):
        np.testing.assert_array_equal(dataset.images[row], Image.open(two_classes / f"{name}.png"))
    assert isinstance(dataset.images, np.memmap)
    assert not dataset.images.flags.writeable
    assert heard[0] == (0, 11, "decoding")
    assert (11, 11, "decoding") in heard


def test_a_second_time_comes_from_the_cache(two_classes, cache_dir):
    first = prepare(two_classes, cache_dir=cache_dir)
    second = prepare(str(two_classes), cache_dir=cache_dir)
    assert second.from_cache
    assert second.rebuilt is None
    np.testing.assert_array_equal(first.images, second.images)
    assert {**first.describe(), "from_cache": True} == second.describe()


def test_what_is_packed_is_opened_and_what_is_not_is_left(two_classes, cache_dir):
    assert open_packed(two_classes, image_size=32, cache_dir=cache_dir) is None
    assert not cache_dir.exists()
    packed = prepare(two_classes, image_size=32, cache_dir=cache_dir)
    opened = open_packed(two_classes, image_size=32, cache_dir=cache_dir)
    np.testing.assert_array_equal(opened.images, packed.images)
    assert opened.files == packed.files
    assert open_packed(two_classes, image_size=64, cache_dir=cache_dir) is None
    (two_classes / "cat" / "000.png").unlink()
    assert open_packed(two_classes, image_size=32, cache_dir=cache_dir) is None
    with pytest.raises(UserError, match="neither a dataset's name nor a folder"):
        open_packed(two_classes / "nowhere", image_size=32, cache_dir=cache_dir)


def test_larger_images_are_stored_with_room_for_crops(two_classes, cache_dir):
    dataset = prepare(two_classes, image_size=112, cache_dir=cache_dir)
    assert dataset.images.shape == (11, 128, 128, 3)
    assert dataset.image_size == 112


def test_workers_give_what_one_process_gives(tmp_path, fill, cache_dir, monkeypatch):
    root = fill(tmp_path / "data", {"a": 300, "b": 300}, side=8)
    (root / "a" / "100.png").write_bytes(b"")
    alone = prepare(root, image_size=8, cache_dir=cache_dir)
    monkeypatch.setattr(packing, "_ALONE_BELOW", 10)
    together = prepare(root, image_size=8, cache_dir=tmp_path / "other")
    np.testing.assert_array_equal(alone.images, together.images)
    np.testing.assert_array_equal(alone.sums, together.sums)
    assert alone.bad_files == together.bad_files
    assert len(alone.bad_files) == 1


def test_a_killed_worker_is_explained(two_classes, cache_dir, monkeypatch):
    import joblib
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    def parallel(**settings):
        def killed(tasks):
            raise TerminatedWorkerError("A worker process was unexpectedly terminated")

        return killed

    monkeypatch.setattr(packing, "_ALONE_BELOW", 1)
    monkeypatch.setattr(joblib, "Parallel", parallel)
    refused("lack of memory", "LOKY_MAX_CPU_COUNT=1", data=two_classes, cache_dir=cache_dir)
    assert leftovers(cache_dir) == []


def test_a_file_system_that_cannot_reserve_space_will_do(two_classes, cache_dir, monkeypatch):
    def unsupported(*arguments):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported, raising=False)
    assert len(prepare(two_classes, cache_dir=cache_dir)) == 11


def test_bad_files_leave_no_gap(two_classes, cache_dir):
    for name in ("cat/0005.png", "dog/000.png", "dog/zzz.png"):
        (two_classes / name).write_bytes(b"nonsense")
    dataset = prepare(two_classes, cache_dir=cache_dir)
    assert [os.path.relpath(file.path, two_classes) for file in dataset.bad_files] == [
        "cat/0005.png",
        "dog/000.png",
        "dog/zzz.png",
    ]
    names = [f"cat/{i:03}" for i in range(6)] + [f"dog/{i:03}" for i in range(1, 5)]
    assert dataset.images.shape == (10, 32, 32, 3)
    for row, name in enumerate(names):
        np.testing.assert_array_equal(dataset.images[row], Image.open(two_classes / f"{name}.png"))
    np.testing.assert_array_equal(dataset.sums[:, :, 0], dataset.images.astype(np.int64).sum((1, 2)))


def test_a_file_that_may_be_read_again_is_packed(two_classes, cache_dir, monkeypatch):
    """Of permissions and disks a fingerprint of sizes and times says nothing; root may read everything."""
    whole, denied = packing.decode_chunk, str(two_classes / "cat/002.png")

    def decode(contents, *rest):
        contents = [Unreadable(path, "no permission to read it") if path == denied else path for path in contents]
        return whole(contents, *rest)

    read = Path.read_bytes
    with monkeypatch.context() as patch:
        patch.setattr(packing, "decode_chunk", decode)
        assert len(prepare(two_classes, cache_dir=cache_dir)) == 10
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda path: read(path) if str(path) != denied else read(path / "none"))
        still = prepare(two_classes, cache_dir=cache_dir)
        assert (len(still), still.from_cache) == (10, True)
    again = prepare(two_classes, cache_dir=cache_dir)
    assert (len(again), again.bad_files, again.rebuilt) == (11, [], "files that could not be read then can be read now")


def test_more_bad_files_than_allowed(two_classes, cache_dir):
    for index in range(4):
        (two_classes / "cat" / f"bad{index}.png").write_bytes(b"")
    refused(
        "4 files",
        "at most 3",
        "bad0.png: empty file",
        "--max-bad 4",
        data=two_classes,
        cache_dir=cache_dir,
        max_bad=3,
    )
    assert leftovers(cache_dir) == []
    assert len(prepare(two_classes, cache_dir=cache_dir, max_bad=4).bad_files) == 4
    refused("4 files", "at most 0", data=two_classes, cache_dir=cache_dir, max_bad=0)  # the cache knows, too


def test_no_more_are_allowed_where_no_image_would_be_left(two_classes, cache_dir):
    for path in two_classes.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"Repair or remove them\.$"):
        prepare(two_classes, cache_dir=cache_dir, max_bad=0)


def test_a_class_without_any_readable_file(tmp_path, fill, cache_dir):
    root = fill(tmp_path / "data", {"train/a": 2, "train/b": 2, "test/a": 2, "test/b": 1})
    (root / "test" / "b" / "000.png").write_bytes(b"")
    refused("no file of class 'b'", str(root / "test/b"), data=root, cache_dir=cache_dir)
    assert leftovers(cache_dir) == []


def test_animations_are_mentioned(two_classes, cache_dir):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green")]
    frames[0].save(two_classes / "cat" / "moving.gif", save_all=True, append_images=frames[1:])
    assert prepare(two_classes, cache_dir=cache_dir).notes == ["1 animated files: first frame taken"]


@pytest.mark.parametrize("data", ["cifar1O", "no/such/folder", "", "a\0b", "x" * 5000, "~nobody_of_this_name/x"])
def test_neither_a_name_nor_a_folder(data, cache_dir):
    refused("neither a dataset's name nor a folder", "digits", data=data, cache_dir=cache_dir)


def test_a_name_almost_right(cache_dir):
    refused("Did you mean 'cifar10' or 'cifar100'?", data="cifar1O", cache_dir=cache_dir)


def test_a_file_instead_of_a_folder(tmp_path, cache_dir):
    (tmp_path / "images.zip").write_bytes(b"PK")
    refused("is a file", "Unpack it", data=tmp_path / "images.zip", cache_dir=cache_dir)


@pytest.mark.parametrize("size", [7, 1025, 0, -32])
def test_an_image_size_out_of_range(size, cache_dir):
    refused("8 to 1024", str(size), data="digits", image_size=size, cache_dir=cache_dir)


def test_the_environment_names_the_cache_folder(two_classes, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("CSHAM_CACHE", raising=False)
    assert prepare(two_classes).path.parent == tmp_path / "xdg" / "csham" / "packed"
    monkeypatch.setenv("CSHAM_CACHE", str(tmp_path / "own"))
    assert prepare(two_classes).path.parent == tmp_path / "own" / "packed"


def run(code, *arguments, **settings):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **settings)


PREPARE = """
import sys
from pathlib import Path
from csham.data import prepare
dataset = prepare(Path(sys.argv[1]), cache_dir=Path(sys.argv[2]))
print(dataset.from_cache, len(dataset), int(dataset.images.sum()), dataset.rebuilt)
assert not {"torch", "sklearn", "timm"} & set(sys.modules)
"""

HANG = """
import sys, time
from pathlib import Path
from csham.data import packing, prepare
packing._ALONE_BELOW = int(sys.argv[3])
def hang(done, total, what):
    if done:
        print("hanging", flush=True)
        time.sleep(60)
prepare(Path(sys.argv[1]), cache_dir=Path(sys.argv[2]), progress=hang)
"""


def test_two_processes_at_once_pack_once(tmp_path, fill, cache_dir):
    root = fill(tmp_path / "data", {"a": 300, "b": 300}, side=8)
    both = [run(PREPARE, root, cache_dir) for _ in range(2)]
    said = [process.communicate(timeout=60)[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(words[0] for words in said) == ["False", "True"]
    assert said[0][1:] == said[1][1:]
    assert len(leftovers(cache_dir)) == 1


@pytest.mark.parametrize("alone_below", [2000, pytest.param(1, marks=pytest.mark.slow)])
def test_a_killed_process_leaves_nothing_that_hurts(two_classes, cache_dir, alone_below):
    process = run(HANG, two_classes, cache_dir, alone_below)
    assert process.stdout.readline() == "hanging\n"
    assert [name for name in leftovers(cache_dir) if ".csham-new-" in name]
    process.send_signal(signal.SIGKILL)
    process.wait()
    dataset = prepare(two_classes, cache_dir=cache_dir)
    assert not dataset.from_cache
    assert leftovers(cache_dir) == [dataset.path.name]
    process.stdout.close()


def test_leftovers_of_another_dataset_go_as_well_unless_it_is_alive(tmp_path, fill, two_classes, cache_dir):
    other = fill(tmp_path / "other", {"a": 2, "b": 2})
    process = run(HANG, other, cache_dir, 2000)
    assert process.stdout.readline() == "hanging\n"
    prepare(two_classes, cache_dir=cache_dir)
    assert [name for name in leftovers(cache_dir) if ".csham-new-" in name], "the living process keeps its own"
    process.kill()
    process.wait()
    process.stdout.close()
    prepare(two_classes, image_size=16, cache_dir=cache_dir)
    assert not [name for name in leftovers(cache_dir) if ".csham-new-" in name]


def test_who_waits_says_so(two_classes, cache_dir):
    process = run(HANG, two_classes, cache_dir, 2000)
    assert process.stdout.readline() == "hanging\n"
    heard = []

    def hear(done, total, what):
        heard.append(what)
        process.kill()

    prepare(two_classes, cache_dir=cache_dir, progress=hear)
    process.wait()
    process.stdout.close()
    assert "waiting for another process" in heard[0]


def test_ctrl_c_leaves_nothing_behind(two_classes, cache_dir):
    def interrupt(done, total, what):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(two_classes, cache_dir=cache_dir, progress=interrupt)
    assert leftovers(cache_dir) == []


def test_the_room_is_lazy():
    code = "import sys, csham.data; assert not {'torch', 'PIL', 'numpy', 'joblib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(csham.data.__all__) <= set(dir(csham.data))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        csham.data.nonsense  # noqa: B018


@pytest.mark.slow
def test_opening_is_quick(tmp_path, fill, cache_dir):
    root = fill(tmp_path / "data", {"a": 1500, "b": 1500}, side=32)
    prepare(root, cache_dir=cache_dir)
    begun = time.process_time()  # seconds of this process alone: others may keep the machine busy
    assert prepare(root, cache_dir=cache_dir).from_cache
    assert time.process_time() - begun < 0.5  # 60,000 files take about 1 s


def test_cache_folder_names_stay_plain(cache_dir):
    path = cache.entry_path(cache_dir, "../../my images/é", "/x", 32)
    assert path.parent == cache_dir / "packed"
    assert path.name.startswith("my_images-32px-")
