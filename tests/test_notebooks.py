"""The notebooks run from their first cell to their last, and their committed outputs are what they print."""

from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", ["quickstart", "your_own_attention"])
def test_a_notebook_runs(name, tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert [kinds(cell) for cell in notebook.cells] == [
        kinds(cell) for cell in nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4).cells
    ]


def kinds(cell):
    """The kinds of a cell's outputs, without warnings: numbers differ from machine to machine."""
    return [one.get("name") or sorted(one["data"]) for one in cell.get("outputs", []) if one.get("name") != "stderr"]


def test_every_notebook_is_small_and_has_been_run():
    nbformat = pytest.importorskip("nbformat")
    for path in EXAMPLES.glob("*.ipynb"):
        assert path.stat().st_size < 500_000
        for cell in nbformat.read(path, as_version=4).cells:
            assert cell.cell_type != "code" or cell.execution_count
            assert all(one.get("name") != "stderr" for one in cell.get("outputs", []))
