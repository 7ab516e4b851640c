"""The table of results: each number is the study's own, each interval of study/statistics."""

import statistics

import pytest
from scipy import stats

from csham.errors import UserError
from csham.study.catalogue import read_results
from csham.training.config import resolve
from csham.training.run_folder import RunFolder


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    from study_cases import networks_of, write_study

    place = tmp_path_factory.mktemp("results")
    write_study(place / "deep" / "down", networks=networks_of("resnet20"), seeds=(0, 1, 2, 3), epochs=1)
    planned = write_study(place / "planned", networks=networks_of("resnet20"), epochs=1)
    (planned / "records.jsonl").unlink()
    return place


@pytest.mark.slow
def test_a_study_has_a_row_for_each_network_with_a_run(studies):
    from csham.report.study_report import write_report

    rows = read_results(studies)
    results = write_report(studies / "deep" / "down", studies / "report").results
    assert [row.result for row in rows] == ["deep/down"] * len(results.networks)
    for row, network in zip(rows, results.networks, strict=True):
        values = list(network.top1.values.values())
        assert row.seeds == len(values) == 4
        assert row.top1 == pytest.approx(statistics.fmean(values), abs=1e-4)
        low, high = stats.t.interval(0.95, 3, statistics.fmean(values), statistics.stdev(values) / 2)
        assert row.top1_interval == pytest.approx((low, high), abs=1e-3)
    found = {comparison.label: comparison for comparison in results.comparisons}
    for row, network in zip(rows, results.networks, strict=True):
        if network.label in found:
            assert row.difference == pytest.approx(found[network.label].mean, abs=1e-4)
            assert row.verdict == found[network.label].verdict
        else:
            assert (row.difference, row.verdict, row.cost) == (None, None, None)


def test_costs_are_over_the_plain_network(studies):
    from csham.study.overview import see_together

    rows = {row.attention: row.cost for row in read_results(studies / "deep") if row.cost is not None}
    expected = {one.variant: one.ratio for one in see_together([studies / "deep" / "down"]).costs if one.measured}
    assert rows
    assert {name: rows[name] for name in expected} == pytest.approx(expected, abs=1e-4)


def test_a_run_of_code_of_ones_own_is_listed_without_the_code(tmp_path):
    config = resolve({"data": "digits", "backbone": "my_net:make", "backbone_sha256": "a" * 64, "attention": "se"})
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.config_file.write_text(config.to_yaml())
    run.write_json("summary.json", {"top1": 60.0, "epochs": 3})
    run.write_json("environment.json", {})
    (row,) = read_results(tmp_path)
    assert (row.network, row.attention, row.top1) == ("my_net:make (code aaaaaaa)", "se", 60.0)
    run.config_file.write_text(config.to_yaml().replace("attention: se", "attention: [se]"))
    with pytest.raises(UserError, match=r"config\.yaml: "):
        read_results(tmp_path)


def test_one_study_is_a_folder_too(studies):
    assert {row.result for row in read_results(studies / "deep" / "down")} == {"down"}
