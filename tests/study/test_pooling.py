"""One estimate from several groups."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from csham.study.pooling import estimate, pool, pooled_sentence
from csham.study.verdict import verdict


def with_mean_and_se(mean, se, seeds=6):
    """Differences with just these, made of a zero-mean pattern."""
    pattern = np.array([1.0, -1.0] * (seeds // 2))
    pattern *= se * math.sqrt(seeds) / pattern.std(ddof=1)
    return mean + pattern


def rows_of(groups, shared=False):
    """A table of plain runs at 60 and a variant's with these differences; each group with seeds of its own or not."""
    rows = []
    for group, differences in groups.items():
        for i, difference in enumerate(differences):
            seed = i if shared else f"{group} {i}"
            rows += [
                {"group": group, "variant": "plain", "seed": seed, "top1": 60.0},
                {"group": group, "variant": "gate", "seed": seed, "top1": 60.0 + difference},
            ]
    return rows


def pooled(groups, worthwhile=0.5, **shared):
    found = verdict(rows_of(groups, **shared), metric="top1", groups="group", worthwhile=worthwhile)
    return found.metrics[0].pooled


def test_it_is_what_statsmodels_says():
    # combine_effects(means, variances, method_re="chi2", use_t=True) of statsmodels 0.14, variances being that within
    # all groups over each one's pairs: its row "random effect", as the factor of "random effect wls" would be below 1.
    means, deviations, pairs = [0.4, 0.1, -0.2, 0.6, 0.3], [0.5, 0.4, 0.7, 0.6, 0.3], [4, 6, 8, 4, 10]
    groups = zip(means, deviations, pairs, strict=True)
    (one,) = pooled({f"net{i}": with_mean_and_se(m, sd / math.sqrt(n), n) for i, (m, sd, n) in enumerate(groups)})
    assert one.mean == pytest.approx(0.21155571549294416, abs=1e-6)
    assert one.t_interval == pytest.approx((-0.164885, 0.587996), abs=1e-5)
    assert one.between**2 == pytest.approx(0.049180695847362524, abs=1e-6)
    assert one.i2 == pytest.approx(0.544618443947303, abs=1e-5)
    assert one.means == pytest.approx(means, abs=1e-6)
    assert (one.verdict, one.together) == ("cannot tell yet", False)


def test_groups_that_agree_by_chance_do_not_narrow_the_interval():
    (one,) = pooled({name: with_mean_and_se(0.1, 0.1) for name in "abc"})
    assert one.between == 0
    se = 0.1 / math.sqrt(3)
    assert one.t_interval == pytest.approx((0.1 - 4.302653 * se, 0.1 + 4.302653 * se), abs=1e-5)


@pytest.mark.parametrize(
    ("mean", "error", "said"),
    [
        (2.0, 0.05, "helps"),
        (-2.0, 0.05, "hurts"),
        (0.0, 0.05, "no difference worth having"),
        (0.45, 0.5, "cannot tell yet"),
    ],
)
def test_verdicts(mean, error, said):
    (one,) = pooled(
        {name: with_mean_and_se(mean + shift, error) for name, shift in (("a", 0), ("b", 0.1), ("c", -0.1))}
    )
    assert one.verdict == said


@pytest.mark.parametrize("ratio", [1e3, 1e8, 1e12])
def test_a_group_that_is_far_surer_than_the_others_carries_the_estimate(ratio):
    found = estimate(np.array([0.2, 1.5]), np.array([10.0, 10.0]), np.array([5.0 * ratio**2, 5.0]))
    assert found.mean == pytest.approx(0.2, abs=1e-5)
    assert found.between == 0


def test_the_spread_between_groups_is_exact_where_one_is_surest():
    means, pairs = [0.2, 1.5, 3.0], [10**12, 3, 4000]
    weights = [Fraction(count) for count in pairs]
    total = sum(weights)
    mean = sum(w * Fraction(m) for w, m in zip(weights, means, strict=True)) / total
    q = sum(w * (Fraction(m) - mean) ** 2 for w, m in zip(weights, means, strict=True))
    expected = (q - 2) / (total - sum(w**2 for w in weights) / total)
    found = estimate(np.array(means), np.ones(3), np.array(pairs))
    assert found.between**2 == pytest.approx(float(expected), rel=1e-9)


def five_variants(mean):
    """Comparisons of five variants in five groups whose differences scatter by just as much."""
    groups = {f"net{i}": with_mean_and_se(mean + shift, 0.01) for i, shift in enumerate((-0.2, -0.1, 0.0, 0.1, 0.2))}
    one = [row for row in rows_of(groups) if row["variant"] == "gate"]
    plain = [row for row in rows_of(groups) if row["variant"] == "plain"]
    rows = [*plain, *(dict(row, variant=f"gate{i}") for i in range(5) for row in one)]
    return verdict(rows, metric="top1", groups="group").metrics[0].comparisons


def test_no_difference_is_corrected_for_the_number_of_variants():
    # By their intervals alone, an eighth of tables of five variants just worth having would dismiss one.
    (found,) = pool([(five_variants(0.29), 0.5)])
    (alone,) = pool([([one for one in five_variants(0.29) if one.name == "gate0"], 0.5)])
    assert {(one.verdict, one.t_interval[1] < 0.5) for one in found} == {("cannot tell yet", True)}
    assert [one.verdict for one in alone] == ["no difference worth having"]
    assert [one.p_equivalent_holm for one in found] == [pytest.approx(5 * alone[0].p_equivalent)] * 5
    assert {one.verdict for (found,) in [pool([(five_variants(0.0), 0.5)])] for one in found} == {
        "no difference worth having"
    }


def test_equivalence_over_groups_is_two_one_sided_tests():
    found = estimate(np.array([0.1, 0.2, 0.4]), np.array([0.1, 0.2, 0.1]), 5)
    low, high = (found.mean + 0.5) / found.se, (found.mean - 0.5) / found.se
    assert found.p_equivalent(0.5) == pytest.approx(max(stats.t.sf(low, 2), stats.t.cdf(high, 2)))


def test_groups_without_spread_or_pairs_are_named_and_left_out():
    groups = {"a": with_mean_and_se(0.2, 0.1), "b": with_mean_and_se(0.3, 0.1), "c": [0.5, 0.5, 0.5], "d": [0.1]}
    (one,) = pooled(groups)
    assert one.groups == ("a", "b")
    assert one.left_out == ("c", "d")


def test_one_group_is_not_pooled():
    assert pooled({"a": with_mean_and_se(0.2, 0.1)}) == []
    assert pooled({"a": with_mean_and_se(0.2, 0.1), "b": [0.3]}) == []
    assert pooled_sentence([], "points") == ""


@given(
    st.lists(st.tuples(st.floats(-3, 3), st.floats(0.01, 1)), min_size=2, max_size=7),
    st.floats(-2, 2),
)
def test_it_moves_with_the_differences_and_lies_among_them(groups, shift):
    table = {f"g{i}": with_mean_and_se(*pair) for i, pair in enumerate(groups)}
    (one,) = pooled(table)
    (moved,) = pooled({name: values + shift for name, values in table.items()})
    assert min(one.means) - 1e-6 <= one.mean <= max(one.means) + 1e-6
    assert moved.mean == pytest.approx(one.mean + shift, abs=1e-4)
    assert moved.between == pytest.approx(one.between, abs=1e-3)
    low, high = one.t_interval
    assert low < one.mean < high


def test_several_variants_are_corrected_together():
    rows = rows_of({name: with_mean_and_se(0.9 + shift, 0.2) for name, shift in (("a", 0), ("b", 0.1), ("c", -0.1))})
    alone = verdict(rows, metric="top1", groups="group").metrics[0]
    others = [dict(row, variant=f"other{i}") for i in range(9) for row in rows if row["variant"] == "gate"]
    among = verdict(rows + others, metric="top1", groups="group").metrics[0]
    (one,) = alone.pooled
    (same,) = (other for other in among.pooled if other.name == "gate")
    assert same.p == pytest.approx(one.p)
    assert same.p_holm == pytest.approx(min(1.0, 10 * one.p))
    assert "3 groups" in pooled_sentence([one], "points")


def test_several_metrics_are_corrected_together():
    rows = rows_of({name: with_mean_and_se(0.9 + shift, 0.2) for name, shift in (("a", 0), ("b", 0.1), ("c", -0.1))})
    alone = verdict(rows, metric="top1", groups="group").metrics[0]
    metrics = [f"metric{i}" for i in range(4)]
    rows = [{**row, **dict.fromkeys(metrics, row["top1"])} for row in rows]
    for one in verdict(rows, metric=["top1", *metrics], groups="group").metrics:
        (same,) = one.pooled
        assert same.p == pytest.approx(alone.pooled[0].p)
        assert same.p_holm == pytest.approx(min(1.0, 5 * same.p))
        assert same.p_equivalent_holm == pytest.approx(min(1.0, 5 * same.p_equivalent))


def test_a_group_that_is_calm_by_chance_does_not_carry_the_estimate():
    (one,) = pooled(
        {"a": with_mean_and_se(0.9, 0.001), "b": with_mean_and_se(0.1, 0.4), "c": with_mean_and_se(0.2, 0.4)}
    )
    assert one.mean == pytest.approx(0.4)


def same_runs(groups, own):
    """Gains of five runs that were measured in several groups, each with a little noise of its own."""
    rng = np.random.default_rng(1)
    of_run = np.array([0.9, -0.3, 0.5, 0.1, 0.4])
    return {f"epoch {i}": of_run + own * rng.normal(size=5) for i in range(groups)}


@pytest.mark.parametrize("own", [0.0, 0.05])
def test_groups_of_the_same_runs_say_no_more_than_the_runs(own):
    groups = same_runs(12, own)
    (one,) = pooled(groups, shared=True)
    mean = np.mean(list(groups.values()), axis=0)
    expected = stats.ttest_1samp(mean, 0).confidence_interval(0.95)
    assert one.together
    assert one.t_interval == pytest.approx(tuple(expected), abs=1e-6)
    found = verdict(rows_of(groups, shared=True), metric="top1", groups="group")
    (note,) = (note for note in found.notes if "go together" in note)
    assert note.startswith("the gains of gate go together over groups, seed by seed")


def test_groups_that_share_seeds_alone_are_pooled_as_groups():
    rng = np.random.default_rng(0)
    wider = [pooled({name: rng.normal(size=4) for name in "abcde"}, shared=True)[0].together for _ in range(60)]
    assert sum(wider) < 9  # one in twenty, by chance
    apart = {f"net{i}": with_mean_and_se(0.1 * i, 0.2) for i in range(3)}
    assert not pooled(apart)[0].together
