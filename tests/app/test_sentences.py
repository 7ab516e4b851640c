"""What the page says in words: true of maps and answers of which everything is known."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from csham.app.sentences import agreement, differences, in_markdown, in_words, where

ALL = slice(None)
PLACES = {
    "at the upper left": (slice(0, 2), slice(0, 2)),
    "at the top": (slice(0, 2), slice(3, 5)),
    "at the upper right": (slice(0, 2), slice(6, 8)),
    "at the left": (slice(3, 5), slice(0, 2)),
    "in the middle": (slice(3, 5), slice(2, 6)),
    "at the right": (slice(3, 5), slice(7, 8)),
    "at the lower left": (slice(6, 8), slice(0, 2)),
    "at the bottom": (slice(6, 8), slice(3, 5)),
    "at the lower right": (slice(6, 8), slice(6, 8)),
    "along the top": (slice(0, 2), ALL),
    "across the middle": (slice(3, 5), ALL),
    "along the bottom": (slice(6, 8), ALL),
    "along the left": (ALL, slice(0, 2)),
    "down the middle": (ALL, slice(3, 5)),
    "along the right": (ALL, slice(6, 8)),
    "in several places": ([0, 7, 3, 4], [0, 7, 3, 4]),
}


@pytest.mark.parametrize("place", PLACES)
def test_where_the_larger_weights_are(spatial, place):
    assert where(spatial(*PLACES[place])) == place
    assert where(spatial(*PLACES[place], low=-20.0, high=-10.0)) == place


def test_the_edges_alone(spatial):
    weights = spatial()
    weights[1:7, 1:7] = 0.4
    assert where(weights) == "around the edges"


@pytest.mark.parametrize("weights", [np.full((8, 8), 0.5), np.zeros((4, 4)), np.ones((1, 1)), np.full((1, 5), -2.0)])
def test_weights_that_are_all_the_same_are_nowhere(weights):
    assert where(weights.astype(np.float32)) is None


def test_weights_that_hardly_differ_are_nowhere(spatial):
    assert where(spatial(slice(0, 2), high=0.407)) is None
    assert where(spatial(slice(0, 2), high=0.41)) == "along the top"


@pytest.mark.parametrize(
    ("share", "sure"), [(0.9, "sure"), (0.89, "fairly sure"), (0.6, "fairly sure"), (0.59, "not sure")]
)
def test_how_sure_the_answer_is(explain_by_hand, share, sure):
    sentence = in_words(explain_by_hand(shares={"bee": share, "ant": 1 - share}), None)
    assert sentence.startswith(f"It says **bee** ({share:.0%}, {sure}); ")


def test_the_right_answer_where_it_is_known(explain_by_hand):
    explanation = explain_by_hand()
    assert "which is right;" in in_words(explanation, None, "bee")
    assert "which is wrong: it is **ant**;" in in_words(explanation, None, "ant")
    assert "which is wrong: it is **dog**, a class that it does not know;" in in_words(explanation, None, "dog")


def test_where_attention_was_strong(explain_by_hand, spatial):
    maps = {
        "layer1": {"spatial": spatial(slice(0, 2), slice(0, 2))},
        "layer2": {"spatial": spatial(high=0.4)},
        "layer3": {"channel": np.ones(8)},
    }
    explanation = explain_by_hand(maps)
    assert in_words(explanation, "layer1").endswith("; in `layer1` its attention was strongest at the upper left.")
    assert in_words(explanation, "layer2").endswith("; in `layer2` its attention hardly told places apart.")
    assert in_words(explanation, None).endswith("; its attention weighs channels, not places.")
    assert in_words(explain_by_hand(), None).endswith("; no attention attached.")


def test_whether_networks_agree(explain_by_hand):
    bee, ant = explain_by_hand(), explain_by_hand(shares={"ant": 0.8, "bee": 0.2})
    assert agreement(["a", "b"], [bee, bee]) == "Both say **bee**."
    assert agreement(["a", "b", "c"], [ant, ant, ant]) == "All 3 say **ant**."
    assert agreement(["a_1", "b", "c"], [bee, ant, bee]) == "They differ: a\\_1 and c say **bee**; b says **ant**."


@dataclass
class Network:
    classes: list[str]
    size: int

    @property
    def info(self):
        return SimpleNamespace(image_size=self.size)


def test_what_makes_networks_hard_to_compare():
    first, second = Network(["ant", "bee"], 32), Network(["bee", "ant"], 32)
    assert differences(["a", "b"], [first, second]) == []
    third, fourth = Network(["bee", "cow", "dog"], 64), Network(["cow"], 32)
    assert differences(["a", "b_c"], [first, third]) == [
        "They do not know the same classes: a 2 and b\\_c 3, 1 in common.",
        "Each is given the image in its own size: a 32 x 32 pixels and b\\_c 64 x 64 pixels.",
    ]
    assert differences(["a", "b"], [first, fourth]) == [
        "They do not know the same classes: a 2 and b 1, none in common."
    ]


def test_names_are_no_markup():
    assert in_markdown("a_b <i>*c*</i> [d](e) `f` & $g$") == (
        "a\\_b \\<i\\>\\*c\\*\\</i\\> \\[d\\]\\(e\\) \\`f\\` \\& \\$g\\$"
    )
