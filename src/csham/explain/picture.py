"""Pictures of an explanation: a map over its image, and one of all: Grad-CAM, the answers, the weights of each stage.

In the latter everything is placed by hand, in inches from the top left: rows of square panels with the plots that
belong to them below. Nothing here touches pyplot or matplotlib's settings, so that threads may draw at the same time.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from csham.errors import UserError
from csham.explain.explanation import Explanation, StageMaps
from csham.explain.folder import FORMATS, MADE_BY
from csham.explain.methods import METHODS, OWN
from csham.fonts import families, fitted, legible
from csham.settings import check_choice

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["colours_between", "draw", "enlarged", "overlay", "picture_bytes", "upsampled"]

# Perceptually uniform, and in order also for those who do not see red from green.
_COLOUR_MAP = "viridis"
_OPACITY = 0.6

_INK, _MUTED, _RULE, _BAR, _LINE = "#1b1f24", "#59626c", "#dfe3e6", "#bcd3e6", "#21608f"
_PANEL, _GAP, _MARGIN = 1.75, 0.2, 0.25  # inches
_HEADER, _TITLE, _PLOT = 0.34, 0.36, 0.8
_COLOUR_BAR = 0.75
_TICKS = 0.28  # left of the plots of channels
_STAGES_IN_A_ROW = 4
_PIXELS = 350  # of a panel at 200 dots per inch


def draw(explanations: Explanation | Sequence[Explanation]) -> Figure:
    """Draw an explanation, or those of several networks for the same image one below the other.

    Each stage shows its last point that weighs places, over the image in grey, in colours that its network's colour bar
    resolves, and below it the weights of its channels, sorted. Of attentions that weigh every value, the means.

    Args:
        explanations: Results of :func:`csham.explain.explain`, or one tuple of :func:`csham.explain.explain_together`.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  takes a second

    blocks = [_Block(one) for one in ([explanations] if isinstance(explanations, Explanation) else explanations)]
    if not blocks:
        raise UserError("draw: there is no explanation to draw.")
    width = max(block.width for block in blocks)
    height = sum(block.height for block in blocks)
    page = _Page(Figure(figsize=(width, height), facecolor="white"), width, height)
    top = 0.0
    for number, block in enumerate(blocks):
        if number:
            page.line(top)
        block.draw(page, top)
        top += block.height
    return page.figure


def picture_bytes(figure: Figure, format: str = "png") -> bytes:
    """Return a figure as a file: ``"png"`` with 200 dots per inch, ``"svg"`` or ``"pdf"``; without a date.

    Raises:
        UserError: Another format.
    """
    check_choice("format", format, FORMATS)
    metadata: dict[str, dict[str, Any]] = {
        "png": {"Software": MADE_BY},
        "svg": {"Creator": MADE_BY, "Date": None},
        "pdf": {"Creator": MADE_BY, "CreationDate": None},
    }
    content = io.BytesIO()
    with legible(figure):
        figure.savefig(content, format=format, dpi=200, metadata=metadata[format])
    return content.getvalue()


def overlay(
    pixels: np.ndarray, weights: np.ndarray, limits: tuple[float, float], *, side: int | None = None
) -> np.ndarray:
    """Lay a map over its image, in grey so that colour means weight alone.

    Args:
        pixels: (S, S, 3) uint8.
        weights: (h, w); upsampled bilinearly, the image to whole multiples of its pixels.
        limits: Values of the darkest and the lightest colour.
        side: Least side of the result in pixels; by default S.

    Returns:
        (P, P, 3) uint8.
    """
    image = enlarged(pixels, side or len(pixels))
    grey = image @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    colours = colours_between(upsampled(weights, image.shape[:2]), limits)
    mixed = _OPACITY * colours + (1 - _OPACITY) * grey[..., None]
    return (255 * mixed).round().astype(np.uint8)


def colours_between(values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Return the colour of each value, (..., 3) from 0 to 1."""
    from matplotlib import colormaps  # noqa: PLC0415  takes a second

    low, high = limits
    shares = (values - low) / (high - low) if high > low else np.full_like(values, 0.5)
    return np.asarray(colormaps[_COLOUR_MAP](np.clip(shares, 0, 1)))[..., :3]


def upsampled(weights: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Resize a map, (h, w), bilinearly; pixels are areas, as in the convolutions that made it."""
    maps = torch.from_numpy(np.ascontiguousarray(weights, dtype=np.float32))[None, None]
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)[0, 0].numpy()


def enlarged(pixels: np.ndarray, side: int) -> np.ndarray:
    """Repeat each pixel so often that the image is at least ``side`` pixels wide; small images keep their squares."""
    times = max(1, -(-side // len(pixels)))
    return pixels.repeat(times, 0).repeat(times, 1)


@dataclass(frozen=True)
class _Page:
    """A figure on which things are placed in inches from the top left."""

    figure: Figure
    width: float
    height: float

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        axes: Axes = self.figure.add_axes(box)
        axes.tick_params(labelsize=7, colors=_MUTED, length=2, width=0.6, pad=2)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set(color=_MUTED, linewidth=0.6)
        return axes

    def text(self, left: float, top: float, text: str, width: float, *, keep: str = "start", **look: Any) -> None:
        """Write one line that begins at a place, shortened to a width; ``keep`` says of which end something is left."""
        look = {"fontsize": 7.5, "fontweight": "normal", **look}
        text = fitted(text, width, look["fontsize"], look["fontweight"], keep=keep)
        self.figure.text(
            left / self.width,
            1 - top / self.height,
            text,
            va="top",
            family=families(text),
            parse_math=False,  # names are third-party text, and may have $ in them
            **{"color": _INK, **look},
        )

    def title(self, left: float, top: float, text: str, detail: str, *, keep: str = "start") -> None:
        """Write the two lines above a panel."""
        self.text(left, top, text, _PANEL, keep=keep, fontweight="bold")
        self.text(left, top + 0.15, detail, _PANEL, keep=keep, color=_MUTED)

    def panel(self, left: float, top: float, pixels: np.ndarray) -> None:
        """Show an image."""
        axes = self.axes(left, top, _PANEL, _PANEL)
        axes.imshow(pixels, interpolation="nearest")
        axes.set_axis_off()

    def line(self, top: float) -> None:
        """Part two blocks."""
        from matplotlib.lines import Line2D  # noqa: PLC0415

        ends = (_MARGIN / self.width, 1 - _MARGIN / self.width)
        self.figure.add_artist(Line2D(ends, [1 - top / self.height] * 2, color=_RULE, linewidth=0.8))


class _Block:
    """Part of the picture that shows one network."""

    def __init__(self, explanation: Explanation) -> None:
        self.explanation = explanation
        shown = [stage for stage in explanation.stages.values() if stage.spatial or stage.channel]
        self.rows = [shown[start : start + _STAGES_IN_A_ROW] for start in range(0, len(shown), _STAGES_IN_A_ROW)] or [
            []
        ]
        self.maps = [stage.spatial[1] for stage in shown if stage.spatial]
        self.channels = [stage.channel[1] for stage in shown if stage.channel]
        self.limits = _limits(self.maps)
        columns = 2 + max(1, *map(len, self.rows))
        self.width = 2 * _MARGIN + columns * (_PANEL + _GAP) + (_COLOUR_BAR if self.maps else 0)
        # Plots of channels have the panels' place where there are no maps.
        self.row_height = _TITLE + _PANEL + 0.12 + _PLOT + 0.42
        self.height = _HEADER + 0.12 + self.row_height * len(self.rows)

    def draw(self, page: _Page, top: float) -> None:
        explanation = self.explanation
        page.text(_MARGIN, top + 0.14, explanation.network, page.width - 2 * _MARGIN, fontsize=10, fontweight="bold")
        top += _HEADER + 0.12
        self._draw_image(page, _MARGIN, top)
        second = _MARGIN + _PANEL + _GAP
        self._draw_gradcam(page, second, top)
        _draw_answers(page, _MARGIN, top + _TITLE + _PANEL + 0.3, 2 * _PANEL + _GAP, explanation)
        third = second + _PANEL + _GAP
        if explanation.no_maps is not None:
            _draw_words(page, third, top + _TITLE, explanation.no_maps)
        for row in self.rows:
            for number, stage in enumerate(row):
                self._draw_stage(page, third + number * (_PANEL + _GAP), top, stage)
            if any(stage.spatial for stage in row):
                right = third + len(row) * (_PANEL + _GAP)
                full = any("full" in maps for stage in row for maps in stage.points.values())
                label = "weight, mean over channels" if full else "spatial weight"
                _draw_colour_bar(page, right - 0.08, top + _TITLE, self.limits, label)
            top += self.row_height

    def _draw_image(self, page: _Page, left: float, top: float) -> None:
        pixels = self.explanation.pixels
        side = len(pixels)
        page.title(left, top, self.explanation.name, f"{side} x {side} pixels", keep="end")
        page.panel(left, top + _TITLE, enlarged(pixels, _PIXELS))

    def _draw_gradcam(self, page: _Page, left: float, top: float) -> None:
        explanation = self.explanation
        method = METHODS[explanation.method]
        size = " x ".join(map(str, explanation.gradcam.shape))
        where = explanation.gradcam_layer + (f", {size}" if explanation.method == OWN else "")  # others are upsampled
        of = explanation.classes[explanation.target] if method.of_class else "of no class"
        page.title(left, top, f"{method.title}: {of}", where)
        page.panel(left, top + _TITLE, overlay(explanation.pixels, explanation.gradcam, (0.0, 1.0), side=_PIXELS))
        bar = page.axes(left + 0.12, top + _TITLE + _PANEL + 0.07, _PANEL - 0.24, 0.06)
        bar.imshow(_ramp()[None], aspect="auto")
        bar.set_axis_off()
        page.text(left, top + _TITLE + _PANEL + 0.05, "0", 0.1, fontsize=6.5, color=_MUTED)
        page.text(left + _PANEL - 0.07, top + _TITLE + _PANEL + 0.05, "1", 0.1, fontsize=6.5, color=_MUTED)

    def _draw_stage(self, page: _Page, left: float, top: float, stage: StageMaps) -> None:
        plot = top + _TITLE + (_PANEL + 0.12 if self.maps else 0)
        if stage.spatial:
            name, weights = stage.spatial
            size = " x ".join(map(str, weights.shape))
            page.title(left, top, name, f"{size}, {_number(weights.min())} to {_number(weights.max())}")
            page.panel(left, top + _TITLE, overlay(self.explanation.pixels, weights, self.limits, side=_PIXELS))
        else:
            page.title(left, top, stage.channel[0] if stage.channel else stage.label, "no spatial weights")
            if self.maps:
                _draw_words(page, left, top + _TITLE, "weighs channels only")
        if stage.channel:
            height = _PLOT if self.maps else _PANEL
            axes = page.axes(left + _TICKS, plot, _PANEL - _TICKS, height)
            name, channels = stage.channel
            other = name if stage.spatial and stage.spatial[0] != name else None
            _draw_channels(axes, other, channels, _limits(self.channels))


def _draw_answers(page: _Page, left: float, top: float, width: float, explanation: Explanation) -> None:
    """Draw a bar for each of the first answers, its name in it, so that long names have all the width."""
    axes = page.axes(left, top, width, _PLOT - 0.02)
    answers = explanation.predictions
    axes.barh(range(len(answers)), [probability for _, probability in answers], height=0.82, color=_BAR, linewidth=0)
    size = min(7.5, 24 / len(answers))
    look: dict[str, Any] = {"va": "center", "fontsize": size, "color": _INK}
    for place, (name, probability) in enumerate(answers):
        weight = "bold" if name == explanation.classes[explanation.target] else "normal"
        text = fitted(name, width - 0.55, size, weight)
        axes.text(0.012, place, text, family=families(text), parse_math=False, fontweight=weight, **look)
        axes.text(0.995, place, f"{probability:.1%}", ha="right", **look)
    axes.set(xlim=(0, 1), ylim=(len(answers) - 0.5, -0.5), xticks=[], yticks=[])
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def _draw_channels(axes: Axes, name: str | None, weights: np.ndarray, limits: tuple[float, float]) -> None:
    """Draw the weights of a stage's channels from the largest to the smallest; say the point's name if there is one."""
    low, high = limits
    places = np.arange(len(weights) + 1)
    steps = np.append(ordered := np.sort(weights)[::-1], ordered[-1])
    axes.fill_between(places, low - 1, steps, step="post", color=_BAR, linewidth=0)
    axes.step(places, steps, where="post", color=_LINE, linewidth=1)
    margin = 0.08 * (high - low)
    axes.set(xlim=(0, len(weights)), ylim=(low - margin, high + margin), xticks=[], yticks=[low, high])
    axes.set_yticklabels([_number(low), _number(high)])
    text = fitted(f"{len(weights)} channels" + (f" of {name}" if name else ""), _PANEL - _TICKS, 7)
    axes.set_xlabel(text, fontsize=7, color=_MUTED, labelpad=3).set_parse_math(False)


def _draw_colour_bar(page: _Page, left: float, top: float, limits: tuple[float, float], label: str) -> None:
    axes = page.axes(left, top, 0.1, _PANEL)
    low, high = limits
    axes.imshow(_ramp()[::-1, None], aspect="auto", extent=(0, 1, low, high))
    axes.set(xticks=[])
    axes.yaxis.tick_right()
    axes.locator_params(axis="y", nbins=5)
    axes.set_ylabel(label, fontsize=7, color=_MUTED)
    axes.yaxis.set_label_position("right")
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def _draw_words(page: _Page, left: float, top: float, words: str) -> None:
    """Say in a panel's place why there is none."""
    import textwrap  # noqa: PLC0415

    axes = page.axes(left, top, _PANEL, _PANEL)
    axes.set(xticks=[], yticks=[], facecolor="#f5f6f7")
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    text = "\n".join(textwrap.wrap(words, 22))
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=7.5, color=_MUTED)


def _ramp() -> np.ndarray:
    """Return the colours of a colour bar as they look over a medium grey, (256, 3)."""
    from matplotlib import colormaps  # noqa: PLC0415

    return _OPACITY * np.asarray(colormaps[_COLOUR_MAP](np.linspace(0, 1, 256)))[:, :3] + (1 - _OPACITY) * 0.5


def _limits(maps: Iterable[np.ndarray]) -> tuple[float, float]:
    """Return the least and the largest value of all, a little apart where they are the same."""
    values = [float(value) for one in maps for value in (one.min(), one.max())]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    apart = 0.02 * max(1.0, abs(high))
    return (low, high) if high - low > apart else ((low + high - apart) / 2, (low + high + apart) / 2)


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.3g}"
