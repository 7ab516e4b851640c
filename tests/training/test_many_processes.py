"""Two processes that torchrun starts on the CPU, against one process with the same batches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from two_processes import batch, small_network, trained

import csham
from csham.cli import main
from csham.training.checkpoints import load_checkpoint
from csham.training.run_folder import RunFolder
from csham.training.shared_norm import share_batch_norms

pytestmark = [pytest.mark.slow, pytest.mark.long]

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def runs(images, tmp_path_factory):
    """The folder of one-* and two-*: run by one process and by two."""
    folder = tmp_path_factory.mktemp("many")
    common = f"train {images} --image-size 16 --batch-size 8 --no-compile --quiet --device cpu --precision fp32".split()
    plain = [*common, *["--backbone", "lenet5", "--epochs", "2", "--lr", "0.05", "--checkpoint-steps", "3"]]
    # Rounding grows by a factor with every step of a network with batch norm; at this rate it stays small.
    norms = [*common, *["--backbone", "resnet14", "--attention", "csham", "--epochs", "1", "--lr", "0.0001"]]
    mixed = [*plain, "--augment", "trivial", "--mixup", "0.4", "--cutmix", "1", "--class-weights", "balanced"]
    # The second epoch is the first in which the backbone has gradients.
    tuning = {"--freeze-backbone": 1, "--accumulate": 4, "--ema": 0.9, "--clip-norm": 0.5, "--head-lr": 0.2}
    tuned = [
        *plain,
        *(str(word) for pair in tuning.items() for word in pair),
        "--schedule",
        "cosine",
        "--weights-file",
        str(folder / "one-plain" / "model.safetensors"),
    ]
    named = {"plain": plain, "norms": norms, "mixed": mixed, "tuned": tuned}
    for name, words in named.items():
        assert main([*words, "--run", str(folder / f"one-{name}")]) == 0
    stopped = folder / "two-resumed"
    stop_after(plain, stopped, steps=7)
    lines = [[*words, "--run", str(folder / f"two-{name}")] for name, words in named.items()]
    lines.append(["train", "--resume", str(stopped), "--quiet"])
    patient = [*common, *["--backbone", "lenet5", "--epochs", "5", "--lr", "1e-12", "--patience", "1"]]
    patient += ["--schedule", "constant"]
    assert main([*patient, "--run", str(folder / "one-patient")]) == 0
    assert main(["train", "--resume", str(folder / "one-patient"), "--epochs", "3", "--quiet"]) == 0
    lines.append([*patient, "--run", str(folder / "two-patient")])
    lines.append(["train", "--resume", str(folder / "two-patient"), "--epochs", "3", "--quiet"])
    words = {"to the end": lines}
    words["stopped"] = [*plain, "--run", str(folder / "two-stopped")]
    words["out of time"] = [*plain[:-2], "--run", str(folder / "two-out of time")]  # saves by no count of steps
    (folder / "words.json").write_text(json.dumps(words))
    torch.save(trained(network := small_network(), network, *batch()), folder / "one.pt")
    launch(folder)
    return folder


def stop_after(words, run, steps):
    """Begin a run that stops in its second epoch of six steps."""
    from csham.training.progress import QuietProgress

    def step(self, *_):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), 2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QuietProgress, "left", steps, raising=False)
        patch.setattr(QuietProgress, "step", step)
        assert main([*words, "--run", str(run)]) == 130
    assert load_checkpoint(run / "checkpoints/last.ckpt")["step"] == steps - 6


def launch(folder):
    source = str(Path(csham.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command += [str(HERE / "two_processes.py"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def last(run):
    return load_checkpoint(RunFolder(run).last)


def close(run, expected, tolerance):
    ours, theirs = last(run)["model"], last(expected)["model"]
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=tolerance, atol=tolerance, msg=lambda text, n=name: n + text)


def same_numbers(run, expected, tolerance):
    """Losses agree, and what is counted in images is the same."""
    for ours, theirs in zip(last(run)["history"], last(expected)["history"], strict=True):
        for name in ("train_top1", "val_top1", "lr"):
            assert ours[name] == theirs[name], name
        for name in ("train_loss", "val_loss"):
            assert ours[name] == pytest.approx(theirs[name], rel=tolerance), name
    ours, theirs = (RunFolder(path).read_summary() for path in (run, expected))
    for name in ("top1", "images", "train_images", "params", "flops"):
        assert ours[name] == theirs[name], name
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=tolerance)
    assert ours["validation_chosen"]["top1"] == theirs["validation_chosen"]["top1"]


def test_two_processes_train_as_one_does(runs):
    close(runs / "two-plain", runs / "one-plain", 1e-5)
    same_numbers(runs / "two-plain", runs / "one-plain", 1e-5)


def test_two_processes_fine_tune_as_one_does(runs):
    close(runs / "two-tuned", runs / "one-tuned", 1e-5)
    same_numbers(runs / "two-tuned", runs / "one-tuned", 1e-5)
    ours, theirs = (last(runs / name)["model_ema"] for name in ("two-tuned", "one-tuned"))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-5, msg=name)


def test_two_processes_train_batch_norms_as_one_does(runs):
    close(runs / "two-norms", runs / "one-norms", 1e-3)
    same_numbers(runs / "two-norms", runs / "one-norms", 1e-3)


def test_two_processes_mix_what_one_does(runs):
    close(runs / "two-mixed", runs / "one-mixed", 1e-5)
    same_numbers(runs / "two-mixed", runs / "one-mixed", 1e-5)


def test_shared_batch_norms_are_those_of_the_whole_batch(runs):
    ours, theirs = (torch.load(runs / name, weights_only=True) for name in ("shared.pt", "one.pt"))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-11, msg=lambda text, n=name: n + text)


def test_two_processes_go_on_with_what_one_began(runs):
    close(runs / "two-resumed", runs / "one-plain", 1e-5)
    same_numbers(runs / "two-resumed", runs / "one-plain", 1e-5)


@pytest.mark.parametrize(("run", "step"), [("two-stopped", 3), ("two-out of time", 6)])
def test_both_stop_where_one_is_told_to_and_can_go_on(runs, run, step):
    # It comes after the first of six steps of the second epoch; the two agree after every third, or the last.
    content = last(runs / run)
    assert (content["epoch"], content["step"]) == (1, step)
    assert not RunFolder(runs / run).finished


def test_two_processes_stop_early_and_go_on_together(runs):
    close(runs / "two-patient", runs / "one-patient", 1e-5)
    same_numbers(runs / "two-patient", runs / "one-patient", 1e-5)
    ours, theirs = (RunFolder(runs / name) for name in ("two-patient", "one-patient"))
    assert len(ours.read_metrics()) == 3
    assert ours.read_summary()["course"] == "2 of 5 epochs, then 1 more (constant, highest rate 1e-12)"
    assert ours.read_config().continued == theirs.read_config().continued


def test_one_process_writes(runs):
    run = runs / "two-plain"
    assert len(list(run.glob("events.out.*"))) == 1
    assert json.loads((run / "environment.json").read_text())["processes"] == 2
    assert not list(runs.glob(".*.tmp"))


def test_a_norm_keeps_its_hooks_and_what_is_unknown_is_named():
    class Own(torch.nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    network = torch.nn.Sequential(torch.nn.BatchNorm2d(3), Own(3))
    seen = []
    network[0].register_forward_hook(lambda *_: seen.append(1))
    before = network[0]
    assert share_batch_norms(network, torch.device("cpu")) == ["1"]
    network.eval()(torch.randn(2, 3, 4, 4))
    assert network[0] is before
    assert isinstance(before, torch.nn.BatchNorm2d)
    assert type(before) is not torch.nn.BatchNorm2d
    assert seen == [1]


def test_one_gpu_for_several_processes_is_refused(monkeypatch):
    from csham.errors import UserError
    from csham.training.config import TrainConfig
    from csham.training.session import _accelerator

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES"):
        _accelerator(TrainConfig(data="", device="cuda:0", precision="fp32"))


def test_accelerate_that_starts_one_process_is_told(images, capfd, monkeypatch, tmp_path):
    # What accelerate launch --cpu --num_processes 2 sets.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_PORT", "29500")
    words = f"train {images} --image-size 16 --batch-size 8 --no-compile --device cpu --backbone lenet5 --epochs 1"
    assert main([*words.split(), "--run", str(tmp_path / "run")]) == 0
    assert "one process trains" in capfd.readouterr().err
