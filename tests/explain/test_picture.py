"""Pictures: every panel is where it belongs, texts do not reach into each other, any name can be drawn."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from csham.explain.explanation import Explanation, StageMaps
from csham.explain.picture import colours_between, draw, enlarged, fitted, overlay, picture_bytes, upsampled

NAMES = ["a $class_{of}$ with a long name that goes on and on and on and on, and on", "日本語", "W" * 90]


def explanation(stages=3, kinds=("spatial", "channel"), **more):
    rng = np.random.default_rng(0)
    shapes = {"spatial": (8, 8), "channel": (16,), "full": (16, 8, 8)}
    points = [{kind: rng.random(shapes[kind], np.float32) for kind in kinds} for _ in range(stages)]
    return Explanation(
        name="some/folder/with/a/" + "long" * 20 + "/image.png",
        network="resnet20 + csham (transfer)",
        pixels=rng.integers(0, 255, (32, 32, 3)).astype(np.uint8),
        classes=NAMES,
        probabilities=np.array([0.2, 0.5, 0.3], np.float32),
        top=3,
        target=1,
        stages={f"layer{n}": StageMaps(f"layer{n}", 16, {f"layer{n}.1.bn2": maps}) for n, maps in enumerate(points)},
        gradcam=rng.random((4, 4), np.float32),
        gradcam_layer="layer3.2",
        attention="csham",
        **more,
    )


CASES = {
    "usual": explanation(),
    "no attention": explanation(0),
    "one stage": explanation(1),
    "channels only": explanation(kinds=("channel",)),
    "spatial only": explanation(kinds=("spatial",)),
    "full": explanation(kinds=("full",)),
    "nothing weighed": explanation(kinds=()),
    "many stages": explanation(9),
}


def texts(figure):
    """All lines of text with the boxes that they take, in pixels, and the page's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    found = [*figure.texts, *(text for axes in figure.axes for text in [*axes.texts, axes.xaxis.label])]
    return [(text.get_text(), text.get_window_extent(renderer)) for text in found if text.get_text()]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_no_text_reaches_into_another_or_off_the_page(case):
    figure = draw([CASES[case], CASES["no attention"]])
    page = figure.bbox
    boxes = texts(figure)
    for number, (text, box) in enumerate(boxes):
        assert page.x0 <= box.x0, text
        assert box.x1 <= page.x1, text
        assert page.y0 <= box.y0, text
        assert box.y1 <= page.y1, text
        for other, taken in boxes[number + 1 :]:
            width = min(box.x1, taken.x1) - max(box.x0, taken.x0)
            height = min(box.y1, taken.y1) - max(box.y0, taken.y0)
            assert width < 1 or height < 1, (text, other)


def test_what_is_shown_is_said():
    shown = words("usual")
    for word in ("resnet20 + csham (transfer)", "Grad-CAM", "layer3.2, 4 x 4", "layer1.1.bn2", "8 x 8, 0.", "50.0%"):
        assert word in shown
    assert "no attention attached" in words("no attention")
    assert "csham adds to the feature map and weighs nothing" in words("nothing weighed")
    assert "no spatial weights" in words("channels only")


def words(case):
    return " ".join(text.replace("\n", " ") for text, _ in texts(draw(CASES[case])))


@pytest.mark.parametrize(("format", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_formats(format, begins):
    content = picture_bytes(draw(CASES["usual"]), format)
    assert content.startswith(begins)
    if format == "png":
        assert Image.open(io.BytesIO(content)).width > 1500
        assert content == picture_bytes(draw(CASES["usual"]), format)


def test_other_formats_and_no_explanations_are_told():
    with pytest.raises(ValueError, match="unknown format 'jpg'"):
        picture_bytes(draw(CASES["usual"]), "jpg")
    with pytest.raises(ValueError, match="no explanation"):
        draw([])


def test_maps_of_one_value_and_of_one_place():
    maps = {"spatial": np.full((1, 1), 0.5, np.float32), "channel": np.full(16, 0.5, np.float32)}
    one = dataclasses.replace(
        CASES["usual"],
        stages={"last": StageMaps("last", 16, {"last": maps})},
        gradcam=np.zeros((1, 1), np.float32),
    )
    assert picture_bytes(draw(one))


def test_an_overlay_has_the_colours_of_its_weights():
    pixels = np.full((4, 4, 3), 100, np.uint8)
    weights = np.array([[0.0, 1.0]], np.float32)
    found = overlay(pixels, weights, (0.0, 1.0), side=10)
    assert found.shape == (12, 12, 3)
    ends = colours_between(np.array([0.0, 1.0]), (0.0, 1.0))
    np.testing.assert_allclose(found[0, 0], 255 * 0.6 * ends[0] + 40, atol=1)
    np.testing.assert_allclose(found[0, -1], 255 * 0.6 * ends[1] + 40, atol=1)
    assert np.array_equal(colours_between(np.array([-5.0, 9.0]), (0.0, 1.0)), ends)


def test_images_grow_by_whole_pixels_and_maps_smoothly():
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    large = enlarged(pixels, 5)
    assert large.shape == (6, 6, 3)
    assert np.array_equal(large[::3, ::3], pixels)
    np.testing.assert_allclose(upsampled(np.array([[0.0, 1.0]]), (1, 4)), [[0, 0.25, 0.75, 1]])


def test_texts_are_shortened_where_it_says_least():
    assert fitted("short", 1) == "short"
    assert fitted("a\nb", 1) == "a b"
    cut = fitted("w" * 99, 1)
    assert cut.endswith("w…")
    assert fitted(cut, 1) == cut
    assert fitted("w" + cut, 1) == cut
    assert fitted("word", 0.01) == "…"
    assert fitted("a/very/long/path/of/folders/cat.png", 1, keep="end") == "of/folders/cat.png"
    assert fitted("x" * 99 + ".png", 1, keep="end").startswith("…x")
    assert "?" in fitted("caf\udce9", 1)
