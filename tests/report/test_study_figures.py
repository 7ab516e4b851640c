"""What the figures of a study are made of: looks that can be told apart, the Pareto front, curves over seeds."""

import random
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from study_cases import network, write_study

from csham.report.drawing import COLOURS, drawing, inline_svg, looks_of, png_bytes, svg_bytes
from csham.report.study_figures import (
    Curve,
    Point,
    add_legend,
    draw_curves,
    draw_differences,
    draw_points,
    pareto_front,
)
from csham.report.study_material import read_material
from csham.report.study_pictures import draw_difference_picture
from csham.report.study_tables import curve, verdict_table


def luminance(colour):
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_colours_stand_out_on_both_papers():
    for light, dark in COLOURS:
        assert contrast(light, "#fefefe") >= 3
        assert contrast(dark, "#14171b") >= 3


def test_thirty_networks_differ_in_more_than_colour():
    looks = looks_of([f"network {number}" for number in range(30)], plain=["network 0"])
    assert len(set(looks.values())) == 30
    assert len({(look.marker, look.dashes) for look in list(looks.values())[:8]}) == 8
    assert not looks["network 0"].dashes


def test_pareto_front_against_every_pair():
    rng = random.Random(0)
    for _ in range(50):
        points = [Point(str(n), rng.randrange(6), rng.randrange(6), 0, 0) for n in range(8)]
        front = pareto_front(points)
        for one in points:
            better = [
                other
                for other in points
                if (other.cost < one.cost and other.top1 >= one.top1)
                or (other.cost <= one.cost and other.top1 > one.top1)
            ]
            assert (one.label in front) == (not better)


def test_curve_is_mean_lowest_and_highest_of_each_epoch(tmp_path):
    material = read_material(write_study(tmp_path / "study", networks=[network()], epochs=3, costs=False))
    found = curve(material, "resnet20", "val_top1")
    histories = [record["history"] for record in material.records]
    for place, epoch in enumerate((1, 2, 3)):
        values = [history[place]["val_top1"] for history in histories]
        assert found.epochs[place] == epoch
        assert found.mean[place] == pytest.approx(sum(values) / 3)
        assert (found.low[place], found.high[place]) == (min(values), max(values))
    assert curve(material, "resnet20", "test_top1") is None


def test_the_same_figure_gives_the_same_bytes():
    looks = looks_of(["one"])
    with drawing():
        figures = [draw_curves([Curve("one", [1, 2], [5, 6], [4, 5], [6, 7])], looks, "loss") for _ in range(2)]
        assert len({png_bytes(figure) for figure in figures}) == 1
        assert len({svg_bytes(figure) for figure in figures}) == 1


def test_an_inline_drawing_has_its_own_ids_and_the_pages_colours():
    label = "a <b> & $c$"
    looks = looks_of([label])
    with drawing():
        figure = draw_curves([Curve(label, [1], [50.0], [49.0], [51.0])], looks, label)
        pictures = [inline_svg(figure, name, label, "50.00") for name in ("one", "two")]
        add_legend(figure, [label], looks, lines=True)
        assert inline_svg(figure, "one", label, "50.00") != pictures[0]
    roots = [ET.fromstring(picture) for picture in pictures]
    ids = [element.get("id") for root in roots for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    for root, picture in zip(roots, pictures, strict=True):
        assert root.find("title").text == label
        assert root.find("desc").text == "50.00"
        assert label in ["".join(text.itertext()) for text in root.iter("text")]  # $ starts no formula
        assert "var(--c0)" in picture
        assert "currentColor" in picture
        assert "http" not in picture


def test_a_cost_that_spans_much_is_on_a_logarithmic_axis():
    looks = looks_of(["small", "large"])
    points = [Point("small", 1, 50, 49, 51), Point("large", 100, 60, 60, 60)]
    with drawing():
        assert draw_points(points, looks, "time", "s").axes[0].get_xscale() == "log"
        assert draw_points(points[:1], looks, "time", "s").axes[0].get_xscale() == "linear"


@pytest.mark.usefixtures("no_pictures")
def test_the_difference_picture_says_its_numbers(tmp_path):
    networks = [network(), network(attention="se")]
    material = read_material(write_study(tmp_path / "study", networks=networks, seeds=range(5), costs=False))
    [one] = material.results.comparisons
    picture = draw_difference_picture(material)
    words = ET.fromstring(picture.inline).find("desc").text
    for value in (one.mean, *one.t_interval, *one.bootstrap_interval):
        assert f"{abs(value):.2f}" in words
    assert one.verdict in words
    assert "from 5 seeds on" not in words
    assert [cell.value for cell in picture.table.rows[0][1:]] == [*one.differences, one.mean]


def test_an_endless_interval_does_not_flatten_the_rest(tmp_path):
    networks = [network(), network(attention="se")]
    results = read_material(write_study(tmp_path / "study", networks=networks, seeds=range(5), costs=False)).results
    [one] = results.comparisons
    looks = looks_of([one.label])
    with drawing():
        endless = replace(one, t_interval=(-99.0, 99.0))
        low, high = draw_differences({"resnet20": [endless]}, looks, 0.5).axes[0].get_xlim()
        assert -10 < low < min(one.differences)
        assert max(one.differences) < high < 10
        low, high = draw_differences({"resnet20": [one]}, looks, 0.5).axes[0].get_xlim()
        assert low < min(*one.t_interval, *one.bootstrap_interval, -0.5)
        assert high > max(*one.t_interval, *one.bootstrap_interval, 0.5)


@pytest.mark.usefixtures("no_pictures")
def test_too_few_seeds_for_the_bootstrap_are_said_where_its_interval_would_stand(tmp_path):
    networks = [network(), network(attention="se")]
    material = read_material(write_study(tmp_path / "study", networks=networks, seeds=(0, 1, 2), costs=False))
    table = verdict_table(material)
    shown = dict(zip([column.title for column in table.shown], table.rows[0], strict=True))
    assert shown["95%, BCa"].text == "from 5 seeds on"
    assert re.fullmatch(r"\S+ to \S+", shown["95%, t"].text)
    assert dict(zip(table.keys, table.raw[0], strict=True))["bca_low"] is None
    words = ET.fromstring(draw_difference_picture(material).inline).find("desc").text
    assert "BCa interval from 5 seeds on" in words
