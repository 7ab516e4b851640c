"""Budget controls, found with training times that follow a formula instead of a clock."""

import pytest

from csham.backbones.lookup import deeper
from csham.backbones.scale import split_scale
from csham.errors import UserError
from csham.study.budget import NEAR, check_budget_control, control_networks, step_times
from csham.study.grid import Network

ATTENTION = {"se": 1.10, "eca": 1.11, "cbam": 1.6, "csham": 1.32, "simam": 1.01, "bam": 3.2, "triplet": 9.0}


class Clock:
    """Takes (width ** 1.7) * (depth / 20), and for attentions what ATTENTION says."""

    def __init__(self, broken=()):
        self.runs, self.broken = [], broken

    def time(self, network):
        _, scale = split_scale(network.backbone)
        width, depth = (scale.width or 1, scale.depth or 20) if scale else (1, 20)
        return width**1.7 * depth / 20 * ATTENTION.get(network.attention, 1)

    def __call__(self, networks):
        assert networks[0].plain
        self.runs.append([network.label for network in networks])
        return {n.label: "it is broken" if n.label in self.broken else self.time(n) for n in networks}


class UnevenClock(Clock):
    """Of a network whose width is cheap on a parallel machine and whose depth no longer is when caches are full."""

    def time(self, network):
        _, scale = split_scale(network.backbone)
        width, depth = (scale.width or 1, scale.depth or 14) if scale else (1, 14)
        return width**0.8 * depth / 14 * (1.25 if depth > 34 else 1) * ATTENTION.get(network.attention, 1)


def found_for(attentions, backbone="resnet20", clock=None, notes=None):
    clock = clock or Clock()
    networks = [Network(backbone), *(Network(backbone, attention) for attention in attentions)]
    return clock, control_networks(networks, clock, [].append if notes is None else notes.append)


@pytest.mark.parametrize(("attention", "depth"), [("csham", 26), ("cbam", 32), ("se", 22)])
def test_width_and_depth_come_as_near_as_they_can(attention, depth):
    clock, (wider, deeper_one) = found_for([attention])
    goal = ATTENTION[attention]
    assert wider.instead_of == deeper_one.instead_of == f"resnet20 + {attention}"
    assert clock.time(wider) == pytest.approx(goal, rel=0.02)
    assert deeper_one.backbone == f"resnet20@depth={depth}"
    assert abs(depth / 20 - goal) <= min(abs(other / 20 - goal) for other in (20, depth - 2, depth + 2))


def test_two_runs_each_with_the_plain_network_and_the_attentions():
    clock, _ = found_for(["se", "csham"])
    assert len(clock.runs) == 2
    for run in clock.runs:
        assert run[:3] == ["resnet20", "resnet20 + se", "resnet20 + csham"]
        assert len(run) <= 11


def test_attentions_that_take_as_long_share_their_controls():
    notes = []
    _, found = found_for(["se", "eca", "simam"], notes=notes)
    assert [network.instead_of for network in found] == ["resnet20 + se"] * 2
    assert any("resnet20 + simam takes 1.01" in note for note in notes)


def test_the_labels_are_all_different():
    _, found = found_for(["se", "csham", "cbam"])
    assert len({network.label for network in found}) == len(found) == 6


def test_a_network_without_depth_is_widened_alone():
    _, found = found_for(["csham"], backbone="lenet5")
    assert [network.backbone.partition("=")[0] for network in found] == ["lenet5@width"]


def test_what_could_not_be_measured_is_told_and_left_out():
    notes = []
    _, found = found_for(["se", "csham"], clock=Clock(broken={"resnet20 + se"}), notes=notes)
    assert {network.instead_of for network in found} == {"resnet20 + csham"}
    assert "resnet20 + se could not be measured and gets no budget control (it is broken)" in notes
    with pytest.raises(UserError, match=r"resnet20 could not be measured \(it is broken\)"):
        found_for(["se"], clock=Clock(broken={"resnet20"}))


def test_a_third_run_looks_where_the_second_missed():
    clock, found = found_for(["bam"], backbone="resnet14", clock=UnevenClock())
    assert len(clock.runs) == 3
    assert [clock.time(network) for network in found] == pytest.approx([ATTENTION["bam"]] * 2, rel=NEAR)


def test_controls_are_compared_within_one_run():
    class Drifting(UnevenClock):
        def time(self, network):
            return super().time(network) * (1 if network.plain else 1.5 ** (len(self.runs) // 3))

    steady = found_for(["csham", "bam"], backbone="resnet14", clock=UnevenClock())[1]
    clock, found = found_for(["csham", "bam"], backbone="resnet14", clock=Drifting())
    assert "resnet14 + csham" not in clock.runs[2]  # what came near in the second run stays
    assert len(steady) == 4
    assert found[:2] == steady[:2]


def test_what_does_not_take_the_same_time_is_no_control():
    notes = []
    clock, (found,) = found_for(["triplet"], backbone="resnet14", clock=UnevenClock(), notes=notes)
    assert len(clock.runs) == 2  # no network is wider than four times
    assert clock.time(found) == pytest.approx(ATTENTION["triplet"], rel=NEAR)
    assert found.backbone.startswith("resnet14@depth=")
    assert notes[0] == (
        "resnet14 + triplet gets no budget control of another width: resnet14@width=4 comes nearest, with 3.03 and "
        "9.00 times the plain step, which is 0.34 times as long"
    )


def test_an_axis_of_which_nothing_could_be_measured_is_told():
    notes = []
    clock = Clock(broken={f"lenet5@width={width / 50:g}" for width in range(51, 201)})
    assert found_for(["csham"], backbone="lenet5", clock=clock, notes=notes)[1] == []
    assert notes == ["lenet5 + csham gets no budget control of another width: none could be measured"]


@pytest.mark.parametrize("step", [0.0, 1e-9])
def test_widths_that_cost_next_to_nothing_are_no_controls(step):
    class Flat(Clock):
        def time(self, network):
            _, scale = split_scale(network.backbone)
            return ATTENTION.get(network.attention, 1) + (step * scale.width if scale else 0)

    notes = []
    assert found_for(["bam"], backbone="lenet5", clock=Flat(), notes=notes)[1] == []
    assert "which is 0.31 times as long" in notes[0]


def test_every_backbone_has_its_own_controls():
    networks = [Network(b, a) for b in ("resnet20", "resnet32") for a in ("none", "csham")]
    found = control_networks([*networks, Network("resnet20@width=3", instead_of="old")], Clock())
    assert {network.instead_of for network in found} == {"resnet20 + csham", "resnet32 + csham"}


def test_a_backbone_that_cannot_grow_is_refused():
    with pytest.raises(UserError, match=r"googlenet can be neither .*resnet, wrn, densenet"):
        check_budget_control([Network("googlenet", "se")])


def test_depths_go_block_by_block():
    assert deeper("resnet20", 3) == [22, 24, 26]
    assert deeper("wrn28_10", 2) == [30, 32]
    assert deeper("vgg16_bn", 2) == []


@pytest.mark.slow
def test_depths_of_timms_networks():
    assert deeper("resnet18", 2) == [20, 22]
    assert deeper("resnet50", 2) == [53, 56]
    assert deeper("densenet121", 1) == [123]


def test_steps_are_really_measured():
    measure = step_times(num_classes=10, image_size=32, batch_size=16, device="cpu", seconds=0.5)
    times = measure([Network("lenet5"), Network("lenet5@width=12")])
    assert times["lenet5"] == 1
    assert times["lenet5@width=12"] > 1.5
