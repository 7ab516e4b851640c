"""Runs from trained weights: every setting of the optimizer is the same after a stop, and does what it says."""

import json
from pathlib import Path

import pytest
import torch
from test_loop import Listening, Stopping, epochs_of, same_results, weights

from csham.errors import UserError
from csham.training import session
from csham.training.checkpoints import load_checkpoint
from csham.training.config import read_settings, resolve
from csham.training.evaluation import evaluate
from csham.training.interrupt import InterruptedRunError
from csham.training.loop import resume, train
from csham.training.network import read_network
from csham.training.run_folder import RunFolder

EACH = {
    "adamw": {"optimizer": "adamw", "lr": 0.003},
    "cosine": {"schedule": "cosine", "warmup_epochs": 0.5},
    "rates": {"backbone_lr": 0.01, "head_lr": 0.1, "attention_lr": 0.02},
    "layers": {"layer_decay": 0.7},
    "frozen": {"freeze_backbone": 1},
    "ema": {"ema": 0.9},
    "clipped": {"clip_norm": 0.5},
    "accumulated": {"accumulate": 4},
}
TOGETHER = {name: value for settings in EACH.values() for name, value in settings.items()}


@pytest.fixture(scope="module")
def trained(settings, tmp_path_factory):
    """Weights of a run on other classes."""
    run = tmp_path_factory.mktemp("trained") / "run"
    train(resolve({**settings, "backbone": "resnet14", "epochs": 1}), run=run)
    return run / "model.safetensors"


@pytest.fixture(scope="module")
def tuning(settings, trained, write_images, tmp_path_factory):
    """Settings of a run that starts from them, of 70 training images and four classes: 9 steps an epoch."""
    data = write_images(tmp_path_factory.mktemp("other") / "birds", ("auk", "emu", "jay", "owl"), count=25, seed=3)
    return {
        **settings, "data": str(data), "backbone": "resnet14", "attention": "cbam", "gated": True,
        "weights_file": str(trained), "precision": "fp32", "checkpoint_seconds": 3600.0,
    }  # fmt: skip


def stopped(given, run, after):
    with pytest.raises(InterruptedRunError):
        train(resolve(given), run=run, progress=Stopping(after))
    return load_checkpoint(RunFolder(run).last)


@pytest.mark.parametrize(
    "given",
    [*(pytest.param(given, marks=[pytest.mark.slow, pytest.mark.long]) for given in EACH.values()), TOGETHER],
    ids=[*EACH, "together"],
)
@pytest.mark.parametrize("epoch", [0, pytest.param(1, marks=pytest.mark.slow)], ids=["first", "second"])
def test_a_stopped_run_goes_on_to_the_same_bits(tuning, tmp_path, given, epoch):
    given = {**tuning, **given}
    train(resolve(given), run=tmp_path / "whole")
    # Progress is told of updates, of which an epoch of 9 steps by four has three.
    updates = -(-9 // given.get("accumulate", 1))
    content = stopped(given, tmp_path / "run", epoch * updates + 2)
    assert content["epoch"] == epoch
    assert 0 < content["step"] < 9
    resume(tmp_path / "run")
    same_results(tmp_path / "run", tmp_path / "whole")
    ours, theirs = (load_checkpoint(RunFolder(tmp_path / name).last) for name in ("run", "whole"))
    assert [group["name"] for group in ours["optimizer"]["param_groups"]] == [
        group["name"] for group in theirs["optimizer"]["param_groups"]
    ]
    for name, value in theirs.get("model_ema", {}).items():
        assert torch.equal(ours["model_ema"][name], value), name
    assert (
        read_settings(tmp_path / "run" / "config.yaml")
        == resolve({}, read_settings(tmp_path / "whole" / "config.yaml")).to_dict()
    )


@pytest.mark.parametrize("attention", ["none", "cbam"])
def test_a_frozen_backbone_keeps_weights_and_statistics_and_then_learns(tuning, trained, tmp_path, attention):
    given = {**tuning, "attention": attention, "freeze_backbone": 2, "epochs": 3}
    start = read_network(trained)[0].state_dict()
    content = stopped(given, tmp_path / "run", 2 * 9 + 1)  # after the first step of the third epoch
    frozen = content["history"][1]
    assert (content["epoch"], content["step"]) == (2, 1)
    assert frozen["train_loss"] < content["history"][0]["train_loss"]  # the head learns meanwhile
    held = weights(tmp_path / "run", "best")
    kept = [name for name in start if not name.startswith("fc.")]
    assert all(torch.equal(held[name], start[name]) for name in kept)
    moved = content["model"]
    assert not torch.equal(moved["layer2.0.conv1.weight"], start["layer2.0.conv1.weight"])
    assert not torch.equal(moved["bn1.running_mean"], start["bn1.running_mean"])


def test_cells_of_one_seed_start_alike(tuning, tmp_path):
    """The backbone from the file, the head drawn by the seed, gates closed: the first step is the plain network's."""
    runs = {}
    for name, given in {"plain": {"attention": "none"}, "gated": {}}.items():
        stopped({**tuning, **TOGETHER, **given, "accumulate": 1, "lr": 1e-9}, tmp_path / name, 1)
        runs[name] = load_checkpoint(RunFolder(tmp_path / name).last)
    plain, gated = runs["plain"], runs["gated"]
    assert torch.equal(plain["sums"], gated["sums"])
    for name, value in plain["model"].items():
        torch.testing.assert_close(gated["model"][name], value, msg=name)


def test_steps_whose_gradients_are_averaged_are_one_of_all_their_images(tuning, tmp_path, monkeypatch):
    """Without batch norm and crops, whose statistics and draws are of each step's images."""
    make = session._make_batches
    monkeypatch.setattr(session, "_make_batches", lambda *args, augment: make(*args, augment=False))
    given = {**tuning, "backbone": "lenet5", "attention": "none", "weights_file": None, "epochs": 1, "momentum": 0.0}
    given |= {"schedule": "cosine", "last_batch": "drop", "validation": 0.0}  # 80 training images
    train(resolve({**given, "batch_size": 16}), run=tmp_path / "large")
    train(resolve({**given, "batch_size": 8, "accumulate": 2}), run=tmp_path / "small")
    ours, theirs = weights(tmp_path / "small"), weights(tmp_path / "large")
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert epochs_of(tmp_path / "small")[0]["lr"] == epochs_of(tmp_path / "large")[0]["lr"]


def test_an_epochs_last_steps_are_used_though_they_are_fewer(tuning, tmp_path):
    given = {**tuning, "epochs": 1, "accumulate": 5, "optimizer": "adamw", "lr": 0.003}
    said = Listening()
    train(resolve(given), run=tmp_path / "run", progress=said)
    steps = load_checkpoint(RunFolder(tmp_path / "run").last)["optimizer"]["state"][0]["step"]
    assert steps == 2
    assert any("9 steps in 1 epoch, 2 updates of 5 steps each" in note for note in said.notes)
    assert any("warning: 2 updates are few" in note for note in said.notes)


def test_a_checkpoint_is_between_updates(tuning, tmp_path):
    given = {**tuning, "accumulate": 4, "checkpoint_steps": 3}
    content = stopped(given, tmp_path / "run", 2)
    assert content["step"] == 8


def test_gradients_are_clipped_together(tuning, tmp_path):
    """One step of plain descent is as long as the rate times the norm that is allowed."""
    given = {**tuning, "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "lr": 1.0}
    start = stopped({**given, "lr": 1e-12}, tmp_path / "start", 1)["model"]
    end = stopped({**given, "clip_norm": 1e-2}, tmp_path / "run", 1)["model"]
    parameters = [name for name in start if "running" not in name and "num_batches" not in name]
    length = torch.stack([(end[name] - start[name]).double().square().sum() for name in parameters]).sum().sqrt()
    assert float(length) == pytest.approx(1e-2, rel=1e-3)


@pytest.fixture(scope="module")
def averaged(tuning, tmp_path_factory):
    """A run that averages its weights, whose best epoch is not its last."""
    run = tmp_path_factory.mktemp("averaged") / "run"
    train(resolve({**tuning, "ema": 0.9, "track_test": True}), run=run)
    return run


def test_what_a_run_leaves_behind_is_the_average(averaged):
    content = load_checkpoint(RunFolder(averaged).last)
    raw, average = content["model"], content["model_ema"]
    network, _ = read_network(averaged / "model.safetensors")
    for name, value in network.state_dict().items():
        assert torch.equal(value, average[name]), name
    for name in ("layer1.0.conv1.weight", "bn1.running_var", "fc.bias"):
        assert not torch.equal(raw[name], average[name])
    summary = json.loads((averaged / "summary.json").read_text())
    assert summary["weights"] == "last epoch, averaged with a decay of 0.9"


def test_the_average_is_what_is_measured_and_chosen(averaged, tmp_path):
    summary, rows = json.loads((averaged / "summary.json").read_text()), epochs_of(averaged)
    assert summary["top1"] == pytest.approx(float(rows[-1]["test_top1"]), abs=1e-3)
    for name, key in (("last", summary), ("best", summary["validation_chosen"])):
        again = evaluate(averaged, weights=name)
        assert again.summary["top1"] == pytest.approx(key["top1"])
        assert again.summary["loss"] == pytest.approx(key["loss"], rel=1e-4)
    # Another file of the same weights, from the checkpoint, as of a run that has not ended.
    (averaged / "model.safetensors").rename(tmp_path / "model.safetensors")
    try:
        assert evaluate(averaged).summary["loss"] == pytest.approx(summary["loss"], rel=1e-4)
    finally:
        (tmp_path / "model.safetensors").rename(averaged / "model.safetensors")


def test_the_average_is_of_the_weights_after_each_update(tuning, tmp_path):
    """By its formula, of the decays that rise to the one that was asked for."""
    given = {**tuning, "ema": 0.5, "checkpoint_seconds": 0.0}
    average = None
    for number in range(1, 5):
        content = stopped(given, tmp_path / f"run{number}", number)
        value = content["model"]["fc.weight"].double()
        decay = min(1 - number ** (-2 / 3), 0.5) if number > 1 else 0.0
        average = value if average is None else decay * average + (1 - decay) * value
        torch.testing.assert_close(content["model_ema"]["fc.weight"].double(), average, rtol=1e-5, atol=1e-7)


def test_a_checkpoint_without_the_average_is_refused(tuning, tmp_path):
    from csham.training.checkpoints import save_checkpoint

    stopped({**tuning, "ema": 0.9}, tmp_path / "run", 2)
    content = load_checkpoint(RunFolder(tmp_path / "run").last)
    del content["model_ema"]
    save_checkpoint(RunFolder(tmp_path / "run").last, content)
    with pytest.raises(UserError, match="it has no average of the weights"):
        resume(tmp_path / "run")


def test_a_stem_that_did_not_get_weights_learns_with_the_head(settings, tmp_path):
    """A file of the network for larger images: the stem for small ones is new, and so stays when the run goes on."""
    import timm

    file = tmp_path / "published.pth"
    torch.save(timm.create_model("resnet18", num_classes=7).state_dict(), file)
    given = {**settings, "backbone": "resnet18", "weights_file": str(file), "freeze_backbone": 3, "image_size": 16}
    first = stopped(given, tmp_path / "run", 1)
    assert first["new_modules"] == ["conv1", "fc"]
    with pytest.raises(InterruptedRunError):
        resume(tmp_path / "run", progress=Stopping(1))
    second = load_checkpoint(RunFolder(tmp_path / "run").last)
    moved = {name for name, value in first["model"].items() if not torch.equal(value, second["model"][name])}
    assert moved == {"conv1.weight", "fc.weight", "fc.bias"}


def test_the_run_folder_says_what_learns_at_which_rate(tuning, tmp_path):
    given = {**tuning, "optimizer": "adamw", "lr": 0.001, "backbone_lr": 0.0001}
    stopped(given, tmp_path / "run", 1)
    groups = json.loads((tmp_path / "run" / "environment.json").read_text())["parameters"]
    rates = {group["name"]: group["highest_lr"] for group in groups}
    assert rates["backbone, lr x 0.1"] == pytest.approx(0.0001)
    assert rates["gates, no decay"] == 0.001


def test_the_rate_that_is_shown_is_the_schedules(tuning, tmp_path):
    train(resolve({**tuning, "head_lr": 0.5, "backbone_lr": 0.001, "schedule": "constant"}), run=tmp_path / "run")
    assert {row["lr"] for row in epochs_of(tmp_path / "run")} == {"0.05"}


def test_a_checkpoint_gives_its_average_to_the_next_network(averaged, tuning, tmp_path):
    """As the file of weights beside it does."""
    plain = {**tuning, "attention": "none", "ema": 0.9, "epochs": 1}
    train(resolve(plain), run=tmp_path / "first")
    average = load_checkpoint(RunFolder(tmp_path / "first").last)["model_ema"]
    for file in ("checkpoints/last.ckpt", "model.safetensors"):
        given = {**plain, "weights_file": str(tmp_path / "first" / file), "lr": 1e-12, "weight_decay": 0.0}
        content = stopped({**given, "freeze_backbone": 1}, tmp_path / Path(file).stem, 1)
        assert all(torch.equal(content["model"][name], average[name]) for name in average if "layer" in name)


def test_the_average_is_measured_in_the_runs_precision(tuning, tmp_path):
    summary = train(resolve({**tuning, "ema": 0.9, "precision": "bf16"}), run=tmp_path / "run")
    assert evaluate(tmp_path / "run").summary["loss"] == pytest.approx(summary["loss"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.long
def test_a_compiled_run_fine_tunes_as_one_that_is_not(tuning, tmp_path):
    """It is compiled once more when the backbone is let go."""
    given = {**tuning, **TOGETHER, "backbone": "lenet5", "attention": "none", "weights_file": None}
    train(resolve({**given, "freeze_backbone": 0, "epochs": 1}), run=tmp_path / "start")
    given["weights_file"] = str(tmp_path / "start" / "model.safetensors")
    for name in ("compiled", "plain"):
        train(resolve({**given, "compile": name == "compiled"}), run=tmp_path / name)
    ours, theirs = (load_checkpoint(RunFolder(tmp_path / name).last) for name in ("compiled", "plain"))
    assert ours["config"]["compile"]
    for key in ("model", "model_ema"):
        for name, value in theirs[key].items():
            torch.testing.assert_close(ours[key][name], value, rtol=1e-3, atol=1e-5, msg=name)
