"""What is distributed: the page of a package index, wheels, and a source distribution that can test itself."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
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
    with tarfile.open(built("sdist", tmp_path / "source", tmp_path)) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    of_a_host = (".git", ".docker")
    assert {name for name in tracked if name not in held and not name.startswith(of_a_host)} == set()


@pytest.mark.slow
def test_a_wheel_is_for_one_kind_of_machine_where_it_has_kernels_and_else_for_all(tmp_path):
    shutil.copytree(ROOT / "src", tmp_path / "source/src", ignore=shutil.ignore_patterns("__pycache__", "ready"))
    for name in ("pyproject.toml", "setup.py", "LICENSE", PROJECT["readme"]):
        (tmp_path / "source" / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "source" / name)
    for_all = built("wheel", tmp_path / "source", tmp_path)
    assert for_all.name == f"csham-{PROJECT['version']}-py3-none-any.whl"
    assert "csham/ops/cpu/scale.cpp" in zipfile.ZipFile(for_all).namelist()
    assert not [name for name in zipfile.ZipFile(for_all).namelist() if "ready/" in name]
    (tmp_path / "ready").mkdir()
    (tmp_path / "ready/csham_kernels.so").write_bytes(b"kernels")
    for_one = built("wheel", tmp_path / "source", tmp_path, CSHAM_READY_KERNELS=str(tmp_path / "ready"))
    assert for_one.name == f"csham-{PROJECT['version']}-py3-none-manylinux_2_28_x86_64.whl"
    assert zipfile.ZipFile(for_one).read("csham/ops/cpu/ready/csham_kernels.so") == b"kernels"


def built(kind, source, place, **environment):
    build = f"import setuptools.build_meta as b, sys; print(b.build_{kind}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(place)],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return place / done.stdout.splitlines()[-1]
