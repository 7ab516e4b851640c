"""Attentions by their names, with their papers and parameters; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from csham._named import Named, table
from csham.errors import UserError

__all__ = ["ATTENTIONS", "FORMULAS", "PAPER", "AttentionName", "check_opens"]


@dataclass(frozen=True)
class AttentionName(Named):
    """One attention.

    Attributes:
        layer: Class, or function of a number of channels, that builds it, as ``"module:name"``.
        formula: Its parameters for C channels, in the functions of :data:`FORMULAS`.
        params: Its parameters for 256 channels.
        maps: Kinds of weights that :func:`csham.layers.record_weights` finds, in order: ``"channel"`` (B, C),
            ``"spatial"`` (B, 1, H, W) and ``"full"`` (B, C, H, W); none where the attention adds instead of scaling.
        two_part: True if it has a ``channel`` part and a ``spatial`` part that a strategy can place on their own.
        opens: True if it has a method ``open_gates``, which lets its weights start near 1.
        paper: Settings that make the paper's form of it, where the default is another (``source`` says "after").
    """

    layer: str
    formula: str
    params: int
    maps: tuple[str, ...]
    two_part: bool = False
    opens: bool = True
    paper: str = ""


FORMULAS = (
    "r8(z) is z rounded to a multiple of 8, at least 8; g8(z) the same or, where that is below 0.9 z, 8 more; r1(z) is "
    "z rounded, f(z) z rounded down, both at least 1; d(n, m) is the largest divisor of n up to m; k is ECA's "
    "kernel size: (log2 C + 1) / 2 rounded down, made odd, at least 3"
)

PAPER = (
    "settings of create_attention that make the paper's form, where the default is timm's, after the paper; nn is "
    "torch.nn"
)

_CSHAM = "Pan et al., ICPR 2022 (csham)"
_BOTH = ("channel", "spatial")


def _csham(name: str, layer: str, summary: str, formula: str, params: int, maps: tuple[str, ...]) -> AttentionName:
    return AttentionName(name, summary, _CSHAM, layer, formula, params, maps, two_part=maps == _BOTH)


def _timm(
    name: str,
    layer: str,
    summary: str,
    source: str,
    formula: str,
    params: int,
    maps: tuple[str, ...] = ("channel",),
    paper: str = "",
    opens: bool = True,
) -> AttentionName:
    return AttentionName(name, summary, f"{source} (timm)", layer, formula, params, maps, maps == _BOTH, opens, paper)


def _paper(
    name: str,
    layer: str,
    summary: str,
    source: str,
    formula: str,
    params: int,
    maps: tuple[str, ...] = ("full",),
    two_part: bool = False,
    opens: bool = True,
) -> AttentionName:
    return AttentionName(name, summary, f"{source} (csham)", layer, formula, params, maps, two_part, opens)


_ECA = "Wang et al., CVPR 2020, arXiv:1910.03151"
_GC = "Cao et al., ICCVW 2019, arXiv:1904.11492"
_CBAM = "Woo et al., ECCV 2018, arXiv:1807.06521"
_COORD = "Hou et al., CVPR 2021, arXiv:2103.02907"

ATTENTIONS = table(
    [
        _csham(
            "csham", "csham.layers.hybrid:CSHAM", "channel-spatial hybrid attention, with ReLU", "9C + 117", 2421, _BOTH
        ),
        _csham("csham_linear", "csham.layers.hybrid:csham_linear", "the same without ReLU", "9C + 117", 2421, _BOTH),
        _csham(
            "csham_channel",
            "csham.layers.channel:ChannelAttention",
            "CSHAM's channel step alone",
            "15",
            15,
            ("channel",),
        ),
        _csham(
            "csham_spatial",
            "csham.layers.spatial:SpatialAttention",
            "CSHAM's spatial step alone",
            "9C + 102",
            2406,
            ("spatial",),
        ),
        _timm(
            "se",
            "csham.layers.from_timm:SqueezeExcite",
            "squeeze and excitation",
            "after Hu et al., CVPR 2018, arXiv:1709.01507",
            "2CR + C + R, R = r8(C / 16)",
            8464,
            paper="rd_divisor=1, bias=False",
        ),
        _timm(
            "ese",
            "csham.layers.from_timm:EffectiveSqueezeExcite",
            "effective squeeze and excitation, one layer",
            "after Lee and Park, CVPR 2020, arXiv:1911.06667",
            "C² + C",
            65_792,
            paper='gate_layer="sigmoid"',
        ),
        _timm("eca", "csham.layers.from_timm:EfficientChannelAttention", "efficient channel attention", _ECA, "k", 5),
        _timm(
            "ecam",
            "csham.layers.from_timm:HiddenEfficientChannelAttention",
            "ECA with a hidden layer",
            f"after {_ECA}",
            "kR + 2R + 1, R = g8(C / 8)",
            225,
        ),
        _timm(
            "ceca",
            "csham.layers.from_timm:CircularEfficientChannelAttention",
            "ECA with the channels closed to a ring",
            f"after {_ECA}",
            "k",
            5,
        ),
        _timm(
            "ge",
            "csham.layers.from_timm:GatherExcite",
            "gather-excite over the whole map",
            "after Hu et al., NeurIPS 2018, arXiv:1810.12348",
            "2CR + C + R, R = r1(C / 16)",
            8464,
            paper="use_mlp=False",
        ),
        _timm(
            "gc",
            "csham.layers.from_timm:GlobalContext",
            "global context, as a gate",
            f"after {_GC}",
            "2CR + 2C + 3R + 1, R = r1(C / 8)",
            16_993,
        ),
        _timm(
            "gca",
            "csham.layers.from_timm:AddedGlobalContext",
            "global context, added",
            f"after {_GC}",
            "2CR + 2C + 3R + 1, R = r1(C / 8)",
            16_993,
            (),
            paper="rd_ratio=1 / 16",
            opens=False,
        ),
        _timm(
            "cbam",
            "csham.layers.cbam:CBAM",
            "convolutional block attention",
            f"after {_CBAM}",
            "2CR + 100, R = r1(C / 16)",
            8292,
            _BOTH,
            paper="spatial_norm=False",
        ),
        _timm(
            "lcbam",
            "csham.layers.cbam:LightCBAM",
            "CBAM with pooled values added first",
            f"after {_CBAM}",
            "2CR + 51, R = r1(C / 16)",
            8243,
            _BOTH,
        ),
        _timm(
            "coord",
            "csham.layers.from_timm:CoordinateAttention",
            "coordinate attention",
            f"after {_COORD}",
            "3CR + 2R, R = r8(C / 24)",
            6160,
            ("full",),
            paper="reduction=32, bias=True",
        ),
        _timm(
            "scoord",
            "csham.layers.from_timm:SimpleCoordinateAttention",
            "coordinate attention without norm, one gate",
            f"after {_COORD}",
            "3CR + 2C + R, R = r8(C / 6)",
            31_272,
            ("full",),
        ),
        _timm(
            "ela",
            "csham.layers.from_timm:EfficientLocalAttention",
            "efficient local attention",
            "after Xu and Wan, 2024, arXiv:2403.01123",
            "18C",
            4608,
            ("full",),
            paper="groups=16, act_layer=nn.Identity",
        ),
        _timm(
            "strip",
            "csham.layers.from_timm:StripAttention",
            "gate of row and column means",
            "no paper",
            "6C",
            1536,
            ("full",),
        ),
        _paper(
            "simam",
            "csham.layers.simam:SimAM",
            "how far each value stands out",
            "Yang et al., ICML 2021",
            "0",
            0,
            opens=False,
        ),
        _paper(
            "bam",
            "csham.layers.bam:BAM",
            "bottleneck attention, channel and position in one gate",
            "Park et al., BMVC 2018, arXiv:1807.06514",
            "3CR + 3C + 18R² + 13R + 3, R = f(C / 16)",
            17_875,
            two_part=True,
            opens=False,
        ),
        _paper(
            "a2",
            "csham.layers.a2:DoubleAttention",
            "double attention: gather, distribute, add",
            "Chen et al., NeurIPS 2018, arXiv:1810.11579",
            "4CR + C + 3R, R = f(C / 4)",
            65_984,
            (),
            opens=False,
        ),
        _paper(
            "triplet",
            "csham.layers.triplet:TripletAttention",
            "three gates, one per pair of axes",
            "Misra et al., WACV 2021, arXiv:2010.03045",
            "300",
            300,
        ),
        _paper(
            "shuffle",
            "csham.layers.shuffle:ShuffleAttention",
            "channel and position gates in groups, shuffled",
            "Zhang and Yang, ICASSP 2021, arXiv:2102.00240",
            "3C / G, G = d(C / 2, 64)",
            12,
        ),
        _paper(
            "ema",
            "csham.layers.ema:EMA",
            "efficient multi-scale attention across positions",
            "Ouyang et al., ICASSP 2023, arXiv:2305.13563",
            "10R² + 4R, R = C / d(C, 32)",
            672,
            opens=False,
        ),
        _paper(
            "scsa",
            "csham.layers.scsa:SCSA",
            "spatial gate guiding attention among channels",
            "Si et al., 2024, arXiv:2407.05128",
            "16C",
            4096,
        ),
        _paper(
            "scse",
            "csham.layers.scse:SCSE",
            "channel and spatial squeeze and excitation, added",
            "Roy et al., MICCAI 2018, arXiv:1803.02579",
            "2CR + 2C + R + 1, R = f(C / 2)",
            66_177,
            two_part=True,
            opens=False,
        ),
    ]
)


def check_opens(attention: AttentionName) -> None:
    """Refuse an attention whose weights cannot start near 1."""
    if attention.opens:
        return
    able = [entry.name for entry in ATTENTIONS.values() if entry.opens]
    raise UserError(
        f"open_gates (--open-gates): {attention.name} has no bias that its weights start from, or a method open_gates. "
        f"These have: {', '.join(able)}. gated (--gated) starts any attention as the identity."
    )
