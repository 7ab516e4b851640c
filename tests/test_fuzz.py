"""The campaign of changed files: a short one over every reader, and that it would notice what it is for."""

import importlib
import json
import mmap
import subprocess
import sys
import time
from pathlib import Path

import pytest

from csham.errors import UserError

FUZZ = Path(__file__).parent.parent / "scripts" / "fuzz"


def campaign(tmp_path, *words, seconds):
    command = [sys.executable, str(FUZZ), *words, "--findings", str(tmp_path / "findings")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-3000:]
    return found.stdout


@pytest.mark.slow
def test_changed_files_never_pass_in_silence(tmp_path):
    said = campaign(tmp_path, "--cases", "1", "--seed", "1", "--quick", seconds=500)
    assert ", 0 findings" in said


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(2500)
def test_changed_files_never_pass_in_silence_for_long(tmp_path):
    said = campaign(tmp_path, "--seconds", "1800", "--seed", str(int(time.time())), seconds=2400)
    assert ", 0 findings" in said


@pytest.mark.slow
def test_an_interrupted_campaign_says_what_it_tried(tmp_path):
    command = [sys.executable, str(FUZZ), "--seconds", "600", "--only", "table", "--findings", str(tmp_path)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "under-way.json").exists():
        assert running.poll() is None
        time.sleep(0.1)
    running.terminate()
    said = running.communicate(timeout=100)[0]
    assert "interrupted; so far:\ntable " in said
    assert said.splitlines()[-1].endswith(" cases, 0 findings")


@pytest.fixture
def fuzz(monkeypatch):
    """The campaign's modules, imported into this process."""
    pytest.importorskip("h5py")
    monkeypatch.setenv("CSHAM_KERNELS", "reference")
    monkeypatch.setenv("CSHAM_CACHE", "")
    monkeypatch.syspath_prepend(FUZZ)
    for name in ("__main__fuzz", "mutations", "readers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec = importlib.util.spec_from_file_location("__main__fuzz", FUZZ / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "__main__fuzz", module)
    spec.loader.exec_module(module)
    yield module
    for name in ("mutations", "readers"):
        sys.modules.pop(name, None)


def take_all(say):
    return Path("number.txt").read_bytes()


def fall_over(say):
    if Path("number.txt").read_bytes() != SOUND:
        raise KeyError("number")


class RawError(UserError):
    def __str__(self):
        return self.args[0]


def refuse(message, kind=UserError):
    def read(say):
        if Path("number.txt").read_bytes() != SOUND:
            raise kind(message)

    return read


def never_end(say):
    while Path("number.txt").read_bytes() != SOUND:
        pass


def wait_for_ever(say):
    if Path("number.txt").read_bytes() != SOUND:
        time.sleep(1000)


def take_much(say):
    if Path("number.txt").read_bytes() != SOUND:
        with mmap.mmap(-1, 2**28) as block:  # malloc may hold on to what an earlier test had, and not rise
            block[:: mmap.PAGESIZE] = b"x" * (2**28 // mmap.PAGESIZE)


def tell(say):
    say("number.txt has changed since it was written")
    return Path("number.txt").read_bytes()


def leave(say):
    if Path("number.txt").read_bytes() != SOUND:
        sys.exit(3)


SOUND = b"top1: 25.0\n"
PLANTED = [
    (take_all, "other result"),
    (fall_over, "traceback"),
    (leave, "traceback"),
    (never_end, "hang"),
    (wait_for_ever, "hang"),
    (take_much, "memory"),
    (refuse("it is damaged."), "nameless"),
    (refuse("number.txt is \x1b[31mred.", RawError), "raw"),
    (refuse("number.txt is damaged." * 2000, RawError), "wordy"),
]
SOUND_ONES = [(refuse("number.txt is damaged."), "refused"), (lambda say: 7, "same")]


def plant(fuzz, monkeypatch, read):
    monkeypatch.setattr(fuzz, "SECONDS", 0.3 if read in (never_end, wait_for_ever) else 60)
    monkeypatch.setattr(fuzz, "WAITING", 3)
    monkeypatch.setattr(fuzz, "MEMORY", 2**27)
    make = lambda place: (place / "number.txt").write_bytes(SOUND)  # noqa: E731
    monkeypatch.setitem(
        fuzz.READERS, "planted", sys.modules["readers"].Reader(make, read, (fuzz.Target("number.txt", "text"),))
    )


@pytest.mark.parametrize(("read", "kind"), PLANTED, ids=lambda value: getattr(value, "__name__", value))
def test_a_fault_is_found_kept_and_found_again(fuzz, monkeypatch, tmp_path, capsys, read, kind):
    plant(fuzz, monkeypatch, read)
    if kind == "memory" and not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system does not tell a process's peak of memory")
    assert fuzz.campaign(fuzz.Options(None, 2, 0, ["planted"], tmp_path)) == 2
    assert f"2 {kind}" in capsys.readouterr().out
    about = json.loads((tmp_path / "planted-0-0/finding.json").read_text())
    assert (about["outcome"], about["file"]) == (kind, "number.txt")
    assert fuzz.replay(tmp_path / "planted-0-0") == 1
    assert capsys.readouterr().out.startswith(kind)


@pytest.mark.parametrize(("read", "kind"), SOUND_ONES, ids=["refused", "same"])
def test_what_is_right_is_no_finding(fuzz, monkeypatch, tmp_path, capsys, read, kind):
    plant(fuzz, monkeypatch, read)
    assert fuzz.campaign(fuzz.Options(None, 5, 0, ["planted"], tmp_path)) == 0
    assert f"5 {kind}" in capsys.readouterr().out
    assert not list(tmp_path.glob("planted*"))


def test_a_case_is_the_same_whenever_it_is_tried(fuzz, monkeypatch, tmp_path):
    plant(fuzz, monkeypatch, lambda say: 7)
    bench = fuzz.Bench("planted", tmp_path)
    assert bench.case(3, 5) == bench.case(3, 5)
    assert len({bench.case(3, number)[1] for number in range(20)}) > 15
