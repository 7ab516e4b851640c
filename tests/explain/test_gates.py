"""Weights by stage: against arrays of single images, and networks of which the weights are known."""

import shutil

import numpy as np
import pytest
import torch
from torch import nn

import csham
from csham.errors import UserError
from csham.explain.gates import DEAD, RunGates, gate_table, measure_gates, measure_runs, trained_runs
from csham.study.grid import Data, Network, Study, shared_settings
from csham.study.store import Store
from csham.study.study_file import write_study
from csham.training.config import resolve

pytestmark = pytest.mark.usefixtures("reference")

IMAGES = list(np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), np.uint8))


def network(attention="csham", **settings):
    torch.manual_seed(0)
    model = csham.create_model("resnet20", attention=attention, num_classes=3, image_size=32, **settings)
    return csham.Trained.of(model, image_size=32)


def arrays_of(trained):
    """The weights of every image, from the maps that pictures are drawn of: by point and kind, (N, ...)."""
    found = {}
    for explanation in csham.explain(trained, IMAGES):
        for stage in explanation.stages.values():
            for point, maps in stage.points.items():
                for kind, values in maps.items():
                    found.setdefault((stage.label, kind), {}).setdefault(point, []).append(values.astype(float).ravel())
    return {key: [np.stack(rows) for rows in points.values()] for key, points in found.items()}


@pytest.mark.parametrize(
    ("attention", "kinds"), [("csham", {"channel", "spatial"}), ("se", {"channel"}), ("coord", {"full"})]
)
def test_the_numbers_are_those_of_the_arrays(attention, kinds):
    trained = network(attention)
    arrays, found = arrays_of(trained), measure_gates(trained, IMAGES, batch_size=3)
    assert {(one.stage, one.kind) for one in found} == set(arrays)
    assert {one.kind for one in found} == kinds
    for one in found:
        points = arrays[one.stage, one.kind]
        assert (one.points, one.weights) == (len(points), points[0].shape[1])
        expected = {
            "mean": np.mean([w.mean() for w in points]),
            "from_half": np.mean([np.abs(w - 0.5).mean() for w in points]),
            "from_one": np.mean([np.abs(w - 1).mean() for w in points]),
            "within": np.mean([w.std(1).mean() for w in points]),
            "across": np.mean([w.std(0, ddof=1).mean() for w in points]),
            "dead": np.mean([(w.std(0, ddof=1) < DEAD).mean() for w in points]),
            "low": min(w.min() for w in points),
            "high": max(w.max() for w in points),
        }
        for name, value in expected.items():
            assert getattr(one, name) == pytest.approx(value, abs=1e-6), (one.stage, one.kind, name)


def test_how_many_images_at_a_time_changes_nothing_but_rounding():
    trained = network()
    one, all_at_once = (measure_gates(trained, IMAGES, batch_size=size) for size in (1, 100))
    for a, b in zip(one, all_at_once, strict=True):
        assert [a.stage, a.kind, a.dead] == [b.stage, b.kind, b.dead]
        assert a.mean == pytest.approx(b.mean, abs=1e-5)
        assert a.across == pytest.approx(b.across, abs=1e-5)


def test_borrowed_weights_count_where_they_are_computed():
    found = {(one.stage, one.kind): one.points for one in measure_gates(network(strategy="transfer"), IMAGES)}
    # Of three blocks the first and the third compute channel weights, the second borrows the first's.
    assert found == {
        (f"layer{n}", kind): points for n in (1, 2, 3) for kind, points in (("channel", 2), ("spatial", 1))
    }


def test_a_constant_is_dead_and_what_follows_the_image_is_not():
    class Half(csham.layers.Gate):
        """The first half of the channels at 1, the other as bright as the image is."""

        def weights(self, x):
            bright = x.mean((1, 2, 3)).sigmoid()[:, None].expand(-1, self.channels).clone()
            bright[:, : self.channels // 2] = 1
            return bright

    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    csham.attach(model, Half, points=["1"], input_size=(3, 32, 32))
    images = [np.full((32, 32, 3), value, np.uint8) for value in (0, 255)]
    (found,) = measure_gates(csham.Trained.of(model, image_size=32, mean=(0, 0, 0), std=(0.1,) * 3), images)
    assert (found.kind, found.weights, found.dead, found.high, found.theta) == ("channel", 8, 0.5, 1, None)
    assert found.across > DEAD


def test_gated_points_tell_how_far_they_are_shut():
    trained = network(gated=True)
    with torch.no_grad():
        for name, value in trained.network.named_parameters():
            if name.endswith("attached.gate"):
                value.fill_(0.25 if "layer1" in name else 1)
    assert [one.theta for one in measure_gates(trained, IMAGES)] == pytest.approx([0.25] * 2 + [1] * 4)


@pytest.mark.parametrize("attention", ["none", "a2"])
def test_there_may_be_no_weights(attention):
    assert measure_gates(network(attention), IMAGES) == []


def test_one_image_or_a_broken_network_is_refused():
    with pytest.raises(UserError, match="Give two or more"):
        measure_gates(network(), IMAGES[:1])
    broken = network("se")
    with torch.no_grad():
        broken.network.layer2[0].conv1.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        measure_gates(broken, IMAGES)


def test_runs_are_measured_on_the_same_images_every_time(attended):
    (run,), (again,) = (measure_runs([attended], samples=4, seed=1) for _ in range(2))
    assert run == again
    assert (run.images, run.seed, run.network, run.nothing) == (4, 0, "resnet20 + csham (transfer)", None)
    assert [row["stage"] for row in run.rows()] == ["layer1", "layer1", "layer2", "layer2", "layer3", "layer3"]
    (other,) = measure_runs([attended], samples=4, seed=2)
    assert other.stages != run.stages


def test_other_images_than_the_runs_are_refused(attended, tmp_path, write_images):
    write_images(tmp_path / "other", classes=("x", "y", "z"))
    with pytest.raises(UserError, match="has other classes than the data of"):
        measure_runs([attended], samples=4, data=str(tmp_path / "other"))
    with pytest.raises(UserError, match="must be at least 2"):
        measure_runs([attended], samples=1)


def test_a_study_stands_for_its_finished_runs(attended, tmp_path):
    folder = tmp_path / "study"
    folder.mkdir()
    settings = shared_settings(resolve({"data": "digits", "precision": "fp32"}))
    networks = (Network("resnet20", "se"), Network("resnet20", "eca"))
    write_study(folder, Study(Data("digits", 10, 1797, 32, "ab" * 32), settings, networks, (0,)))
    with pytest.raises(UserError, match="has no trained networks, only what was measured of them"):
        trained_runs([folder])
    cell = Store(folder).study.cells()[0]
    (folder / "runs").mkdir()
    shutil.copytree(attended, folder / "runs" / cell.name)
    assert trained_runs([attended, folder]) == [attended, folder / "runs" / cell.name]


def test_a_run_that_is_named_twice_is_measured_once(attended, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(attended)
    monkeypatch.chdir(attended.parent)
    assert len(trained_runs([attended, f"{attended}/", attended.name, tmp_path / "link"])) == 1


def test_the_table_has_means_over_runs():
    stages = measure_gates(network(), IMAGES)
    runs = [RunGates(f"run{n}", "d", "a", n, "last epoch", 7, stages[:2], None) for n in range(2)]
    runs += [RunGates("run2", "d", "a", 2, "last epoch", 7, stages[2:3], None)]
    runs += [RunGates("plain", "d", "b", 0, "last epoch", 7, [], "no attention attached")]
    table = gate_table(runs)
    assert [(row["network"], row["stage"], row["kind"], row["runs"]) for row in table] == [
        ("a", "layer1", "channel", 2),
        ("a", "layer1", "spatial", 2),
        ("a", "layer2", "channel", 1),
    ]
    assert table[0]["mean"] == pytest.approx(stages[0].mean)
    assert (table[0]["mean_sd"], table[2]["mean_sd"], table[0]["theta"]) == (pytest.approx(0), None, None)
