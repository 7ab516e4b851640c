"""Without pytorch-grad-cam: ours works, and the others say what to install before anything long begins."""

from pathlib import Path

import pytest

from csham.cli import main
from csham.errors import UserError
from csham.explain import explain, measure_faithfulness
from csham.explain.methods import METHODS, OWN, find_method


@pytest.fixture(autouse=True)
def not_installed(monkeypatch):
    monkeypatch.setattr("csham.explain.methods.find_spec", lambda name: None)


def test_ours_needs_no_library():
    assert find_method("gradcam").title == "Grad-CAM"


@pytest.mark.parametrize("method", ["gradcam++", "eigencam"])
def test_the_others_name_the_extra(method):
    with pytest.raises(
        UserError, match=rf'--method {method}.*Install it: pip install "csham\[cam\]"'.replace("+", r"\+")
    ):
        find_method(method)
    with pytest.raises(UserError, match="csham"):
        explain(None, [], method=method)


def test_road_names_the_extra():
    with pytest.raises(UserError, match=r"ROAD needs pytorch-grad-cam.*csham\[cam\]"):
        measure_faithfulness([], [], road=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "layercam"], '--method layercam needs pytorch-grad-cam. Install it: pip install "csham[cam]".'),
        (["--method", "layercm"], "unknown method 'layercm'. Did you mean 'layercam'"),
        (["--road", "--samples", "2"], "--road needs pytorch-grad-cam"),
    ],
)
def test_on_the_command_line_before_the_run_is_read(capsys, words, message):
    assert main(["explain", "no-such-run", "no-such.png", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_pages_table_is_the_declaration():
    page = (Path(__file__).parents[2] / "docs/explain.md").read_text(encoding="utf-8")
    for name, method in METHODS.items():
        remark = "" if method.of_class else "the same for every class"
        row = f"| `{name}` | {method.title} | {method.source} | {remark} |"
        assert (row in page) == (name != OWN), row
