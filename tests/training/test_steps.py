"""The batch fits the training part, a run says how many steps it makes, and each has its learning rate."""

from dataclasses import replace

import pytest
import torch

from csham.training.config import resolve
from csham.training.course import schedule_notes
from csham.training.recipes import RECIPES
from csham.training.steps import (
    FEW_STEPS,
    SMALLEST_BATCH,
    STEPS_PER_EPOCH,
    fit_batch,
    learning_rate,
    number_of_steps,
    steps_notes,
    steps_of_update,
    updates_in,
)


def config_of(recipe="fast", **given):
    return resolve({"data": "digits", "recipe": recipe, **given})


@pytest.mark.parametrize(
    ("recipe", "train_images", "expected"),
    [
        ("fast", 45_000, 128),
        ("paper", 45_000, 128),
        ("quick", 45_000, 64),
        ("fast", 226, 16),
        ("quick", 42, 8),
        ("fast", 8, 8),
        ("fast", 7, 4),  # fewer than the smallest batch: as many as there are, in a power of two
        ("fast", 2, 2),
    ],
)
def test_a_small_training_part_gets_a_smaller_batch(recipe, train_images, expected):
    assert fit_batch(config_of(recipe), train_images).batch_size == expected


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_epoch_has_enough_steps_unless_the_batch_is_the_smallest(recipe):
    for train_images in range(2, 3000):
        config = fit_batch(config_of(recipe, epochs=1), train_images)
        assert config.batch_size <= min(RECIPES[recipe].batch_size, train_images)
        steps = number_of_steps(config, train_images)
        assert steps >= STEPS_PER_EPOCH or config.batch_size <= SMALLEST_BATCH
        assert steps * config.batch_size - train_images < config.batch_size


def test_a_batch_that_was_given_stays():
    assert fit_batch(config_of(batch_size=128), 226).batch_size == 128


def test_a_run_that_drops_images_is_of_before_batches_were_fitted():
    assert fit_batch(config_of("quick", last_batch="drop"), 226).batch_size == 64


def test_the_steps_are_those_that_batches_make():
    assert number_of_steps(config_of(batch_size=16), 226) == 30 * 15
    assert number_of_steps(config_of(batch_size=16, last_batch="drop"), 226) == 30 * 14


def test_what_a_run_says_of_its_steps():
    assert steps_notes(config_of(batch_size=16), 226) == [
        "226 training images in 15 batches of 16: 450 steps in 30 epochs"
    ]
    dropping = config_of(batch_size=128, last_batch="drop")
    assert (
        "in 1 batch of 128, 98 of them left out of each epoch: 30 steps in 30 epochs" in steps_notes(dropping, 226)[0]
    )
    said, warning = steps_notes(config_of(batch_size=128), 226)
    assert said == "226 training images in 2 batches of 128: 60 steps in 30 epochs"
    assert "60 steps are few" in warning
    assert "--epochs 150 makes 300, or a --batch-size below 128" in warning
    _, warning = steps_notes(config_of("quick", batch_size=8, epochs=1), 8)
    assert warning.endswith("makes 300")


@pytest.mark.parametrize(("warmup", "warns"), [(4.5, False), (5.0, True), (50.0, True)])
def test_a_warm_up_that_outlasts_the_run_is_said(warmup, warns):
    config = config_of(epochs=5, batch_size=8, schedule="cosine", warmup_epochs=warmup)
    said = [note for note in steps_notes(config, 9000) if "warm-up" in note]
    assert len(said) == warns
    assert all("--warmup-epochs 1 leaves" in note for note in said)


def test_a_warm_up_that_outlasts_one_epoch_or_added_ones_is_said_with_what_helps_there():
    one = config_of(epochs=1, batch_size=8, schedule="cosine", warmup_epochs=1.0)
    said = "warning: the warm-up takes all of 1 epoch: the learning rate only rises."
    assert f"{said} --warmup-epochs 0.1 leaves time for the rest" in steps_notes(one, 9000)
    assert not [note for note in steps_notes(replace(one, warmup_epochs=0.1), 9000) if "warm-up" in note]
    added = replace(one, epochs=3, continued=("after 2 of 2 epochs: cosine, lr 0.1",))
    (note,) = schedule_notes(added)
    assert note.startswith(f"{said} More --epochs, or --schedule one-cycle")
    assert not schedule_notes(replace(added, continued=("after 2 of 2 epochs: one-cycle, lr 0.1",)))


@pytest.mark.parametrize(
    ("crop", "crop_scale", "warns"), [("pad", 0.5, True), ("pad", 0.35, False), ("resized", 0.5, False)]
)
def test_a_scale_of_crops_that_are_not_made_is_said(crop, crop_scale, warns):
    said = steps_notes(config_of(batch_size=8, crop=crop, crop_scale=crop_scale), 9000)
    assert any("--crop-scale 0.5 changes nothing" in note for note in said) == warns


@pytest.mark.parametrize("train_images", [8, 60, 226])
@pytest.mark.parametrize("epochs", [1, 3, 7])
def test_the_epochs_that_it_names_are_enough_and_no_more(train_images, epochs):
    config = config_of(epochs=epochs, batch_size=8)
    warnings = steps_notes(config, train_images)[1:]
    assert bool(warnings) == (number_of_steps(config, train_images) < FEW_STEPS)
    for warning in warnings:
        enough = int(warning.partition("--epochs ")[2].partition(" ")[0])
        steps = [
            number_of_steps(config_of(epochs=number, batch_size=8), train_images) for number in (enough - 1, enough)
        ]
        assert steps[0] < FEW_STEPS <= steps[1]


def test_one_cycle_is_torchs_one_cycle():
    config = resolve({"data": "digits", "recipe": "fast", "epochs": 4})
    steps = 7
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=4 * steps, cycle_momentum=False)
    for step in range(4 * steps):
        assert learning_rate(config, step, steps) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        if step < 4 * steps - 1:
            scheduler.step()


@pytest.mark.parametrize(("epochs", "steps"), [(1, 1), (1, 2), (1, 3), (2, 1)])
def test_one_cycle_of_very_few_steps_stays_in_range(epochs, steps):
    config = resolve({"data": "digits", "epochs": epochs})
    for step in range(epochs * steps):
        assert 0 < learning_rate(config, step, steps) <= config.lr


def test_the_paper_recipe_warms_up_and_falls_by_five():
    config = resolve({"data": "digits", "recipe": "paper"})
    steps = 10
    assert learning_rate(config, 0, steps) == pytest.approx(0.01)
    assert learning_rate(config, 9, steps) == pytest.approx(0.1)
    for epoch, rate in {1: 0.1, 59: 0.1, 60: 0.02, 119: 0.02, 120: 0.004, 160: 0.0008, 199: 0.0008}.items():
        assert learning_rate(config, epoch * steps, steps) == pytest.approx(rate)


def test_constant():
    config = resolve({"data": "digits", "schedule": "constant", "lr": 0.3})
    assert {learning_rate(config, step, 5) for step in range(150)} == {0.3}


@pytest.mark.parametrize("warmup", [0.0, 1.0, 0.35])
def test_cosine_is_torchs_after_a_warm_up(warmup):
    epochs, updates = 6, 7
    config = config_of(schedule="cosine", warmup_epochs=warmup, epochs=epochs, lr=0.3)
    rates = [learning_rate(config, update, updates) for update in range(epochs * updates)]
    first = -(-round(100 * warmup * updates) // 100)
    assert rates[:first] == pytest.approx([0.3 * (update + 1) / first for update in range(first)])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.3)
    last = 0.3 * 4e-6  # as the one cycle ends
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(rates) - 1 - first, eta_min=last)
    for rate in rates[first:]:
        assert rate == pytest.approx(scheduler.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        scheduler.step()
    assert rates[-1] == pytest.approx(last)


@pytest.mark.parametrize(("epochs", "updates", "warmup"), [(1, 1, 0), (1, 1, 1), (1, 2, 1), (2, 1, 1), (1, 3, 5)])
def test_a_cosine_of_very_few_updates_stays_in_range(epochs, updates, warmup):
    config = config_of(schedule="cosine", warmup_epochs=float(warmup), epochs=epochs)
    for update in range(epochs * updates):
        assert 0 < learning_rate(config, update, updates) <= config.lr


@pytest.mark.parametrize(("steps", "accumulate"), [(9, 4), (8, 4), (1, 4), (9, 1), (3, 3), (3, 10)])
def test_every_step_is_of_one_update(steps, accumulate):
    of_updates = [list(steps_of_update(step, steps, accumulate)) for step in range(steps)]
    assert all(step in together for step, together in enumerate(of_updates))
    different = [together for number, together in enumerate(of_updates) if together not in of_updates[:number]]
    assert [step for together in different for step in together] == list(range(steps))
    assert all(len(together) == accumulate for together in different[:-1])
    assert updates_in(steps, accumulate) == len(different)


def test_updates_are_counted_where_gradients_are_accumulated():
    config = config_of(batch_size=16, accumulate=4)
    said, warning = steps_notes(config, 226)
    assert said == "226 training images in 15 batches of 16: 450 steps in 30 epochs, 120 updates of 4 steps each"
    assert warning.startswith("warning: 120 updates are few")
    assert "--epochs 75 makes 300, or a --batch-size below 16, or a smaller --accumulate" in warning
