"""What the package says of versions is what is tested."""

import re
import tomllib
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def lower_bounds():
    """The lower bound of every package that is asked for, by name; the app is not in the lowest environment."""
    extras = {name: asked for name, asked in PROJECT["optional-dependencies"].items() if name != "app"}
    asked = chain(PROJECT["dependencies"], *extras.values())
    requirements = [Requirement(words) for words in asked]
    return {
        requirement.name: Version(specifier.version)
        for requirement in requirements
        for specifier in requirement.specifier
        if specifier.operator == ">="
    }


def test_lower_bounds_are_the_versions_of_the_lowest_environment():
    pins = re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "constraints-lowest.txt").read_text(), re.MULTILINE)
    tested = {}
    for name, version in pins:
        tested.setdefault(name, Version(version))  # several where they depend on Python's; the lowest Python's leads
    bounds = lower_bounds()
    assert {name: tested[name] for name in bounds} == bounds


def test_pythons_are_the_same_everywhere():
    pythons = "Programming Language :: Python :: "
    claimed = [words.removeprefix(pythons) for words in PROJECT["classifiers"] if words.startswith(pythons)]
    assert PROJECT["requires-python"] == f">={claimed[0]}"
    tested = f"tested on {', '.join(claimed[:-1])} and {claimed[-1]}"
    words = (ROOT / "README.md").read_text()
    assert f"{claimed[0]} or later ({tested}), torch {lower_bounds()['torch']} or later" in words
    assert f"Python {claimed[0]} or later" in (ROOT / "docs/package.md").read_text()
