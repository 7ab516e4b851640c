"""A study without a folder, and one of images, in a folder."""

from dataclasses import replace

import pytest


def _make_study(networks=None, seeds=(0, 1), **given):
    from csham.study.grid import Data, Network, Study, shared_settings
    from csham.training.config import resolve

    networks = networks or (Network("lenet5"), Network("lenet5", "se"))
    config = resolve(
        {"data": "digits", "epochs": 1, "batch_size": 128, "image_size": 32, "crop": "pad", "precision": "fp32"} | given
    )
    settings = shared_settings(config)
    return Study(Data("digits", 10, 1797, 32, "ab" * 32), settings, tuple(networks), tuple(seeds))


@pytest.fixture(scope="session")
def make_study():
    """Function that makes a study of lenet5, plain and with SE, of digits for one epoch."""
    return _make_study


@pytest.fixture(scope="session")
def images_study(images, make_study):
    """A study of 42 training images, 6 steps an epoch."""
    from csham.data import prepare
    from csham.data.dataset import describe_data
    from csham.study.grid import Data

    found = describe_data(prepare(str(images), image_size=32))
    study = make_study(None, [0, 1], data=str(images), epochs=2, batch_size=8, lr=0.05)
    data = Data(str(images), 3, found["images"], 32, found["fingerprint"])
    return replace(study, data=data, command=f"csham compare {images} --seeds 2")


@pytest.fixture
def make_store(images_study, tmp_path):
    """Function that puts that study, with changes, into a folder."""
    from csham.study.store import Store

    def make(name="study", **changes):
        store = Store(tmp_path / name)
        with store.changing_study():
            store.write_study(replace(images_study, **changes))
        return store

    return make


@pytest.fixture(scope="session")
def timeless():
    """Function that returns a record without the clock's share."""

    def without_times(record):
        result = {k: v for k, v in record["result"].items() if k not in ("seconds", "images_per_s")}
        history = [{k: v for k, v in row.items() if k not in ("seconds", "images_per_s")} for row in record["history"]]
        return {**record, "result": result, "history": history, "started": "", "finished": "", "environment": ""}

    return without_times
