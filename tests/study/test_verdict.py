from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import csham
from csham.errors import UserError
from csham.study.results import assess
from csham.study.statistics import compare
from csham.study.store import Store
from csham.study.verdict import verdict

_STUDIES = sorted((Path(__file__).parents[2] / "results").glob("*/records.jsonl"))


def _runs(gains: dict[str, list[float]], **more: object) -> list[dict[str, object]]:
    """Rows of a plain variant and others with these gains over it, in percent."""
    rows = [{"name": "plain", "seed": seed, "top1": 70.0 + seed, **more} for seed in range(9)]
    for name, values in gains.items():
        rows += [{"name": name, "seed": s, "top1": 70.0 + s + gain, **more} for s, gain in enumerate(values)]
    return rows


_GOOD = [1.0, 1.2, 0.9, 1.1, 1.05, 0.95]
_NOTHING = [0.1, -0.1, 0.05, 0.0, -0.05, 0.1]


@pytest.mark.parametrize("records", _STUDIES, ids=lambda path: path.parent.name)
def test_a_studys_own_records_get_the_studys_verdicts(records: Path):
    store = Store(records.parent, note=lambda _: None)
    study = store.study
    expected = assess(study, store.by_key().values(), keys=[cell.key for cell in study.cells()])
    plain = [network.label for network in study.networks if network.plain]
    if len(plain) > 1:
        pytest.skip("one baseline in all")

    result = verdict(
        records, metric="result.top1", variant="label", baseline=plain[0], worthwhile=study.worthwhile, unit="percent"
    )

    (found,) = result.metrics
    assert [one.label for one in found.comparisons] == [one.label for one in expected.comparisons]
    for ours, theirs in zip(found.comparisons, expected.comparisons, strict=True):
        assert ours.verdict == theirs.verdict
        assert ours.sentence == theirs.sentence
        assert ours.p_t_holm == pytest.approx(theirs.p_t_holm, rel=1e-6)
        assert ours.t_interval == pytest.approx(theirs.t_interval, abs=1e-9)


def _write(path: Path, rows: list[dict[str, object]]) -> Path:
    columns = list(rows[0])
    if path.suffix == ".jsonl":
        text = "\n".join(json.dumps(row) for row in rows)
    elif path.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), path)
        return path
    else:
        delimiter = "\t" if path.suffix == ".tsv" else ","
        text = "\n".join(delimiter.join(str(value) for value in line) for line in [columns, *map(dict.values, rows)])
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["runs.csv", "runs.tsv", "runs.jsonl", "runs.parquet"])
def test_every_kind_of_table_says_the_same(tmp_path: Path, name: str):
    rows = _runs({"gate": _GOOD, "cbam": _NOTHING})

    found = verdict(_write(tmp_path / name, rows), metric="top1")
    frame = {column: [row[column] for row in rows] for column in rows[0]}

    assert found.metrics == verdict(rows, metric="top1").metrics == csham.verdict(frame, metric="top1").metrics
    assert [one.verdict for one in found.metrics[0].comparisons] == ["helps", "no difference worth having"]


def test_frames_of_libraries_are_tables():
    pyarrow = pytest.importorskip("pyarrow")
    rows = _runs({"gate": _GOOD})

    class Frame:  # as pandas has it
        def to_dict(self, orient: str) -> list[dict[str, object]]:
            assert orient == "records"
            return [{**row, "top1": np.float64(row["top1"]), "seed": np.int64(row["seed"])} for row in rows]

    expected = verdict(rows, metric="top1").metrics
    assert verdict(pyarrow.Table.from_pylist(rows), metric="top1").metrics == expected
    assert verdict(Frame(), metric="top1").metrics == expected


def test_fractions_of_one_are_shown_in_percent():
    rows = _runs({"gate": _GOOD})
    small = [{**row, "top1": row["top1"] / 100} for row in rows]

    percent, fraction = verdict(rows, metric="top1"), verdict(small, metric="top1")

    assert fraction.metrics[0].comparisons[0].mean == pytest.approx(percent.metrics[0].comparisons[0].mean)
    assert fraction.metrics[0].comparisons[0].verdict == "helps"
    assert "fractions of one" in " ".join(fraction.notes)
    assert not percent.notes[1:]
    assert verdict(small, metric="top1", unit="percent").metrics[0].comparisons[0].mean == pytest.approx(
        0.01033, abs=1e-4
    )
    with pytest.raises(UserError, match=r"fractions of one beside percent.*--unit top1=percent"):
        verdict([*rows, *small[9:]][:9] + small[9:], metric="top1")


@pytest.mark.parametrize(
    ("as_given", "rounded"),
    [
        (lambda right: round(right / 3.6, 2), 0.01),
        (lambda right: f"{right / 360:.4f}", 0.01),
        (lambda right: float(np.float32(right / 360)), 100 * 2.0**-24),
    ],
)
def test_gains_of_as_many_images_are_equal_however_accuracies_were_rounded(as_given, rounded: float):
    rows = [
        {"name": name, "seed": seed, "acc": as_given(right + more)}
        for name, more in (("plain", 0), ("gate", 1))
        for seed, right in enumerate((320, 317, 325, 322, 311))
    ]

    found = verdict(rows, metric="acc")

    (gate,) = found.metrics[0].comparisons
    assert len(set(gate.differences)) > 1
    assert found.metrics[0].measure.rounded == pytest.approx(rounded)
    assert (gate.verdict, gate.t_interval, gate.p_t) == ("cannot tell yet", None, None)
    assert f"acc was rounded to steps of {rounded:.2g}" in found.notes[-1]
    assert verdict(rows, metric="acc", rounded=0.0).metrics[0].comparisons[0].t_interval is not None


def test_runs_without_the_baselines_are_not_called_unmeasured():
    rows = [row for row in _runs({"gate": _GOOD, "late": [0.0] * 9}) if row["name"] != "late" or row["seed"] > 5]
    found = verdict([row for row in rows if row["name"] != "plain" or row["seed"] < 6], metric="top1")

    assert found.headline.endswith(" late cannot be compared with plain yet: no seed has both.")


def test_whole_numbers_are_counts():
    rows = [{**row, "wrong": 30 - round(10 * row["top1"] - 700)} for row in _runs({"gate": [0.1, 0.2, 0.1, 0.3, 0.2]})]

    found = verdict(rows, metric="wrong", lower_is_better="wrong", worthwhile=0.5)

    assert found.metrics[0].comparisons[0].differences == (1, 2, 1, 3, 2)
    assert found.metrics[0].comparisons[0].verdict == "helps"


@pytest.mark.parametrize("factor", [1, 0.01])
def test_whole_percents_are_rounded_unless_they_are_said_to_be_exact(factor: float):
    rows = [{"name": name, "seed": seed, "top1": 71 * factor} for name in ("plain", "gate") for seed in range(6)]

    found = verdict(rows, metric="top1")

    assert found.metrics[0].measure.rounded == pytest.approx(1)
    assert found.metrics[0].comparisons[0].verdict == "cannot tell yet"
    exact = verdict(rows, metric="top1", rounded=0)
    assert exact.metrics[0].comparisons[0].verdict == "no difference worth having"
    notes = [any("--rounded 0 if they are exact" in note for note in result.notes) for result in (found, exact)]
    assert notes == [factor == 1, False]


def test_lower_is_better_where_it_is_said():
    rows = [{**row, "val_loss": 5 - row["top1"] / 100} for row in _runs({"gate": _GOOD})]

    with pytest.raises(UserError, match="is lower better for val_loss"):
        verdict(rows, metric="val_loss")
    for name in ("wer", "test/CER", "val_nll", "ppl.test", "ECE"):
        with pytest.raises(UserError, match="is lower better for"):
            verdict([{**row, name: 0.2} for row in rows], metric=name)
    assert verdict([{**row, "power": row["top1"]} for row in rows], metric="power").metrics  # although it has wer in it
    with pytest.raises(UserError, match=r"worth having.*--worthwhile val_loss=NUMBER"):
        verdict(rows, metric="val_loss", lower_is_better="val_loss")
    found = verdict(rows, metric="val_loss", lower_is_better="val_loss", worthwhile=0.002)
    other = verdict(rows, metric="val_loss", higher_is_better="val_loss", worthwhile=0.002, unit="plain")

    (gate,), (opposite,) = found.metrics[0].comparisons, other.metrics[0].comparisons
    assert (gate.verdict, opposite.verdict) == ("helps", "hurts")
    assert gate.mean == pytest.approx(-opposite.mean)
    assert "points" not in gate.sentence + found.headline
    assert "+0.01 (95%" in gate.sentence


def test_the_correction_goes_over_all_metrics_and_groups():
    rows = [*_runs({"gate": _GOOD, "cbam": _NOTHING}, on="a"), *_runs({"gate": _NOTHING, "cbam": _GOOD}, on="b")]
    rows = [{**row, "other": row["top1"] + (row["name"] == "gate") * 0.001 * row["seed"]} for row in rows]

    found = verdict(rows, metric=["top1", "other"], groups="on")

    comparisons = [one for metric in found.metrics for one in metric.comparisons]
    assert len(comparisons) == 8
    expected = compare([one.differences for one in comparisons])
    assert [one.p_t_holm for one in comparisons] == [one.p_t_holm for one in expected]
    assert [(one.backbone, one.name) for one in found.metrics[0].comparisons[:2]] == [("a", "gate"), ("a", "cbam")]
    assert found.headline.startswith("top1: ")
    assert "gate helps a" in found.headline
    assert "cbam helps b" in found.headline


def test_a_gain_worth_having_differs_by_metric():
    rows = [{**row, "ap": row["top1"]} for row in _runs({"gate": _NOTHING})]

    found = verdict(rows, metric=["top1", "ap"], worthwhile={"top1": 0.5, "ap": 0.01})

    assert [metric.comparisons[0].verdict for metric in found.metrics] == [
        "no difference worth having",
        "cannot tell yet",
    ]
    assert "0.5 points" in found.metrics[0].headline


def test_runs_without_a_partner_or_a_number_are_left_out_and_said():
    rows = _runs({"gate": [*_GOOD, 3.0]})
    rows[6]["top1"] = ""  # plain, seed 6
    rows += [{"name": "gate", "seed": 20, "top1": 99.0}]

    found = verdict(rows, metric="top1")

    (gate,) = found.metrics[0].comparisons
    assert gate.seeds == tuple("012345")
    assert "1 run without top1 left out: plain, seed 6." in found.notes
    (alone,) = [note for note in found.notes if "without a partner" in note]
    assert alone.startswith("4 runs without a partner of the same seed left out: plain, seed 7; plain, seed 8; gate, ")
    assert "gate, seed 6; gate, seed 20" in alone


def test_a_partner_may_lack_one_metric_and_have_another():
    rows = [{**row, "map": row["top1"]} for row in _runs({"gate": [1.0 + s / 10 for s in range(9)]})]
    rows[3]["map"] = "nan"

    found = verdict(rows, metric=["top1", "map"])

    assert "1 run without a partner of the same seed in map left out: gate, seed 3." in found.notes
    assert [metric.comparisons[0].n for metric in found.metrics] == [9, 8]


def test_repeated_rows_count_once_and_contradictions_are_refused():
    rows = _runs({"gate": _GOOD})

    again = verdict([*rows, dict(rows[0])], metric="top1")
    assert again.metrics == verdict(rows, metric="top1").metrics
    assert "1 row repeated another and counted once." in again.notes
    with pytest.raises(UserError, match=r"two runs of plain, seed 0, with different numbers: row 1 and row 16"):
        verdict([*rows, {**rows[0], "top1": 71.5}], metric="top1")


def test_one_seed_is_one_however_it_is_written():
    rows = _runs({"gate": _GOOD})
    mixed = [{**row, "seed": float(row["seed"]) if row["name"] == "gate" else str(row["seed"])} for row in rows]

    assert verdict(mixed, metric="top1").metrics[0].comparisons[0].n == 6


@pytest.mark.parametrize("kind", [int, np.int64, Decimal])
def test_large_seeds_stay_apart(kind: type):
    rows = [{**row, "seed": kind(2**62 + row["seed"])} for row in _runs({"gate": _GOOD})]

    assert verdict(rows, metric="top1").metrics[0].comparisons[0].seeds == tuple(str(2**62 + s) for s in range(6))


def test_decimal_numbers_are_numbers():
    rows = _runs({"gate": _GOOD})
    exact = [{**row, "seed": Decimal(row["seed"]), "top1": Decimal(f"{row['top1']:.2f}")} for row in rows]

    assert verdict(exact, metric="top1").metrics == verdict(rows, metric="top1").metrics


def test_json_lines_as_python_writes_them(tmp_path: Path):
    rows = [{**row, "top1": float("nan") if row["seed"] == 2 else row["top1"]} for row in _runs({"gate": _GOOD})]
    rows = [{**row, "note": 'NaN, "Infinity"'} for row in rows]

    found = verdict(_write(tmp_path / "runs.jsonl", rows), metric="top1")

    assert found.metrics == verdict(rows, metric="top1").metrics
    assert "2 runs without top1 left out: plain, seed 2; gate, seed 2." in found.notes
    rows[0]["top1"] = -float("inf")
    with pytest.raises(UserError, match=r"line 1 of .*'-Infinity', which is no finite number"):
        verdict(_write(tmp_path / "runs.jsonl", rows), metric="top1")


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "holds no runs"),
        (_runs({}), {}, "one variant only, plain"),
        (_runs({"gate": _GOOD}), {"metric": "top"}, r"unknown column of the table 'top'\. Did you mean 'top1'"),
        (_runs({"gate": _GOOD}), {"seed": "fold"}, "unknown column of the table 'fold'"),
        (_runs({"gate": _GOOD}), {"baseline": "plane"}, "Did you mean 'plain'"),
        (_runs({"gate": _GOOD}), {"worthwhile": {"top": 1.0}}, "unknown metric 'top'"),
        (_runs({"gate": _GOOD}), {"worthwhile": -1.0}, "worthwhile of top1 must be 0, or"),
        (_runs({"gate": _GOOD}), {"worthwhile": "0.5"}, "worthwhile of top1 must be 0, or"),
        (_runs({"gate": _GOOD}), {"rounded": -1}, "rounded must be a step"),
        (_runs({"gate": _GOOD}), {"rounded": float("nan")}, "rounded must be a step"),
        (_runs({"gate": _GOOD}), {"metric": 0}, "unknown column of the table"),
        ({"name": "gate", "seed": 0, "top1": 71}, {}, r"column 'name' .* a list of values"),
        ({"name": ["plain", "gate"], "seed": 0, "top1": [71, 72]}, {}, r"column 'seed' .* a list of values"),
        (_runs({"gate": _GOOD}), {"unit": "permille"}, "unknown unit 'permille'"),
        (_runs({"gate": _GOOD}, model="r18"), {}, r"which column names the variants.*name or model"),
        ([{**row, "name": row["name"] + "1"} for row in _runs({"gate": _GOOD})], {}, "which variant are the others"),
        ([*_runs({"gate": _GOOD}), {"name": "gate", "seed": 8, "top1": "71,5"}], {}, r"row 16 .*'71,5', which is no"),
        ([*_runs({"gate": _GOOD}), {"name": "gate", "seed": 8, "top1": float("inf")}], {}, "no finite number"),
        ([*_runs({"gate": _GOOD}), {"name": "gate", "seed": "", "top1": 71}], {}, "row 16 of the table has no seed"),
        ([*_runs({"gate": _GOOD}), {"name": "gate", "seed": "NA", "top1": 71}], {}, "row 16 of the table has no seed"),
        ([{**row, "seed": f"{row['name']}{row['seed']}"} for row in _runs({"gate": _GOOD})], {}, "shares a seed"),
        ([{**row, "top1": True} for row in _runs({"gate": _GOOD})], {}, "no finite number"),
        (5, {}, "a table is a path"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_refused_with_the_reason(rows: object, options: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        verdict(rows, **{"metric": "top1", **options})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("runs.csv", b"name,seed,seed\na,1,2\n", "several columns named 'seed'"),
        ("runs.csv", b"name,seed\na,1,2\n", "line 2 of .* has 3 columns"),
        ("runs.jsonl", b'{"name": "plain"\n', "line 1 of .* is no JSON"),
        ("runs.jsonl", b"[1]\n", "line 1 of .* should be an object"),
        ("runs.jsonl", b'{"a": ' * 100_000, "nested too deeply"),
        ("runs.parquet", b"PAR1", "cannot be read as Parquet"),
        ("runs.xlsx", b"", r"no table that can be read here\. Known endings: \.csv"),
    ],
)
def test_damaged_tables_are_refused_by_name(tmp_path: Path, name: str, content: bytes, message: str):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)

    with pytest.raises(UserError, match=message):
        verdict(tmp_path / name, metric="top1", variant="name")
    with pytest.raises(UserError, match="no file"):
        verdict(tmp_path / "none.csv", metric="top1")


@given(
    st.dictionaries(st.integers(0, 30), st.floats(1, 99, allow_nan=False), min_size=2, max_size=9),
    st.dictionaries(st.integers(0, 30), st.floats(1, 99, allow_nan=False), min_size=2, max_size=9),
    st.randoms(),
)
def test_the_order_of_rows_changes_nothing_and_pairs_are_the_shared_seeds(plain, gate, random):
    rows = [{"name": "plain", "seed": s, "x": v} for s, v in plain.items()]
    rows += [{"name": "gate", "seed": s, "x": v} for s, v in gate.items()]
    shared = plain.keys() & gate.keys()
    if not shared:
        with pytest.raises(UserError, match="shares a seed"):
            verdict(rows, metric="x", unit="percent")
        return
    found = verdict(rows, metric="x", unit="percent").metrics[0].comparisons[0]
    random.shuffle(rows)
    again = verdict(rows, metric="x", unit="percent").metrics[0].comparisons[0]

    assert set(found.seeds) == set(map(str, shared))
    assert (found.mean, found.verdict, found.t_interval) == (again.mean, again.verdict, again.t_interval)
    assert found.mean == pytest.approx(np.mean([gate[s] - plain[s] for s in shared]), abs=1e-6)


def test_json_holds_every_number_and_no_nan():
    found = verdict(_runs({"gate": _GOOD, "alone": []}), metric="top1").to_dict()

    text = json.dumps(found, allow_nan=False)
    assert json.loads(text)["metrics"][0]["comparisons"][0]["variant"] == "gate"


# Gains over plain in percent, with one decimal: what lies within 2.5 steps has no spread.
_COARSE = {"plain": (92.1, 92.3, 92.0, 92.2, 92.4, 92.1), "cbam": (92.5, 92.9, 92.4, 92.7, 92.8, 92.6)}


def _listed(values: dict[str, tuple[float, ...]]) -> list[dict[str, object]]:
    return [
        {"name": name, "seed": seed, "top1": top1} for name, tops in values.items() for seed, top1 in enumerate(tops)
    ]


def test_coarse_gains_about_the_margin_are_not_called_none():
    found = verdict(_listed(_COARSE), metric="top1")

    assert found.headline == "cbam helps: +0.47 points (+0.40 to +0.60, 6 seeds)."
    assert "perhaps by less than the 0.5 points worth having" in found.metrics[0].comparisons[0].sentence


def test_a_headline_says_what_lies_within_the_margin():
    plain, gate = _COARSE["plain"], tuple(top1 + 0.1 for top1 in _COARSE["plain"])
    spread = tuple(top1 + gain for top1, gain in zip(plain, (0.3, -0.2, 0.2, 0.0, -0.1, 0.1), strict=True))

    def words(**variants: tuple[float, ...]) -> str:
        return verdict(_listed({"plain": plain, **variants}), metric="top1").headline

    assert words(gate=gate) == "gate makes no difference worth having (every seed within ±0.5 points)."
    assert words(cbam=spread) == "cbam makes no difference worth having (95% within ±0.5 points)."
    both = words(gate=gate, cbam=spread)
    assert both == "gate and cbam make no difference worth having (95%, or every seed, within ±0.5 points)."


@pytest.mark.parametrize(("low", "high"), [(-1, 5), (0, 150)])
def test_what_is_neither_a_fraction_nor_percent_has_a_unit_of_its_own(low: float, high: float):
    rows = _listed({"plain": (low, 3, 4, 4), "gate": (2, 4, 5, high)})

    with pytest.raises(UserError, match=r"how large a gain of top1 would be worth having"):
        verdict(rows, metric="top1")
    assert verdict(rows, metric="top1", worthwhile=1.0).metrics[0].measure.unit == "plain"


@pytest.mark.parametrize(("highest", "unit"), [(1, "fraction"), (100, "percent")])
def test_the_ends_of_a_unit_are_in_it(highest: float, unit: str):
    lowest = 0 if unit == "fraction" else 2
    rows = _listed({"plain": (lowest, highest / 3, highest), "gate": (highest / 2, highest, highest)})

    assert verdict(rows, metric="top1").metrics[0].measure.unit == unit


def test_values_of_fractions_are_in_percent_too():
    rows = _runs({"gate": _GOOD})
    small = [{**row, "top1": row["top1"] / 100} for row in rows]

    percent, fraction = (verdict(table, metric="top1").metrics[0].values for table in (rows, small))

    assert fraction["", "gate"].mean == pytest.approx(percent["", "gate"].mean)
    assert fraction["", "gate"].values["0"] == pytest.approx(71.0)


def test_the_step_of_a_fraction_is_given_as_the_table_has_it():
    small = [{**row, "top1": row["top1"] / 100} for row in _runs({"gate": [0.1, 0.2, 0.1, 0.2, 0.1, 0.2]})]

    (found,) = verdict(small, metric="top1", rounded=0.001).metrics

    assert found.measure.rounded == pytest.approx(0.1)
    assert found.comparisons[0].t_interval is None


@pytest.mark.parametrize("name", ["plain", "none", "baseline", "vanilla", "base", "control"])
def test_a_baseline_is_known_by_its_name(name: str):
    rows = [{**row, "name": row["name"].replace("plain", name.upper())} for row in _runs({"gate": _GOOD})]

    assert verdict(rows, metric="top1").baseline == name.upper()


@pytest.mark.parametrize("column", ["variant", "name", "model", "attention", "label", "method"])
def test_the_column_of_variants_is_known_by_its_name(column: str):
    rows = [{column.title(): row["name"], "seed": row["seed"], "top1": row["top1"]} for row in _runs({"gate": _GOOD})]

    assert [one.name for one in verdict(rows, metric="top1").metrics[0].comparisons] == ["gate"]


@pytest.mark.parametrize("word", ["", "na", "n/a", "nan", "null", "none", "-", "<na>", "nat"])
def test_a_run_without_a_number_is_known_by_the_word_in_its_place(word: str):
    rows = [*_runs({"gate": _GOOD}), {"name": "gate", "seed": 6, "top1": f" {word.upper()} "}]

    assert verdict(rows, metric="top1").metrics[0].comparisons[0].n == 6


_LOW = """
    loss err rmse mae mse fid perplexity latency ms seconds time memory params flops wer cer eer nll ppl brier ece lpips
"""


@pytest.mark.parametrize("name", _LOW.split())
def test_metrics_of_which_less_is_usually_better_ask_for_a_direction(name: str):
    rows = [{**row, f"val_{name}": row["top1"]} for row in _runs({"gate": _GOOD})]

    with pytest.raises(UserError, match=f"is lower better for val_{name}"):
        verdict(rows, metric=f"val_{name}")


def test_margins_smaller_than_numbers_are_kept_are_refused():
    rows = _runs({"gate": _GOOD})

    assert verdict(rows, metric="top1", worthwhile=1e-6).metrics[0].measure.worthwhile == 1e-6
    assert verdict(rows, metric="top1", worthwhile=0.0).metrics[0].measure.worthwhile == 0
    with pytest.raises(UserError, match="worthwhile of top1 must be 0, or"):
        verdict(rows, metric="top1", worthwhile=0.5e-6)


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_what_spreadsheets_put_around_a_table_is_no_part_of_it(tmp_path: Path, delimiter: str):
    rows = _runs({"gate": _GOOD})
    lines = [["name", "seed", "top1", "", ""], *([*map(str, row.values()), "", ""] for row in rows)]
    table = tmp_path / "runs.csv"
    table.write_text("\r\n".join([f"sep={delimiter}", *(delimiter.join(line) for line in lines)]), encoding="utf-8-sig")

    assert verdict(table, metric="top1").metrics == verdict(rows, metric="top1").metrics
    table.write_text(table.read_text(encoding="utf-8-sig") + delimiter, encoding="utf-8")
    with pytest.raises(UserError, match=r"line 17 of .* has 6 columns"):
        verdict(table, metric="top1")
