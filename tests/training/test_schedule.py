import pytest
import torch

from csham.training.config import resolve
from csham.training.schedule import learning_rate


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
