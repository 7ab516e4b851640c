import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import yaml

from csham.training.interrupt import STOP_SIGNALS, TimeLimit


def test_json_is_the_summary_and_progress_goes_to_standard_error(csham, small, tmp_path):
    words = [word for word in small if word != "--quiet"]
    code, out, err = csham(*words, "--run", tmp_path / "run", "--json")
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "epoch 1/1" in err
    assert "images/s" in err
    assert "training with cpu" in err


def test_the_table_names_the_run_and_both_results(csham, finished):
    code, out, _ = csham("train", "--resume", finished, "--quiet")
    assert code == 0
    assert "last epoch" in out
    assert "chosen (epoch 1)" in out
    assert str(finished) in out


def test_quiet_says_nothing_else(csham, small, tmp_path):
    code, out, err = csham(*small, "--run", tmp_path / "run", "--json")
    assert (code, err) == (0, "")
    json.loads(out)


def test_the_runs_name_and_place(csham, small, images, tmp_path):
    assert csham(*small, "--runs-dir", tmp_path / "many", "--attention", "se", "--seed", "3")[0] == 0
    assert [path.name for path in (tmp_path / "many").iterdir()] == ["animals-resnet20-se-fast-1epochs-seed3"]


def test_the_command_line_wins_over_the_file_wins_over_the_recipe(csham, finished, tmp_path):
    words = ["--config", finished / "config.yaml", "--lr", "0.01", "--run", tmp_path / "run", "--quiet"]
    assert csham("train", *words)[0] == 0
    found = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    expected = yaml.safe_load((finished / "config.yaml").read_text())
    assert found == {**expected, "lr": 0.01}


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_signal_leaves_a_resumable_run_and_says_how(csham, small, tmp_path, signum):
    run = tmp_path / "run"
    words = [*small, "--epochs", "200", "--run", str(run)]

    def stop():
        while not (run / "checkpoints" / "best.ckpt").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signum)

    thread = threading.Thread(target=stop)
    thread.start()
    code, out, err = csham(*words)
    thread.join()
    assert (code, out) == (128 + signum, "")
    assert f"stopped, and saved. To go on: csham train --resume {run}" in err
    assert not (run / "summary.json").exists()


def test_the_end_of_the_time_leaves_a_resumable_run_and_says_how(csham, small, tmp_path, monkeypatch):
    run, steps = tmp_path / "run", []

    def step(self, *_):
        steps.append(1)
        if len(steps) == 3:  # an hour later
            TimeLimit.left = lambda limit: -1.0

    monkeypatch.setattr(TimeLimit, "left", TimeLimit.left)
    monkeypatch.setattr("csham.training.progress.QuietProgress.step", step)
    code, out, err = csham(*small, "--run", run, "--minutes", "60")
    assert (code, out) == (142, "")
    assert err.splitlines()[-1] == (
        f"stopped for time (--minutes 60), and saved. To go on: csham train --resume {run} --minutes 60"
    )
    monkeypatch.undo()
    assert csham("train", "--resume", run, "--minutes", "60", "--quiet")[0] == 0
    assert (run / "summary.json").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no alarms")
@pytest.mark.parametrize(
    "minutes", ["0.0001", "0.2"]
)  # before anything is there; somewhere, on a fast machine training
def test_a_process_of_its_own_ends_in_its_time(small, tmp_path, minutes):
    words = [sys.executable, "-m", "csham", *small, "--epochs", "1000000", "--run", "run", "--minutes", minutes]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (142, ""), done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"stopped for time (--minutes {minutes})")
    assert ("To go on" in last) == (tmp_path / "run").exists()
    assert "Traceback" not in done.stderr


def test_what_is_no_time_is_refused_at_once(csham, small, tmp_path):
    code, _, err = csham(*small, "--run", tmp_path / "run", "--minutes", "0")
    assert code == 2
    assert "--minutes must be a number above 0, got 0" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.slow
def test_ctrl_c_on_a_process_of_its_own(small, tmp_path):
    run = tmp_path / "run"
    words = [sys.executable, "-m", "csham", *small, "--epochs", "200", "--run", str(run)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (run / "checkpoints" / "best.ckpt").exists():
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert f"csham train --resume {run}" in err
    assert "Traceback" not in err


def test_where_attention_goes_is_an_option_and_comes_back_with_the_run(csham, small, tmp_path):
    where = ["--attention", "csham", "--strategy", "transfer", "--period", "3", "--stages", "0,-1"]
    assert csham(*small, *where, "--run", tmp_path / "run")[0] == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["period"], summary["stages"], summary["position"]) == (3, [0, -1], "auto")
    assert csham("evaluate", tmp_path / "run", "--quiet")[0] == 0
    code, _, err = csham(*small, "--attention", "csham", "--points", "layer9*", "--run", tmp_path / "other")
    assert code == 2
    assert "points='layer9*' names no module of CifarResNet" in err
    code, _, err = csham(*small, "--attention", "csham", "--stages", "one", "--run", tmp_path / "other")
    assert code == 2
    assert "--stages takes whole numbers with commas between them, got 'one'" in err


@pytest.mark.slow
def test_it_ends_with_what_is_there_and_what_is_next(csham, small, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [word for word in small if word != "--quiet"]
    code, out, _ = csham(*words, "--run", "./-a run")
    assert code == 0
    for name in ("model.safetensors", "summary.json", "metrics.csv", "confusion.csv", "curves.png", "config.yaml"):
        assert name in out
        assert (tmp_path / "-a run" / name).is_file()
    said = [shlex.split(line)[1:] for line in out.partition("next:")[2].splitlines() if " csham " in line]
    commands = [words[words.index("csham") + 1 :] for words in said]
    assert [words[0] for words in commands] == ["evaluate", "predict", "explain", "app", "export", "train"]
    picture = str(next(images.rglob("*.png")))
    for command in commands:
        if command[0] != "app":  # which does not end by itself
            given = [picture if word == "IMAGES..." else word for word in command]
            assert csham(*given, "--quiet")[0] == 0, command
    assert json.loads((tmp_path / "-a run" / "summary.json").read_text())["epochs"] == 2


def test_the_next_commands_name_the_code_that_they_need(csham, small, tmp_path, monkeypatch, own_names):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_gate_of_train.py").write_text(
        "import torch\n\nclass Gate(torch.nn.Identity):\n    def __init__(self, size):\n        super().__init__()\n"
    )
    words = [word for word in small if word != "--quiet"]
    code, out, err = csham(*words, "--attention", "own_gate_of_train:Gate", "--run", "run")
    assert code == 0, err
    after = [line for line in out.splitlines() if " csham " in line]
    assert len(after) == 6
    assert all(line.endswith(" --code own_gate_of_train:Gate") for line in after)


def test_a_finished_run_goes_on_from_the_command_line(csham, finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    words = ["--epochs", "3", "--schedule", "constant", "--lr", "0.001"]
    code, out, err = csham("train", "--resume", run, *words)
    assert code == 0, err
    assert "1 epoch, then 2 more (constant, highest rate 0.001)" in err
    assert "trained for 1 epoch, then 2 more (constant, highest rate 0.001)" in out
    assert csham("train", "--resume", run, *words, "--quiet")[0] == 0  # once more changes nothing
    for given in (["--epochs", "3"], ["--epochs", "2"], ["--lr", "0.1"], ["--epochs", "4", "--batch-size", "9"]):
        code, _, err = csham("train", "--resume", run, *given)
        if given != ["--epochs", "3"]:
            assert code == 2
            assert "--resume keeps the run's settings, leave out" in err
    code, _, err = csham("train", "--resume", run, "--epochs", "3", "--lr", "0.1")
    assert (code, "leave out --epochs: 3 epochs are done" in err) == (2, True)


def test_a_run_whose_images_were_moved_goes_on_where_they_are(csham, small, images, tmp_path):
    before, now, run = tmp_path / "before", tmp_path / "now", tmp_path / "run"
    shutil.copytree(images, before)
    assert csham("train", before, *small[2:], "--run", run)[0] == 0
    before.rename(now)
    for words, remedy in (
        (["train", "--resume", run, "--epochs", "2"], "csham train DATA --resume RUN"),
        (["evaluate", run], "csham evaluate RUN DATA"),
        (["gates", run, "--samples", "2"], "--data"),
    ):
        code, _, err = csham(*words)
        assert (code, f"are said to be at {before} and are not there" in err, remedy in err) == (2, True, True), err
    assert csham("train", now, "--resume", run, "--epochs", "2", "--quiet")[0] == 0
    assert csham("evaluate", run, "--quiet")[0] == 0  # the run says where they are now
    code, _, err = csham("train", "digits", "--resume", run, "--epochs", "3", "--quiet")
    assert code == 2
    assert "data" in err


def test_patience_from_the_command_line(csham, small, tmp_path):
    words = [*small, "--epochs", "9", "--lr", "1e-12", "--patience", "1"]
    code, out, _ = csham(*words, "--run", tmp_path / "run")
    assert code == 0
    assert "trained for 2 of 9 epochs" in out
    assert "last epoch (2)" in out
    code, _, err = csham(*words, "--validation", "0", "--run", tmp_path / "other")
    assert (code, "there is none" in err) == (2, True)


def test_a_narrow_terminal_gets_a_narrow_table(csham, finished, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    out = csham("train", "--resume", finished, "--quiet")[1]
    lines = [line.rstrip() for line in out.splitlines()]
    assert any(line.split()[:2] == ["macro", "top-1"] and len(line.split()) == 4 for line in lines), out
    assert any("last epoch (1)   chosen (epoch 1)" in line for line in lines)


def test_fine_tuning_from_a_runs_weights(csham, small, finished, write_images, tmp_path):
    data = write_images(tmp_path / "birds", ("auk", "emu", "jay", "owl"))
    words = [str(data) if word == small[1] else word for word in small]
    words += ["--recipe", "finetune", "--attention", "se", "--run", tmp_path / "run"]
    code, _, err = csham(*words)
    assert code == 2
    assert "recipe finetune starts from trained weights: --pretrained takes" in err
    assert not (tmp_path / "run").exists()
    code, _, err = csham(*words, "--weights-file", finished / "model.safetensors", "--ema", "0.99")
    assert (code, err) == (0, "")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["recipe"], config["gated"], config["ema"], config["schedule"]) == ("finetune", True, 0.99, "cosine")
    assert csham("evaluate", tmp_path / "run", "--quiet")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--attention-lr 0.1", "--attention-lr: there is no attention to attach"),
        ("--freeze-backbone 2", "--freeze-backbone would hold random weights"),
        ("--warmup-epochs 2", "--warmup-epochs: one-cycle has a rise of its own"),
        ("--ema 1", "--ema must be between 0 and 1"),
    ],
)
def test_a_setting_without_a_use_is_refused(csham, small, tmp_path, words, message):
    code, _, err = csham(*small, *words.split(), "--run", tmp_path / "run")
    assert code == 2
    assert message in err
    assert not (tmp_path / "run").exists()
