"""Changes to files: of bytes, of lines, and of what a format means; each a function of the content and a generator."""

from __future__ import annotations

import io
import json
import random
import re
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import yaml

Mutation = Callable[[bytes, random.Random], bytes]

_SIZES = (1, 2, 8, 64, 512, 4096)


def _part(content: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(content) + 1)
    return start, min(len(content), start + rng.choice(_SIZES))


def flip_bit(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]


def set_byte(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return (
        content[:place] + bytes([rng.choice((0, 1, 10, 32, 34, 127, 255, rng.randrange(256)))]) + content[place + 1 :]
    )


def zero_block(content: bytes, rng: random.Random) -> bytes:
    start, stop = _part(content, rng)
    return content[:start] + bytes(stop - start) + content[stop:]


def random_block(content: bytes, rng: random.Random) -> bytes:
    start, stop = _part(content, rng)
    return content[:start] + rng.randbytes(stop - start) + content[stop:]


def drop_block(content: bytes, rng: random.Random) -> bytes:
    start, stop = _part(content, rng)
    return content[:start] + content[stop:]


def repeat_block(content: bytes, rng: random.Random) -> bytes:
    start, stop = _part(content, rng)
    return content[:stop] + content[start:]


def insert_block(content: bytes, rng: random.Random) -> bytes:
    start, stop = _part(content, rng)
    return content[:start] + rng.randbytes(stop - start) + content[start:]


def swap_blocks(content: bytes, rng: random.Random) -> bytes:
    size = rng.choice(_SIZES)
    first, second = sorted(rng.randrange(len(content)) for _ in range(2))
    second = max(second, first + size)
    a, b = content[first : first + size], content[second : second + size]
    return content[:first] + b + content[first + size : second] + a + content[second + size :]


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.choice((0, 1, len(content) // 2, len(content) - 1, rng.randrange(len(content))))]


def append(content: bytes, rng: random.Random) -> bytes:
    return content + rng.choice((b"\n", b" ", b"\0" * 512, content, rng.randbytes(64)))


BYTES: tuple[Mutation, ...] = (
    flip_bit, flip_bit, set_byte, zero_block, random_block, drop_block, repeat_block, insert_block, swap_blocks, cut,
    append,
)  # fmt: skip


def cut_at_line(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    return b"".join(lines[: rng.randrange(len(lines))])


def drop_line(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    del lines[rng.randrange(len(lines))]
    return b"".join(lines)


def repeat_line(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
    return b"".join(lines)


def swap_lines(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    a, b = (rng.randrange(len(lines)) for _ in range(2))
    lines[a], lines[b] = lines[b], lines[a]
    return b"".join(lines)


def change_number(content: bytes, rng: random.Random) -> bytes:
    numbers = list(re.finditer(rb"-?\d+(\.\d+)?(e-?\d+)?", content))
    if not numbers:
        return append(content, rng)
    one = rng.choice(numbers)
    new = rng.choice((b"0", b"1", b"7", b"-1", b"95", b"1e9", b"nan", b"NaN", b".5", one.group() + b"1", b"9" * 400))
    return content[: one.start()] + new + content[one.end() :]


def put_odd_text(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    odd = (b"\x1b[31m", b"\xff\xfe", b"\xef\xbb\xbf", "\u202e".encode(), b"\r", b"\t", b"'", b'"', b"#", b"[" * 5000)
    return content[:start] + rng.choice(odd) + content[start:]


TEXT: tuple[Mutation, ...] = (cut_at_line, drop_line, repeat_line, swap_lines, change_number, put_odd_text)

_DEEP: Any = []
for _ in range(200):
    _DEEP = [_DEEP]

_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 5, 95, 2**31, 2**63, 10**400, 0.5, 1e300, float("nan"), float("inf"), "", "0", "last",
    "best", "A" * 100_000, "../../up", "/etc/passwd", "\x1b[31mred", "\u202eabc", "a\nb", [], [1], {}, {"a": 1}, _DEEP,
)  # fmt: skip


def _nodes(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(node for key, item in items for node in _nodes(item, (*path, key)))]


def _changed(value: Any, rng: random.Random) -> Any:
    """Return another value for one of a file."""
    near: list[Any] = []
    if isinstance(value, bool):
        near = [not value]
    elif isinstance(value, int | float):
        near = [value + 1, value - 1, -value, value * 2, value / 2, value + 0.25, str(value)]
    elif isinstance(value, str):
        near = [value[:-1], value + "x", value.upper(), value[::-1]]
    elif isinstance(value, list):
        near = [value[:-1], value[::-1], value * 2, value[:1]]
    elif isinstance(value, dict):
        near = [dict(list(value.items())[:-1]), {**value, "more": 1}, list(value)]
    return rng.choice(near) if near and rng.random() < 0.6 else rng.choice(_VALUES)


def edit_value(content: Any, rng: random.Random) -> Any:
    """Change, remove or rename one value of what a JSON or YAML file holds."""
    path = rng.choice(_nodes(content))
    if not path:
        return _changed(content, rng)
    place = content
    for key in path[:-1]:
        place = place[key]
    last = path[-1]
    deed = rng.random()
    if deed < 0.7:
        place[last] = _changed(place[last], rng)
    elif deed < 0.85 or not isinstance(place, dict):
        del place[last]
    else:
        place[str(last) + rng.choice(("x", " ", "\x1b[1m"))] = place.pop(last)
    return content


def edit_json(content: bytes, rng: random.Random) -> bytes:
    text = json.dumps(edit_value(json.loads(content), rng), indent=2 if b"\n  " in content else None)
    return text.encode() + b"\n" * content.endswith(b"\n")


def nest_json(content: bytes, rng: random.Random) -> bytes:
    return rng.choice((b"[" * 100_000, b'{"a":' * 100_000, b"[" * 100_000 + b"]" * 100_000, b"9" * 10_000))


def repeat_json_key(content: bytes, rng: random.Random) -> bytes:
    pairs = list(re.finditer(rb'"[^"\\]+": ?("[^"\\]*"|[\d.-]+)', content))
    if not pairs:
        return append(content, rng)
    one = rng.choice(pairs)
    return content[: one.start()] + change_number(one.group(), rng) + b", " + content[one.start() :]


JSON: tuple[Mutation, ...] = (edit_json, edit_json, edit_json, nest_json, repeat_json_key)


def edit_line(content: bytes, rng: random.Random) -> bytes:
    """Change a value in one line of JSON."""
    lines = content.splitlines(keepends=True)
    number = rng.randrange(len(lines))
    lines[number] = rng.choice((edit_json, edit_json, edit_json, edit_json, repeat_json_key))(lines[number], rng)
    return b"".join(lines)


JSON_LINES: tuple[Mutation, ...] = (edit_line,)


def edit_yaml(content: bytes, rng: random.Random) -> bytes:
    changed = edit_value(yaml.safe_load(content), rng)
    return yaml.safe_dump(changed, sort_keys=False, allow_unicode=True, width=1000).encode("utf-8", "surrogatepass")


def trick_yaml(content: bytes, rng: random.Random) -> bytes:
    levels = [
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in zip("abcdefg", "bcdefgh", strict=True)
    ]
    tricks = (
        "\n".join(["a: &a [x, x, x, x, x, x, x, x, x]", *levels]).encode() + b"\n",
        b"[" * 20_000,
        b"? " * 5_000,
        b"!!python/object/apply:os.system ['touch fuzzed']\n",
        b"&a [*a]\n",
        b"a: &a\n  b: *a\n",
        b"!!binary aaaa\n",
        b"2001-12-14\n",
        b"1: 2\n",
        b"--- a\n--- b\n",
    )
    return rng.choice((rng.choice(tricks), content + rng.choice(tricks)))


YAML: tuple[Mutation, ...] = (edit_yaml, edit_yaml, edit_yaml, trick_yaml)


def edit_member(content: bytes, rng: random.Random) -> bytes:
    """Write a zip anew, with one member changed and all sums right."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    number = rng.randrange(len(members))
    info, data = members[number]
    deed = rng.random()
    if deed < 0.6 and data:
        members[number] = (info, rng.choice(BYTES)(data, rng))
    elif deed < 0.7:
        del members[number]
    elif deed < 0.8:
        members[number] = (_renamed(info, rng), data)
    else:
        members.insert(number, (_renamed(info, rng) if deed < 0.9 else info, data if deed < 0.95 else bytes(2**27)))
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two members with one name
        for one, data in members:
            archive.writestr(one.filename, data, zipfile.ZIP_DEFLATED if len(data) > 2**24 else one.compress_type)
    return target.getvalue()


def _renamed(info: zipfile.ZipInfo, rng: random.Random) -> zipfile.ZipInfo:
    names = ("../up.png", "/abs.png", "a\x1b[31m.png", info.filename + "x", "x/" + info.filename, "con", "a" * 300)
    return zipfile.ZipInfo(rng.choice(names))


ZIP: tuple[Mutation, ...] = (edit_member,)


def edit_header(content: bytes, rng: random.Random) -> bytes:
    """Change a value in the header of safetensors, with its length right."""
    length = int.from_bytes(content[:8], "little")
    header, rest = content[8 : 8 + length], content[8 + length :]
    changed = rng.choice((edit_json, edit_json, edit_json, repeat_json_key))(header, rng)
    return len(changed).to_bytes(8, "little") + changed + rest


def put_number(content: bytes, rng: random.Random) -> bytes:
    """Write NaN, infinity or another float32 into the tensors."""
    start = 8 + int.from_bytes(content[:8], "little")
    place = start + 4 * rng.randrange(max(1, (len(content) - start) // 4))
    odd = (b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff", b"\xff\xff\x7f\x7f", b"\0\0\0\0", b"\0\0\x80\x3f")
    return content[:place] + rng.choice(odd) + content[place + 4 :]


SAFETENSORS: tuple[Mutation, ...] = (edit_header, edit_header, put_number)

EDITS: dict[str, tuple[Mutation, ...]] = {
    "bytes": (), "text": (), "json": JSON, "json lines": JSON_LINES, "yaml": YAML, "zip": ZIP,
    "safetensors": SAFETENSORS,
}  # fmt: skip
"""Changes that keep a format, by its name."""


def mutate(content: bytes, kind: str, rng: random.Random) -> tuple[str, bool, bytes]:
    """Change a file's content once, or twice.

    Returns:
        What was done; whether it was an edit, which may set sums right again; and the new content.
    """
    text = TEXT if kind in ("text", "json", "json lines", "yaml") else ()
    names, edited = [], False
    for _ in range(rng.choice((1, 1, 1, 2))):
        choices = rng.choice([one for one in (BYTES, text, EDITS[kind], EDITS[kind]) if one])
        one = rng.choice(choices)
        try:
            content = one(content, rng) if content else append(content, rng)
        except Exception:  # a second change, which cannot take apart what the first has left
            continue
        names.append(one.__name__)
        edited |= one in EDITS[kind]
    return " + ".join(names), edited, content
