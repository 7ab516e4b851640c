import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from csham.files import (
    SEAL,
    SUMS,
    cache_root,
    has_right_seal,
    has_right_sum,
    new_file,
    new_folder,
    parse_json,
    read_sums,
    remove_leftovers,
    sealed,
    settle_sums,
    sha256_of,
    sum_files,
    summed,
    write_atomically,
    write_summed,
)

WEEK = 7 * 24 * 3600


def write(path, text):
    write_atomically(path, lambda file: file.write(text.encode()))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def operations(monkeypatch, tmp_path):
    """Syncs and renames, in their order, by the names that the files have at that time."""
    done = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def name(path):
        path = Path(path)
        return "new" if ".csham-new-" in path.name else "old" if ".csham-old-" in path.name else path.name

    def synced(handle):
        (path,) = [p for p in (tmp_path, *tmp_path.rglob("*")) if os.path.samestat(p.stat(), os.fstat(handle))]
        done.append(f"sync {name(path)}")
        fsync(handle)

    def renamed(how):
        def act(source, target, **settings):
            done.append(f"{name(source)} to {name(target)}")
            how(source, target, **settings)

        return act

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed(rename))
    monkeypatch.setattr(os, "replace", renamed(replace))
    return done


ends_killed = """
import os, sys, time
from pathlib import Path
from csham import files

def stop(*_):
    print("here", flush=True)
    time.sleep(600)

place = Path(sys.argv[1])
"""


def killed_while(code, place):
    """Kill a process as soon as it says that it is where the code brings it."""
    process = subprocess.Popen([sys.executable, "-c", ends_killed + code, str(place)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"here\n"
    return process


def end(process):
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


# Whole files


def test_a_file_is_synced_before_it_gets_its_name_and_its_folder_after(tmp_path, operations):
    write(tmp_path / "file", "text")
    assert operations == ["sync new", "new to file", f"sync {tmp_path.name}"]
    assert (tmp_path / "file").read_text() == "text"


def test_an_error_names_the_file_and_leaves_the_old_one(tmp_path):
    write(tmp_path / "file", "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            write(tmp_path / "file", "new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.filename == str(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_name_as_long_as_the_file_system_takes_is_written(tmp_path):
    for name in ("n" * 255, "ä" * 127):
        write(tmp_path / name, "text")
        with new_folder(tmp_path / "folders" / name):
            pass
    assert len(names(tmp_path / "folders")) == 2


def test_what_a_killed_process_left_goes_with_the_next_write_beside_it(tmp_path):
    process = killed_while("files.write_atomically(place, stop)", tmp_path / "file")
    write(tmp_path / "other", "text")
    assert len(names(tmp_path)) == 2, "a living process keeps its file"
    end(process)
    write(tmp_path / "other", "text")
    assert names(tmp_path) == ["other"]


# Whole folders


def test_a_folder_and_all_in_it_are_synced_before_it_gets_its_name(tmp_path, operations):
    with new_folder(tmp_path / "runs" / "one") as folder:
        (folder / "below").mkdir()
        (folder / "below" / "file").write_text("text")
        assert names(tmp_path / "runs") == [folder.name]
    assert operations == [f"sync {tmp_path.name}", "sync new", "sync file", "sync below", "new to one", "sync runs"]
    assert (tmp_path / "runs" / "one" / "below" / "file").read_text() == "text"


def test_a_file_that_is_written_to_a_path_appears_synced_and_alone(tmp_path, operations):
    place = tmp_path / "deep" / "one.onnx"
    for text in ("old", "new"):
        with new_file(place) as draft:
            assert draft.name == place.name
            draft.write_text(text)
            draft.with_name("beside").write_text("scratch")
            assert place.exists() == (text == "new")
        assert place.read_text() == text
    assert operations[-3:] == ["sync one.onnx", "one.onnx to one.onnx", "sync deep"]
    with pytest.raises(OSError, match="No space") as caught, new_file(place) as draft:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(draft))
    assert caught.value.filename.startswith(str(place))
    with pytest.raises(OSError, match="No space") as caught, new_file(place):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as writing does
    assert caught.value.filename == str(place)
    assert place.read_text() == "new"
    assert names(tmp_path / "deep") == ["one.onnx"]


def test_an_empty_folder_in_its_place_is_replaced_also_behind_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    with new_folder(tmp_path / "link") as folder:
        (folder / "file").write_text("text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "file").read_text() == "text"


def test_nothing_is_left_of_a_folder_that_fails_and_its_error_names_the_place(tmp_path):
    with pytest.raises(OSError, match="No space") as caught, new_folder(tmp_path / "one") as folder:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "file"))
    assert caught.value.filename == str(tmp_path / "one" / "file")
    assert names(tmp_path) == []


def test_the_second_of_two_that_make_one_folder_is_told(tmp_path):
    message = re.escape("another process has made it meanwhile: '") + r".*one'"
    with (
        pytest.raises(FileExistsError, match=message),
        new_folder(tmp_path / "one"),
        new_folder(tmp_path / "one") as one,
    ):
        (one / "file").write_text("first")
    assert (tmp_path / "one" / "file").read_text() == "first"
    assert names(tmp_path) == ["one"]


def test_a_folder_is_not_put_in_the_place_of_a_file(tmp_path):
    for replace in (False, True):
        with pytest.raises(FileExistsError), new_folder(tmp_path / "one", replace=replace):
            (tmp_path / "one").write_text("file")
        assert (tmp_path / "one").read_text() == "file"


def test_an_old_folder_stays_until_the_new_one_is_whole(tmp_path, operations):
    for text in ("first", "second"):
        operations.clear()
        with new_folder(tmp_path / "one", replace=True) as folder:
            (folder / "file").write_text(text)
            if text == "second":
                assert (tmp_path / "one" / "file").read_text() == "first"
    assert operations == ["sync file", "sync new", "one to old", "new to one", f"sync {tmp_path.name}"]
    assert (tmp_path / "one" / "file").read_text() == "second"
    assert names(tmp_path) == ["one"]


def test_an_old_folder_stays_where_the_new_one_fails(tmp_path, monkeypatch):
    with new_folder(tmp_path / "one") as folder:
        (folder / "file").write_text("old")
    rename = Path.rename

    def refuse(self, target):
        if ".csham-new-" in self.name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError), new_folder(tmp_path / "one", replace=True):
        pass
    assert (tmp_path / "one" / "file").read_text() == "old"
    assert names(tmp_path) == ["one"]


def test_many_that_replace_one_folder_take_turns(tmp_path):
    problems = []

    def replace(text):
        try:
            for _ in range(20):
                with new_folder(tmp_path / "one", replace=True) as folder:
                    (folder / "file").write_text(text)
        except Exception as err:
            problems.append(err)

    threads = [threading.Thread(target=replace, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert (tmp_path / "one" / "file").read_text() in "0123"
    assert names(tmp_path) == ["one"]


def test_a_folder_of_a_killed_process_goes_with_the_next_one_beside_it(tmp_path):
    process = killed_while("with files.new_folder(place) as folder: (folder / 'a').mkdir(); stop()", tmp_path / "one")
    with new_folder(tmp_path / "two"):
        pass
    assert len(names(tmp_path)) == 2, "a living process keeps its folder"
    end(process)
    end(killed_while("with files.new_file(place) as draft: draft.write_text('half'); stop()", tmp_path / "four"))
    with new_folder(tmp_path / "three"):
        pass
    assert names(tmp_path) == ["three", "two"]


def test_an_old_folder_is_put_back_where_the_process_was_killed_between_the_renames(tmp_path):
    with new_folder(tmp_path / "one") as folder:
        (folder / "file").write_text("old")
    code = """
rename = Path.rename
def slow(self, target):
    return stop() if ".csham-new-" in self.name else rename(self, target)
Path.rename = slow
with files.new_folder(place, replace=True): pass
"""
    process = killed_while(code, tmp_path / "one")
    remove_leftovers(tmp_path / "one")
    assert "one" not in names(tmp_path), "it belongs to a living process"
    end(process)
    remove_leftovers(tmp_path / "another")
    assert "one" not in names(tmp_path), "the next call for this place does it"
    remove_leftovers(tmp_path / "one")
    assert names(tmp_path) == ["one"]
    assert (tmp_path / "one" / "file").read_text() == "old"


# Leftovers


def test_leftovers_whose_process_cannot_be_known_go_after_a_week(tmp_path):
    other = ".one.csham-new-another.host-1-01234567.tmp"
    for name, age in ((other, 0), (other.replace("01", "02"), WEEK + 60)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age, time.time() - age))
    remove_leftovers(tmp_path / "one")
    assert names(tmp_path) == [other]


def test_a_lock_tells_a_process_whose_number_another_one_has_now(tmp_path):
    process = killed_while("files.write_atomically(place, stop)", tmp_path / "file")
    end(process)
    (left,) = tmp_path.iterdir()
    left.rename(tmp_path / left.name.replace(f"-{process.pid}-", f"-{os.getpid()}-"))
    remove_leftovers(tmp_path / "file")
    assert names(tmp_path) == []


# Sums of a folder


def write_in(folder, name, text):
    write_summed(folder, {name: lambda file: file.write(text.encode())})


def test_each_file_has_its_sum_as_other_programs_read_it(tmp_path):
    (tmp_path / "below").mkdir()
    for text in ("first", "second"):
        write_in(tmp_path, "one", text)
        write_in(tmp_path, "below/two", text)
    settle_sums(tmp_path)
    assert read_sums(tmp_path) == {name: (sha256_of(tmp_path / name),) for name in ("one", "below/two")}
    program = shutil.which("sha256sum")
    if program is not None:
        done = subprocess.run([program, "-c", SUMS], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "below/two: OK\none: OK\n"), done.stderr


def test_both_contents_are_right_while_a_file_is_replaced(tmp_path, operations):
    write_in(tmp_path, "one", "first")
    first = sha256_of(tmp_path / "one")
    code = """
replace = Path.replace
def slow(self, target):
    return stop() if Path(target).name == "one" else replace(self, target)
Path.replace = slow
files.write_summed(place, {"one": lambda file: file.write(b"second")})
"""
    end(killed_while(code, tmp_path))
    sums = read_sums(tmp_path)["one"]
    assert sums[0] == first
    assert len(sums) == 2
    operations.clear()
    write_in(tmp_path, "one", "third")
    step = f"sync {tmp_path.name}"
    assert operations == ["sync new", "sync new", f"new to {SUMS}", step, "new to one", step]
    third = sha256_of(tmp_path / "one")
    assert read_sums(tmp_path)["one"] == (*sums, third), "it is not known which the other process left"
    write_in(tmp_path, "one", "fourth")
    assert read_sums(tmp_path)["one"] == (third, sha256_of(tmp_path / "one"))


def test_a_file_that_another_process_wrote_may_have_every_content_it_may_have_had(tmp_path):
    write_in(tmp_path, "one", "first")
    code = "files.write_summed(place, {'one': lambda file: file.write(b'second')}); stop()"
    end(killed_while(code, tmp_path))
    before = read_sums(tmp_path)["one"]
    end(killed_while(code.replace("second", "third"), tmp_path))
    assert read_sums(tmp_path)["one"] == (*before, sha256_of(tmp_path / "one"))
    assert before[1] != before[0]


def test_several_files_are_replaced_in_their_order_or_none_where_one_fails(tmp_path, operations):
    (tmp_path / "below").mkdir()
    writes = {name: lambda file: file.write(b"text") for name in ("below/two", "one")}
    write_summed(tmp_path, writes)
    here, sums = f"sync {tmp_path.name}", ["sync new", f"new to {SUMS}"]
    assert operations == ["sync new", "sync new", *sums, here, "new to two", "sync below", "new to one", here]
    content = read_sums(tmp_path)

    def fail(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space") as caught:
        write_summed(tmp_path, {"one": lambda file: file.write(b"new"), "below/two": fail})
    assert caught.value.filename == str(tmp_path / "below" / "two")
    assert (tmp_path / "one").read_bytes() == b"text"
    assert read_sums(tmp_path) == content
    assert [*names(tmp_path), *names(tmp_path / "below")] == ["below", SUMS, "one", "two"]


def test_a_changed_file_does_not_settle(tmp_path):
    for text in ("first", "second"):
        write_in(tmp_path, "one", text)
    sums = read_sums(tmp_path)
    (tmp_path / "one").write_text("changed")
    settle_sums(tmp_path)
    assert read_sums(tmp_path) == sums


def test_a_file_from_before_there_were_sums_is_right_until_it_is_replaced(tmp_path):
    (tmp_path / "one").write_text("first")
    first = sha256_of(tmp_path / "one")
    sums, replace = [], Path.replace

    def look(self, target):
        if target.name == "one":
            sums.append(read_sums(tmp_path)["one"])
        return replace(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", look)
        write_in(tmp_path, "one", "second")
    assert sums == [(first, sha256_of(tmp_path / "one"))]


def test_a_changed_list_is_seen_whatever_changed(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    sum_files(tmp_path, ["one", "two"])
    content = (tmp_path / SUMS).read_bytes()
    draw = random.Random(0)
    changed = [content[:length] for length in range(len(content))]
    for _ in range(1000):
        place = draw.randrange(len(content))
        changed.append(content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :])
    for damaged in [*changed, content + b"\n", content * 20_000]:
        (tmp_path / SUMS).write_bytes(damaged)
        with pytest.raises(ValueError, match="not whole"):
            read_sums(tmp_path)
    (tmp_path / SUMS).unlink()
    assert read_sums(tmp_path) is None
    (tmp_path / SUMS).mkdir()
    with pytest.raises(ValueError, match="not a file"):
        read_sums(tmp_path)


# Sums of objects of JSON


def test_a_changed_object_is_seen_whatever_changed():
    values = summed({"top1": 95.1, "label": "größe", "per_class": [{"n": 3}, None, True], "loss": 1e-7, "big": 10**30})
    line = json.dumps(values).encode()
    assert has_right_sum(parse_json(line)) is True
    assert has_right_sum(parse_json(json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False))) is True
    seen = 0
    for place in range(len(line)):
        for bit in range(8):
            try:
                other = parse_json(line[:place] + bytes([line[place] ^ 1 << bit]) + line[place + 1 :])
            except ValueError:
                continue
            if other != values:  # 1e-07 and 1e-7 are one number
                assert has_right_sum(other) is (None if "sum" not in other else False), other
                seen += 1
    assert seen > 500


def test_an_object_without_a_sum_is_from_before():
    assert has_right_sum({"top1": 95.1}) is None
    assert has_right_sum({"top1": 95.1, "sum": None}) is False
    assert has_right_sum({"top1": float("nan"), "sum": "0"}) is False
    assert summed(summed({"top1": 1})) == summed({"top1": 1})
    with pytest.raises(ValueError, match="JSON"):
        summed({"top1": float("nan")})


@pytest.mark.parametrize("place", [0, 7, 300])
def test_a_changed_file_is_seen_by_the_sum_in_it(tmp_path, place):
    body = random.Random(0).randbytes(300)
    path = tmp_path / "one"
    content = sealed(body[:place] + SEAL.encode() + body[place:])
    path.write_bytes(content)
    assert has_right_seal(path)
    without = SEAL.replace("0" * 64, "").encode()
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        # The words before the digits are about no content: a file without them is as one from before there were any.
        assert has_right_seal(path) is (None if without not in changed else False)
    for other in (content[:-1], content + b"x", content[1:]):
        path.write_bytes(other)
        assert not has_right_seal(path)


@pytest.mark.parametrize("content", [b"", b"x", b"csham-sha256", b"csham-sha256:"[1:] + b"0" * 64])
def test_a_file_without_a_sum_in_it_is_from_before(tmp_path, content):
    (tmp_path / "one").write_bytes(content)
    assert has_right_seal(tmp_path / "one") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "'a' is there twice"),
        ("[NaN]", "NaN is not a number"),
        ("[1e999]", "1e999 is too large"),
        ("[" * 100_000, "nested too deeply"),
        (b"\xff\xff\xff", "codec can't decode"),
    ],
)
def test_json_that_is_none_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text)


@pytest.fixture
def homeless(monkeypatch):
    """A user of whom the system knows no home folder, as a container may have."""
    pwd = pytest.importorskip("pwd", reason="Windows takes the home folder from the environment alone")

    def nobody(number):
        raise KeyError(number)

    for name in ("HOME", "CSHAM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)


def test_without_a_home_folder_the_cache_has_to_be_named(homeless, tmp_path, monkeypatch):
    with pytest.raises(OSError, match=r"CSHAM_CACHE=DIR in the environment: '~/.cache'"):
        cache_root()
    monkeypatch.setenv("CSHAM_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
