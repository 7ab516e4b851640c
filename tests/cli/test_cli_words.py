"""Names that come from outside reach the terminal written out: no command prints a sign that disturbs it."""

import json
import os
import shutil
import subprocess
import sys

import pytest

# Escape sequences of 7 and of 8 bits, a line end, what turns the direction of writing, and a byte that is no UTF-8.
FILE = os.fsdecode(b"a\x1b[2Jb\xc2\x9b2Jc\nd\xe2\x80\xaegnp\xff")
CLASS = "ant\u202egnp\u2066"  # control characters are refused

C_LOCALE = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, write_images):
    """An image folder, of whose names most cannot be printed."""
    root = tmp_path_factory.mktemp("hostile") / "data\u202e\x1b[2J"
    try:
        write_images(root)
        for folder, file in ((root / "ant", "0.png"), (root / "bee", "1.png")):
            shutil.copy(folder / file, root / "cow" / f"{FILE}{file}")
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    (root / "bee" / f"{FILE}.png").write_bytes(b"no image")
    (root / "ant").rename(root / CLASS)
    return root


def plain_environment():
    """Return the environment without what decides how names are read and words are printed."""
    return {name: value for name, value in os.environ.items() if name not in {*C_LOCALE, "PYTHONIOENCODING"}}


def undisturbed(*streams):
    """Return what was printed if each of its lines can be."""
    for stream in streams:
        assert [line for line in stream.split("\n") if not line.isprintable()] == []
        stream.encode()
    return "".join(streams)


def test_prepare(csham, hostile):
    code, out, err = csham("prepare", hostile, "--image-size", "16")
    assert code == 0, err
    shown = undisturbed(out, err)
    assert r"a\x1b[2Jb\x9b2Jc\nd\u202egnp\udcff.png: not an image" in shown
    assert r"images under two classes" in shown
    code, out, err = csham("prepare", hostile, "--image-size", "16", "--json")
    found = json.loads(undisturbed(out, err))
    assert found["classes"][0] == CLASS
    assert FILE in found["bad_files"][0]["path"]
    undisturbed(*csham("prepare", hostile, "--image-size", "16", "--max-bad", "0")[1:])


@pytest.fixture(scope="module")
def run(hostile, tmp_path_factory):
    from csham.cli import main

    folder = tmp_path_factory.mktemp("runs") / "run\u202e\x1b[2J"
    words = "--backbone lenet5 --image-size 16 --epochs 1 --batch-size 8 --no-compile --device cpu --precision fp32"
    assert main(["train", str(hostile), *words.split(), "--run", str(folder)]) == 0
    return folder


def test_train(run, csham, hostile, capsys):
    words = "--backbone lenet5 --image-size 16 --epochs 1 --batch-size 8 --no-compile --device cpu --precision fp32"
    code, out, err = csham("train", hostile, *words.split(), "--run", f"{run}2")
    assert code == 0, err
    assert r"run\u202e\x1b[2J2: test part" in undisturbed(out, err)
    code, out, err = csham("train", hostile, *words.split(), "--run", run)
    assert code == 2
    assert r"run\u202e\x1b[2J exists" in undisturbed(out, err)


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "{run}"),
        ("evaluate", "{run}", "--json"),
        ("predict", "{run}", "{data}"),
        ("predict", "{run}", "{data}", "--json"),
        ("explain", "{run}", "{data}/bee", "--samples", "2", "--output", "{out}"),
        ("explain", "{run}", "{data}/bee/2.png", "--json", "--output", "{out}"),
        ("export", "{run}", "--format", "safetensors", "--output", "{out}.safetensors"),
        ("share", "{run}", "{out}"),
        ("train", "--resume", "{run}"),
    ],
)
def test_what_reads_a_run(csham, run, hostile, tmp_path, words):
    code, out, err = csham(*(word.format(run=run, data=hostile, out=tmp_path / "o\x9b2J") for word in words))
    assert code == 0, err
    undisturbed(out, err)


def test_a_data_set_s_folder_whose_name_is_no_utf_8(csham, images, tmp_path):
    data, run = tmp_path / os.fsdecode(b"da\xffta"), tmp_path / "run"
    try:
        shutil.copytree(images, data)
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    words = "--backbone lenet5 --image-size 16 --epochs 1 --batch-size 8 --no-compile --device cpu --precision fp32"
    for command in (
        ["train", data, *words.split(), "--run", run],
        ["train", "--resume", run],
        ["evaluate", run],
        ["share", run, tmp_path / "shared"],
        ["predict", tmp_path / "shared", data / "bee"],
    ):
        code, out, err = csham(*command)
        assert code == 0, err
        undisturbed(out, err)


@pytest.mark.parametrize(
    ("name", "environment", "refusal"),
    [
        (b"an\x1bt", {"PYTHONUTF8": "1"}, "that are no UTF-8, which cannot be shown. Rename the folder."),
        (b"an\xfft", {"PYTHONUTF8": "1"}, "that are no UTF-8, which cannot be shown. Rename the folder."),
        ("käfer".encode(), C_LOCALE, "no ASCII, which cannot be shown. Names are read as ascii here: set PYTHONUTF8=1"),
        ("käfer".encode(), {"PYTHONUTF8": "1"}, ""),
    ],
    ids=["control", "no UTF-8", "C locale", "UTF-8"],
)
def test_a_class_whose_name_cannot_be_shown_is_refused(images, tmp_path, name, environment, refusal):
    shutil.copytree(images, tmp_path / "data")
    try:
        (tmp_path / "data" / "ant").rename(tmp_path / "data" / os.fsdecode(name))
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    words = [sys.executable, "-m", "csham", "prepare", tmp_path / "data", "--image-size", "16", "--json"]
    done = subprocess.run(words, check=False, capture_output=True, env=plain_environment() | environment)
    assert done.returncode == (2 if refusal else 0)
    assert refusal in done.stderr.decode()


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--\x1b[2J\u202e"], r"--\x1b[2J\u202e"),
        (["\x1b[2J\u202e"], r"\x1b[2J\u202e"),
        (["prepare", "digits", "-\x1b[2J\u202e.png"], r"-\x1b"),
        (["list", "\x1b[2J\u202e"], r"\x1b[2J\u202e"),
        (["train", "\x1b[2J\u202e"], r"\x1b[2J\u202e"),
    ],
)
def test_a_word_that_a_pattern_of_the_shell_made_of_a_name(csham, words, shown):
    code, out, err = csham(*words)
    assert code == 2
    assert shown in undisturbed(out, err)


NOTED = r"""
import logging, sys, warnings
from csham.cli.commands import _warnings_as_notes
for debug in (False, True):
    with _warnings_as_notes(debug=debug):
        warnings.warn("of \x1b[2J\u202e\n and so on")
        logging.getLogger("csham.somewhere").warning("%s was logged", "\x1b[2J\u202e\n")
"""


def test_a_name_in_a_table_is_no_picture(capsys):
    from csham.cli.common import print_note, print_table

    print_table(":smile: [bold]x[/]", [":smile:"], [[":smile: [red]y[/]"]])
    print_note(":smile:")
    out, _ = capsys.readouterr()
    assert [line.strip() for line in out.splitlines() if line.strip("─ ")] == [
        ":smile: [bold]x[/]",
        ":smile:",
        ":smile: [red]y[/]",
        ":smile:",
    ]


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, C_LOCALE], ids=["strict", "C locale"])
@pytest.mark.parametrize("form", [[], ["--json"], ["--markdown"]])
def test_an_encoding_of_few_signs_takes_every_word(form, environment):
    words = [sys.executable, "-m", "csham", "list", "results", *form]
    done = subprocess.run(words, check=False, capture_output=True, env=plain_environment() | environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "resnet" in done.stdout.decode("ascii")
    if form == ["--json"]:
        json.loads(done.stdout)


def test_closed_streams_are_no_error():
    done = subprocess.run(["sh", "-c", '"$0" -m csham list zoo >&- 2>&-', sys.executable], check=False)
    assert done.returncode == 0


def test_a_warning_is_a_line():
    # In a process of its own: pytest has handlers of what is logged.
    done = subprocess.run([sys.executable, "-c", NOTED], capture_output=True, text=True, check=True)
    lines = undisturbed(done.stdout, done.stderr).splitlines()
    logged = r"note: \x1b[2J\u202e was logged"
    first, second, third, last = lines
    assert (first, second, last) == (r"note: of \x1b[2J\u202e and so on", logged, logged)
    assert third == r"note: <string>:6: UserWarning: of \x1b[2J\u202e and so on"
