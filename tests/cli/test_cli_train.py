import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import yaml


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


@pytest.mark.parametrize(("signum", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_resumable_run_and_says_how(csham, small, tmp_path, signum, expected):
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
    assert (code, out) == (expected, "")
    assert f"csham train --resume {run}" in err
    assert not (run / "summary.json").exists()


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
