"""Faithfulness of a map: what the network answers while pixels go, or come, in the map's order.

Deletion and insertion of Petsiuk, Das and Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box
Models", BMVC 2018, arXiv:1806.07421. Both are areas under the curve of the probability of the class that the whole
image is given, over the share of pixels that has been exchanged, most important first, from 0 to 1:

- deletion: pixels become the mean colour of the training images; a faithful map makes the probability fall soon, so
  lower is better;
- insertion: the image is uncovered on its own blur; a faithful map makes the probability rise soon, so higher is
  better.

The blur is a Gaussian of an eighth of the side; RISE's, of 5 pixels in 224, would leave a small image as it is. Maps
are upsampled bilinearly, and places that weigh the same come in random order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn

from csham.data import PackedDataset, prepare
from csham.data.sources import check_there
from csham.errors import UserError
from csham.explain import cams
from csham.explain.explanation import Explanation, explain_together
from csham.explain.methods import METHODS, OWN, check_library
from csham.explain.picture import upsampled
from csham.inference.trained import Trained
from csham.inference.transform import ImageLike
from csham.probing import eagerly, evaluating, uncompiled
from csham.training.division import rows_of_part
from csham.training.run_folder import RunFolder

__all__ = [
    "CENTRE",
    "RANDOM",
    "Faithfulness",
    "Interval",
    "MapScores",
    "areas",
    "measure_faithfulness",
    "pixel_ranks",
    "sample_test_images",
    "score_table",
]

RANDOM, CENTRE = "random order", "centre first"

# What a verdict is of, and the sign of a better difference.
_JUDGED = {"deletion": -1, "insertion": 1}

Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class MapScores:
    """The scores of one map, or of an order that knows nothing of the image, for each image.

    Attributes:
        name: A stage's label, that of the kind of map, such as ``"Grad-CAM"``, or :data:`RANDOM` or :data:`CENTRE`.
        deletion: (N,), 0 to 1; lower is more faithful.
        insertion: (N,), 0 to 1; higher is more faithful.
        road: (N,), -0.5 to 0.5; higher is more faithful. None if it was not measured.
    """

    name: str
    deletion: np.ndarray
    insertion: np.ndarray
    road: np.ndarray | None = None

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of what was measured."""
        return ("deletion", "insertion") if self.road is None else ("deletion", "insertion", "road")


@dataclass(frozen=True)
class Faithfulness:
    """Faithfulness of the maps of one network, on the same images.

    Attributes:
        network: The network in a few words.
        images: N.
        maps: Its maps, then the two orders that know nothing of the image.
    """

    network: str
    images: int
    maps: Sequence[MapScores]

    def rows(self) -> list[dict[str, Any]]:
        """Return means, their 95% Student-t intervals, and paired differences to both baselines, ready for JSON.

        An interval is None for fewer than two images. ``verdict`` says what the intervals of the differences, each by
        itself, leave no doubt about.
        """
        baselines = {one.name: one for one in self.maps if one.name in (RANDOM, CENTRE)}
        return [self._row(one, baselines) for one in self.maps]

    def _row(self, one: MapScores, baselines: Mapping[str, MapScores]) -> dict[str, Any]:
        row: dict[str, Any] = {"map": one.name}
        for score in one.scores:
            values = getattr(one, score)
            row[score], row[f"{score}_interval"] = float(values.mean()), _interval(values)
        better: dict[str, list[bool | None]] = {}
        for name, baseline in baselines.items() if one.name not in baselines else ():
            key = name.partition(" ")[0]
            for score in one.scores:
                differences = getattr(one, score) - getattr(baseline, score)
                interval = _interval(differences)
                row[f"{score}_minus_{key}"] = float(differences.mean())
                row[f"{score}_minus_{key}_interval"] = interval
                if score in _JUDGED:
                    better.setdefault(name, []).append(_is_better(interval, _JUDGED[score]))
        row["verdict"] = _verdict(better)
        return row


def score_table(scores: Iterable[Faithfulness]) -> list[dict[str, Any]]:
    """Return the scores of several networks as rows of the same columns, an interval as two."""
    rows = []
    for one in scores:
        for row in one.rows():
            flat: dict[str, Any] = {"network": one.network, "images": one.images}
            for key, value in row.items():
                if key.endswith("_interval"):
                    name = key.removesuffix("interval")
                    flat[f"{name}low"], flat[f"{name}high"] = value or (None, None)
                else:
                    flat[key] = value
            rows.append(flat)
    columns = dict.fromkeys(key for row in rows for key in row)  # what is compared with the baselines has more
    return [{**dict.fromkeys(columns), **row} for row in rows]


def measure_faithfulness(
    networks: Sequence[Trained],
    images: Iterable[ImageLike],
    *,
    layer: str | None = None,
    method: str = OWN,
    road: bool = False,
    steps: int = 32,
    batch_size: int = 64,
    seed: int = 0,
    on_image: Callable[[int], None] | None = None,
) -> list[Faithfulness]:
    """Measure deletion and insertion of every map that networks show, on the same images.

    Args:
        networks: Each judged by the class that it gives an image itself.
        images: At least one.
        layer: Of the first network's Grad-CAM; see :class:`csham.explain.GradCam`.
        method: Another kind of map in place of Grad-CAM; see :func:`csham.explain.explain`.
        road: Measure :func:`csham.explain.cams.road` too, which takes seconds for each map of an image.
        steps: Exchanges of equally many pixels between the first point of a curve and the last.
        batch_size: Images at a time; each map of an image takes ``2 * (steps - 1)``.
        seed: Of the random orders, which are the same for all networks.
        on_image: Told how many images are done.

    Raises:
        UserError: No images, or one that cannot be read.
    """
    if steps < 2 or batch_size < 1:
        raise UserError(f"steps must be at least 2 and the batch size at least 1, got {steps} and {batch_size}.")
    if road:
        check_library("ROAD")
    scores_of: list[dict[str, list[Sequence[float]]]] = [{} for _ in networks]
    together = explain_together(networks, images, layer=layer, method=method, batch_size=min(batch_size, 16))
    count = 0
    for count, explanations in enumerate(together, 1):
        for trained, explanation, scores in zip(networks, explanations, scores_of, strict=True):
            ranks = _orders(explanation, np.random.default_rng([seed, count]))
            found = _scores_of(trained, explanation, list(ranks.values()), steps, batch_size, road=road)
            for name, values in zip(ranks, found.tolist(), strict=True):
                scores.setdefault(name, []).append(values)
        if on_image is not None:
            on_image(count)
    if not count:
        raise UserError("there are no images to measure faithfulness on.")
    return [
        Faithfulness(trained.label, count, [MapScores(name, *np.array(pairs).T) for name, pairs in scores.items()])
        for trained, scores in zip(networks, scores_of, strict=True)
    ]


def sample_test_images(
    trained: Trained,
    count: int,
    *,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
    dataset: PackedDataset | None = None,
) -> list[np.ndarray]:
    """Draw images of the test part of a run's own data.

    Args:
        trained: Loaded from a run folder.
        count: Number of images; all where there are fewer.
        seed: Decides which.
        progress: Told about the reading of the dataset.
        dataset: The run's data, if it is open already.

    Returns:
        Squares, (P, P, 3) uint8, of which the network sees what it sees in evaluation.

    Raises:
        UserError: ``trained`` is no run, or its data is not there any more.
    """
    if count < 1:
        raise UserError(f"the number of samples must be at least 1, got {count}.")
    folder = None if trained.path is None else RunFolder(trained.path)
    if folder is None or not folder.config_file.is_file():
        raise UserError(f"{trained.origin} does not say what it was trained on. Give the run folder for test images.")
    config = folder.read_config()
    if dataset is None:
        check_there(config.data, str(trained.path), "Put them back, or link them there.")
        dataset = prepare(config.data, image_size=trained.info.image_size, max_bad=config.max_bad, progress=progress)
    test = rows_of_part(dataset, folder, config, "test")
    chosen = np.sort(np.random.default_rng(seed).permutation(test)[:count])
    return [np.array(dataset.images[index]) for index in chosen]


def areas(
    network: nn.Module,
    image: Tensor,
    blurred: Tensor,
    target: int,
    ranks: Sequence[np.ndarray],
    *,
    steps: int = 32,
    batch_size: int = 64,
) -> np.ndarray:
    """Measure orders of the pixels of one image.

    Args:
        network: From (B, C, H, W) to logits.
        image: (C, H, W), normalised: 0 is the mean colour.
        blurred: Background that the image is uncovered on, (C, H, W).
        target: The class whose probability is followed.
        ranks: For each order the place of each pixel in it, (H, W), from 0 (:func:`pixel_ranks`).
        steps: Exchanges of equally many pixels.
        batch_size: Images at a time.

    Returns:
        Deletion and insertion of each order, (len(ranks), 2) float64.
    """
    counts = np.rint(np.arange(steps + 1) * image[0].numel() / steps)
    places = torch.from_numpy(np.stack(ranks)).to(image.device)[:, None]  # (M, 1, H, W)
    inner = [(order, kind, step) for order in range(len(ranks)) for kind in (0, 1) for step in range(1, steps)]

    def exchanged(order: int, kind: int, step: int) -> Tensor:
        old, new = ((image, torch.zeros_like(image)), (blurred, image))[kind]
        return torch.where(places[order] < counts[step], new, old)

    # Where all curves of a kind begin and end.
    whole, blank, blur = _probabilities(network, [image, torch.zeros_like(image), blurred], target)
    curves = np.empty((len(ranks), 2, steps + 1))
    curves[:, 0, 0] = curves[:, 1, -1] = whole
    curves[:, 0, -1], curves[:, 1, 0] = blank, blur
    for start in range(0, len(inner), batch_size):
        batch = inner[start : start + batch_size]
        curves[tuple(zip(*batch, strict=True))] = _probabilities(network, [exchanged(*one) for one in batch], target)
    return (curves[..., 1:] + curves[..., :-1]).mean(-1) / 2


def pixel_ranks(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the place of each pixel in the order of a map, the largest first and equals in random order.

    Args:
        weights: (H, W).
        rng: Decides among equals.

    Returns:
        (H, W) int64, 0 to H * W - 1.
    """
    flat = weights.ravel()
    ranks = np.empty(flat.size, np.int64)
    ranks[np.lexsort((rng.random(flat.size), -flat))] = np.arange(flat.size)
    return ranks.reshape(weights.shape)


def _orders(explanation: Explanation, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return the place of each pixel in the order of each map, and in those of the two baselines."""
    S = len(explanation.pixels)
    along = np.arange(S) - (S - 1) / 2
    baselines = {RANDOM: np.zeros((S, S)), CENTRE: -np.hypot(along, along[:, None])}
    # First, so that they are the same whatever maps a network has.
    fixed = {name: pixel_ranks(values, rng) for name, values in baselines.items()}
    maps = {stage.label: stage.spatial[1] for stage in explanation.stages.values() if stage.spatial is not None}
    maps[METHODS[explanation.method].title] = explanation.gradcam
    return {name: pixel_ranks(upsampled(values, (S, S)), rng) for name, values in maps.items()} | fixed


def _scores_of(
    trained: Trained,
    explanation: Explanation,
    ranks: Sequence[np.ndarray],
    steps: int,
    batch_size: int,
    *,
    road: bool,
) -> np.ndarray:
    """Return deletion, insertion and perhaps ROAD of each order, (len(ranks), 2 or 3)."""
    pixels = explanation.pixels
    blur = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(len(pixels) / 8))
    both = torch.from_numpy(np.stack([pixels, np.asarray(blur)])).to(trained.device)
    image, blurred = trained.transform.normalise(both).to(trained.dtype)
    network = uncompiled(trained.network)
    with evaluating(network), eagerly():
        found = areas(network, image, blurred, explanation.predicted, ranks, steps=steps, batch_size=batch_size)
        if road:
            found = np.column_stack([found, cams.road(network, image, explanation.predicted, ranks)])
    return found


def _probabilities(network: nn.Module, images: Sequence[Tensor], target: int) -> np.ndarray:
    with torch.no_grad():
        logits = network(torch.stack(list(images)).contiguous(memory_format=torch.channels_last))
    return np.asarray(logits.float().softmax(1)[:, target].cpu().double().numpy())


def _interval(values: np.ndarray) -> Interval | None:
    """Return the 95% Student-t interval of a mean."""
    if len(values) < 2:
        return None
    from csham.study.statistics import t_interval  # noqa: PLC0415  scipy takes a second

    return t_interval(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values)), len(values) - 1)


def _is_better(interval: Interval | None, sign: int) -> bool | None:
    """Return True if an interval of differences lies on the better side of 0; None where it does not say."""
    if interval is None or interval[0] <= 0 <= interval[1]:
        return None
    return (interval[0] > 0) == (sign > 0)


def _verdict(better: Mapping[str, Sequence[bool | None]]) -> str:
    if not better:
        return "knows nothing of the image"
    random, centre = (better[name] for name in (RANDOM, CENTRE))
    if all(random):
        return f"better than {RANDOM}" + (f" and than {CENTRE}" if all(centre) else f", not clearly than {CENTRE}")
    if True in random:
        (kind, _), (other, also) = sorted(zip(_JUDGED, random, strict=True), key=lambda pair: pair[1] is not True)
        return f"better than {RANDOM} in {kind}" + (f", worse in {other}" if also is False else " only")
    return f"worse than {RANDOM}" if False in random else f"not told apart from {RANDOM}"
