"""The network: a backbone, and the attention attached to it; importable without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from csham.attach.names import POSITIONS, STRATEGIES, check_position, check_strategy
from csham.backbones.lookup import check_backbone
from csham.backbones.names import BACKBONES
from csham.errors import UserError
from csham.layers.names import ATTENTIONS
from csham.layers.own import code_of, is_reference, unnamed_code
from csham.settings import Help, InFile, Mark, Settings, Within, check_choice, count, is_name, list_of, names_of

if TYPE_CHECKING:
    from torch import nn

__all__ = ["CONNECTION_FIELDS", "NETWORK_FIELDS", "NetworkSpec"]


def _is_backbone(value: object) -> bool:
    # No colon, which is how timm is told to fetch a network from elsewhere (hf-hub:, local-dir:, https:).
    return isinstance(value, str) and len(value) <= 128 and _BACKBONE.fullmatch(value) is not None


# timm/resnet50.a1_in1k, resnet20@width=1.25,depth=26
_BACKBONE = re.compile(r"\w[\w/-]*(\.[\w-]+)?(@[\w.,=+-]+)?", re.ASCII)


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def _may_be_sha256(value: object) -> bool:
    return value is None or _is_sha256(value)


_Spec = TypeVar("_Spec", bound="NetworkSpec")


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
        Help(
            "Attention in it: csham list attentions, none, or my_module:MyGate, your own.",
            plural="attentions",
            names=ATTENTIONS,
        ),
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
    attention_sha256: Annotated[
        str | None,
        Within(_may_be_sha256, "64 hexadecimal digits"),
        InFile(_is_sha256, "64 hexadecimal digits, or null", or_null=True),
        Mark.LATER,
        Help("SHA-256 of the source of an attention of one's own.", option=False),
    ] = None

    def check_names(self) -> None:
        """Refuse unknown backbones, attentions, strategies and positions.

        PyTorch is imported only for a backbone that is not csham's own or listed: to ask timm and torchvision for it.
        """
        check_backbone(self.backbone)
        self.check_connection()

    def check_connection(self, *, to_build: bool = True) -> None:
        """Refuse unknown attentions, strategies and positions, without importing PyTorch.

        Args:
            to_build: False to let code pass that the user has not named, where only its name is needed.
        """
        named = self.attention in ("none", *ATTENTIONS)
        if not named and not self.own_attention:
            check_choice("attention", self.attention, ["none", *ATTENTIONS])
        if not named and to_build:
            raise unnamed_code(self.attention)
        check_choice("strategy", self.strategy, STRATEGIES)
        check_position(self.position, self.points)
        if named and self.attention != "none":
            check_strategy(self.attention, self.strategy, self.period)

    @property
    def own_attention(self) -> bool:
        """True if the attention is code that did not come with csham."""
        return self.attention_sha256 is not None or is_reference(self.attention) or code_of(self.attention) is not None

    def with_code(self: _Spec) -> _Spec:
        """Return it with the hash of the source of an attention of the user's own, where it has none yet."""
        code = code_of(self.attention)
        if code is None or self.attention_sha256 is not None:
            return self
        return replace(self, attention_sha256=code.sha256)

    @property
    def changed_code(self) -> str:
        """Sentence on the source of the attention, if it is not what the hash is of; else empty."""
        code = code_of(self.attention)
        if self.attention_sha256 is None or (code is not None and code.sha256 == self.attention_sha256):
            return ""
        before = self.attention_sha256[:_SHOWN]
        now = "now it is csham's" if code is None else f"{code.file or code.module} has {str(code.sha256)[:_SHOWN]} now"
        return f"the code of {self.attention} was changed: its SHA-256 began with {before}, and {now}"

    def check_code(self) -> None:
        """Refuse to train with other code than the one that the hash is of."""
        if changed := self.changed_code:
            raise UserError(f"{changed}. Results of both would mix: put the old code back, or begin anew.")

    @property
    def network_settings(self) -> dict[str, Any]:
        """The fields of the network by name."""
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
        details += [f"code {self.attention_sha256[:_SHOWN]}"] if self.attention_sha256 is not None else []
        return f"{self.backbone} + {self.attention}" + (f" ({', '.join(details)})" if details else "")

    def build(self, **settings: Any) -> nn.Module:
        """Create the network, with the other settings of :func:`csham.create_model`, such as ``num_classes``.

        Raises:
            UserError: It cannot be, or the code of its attention is not what the hash is of.
        """
        # Imported here: the rest needs no PyTorch.
        from csham.backbones import create_model  # noqa: PLC0415

        self.check_code()
        own = {name: value for name, value in self.network_settings.items() if name != "attention_sha256"}
        return create_model(**own, **settings)


# Of a hash, in digits, as git shows them.
_SHOWN = 7


NETWORK_FIELDS = names_of(NetworkSpec)
"""Every setting that makes a network."""

CONNECTION_FIELDS = NETWORK_FIELDS[NETWORK_FIELDS.index("attention") + 1 : NETWORK_FIELDS.index("attention_sha256")]
"""Those of them that say how its attention is connected, which a plain network has at their defaults."""
