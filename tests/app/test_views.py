"""Which stage is shown, in which colours, and what is said of them."""

import numpy as np
import pytest

from csham.app.views import GRAD_CAM, MOST_TO_SEE, choices, most_to_see, views
from csham.explain import overlay

TOP = slice(0, 4)


def test_the_stage_with_the_widest_spread_is_chosen(explain_by_hand, spatial):
    narrow, wide = {"spatial": spatial(TOP, high=0.5)}, {"spatial": spatial(TOP, high=0.9)}
    # One place alone differs much: there is less to see of it than of a half that differs.
    point = {"spatial": spatial(slice(0, 1), slice(0, 1), high=1.0)}
    channels = {"channel": np.ones(8)}
    for stages, chosen in (
        ({"layer1": narrow, "layer2": wide, "layer3": point}, "layer2"),
        ({"layer1": wide, "layer2": narrow}, "layer1"),
        ({"layer1": channels, "layer2": narrow}, "layer2"),
        ({"layer1": channels}, None),
        ({}, None),
    ):
        assert most_to_see([explain_by_hand(stages)]) == [chosen]


def test_networks_with_the_same_stages_are_shown_at_the_same(explain_by_hand, spatial):
    def network(**highest):
        return explain_by_hand({label: {"spatial": spatial(TOP, high=high)} for label, high in highest.items()})

    assert most_to_see([network(a=0.5, b=0.6), network(a=0.9, b=0.6)]) == ["a", "a"]
    assert most_to_see([network(a=0.5, b=0.6), network(c=0.9, d=0.6), explain_by_hand()]) == ["b", "c", None]


def test_the_same_attention_has_the_same_colours(explain_by_hand, spatial):
    weights = [spatial(TOP, high=0.5), spatial(TOP, low=0.2, high=0.3), spatial(TOP, high=0.9)]
    names = ["csham", "csham", "cbam"]
    explanations = [explain_by_hand({"a": {"spatial": w}}, attention=n) for w, n in zip(weights, names, strict=True)]
    shown = views(explanations, "a")
    for view, one, limits in zip(shown, weights, [(0.2, 0.5), (0.2, 0.5), (0.4, 0.9)], strict=True):
        expected = overlay(explanations[0].pixels, one, limits, side=384)
        np.testing.assert_allclose(view.picture, expected, atol=3)  # 0.2 is not the same in 32 bits and in 64
    assert shown[0].caption == (
        "Spatial weights at `a.1`: 0.4 to 0.5, in the same colours as beside it, 0.2 (dark) to 0.5 (light)."
    )
    assert shown[2].caption == "Spatial weights at `a.1`: 0.4 (dark) to 0.9 (light)."


def test_each_picture_has_words_for_who_does_not_see_it(explain_by_hand, spatial):
    explanation = explain_by_hand({"a": {"spatial": spatial(slice(0, 2))}, "b": {"channel": np.arange(8.0)}})
    alts = [views([explanation], choice)[0].alt for choice in (MOST_TO_SEE, "a", "b", GRAD_CAM)]
    assert alts[0] == alts[1] == "Spatial weights of a over the image, largest along the top"
    assert alts[2] == "The image, with no map over it"
    assert views([explanation], "b")[0].channels.alt == "Channel weights at b.1, 8 from 7 down to 0"
    assert alts[3] == "Grad-CAM of bee over the image, largest in several places"


def test_what_is_not_there_is_said(explain_by_hand, spatial):
    explanation = explain_by_hand({"a": {"spatial": spatial(TOP)}, "b": {"channel": np.arange(8.0)}})
    assert views([explanation], "b")[0].caption == "No spatial weights here: `b` weighs channels alone."
    assert views([explanation], "c")[0].caption == "No spatial weights here: `c` is not in this network."
    assert views([explain_by_hand()], "a")[0].caption == "No spatial weights here: no attention attached."
    assert views([explain_by_hand()], MOST_TO_SEE)[0].caption.endswith("nothing else to see: no attention attached.")
    channels = [views([explanation], choice)[0].channels for choice in "abc"]
    assert [one is None for one in channels] == [True, False, True]
    assert np.unique(channels[1].picture[..., 3]).tolist()[0] == 0  # the page's colour shows through


@pytest.mark.usefixtures("reference")
def test_what_can_be_shown_of_several_networks(attended, finished):
    import csham

    networks = [csham.load(finished), csham.load(attended)]
    assert choices(networks) == [MOST_TO_SEE, GRAD_CAM, "layer1", "layer2", "layer3"]
    assert choices(networks[:1]) == [MOST_TO_SEE, GRAD_CAM]
