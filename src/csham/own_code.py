"""Code of the user's own, an attention or a network: found by its name, and known again by its hash.

:func:`find_code` is the only place that imports code by its name, and it is called with what the user wrote in this
very call, never with what a file says. What a file names besides is refused by :func:`unnamed_code`, in words that say
how to allow it. Importable without torch.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any
from weakref import WeakKeyDictionary

from csham.errors import UserError, nearest_names

__all__ = [
    "NO_PAPER",
    "Code",
    "check_name",
    "code_in",
    "described",
    "find_code",
    "first_line",
    "for_another_process",
    "is_reference",
    "kind_of",
    "readable",
    "unnamed_code",
    "where_from",
]

NO_PAPER = "no paper"
"""Source of what names none."""


@dataclass(frozen=True)
class Code:
    """Place that an attention or a network of the user's own comes from.

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
        """Words that :func:`csham.backbones.own.use_code` makes it known by."""
        return self.module if self.name is None else f"{self.module}:{self.name}"


def is_reference(name: str) -> bool:
    """Return True for a name such as ``my_module:make_net``, of a class or function in a module."""
    return _REFERENCE.fullmatch(name) is not None


def check_name(function: str, name: object, example: str) -> None:
    """Refuse a name that cannot be registered.

    Args:
        function: That was called, for the message.
        name: As it was given.
        example: A name that can be.

    Raises:
        UserError: It is none.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in ("none", "all"):
        raise UserError(
            f"{function}: {name!r} cannot be a name. It takes letters, digits, _ . - and, before the name of a class "
            f'or function, a colon: "{example}", "my_module:{example}".'
        )


def unnamed_code(kind: str, name: str) -> UserError:
    """Build the error for an attention or a backbone of somebody's own that the user did not name."""
    option = name if ":" in name else "MODULE, with the module that registers it"
    return UserError(
        f"the {kind} {name!r} is code that did not come with csham, and such code is run only where you name it. To "
        f"run it, add --code {option}; in Python, call csham.register_{kind}({name!r}, ...) before. It runs with "
        "your rights: read it first if it is not yours."
    )


def code_in(names: Mapping[str, Any], name: str) -> Code | None:
    """Return where an entry of a table of names comes from; None for csham's own, and for unknown names."""
    code: Code | None = getattr(names.get(name), "code", None)
    return code


def find_code(reference: str, folder: Path | str | None = None) -> Any:
    """Import what the user named.

    Args:
        reference: ``my_module:MyGate``, a class or function; or ``my_module``, which registers what it likes.
        folder: Where the module is looked for first; None takes the working folder.

    Returns:
        The class or function, or the module.

    Raises:
        UserError: There is no such module, it fails, or has no such class or function.
    """
    module_name, colon, name = reference.partition(":")
    if not (is_reference(reference) or is_reference(f"{reference}:x")) or module_name.endswith(".py"):
        without = f" Leave .py out: {module_name.removesuffix('.py')}{colon}{name}." * module_name.endswith(".py")
        raise UserError(
            f"{reference!r} names no code. Write my_module:MyGate, for the class or function MyGate of my_module.py in "
            f"the working folder or of an installed module.{without}"
        )
    module = _import(module_name, Path.cwd() if folder is None else Path(folder))
    found: Any = module
    for part in name.split(".") if colon else ():
        if not hasattr(found, part):
            where, near = getattr(module, "__file__", None), nearest_names(part, dir(found))
            raise UserError(f"{reference}: the module {module_name} ({where}) has no {name}. {near}".rstrip())
        found = getattr(found, part)
    return found


def where_from(thing: Any, caller: str, reference: str | None = None) -> Code:
    """Tell where a class or function comes from.

    Args:
        thing: The class or function, perhaps a partial of one.
        caller: Module that registers it, which counts where its own has no name for it.
        reference: Words that the user named it by.
    """
    inner = _unwrapped(thing)
    module, name = getattr(inner, "__module__", None), getattr(inner, "__qualname__", None)
    there: Any = sys.modules.get(str(module))
    for part in str(name).split("."):
        there = getattr(there, part, None)
    file, digest = _hashed(inner)
    if digest is not None and inner is not thing:
        arguments = re.sub(r" at 0x[0-9a-fA-F]+", "", repr((thing.args, sorted(thing.keywords.items()))))
        digest = hashlib.sha256(f"{digest} {arguments}".encode()).hexdigest()
    if reference is not None:
        module, _, name = reference.partition(":")
    if reference is not None or there is thing:
        return Code(str(module), str(name), file, digest)
    return Code(caller, None, file, digest)


def for_another_process(kind: str, name: str, code: Code) -> dict[str, str]:
    """Describe an attention or a backbone, as :func:`csham.backbones.own.unpack_code` takes it there.

    Raises:
        UserError: Another process could not import it.
    """
    if code.module == "__main__":
        raise UserError(
            f"the {kind} {name!r} is of a script or a prompt, which other processes cannot import. Put it into a "
            "module: my_module.py, and import it from there."
        )
    return {"kind": kind, "name": name, "reference": code.reference, "folder": _folder(code.module)}


def described(err: BaseException) -> str:
    """Say an error of a user's own code in one line."""
    text = shorten(str(err).strip().rstrip("."), 500)
    return f"{type(err).__name__}: {text}" if text else type(err).__name__


def kind_of(value: Any) -> str:
    """Say what came instead of what was wanted."""
    return "None" if value is None else f"a {type(value).__name__}"


def readable(thing: Any) -> str:
    """Name a class or function for people."""
    inner = _unwrapped(thing)
    name = getattr(inner, "__qualname__", None) or type(inner).__name__
    return str(name).rpartition("<locals>.")[2].replace("<lambda>", "lambda")


def first_line(thing: Any) -> str:
    """Return the first line of what a class or function says of itself; empty where it says nothing."""
    text = (getattr(thing, "__doc__", None) or "").strip().splitlines()
    own = isinstance(thing, type) and "__doc__" in vars(thing)
    return shorten(text[0].rstrip("."), 80) if text and (own or not isinstance(thing, type)) else ""


_PATH = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
_REFERENCE = re.compile(f"{_PATH}:{_PATH}", re.ASCII)
_NAME = re.compile(r"[A-Za-z_][\w.-]*(:[A-Za-z_][\w.]*)?", re.ASCII)


def _unwrapped(thing: Any) -> Any:
    while isinstance(thing, functools.partial):
        thing = thing.func
    return thing


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
