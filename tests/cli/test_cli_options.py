"""Options come from the fields of settings: their words, types, names and what completes them."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
import yaml
from typer.main import get_command

from csham.attach.names import STRATEGIES
from csham.backbones.spec import NetworkSpec
from csham.cli.commands import app
from csham.cli.options import takes_settings
from csham.errors import UserError
from csham.settings import Auto, Help, OneOf, Settings, declared
from csham.study.study_file import read_study
from csham.training.config import DataSettings, MachineSettings, TrainingSettings
from csham.training.recipes import RECIPES

CLASSES = (NetworkSpec, TrainingSettings, DataSettings, MachineSettings)
HELPS = {
    (cls, field): rule
    for cls in CLASSES
    for field, (_, rules) in declared(cls).items()
    for rule in rules
    if isinstance(rule, Help)
}


@functools.cache
def all_commands():
    return get_command(app).commands


@dataclass(frozen=True, kw_only=True)
class Kiln(Settings):
    """Settings of a kiln."""

    panel = "Kiln"

    heat: Annotated[float, Help("Of the air.", default="from the recipe")] = 900.0
    hours: Annotated[int | Auto, Help("Of burning.")] = 3
    fan: Annotated[bool | Auto, Help("Move the air.", default="where it pays")] = "auto"
    cones: Annotated[tuple[int, ...] | None, Help("Which, with commas.", default="all")] = None
    shelves: Annotated[tuple[str, ...] | None, Help("Which, with commas.")] = None
    glaze: Annotated[str, OneOf(("raku", "salt")), Help("On the pots.", plural="glazes")] = "salt"
    shelf: Annotated[int, Help("The lowest.", plural="several")] = 0
    brand: Annotated[str, Help("Of the maker.", option=False)] = "none"


def kiln(**more: Any) -> Any:
    """Make a command that has the settings of a kiln, and returns what it was given."""
    seen: list[dict[str, Any]] = []

    def burn(pots: int = 1, *, settings: dict[str, Any], loud: bool = False) -> None:
        seen.append(settings)

    one = typer.Typer()
    one.command()(takes_settings(Kiln, **more)(burn))

    def call(*words: str) -> Any:
        seen.clear()
        get_command(one)(args=list(words), standalone_mode=False)
        return seen[0]

    call.command = get_command(one)
    return call


def parameters(command: Any) -> dict[str, Any]:
    return {name: each for each in command.params for name in each.opts}


def test_a_field_is_an_option_with_its_type_its_words_and_its_default():
    burn = kiln()
    words = "--pots 2 --heat 850 --hours 2 --no-fan --cones 6,10 --shelves top,low"
    assert burn(*words.split()) == {
        "heat": 850.0, "hours": 2, "fan": False, "cones": (6, 10), "shelves": ("top", "low"),
    }  # fmt: skip
    assert burn() == {}
    options = parameters(burn.command)
    assert [name for name, each in options.items() if each.hidden] == ["--glazes", "--several"]
    assert "--brand" not in options
    shown = {name: (each.help, each.show_default, each.rich_help_panel) for name, each in options.items()}
    assert shown["--heat"] == ("Of the air.", "from the recipe", "Kiln")
    assert shown["--hours"] == ("Of burning.", "3", "Kiln")
    assert shown["--shelves"] == ("Which, with commas.", "none", "Kiln")
    assert "    heat: Of the air.\n" in Kiln.__doc__


def test_one_or_several_by_either_name():
    assert kiln()("--glazes", "raku", "--several", "3") == {"glaze": "raku", "shelf": 3}
    assert kiln()("--glaze", "raku@heat=9,hours=3") == {"glaze": "raku@heat=9,hours=3"}
    many = kiln(several={"glazes": Help("Some of them.", default="salt,raku")})
    assert many("--glazes", "raku, salt,raku") == many("--glaze", "raku,salt") == {"glaze": ("raku", "salt")}
    glazes = parameters(many.command)["--glazes"]
    assert (glazes.help, glazes.show_default, glazes.hidden) == ("Some of them.", "salt,raku", False)
    assert parameters(many.command)["--glaze"].hidden


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--glaze raku,salt", "--glaze takes one here, got 'raku,salt'. Several: csham compare does that."),
        ("--several 1,2", "--several takes one here, got '1,2'"),
        ("--shelf low", "--shelf must be a whole number, got 'low'."),
        ("--glaze ,", "--glaze names nothing."),
        ("--cones six", "--cones takes whole numbers with commas between them, got 'six'."),
        ("--glaze raku --glazes salt", "--glaze and --glazes are the same option. Give it once."),
    ],
)
def test_what_cannot_be_one_setting(words, message):
    with pytest.raises(UserError) as caught:
        kiln()(*words.split())
    assert message in str(caught.value)


@pytest.mark.parametrize("command", ["train", "compare"])
@pytest.mark.parametrize(("cls", "field"), HELPS)
def test_every_setting_of_a_run_is_an_option_in_its_own_words(command, cls, field):
    words = HELPS[cls, field]
    options = parameters(all_commands()[command])
    flag = f"--{field.replace('_', '-')}"
    assert (flag in options) == words.option
    if not words.option:
        return
    assert (words.plural == "") or f"--{words.plural}" in options
    if not words.plural:
        assert (options[flag].help, options[flag].rich_help_panel) == (words.text, cls.panel)


@pytest.mark.parametrize(
    ("command", "shown", "hidden"),
    [
        ("train", "backbone attention strategy seed", "backbones attentions strategies seeds"),
        ("compare", "backbones attentions strategies seeds", "backbone attention strategy seed"),
        ("profile", "backbone attention strategy", "backbones attentions strategies"),
    ],
)
def test_help_shows_the_usual_name_and_the_other_is_understood(command, shown, hidden):
    options = parameters(all_commands()[command])
    assert not any(options[f"--{name}"].hidden for name in shown.split())
    assert all(options[f"--{name}"].hidden for name in hidden.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--backbones resnet20,lenet5",
            "--backbones takes one here, got 'resnet20,lenet5'. Several: csham compare does that",
        ),
        ("--attentions se,eca", "--attentions takes one here"),
        ("--seeds 0,1", "--seeds takes one here, got '0,1'"),
        (
            "--seeds 3",
            "--seeds 3 is how many, and one run has one. Several: csham compare does that. --seed 3 is number 3",
        ),
        ("--strategies tranfer", "unknown strategy 'tranfer'. Did you mean 'transfer'"),
    ],
)
def test_training_takes_one(csham, words, message):
    code, out, err = csham("train", "digits", *words.split())
    assert (code, out) == (2, "")
    assert message in err


def test_training_by_the_plural_names(csham, small, tmp_path):
    words = [word if word != "--backbone" else "--backbones" for word in small]
    assert csham(*words, "--attentions", "se", "--seeds", "1", "--run", tmp_path / "run")[0] == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["backbone"], config["attention"], config["seed"]) == ("resnet20", "se", 0)


def test_comparing_by_the_singular_names(csham, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = (
        "--backbone lenet5 --attention csham:reversed,csham --strategy sequential --seed 3 --epochs 1 --precision fp32"
    )
    # Stopped by an engine that cannot be begun, once the study is written.
    monkeypatch.setattr("csham.study.run.run_local", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert csham("compare", images, *words.split(), "--study", "one", "--quiet")[0] == 130
    study = read_study(Path("one"))
    labels = [network.label for network in study.networks]
    assert labels == ["lenet5", "lenet5 + csham (reversed)", "lenet5 + csham"]
    assert study.seeds == (3,)  # that one, as csham train takes it
    code, _, err = csham("compare", images, "--seeds", "3", "--seed", "3")
    assert code == 2
    assert "--seeds and --seed are the same option" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "digits", "--recipe", ""], set(RECIPES)),
        (["train", "--strategy", "tr"], {name for name in STRATEGIES if name.startswith("tr")}),
        (
            ["compare", "--attentions", "se,csh"],
            {"se,csham", "se,csham_linear", "se,csham_channel", "se,csham_spatial"},
        ),
        (["profile", "--position", "po"], {"post"}),
    ],
)
def test_the_shell_completes_names(words, expected):
    line = {
        "COMP_WORDS": " ".join(["csham", *words]),
        "COMP_CWORD": str(len(words)),
        "_CSHAM_COMPLETE": "complete_bash",
    }
    done = subprocess.run(
        [sys.executable, "-m", "csham"], env=os.environ | line, capture_output=True, text=True, check=False
    )
    assert set(done.stdout.split()) == expected, done.stderr
