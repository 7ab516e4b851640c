import io

import pytest
from rich.console import Console

from csham.training import progress as module
from csham.training.progress import BarProgress, PlainProgress, QuietProgress, create_progress

ROW = {
    "epoch": 1, "train_loss": 1.5, "train_top1": 40.0, "val_loss": 1.25, "val_top1": 50.0,
    "lr": 0.1, "images_per_s": 370.0, "seconds": 12.0,
}  # fmt: skip


def console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=120)


def test_which_one():
    assert type(create_progress(quiet=True)) is QuietProgress
    assert type(create_progress(console=console(True))) is BarProgress
    assert type(create_progress(console=console(False))) is PlainProgress


def test_plain_lines_are_few_and_without_codes(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    plain = create_progress(console=console(False))
    plain.start(0, 10_000)
    for step in range(1000):
        now[0] += 0.1
        plain.step("epoch 1/2", step * 10, 0.5, 100.0)
    plain.epoch(ROW, 2)
    lines = plain.console.file.getvalue().splitlines()
    assert len(lines) == 4  # 100 s: three, and the epoch's
    assert "100 images/s" in lines[0]
    assert "left" in lines[0]
    assert lines[-1].startswith("epoch 1/2  loss 1.500  top-1 40.0  validation loss 1.250 top-1 50.0")
    assert "\x1b" not in "".join(lines)


def test_images_of_an_unknown_number_have_no_share_and_no_time_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    plain, bar = create_progress(console=console(False)), create_progress(console=console(True))
    for progress in (plain, bar):
        progress.start(0, 0)
    now[0] = 31.0
    for progress in (plain, bar):
        progress.step("300 images", 300, None, 10.0)
        progress.note("a :smile: in a name")
        progress.close()
    assert plain.console.file.getvalue() == "300 images  10 images/s\na :smile: in a name\n"
    assert "a :smile: in a name" in bar.console.file.getvalue()
    assert "%" not in bar.console.file.getvalue()


@pytest.mark.parametrize(
    ("rate", "shown"), [(0.0573, "0.057"), (0, "0"), (1.26, "1.3"), (9.94, "9.9"), (10, "10"), (1417.4, "1417")]
)
def test_slow_work_has_a_rate_too(rate, shown):
    assert module.speed(rate) == f"{shown} images/s"


def test_an_epoch_without_validation_part():
    plain = create_progress(console=console(False))
    plain.epoch({**ROW, "val_loss": None, "val_top1": None}, 2)
    assert "validation" not in plain.console.file.getvalue()


def test_the_bar_tells_rate_and_time_left_and_goes_away():
    bar = create_progress(console=console(True))
    bar.preparing(5, 10, "packing [x]")
    bar.preparing(10, 10, "packing [x]")
    bar.start(0, 1000)
    bar.step("epoch 1/2", 500, 0.5, 123.0)
    bar.note("a [line]")
    bar.close()
    shown = bar.console.file.getvalue()
    assert "123 images/s" in shown
    assert "a [line]" in shown
    bar.close()


@pytest.mark.parametrize("terminal", [True, False])
def test_names_from_outside_are_written_out(monkeypatch, terminal):
    progress = create_progress(console=console(terminal))
    monkeypatch.setattr(progress, "_last_line", -1000.0)
    progress.preparing(1, 3, "reading \x9b2J\u202e\udcff")
    progress.note("a\x1b[2J\n\u202eb")
    progress.start(0, 3)
    progress.step("\x9b2J\u202e\udcff", 1, None, 1.0)
    progress.close()
    shown = progress.console.file.getvalue()
    assert r"a\x1b[2J\n\u202eb" in shown
    assert r"\x9b2J\u202e\udcff" in shown
    assert not any(sign in shown for sign in ("a\x1b", "\x9b", "\u202e"))
