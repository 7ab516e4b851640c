"""Attentions of a user's own: a class or function of channels, under a name, with the code it comes from.

:func:`use_code` is the only place that imports code by its name, and it is called with what the user wrote in this very
call, never with what a file says. What a file names besides is refused by :func:`unnamed_code`, in words that say how
to allow it. Importable without torch.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

from csham.errors import UserError, nearest_names, unknown_name
from csham.layers.names import ATTENTIONS, AttentionName

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "NO_PAPER",
    "Attention",
    "Code",
    "OwnAttention",
    "code_of",
    "described",
    "find_attention",
    "is_reference",
    "pack_code",
    "register_attention",
    "unnamed_code",
    "unpack_code",
    "use_code",
]

NO_PAPER = "no paper"
"""Source of an attention that names none."""

_Build: TypeAlias = "Callable[..., nn.Module]"

Attention: TypeAlias = "str | AttentionName | Callable[..., nn.Module]"
"""An attention as a user may give it: its name, or a class or function of a number of channels."""


@dataclass(frozen=True)
class Code:
    """Place that the code of an attention comes from.

    Attributes:
        module: Name of the module that makes it known when it is imported.
        name: Name of the class or function in its own module; None where a module has no such name for it.
        file: File of its source; None where there is none, as for code typed at a prompt.
        sha256: Of that file, or of the source where there is no file, together with the arguments of a partial.
    """

    module: str
    name: str | None
    file: str | None
    sha256: str | None

    @property
    def reference(self) -> str:
        """Words that :func:`use_code` makes it known by."""
        return self.module if self.name is None else f"{self.module}:{self.name}"


@dataclass(frozen=True, kw_only=True)
class OwnAttention(AttentionName):
    """An attention that is not csham's.

    Attributes:
        build: Builds it for a number of channels.
        code: Where it comes from.
    """

    build: _Build
    code: Code


def register_attention(
    name: str, layer: Callable[..., nn.Module], *, summary: str = "", source: str = NO_PAPER
) -> None:
    """Give an attention of your own a name that every function of csham knows from then on.

    What it offers is seen by building one: with parts ``channel`` and ``spatial`` that have ``weights``
    (:mod:`csham.layers.attention`) it works under every strategy. The same name again replaces it.

    Args:
        name: Name, as ``"edge"``; ``"my_module:MyGate"`` is what the command line calls a class of a module.
        layer: A class or function from a number of channels to a module from (B, channels, H, W) to the same. Keywords
            ``device`` and ``dtype`` are given to it if its signature has them; without, the module is moved.
        summary: Description in a few words, for tables and model cards.
        source: Paper or place that it is from, for the same.

    Raises:
        UserError: The name is taken or cannot be one, or the layer is none.

    Examples:
        >>> csham.register_attention("edge", EdgeGate, source="Doe et al., 2025")
        >>> csham.create_model("resnet18", attention="edge")
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in ("none", "all"):
        raise UserError(
            f"register_attention: {name!r} cannot be a name. It takes letters, digits, _ . - and, before a class's "
            'name, a colon: "edge", "my_module:EdgeGate".'
        )
    if not isinstance(ATTENTIONS.get(name), OwnAttention | None):
        raise UserError(f"register_attention: csham has an attention {name!r} of its own. Choose another name.")
    caller = sys._getframe(1).f_globals.get("__name__", "__main__")
    ATTENTIONS[name] = _own(name, layer, summary, source, caller)


def find_attention(attention: Attention) -> AttentionName:
    """Return the entry of an attention that was given by name, or as a class or function.

    Raises:
        UserError: An unknown name, with the nearest; code that is to be named first; or neither of all.
    """
    if isinstance(attention, AttentionName):
        return attention
    if not isinstance(attention, str):
        return _own(_readable(attention), attention)
    if attention in ATTENTIONS:
        return ATTENTIONS[attention]
    if is_reference(attention):
        raise unnamed_code(attention)
    raise unknown_name("attention", attention, ATTENTIONS)


def is_reference(name: str) -> bool:
    """Return True for a name such as ``my_module:MyGate``, of code, and False for ``csham:transfer``."""
    module, colon, _ = name.partition(":")
    return bool(colon) and module not in ATTENTIONS and module not in ("none", "all")


def unnamed_code(name: str) -> UserError:
    """Build the error for an attention of somebody's own that the user did not name."""
    option = name if ":" in name else "MODULE, with the module that registers it"
    return UserError(
        f"the attention {name!r} is code that did not come with csham, and such code is run only where you name it. To "
        f"run it, add --code {option}; in Python, call csham.register_attention({name!r}, ...) before. It runs with "
        "your rights: read it first if it is not yours."
    )


def code_of(name: str) -> Code | None:
    """Return where the code of an attention of the user's own comes from; None for csham's, and for unknown names."""
    entry = ATTENTIONS.get(name)
    return entry.code if isinstance(entry, OwnAttention) else None


def use_code(reference: str, folder: Path | str | None = None) -> None:
    """Import what the user named, and register it if it is an attention.

    Args:
        reference: ``my_module:MyGate``, which gets that name; or ``my_module``, which registers what it likes.
        folder: Where the module is looked for first; None takes the working folder.

    Raises:
        UserError: There is no such module, it fails, or has no such class or function.
    """
    module_name, colon, name = reference.partition(":")
    if not _MODULE.fullmatch(module_name) or (colon and not _MODULE.fullmatch(name)) or module_name.endswith(".py"):
        without = f" Leave .py out: {module_name.removesuffix('.py')}{colon}{name}." * module_name.endswith(".py")
        raise UserError(
            f"{reference!r} names no code. Write my_module:MyGate, for the class or function MyGate of my_module.py in "
            f"the working folder or of an installed module.{without}"
        )
    module = _import(module_name, Path.cwd() if folder is None else Path(folder))
    if not colon:
        return
    layer: Any = module
    for part in name.split("."):
        if not hasattr(layer, part):
            where, near = getattr(module, "__file__", None), nearest_names(part, dir(layer))
            raise UserError(f"{reference}: the module {module_name} ({where}) has no {name}. {near}".rstrip())
        layer = getattr(layer, part)
    ATTENTIONS[reference] = _own(reference, layer, _first_line(layer), reference=reference)


def pack_code(names: Iterable[str]) -> list[dict[str, str]]:
    """Describe the user's own among attentions for another process, as :func:`unpack_code` takes it there.

    Raises:
        UserError: Another process could not import one.
    """
    described = []
    for name in dict.fromkeys(names):
        code = code_of(name)
        if code is None:
            continue
        if code.module == "__main__":
            raise UserError(
                f"the attention {name!r} is of a script or a prompt, which other processes cannot import. Put it into "
                "a module: my_module.py, and import it from there."
            )
        described.append({"name": name, "reference": code.reference, "folder": _folder(code.module)})
    return described


def unpack_code(described: Iterable[dict[str, str]]) -> None:
    """Make attentions known in this process that the user named in another.

    Raises:
        UserError: They cannot be imported here.
    """
    for each in described:
        name, reference = each["name"], each["reference"]
        use_code(reference, each["folder"])
        if name not in ATTENTIONS and reference in ATTENTIONS:
            ATTENTIONS[name] = replace(ATTENTIONS[reference], name=name)
        if name not in ATTENTIONS:
            raise UserError(
                f"{reference} was imported, and did not register the attention {name!r}. Call csham.register_attention "
                "where the module is imported, not under if __name__ == '__main__'."
            )


_NAME = re.compile(r"[A-Za-z_][\w.-]*(:[A-Za-z_][\w.]*)?", re.ASCII)
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")

# Channels for which one is built to see what it has; some take multiples of 16 only, or few.
_TRIED = (256, 64, 16)


def _own(
    name: str,
    layer: Any,
    summary: str = "",
    source: str = NO_PAPER,
    caller: str = "__main__",
    reference: str | None = None,
) -> OwnAttention:
    """Build one to see what it has, without drawing numbers that the caller would draw, and make its entry."""
    import torch  # noqa: PLC0415  names are looked up without it

    from csham.layers.attention import parts_of  # noqa: PLC0415

    if isinstance(layer, torch.nn.Module):
        raise UserError(
            f"{name} is a module, and one for every point would share its weights. Give its class, or a function of "
            f"channels that makes one: lambda channels: {type(layer).__name__}(channels)."
        )
    if not callable(layer):
        raise UserError(f"an attention is a name, or a class or function of channels, got {layer!r}.")
    with torch.random.fork_rng(devices=[]):
        built, channels = _built(name, layer, torch.nn.Module)
    code = _code(layer, caller, reference)
    two_part = parts_of(built) is not None
    return OwnAttention(
        name,
        summary or "an attention of the user's own",
        source,
        layer=code.reference,
        formula="",
        params=sum(p.numel() for p in built.parameters()) if channels == _TRIED[0] else 0,
        maps=("channel", "spatial") if two_part else (),
        two_part=two_part,
        build=layer,
        code=code,
    )


def _built(name: str, layer: Any, module: type) -> tuple[Any, int]:
    failures = []
    for channels in _TRIED:
        try:
            built = layer(channels)
        except Exception as err:
            failures.append(err)
            continue
        if not isinstance(built, module):
            raise UserError(f"{name}({channels}) returned {_kind(built)}, and an attention is an nn.Module.")
        return built, channels
    raise UserError(
        f"{name}({_TRIED[0]}) failed: {described(failures[0])}. An attention is a class or function of a number of "
        "channels; what else it needs goes into a function: lambda channels: MyGate(channels, size=7)."
    ) from failures[0]


def described(err: BaseException) -> str:
    """Say an error of a user's own code in one line."""
    text = shorten(str(err), 300, placeholder=" ...").rstrip(".")
    return f"{type(err).__name__}: {text}" if text else type(err).__name__


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _readable(layer: Any) -> str:
    """Name a class or function for people."""
    inner = _unwrapped(layer)
    name = getattr(inner, "__qualname__", None) or type(inner).__name__
    return str(name).rpartition("<locals>.")[2].replace("<lambda>", "lambda")


def _unwrapped(layer: Any) -> Any:
    while isinstance(layer, functools.partial):
        layer = layer.func
    return layer


def _code(layer: Any, caller: str, reference: str | None) -> Code:
    """Tell where code comes from: its own module where that has a name for it, and else the one that registers it."""
    inner = _unwrapped(layer)
    module, name = getattr(inner, "__module__", None), getattr(inner, "__qualname__", None)
    there: Any = sys.modules.get(str(module))
    for part in str(name).split("."):
        there = getattr(there, part, None)
    file, digest = _hashed(inner)
    if digest is not None and inner is not layer:
        arguments = re.sub(r" at 0x[0-9a-fA-F]+", "", repr((layer.args, sorted(layer.keywords.items()))))
        digest = hashlib.sha256(f"{digest} {arguments}".encode()).hexdigest()
    if reference is not None:
        module, _, name = reference.partition(":")
    if reference is not None or there is layer:
        return Code(str(module), str(name), file, digest)
    return Code(caller, None, file, digest)


# The source may be edited after it was imported: what counts is the code that runs, so each is looked at once.
_HASHES: WeakKeyDictionary[Any, tuple[str | None, str | None]] = WeakKeyDictionary()


def _hashed(inner: Any) -> tuple[str | None, str | None]:
    """Return the file of a class or function, and the SHA-256 of it or of what source there is."""
    try:
        if inner in _HASHES:
            return _HASHES[inner]
    except TypeError:  # a callable object that cannot be kept
        inner = type(inner)
    try:
        file = inspect.getsourcefile(inner)
        there = file is not None and Path(file).is_file()
        content = Path(str(file)).read_bytes() if there else inspect.getsource(inner).encode()
    except (OSError, TypeError):
        return None, None
    found = str(Path(str(file)).resolve()) if there else None, hashlib.sha256(content).hexdigest()
    _HASHES[inner] = found
    return found


def _folder(module_name: str) -> str:
    """Return the folder from which a module is imported by its full name."""
    module = sys.modules.get(module_name)
    file = Path(getattr(module, "__file__", None) or Path.cwd() / "-").resolve()
    levels = module_name.count(".") + (file.name == "__init__.py")
    return str(file.parents[levels])


def _import(name: str, folder: Path) -> Any:
    """Import a module, of a folder or installed."""
    at, there = str(folder.resolve()), folder.joinpath(*name.split(".")).resolve()
    before = getattr(sys.modules.get(name), "__file__", None)
    beside = next((f for f in (there.with_suffix(".py"), there / "__init__.py") if f.is_file()), None)
    if before is not None and beside is not None and Path(before).resolve() != beside:
        raise UserError(f"{name}: this process has imported {before} under that name. Give {beside} another name.")
    insert = at not in sys.path
    sys.path[:0] = [at] * insert
    try:
        importlib.invalidate_caches()
        return importlib.import_module(name)
    except ModuleNotFoundError as err:
        if err.name is not None and (name == err.name or name.startswith(f"{err.name}.")):
            raise UserError(
                f"there is no module {name}: {folder} has no {name.replace('.', '/')}.py, and none is installed."
            ) from err
        raise UserError(f"{name} could not be imported: {described(err)}.") from err
    except (Exception, SystemExit) as err:
        raise UserError(f"{name} could not be imported: {described(err)}.") from err
    finally:
        if insert:  # behind all others from now on, for what it imports later
            sys.path.remove(at)
            sys.path.append(at)


def _first_line(layer: Any) -> str:
    text = (getattr(layer, "__doc__", None) or "").strip().splitlines()
    own = isinstance(layer, type) and "__doc__" in vars(layer)
    return shorten(text[0].rstrip("."), 80) if text and (own or not isinstance(layer, type)) else ""
