"""What people call a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["network_label"]


class Named(Protocol):
    """The settings of a network, as runs, studies and files of weights have them."""

    @property
    def backbone(self) -> str: ...
    @property
    def attention(self) -> str: ...
    @property
    def strategy(self) -> str: ...
    @property
    def period(self) -> int | None: ...
    @property
    def position(self) -> str: ...
    @property
    def points(self) -> Sequence[str] | None: ...
    @property
    def stages(self) -> Sequence[int] | None: ...
    @property
    def gated(self) -> bool: ...


def network_label(network: Named) -> str:
    """Return a name for people, different for different settings, such as ``resnet20 + csham (transfer)``."""
    if network.attention == "none":
        return network.backbone
    details = [network.strategy] if network.strategy != "sequential" else []
    details += [f"period {network.period}"] if network.period is not None else []
    details += [f"position {network.position}"] if network.position != "auto" else []
    details += [f"points {' '.join(network.points)}"] if network.points is not None else []
    details += [f"stages {' '.join(map(str, network.stages))}"] if network.stages is not None else []
    details += ["gated"] if network.gated else []
    return f"{network.backbone} + {network.attention}" + (f" ({', '.join(details)})" if details else "")
