"""Power cuts: the file operations of a piece of work, and the folders that a crash may leave at any point of it.

As ALICE does for databases (Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014): the operations are
recorded while they happen, and states are built from what a disk need not have: content that was not synced may be
lost, torn or zero; entries of a folder that was not synced may be missing, up to any point or one by one. What was
synced is there. Nothing is assumed of a particular file system, but that a renaming shows the old entry or the new one.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Tree = dict[str, bytes | None]
"""Content of each file and None for each folder, by its path from the root."""


@dataclass(frozen=True)
class Operation:
    """What changed on the disk, or was asked to be there.

    Attributes:
        kind: ``make``, ``mkdir``, ``rename``, ``remove``: of an entry in a folder; ``write``: the content of a file as
            it is now; ``sync``, ``sync folder``: what is there stays; ``promise``: what no crash may take from then on.
        path: From the root.
        file: Number of the file, which it keeps when it is renamed.
        to: New path.
        content: Of the file.
        holds: Of a promise: takes the root of a state and returns True, or says what was lost.
    """

    kind: str
    path: str
    file: int = -1
    to: str = ""
    content: bytes = b""
    holds: Callable[[Path], bool | str] | None = field(default=None, compare=False)

    @property
    def folder(self) -> str:
        """The folder that must be synced for the operation to last: of a renaming, where the new name is."""
        return os.path.dirname(self.to or self.path)  # noqa: PTH120  relative, perhaps ""


ENTRIES = ("make", "mkdir", "rename", "remove")


class Recording:
    """The operations below a folder, seen through Python's audit events and by looking at what is there in between."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.operations: list[Operation] = []
        self._files: dict[str, tuple[int, int]] = {}  # number of the file, and its inode
        self._contents: dict[int, bytes] = {}
        self._folders: set[str] = set()
        self._count = 0
        self._lock = threading.RLock()
        self._looking = False

    def promise(self, holds: Callable[[Path], bool | str], label: str) -> None:
        """Demand that every later state keeps something."""
        with self._lock:
            self.look()
            self.operations.append(Operation("promise", label, holds=holds))

    def event(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Take an audit event, which comes before what it tells of."""
        if self._looking:
            return
        with self._lock:
            self._looking = True
            try:
                if name == "open":
                    self._looked_at(arguments[0], None)
                elif name in ("os.mkdir", "os.rmdir", "os.remove", "os.truncate"):
                    self._looked_at(arguments[0], arguments[-1])
                elif name == "os.rename":
                    self._rename(*arguments)
            finally:
                self._looking = False

    def synced(self, handle: int) -> None:
        """Take a call of fsync."""
        with self._lock:
            self.look()
            path = self._inside(_path_of(handle), None)
            if path is None:
                return
            if path in self._files:
                self.operations.append(Operation("sync", path, self._files[path][0]))
            elif path in self._folders or path == "":
                self.operations.append(Operation("sync folder", path))

    def look(self) -> None:
        """Find what has changed since the last look, whoever did it."""
        before, self._looking = self._looking, True
        try:
            with self._lock:
                self._look()
        finally:
            self._looking = before

    def _looked_at(self, path: Any, handle: Any) -> None:
        if self._inside(path, handle) is not None:
            self._look()

    def _rename(self, source: Any, target: Any, source_handle: Any = -1, target_handle: Any = -1) -> None:
        old, new = self._inside(source, source_handle), self._inside(target, target_handle)
        if old is None or new is None:
            return
        self._look()
        if old in self._files:
            self._files[new] = self._files.pop(old)
        elif old in self._folders:
            self._files = {_moved(path, old, new): file for path, file in self._files.items()}
            self._folders = {_moved(path, old, new) for path in self._folders}
        else:
            return
        self.operations.append(Operation("rename", old, to=new))

    def _look(self) -> None:
        files, folders = {}, set()
        for entry in _walk(self.root):
            path = str(Path(entry.path).relative_to(self.root))
            if entry.is_dir(follow_symlinks=False):
                folders.add(path)
            else:
                files[path] = entry.inode()
        self._note_gone(files, folders)
        for path in sorted(folders - self._folders):
            self.operations.append(Operation("mkdir", path))
        for path, inode in sorted(files.items()):
            self._note_file(path, inode)
        self._folders = folders

    def _note_gone(self, files: dict[str, int], folders: set[str]) -> None:
        gone = [path for path, (_, inode) in self._files.items() if files.get(path) != inode]
        for path in gone:
            number, _ = self._files.pop(path)
            self._contents.pop(number, None)
            self.operations.append(Operation("remove", path, number))
        for path in sorted(self._folders - folders, reverse=True):
            self.operations.append(Operation("remove", path))

    def _note_file(self, path: str, inode: int) -> None:
        if path not in self._files:
            self._files[path] = (self._count, inode)
            self._contents[self._count] = b""
            self.operations.append(Operation("make", path, self._count))
            self._count += 1
        number = self._files[path][0]
        try:
            content = (self.root / path).read_bytes()
        except FileNotFoundError:  # gone this moment, by another thread
            return
        if content != self._contents[number]:
            self._contents[number] = content
            self.operations.append(Operation("write", path, number, content=content))

    def _inside(self, path: Any, handle: Any) -> str | None:
        """Return a path from the root; None if it lies elsewhere."""
        if not isinstance(path, str | bytes | os.PathLike):
            return None
        text = os.fsdecode(path)
        if isinstance(handle, int) and handle >= 0 and not Path(text).is_absolute():
            text = f"{_path_of(handle)}/{text}"
        full = os.path.normpath(Path(text).absolute())
        if full == str(self.root):
            return ""
        return full[len(str(self.root)) + 1 :] if full.startswith(f"{self.root}{os.sep}") else None


def _path_of(handle: int) -> str:
    return str(Path(f"/proc/self/fd/{handle}").readlink())


def _walk(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path))


def _moved(path: str, old: str, new: str) -> str:
    return new + path[len(old) :] if path == old or path.startswith(f"{old}/") else path


_recordings: list[Recording] = []
_hooked = False


def _hook(name: str, arguments: tuple[Any, ...]) -> None:
    for recording in _recordings or ():  # None while Python ends
        recording.event(name, arguments)


@contextmanager
def recorded(root: Path) -> Iterator[Recording]:
    """Record what this process does below a folder."""
    global _hooked  # noqa: PLW0603  a hook cannot be taken away again
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True
    recording, fsync, fdatasync = Recording(root), os.fsync, os.fdatasync

    def syncing(sync: Callable[[Any], None]) -> Callable[[Any], None]:
        def call(file: Any) -> None:
            sync(file)
            recording.synced(file if isinstance(file, int) else file.fileno())

        return call

    os.fsync, os.fdatasync = syncing(fsync), syncing(fdatasync)
    _recordings.append(recording)
    try:
        yield recording
    finally:
        _recordings.remove(recording)
        os.fsync, os.fdatasync = fsync, fdatasync
        recording.look()


@dataclass
class State:
    """What a crash may leave.

    Attributes:
        after: Number of operations that had happened.
        how: What the disk did not have of them.
        tree: Content of the folder.
        promises: Promises that were given by then.
    """

    after: int
    how: str
    tree: Tree
    promises: list[Operation]

    def write(self, folder: Path) -> None:
        """Make the folder that the crash left."""
        for path, content in sorted(self.tree.items()):
            place = folder / path.replace(f".{os.getpid()}.", _OF_THE_DEAD)
            if content is None:
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)


# In the name of a temporary file in place of this process's number: whoever finds it is another process.
_OF_THE_DEAD = ".99999999."


def states(operations: list[Operation], most: int | None = None, seed: int = 0) -> tuple[list[State], int]:
    """Build the states that a crash may leave, each once.

    Args:
        operations: As recorded.
        most: Of them that are returned, chosen at random, and after each promise the one with the least; None returns
            all.
        seed: Of the choice.

    Returns:
        The states, in the order of time, and how many there are in all.
    """
    found: dict[tuple[Any, ...], State] = {}
    least: dict[int, tuple[Any, ...]] = {}  # by the number of promises
    past = _Past()
    for after in range(len(operations) + 1):
        if after:
            past.add(operations[after - 1])
        promises = [one for one in operations[:after] if one.kind == "promise"]
        for how, tree in past.trees():
            key = (len(promises), *sorted((path, _sum(content)) for path, content in tree.items()))
            if key not in found:
                found[key] = State(after, how, tree, promises)
            if how == f"{_NO_ENTRY}, {_EVERY_CONTENT}":
                least.setdefault(len(promises), key)
    everything = list(found.values())
    if most is None or len(everything) <= most:
        return everything, len(everything)
    chosen = set(random.Random(seed).sample(range(len(everything)), most))
    keys = set(least.values())
    chosen |= {number for number, key in enumerate(found) if key in keys}
    return [everything[number] for number in sorted(chosen)], len(everything)


# Of the entries and contents that need not be there, the last ones go missing one by one. Those before them are older
# than many that are there, which no file system makes of one crash.
_LAST = 8
_NO_ENTRY, _EVERY_CONTENT = "no entry that need not be there", "every content"

_kept: dict[tuple[str, int, int], tuple[bytes, bytes, bytes]] = {}
_sums: dict[int, tuple[bytes, bytes]] = {}


def _sum(content: bytes | None) -> bytes:
    """Return a checksum, computed once for each object."""
    if content is None:
        return b"folder"
    if id(content) not in _sums:
        _sums[id(content)] = (hashlib.sha256(content).digest(), content)  # the object stays, and so its id
    return _sums[id(content)][0]


class _Past:
    """Operations up to some point."""

    def __init__(self) -> None:
        self._operations: list[Operation] = []
        self._written: dict[int, list[bytes]] = {}  # of each file what is synced, and what came after

    def add(self, one: Operation) -> None:
        self._operations.append(one)
        if one.kind == "make":
            self._written[one.file] = [b""]
        elif one.kind == "write":
            self._written[one.file].append(one.content)
        elif one.kind == "sync" and one.file in self._written:
            self._written[one.file] = self._written[one.file][-1:]

    def trees(self) -> Iterator[tuple[str, Tree]]:
        """Give the trees that a crash at this point may leave; some of them twice."""
        past = self._operations
        open_entries = [number for number, one in enumerate(past) if one.kind in ENTRIES and not _lasts(past, number)]
        contents = list(_contents(self._written))
        for missing, which in _missing(open_entries):
            places = _applied(past, missing)
            for what, content in contents:
                yield f"{which}, {what}", {p: None if file is None else content[file] for p, file in places.items()}


def _lasts(past: list[Operation], number: int) -> bool:
    """Return True if the folder of an entry was synced after it."""
    return any(one.kind == "sync folder" and one.path == past[number].folder for one in past[number:])


def _missing(entries: list[int]) -> Iterator[tuple[set[int], str]]:
    """Choose entries that a disk does not have: the last ones from any on, or a single one."""
    yield set(), "every entry"
    if entries:
        yield set(entries), _NO_ENTRY
    for one in entries[-_LAST:]:
        yield {number for number in entries if number >= one}, f"no entry from operation {one} on"
        yield {one}, f"not the entry of operation {one}"


def _contents(written: dict[int, list[bytes]]) -> Iterator[tuple[str, dict[int, bytes]]]:
    """Choose what the files hold: all of it, or what was synced, or a torn mixture."""
    newest = {number: versions[-1] for number, versions in written.items()}
    unsynced = [number for number, versions in written.items() if len(versions) > 1]
    yield _EVERY_CONTENT, newest
    for word in _TORN if unsynced else ():
        torn = {number: _torn(word, written[number][0], written[number][-1]) for number in unsynced}
        yield f"{word} of what was not synced", newest | torn
    for number in unsynced[-_LAST:] if len(unsynced) > 1 else ():
        yield f"nothing of file {number}", newest | {number: written[number][0]}


def _torn(word: str, old: bytes, new: bytes) -> bytes:
    key = (word, id(old), id(new))
    if key not in _kept:
        _kept[key] = (_TORN[word](old, new), old, new)
    return _kept[key][0]


_TORN: dict[str, Callable[[bytes, bytes], bytes]] = {
    "nothing": lambda old, new: old,
    "half": lambda old, new: new[: (len(old) + len(new)) // 2],
    "the length": lambda old, new: old[: len(new)].ljust(len(new), b"\0"),
    "the second half": lambda old, new: old[: len(new) // 2].ljust(len(new) // 2, b"\0") + new[len(new) // 2 :],
}


def _applied(past: list[Operation], missing: set[int]) -> dict[str, int | None]:
    """Return the number of the file at each path, and None for folders."""
    tree: dict[str, int | None] = {}
    for number, one in enumerate(past):
        parent = os.path.dirname(one.path)  # noqa: PTH120
        if number in missing or (parent and tree.get(parent, 0) is not None):
            continue
        if one.kind == "make":
            tree[one.path] = one.file
        elif one.kind == "mkdir":
            tree[one.path] = None
        elif one.kind == "remove":
            tree = {path: file for path, file in tree.items() if path != one.path and not _below(path, one.path)}
        elif one.kind == "rename" and one.path in tree:
            tree = {path: file for path, file in tree.items() if path != one.to and not _below(path, one.to)}
            tree = {_moved(path, one.path, one.to): file for path, file in tree.items()}
    return tree


def _below(path: str, folder: str) -> bool:
    return path.startswith(f"{folder}/")
