"""Ask a trained network for the reasons of its answers: attention by stage, and Grad-CAM."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from csham.attach.graph.points import common_path
from csham.attach.install import attached_modules
from csham.attach.maps import attention_maps
from csham.errors import UserError, any_of, unknown_name
from csham.explain.cams import LibraryCam
from csham.explain.gradcam import GradCam
from csham.explain.methods import OWN, find_method
from csham.files import write_atomically
from csham.inference.modules import ModuleFacts
from csham.inference.trained import Trained, as_trained
from csham.inference.transform import ImageLike
from csham.layers.own import code_of

__all__ = [
    "Explanation",
    "StageMaps",
    "explain",
    "explain_together",
    "point_shapes",
    "points_by_stage",
    "why_no_maps",
]

OnError = Callable[[ImageLike, UserError], None]

# More classes than these are not listed in an error; the nearest are still offered.
_FEW_CLASSES = 20


@dataclass(frozen=True, eq=False)
class StageMaps:
    """Weights of the attention at the points of one stage, for one image.

    Attributes:
        label: The module that holds the points and no other stage's, such as ``"layer1"``, or else the last point.
        channels: C, of every point's feature map.
        points: For the name of each point, in the order in which the network reaches them: ``"channel"``, (C,),
            ``"spatial"``, (H, W), and ``"full"``, (C, H, W), float32, as far as it has them; as
            :func:`csham.attention_maps` gives them.
    """

    label: str
    channels: int
    points: Mapping[str, Mapping[str, np.ndarray]]

    @property
    def spatial(self) -> tuple[str, np.ndarray] | None:
        """The last point that weighs places, and its weights, (H, W); of full weights the mean over channels."""
        return self._last("spatial", 0)

    @property
    def channel(self) -> tuple[str, np.ndarray] | None:
        """The last point that weighs channels, and its weights, (C,); of full weights the mean over places."""
        return self._last("channel", (1, 2))

    def _last(self, kind: str, axis: int | tuple[int, ...]) -> tuple[str, np.ndarray] | None:
        for name, maps in reversed(list(self.points.items())):
            if kind in maps:
                return name, maps[kind]
            if "full" in maps:
                return name, maps["full"].mean(axis)
        return None


@dataclass(frozen=True, eq=False)
class Explanation:
    """One network's answer to one image, and where and what it looked at.

    Attributes:
        name: The image's file, as it was given, or its number.
        network: The network in a few words.
        pixels: Image as the network saw it, (S, S, 3) uint8.
        classes: Name of each class.
        probabilities: Of each class, float32.
        top: Number of predictions shown.
        target: Index of the class that Grad-CAM is for.
        stages: By their labels, in order; none where there is no attention.
        gradcam: (h, w) float32, from 0 to 1, in the size of the layer's output.
        gradcam_layer: Name of the layer whose output that is.
        attention: Name of the attention, or ``"none"``.
        method: Kind of map that ``gradcam`` is, a name of :data:`csham.explain.methods.METHODS`; those other than
            Grad-CAM have the image's size.
    """

    name: str
    network: str
    pixels: np.ndarray
    classes: Sequence[str]
    probabilities: np.ndarray
    top: int
    target: int
    stages: Mapping[str, StageMaps]
    gradcam: np.ndarray
    gradcam_layer: str
    attention: str
    method: str = OWN

    @property
    def predictions(self) -> list[tuple[str, float]]:
        """The most probable classes, with their probabilities."""
        order = np.argsort(-self.probabilities, kind="stable")[: self.top]
        return [(self.classes[index], float(self.probabilities[index])) for index in order]

    @property
    def predicted(self) -> int:
        """Index of the most probable class."""
        return int(self.probabilities.argmax())

    def to_dict(self) -> dict[str, Any]:
        """Return names and answers, without the maps, ready for JSON."""
        return {
            "network": self.network,
            "predictions": [{"class": name, "probability": value} for name, value in self.predictions],
            "target": self.classes[self.target],
            "method": self.method,
            "gradcam_layer": self.gradcam_layer,
            "stages": [stage.label for stage in self.stages.values()],
            "no_maps": self.no_maps,
        }

    @property
    def no_maps(self) -> str | None:
        """Reason why there is nothing to show of the attention; None if there is."""
        if any(maps for stage in self.stages.values() for maps in stage.points.values()):
            return None
        return why_no_maps(self.attention, attached=bool(self.stages))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return everything as arrays: each map under ``"<point>/<kind>"``, the rest under the attribute's name."""
        arrays = {
            "pixels": self.pixels,
            "classes": np.array(self.classes),
            "probabilities": self.probabilities,
            "target": np.array(self.target),
            "gradcam": self.gradcam,
            "gradcam_layer": np.array(self.gradcam_layer),
        }
        points = [item for stage in self.stages.values() for item in stage.points.items()]
        return arrays | {f"{name}/{kind}": values for name, maps in points for kind, values in maps.items()}

    def save_npz(self, path: Path) -> None:
        """Write :meth:`arrays` as a compressed file of numpy's, which ``np.load`` reads without pickle."""
        arrays: dict[str, Any] = self.arrays()
        write_atomically(path, lambda file: np.savez_compressed(file, **arrays))


def explain(
    trained: Trained | nn.Module,
    images: Iterable[ImageLike],
    *,
    top: int = 3,
    target: str | int | None = None,
    layer: str | None = None,
    method: str = OWN,
    batch_size: int = 16,
    on_error: OnError | None = None,
    **module: Unpack[ModuleFacts],
) -> Iterator[Explanation]:
    """Explain a trained network's answers, one image after another, a batch in memory at a time.

    Args:
        trained: Network that :func:`csham.load` returned, or any module that classifies images.
        images: Files, images of Pillow, or arrays, (H, W, 3) uint8.
        top: Predictions to show.
        target: Class that Grad-CAM is for, by its name or index; by default the one that each image is given.
        layer: Module at whose output Grad-CAM looks; see :class:`csham.explain.GradCam`.
        method: Another kind of map in place of Grad-CAM, a name of :data:`csham.explain.methods.METHODS`.
        batch_size: Images at a time.
        on_error: Told of each image that cannot be read, which is then left out; by default that is an error.
        **module: Of a module, what it does not say itself: ``image_size``, ``classes``, ``mean`` and ``std``; see
            :meth:`csham.Trained.of`.

    Raises:
        UserError: An unknown class or layer; a module that returns no logits; or, when it is reached, an image that
            cannot be read.

    Examples:
        >>> for explanation in csham.explain(csham.load("runs/..."), ["cat.jpg"]):
        ...     print(explanation.predictions, explanation.stages["layer3"].spatial)
    """
    together = explain_together(
        [as_trained(trained, module)],
        images,
        top=top,
        target=target,
        layer=layer,
        method=method,
        batch_size=batch_size,
        on_error=on_error,
    )
    return (explanation for (explanation,) in together)


def explain_together(
    networks: Sequence[Trained],
    images: Iterable[ImageLike],
    *,
    top: int = 3,
    target: str | int | None = None,
    layer: str | None = None,
    method: str = OWN,
    batch_size: int = 16,
    on_error: OnError | None = None,
) -> Iterator[tuple[Explanation, ...]]:
    """Explain the answers of several networks to the same images, each with its own preprocessing.

    Args:
        networks: At least one; ``layer`` is the first one's, the others choose for themselves.
        images: See :func:`explain`, and for the rest.

    Yields:
        For each image that all of them can read an explanation of each network.
    """
    if top < 1 or batch_size < 1:
        raise UserError(f"top and the batch size must be at least 1, got {top} and {batch_size}.")
    find_method(method)
    explainers = [
        _Explainer(trained, top, target, None if number else layer, method) for number, trained in enumerate(networks)
    ]
    return _stream(explainers, images, batch_size, on_error)


def _stream(
    explainers: Sequence[_Explainer], images: Iterable[ImageLike], batch_size: int, on_error: OnError | None
) -> Iterator[tuple[Explanation, ...]]:
    readable = _read(explainers, images, on_error)
    while batch := list(islice(readable, batch_size)):
        names = [name for name, _ in batch]
        columns = [
            explainer(names, np.stack([pixels[number] for _, pixels in batch]))
            for number, explainer in enumerate(explainers)
        ]
        yield from zip(*columns, strict=True)


def _read(
    explainers: Sequence[_Explainer], images: Iterable[ImageLike], on_error: OnError | None
) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Decode images for every network."""
    for number, image in enumerate(images):
        try:
            pixels = [explainer.trained.transform.pixels(image) for explainer in explainers]
        except UserError as err:
            if on_error is None:
                raise
            on_error(image, err)
        else:
            yield str(image) if isinstance(image, str | Path) else f"image {number}", pixels


class _Explainer:
    """One network, asked batch by batch."""

    def __init__(self, trained: Trained, top: int, target: str | int | None, layer: str | None, method: str) -> None:
        self.trained = trained
        self.top = top
        self.target = None if target is None else _class_index(trained, target)
        size = trained.info.image_size
        self.gradcam = GradCam(trained.network, (3, size, size), layer)
        self.method = method
        self.other = None if method == OWN else LibraryCam(self.gradcam, method)
        self.attended = bool(attached_modules(self.gradcam.model))

    def __call__(self, names: Sequence[str], pixels: np.ndarray) -> list[Explanation]:
        """Explain a batch, (B, S, S, 3) uint8."""
        images = self.trained.transform.normalise(torch.from_numpy(pixels).to(self.trained.device))
        images = images.to(self.trained.dtype)
        targets = None if self.target is None else torch.full((len(pixels),), self.target)
        network = self.gradcam.model
        recording: Any = attention_maps(network) if self.attended else nullcontext({})
        with recording as maps, point_shapes(network) as shapes:
            gradcam, logits = self.gradcam(images, targets)
        points = {name: _to_numpy(maps.get(name, {})) for name in shapes}
        if not logits.isfinite().all():
            raise UserError(
                f"{self.trained.origin} answers with numbers that are not finite; its {self.trained.weights} weights "
                "are damaged."
            )
        if self.other is not None:
            gradcam = self.other(images, logits.argmax(1) if targets is None else targets)
        probabilities = logits.softmax(1).cpu().numpy()
        gradcams = gradcam.cpu().numpy()
        return [
            Explanation(
                name=name,
                network=self.trained.label,
                pixels=pixels[row],
                classes=self.trained.classes,
                probabilities=probabilities[row],
                top=self.top,
                target=int(probabilities[row].argmax()) if self.target is None else self.target,
                stages=_stages(shapes, points, row),
                gradcam=gradcams[row],
                gradcam_layer=self.gradcam.layer,
                attention=self.trained.info.attention,
                method=self.method,
            )
            for row, name in enumerate(names)
        ]


def why_no_maps(attention: str, *, attached: bool) -> str:
    """Say why a network shows no weights of attention."""
    if not attached:
        return "no attention attached"
    if code_of(attention) is not None:
        return f"{attention} has no method weights that tells them"
    return f"{attention} adds to the feature map and weighs nothing"


def _class_index(trained: Trained, target: str | int) -> int:
    classes = trained.classes
    if isinstance(target, str):
        if classes.count(target) > 1:
            numbers = [str(number) for number, name in enumerate(classes) if name == target]
            raise UserError(f"{trained.label} has several classes {target!r}. Give one's number: {any_of(numbers)}.")
        if target in classes:
            return classes.index(target)
        few = len(classes) <= _FEW_CLASSES
        listed = classes if few else [*classes[:3], "..."]
        raise unknown_name(f"class of {trained.label}", target, listed, unlisted=() if few else classes[3:])
    if not 0 <= target < len(classes):
        raise UserError(f"{trained.label} has classes 0 to {len(classes) - 1}, asked for {target}.")
    return target


@contextmanager
def point_shapes(network: nn.Module) -> Iterator[dict[str, tuple[int, ...]]]:
    """Note the shape of what each attached attention is given, in the order in which they run."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        shapes[name] = tuple(args[0].shape)

    points = attached_modules(network)
    handles = [point.register_forward_pre_hook(partial(note, point.name)) for point in points]
    try:
        yield shapes
    finally:
        for handle in handles:
            handle.remove()


def _to_numpy(maps: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {kind: (w[:, 0] if kind == "spatial" else w).float().cpu().numpy() for kind, w in maps.items()}


def _stages(
    shapes: Mapping[str, tuple[int, ...]], points: Mapping[str, Mapping[str, np.ndarray]], row: int
) -> dict[str, StageMaps]:
    stages = {}
    for label, names in points_by_stage(shapes).items():
        # Copied, so that one kept explanation does not keep its whole batch.
        maps = {name: {kind: values[row].copy() for kind, values in points[name].items()} for name in names}
        stages[label] = StageMaps(label, shapes[names[0]][1], maps)
    return stages


def points_by_stage(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[str]]:
    """Group points by stage, a run of points with the same number of channels, under the stages' labels."""
    runs = [list(group) for _, group in groupby(shapes, key=lambda name: shapes[name][1])]
    held = [common_path(names) for names in runs]
    return {
        path if path and held.count(path) == 1 else names[-1]: names for names, path in zip(runs, held, strict=True)
    }
