"""Changed files, by the thousand: each reader gives the result of the sound file, or says clearly which one is not.

    python scripts/fuzz --cases 200
    python scripts/fuzz --seconds 3600 --only store --only cache --findings /tmp/findings
    python scripts/fuzz --replay /tmp/findings/store-17

A case is a reader, a seed and a number: the same three give the same change. Anything else than the same result, or an
error for users that names the file, is a finding: another exception, another result without a word, seconds without an
answer, memory without end. It is kept with the folder that it happened in. Where the process itself ends,
``under-way.json`` among the findings has the case.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import faulthandler
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# Before csham is imported: kernels would be built anew for every campaign.
os.environ["CSHAM_KERNELS"] = "reference"

from csham.errors import UserError
from mutations import mutate
from readers import READERS, Target

SECONDS = 20.0
"""Of work, after which a reading counts as one that never ends; of a slow reader three times that."""

WAITING = 10
"""How many times as long a reading may take that waits, for others on a machine with much to do among them."""

MEMORY = 512 * 2**20
"""Bytes by which the memory of the process may rise during one reading."""

LONGEST = 10_000
"""Characters of what a user may be told; a path may have some thousand."""


class HangError(BaseException):
    """A reading took too long."""


@dataclasses.dataclass
class Outcome:
    """What became of a case.

    Attributes:
        kind: ``same``, the sound result; ``refused``, an error that names the file; ``told``, another result with a
            sentence that says so; ``other``, another result of what csham has not written; of findings, what is wrong.
        said: What the user was told, or the traceback.
    """

    kind: str
    said: str = ""

    @property
    def good(self) -> bool:
        return self.kind in ("same", "refused", "told", "other")


class Bench:
    """A reader in its folder, with the sound files kept in memory."""

    def __init__(self, name: str, root: Path) -> None:
        self.name, self.reader = name, READERS[name]
        self.place = root / name.replace(" ", "-")
        self.place.mkdir()
        with _within(self.place):
            self.reader.make(self.place)
            self.sound = {path.relative_to(self.place): path.read_bytes() for path in _files(self.place)}
            self.stamps = {path: _stamp(self.place / path) for path in self.sound}
            self.expected, self.said = self._result()
            self.restore()
            again, _ = self._result()
            self.restore()
        if again != self.expected:
            raise SystemExit(f"{name}: two readings of the sound files differ")

    def case(self, seed: int, number: int) -> tuple[str, bytes, str, Target]:
        """Return the file that a case changes, its new content, what was done to it, and the target."""
        rng = random.Random(f"{self.name} {seed} {number}")
        target = rng.choice(self.reader.targets)
        with _within(self.place):
            path = rng.choice(sorted(str(path) for path in Path().glob(target.pattern)))
        content = self.sound[Path(path)]
        changed, edited, what = content, False, ""
        while changed == content:
            what, edited, changed = mutate(content, target.kind, rng)
        if edited and target.checked == "bytes":
            target = dataclasses.replace(target, checked="never")
        return path, changed, what, target

    def try_out(self, path: str, content: bytes, target: Target) -> Outcome:
        """Read with one file changed; :meth:`restore` puts everything back."""
        with _within(self.place):
            Path(path).write_bytes(content)
            return self._judged(path, target)

    def keep(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Save a finding with the files that it happened with."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path, content in self.sound.items():
            place = folder / "files" / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        (folder / "finding.json").write_text(json.dumps(about, indent=2) + "\n")

    def restore(self) -> None:
        """Put the sound files back and remove what has come."""
        for path in _files(self.place):
            if path.relative_to(self.place) not in self.sound:
                path.unlink()
        for folder in sorted((p for p in self.place.rglob("*") if p.is_dir()), reverse=True):
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()
        for path, content in self.sound.items():
            place = self.place / path
            if not place.exists() or _stamp(place) != self.stamps[path]:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)
                self.stamps[path] = _stamp(place)

    def _judged(self, path: str, target: Target) -> Outcome:
        seconds = SECONDS * (3 if self.reader.slow else 1)
        before = _rise_from_here()
        try:
            with _time_limit(seconds):
                found, said = self._result()
        except UserError as err:
            outcome = _refused(str(err), path)
        except HangError:
            outcome = Outcome("hang", f"no answer within {seconds:.0f} s of work")
        except (Exception, SystemExit) as err:
            outcome = Outcome("traceback", "".join(traceback.format_exception(err))[-3000:])
        else:
            outcome = self._compared(found, said, path, target)
        rise = _highest() - before
        if outcome.good and rise > MEMORY:
            return Outcome("memory", f"{rise / 2**20:.0f} MiB more; {outcome.kind}: {outcome.said}")
        return outcome

    def _compared(self, found: str, said: str, path: str, target: Target) -> Outcome:
        if found == self.expected:
            return Outcome("same", said)
        if target.checked == "never":
            return Outcome("other", said)
        if said != self.said and (Path(path).name in said or (self.reader.tells and self.reader.tells in said)):
            return Outcome("told", said)
        return Outcome("other result", said)

    def _result(self) -> tuple[str, str]:
        """Return a digest of what is read, and what was said meanwhile."""
        said: list[str] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = self.reader.read(said.append)
        return _digest(found), "\n".join(said)


def _refused(message: str, path: str) -> Outcome:
    if Path(path).name not in message:
        return Outcome("nameless", message[:LONGEST])
    if len(message) > LONGEST:
        return Outcome("wordy", f"{len(message)} characters: {message[:500]}")
    if not message.replace("\n", "").isprintable():
        return Outcome("raw", ascii(message))
    return Outcome("refused", message)


def _digest(value: Any) -> str:
    """Return a checksum of values of every kind that readers return; bit for bit."""
    found = hashlib.sha256()

    def add(value: Any) -> None:
        found.update(type(value).__name__.encode())
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = vars(value)
        if hasattr(value, "detach"):
            value = value.detach().cpu().numpy()
        if hasattr(value, "tobytes") and hasattr(value, "shape"):
            found.update(f"{value.dtype} {value.shape}".encode() + value.tobytes())
        elif isinstance(value, Mapping):
            for key, item in sorted(value.items(), key=lambda pair: str(pair[0])):  # their order says nothing
                add(key)
                add(item)
        elif isinstance(value, bytes | str):
            found.update(value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass"))
        elif isinstance(value, Sequence):
            for item in value:
                add(item)
        else:
            found.update(repr(value).encode())

    add(value)
    return found.hexdigest()


def _files(place: Path) -> list[Path]:
    return [path for path in place.rglob("*") if path.is_file() or path.is_symlink()]


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


@contextlib.contextmanager
def _within(folder: Path) -> Iterator[None]:
    with contextlib.chdir(folder):
        yield


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise after so long; end the process, with its stack, where Python does not come to that."""

    def stop(*_: object) -> None:
        raise HangError

    limits = {signal.ITIMER_PROF: (signal.SIGPROF, seconds), signal.ITIMER_REAL: (signal.SIGALRM, WAITING * seconds)}
    before = {signum: signal.signal(signum, stop) for signum, _ in limits.values()}
    for timer, (_, most) in limits.items():
        signal.setitimer(timer, most)
    faulthandler.dump_traceback_later(2 * WAITING * seconds + 10, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        for timer in limits:
            signal.setitimer(timer, 0)
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _rise_from_here() -> int:
    """Forget the peak of this process's memory, and return what it has now; 0 where that cannot be said."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _highest()


def _highest() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _limit_memory() -> None:
    """Let an allocation of gigabytes fail rather than take the machine down."""
    with contextlib.suppress(OSError, ValueError):
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + 6 * 2**30, resource.getrlimit(resource.RLIMIT_AS)[1]))


@dataclasses.dataclass
class Options:
    """What a campaign is to do."""

    seconds: float | None
    cases: int
    seed: int
    only: Sequence[str]
    findings: Path
    first: int = 0


def campaign(options: Options) -> int:
    """Try cases in this process until all are, the time is over or it is interrupted; returns how many are findings."""
    root = Path(tempfile.mkdtemp(prefix="csham-fuzz-"))
    os.environ["CSHAM_CACHE"] = str(root / "own-cache")
    counts: dict[str, Counter[str]] = {}
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        names = list(options.only) or list(READERS)
        spent, number = dict.fromkeys(names, 0.0), dict.fromkeys(names, options.first)
        benches: dict[str, Bench] = {}
        until = None if options.seconds is None else time.monotonic() + options.seconds
        while open_ones := [name for name in names if number[name] < options.first + _share(name, options)]:
            if until is not None and time.monotonic() > until:
                break
            name = min(open_ones, key=spent.__getitem__)
            started = time.monotonic()
            if name not in benches:
                benches[name] = Bench(name, root)
                counts[name] = Counter()
                started = time.monotonic()
            counts[name][_one(benches[name], options, number[name])] += 1
            number[name] += 1
            spent[name] += time.monotonic() - started
    except KeyboardInterrupt:
        print("interrupted; so far:")
    finally:
        signal.signal(signal.SIGTERM, before)
        shutil.rmtree(root, ignore_errors=True)
    return _table(counts, options)


def _share(name: str, options: Options) -> int:
    """How many cases a reader gets: a tenth of them where each takes a second."""
    return max(1, options.cases // 10) if READERS[name].slow else options.cases


def _one(bench: Bench, options: Options, number: int) -> str:
    path, content, what, target = bench.case(options.seed, number)
    mark = options.findings / f"{bench.name.replace(' ', '-')}-{options.seed}-{number}"
    about = {"reader": bench.name, "seed": options.seed, "case": number, "file": path, "change": what}
    _note_case(options.findings, about)
    outcome = bench.try_out(path, content, target)
    bench.restore()
    if not outcome.good:
        bench.keep(mark, {**about, "outcome": outcome.kind, "said": outcome.said})
        (mark / "changed").write_bytes(content)
        print(f"{outcome.kind}: {json.dumps(about)}\n    {outcome.said[-600:]}", flush=True)
    return outcome.kind


def _note_case(folder: Path, about: Mapping[str, Any]) -> None:
    """Write down which case is under way, for the case that this process does not survive it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "under-way.json").write_text(json.dumps(about))


def _table(counts: Mapping[str, Counter[str]], options: Options) -> int:
    bad = 0
    for name, found in counts.items():
        bad += sum(count for kind, count in found.items() if not Outcome(kind).good)
        print(f"{name:18}{found.total():7}  {', '.join(f'{count} {kind}' for kind, count in sorted(found.items()))}")
    total = sum(found.total() for found in counts.values())
    print(f"{total} cases, {bad} findings{f' in {options.findings}' if bad else ''}", flush=True)
    return bad


def replay(folder: Path) -> int:
    """Try a finding again, with the files that it was found with."""
    about = json.loads((folder / "finding.json").read_text())
    with tempfile.TemporaryDirectory(prefix="csham-fuzz-") as root:
        os.environ["CSHAM_CACHE"] = str(Path(root) / "own-cache")

        def copy(place: Path) -> None:
            shutil.copytree(folder / "files", place, dirs_exist_ok=True)

        READERS[about["reader"]] = dataclasses.replace(READERS[about["reader"]], make=copy)
        bench = Bench(about["reader"], Path(root))
        *_, target = bench.case(about["seed"], about["case"])
        outcome = bench.try_out(about["file"], (folder / "changed").read_bytes(), target)
    print(f"{outcome.kind}: {outcome.said}")
    return 0 if outcome.good else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run a campaign or replay a finding; exit code 1 where there are findings."""
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, help="stop after so long")
    parser.add_argument(
        "--cases", type=int, help="of each reader; a tenth of them of slow ones (default: 100, or no end)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", action="append", default=[], choices=list(READERS), metavar="READER")
    parser.add_argument("--quick", action="store_true", help="leave the slow readers out")
    parser.add_argument("--findings", type=Path, default=Path(tempfile.gettempdir()) / "csham-findings")
    parser.add_argument("--replay", type=Path, help="folder of a finding")
    parser.add_argument("--list", action="store_true", help="name the readers")
    given = parser.parse_args(argv)
    if given.list:
        print("\n".join(READERS))
        return 0
    if given.replay:
        return replay(given.replay)
    cases = given.cases if given.cases is not None else (100 if given.seconds is None else 10**9)
    _limit_memory()
    only = given.only or [name for name, reader in READERS.items() if not (given.quick and reader.slow)]
    options = Options(given.seconds, cases, given.seed, only, given.findings.absolute(), given.first)
    return int(campaign(options) > 0)


if __name__ == "__main__":
    sys.exit(main())
