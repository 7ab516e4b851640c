"""What is said of a name that nobody has."""

import pytest

from csham.attach.names import STRATEGIES
from csham.errors import UserError, known_names, unknown_name
from csham.layers.names import ATTENTIONS
from csham.training import RECIPES


@pytest.mark.parametrize(
    ("kind", "name", "choices", "message"),
    [
        (
            "attention",
            "cshan",
            ATTENTIONS,
            "unknown attention 'cshan'. Did you mean 'csham' or 'scsa' or 'csham_linear'? "
            "csham list attentions shows all.",
        ),
        ("attention", "???", ATTENTIONS, "unknown attention '???'. csham list attentions shows all."),
        (
            "strategy",
            "transfr",
            STRATEGIES,
            "unknown strategy 'transfr'. Did you mean 'transfer'? csham list strategies shows all.",
        ),
        (
            "recipe",
            "papr",
            RECIPES,
            "unknown recipe 'papr'. Did you mean 'paper'? Known: quick, fast, paper, finetune.",
        ),
        ("setting", "epoch", [*"abcdefg", "epochs"], "unknown setting 'epoch'. Did you mean 'epochs'?"),
        ("setting", "xyz", [*"abcdef"], "unknown setting 'xyz'. Known: a, b, c, d, e, f."),
    ],
)
def test_the_nearest_three_and_where_all_are(kind, name, choices, message):
    assert str(unknown_name(kind, name, choices)) == message


def test_a_hint_comes_last_and_unlisted_names_are_offered_after_listed_ones():
    error = unknown_name("color", "gren", ["grey", "blue"], unlisted=["green"], hint="Any of CSS.")
    assert str(error) == "unknown color 'gren'. Did you mean 'grey' or 'green'? Known: grey, blue. Any of CSS."
    assert known_names("color", "x", ["a"]) == "Known: a."


@pytest.mark.parametrize("sign", ["A", "\x1b"])
def test_what_a_message_quotes_does_not_drown_it(sign):
    said = str(UserError(f"study.yaml: {sign * 100_000!r} is no name. Put the old content back.", "a line", "another"))
    first, *below = said.split("\n")
    assert first.startswith("study.yaml: ")
    assert first.endswith("is no name. Put the old content back.")
    assert len(first) < 5000
    assert below == ["a line", "another"]
    sentence = "word " * 700
    assert str(UserError(sentence)) == sentence
