"""Every exception becomes a sentence and an exit code; one row for each bad input."""

import errno
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from csham import __version__
from csham.cli.commands import main


def truncate(path):
    path.write_bytes(path.read_bytes()[:1000])


class Hostile:
    def __reduce__(self):
        return exec, ("open('was-run', 'w').close()",)


@pytest.fixture
def place(tmp_path, finished, copy_unlisted, monkeypatch):
    """A working folder with everything that the rows below name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CXX", "no-such-compiler")
    (tmp_path / "file").write_text("text")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thing").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "typo.yaml").write_text("epoch: 1\n")
    (tmp_path / "text.yaml").write_text("epochs: many\n")
    shutil.copytree(finished, tmp_path / "done")
    shutil.copytree(finished, tmp_path / "changed")
    truncate(tmp_path / "changed" / "summary.json")
    for name in ("hostile", "truncated", "lost", "edited"):
        copy_unlisted(finished, tmp_path / name)
        (tmp_path / name / "summary.json").unlink()
    for checkpoint in ("last.ckpt", "best.ckpt"):
        torch.save({"format": 1, "model": Hostile()}, tmp_path / "hostile" / "checkpoints" / checkpoint)
        truncate(tmp_path / "truncated" / "checkpoints" / checkpoint)
        (tmp_path / "lost" / "checkpoints" / checkpoint).unlink()
    truncate(tmp_path / "truncated" / "model.safetensors")
    config = tmp_path / "edited" / "config.yaml"
    config.write_text(config.read_text().replace("resnet20", "resnet32"))
    (tmp_path / "plain.yaml").write_text("attention: none\nstrategy: sequential\n")
    pixels = np.zeros((16, 16, 3), np.uint8)
    for name in ("one-class/ant", "strangers/dog", "strangers/eel"):
        (tmp_path / name).mkdir(parents=True)
        for index in range(10):
            Image.fromarray(pixels + 5 * index).save(tmp_path / name / f"{index}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "message"),
    [
        # names
        ("train digits --backbone resnet19", "unknown backbone 'resnet19'. Did you mean 'resnet"),
        ("train digits --attention cshan", "unknown attention 'cshan'. Did you mean 'csham'"),
        ("train digits --strategy transfr", "unknown strategy 'transfr'. Did you mean 'transfer'"),
        ("train digits --position middle", "unknown position 'middle'"),
        ("train digits --recipe papr", "unknown recipe 'papr'. Did you mean 'paper'"),
        ("train digits --attention se --strategy transfer", "needs an attention with a channel part"),
        (
            "train digits --strategy transfer --gated",
            "--strategy, --gated: there is no attention to attach. Name one with",
        ),
        ("train digits --config plain.yaml --points layer1", "--points: there is no attention to attach"),
        ("train digit", "'digit' is neither a dataset's name nor a folder"),
        ("prepare digit", "'digit' is neither a dataset's name nor a folder"),
        ("list backbone", "unknown kind 'backbone'. Did you mean 'backbones'"),
        ("evaluate done --weights worst", "unknown weights 'worst'"),
        ("evaluate done --part tset", "unknown part 'tset'. Did you mean 'test'"),
        # settings
        ("train", "no data: name a dataset"),
        ("train digits --epochs 0", "--epochs must be at least 1, got 0"),
        ("train digits --lr nan", "--lr must be a finite number"),
        ("train digits --lr -1", "--lr must be above 0"),
        ("train digits --batch-size 1", "--batch-size must be at least 2"),
        ("train digits --patience 0", "--patience must be at least 1, got 0"),
        ("train digits --trackers wandbb", "unknown trackers 'wandbb'. Did you mean 'wandb'"),
        ("train digits --trackers none,wandb", "--trackers must be none alone, or names of trackers"),
        ("train digits --validation 1", "--validation must be from 0 to below 1"),
        ("train digits --device gpu", "unknown device 'gpu'"),
        ("train digits --precision half", "unknown precision 'half'"),
        ("train digits --compile --device cpu --backbone resnet20", "no no-such-compiler"),
        ("train digits --batch-size 5000 --backbone resnet20", "--batch-size"),
        ("train --config nowhere.yaml", "nowhere.yaml: No such file"),
        ("train digits --config list.yaml", "list.yaml should hold settings"),
        ("train digits --config typo.yaml", "unknown setting 'epoch'. Did you mean 'epochs'"),
        ("train digits --config text.yaml", "--epochs must be a whole number, got 'many'"),
        ("evaluate done --batch-size 0", "--batch-size must be at least 1"),
        # run folders
        ("train digits --run done", "exists already. csham train --resume done"),
        ("train digits --run full", "is not an empty folder"),
        ("train digits --run file", "is not an empty folder"),
        ("train digits --run file/run", "is a file"),
        ("train digits --runs-dir file", "is a file"),
        ("train --resume nowhere", "there is no run folder nowhere"),
        ("train --resume full", "is not a run folder: it has no config.yaml"),
        ("train --resume done --lr 0.1 --seed 3", "leave out --lr, --seed"),
        ("train --resume done --epochs 1", "leave out --epochs: 1 epoch is done, and only a larger number adds to it"),
        ("train --resume done --epochs 3 --seed 3", "leave out --seed"),
        ("train --resume hostile", "nothing in it was run"),
        ("train --resume truncated", "truncated or not a checkpoint"),
        ("train --resume lost", "there is no checkpoint"),
        ("train --resume edited", "backbone is 'resnet20' there and 'resnet32'"),
        ("train --resume changed", "summary.json was changed since it was written"),
        ("share changed new", "summary.json was changed since it was written"),
        ("evaluate nowhere", "there is no run folder nowhere"),
        ("evaluate hostile", "nothing in it was run"),
        ("evaluate truncated", "truncated or not a checkpoint"),
        ("evaluate truncated --weights best", "is damaged or not a safetensors file"),
        # data
        ("train empty", "empty"),
        ("train one-class", "one-class"),
        ("prepare file", "file"),
        ("evaluate done strangers", "lacks 'ant', 'bee', 'cow' and has the unknown 'dog', 'eel'"),
    ],
)
def test_bad_input(place, csham, command, message):
    before = sorted(place.rglob("*"))
    code, out, err = csham(*command.split())
    assert message in err
    assert (code, out) == (2, "")
    lines = err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert "Traceback" not in err
    assert not (place / "was-run").exists()
    new = [path for path in sorted(place.rglob("*")) if path not in before and path.name != ".lock"]
    assert not [path for path in new if path.name == "config.yaml" or path.suffix == ".tmp"]


def test_a_loss_that_is_not_finite(place, csham, small):
    code, out, err = csham(*small[:-1], "1e9", "--run", "diverged")
    assert (code, out) == (2, "")
    assert "the loss became" in err
    assert "lower --lr" in err


@pytest.mark.parametrize("command", ["train digits --no-such-option", "trian", "train digits --epochs many"])
def test_usage_errors(csham, command):
    assert csham(*command.split())[0] == 2


@pytest.mark.parametrize(
    "command", ["--help", "train --help", "compare --help", "evaluate --help", "list --help", "prepare -h"]
)
def test_help(csham, command):
    code, out, _ = csham(*command.split())
    assert code == 0
    assert "Usage: csham" in out


def test_version(csham):
    code, out, _ = csham("--version")
    assert (code, out.strip()) == (0, __version__)


def raising(error):
    def prepare(*args, **kwargs):
        raise error

    return prepare


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/runs/last.ckpt"), 2, "/runs/last.ckpt: No space left"),
        (PermissionError(errno.EACCES, "Permission denied", "/runs"), 2, "/runs: Permission denied"),
        (OSError(errno.EROFS, "Read-only file system"), 2, "Read-only file system"),
        (KeyError("oops"), 1, "KeyError: 'oops'. --debug shows the traceback"),
    ],
)
def test_other_errors(csham, monkeypatch, error, code, message):
    monkeypatch.setattr("csham.data.prepare", raising(error), raising=False)
    found, _, err = csham("prepare", "digits")
    assert (found, "Traceback" in err) == (code, False)
    assert message in err


def test_debug_shows_the_traceback(csham):
    code, _, err = csham("prepare", "digit", "--debug")
    assert code == 2
    assert "Traceback" in err


def test_ctrl_c_before_a_run(csham, monkeypatch):
    monkeypatch.setattr("csham.data.prepare", raising(KeyboardInterrupt()), raising=False)
    assert csham("prepare", "digits")[0] == 130


@pytest.mark.slow
@pytest.mark.parametrize("command", ["--help", "list recipes", "train digits --attention cshan", "train nowhere"])
def test_quick_answers_import_no_torch(command):
    program = f"import sys; from csham.cli import main; main({command.split()!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_main_takes_the_processs_own_words(monkeypatch, capsys):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(sys, "argv", ["csham", "--version"])
    assert main() == 0
    assert capsys.readouterr().out.strip() == __version__


CSHAM = [sys.executable, "-P", "-m", "csham"]
IMPORTS = """
import sys
from csham.cli import main

class Finder:
    def find_spec(name, *_):
        if name == "csham.cli.commands":
            {}

sys.meta_path.insert(0, Finder)
sys.exit(main(["--version"]))
"""


def told(words, **how):
    """Run a process: its exit code, and what it says on standard error."""
    done = subprocess.run(words, stderr=subprocess.PIPE, text=True, check=False, **how)
    return done.returncode, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("word", ["--version", "--help"])
def test_output_that_nobody_takes(word):
    with Path("/dev/full").open("w") as full:
        code, err = told([*CSHAM, word], stdout=full)
    assert (code, err) == (2, "error: standard output or another open file: No space left on device.\n")
    read, write = os.pipe()
    os.close(read)
    assert told([*CSHAM, word], stdout=write) == (1, "")
    os.close(write)


def test_the_version_before_a_command(csham):
    assert csham("--version", "list") == (0, f"{__version__}\n", "")


@pytest.mark.parametrize(
    ("what", "code", "message"),
    [
        ("raise KeyboardInterrupt", 130, ""),  # not the signal, which a shell's background processes ignore
        ("raise ImportError('libx.so: no', name='_x')", 2, "needs a library that cannot be loaded: libx.so: no. There"),
        ("raise ImportError('no', name='csham.x')", 1, "Traceback"),
    ],
)
def test_what_stops_the_import_of_the_commands(what, code, message):
    found, err = told([sys.executable, "-c", IMPORTS.format(what)])
    assert (found, bool(err)) == (code, bool(message))
    assert message in err


def test_a_working_folder_that_was_deleted(tmp_path):
    (tmp_path / "gone").mkdir()
    words = f"cd {shlex.quote(str(tmp_path / 'gone'))} && rmdir ../gone && exec {shlex.join(CSHAM)} train /absolute"
    code, err = told(["sh", "-c", words])
    assert (code, err) == (2, "error: the working folder was deleted, or cannot be read. cd into another.\n")


@pytest.mark.parametrize("command", ["predict", "explain"])
def test_names_from_an_input_that_was_closed(place, command):
    code, err = told(["sh", "-c", f"exec {shlex.join(CSHAM)} {command} done - <&-"])
    assert (code, err.splitlines()[-1]) == (
        2,
        "error: - reads the names of images from standard input, which is closed. Give it a list: - < LIST",
    )


@pytest.mark.parametrize(
    ("words", "denied", "message"),
    [
        ("train --resume done --epochs 3", "done/checkpoints", "Copy the run, and go on with the copy."),
        ("train --resume done --epochs 3", "done", "Copy the run, and go on with the copy."),
        ("export done --format safetensors", "done", "Name another file with --output (path=...)."),
    ],
)
def test_a_run_that_is_not_writable(place, csham, monkeypatch, words, denied, message):
    denied = place / denied
    # Root may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK or Path(path).absolute() != denied)
    before = sorted(place.rglob("*"))
    code, _, err = csham(*words.split())
    assert code == 2
    assert err.count("\n") == 1
    assert f"{denied.relative_to(place)} is not writable. {message}" in err
    assert sorted(place.rglob("*")) == before


@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v limits nothing elsewhere")
def test_too_little_memory_to_load_torch(finished):
    words = ["sh", "-c", f"ulimit -v 500000 && exec {shlex.join([*CSHAM, 'evaluate', str(finished)])}"]
    code, err = told(words, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})  # each thread of numpy's takes some
    assert code == 2
    assert "error: this command needs a library that cannot be loaded: " in err
    assert "too little memory for it (ulimit -v shows a limit), or its installation is broken" in err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ImportError("cannot import name 'x' from 'csham.a'", name="csham.a"), 1, "This is a fault of csham"),
        (ImportError("libx.so: no", name="_C", path="/p/_C.so"), 2, "cannot be loaded: /p/_C.so: libx.so: no. There"),
        (ModuleNotFoundError("No module named 'rich'", name="rich"), 2, 'Install it: pip install "csham[train]"'),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            2,
            "not installed. Install it: pip install torch",
        ),
        (ModuleNotFoundError("No module named 'torch.x'", name="torch.x"), 2, "another version of torch: No module"),
        (ImportError("cannot import name 'x' from 'torch.a'", name="torch.a"), 2, "version of torch: cannot import"),
    ],
)
def test_what_cannot_be_imported(csham, monkeypatch, error, code, message):
    monkeypatch.setattr("csham.data.prepare", raising(error), raising=False)
    found, _, err = csham("prepare", "digits")
    assert found == code
    assert message in err


@pytest.mark.slow
def test_processes_of_libraries_import_nothing_of_the_working_folder(images, tmp_path):
    """Such as joblib's, which decode the images of a large folder."""
    for name in ("types", "random"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w').close()")
    code = "import sys; from csham.data import packing; packing._ALONE_BELOW = 1; from csham.cli import main; main()"
    words = [sys.executable, "-P", "-c", code, "prepare", images, "--image-size", "16"]
    done = subprocess.run(
        words,
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
        | {"CSHAM_CACHE": str(tmp_path / "cache"), "LOKY_MAX_CPU_COUNT": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "60 images" in done.stdout
    assert done.stderr == ""
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("chosen", [True, False])
def test_matplotlib_keeps_its_cache_in_cshams_where_there_is_no_home(tmp_path, chosen):
    code = "import os; from csham.cli import main; main(); print(os.listdir(os.environ['CSHAM_CACHE']));"
    code += "import matplotlib; print(matplotlib.get_configdir())"
    environment = {name: value for name, value in os.environ.items() if name not in ("MPLCONFIGDIR", "XDG_CONFIG_HOME")}
    environment |= {"HOME": "/dev/null/home", "CSHAM_CACHE": str(tmp_path)}
    environment |= {"XDG_CONFIG_HOME": str(tmp_path / "mine")} if chosen else {}
    place = tmp_path / "mine" if chosen else tmp_path
    words = [sys.executable, "-c", code, "--version"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout.splitlines()[1:], done.stderr) == (["[]", str(place / "matplotlib")], "")
