"""Records in, table out: what is paired with what, what is left out, and what the first sentences say."""

import json
import math
from dataclasses import dataclass

import pytest

from csham.errors import UserError
from csham.study.results import assess, per_class_difference
from csham.study.statistics import compare
from csham.training.config import BEFORE


@dataclass(frozen=True)
class Network:
    backbone: str
    attention: str = "none"
    instead_of: str | None = None

    @property
    def plain(self):
        return self.attention == "none" and self.instead_of is None

    @property
    def base(self):
        return self.backbone

    @property
    def label(self):
        if self.instead_of:
            return f"{self.backbone} (instead of {self.instead_of})"
        return self.backbone if self.plain else f"{self.backbone} + {self.attention}"


@dataclass(frozen=True)
class Study:
    networks: tuple
    seeds: tuple = (0, 1, 2, 3, 4)
    worthwhile: float = 0.5


PLAIN, SE, CBAM = Network("resnet20"), Network("resnet20", "se"), Network("resnet20", "cbam")
WIDER = Network("resnet20@width=1.25", instead_of="resnet20 + se")
OTHER, OTHER_SE = Network("vgg"), Network("vgg", "se")

TOP1 = {
    PLAIN: [70.0, 70.4, 69.9, 70.2, 70.1],
    SE: [71.0, 71.5, 70.8, 71.2, 71.1],  # helps
    CBAM: [70.9, 69.5, 71.2, 69.0, 70.8],  # unclear
    WIDER: [72.0, 72.5, 71.8, 72.3, 72.2],  # helps more
    OTHER: [60.0, 60.1, 60.2, 60.3, 60.4],
    OTHER_SE: [58.0, 58.2, 58.1, 58.4, 58.4],  # hurts
}


def record(network, seed, top1, **changes):
    environment = {"commit": "abc", "device": "cpu", "processor": "x", "threads": 2, "versions": {"torch": "2.11"}}
    return {
        "format": 1,
        "key": f"{network.label}/{seed}",
        "status": "done",
        "label": network.label,
        "seed": seed,
        "config": {"epochs": 5, "lr": 0.2, "data": "digits", "seed": seed, "backbone": network.backbone},
        "data": {"fingerprint": "f"},
        "classes": ["cat", "dog", "none of these"],
        "result": {
            "top1": top1,
            "top5": 90.0 + seed,
            "recall": TOP1[network][seed] - 1,
            "f1": TOP1[network][seed] - 2,
            "images": 400,
            "validation_chosen": {"top1": TOP1[network][seed] + 0.1},
            "params": 1000,
            "flops": 5000,
            "seconds": 10.0 + seed,
            "images_per_s": 100.0,
            "machine": {"device": "cpu", "precision": "fp32", "compile": False},
        },
        "per_class": {"correct": [10 + seed, 20, 0], "total": [40, 40, 0]},
        "environment": environment,
        **changes,
    }


def records_of(*networks, seeds=range(5)):
    return [record(network, seed, TOP1[network][seed]) for seed in seeds for network in networks]


def failed(network, seed, **changes):
    error = {"type": "DivergedError", "message": "the loss became NaN", "traceback": ""}
    return {**record(network, seed, None), "status": "failed", "result": None, "error": error, "attempts": 2, **changes}


def by_label(results):
    return {c.label: c for c in results.comparisons}


def test_the_row_of_a_network():
    row = assess(Study((PLAIN, SE)), records_of(PLAIN, SE)).networks[1]
    assert (row.label, row.backbone, row.attention, row.plain, row.n) == ("resnet20 + se", "resnet20", "se", False, 5)
    assert row.top1.values == {0: 71.0, 1: 71.5, 2: 70.8, 3: 71.2, 4: 71.1}
    assert (row.top1.mean, row.top1.min, row.top1.max) == (pytest.approx(71.12), 70.8, 71.5)
    assert row.top1.sd == pytest.approx(math.sqrt(sum((v - 71.12) ** 2 for v in TOP1[SE]) / 4))
    assert row.chosen_top1.mean == pytest.approx(71.22)
    assert row.metrics["top5"].values == {seed: 90.0 + seed for seed in range(5)}
    assert row.metrics["macro_recall"].mean == pytest.approx(70.12)
    assert row.metrics["macro_f1"].mean == pytest.approx(69.12)
    assert (row.params, row.flops, row.seconds, row.images_per_s) == (1000, 5000, 12.0, 100.0)
    assert row.test_se == pytest.approx(100 * math.sqrt(0.7112 * 0.2888 / 400))


def test_what_a_record_does_not_say_is_none():
    bare = {"result": {"top1": 70.0}, "environment": None, "config": None, "per_class": None}
    results = assess(Study((PLAIN, SE), seeds=(0,)), [record(n, 0, 70.0, **bare) for n in (PLAIN, SE)])
    row = results.networks[0]
    assert (row.metrics["top5"], row.chosen_top1, row.params, row.seconds, row.test_se) == (None,) * 5
    assert (row.top1.n, row.top1.sd) == (1, None)
    assert results.warnings == []
    assert per_class_difference(results, "resnet20 + se") == []


def test_comparisons_are_the_statistics_of_the_whole_table():
    networks = (PLAIN, SE, CBAM, WIDER, OTHER, OTHER_SE)
    results = assess(Study(networks), records_of(*networks))
    pairs = [(SE, PLAIN), (CBAM, PLAIN), (WIDER, PLAIN), (OTHER_SE, OTHER)]
    table = [[round(a - b, 6) for a, b in zip(TOP1[x], TOP1[y], strict=True)] for x, y in pairs]
    for found, expected, (network, plain), differences in zip(
        results.comparisons, compare(table), pairs, table, strict=True
    ):
        assert (found.label, found.against, found.backbone) == (network.label, plain.label, plain.backbone)
        assert found.differences == tuple(differences)
        assert {name: getattr(found, name) for name in vars(expected)} == vars(expected)
    assert [c.verdict for c in results.comparisons] == ["helps", "cannot tell yet", "helps", "hurts"]
    assert [c.name for c in results.comparisons] == ["se", "cbam", WIDER.label, "se"]


def test_gains_of_as_many_images_have_no_spread_as_stored():
    right = dict(zip(range(3), (336, 337, 339), strict=True))  # of 359
    records = [record(n, s, round(100 * (right[s] + 3 * (n is SE)) / 359, 4)) for n in (PLAIN, SE) for s in right]
    (found,) = assess(Study((PLAIN, SE), seeds=tuple(right)), records).comparisons
    assert len(set(found.differences)) > 1
    assert (found.verdict, found.t_interval, found.p_t) == ("cannot tell yet", None, None)


def test_only_seeds_of_both_are_paired():
    records = records_of(PLAIN, seeds=[0, 1, 2]) + records_of(SE, seeds=[4, 2, 1])
    results = assess(Study((PLAIN, SE)), records)
    assert results.comparisons[0].seeds == (1, 2)
    assert results.comparisons[0].differences == pytest.approx((1.1, 0.9))
    assert results.networks[1].n == 3
    assert {(m.label, m.seed) for m in results.missing} == {
        ("resnet20", 3), ("resnet20", 4), ("resnet20 + se", 0), ("resnet20 + se", 3)
    }  # fmt: skip


def test_records_of_other_networks_seeds_and_settings_are_ignored():
    strange = [
        record(CBAM, 0, 99.0),
        {**record(SE, 0, 99.0), "seed": 17, "key": "seed 17"},
        {**record(SE, 0, 99.0), "key": "other settings"},
    ]
    records = records_of(PLAIN, SE)
    keys = {r["key"] for r in records}
    results = assess(Study((PLAIN, SE)), strange + records, keys=keys)
    clean = assess(Study((PLAIN, SE)), records)
    assert results.ignored == 3
    assert {**results.to_dict(), "ignored": 0} == clean.to_dict()


@pytest.mark.parametrize("keys", [None, "own"])
def test_repeats_of_its_own_cells_tell_whether_the_machine_matters(keys):
    records = records_of(PLAIN, SE)
    elsewhere = {"device": "NVIDIA H200", "versions": {"torch": "2.11"}}
    repeats = [
        {**r, "environment": elsewhere, "result": {**r["result"], "top1": r["result"]["top1"] + 2}} for r in records
    ]
    # Of a seed's repeats the last would count.
    strange = [{**r, "key": "other settings", "result": {**r["result"], "top1": 5.0}} for r in repeats]
    found = assess(
        Study((PLAIN, SE)),
        records,
        keys={r["key"] for r in records} if keys else None,
        repeats=repeats + strange if keys else repeats,
    )
    told = [note for note in found.warnings if "seeds run on both" in note]
    assert len(told) == 1
    assert "2.00 points" in told[0]


def test_two_settings_of_one_cell_are_not_mixed():
    with pytest.raises(UserError, match=r"two records of resnet20 \+ se, seed 0, made with different settings"):
        assess(Study((PLAIN, SE)), [*records_of(PLAIN, SE), {**record(SE, 0, 99.0), "key": "other"}])


def test_the_last_record_of_a_key_counts():
    study = Study((PLAIN, SE), seeds=(0,))
    again = assess(study, [failed(SE, 0), record(PLAIN, 0, 70.0), record(SE, 0, 60.0), record(SE, 0, 71.0)])
    assert again.comparisons[0].differences == (1.0,)
    assert again.failed == []
    assert assess(study, [record(SE, 0, 71.0), failed(SE, 0)]).failed


def test_a_failed_run_is_told_apart_from_a_missing_one():
    results = assess(Study((PLAIN, SE), seeds=(0, 1)), [record(PLAIN, 0, 70.0), record(PLAIN, 1, 70.0), failed(SE, 1)])
    (cell,) = results.failed
    assert (cell.label, cell.seed, cell.attempts) == ("resnet20 + se", 1, 2)
    assert cell.error == "DivergedError: the loss became NaN"
    assert [(m.label, m.seed) for m in results.missing] == [("resnet20 + se", 0)]
    assert results.headline == (
        "se on resnet20 has not been measured yet. 1 of 4 runs are still to come and 1 of 4 runs failed."
    )


@pytest.mark.parametrize("plain", [[], [record(PLAIN, 3, 70.0), record(PLAIN, 4, 70.0)]])
def test_runs_that_wait_for_those_of_the_plain_network_are_not_called_unmeasured(plain):
    results = assess(Study((PLAIN, SE, CBAM, OTHER_SE)), [*plain, *records_of(SE, CBAM, seeds=[0, 1, 2])])
    assert results.headline.startswith(
        "se and cbam on resnet20 cannot be compared with the plain network yet: no seed has both. "
        "se on vgg has not been measured yet. "
    )


def test_nothing_yet():
    results = assess(Study((PLAIN, SE)), [])
    assert len(results.missing) == 10
    assert results.networks[0].top1 is None
    assert results.comparisons[0].verdict == "cannot tell yet"
    assert "10 of 10 runs are still to come" in results.headline


@pytest.mark.parametrize("top1", [None, math.nan, "71", True])
def test_a_done_record_without_a_number_is_refused(top1):
    with pytest.raises(UserError, match=r"resnet20 \+ se, seed 0 .* which is no number"):
        assess(Study((PLAIN, SE)), [record(PLAIN, 0, 70.0), record(SE, 0, top1)])


def test_a_study_without_the_plain_network_compares_nothing():
    results = assess(Study((SE,)), records_of(SE))
    assert results.comparisons[0].against is None
    assert results.comparisons[0].n == 0
    assert results.ranking == {}


def test_a_plain_networks_study_has_nothing_to_compare():
    assert "nothing to compare" in assess(Study((PLAIN,)), records_of(PLAIN)).headline


def test_a_budget_control_is_compared_with_the_smaller_plain_network():
    results = assess(Study((PLAIN, SE, WIDER)), records_of(PLAIN, SE, WIDER))
    control = by_label(results)[WIDER.label]
    assert (control.against, control.backbone, control.verdict) == ("resnet20", "resnet20", "helps")
    (against,) = by_label(results)["resnet20 + se"].controls
    assert against.label == WIDER.label
    assert against.mean == pytest.approx(-1.04)
    assert against.control_mean == pytest.approx(2.04)
    assert against.t_interval[1] < 0


def test_a_control_of_an_unknown_network_still_finds_its_backbone():
    results = assess(Study((PLAIN, WIDER)), records_of(PLAIN, WIDER))
    assert results.comparisons[0].against == "resnet20"


def test_a_wider_plain_network_of_its_own_is_what_its_attentions_are_compared_with():
    wide, wide_se = Network("resnet20@width=1.25"), Network("resnet20@width=1.25", "se")
    TOP1[wide] = TOP1[wide_se] = [70.0, 71.0, 72.0]
    records = [record(n, s, 70.0 + i + s) for i, n in enumerate((PLAIN, wide, wide_se)) for s in range(3)]
    results = assess(Study((PLAIN, wide, wide_se), seeds=(0, 1, 2)), records)
    assert [(c.label, c.against) for c in results.comparisons] == [(wide_se.label, wide.label)]


def test_the_headline_of_a_gain_mentions_a_control_that_does_better():
    results = assess(Study((PLAIN, SE, WIDER)), records_of(PLAIN, SE, WIDER))
    assert results.headline == (
        "se helps resnet20: +1.00 points (95% +0.91 to +1.09, 5 seeds). But a plain resnet20@width=1.25, which trains "
        "in the same time, does better than se (+2.04 points)."
    )


def test_the_headline_mentions_a_control_that_does_as_well():
    tops = [70.9, 71.6, 70.7, 71.3, 71.0]
    records = records_of(PLAIN, SE) + [record(WIDER, seed, top1) for seed, top1 in enumerate(tops)]
    assert "cannot be told from se (+0.98 points)" in assess(Study((PLAIN, SE, WIDER)), records).headline


def test_the_headline_leaves_out_a_control_that_is_beaten():
    tops = [70.1, 70.6, 69.9, 70.3, 70.1]
    records = records_of(PLAIN, SE) + [record(WIDER, seed, top1) for seed, top1 in enumerate(tops)]
    assert "But" not in assess(Study((PLAIN, SE, WIDER)), records).headline


def test_the_headline_of_an_open_study():
    networks = (PLAIN, SE, CBAM)
    tops = {PLAIN: [70, 70.5, 69.8], SE: [70.6, 70.1, 70.9], CBAM: [69.5, 71.0, 70.2]}
    records = [record(n, seed, float(top1)) for n in networks for seed, top1 in enumerate(tops[n])]
    results = assess(Study(networks, seeds=(0, 1, 2)), records)
    more = sorted(c.seeds_needed - 3 for c in results.comparisons)
    assert results.headline == (
        "Each of 2 attentions on resnet20 cannot be told from the plain network with 3 seeds; about "
        f"{more[0]} to {more[1]} more could settle it."
    )


def test_the_headline_promises_no_end_to_what_no_number_of_seeds_settles():
    gains = {PLAIN: [0] * 6, SE: [6.5, -5.5, 6.5, -5.5, 6.5, -5.5], CBAM: [0.9, -0.1, 0.9, -0.1, 0.9, -0.1]}
    records = [
        {**record(n, 0, 70.0 + gain), "key": f"{n.label}/{seed}", "seed": seed}
        for n in gains
        for seed, gain in enumerate(gains[n])
    ]
    results = assess(Study(tuple(gains), seeds=tuple(range(6))), records)
    found = by_label(results)
    assert found["resnet20 + se"].seeds_needed is None
    assert results.headline == (
        "Each of 2 attentions on resnet20 cannot be told from the plain network with 6 seeds; about "
        f"{found['resnet20 + cbam'].seeds_needed - 6} more could settle 1 of them, and no number that anyone would run "
        "is likely to settle the other."
    )


def test_the_headline_of_everything_at_once():
    networks = (PLAIN, SE, CBAM, OTHER, OTHER_SE, Network("vgg", "eca"))
    TOP1[networks[-1]] = [60.1, 60.15, 60.25, 60.4, 60.5]
    headline = assess(Study(networks), records_of(*networks)).headline
    assert headline.startswith("se helps resnet20: +1.00 points")
    assert " se hurts vgg: -1.98 points (95% " in headline
    assert " eca on vgg makes no difference worth having (95% within ±0.5 points)." in headline
    assert " cbam on resnet20 cannot be told from the plain network with 5 seeds; about " in headline


def test_the_ranking_is_by_paired_difference():
    # Unpaired means would mislead: cbam ran with the lucky seed alone.
    records = [*records_of(PLAIN, SE), record(CBAM, 1, 71.3)]
    results = assess(Study((PLAIN, SE, CBAM, OTHER)), records)
    assert results.ranking == {"resnet20": ["resnet20 + se", "resnet20 + cbam", "resnet20"], "vgg": ["vgg"]}


def test_runs_of_different_code_are_warned_about():
    records = records_of(PLAIN, SE)
    for r in records:
        r["environment"] = {**r["environment"], "commit": "def" if r["label"] == "resnet20 + se" else "abc"}
    (warning,) = assess(Study((PLAIN, SE)), records).warnings
    assert warning == (
        "The commit of csham differs between runs: abc (5 runs), def (5 runs); in 5 pairs between a network and the "
        "plain one, whose difference is then not the network's alone."
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"environment": {"versions": {"torch": "2.12"}}}, "The version of torch differs between runs: 2.11 (9 runs)"),
        ({"config": {"epochs": 6, "lr": 0.2}}, "The setting epochs differs between runs: 5 (9 runs), 6 (1 run);"),
        ({"data": {"fingerprint": "g"}}, "The data differs between runs"),
        ({"result": {"top1": 70.0, "machine": {"precision": "bf16", "device": "cpu"}}}, "The precision differs"),
        ({"result": {"top1": 70.0, "machine": {"precision": "fp32", "device": "cuda:1"}}}, "The device differs"),
    ],
)
def test_what_should_not_differ_is_warned_about(change, expected):
    records = [*records_of(PLAIN, SE)[:-1], record(SE, 4, 71.0, **change)]
    warnings = assess(Study((PLAIN, SE)), records).warnings
    assert any(w.startswith(expected) and "in 1 pair between" in w for w in warnings), warnings


def test_a_run_from_before_a_setting_did_what_the_setting_says_since():
    """An old study that is extended: its new runs say last_batch: drop."""
    config = {"epochs": 5, "lr": 0.2}
    for last_batch, warned in (("drop", 0), ("fill", 1)):
        records = [*records_of(PLAIN, SE)[:-1], record(SE, 4, 71.0, config={**config, "last_batch": last_batch})]
        warnings = assess(Study((PLAIN, SE)), records).warnings
        assert len([w for w in warnings if w.startswith("The setting last_batch differs")]) == warned


def test_a_setting_that_is_a_list_in_a_file_is_the_tuple_of_before_there_was_any():
    config = {"epochs": 5, "lr": 0.2, "continued": list(BEFORE["continued"])}
    records = [*records_of(PLAIN, SE)[:-1], record(SE, 4, 71.0, config=config)]
    assert assess(Study((PLAIN, SE)), records).warnings == []


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"processor": "y"}, "The processor differs between runs: x (9 runs), y (1 run)"),
        ({"shares_process": True}, "The sharing of a process differs between runs: no (9 runs), yes (1 run)"),
    ],
)
def test_what_only_concerns_speed(change, differs):
    records = [*records_of(PLAIN, SE)[:-1], record(SE, 4, 71.0)]
    records[-1]["environment"] = {**records[-1]["environment"], **change}
    (warning,) = assess(Study((PLAIN, SE)), records).warnings
    assert warning == f"{differs}; their seconds and images/s cannot be compared."


def test_seeds_and_networks_of_one_study_are_not_warned_about():
    assert assess(Study((PLAIN, SE)), records_of(PLAIN, SE)).warnings == []


def test_classes_are_compared_by_seed():
    records = records_of(PLAIN, SE, seeds=[0, 1])
    for r in records:
        if r["label"] == "resnet20 + se":
            r["per_class"] = {"correct": [14 + 3 * r["seed"], 20, 0], "total": [40, 40, 0]}
    cat, dog = per_class_difference(assess(Study((PLAIN, SE), seeds=(0, 1)), records), "resnet20 + se")
    assert (cat.name, cat.n, cat.images) == ("cat", 2, 40)
    assert (cat.plain_recall, cat.recall) == (pytest.approx(100 * 10.5 / 40), pytest.approx(100 * 15.5 / 40))
    assert cat.mean == pytest.approx(100 * (4 + 6) / 2 / 40)
    assert cat.sd == pytest.approx(100 * math.sqrt(2) / 40)
    assert (dog.name, dog.mean, dog.sd) == ("dog", 0.0, 0.0)


def test_classes_of_an_unknown_network_are_refused():
    results = assess(Study((PLAIN, SE)), records_of(PLAIN, SE))
    with pytest.raises(UserError, match=r"unknown network 'resnet20 \+ s'.*Did you mean 'resnet20 \+ se'"):
        per_class_difference(results, "resnet20 + s")


def test_runs_of_other_classes_are_refused():
    records = [*records_of(PLAIN, SE)[:-1], record(SE, 4, 71.0, classes=["cat", "cow", "none of these"])]
    with pytest.raises(UserError, match="different classes"):
        per_class_difference(assess(Study((PLAIN, SE)), records), "resnet20 + se")


def test_the_dictionary_is_json():
    found = assess(Study((PLAIN, SE, WIDER, OTHER)), [*records_of(PLAIN, SE, WIDER), failed(OTHER, 0)]).to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["networks"][0]["top1"]["values"]["0"] == 70.0
    assert found["comparisons"][0]["controls"][0]["label"] == WIDER.label
    assert "runs" not in found
