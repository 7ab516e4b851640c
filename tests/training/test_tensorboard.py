import resource
import signal

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from csham.training.tensorboard import EventWriter


def row(epoch):
    return {"epoch": epoch, "train_loss": 1.0 / epoch, "val_top1": None, "lr": 0.5, "seconds": float(epoch)}


def curves(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_each_number_becomes_a_curve_and_epochs_of_a_killed_process_are_taken_back(tmp_path):
    first = EventWriter(tmp_path, 0)
    for epoch in (1, 2, 3):
        first.write(row(epoch))
    assert curves(tmp_path) == {
        "loss/train": [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))],
        "run/lr": [(1, 0.5), (2, 0.5), (3, 0.5)],
        "run/seconds": [(1, 1.0), (2, 2.0), (3, 3.0)],
    }
    (file,) = tmp_path.iterdir()
    file.rename(tmp_path / "events.out.tfevents.0.earlier")
    again = EventWriter(tmp_path, 1)
    again.write(row(2))
    assert curves(tmp_path)["run/seconds"] == [(1, 1.0), (2, 2.0)]


def test_a_full_disk_names_the_file_and_prints_nothing(tmp_path, capfd):
    events = EventWriter(tmp_path, 0)
    events.write(row(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match=r"events\.out\.tfevents"):
            events.write(row(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert capfd.readouterr() == ("", "")
