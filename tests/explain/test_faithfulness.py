"""Deletion and insertion: the areas against a slow loop, and a network of which the right answer is known."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import csham
from csham.errors import UserError
from csham.explain.faithfulness import (
    CENTRE,
    RANDOM,
    Faithfulness,
    MapScores,
    areas,
    measure_faithfulness,
    pixel_ranks,
    sample_test_images,
)


class Patch(nn.Module):
    """Sees one patch alone: the brighter it is, the more the image is of class 0."""

    def forward(self, x):
        seen = x[:, :, 2:5, 6:9].mean((1, 2, 3))
        return torch.stack([8 * seen, torch.zeros_like(seen)], 1)


def slow_areas(network, image, blurred, target, rank, steps):
    """One pixel after another, one image at a time."""
    size = image.shape[1] * image.shape[2]
    found = []
    for start, end in ((image, torch.zeros_like(image)), (blurred, image)):
        curve = []
        for step in range(steps + 1):
            now = start.clone()
            for place in range(size):
                y, x = divmod(place, image.shape[2])
                if rank[y, x] < round(step * size / steps):
                    now[:, y, x] = end[:, y, x]
            curve.append(network(now[None]).softmax(1)[0, target].item())
        found.append(sum((a + b) / 2 for a, b in pairwise(curve)) / steps)
    return found


@pytest.mark.parametrize(("steps", "batch_size"), [(2, 1), (7, 5), (16, 100)])
def test_areas_are_those_of_a_loop_over_pixels(steps, batch_size):
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 5, 3)).eval()
    image, blurred = torch.randn(2, 3, 8, 7)
    rng = np.random.default_rng(0)
    ranks = [pixel_ranks(rng.random((8, 7)), rng) for _ in range(3)]
    found = areas(network, image, blurred, 1, ranks, steps=steps, batch_size=batch_size)
    for pair, rank in zip(found, ranks, strict=True):
        np.testing.assert_allclose(pair, slow_areas(network, image, blurred, 1, rank, steps), rtol=1e-5)


def test_the_map_of_the_patch_that_decides_beats_the_others():
    image = torch.ones(3, 12, 12)
    rng = np.random.default_rng(0)
    truth = np.zeros((12, 12))
    truth[2:5, 6:9] = 1
    ranks = [pixel_ranks(truth, rng), pixel_ranks(np.zeros((12, 12)), rng), pixel_ranks(-truth, rng)]
    true, random, wrong = areas(Patch(), image, -image, 0, ranks, steps=16)
    assert true[0] < random[0] < wrong[0]
    assert true[1] > random[1] > wrong[1]
    # After the first of 16 steps the nine pixels are gone: probability 1, then 1/2, by the trapezoid rule.
    top = 1 / (1 + np.exp(-8))
    np.testing.assert_allclose(true[0], 0.5 + (top - 0.5) / 32, atol=1e-6)


def test_ranks_begin_with_the_largest_and_divide_equals_by_the_seed():
    weights = np.array([[1.0, 3.0], [3.0, 2.0]])
    found = [pixel_ranks(weights, np.random.default_rng(seed)) for seed in range(20)]
    assert all((ranks[0, 0], ranks[1, 1]) == (3, 2) for ranks in found)
    assert {ranks[0, 1] for ranks in found} == {0, 1}
    assert np.array_equal(found[3], pixel_ranks(weights, np.random.default_rng(3)))


def scores(name, deletion, insertion):
    return MapScores(name, np.array(deletion), np.array(insertion))


def test_rows_hold_intervals_of_paired_differences_and_a_verdict():
    low, middle, high = [0.1, 0.12, 0.3], [0.3, 0.33, 0.5], [0.6, 0.62, 0.81]
    found = Faithfulness(
        "net",
        3,
        [
            scores("good", low, high),
            scores("bad", high, low),
            scores("half", low, middle),
            scores("both", low, low),
            scores("apart", high, high),
            scores("same", middle, middle),
            scores(RANDOM, middle, middle),
            scores(CENTRE, [0.1, 0.5, 0.3], [0.7, 0.5, 0.6]),
        ],
    )
    rows = {row["map"]: row for row in json.loads(json.dumps(found.rows()))}
    verdicts = {name: row["verdict"] for name, row in rows.items()}
    assert verdicts == {
        "good": "better than random order, not clearly than centre first",
        "bad": "worse than random order",
        "half": "better than random order in deletion only",
        "both": "better than random order in deletion, worse in insertion",
        "apart": "better than random order in insertion, worse in deletion",
        "same": "not told apart from random order",
        RANDOM: "knows nothing of the image",
        CENTRE: "knows nothing of the image",
    }
    differences = np.array(low) - np.array(middle)
    half = 4.302652729696142 * differences.std(ddof=1) / 3**0.5  # t, 2 degrees of freedom, 97.5%
    assert rows["good"]["deletion_minus_random"] == pytest.approx(differences.mean())
    assert rows["good"]["deletion_minus_random_interval"] == pytest.approx(
        [differences.mean() - half, differences.mean() + half]
    )


def test_one_image_has_no_interval():
    found = Faithfulness(
        "net", 1, [scores("map", [0.1], [0.9]), scores(RANDOM, [0.5], [0.5]), scores(CENTRE, [0], [1])]
    )
    assert found.rows()[0]["deletion_interval"] is None
    assert found.rows()[0]["verdict"] == "not told apart from random order"


@pytest.mark.usefixtures("reference")
def test_a_run_is_measured_on_its_own_test_images_the_same_way_twice(attended, finished):
    networks = [csham.load(attended), csham.load(finished)]
    images = sample_test_images(networks[0], 3, seed=1)
    assert len(images) == 3
    assert images[0].shape == (16, 16, 3)
    told = []
    found, again = (
        measure_faithfulness(networks, images, steps=3, seed=5, batch_size=size, on_image=told.append)
        for size in (64, 7)
    )
    assert [[one.name for one in net.maps] for net in found] == [
        ["layer1", "layer2", "layer3", "Grad-CAM", RANDOM, CENTRE],
        ["Grad-CAM", RANDOM, CENTRE],
    ]
    for one, other in zip(found, again, strict=True):
        assert one.images == 3
        for a, b in zip(one.maps, other.maps, strict=True):
            np.testing.assert_allclose(a.deletion, b.deletion, atol=1e-5)
            np.testing.assert_allclose(a.insertion, b.insertion, atol=1e-5)
            assert ((a.deletion > 0) & (a.deletion < 1)).all()
    assert told == [1, 2, 3] * 2


def test_samples_are_test_images_by_seed(attended, finished):
    trained = csham.load(attended)
    everything = sample_test_images(trained, 1000)
    assert len(everything) == 12
    some = sample_test_images(trained, 5, seed=3)
    assert all(any(np.array_equal(image, other) for other in everything) for image in some)
    assert all(map(np.array_equal, some, sample_test_images(trained, 5, seed=3)))
    with pytest.raises(ValueError, match="at least 1"):
        sample_test_images(trained, 0)
    with pytest.raises(ValueError, match="Give the run folder"):
        sample_test_images(csham.load(attended / "model.safetensors"), 2)
    with pytest.raises(ValueError, match=r"resnet14-digits does not say what it was trained on\. Give the run folder"):
        sample_test_images(csham.load("zoo:resnet14-digits"), 2)
    with pytest.raises(ValueError, match="no images to measure"):
        measure_faithfulness([trained], [])


@pytest.mark.usefixtures("reference")
def test_the_fewest_steps_and_the_smallest_batch(finished):
    networks = [csham.load(finished)]
    image = np.zeros((16, 16, 3), np.uint8)
    [scores] = measure_faithfulness(networks, [image], steps=2, batch_size=1)
    assert scores.images == 1
    for wrong in ({"steps": 1}, {"batch_size": 0}, {"steps": 1, "batch_size": 0}):
        with pytest.raises(UserError, match="steps must be at least 2 and the batch size at least 1"):
            measure_faithfulness(networks, [image], **wrong)
