"""``csham app``: faults are said before anything is served, and Ctrl-C ends it."""

import signal
import subprocess
import sys
import urllib.request
from functools import partial

import pytest


def test_a_port_that_is_none(csham, tmp_path):
    code, out, err = csham("app", tmp_path, "--port", "70000")
    assert (code, out) == (2, "")
    assert err == "error: --port must be from 1 to 65535, got 70000.\n"


def test_no_run(csham, tmp_path):
    code, out, err = csham("app", tmp_path / "nothing")
    assert (code, out) == (2, "")
    assert "there is no run folder" in err


def test_a_run_that_is_named_twice(csham, finished, tmp_path):
    for words in ([finished, finished], [finished, "--compare", finished]):
        code, out, err = csham("app", *words)
        assert (code, out) == (2, "")
        assert err == f"error: {finished} is named twice. Name each run once.\n"


def test_a_second_run_that_is_none(csham, finished, tmp_path):
    code, out, err = csham("app", finished, tmp_path / "nothing")
    assert (code, out) == (2, "")
    assert f"there is no run folder {tmp_path / 'nothing'}" in err


@pytest.mark.slow
@pytest.mark.long
def test_serves_until_interrupted(finished):
    words = [sys.executable, "-m", "csham", "app", str(finished)]
    # What a shell has put into the background ignores Ctrl-C, and so do the processes that it starts.
    as_in_front = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, **pipes, text=True, preexec_fn=as_in_front) as process:  # noqa: PLW1509
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        assert "csham: resnet20" in urllib.request.urlopen(address).read().decode()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert err.splitlines()[0] == f"loading {finished} ..."
    assert "Ctrl-C ends it" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("name", ["", "lab.example:80", "http://lab.example", "*", "a*b", "la b", "-x", "x\x1b"])
def test_a_host_that_is_none(csham, finished, name):
    code, out, err = csham("app", finished, f"--allow-host={name}")
    assert (code, out) == (2, "")
    assert "is no name of a machine, such as lab.example" in err
