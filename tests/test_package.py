"""What is distributed: the page of a package index, and a source distribution that can test itself."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PAGE = (ROOT / PROJECT["readme"]).read_text(encoding="utf-8")


def test_the_links_of_the_page_need_nothing_around_it():
    links = re.findall(r"\]\(([^)]*)\)", PAGE)
    assert links
    assert [link for link in links if not link.startswith("https://")] == []


def test_the_pages_python_runs():
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(compile(block, "docs/package.md", "exec"), names)
    assert names["logits"].shape == (2, 100)


def test_the_paper_is_the_cited_one():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["preferred-citation"]["doi"]
    assert PROJECT["urls"]["Paper"] == f"https://doi.org/{cited}"
    assert PROJECT["urls"]["Paper"] in PAGE


@pytest.mark.slow
def test_the_source_distribution_holds_what_its_tests_and_pages_need(tmp_path):
    """Everything under version control but what only a repository needs."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not tracked:
        pytest.skip("this is no repository")
    for name in tracked:
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "source" / name)
    build = "import setuptools.build_meta as b, sys; print(b.build_sdist(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)],
        cwd=tmp_path / "source",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / done.stdout.splitlines()[-1]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    of_a_host = (".git", ".docker")
    assert {name for name in tracked if name not in held and not name.startswith(of_a_host)} == set()
