"""Names from outside are written out where they would disturb a terminal; what anybody may read stays as it is."""

import pickle

import pytest

from csham.errors import UserError
from csham.words import counted, printable, say, some

# Escape sequences of 7 and of 8 bits, line ends, what turns the direction of writing, and a byte that is no UTF-8.
HOSTILE = "a\x1b[2Jb\x9b2Jc\nd\re\u2028f\u202egnp\u2066g\x7f\udcff"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (HOSTILE, r"a\x1b[2Jb\x9b2Jc\nd\re\u2028f\u202egnp\u2066g\x7f\udcff"),
        ("Grüße, 猫 und \\n [bold] :smile:", "Grüße, 猫 und \\n [bold] :smile:"),
        ("", ""),
    ],
)
def test_only_what_disturbs_is_written_out(text, shown):
    assert printable(text) == shown
    assert printable(shown) == shown  # once more changes nothing


def test_errors_say_no_more_than_one_line_but_for_those_that_they_were_given():
    error = UserError(f"cannot read {HOSTILE}.", "the log ends:", f"  {HOSTILE}")
    for one in (error, pickle.loads(pickle.dumps(error))):
        assert str(one).split("\n") == [
            f"cannot read {printable(HOSTILE)}.",
            "the log ends:",
            f"  {printable(HOSTILE)}",
        ]


def test_each_line_is_one(capsys):
    say("one", HOSTILE)
    say(HOSTILE, error=True)
    out, err = capsys.readouterr()
    assert out.splitlines() == ["one", printable(HOSTILE)]
    assert err == printable(HOSTILE) + "\n"


def test_the_first_few_are_named():
    names = [str(number) for number in range(2000)]
    assert (some(iter([])), some(names[:5]), some(names[:6])) == ("", "0, 1, 2, 3, 4", "0, 1, 2, 3, 4 and 1 more")
    assert some(names, most=2, between="; ") == "0; 1 and 1,998 more"


def test_a_number_and_its_noun_agree():
    assert (counted(1, "run"), counted(0, "class", "es"), counted(1200, "run")) == ("1 run", "0 classes", "1,200 runs")
