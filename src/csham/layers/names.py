"""Which attentions there are; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from csham._named import Named, table

__all__ = ["ATTENTIONS", "AttentionName"]


@dataclass(frozen=True)
class AttentionName(Named):
    """One attention.

    Attributes:
        two_part: Whether it has a channel part and a spatial part that a strategy can place on their own.
    """

    two_part: bool = False


_PAPER = "Pan et al., ICPR 2022"

ATTENTIONS = table(
    [
        AttentionName("csham", "channel-spatial hybrid attention, the authors' layer classes", _PAPER, two_part=True),
        AttentionName("csham_linear", "the same without ReLU, the authors' functional version", _PAPER, two_part=True),
        AttentionName("csham_channel", "CSHAM's channel step alone", _PAPER),
        AttentionName("csham_spatial", "CSHAM's spatial step alone", _PAPER),
        AttentionName("se", "squeeze-and-excitation", "Hu et al., CVPR 2018 (timm)"),
        AttentionName("eca", "efficient channel attention", "Wang et al., CVPR 2020 (timm)"),
        AttentionName("cbam", "convolutional block attention module", "Woo et al., ECCV 2018 (timm)"),
    ]
)
