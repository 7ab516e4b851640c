"""Mutants of src and the tests that notice them: one place of the code is changed at a time, and its room's tests run.

A mutant that no test fails on has survived: behaviour that no test holds. It gets a test or, where it is the same
program to every caller, an entry in ``mutants_known.toml`` that says why. Cosmic Ray makes the changes, in a copy of
the working tree, ``build/mutants/tree``. Only quick tests run, first those nearest to the changed module. The outcomes
are kept in ``build/mutants/SEED.jsonl``: called again, only what had survived is tried again.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import contextlib
import difflib
import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build/mutants"
TREE = BUILD / "tree"
SOURCE = "src/csham"
KNOWN = Path(__file__).with_name("mutants_known.toml")

# The rooms, each with the same share of the mutants; of some of them what computes and what is read back.
ROOMS = {
    "study": "statistics store results findings comparison_statistics verdict pooling headline machines overview",
    "training": "metrics config loop checkpoints evaluation shared_norm steps course losses optimizer averaging",
    "data": "split batches crops duplicates cache sources/*",
    "layers": "**/*",
    "attach": "**/*",
    "inference": "**/*",
    "cost": "**/*",
}

# One for each kind of mistake. Most others of Cosmic Ray's (a product for a sum, << for +) end in an error anywhere.
OPERATORS = """
    ReplaceBinaryOperator_: Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Mul Mod_FloorDiv Pow_Mul BitOr_BitAnd BitAnd_BitOr
    ReplaceComparisonOperator_: Lt_LtE Lt_Gt LtE_Lt Gt_GtE Gt_Lt GtE_Gt Eq_NotEq NotEq_Eq Is_IsNot IsNot_Is
    ReplaceUnaryOperator_: USub_UAdd Delete_Not Delete_Invert
    Replace: TrueWithFalse FalseWithTrue AndWithOr OrWithAnd BreakWithContinue ContinueWithBreak
    : AddNot ExceptionReplacer NumberReplacer RemoveDecorator ZeroIterationForLoop
"""

# Imported once, before the process divides for each mutant.
WARM = ("torchvision", "timm", "accelerate", "sklearn.model_selection", "scipy.stats", "hypothesis", "pytest")

# Seconds that one test may take, and all of a room.
TEST_LIMIT, ROOM_LIMIT = 120, 1800


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        path: Of the file, from the root.
        line: Where.
        where: The class or function around it.
        before: The changed lines without indentation.
        after: What they become.
        code: The whole file, changed.
    """

    path: str
    line: int
    where: str
    before: str
    after: str
    code: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What it is known by, wherever its lines move."""
        return self.where, self.before, self.after

    @property
    def room(self) -> str:
        """The folder of ``src/csham`` that it is in."""
        return Path(self.path).relative_to(SOURCE).parts[0]


def main() -> int:
    """Sample, try and report; 1 if any survived."""
    options = parse()
    sys.path.append(str(BUILD / "tools"))  # last, so that nothing of the environment is replaced
    copy_tree()
    known = explained()
    rooms = [options.only] if options.only else list(ROOMS)
    mutants = [mutant for room in rooms for mutant in sample(room, options.count // len(rooms), options.seed)]
    if options.list:
        for mutant in mutants:
            say(mutant, "mutant")
        return 0
    warm_up()
    for room in [] if options.near else rooms:
        if run_tests(room) != "survived":
            sys.exit(f"The tests of {room} fail while nothing is changed: see {BUILD / 'output.txt'}")
    log = BUILD / f"{options.seed}.jsonl"
    known = kept(log) | known
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    for mutant in mutants:
        outcome = known.get(mutant.key, "survived")
        if outcome == "survived":
            outcome = try_out(mutant, options.near)
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"outcome": outcome, "key": mutant.key}) + "\n")
            say(mutant, outcome, failures())
        outcomes[mutant.room][outcome] += 1
    for room in rooms:
        print(room, *(f"{count} {outcome}" for outcome, count in sorted(outcomes[room].items())), sep="  ")
    return int(any(counts["survived"] for counts in outcomes.values()))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="scripts/mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, required=True, help="of the sample")
    parser.add_argument("--count", type=int, default=200, help="mutants, the same number of each room; default 200")
    parser.add_argument("--only", choices=ROOMS, metavar="ROOM", help=f"all of them in one of {', '.join(ROOMS)}")
    parser.add_argument(
        "--near", action="store_true", help="for now, only the test files nearest to the changed module"
    )
    parser.add_argument("--list", action="store_true", help="print the sample and try nothing")
    return parser.parse_args()


def copy_tree() -> None:
    """Copy what git tracks or would, so that nobody's files are changed; the built kernels are shared."""
    shutil.rmtree(TREE, ignore_errors=True)
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (TREE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, TREE / name)
    (ROOT / "build/kernels").mkdir(exist_ok=True)
    (TREE / "build").mkdir()
    (TREE / "build/kernels").symlink_to(ROOT / "build/kernels")


def sample(room: str, count: int, seed: int) -> list[Mutant]:
    """Draw places of the room, of every file in proportion to how many it has, and one change of each."""
    draw = random.Random(f"{seed} {room}")
    places = []
    for path in files_of(room):
        found = sorted(changes(path.read_text(encoding="utf-8")).items())
        places += [(path, *place) for place in draw.sample(found, len(found))]
    step = len(places) / count
    chosen = [places[int((number + draw.random()) * step)] for number in range(min(count, len(places)))]
    return [change(path, *draw.choice(ways)) for path, _, ways in chosen]


def files_of(room: str) -> list[Path]:
    """Return the files of a room in the copy of the tree; a name of it that nothing has ends the program."""
    found = {name: list((TREE / SOURCE / room).glob(f"{name}.py")) for name in ROOMS[room].split()}
    if missing := [name for name, paths in found.items() if not paths]:
        sys.exit(f"{SOURCE}/{room} has no {', '.join(missing)}: correct ROOMS in {Path(__file__).name}.")
    return sorted(path for paths in found.values() for path in paths)


def changes(code: str) -> dict[tuple[int, int], list[tuple[str, int]]]:
    """List for every place of the code the operators that change it, and which of their occurrences it is."""
    from cosmic_ray.ast import ast_nodes, get_ast  # noqa: PLC0415
    from cosmic_ray.operators.provider import OperatorProvider  # noqa: PLC0415

    places = defaultdict(list)
    passed = passed_over(code)
    nodes = list(ast_nodes(get_ast(code)))
    for line in OPERATORS.split("\n")[1:-1]:
        prefix, _, names = line.strip().partition(": ")
        for name in names.split():
            operator = OperatorProvider()[prefix + name]()
            spots = (start for node in nodes for start, _ in operator.mutation_positions(node))
            for occurrence, start in enumerate(spots):
                if not any(first <= start < last for first, last in passed):
                    places[start].append((prefix + name, occurrence))
    return places


def passed_over(code: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return from where to where the code is not read when it runs, or only guards against mistakes in itself."""
    spans: list[ast.expr | ast.stmt] = []
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.arg(annotation=ast.expr() as span) | ast.AnnAssign(annotation=span):
                spans.append(span)
            case ast.FunctionDef(returns=ast.expr() as span):
                spans.append(span)
            case ast.If(test=ast.Name(id="TYPE_CHECKING")) | ast.Assert():
                spans.append(node)
            case ast.keyword(arg="strict" | "frozen" | "kw_only" | "slots", value=span):
                spans.append(span)
    stars = [(n, m.start()) for n, line in enumerate(code.splitlines(), 1) for m in re.finditer(r"\*,", line)]
    return [
        *(((n.lineno, n.col_offset), (n.end_lineno or 0, n.end_col_offset or 0)) for n in spans),
        *(((line, column), (line, column + 1)) for line, column in stars),  # of keyword-only arguments
    ]


def change(path: Path, operator: str, occurrence: int) -> Mutant:
    """Change one occurrence of what the operator changes."""
    from cosmic_ray.mutating import mutate_code  # noqa: PLC0415
    from cosmic_ray.operators.provider import OperatorProvider  # noqa: PLC0415

    code = path.read_text(encoding="utf-8")
    changed = mutate_code(code, OperatorProvider()[operator](), occurrence)
    old, new = code.splitlines(), changed.splitlines()
    blocks = [block for block in difflib.SequenceMatcher(None, old, new, False).get_opcodes() if block[0] != "equal"]
    first, last, new_first, new_last = blocks[0][1], blocks[-1][2], blocks[0][3], blocks[-1][4]
    before, after = (" ".join(line.strip() for line in part) for part in (old[first:last], new[new_first:new_last]))
    around = [
        node.name
        for node in ast.walk(ast.parse(code))  # from the outside in
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.lineno <= first + 1 <= (node.end_lineno or 0)
    ]
    return Mutant(str(path.relative_to(TREE)), first + 1, ".".join(around), before, after, changed)


def kept(log: Path) -> dict[tuple[str, ...], str]:
    """Read the outcomes of earlier calls."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return {tuple(row["key"]): row["outcome"] for row in map(json.loads, lines)}


def explained() -> dict[tuple[str, ...], str]:
    """Read what is known of mutants that no quick test notices; an entry whose code is gone ends the program."""
    tables = tomllib.loads(KNOWN.read_text(encoding="utf-8"))
    names = {"same": "same program", "slow": "killed by a slow test"}
    entries = {(row["where"], row["before"], row["after"]): names[kind] for kind in tables for row in tables[kind]}
    there = [pair for room in ROOMS for path in files_of(room) for pair in definitions(path.read_text("utf-8"))]
    stale = [where for where, before, _ in entries if not any(where == name and before in code for name, code in there)]
    if stale:
        sys.exit(f"{KNOWN.name} has entries whose code is gone: {', '.join(stale)}. Remove them.")
    return entries


def definitions(code: str) -> Iterator[tuple[str, str]]:
    """Give each function and class with its lines, as mutants are known by them."""

    def below(node: ast.AST, around: str) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            name = around
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                name = f"{around}.{child.name}".lstrip(".")
                yield name, " ".join(line.strip() for line in lines[child.lineno - 1 : child.end_lineno])
            yield from below(child, name)

    lines = code.splitlines()
    yield "", " ".join(line.strip() for line in lines)
    yield from below(ast.parse(code), "")


def warm_up() -> None:
    """Import what is large, and compile what stays as it is."""
    os.environ |= {"PYTHONPATH": str(TREE / "src"), "CI": "1"}  # hypothesis draws the same examples each time
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True  # of changed files, which may be as long and as old as the next
    compileall.compile_dir(TREE, quiet=2)
    sys.path.insert(0, str(TREE / "src"))
    if not importlib.import_module("torch").cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")  # as tests/conftest.py does, before others import triton
    for name in WARM:
        importlib.import_module(name)


def try_out(mutant: Mutant, near: bool) -> str:
    """Run the tests on the changed file and put the old one back; return "killed" or "survived"."""
    path = TREE / mutant.path
    original = path.with_suffix(".original")
    path.rename(original)
    try:
        path.write_text(mutant.code, encoding="utf-8")
        return run_tests(mutant.room, path.stem, near)
    finally:
        original.replace(path)


def run_tests(room: str, module: str = "", near: bool = False) -> str:
    """Run the room's quick tests in a process of its own, first the module's, until one fails."""
    files = sorted((TREE / "tests" / room).rglob("test_*.py"), key=lambda file: file.stat().st_size)
    own = [file for file in files if _is_near(file, room, module)]
    files = own if near and own else sorted(files, key=lambda file: file not in own)
    child = os.fork()
    if not child:
        os.setsid()
        os.chdir(TREE)
        output = os.open(BUILD / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        options = ["-qx", "-m", "not slow and not long", "--timeout", str(TEST_LIMIT), "-p", "no:cacheprovider"]
        os._exit(importlib.import_module("pytest").main([*options, "--basetemp", str(BUILD / "tmp"), *map(str, files)]))
    status = wait(child)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what the tests started and left
    return "survived" if status == 0 else "killed"


def _is_near(file: Path, room: str, module: str) -> bool:
    """Return True if these are tests of the module or of its neighbours in the room, or import it themselves."""
    imports = re.compile(rf"^\s*(from|import) csham.*\b{module}\b", flags=re.MULTILINE)
    texts = {path.stem: path.read_text("utf-8") for path in (TREE / SOURCE / room).rglob("*.py")}
    users = {name for name, text in texts.items() if imports.search(text)}
    used = set(re.findall(rf"^\s*from csham\.{room}\S*\.(\w+) import", texts.get(module, ""), flags=re.MULTILINE))
    names = {module, *users, *used} - {"__init__"}
    return any(name in file.stem for name in names) or bool(imports.search(file.read_text("utf-8")))


def wait(child: int) -> int:
    """Wait until a process ends, or end it after too long; return its status."""
    end = time.monotonic() + ROOM_LIMIT
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.1)
    os.killpg(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def failures() -> str:
    """Return which test failed last."""
    lines = (BUILD / "output.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line for line in reversed(lines) if line.startswith(("FAILED", "ERROR"))), "").partition(" - ")[0]


def say(mutant: Mutant, outcome: str, reason: str = "") -> None:
    """Print a mutant and what became of it."""
    lines = (f"{outcome}  {mutant.path}:{mutant.line}  {reason}", f"- {mutant.before}", f"+ {mutant.after}")
    print(*lines, sep="\n    ", flush=True)


if __name__ == "__main__":
    sys.exit(main())
