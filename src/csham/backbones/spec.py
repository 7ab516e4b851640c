"""The network: a backbone, and the attention attached to it; importable without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from csham.attach.names import POSITIONS, STRATEGIES, check_position, check_strategy
from csham.backbones.lookup import check_backbone
from csham.backbones.names import BACKBONES
from csham.layers.names import ATTENTIONS
from csham.settings import Help, InFile, Settings, check_choice, count, is_name, list_of, names_of

if TYPE_CHECKING:
    from torch import nn

__all__ = ["CONNECTION_FIELDS", "NETWORK_FIELDS", "NetworkSpec"]


def _is_backbone(value: object) -> bool:
    # No colon, which is how timm is told to fetch a network from elsewhere (hf-hub:, local-dir:, https:).
    return isinstance(value, str) and len(value) <= 128 and _BACKBONE.fullmatch(value) is not None


# timm/resnet50.a1_in1k, resnet20@width=1.25,depth=26
_BACKBONE = re.compile(r"\w[\w/-]*(\.[\w-]+)?(@[\w.,=+-]+)?", re.ASCII)


@dataclass(frozen=True)
class NetworkSpec(Settings):
    """Specification of a network, but for the sizes of its input and output.

    Creating it checks types; :meth:`check_names` checks the names.
    """

    panel = "Network"

    backbone: Annotated[
        str,
        InFile(_is_backbone, "the name of a network"),
        Help("csham list backbones, or any of timm's or torchvision's.", plural="backbones", names=BACKBONES),
    ] = "resnet18"
    attention: Annotated[
        str,
        InFile(is_name, "the name of an attention"),
        Help("Attention in it: csham list attentions, or none.", plural="attentions", names=ATTENTIONS),
    ] = "none"
    strategy: Annotated[
        str,
        InFile(is_name, "the name of a strategy"),
        Help("Arrangement of the attention's steps: csham list strategies.", plural="strategies", names=STRATEGIES),
    ] = "sequential"
    period: Annotated[
        int | None,
        InFile(count(2, 2**31), "a whole number of at least 2, or null", or_null=True),
        Help("Of transfer: points to each channel step.", default="2"),
    ] = None
    position: Annotated[
        str,
        InFile(is_name, "the name of a position"),
        Help("Place of the attention: csham list positions.", names=POSITIONS),
    ] = "auto"
    points: Annotated[
        tuple[str, ...] | None,
        InFile(list_of(is_name), "a list of names of modules, or null", or_null=True),
        Help("Instead of a position: modules' names or patterns, with commas."),
    ] = None
    stages: Annotated[
        tuple[int, ...] | None,
        InFile(list_of(count(-(2**31), 2**31)), "a list of whole numbers, or null", or_null=True),
        Help("Only points of these stages: 0,1,... or from the last: -1.", default="all"),
    ] = None
    gated: Annotated[
        bool, InFile(lambda v: type(v) is bool, "true or false"), Help("Start attention as the identity.")
    ] = False

    def check_names(self) -> None:
        """Refuse unknown backbones, attentions, strategies and positions.

        PyTorch is imported only for a backbone that is not csham's own or listed: to ask timm and torchvision for it.
        """
        check_backbone(self.backbone)
        self.check_connection()

    def check_connection(self) -> None:
        """Refuse unknown attentions, strategies and positions, without importing PyTorch."""
        check_choice("attention", self.attention, ["none", *ATTENTIONS])
        check_choice("strategy", self.strategy, STRATEGIES)
        check_position(self.position, self.points)
        if self.attention != "none":
            check_strategy(self.attention, self.strategy, self.period)

    @property
    def network_settings(self) -> dict[str, Any]:
        """The fields of the network by name, as :func:`csham.create_model` takes them."""
        return {name: getattr(self, name) for name in NETWORK_FIELDS}

    @property
    def label(self) -> str:
        """A name for people, different for different networks, such as ``resnet20 + csham (transfer)``."""
        if self.attention == "none":
            return self.backbone
        details = [self.strategy] if self.strategy != "sequential" else []
        details += [f"period {self.period}"] if self.period is not None else []
        details += [f"position {self.position}"] if self.position != "auto" else []
        details += [f"points {' '.join(self.points)}"] if self.points is not None else []
        details += [f"stages {' '.join(map(str, self.stages))}"] if self.stages is not None else []
        details += ["gated"] if self.gated else []
        return f"{self.backbone} + {self.attention}" + (f" ({', '.join(details)})" if details else "")

    def build(self, **settings: Any) -> nn.Module:
        """Create the network, with the other settings of :func:`csham.create_model`, such as ``num_classes``."""
        # Imported here: the rest needs no PyTorch.
        from csham.backbones import create_model  # noqa: PLC0415

        return create_model(**self.network_settings, **settings)


NETWORK_FIELDS = names_of(NetworkSpec)
"""Every setting that makes a network."""

CONNECTION_FIELDS = NETWORK_FIELDS[NETWORK_FIELDS.index("attention") + 1 :]
"""Those of them that say how its attention is connected, which a plain network has at their defaults."""
