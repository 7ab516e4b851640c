"""The picture of costs: written whole, every network named, panels for every way."""

import re
from itertools import pairwise

import pytest

from csham.cost import Cost
from csham.report import write_cost_figure, write_csv


def cost(name, *, batch_size=8, **ratios):
    return Cost(
        name=name, batch_size=batch_size, precision="fp32", compiled=False, device="cpu", input_size=(3, 8, 8),
        ratios=ratios,
    )  # fmt: skip


PLAIN = {"params": 1.0, "flops": 1.0, "flops_matmul": 1.0, "latency": 1.0, "inference": 1.0, "train_step": 1.0}


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_formats(tmp_path, suffix, start):
    path = tmp_path / f"cost{suffix}"
    write_cost_figure(path, [cost("none", **PLAIN), cost("se", **{**PLAIN, "train_step": 1.2})], "resnet20")
    assert path.read_bytes().startswith(start)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_thirty_names_stand_apart(tmp_path):
    """Labels in the SVG are at least as far apart as they are high."""
    path = tmp_path / "cost.svg"
    costs = [cost("none", **PLAIN)]
    costs += [cost(f"name{n:02}", **{**PLAIN, "flops": 1 + n / 1000, "train_step": 1 + n / 10}) for n in range(30)]
    costs.append(cost("failed"))
    write_cost_figure(path, costs, "resnet20, 32 pixels")
    text = path.read_text()
    for panel in ("parameters", "FLOPs", "time", "memory"):
        assert f"extra {panel}, %" in text
    assert "resnet20, 32 pixels" in text
    assert "failed" not in text
    places = {}
    for name in (f"name{n:02}" for n in range(30)):
        group = text[text.index(f"<!-- {name} -->") :]
        places[name] = float(re.search(r"translate\([\d.]+ ([\d.]+)\)", group).group(1))
    heights = sorted(places.values())
    assert min(b - a for a, b in pairwise(heights)) > 9  # points; the letters are 9 high
    assert max(places, key=places.get) == "name00"  # the slowest on top


def test_ways_get_panels_of_their_own(tmp_path):
    path = tmp_path / "cost.svg"
    write_cost_figure(path, [cost(name, batch_size=size, **PLAIN) for name in ("none", "se") for size in (1, 32)], "t")
    text = path.read_text()
    assert "fp32, eager, batch 1 " in text
    assert "fp32, eager, batch 32 " in text


def test_nothing_to_compare_with_is_still_a_picture(tmp_path):
    write_cost_figure(tmp_path / "cost.png", [cost("none", **PLAIN)], "alone")
    assert (tmp_path / "cost.png").stat().st_size > 1000


def test_csv(tmp_path):
    path = tmp_path / "rows.csv"
    write_csv(path, [{"a": 1, "b": 1 / 3, "c": None}, {"a": 2, "b": 123456789.0, "c": "x,y"}])
    assert path.read_text() == 'a,b,c\n1,0.333333,\n2,1.23457e+08,"x,y"\n'
