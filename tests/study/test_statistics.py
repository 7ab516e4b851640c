"""Every number against scipy or the definition, and how often the verdict is wrong, by simulation."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from csham.errors import UserError
from csham.study.comparison_statistics import STATISTICS
from csham.study.statistics import (
    ALPHA,
    EXACT_UP_TO,
    FEW,
    STORED,
    _equivalence_power,
    _Margin,
    _power,
    binomial_se,
    compare,
    holm,
    judge,
    points,
    sign_flip_p,
    with_sign,
)
from csham.training.metrics import METRICS

DIFFERENCES = [0.8, 1.1, -0.2, 0.7, 0.35]

# Multiples of 1/64, as quantised as accuracies are, which sums and negation keep exactly.
steps = st.integers(-640, 640).map(lambda k: k / 64)
samples = st.lists(steps, min_size=0, max_size=8)
tables = st.lists(samples, min_size=1, max_size=5)


def one(differences, **options):
    return compare([differences], **options)[0]


def sign_flip_by_definition(differences):
    means = [
        abs(math.fsum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    observed = abs(math.fsum(differences))
    return sum(mean >= observed - 1e-9 for mean in means) / len(means)


def holm_by_definition(p_values, level):
    """Reject the smallest p while it is below the level over the number of tests left."""
    left, rejected = dict(enumerate(p_values)), set()
    while left:
        i = min(left, key=left.get)
        if not left[i] < level / len(left):
            break
        rejected.add(i)
        del left[i]
    return rejected


@pytest.mark.parametrize("differences", [DIFFERENCES, [1.0, 2.0], [3.0, -1.0, 0.5], list(np.linspace(-1, 2, 31))])
def test_moments_interval_and_p_are_scipys(differences):
    found, test = one(differences), stats.ttest_1samp(differences, 0.0)
    assert found.n == len(differences)
    assert found.mean == pytest.approx(np.mean(differences))
    assert found.sd == pytest.approx(np.std(differences, ddof=1))
    assert found.p_t == pytest.approx(test.pvalue)
    assert found.t_interval == pytest.approx(tuple(test.confidence_interval(0.95)))


def test_the_test_is_the_paired_one():
    ours, plain = np.random.default_rng(0).normal([[70.5], [70.0]], 0.4, (2, 6))
    assert one(ours - plain).p_t == pytest.approx(stats.ttest_rel(ours, plain).pvalue)


@given(steps, st.lists(steps, min_size=2, max_size=8))
@settings(max_examples=40)
def test_equivalence_is_two_one_sided_tests(shift, differences):
    values = np.array(differences) + shift
    assume(np.ptp(values) > 0)
    low = stats.ttest_1samp(values, -0.5, alternative="greater").pvalue
    high = stats.ttest_1samp(values, 0.5, alternative="less").pvalue
    assert one(values).p_equivalent == pytest.approx(max(low, high))


@pytest.mark.parametrize("differences", [DIFFERENCES, [0.1, 5.0, 0.2, 0.15, 0.1, 0.3, 0.2]])
def test_the_bootstrap_interval_is_scipys_bca(differences):
    found = one(differences).bootstrap_interval
    other = stats.bootstrap((differences,), np.mean, n_resamples=50_000, method="BCa", rng=7).confidence_interval
    # Quantiles of 10,000 resamples differ by chance; percentile intervals of the skewed sample differ by more.
    assert found == pytest.approx((other.low, other.high), abs=0.03 * np.ptp(differences))
    assert found == one(differences).bootstrap_interval


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_the_bootstrap_interval_is_there_from_five_seeds_on(n):
    found = one(DIFFERENCES[:n])
    assert found.t_interval is not None
    assert (found.bootstrap_interval is not None) == (n >= FEW)


def test_bca_is_not_the_percentile_interval():
    skewed = [0.1, 5.0, 0.2, 0.15, 0.1, 0.3, 0.2]
    percentile = stats.bootstrap((skewed,), np.mean, n_resamples=50_000, method="percentile", rng=7)
    assert one(skewed).bootstrap_interval[1] > percentile.confidence_interval.high + 0.1


@given(st.lists(steps, min_size=1, max_size=8))
def test_the_sign_flip_p_is_exact_with_ties(differences):
    assert sign_flip_p(differences) == sign_flip_by_definition(differences)


@pytest.mark.parametrize("n", [2, 5, 12])
def test_the_sign_flip_p_is_scipys(n):
    values = np.random.default_rng(n).normal(0.5, 1, n)
    test = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_p(values) == pytest.approx(test.pvalue)


def test_ties_survive_rounding():
    assert sign_flip_p([0.1, 0.2, 0.3, -0.3]) == sign_flip_by_definition([1, 2, 3, -3])
    assert sign_flip_p([0.1] * 5) == 2 / 32
    assert sign_flip_p([]) is None


def test_more_pairs_than_can_be_tried_are_sampled():
    values = np.random.default_rng(3).normal(0.3, 1, EXACT_UP_TO + 1)
    sums = np.zeros(1)
    for value in values[1:]:  # by hand, 2**20 sums
        sums = np.concatenate([sums + value, sums - value])
    exact = np.mean(np.abs(sums + values[0]) >= abs(values.sum()) - 1e-9)
    assert sign_flip_p(values) == pytest.approx(exact, abs=4 * math.sqrt(exact / 100_000))
    assert sign_flip_p(values) == sign_flip_p(-values[::-1])


@given(st.lists(st.integers(0, 1000).map(lambda k: k / 1000), min_size=1, max_size=6), st.integers(1, 99))
def test_holm_rejects_what_its_definition_rejects(p_values, level):
    level = (level + 0.5) / 100_000 * 100  # between the products of the p's, so that rounding decides nothing
    adjusted = holm(p_values)
    assert {i for i, p in enumerate(adjusted) if p < level} == holm_by_definition(p_values, level)


def test_holm_of_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5), st.floats(0, 1) | st.none())
def test_one_more_comparison_never_lowers_an_adjusted_p(p_values, other):
    before, after = holm(p_values), holm([*p_values, other])[:-1]
    assert all(new >= old for old, new in zip(before, after, strict=True))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=4), st.floats(0, 1))
def test_a_comparison_that_is_not_measured_yet_counts(p_values, later):
    now, then = holm([*p_values, None]), holm([*p_values, later])
    assert now[-1] is None
    assert all(new <= old for old, new in zip(now[:-1], then[:-1], strict=True))


@given(tables)
@settings(max_examples=25)
def test_negating_swaps_helps_and_hurts(table):
    swapped = {"helps": "hurts", "hurts": "helps"}
    for found, negated in zip(compare(table), compare([[-d for d in row] for row in table]), strict=True):
        assert negated.verdict == swapped.get(found.verdict, found.verdict)
        assert (negated.p_t, negated.p_sign_flip, negated.seeds_needed) == (
            found.p_t,
            found.p_sign_flip,
            found.seeds_needed,
        )
        if found.bootstrap_interval:
            low, high = found.bootstrap_interval
            assert negated.bootstrap_interval == pytest.approx((-high, -low), abs=1e-12)  # means are rounded once more


@given(tables, st.sampled_from([0.25, 2.0, 8.0]))
@settings(max_examples=25)
def test_the_unit_does_not_matter(table, factor):
    for found, scaled in zip(
        compare(table), compare([[factor * d for d in r] for r in table], factor / 2), strict=True
    ):
        assert (scaled.verdict, scaled.seeds_needed) == (found.verdict, found.seeds_needed)
        for name in ("mean", "sd", "t_interval", "bootstrap_interval", "smallest_detectable"):
            value = getattr(found, name)
            expected = value if value is None else np.multiply(value, factor)
            assert getattr(scaled, name) == (expected if value is None else pytest.approx(expected))


@given(samples, st.randoms(use_true_random=False))
@settings(max_examples=25)
def test_the_order_of_seeds_does_not_matter(differences, random):
    shuffled = random.sample(differences, len(differences))
    assert one(shuffled) == one(differences)


@given(tables)
@settings(max_examples=40)
def test_nothing_is_nan_and_every_sentence_ends(table):
    for found, differences in zip(compare(table), table, strict=True):
        assert found.n == len(differences)
        assert found.sentence[0].isupper()
        assert found.sentence.endswith(".")
        for value in vars(found).values():
            for number in value if isinstance(value, tuple) else [value]:
                assert not isinstance(number, float) or math.isfinite(number)
        if found.verdict == "cannot tell yet":
            assert found.seeds_needed is None or found.seeds_needed > found.n
        else:
            assert found.n >= 3
            assert found.seeds_needed == found.n


@pytest.mark.parametrize("bad", [[1.0, math.nan, 2.0], [math.inf, 1.0], [[1.0, 2.0]]])
def test_what_is_not_a_number_is_refused(bad):
    with pytest.raises(UserError, match="finite numbers"):
        compare([[1.0, 2.0], bad])


@pytest.mark.parametrize("worthwhile", [-1, math.nan, math.inf])
def test_a_margin_is_not_negative(worthwhile):
    with pytest.raises(UserError, match="worthwhile must be"):
        compare([[1.0, 2.0]], worthwhile)


def test_without_pairs_or_with_one_nothing_is_claimed():
    none, single = one([]), one([4.0])
    assert (none.mean, none.sd, none.t_interval, none.p_t, none.p_sign_flip) == (None,) * 5
    assert (single.mean, single.sd, single.t_interval, single.p_t, single.bootstrap_interval) == (4.0, *(None,) * 4)
    assert none.verdict == single.verdict == "cannot tell yet"
    assert none.seeds_needed == single.seeds_needed == FEW
    assert "4 more seeds" in single.sentence
    assert compare([]) == []


def test_two_pairs_show_an_interval_and_no_verdict():
    found = one([5.0, 5.001])
    assert found.p_t < 0.001
    assert found.t_interval[0] > 4.9
    assert found.verdict == "cannot tell yet"


def test_three_pairs_may_decide_with_a_caution():
    found = one([2.0, 2.1, 2.05])
    assert found.verdict == "helps"
    assert found.sentence.endswith("Fewer than five seeds can say little.")
    assert "say little" not in one([2.0, 2.1, 2.05, 2.02, 2.08]).sentence


@pytest.mark.parametrize("value", [0.0, 0.28, 5.0])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_equal_differences_of_few_seeds_decide_nothing(value, n):
    rounded = [(plain + value) - plain for plain in (70, 30, 5, 90, 10)[:n]]  # as subtraction leaves them
    found = one(rounded)
    assert (found.sd, found.t_interval, found.p_t, found.bootstrap_interval) == (0.0, None, None, None)
    assert found.smallest_detectable is None
    assert found.verdict == "cannot tell yet"
    assert found.seeds_needed == 6
    assert f"; about {6 - n} more seed{'s' if n < 5 else ''} to settle it." in found.sentence


@pytest.mark.parametrize(
    ("differences", "step", "verdict", "seeds_needed"),
    [
        ([0.4, 0.6, 0.4, 0.5, 0.4, 0.5], 0.1, "helps", 6),  # on both sides of the margin
        ([0.4, 0.4, 0.4, 0.4, 0.4, 0.4], 0.1, "helps", 6),  # may have been 0.5 before rounding
        ([0.3, 0.4, 0.3, 0.2, 0.3, 0.3], 0.1, "helps", 6),  # one may have been
        ([0.3, 0.3, 0.3, 0.2, 0.3, 0.3], 0.1, "no difference worth having", 6),
        ([-0.3, -0.3, -0.3, -0.2, -0.3, -0.3], 0.1, "no difference worth having", 6),
        ([0.0, 2.0, 0.0, 0.0, 0.0, 0.0], 1.0, "cannot tell yet", None),
        ([1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0], 1.0, "cannot tell yet", None),  # may be on any side of 0
        ([1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 1.0, "helps", 10),
        ([-1.0, -2.0, -1.0, -1.0, -1.0, -1.0], 1.0, "hurts", 6),
        ([1.0, 2.0, 1.0], 1.0, "cannot tell yet", 6),
        ([0.0, 1.0, 0.0], 1.0, "cannot tell yet", None),
    ],
)
def test_without_spread_every_seed_must_show_it_whatever_rounding_did(differences, step, verdict, seeds_needed):
    found = one(differences, rounded=step)
    assert (found.t_interval, found.verdict, found.seeds_needed) == (None, verdict, seeds_needed)


@pytest.mark.parametrize(("value", "p"), [(2.0, 2 / 2**6), (-2.0, 2 / 2**6), (0.0, 1.0)])
def test_what_stands_in_for_the_t_test_is_shown_corrected(value, p):
    found, _ = compare([[value] * 6, [0.3, -0.2, 0.1, 0.4, -0.3, 0.2]])
    assert (found.p_t, found.p_t_holm) == (None, min(2 * p, 1.0))


def test_a_gain_that_rounding_may_have_enlarged_says_that_it_may_be_small():
    words = "perhaps by less than the 0.5 points"
    assert words in one([0.6, 0.6, 0.6, 0.5, 0.6, 0.6], rounded=0.1).sentence
    assert words not in one([0.6, 0.7, 0.6, 0.6, 0.6, 0.6], rounded=0.1).sentence


def test_what_rounding_hides_is_not_called_the_same_with_each_seed():
    found = one([0.0, 2.0, 0.0, 0.0, 0.0, 0.0], rounded=1.0)
    assert found.sentence == (
        "Cannot tell yet: +0.33 points (0.00 to +2.00, 6 seeds), of which rounding leaves no spread to measure; "
        "more seeds like these would not settle it."
    )


def stored(right, images):
    """Percent of an accuracy as a run keeps it."""
    return round(100 * right / images, 4)


@pytest.mark.parametrize(
    ("images", "more", "right"),
    [(359, 3, (336, 337, 339)), (360, 2, (335, 336, 337)), (128, 2, (1, 2, 3))],  # the last: halves, rounded to even
)
def test_counts_that_rounding_alone_tells_apart_are_equal(images, more, right):
    differences = [stored(count + more, images) - stored(count, images) for count in right]
    assert np.ptp(differences) > 5e-5
    found = one(differences, rounded=STORED)
    assert (found.sd, found.t_interval, found.p_t, found.verdict) == (0.0, None, None, "cannot tell yet")
    assert one([*differences, *differences], rounded=STORED).bootstrap_interval is None
    differences[0] += 100 / 200_000  # an image of very many
    assert one(differences, rounded=STORED).t_interval is not None


def test_the_step_of_what_is_stored_is_that_of_the_metrics():
    third = replace(METRICS["top1"], compute=lambda predictions, classes: 1 / 3).measure(None, 3)
    assert third == round(100 / 3 / STORED) * STORED != round(10 / 3 / STORED) * 10 * STORED


def test_what_is_stored_gets_the_verdicts_of_what_was_counted():
    right = np.random.default_rng(0).binomial(359, 0.99, (200, 6, 3))
    for exact, kept in zip(100 * right / 359, np.round(100 * right / 359, 4), strict=True):
        found = judge(kept[1:] - kept[0], rounded=STORED)
        assert [one.verdict for one in found] == [one.verdict for one in judge(exact[1:] - exact[0])]


@pytest.mark.parametrize(("value", "verdict"), [(0.0, "no difference worth having"), (5.0, "helps"), (-5.0, "hurts")])
def test_equal_differences_of_six_seeds_decide(value, verdict):
    found = one([value] * 6)
    assert found.verdict == verdict
    assert found.p_sign_flip == (1.0 if value == 0 else 2 / 64)
    assert {c.verdict for c in compare([[value] * 6] * 2)} == {"cannot tell yet" if value else verdict}


@pytest.mark.parametrize(
    ("differences", "sentence"),
    [
        ([5.0] * 2, "Cannot tell yet: +5.00 points with each of 2 seeds, which leaves no spread to measure; "),
        ([5.0], "Cannot tell yet: +5.00 points with one seed, which says nothing of chance; "),
        ([5.0] * 6, "Helps: +5.00 points with each of 6 seeds, which leaves no spread to measure."),
    ],
)
def test_without_spread_the_sentence_says_why_there_is_no_interval(differences, sentence):
    assert one(differences).sentence.startswith(sentence)


@pytest.mark.parametrize(("differences", "said"), [(DIFFERENCES[:4], True), (DIFFERENCES, False), ([5.0] * 4, False)])
def test_the_table_says_why_a_bootstrap_interval_is_missing(differences, said):
    # Not where more seeds would not bring it: without spread there is none.
    words = STATISTICS["bootstrap_interval"].instead(one(differences))
    assert words == (f"from {FEW} seeds on" if said else None)


def test_verdicts_of_clear_cases():
    table = [
        [1.0, 1.2, 0.9, 1.1, 1.05],
        [-1.0, -1.2, -0.9, -1.1, -1.05],
        [0.1, 0.12, 0.09, 0.11, 0.1],
        [0.9, -0.8, 1.5, -2.0, 0.7],
    ]
    helps, hurts, nothing, unclear = compare(table)
    assert (helps.verdict, hurts.verdict) == ("helps", "hurts")
    assert nothing.verdict == "no difference worth having"
    assert nothing.t_interval[0] > 0
    assert "perhaps real, but less than the 0.5 points" in nothing.sentence
    assert unclear.verdict == "cannot tell yet"
    assert helps.sentence == "Helps: +1.05 points (95% +0.91 to +1.19, 5 seeds)."
    assert f"about {unclear.seeds_needed - 5} more seeds" in unclear.sentence


def test_a_few_wild_seeds_do_not_decide():
    found = one([1.0, 1.0, 1.05, 0.95, -0.2, -0.05])
    assert found.p_t < ALPHA < found.p_sign_flip
    assert found.verdict == "cannot tell yet"
    assert "a few seeds carry it" in found.sentence


@pytest.mark.parametrize(
    ("differences", "p"), [([1.0, 0.9, 1.1, 1.2, 0.8], 2 / 32), ([1.0, 0.9, 1.1, 1.2, 0.8, -0.05], 4 / 64)]
)
def test_the_sign_flip_test_is_not_asked_for_less_than_it_can_give(differences, p):
    found = one(differences)
    assert (found.p_sign_flip, found.verdict) == (p, "helps")


def test_the_table_is_corrected_for():
    weak = [1.0, 1.4, 0.6, 1.8, 0.4]
    assert one(weak).verdict == "helps"
    noise = [0.9, -0.8, 1.5, -2.0, 0.7]
    crowded = compare([weak, *[noise] * 9])[0]
    assert crowded.verdict == "cannot tell yet"
    assert "among 10 comparisons chance may do that" in crowded.sentence
    near = [0.2, -0.3, 0.35, -0.2, 0.1]
    assert one(near).verdict == "no difference worth having"
    assert compare([near, *[noise] * 9])[0].verdict == "cannot tell yet"


def test_a_gain_that_may_be_small_says_so():
    assert "perhaps by less than the 0.5 points" in one([1.0, 1.4, 0.4, 1.5, 0.4]).sentence
    exact = one([0.5] * 6)  # as much as is worth having, with no spread
    assert exact.verdict == "helps"
    assert "perhaps" not in exact.sentence
    assert exact.p_equivalent == 1


@pytest.mark.parametrize(
    ("differences", "inside"),
    [
        ([0.1, 0.35, -0.15, 0.3, -0.1], True),  # 95% -0.19 to 0.39
        ([0.2, 0.6, -0.15, 0.55, -0.1], False),  # 95% -0.21 to 0.65: only its lower end
        ([-0.2, -0.6, 0.15, -0.55, 0.1], False),  # only its upper end
        ([0.9, -0.8, 0.7, -0.9, 0.2], False),  # neither
    ],
)
def test_an_interval_is_within_the_margin_where_both_its_ends_are(differences, inside):
    found = compare([differences] + 9 * [[0.0, 1.0, -1.0]])[0]
    assert found.verdict == "cannot tell yet"
    low, high = found.t_interval
    assert low < 0 < high
    assert (low > -0.5 and high < 0.5) == inside
    assert ("within 0.5 points, but among 10 comparisons chance may do that" in found.sentence) == inside


def test_the_level_is_what_holm_leaves():
    clear, noise = [1.0, 1.2, 0.9, 1.1, 1.05], [0.9, -0.8, 1.5, -2.0, 0.7]
    found = compare([clear, noise, noise])
    assert [c.level for c in found] == pytest.approx([ALPHA / 3, ALPHA / 2, ALPHA / 2])


@pytest.mark.parametrize(("n", "shift", "level"), [(3, 4.0, 0.05), (5, 3.0, 0.05), (5, 5.0, 0.01), (30, 2.9, 0.025)])
def test_power_is_the_noncentral_ts(n, shift, level):
    critical = stats.t.isf(level / 2, n - 1)
    assert _power(shift, n - 1, level) == pytest.approx(stats.nct.sf(critical, n - 1, shift), abs=1e-3)


@pytest.mark.parametrize(
    ("mean", "sd", "n"), [(0.1, 0.1, 3), (0.0, 0.4, 10), (0.2, 0.3, 8), (0.4, 0.2, 20), (0.1, 1.0, 40)]
)
def test_the_power_of_equivalence_is_what_simulation_finds(mean, sd, n):
    values = np.random.default_rng(1).normal(mean, sd, (20_000, n))
    half = stats.t.isf(0.025, n - 1) * values.std(1, ddof=1) / math.sqrt(n)
    found = np.mean(np.abs(values.mean(1)) + half < 0.5)
    assert _equivalence_power(mean, sd, n, 0.5, 0.025) == pytest.approx(found, abs=0.01)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_smallest_detectable_difference_is_detected_four_times_in_five(n):
    values = np.random.default_rng(n).normal(0, 1, n)
    found = one(values)
    simulated = np.random.default_rng(1).normal(found.smallest_detectable, found.sd, (20_000, n))
    assert np.mean(stats.ttest_1samp(simulated, 0, axis=1).pvalue < ALPHA) == pytest.approx(0.8, abs=0.012)


@pytest.mark.parametrize(
    ("differences", "settled"),
    [
        ([1.2, -0.4, 1.9, 0.1, 0.9], "helps"),
        ([0.8, -0.6, 0.5, -0.5, 0.0], "no difference worth having"),
    ],
)
def test_the_seeds_needed_settle_it_four_times_in_five(differences, settled):
    found = one(differences)
    assert found.verdict == "cannot tell yet"
    assert found.n < found.seeds_needed <= EXACT_UP_TO
    rng = np.random.default_rng(2)
    for n, enough in ((found.seeds_needed, True), (round(0.7 * found.seeds_needed), False)):
        studies = rng.normal(found.mean, found.sd, (200, n))
        share = np.mean([judge([study])[0].verdict == settled for study in studies])
        assert (share > 0.73) == enough, (n, share)


def test_five_seeds_are_asked_for_at_least():
    found = one([1.0, 1.5, 0.65])
    assert found.verdict == "cannot tell yet"
    assert _power(found.mean / found.sd * math.sqrt(4), 3, ALPHA) > 0.8  # four would do if the spread were known
    assert found.seeds_needed == FEW


def test_absurd_numbers_of_seeds_are_not_counted():
    found = one([10.0, -10.0, 5.0, -4.0, 0.2])
    assert found.seeds_needed is None
    assert "more than 1000 seeds" in found.sentence


def test_an_interval_that_ends_a_hair_from_the_margin_shows_on_which_side():
    found = one([0.5 + 0.001 * x for x in (3, -2, 1, -1, 2)])
    assert found.sentence == (
        "Helps: +0.50 points (95% +0.498 to +0.503, 5 seeds); perhaps by less than the 0.5 points worth having."
    )
    assert [_Margin(0.0004, "").end(x) for x in (0.000404, -0.000396)] == ["+0.000404", "-0.000396"]
    assert [_Margin(0.05, "").end(x) for x in (0.0504, 0.06)] == ["+0.0504", "+0.06"]


def test_the_binomial_error_of_an_accuracy():
    assert binomial_se(70.0, 10_000) == pytest.approx(100 * stats.binom.std(10_000, 0.7) / 10_000)


def test_numbers_as_people_read_them():
    assert [points(x) for x in (0, 0.5, 12.345, 0.0123, 0.0999)] == ["0.00", "0.50", "12.35", "0.012", "0.10"]
    assert [with_sign(x) for x in (0.5, 0.0, -0.5)] == ["+0.50", "0.00", "-0.50"]
    assert [with_sign(x) for x in (-5e-05, 1.23e-06, 0.05)] == ["-0.00005", "+0.0000012", "+0.05"]
    rounding = float(np.mean([0.1, 0.2, -0.3]))  # of differences that cancel on paper
    assert rounding != 0
    assert [with_sign(x) for x in (rounding, -rounding, -0.0)] == ["0.00"] * 3


# How often the verdict is wrong: 1000 studies of 5 seeds and 5 attentions which all share the plain network's runs, so
# that their differences move together. Binomially, 5% of 1000 studies is 3.6% to 6.4%.

STUDIES, ATTENTIONS, SEEDS = 1000, 5, 5

NOISES = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy-tailed": lambda rng, shape: rng.standard_t(2, size=shape),
    "skewed": lambda rng, shape: -rng.lognormal(size=shape),
    "failing runs": lambda rng, shape: rng.normal(size=shape) - 10 * (rng.random(shape) < 0.1),
    "counts of few images": lambda rng, shape: rng.binomial(360, 0.99, size=shape) / 3.6,
}


def simulated(noise, difference=0.0, sd=1.0, seeds=SEEDS, seed=0):
    """Return the differences of many studies, (STUDIES, ATTENTIONS, seeds)."""
    rng = np.random.default_rng(seed)
    networks, plain = NOISES[noise](rng, (STUDIES, ATTENTIONS, seeds)), NOISES[noise](rng, (STUDIES, 1, seeds))
    return difference + sd * (networks - plain)


def shares(studies, worthwhile):
    """Return for each verdict in how many of the studies it is given at least once."""
    found = Counter(verdict for study in studies for verdict in {c.verdict for c in judge(study, worthwhile)})
    return {verdict: count / len(studies) for verdict, count in found.items()}


@pytest.mark.parametrize("noise", NOISES)
def test_attentions_that_do_nothing_rarely_help(noise):
    found = shares(simulated(noise), 0.0)
    assert found.get("helps", 0) <= 0.05
    assert found.get("hurts", 0) <= 0.05


@pytest.mark.parametrize("seeds", [3, 10])
def test_attentions_that_do_nothing_rarely_help_with_other_seeds(seeds):
    assert shares(simulated("normal", seeds=seeds), 0.0)["helps"] <= 0.05


@pytest.mark.parametrize(("noise", "sd"), [("normal", 0.1), ("normal", 0.3), ("heavy-tailed", 0.2)])
def test_what_is_worth_having_is_rarely_called_nothing(noise, sd):
    found = shares(simulated(noise, difference=0.51, sd=sd), 0.5)
    assert 0 < found["no difference worth having"] <= 0.06  # 5%, and what chance adds in 1000 studies


@pytest.mark.parametrize(("step", "sd"), [(STORED, STORED), (0.1, 0.05), (1.0, 0.1)])
@pytest.mark.parametrize("plain_sd", [0.0, 1.0])
def test_rounding_makes_nothing_of_what_is_worth_having_and_something_of_nothing(step, sd, plain_sd):
    rng = np.random.default_rng(0)
    level = rng.uniform(50, 90, (500, 1))
    network, plain = (level + scale * rng.normal(size=(500, 10)) for scale in (sd, plain_sd * sd))
    rounded = [step * np.round(values / step) for values in (network + 0.5, network, plain)]
    verdicts = [
        [judge([row], margin, step)[0].verdict for row in values - rounded[2]]
        for values, margin in zip(rounded, (0.5, 0.0), strict=False)
    ]
    assert verdicts[0].count("no difference worth having") <= 25
    assert len(verdicts[1]) - verdicts[1].count("cannot tell yet") <= 35  # 5%, and what chance adds in 500


def test_intervals_alone_would_call_it_nothing_more_often():
    studies = simulated("normal", difference=0.51, sd=0.3)
    within = [any(c.p_equivalent < ALPHA / 2 for c in judge(study)) for study in studies]
    assert np.mean(within) > 0.07


def test_a_real_gain_is_found():
    assert shares(simulated("normal", difference=1.0, sd=0.2)[:200], 0.5)["helps"] > 0.95


def test_t_intervals_cover():
    differences = simulated("normal")[:, 0]
    intervals = [found[0].t_interval for found in map(judge, differences[:, None])]
    assert np.mean([low <= 0 <= high for low, high in intervals]) == pytest.approx(0.95, abs=0.02)


def test_bootstrap_intervals_of_few_seeds_cover_less_as_the_docs_say():
    differences = simulated("normal")[:150, 0]
    intervals = [one(study).bootstrap_interval for study in differences]
    assert np.mean([low <= 0 <= high for low, high in intervals]) == pytest.approx(0.85, abs=0.08)
