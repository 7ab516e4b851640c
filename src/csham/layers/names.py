"""Which attentions there are; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from csham._named import Named, table

__all__ = ["ATTENTIONS", "AttentionName"]


@dataclass(frozen=True)
class AttentionName(Named):
    """One attention.

    Attributes:
        formula: Its parameters for C channels; R is C / 16 rounded to a multiple of 8, at least 8.
        params: Its parameters for 256 channels.
        two_part: Whether it has a channel part and a spatial part that a strategy can place on their own.
    """

    formula: str
    params: int
    two_part: bool = False


_PAPER = "Pan et al., ICPR 2022 (csham)"

ATTENTIONS = table(
    [
        AttentionName("csham", "channel-spatial hybrid attention, with ReLU", _PAPER, "9C + 117", 2421, two_part=True),
        AttentionName("csham_linear", "the same without ReLU", _PAPER, "9C + 117", 2421, two_part=True),
        AttentionName("csham_channel", "CSHAM's channel step alone", _PAPER, "15", 15),
        AttentionName("csham_spatial", "CSHAM's spatial step alone", _PAPER, "9C + 102", 2406),
        AttentionName("se", "squeeze-and-excitation", "Hu et al., CVPR 2018 (timm)", "2CR + C + R", 8464),
        AttentionName("eca", "efficient channel attention", "Wang et al., CVPR 2020 (timm)", "3 or 5", 5),
        AttentionName("cbam", "convolutional block attention", "Woo et al., ECCV 2018 (timm)", "C²/8 + 100", 8292),
    ]
)
