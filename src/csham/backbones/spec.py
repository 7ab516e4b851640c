"""The network: a backbone, and the attention attached to it; importable without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from csham.attach.names import POSITIONS, STRATEGIES, check_position, check_strategy
from csham.backbones.lookup import check_backbone
from csham.backbones.names import BACKBONES
from csham.backbones.own import backbone_code_of
from csham.errors import UserError
from csham.layers.names import ATTENTIONS, check_opens
from csham.layers.own import code_of, is_own_attention
from csham.own_code import Code, is_reference, unnamed_code
from csham.settings import Help, InFile, Mark, Settings, Within, check_choice, count, is_name, list_of, names_of

if TYPE_CHECKING:
    from torch import nn

__all__ = ["CODE_FIELDS", "CONNECTION_FIELDS", "NETWORK_FIELDS", "NetworkSpec"]


def _is_backbone(value: object) -> bool:
    # No colon but that of a module, which is how timm is told to fetch a network from elsewhere (hf-hub:, https:).
    if not isinstance(value, str) or len(value) > 128:
        return False
    return _BACKBONE.fullmatch(value) is not None or is_reference(value)


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
        Help(
            "csham list backbones, any of timm's or torchvision's, or my_module:make_net, your own.",
            plural="backbones",
            names=BACKBONES,
        ),
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
    open_gates: Annotated[
        bool,
        InFile(lambda v: type(v) is bool, "true or false"),
        Mark.LATER,
        Help("Start attention's weights near 1, not near 1/2 as its authors do."),
    ] = False
    attention_sha256: Annotated[
        str | None,
        Within(_may_be_sha256, "64 hexadecimal digits"),
        InFile(_is_sha256, "64 hexadecimal digits, or null", or_null=True),
        Mark.LATER,
        Help("SHA-256 of the source of an attention of one's own.", option=False),
    ] = None
    backbone_sha256: Annotated[
        str | None,
        Within(_may_be_sha256, "64 hexadecimal digits"),
        InFile(_is_sha256, "64 hexadecimal digits, or null", or_null=True),
        Mark.LATER,
        Help("SHA-256 of the source of a backbone of one's own.", option=False),
    ] = None

    def check_names(self) -> None:
        """Refuse unknown backbones, attentions, strategies and positions.

        PyTorch is imported only for a backbone that is not csham's own or listed: to ask timm and torchvision for it.
        """
        self.check_backbone()
        self.check_connection()

    def check_backbone(self, *, pretrained: bool = False, weights_file: Path | str | None = None) -> None:
        """Refuse an unknown backbone, and weights that it does not have; see :func:`check_backbone`."""
        if self.backbone_sha256 is not None and backbone_code_of(self.backbone) is None:
            raise unnamed_code("backbone", self.backbone)  # not a library's of the same name
        check_backbone(self.backbone, pretrained=pretrained, weights_file=weights_file)

    def check_connection(self, *, to_build: bool = True) -> None:
        """Refuse unknown attentions, strategies and positions, without importing PyTorch.

        Args:
            to_build: False to let code pass that the user has not named, where only its name is needed.
        """
        named = self.attention in ("none", *ATTENTIONS)
        if not named and not self.own_attention:
            check_choice("attention", self.attention, ["none", *ATTENTIONS])
        if not named and to_build:
            raise unnamed_code("attention", self.attention)
        check_choice("strategy", self.strategy, STRATEGIES)
        check_position(self.position, self.points)
        if named and self.attention != "none":
            check_strategy(self.attention, self.strategy, self.period)
            if self.open_gates:
                check_opens(ATTENTIONS[self.attention])

    @property
    def own_attention(self) -> bool:
        """True if the attention is code that did not come with csham."""
        own = is_own_attention(self.attention) or code_of(self.attention) is not None
        return self.attention_sha256 is not None or own

    @property
    def codes(self) -> dict[str, Code]:
        """Origins of those of ``"attention"`` and ``"backbone"`` that are the user's own, as far as is known."""
        found = {"attention": code_of(self.attention), "backbone": backbone_code_of(self.backbone)}
        return {kind: code for kind, code in found.items() if code is not None}

    def with_code(self: _Spec) -> _Spec:
        """Return it with the hashes of the source of what is the user's own, where it has none yet."""
        known: dict[str, Any] = {f"{kind}_sha256": code.sha256 for kind, code in self.codes.items()}
        return replace(self, **{name: digest for name, digest in known.items() if getattr(self, name) is None})

    def without_code(self: _Spec) -> _Spec:
        """Return it without hashes."""
        nothing: dict[str, Any] = dict.fromkeys(CODE_FIELDS)
        return replace(self, **nothing)

    @property
    def changed_code(self) -> str:
        """Sentence on the source of the attention or the backbone, if it is not what the hash is of; else empty."""
        return "; ".join(filter(None, map(self._changed, ("attention", "backbone"))))

    def _changed(self, kind: str) -> str:
        code, before = self.codes.get(kind), getattr(self, f"{kind}_sha256")
        if before is None or (code is not None and code.sha256 == before):
            return ""
        now = "now it is csham's" if code is None else f"{code.file or code.module} has {_shown(code.sha256)} now"
        return f"the code of {getattr(self, kind)} was changed: its SHA-256 began with {_shown(before)}, and {now}"

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
            return self.base
        details = [self.strategy] if self.strategy != "sequential" else []
        details += [f"period {self.period}"] if self.period is not None else []
        details += [f"position {self.position}"] if self.position != "auto" else []
        details += [f"points {' '.join(self.points)}"] if self.points is not None else []
        details += [f"stages {' '.join(map(str, self.stages))}"] if self.stages is not None else []
        details += ["gated"] if self.gated else []
        details += ["open gates"] if self.open_gates else []
        details += [f"code {_shown(self.attention_sha256)}"] if self.attention_sha256 is not None else []
        return f"{self.base} + {self.attention}" + (f" ({', '.join(details)})" if details else "")

    @property
    def base(self) -> str:
        """The backbone, one of the user's own with its code: networks of the same are compared with each other."""
        return self.backbone + (f" (code {_shown(self.backbone_sha256)})" if self.backbone_sha256 is not None else "")

    def build(self, **settings: Any) -> nn.Module:
        """Create the network, with the other settings of :func:`csham.create_model`, such as ``num_classes``.

        Raises:
            UserError: It cannot be, or the code of the user's own in it is not what the hash is of.
        """
        # Imported here: the rest needs no PyTorch.
        from csham.backbones import create_model  # noqa: PLC0415

        self.check_code()
        own = {name: value for name, value in self.network_settings.items() if name not in CODE_FIELDS}
        return create_model(**own, **settings)


def _shown(digest: str | None) -> str:
    """Return as much of a hash as git shows."""
    return str(digest)[:7]


CODE_FIELDS = ("attention_sha256", "backbone_sha256")
"""Settings that say which code of the user's own is meant: hashes of its source."""

NETWORK_FIELDS = names_of(NetworkSpec)
"""Every setting that makes a network."""

CONNECTION_FIELDS = NETWORK_FIELDS[NETWORK_FIELDS.index("attention") + 1 : NETWORK_FIELDS.index("attention_sha256")]
"""Those of them that say how its attention is connected, which a plain network has at their defaults."""
