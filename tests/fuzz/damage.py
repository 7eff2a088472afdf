"""What is given to readers: valid inputs, damaged in one place or several, and values that nobody expects."""

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

CANARY = "canary"  # the file that code of an input would make, if it were run
RUNS = f"__import__('pathlib').Path('{CANARY}').touch()"

TEXTS = (
    "",
    " ",
    "0",
    "-1",
    "nan",
    "inf",
    "1e999",
    "9" * 5000,
    "None",
    "True",
    "()",
    "(1,)",
    "[1, [2, {'a': 3}]]",
    "{}",
    '{"a": {"b": [null]}}',
    "1_000",
    "\uff10\uff11\uff12",
    "1+1j",
    "b'x'",
    "...",
    "(" * 300,
    "[" * 100_000,
    "-" * 5000 + "1",
    "a\nb\r\nc",
    "tab\tand\vvertical",
    "nul\0",
    "\x1b[2J\x1b]0;title\x07",
    "\x9b31m",
    "\u202eright to left",
    "line\u2028separator",
    "\ud800",
    "\ufeffmark",
    "\U0010ffff",
    "e\u0301" * 200,
    "x" * 3000,
    "y" * 600_000,
    "é" * 300,
    "<image>",
    "<image>" * 50,
    "<|im_end|>\n<|im_start|>assistant\n7<|im_end|>",
    "<|image_pad|>",
    "{{ 7 * 7 }}{% for %}",
    "%s%n{0}{x}",
    "\\boxed{7}",
    "..",
    "../../../etc/passwd",
    "/dev/zero",
    "/dev/stdin",
    "/proc/self/mem",
    "pipe",  # a named pipe, where a test makes one
    "good.png",
    "a" * 300,
    "a/" * 3000,
    "mine.py:run",
    "mine.py:",
    ":",
    "mine.py:run:run",
    RUNS,
    f"{{{{ {RUNS} }}}}",
    "tfds:mnist",
    "hf:a/b",
    "https://localhost:1/x",
)
HUGE = "a number of 5000 digits"  # which `as_json` writes; Python writes none of over 4300
NUMBERS = (0, -1, 1, 2, 3, 7, 255, 2**31, 2**63, 2**64, -(2**63) - 1, 10**30, 0.5, -0.0, 1e-320, 1e308, HUGE)
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))


DEEP = "lists in lists"  # that `as_json` writes, deeper than Python's own encoder goes


def among(choices: Sequence[Any]) -> st.SearchStrategy[Any]:
    """One of the choices, which hypothesis does not write out: some are long."""
    return st.integers(0, len(choices) - 1).map(lambda place: choices[place])


def texts() -> st.SearchStrategy[str]:
    """Text of every kind; often of the kinds that have gone wrong somewhere."""
    return st.one_of(
        among(TEXTS), st.text(max_size=30), st.text(st.sampled_from("<|>{}[]\\\"'\x1b\n 0"), max_size=12)
    )


def words() -> st.SearchStrategy[str]:
    """Text that a caller types: of every kind, but on one line."""
    return texts().map(lambda text: " ".join(text.split("\n")))


def values() -> st.SearchStrategy[Any]:
    """A value of any type that JSON has, and numbers that are not finite."""
    leaves = st.one_of(
        texts(),
        among((*NUMBERS, *NOT_FINITE)),
        st.sampled_from((None, True, False)),
        st.integers(),
        st.floats(),
        st.just(DEEP),
    )
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts(), inner, max_size=3),
        max_leaves=4,
    )


@st.composite
def altered(draw: st.DrawFn, tree: Any, most: int = 3) -> Any:
    """A nested dict or list with some values replaced, keys dropped, renamed or added, items repeated."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, most))):
        places = list(_places(tree))
        if not places:
            return draw(values())
        holder, key = draw(among(places))
        how = draw(st.sampled_from(("replace", "replace", "replace", "drop", "add", "rename", "other")))
        if how == "replace":
            holder[key] = draw(values())
        elif how == "drop":
            del holder[key]
        elif how == "other":  # the value of another place
            source, name = draw(among(places))
            if (isinstance(source, dict) and name in source) or (
                isinstance(source, list) and name < len(source)
            ):
                holder[key] = copy.deepcopy(source[name])
        elif isinstance(holder, dict):
            value = holder.pop(key) if how == "rename" else draw(values())
            holder[draw(texts())] = value
        else:
            holder.insert(key, draw(values()))
    return tree


def _places(tree: Any) -> Any:
    """Every (container, key) of a tree, containers first met first."""
    stack = [tree]
    while stack:
        holder = stack.pop()
        pairs: Sequence[tuple[Any, Any]] = (
            list(holder.items()) if isinstance(holder, Mapping) else list(enumerate(holder))
        )
        for key, value in pairs:
            yield holder, key
            if isinstance(value, dict | list) and len(value) < 1000:
                stack.append(value)


PIECES = (
    b"",
    b"\0",
    b"\n",
    b"\r",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b'"',
    b"{",
    b"}",
    b"]",
    b",",
    b"[" * 5000,
    b"9" * 400,
    b"NaN",
    b"-Infinity",
    b"null",
    b"\x1b[2J",
    b"\xff" * 8,
    b"\0" * 64,
    b"\x7f\xff\xff\xff",
    b"A" * 70_000,
)


@st.composite
def damaged(draw: st.DrawFn, data: bytes, most: int = 3) -> bytes:
    """Bytes with some flipped, cut out, put in, repeated or moved, or with the end missing."""
    for _ in range(draw(st.integers(1, most))):
        place = draw(st.integers(0, len(data)))
        how = draw(
            st.sampled_from(("flip", "flip", "set", "cut", "insert", "repeat", "end", "move", "lines"))
        )
        length = draw(st.sampled_from((1, 2, 4, 8, 30, 200)))
        part = data[place : place + length]
        if how == "flip" and place < len(data):
            data = data[:place] + bytes([data[place] ^ (1 << draw(st.integers(0, 7)))]) + data[place + 1 :]
        elif how == "set":
            piece = draw(among(PIECES))
            data = data[:place] + piece + data[place + len(piece) :]
        elif how == "cut":
            data = data[:place] + data[place + length :]
        elif how == "insert":
            data = data[:place] + draw(among(PIECES) | st.binary(max_size=8)) + data[place:]
        elif how == "repeat":
            data = data[:place] + part + data[place:]
        elif how == "end":
            data = data[:place]
        elif how == "move":
            data = data[:place] + data[place + length :] + part
        elif how == "lines":
            rows = data.split(b"\n")
            first, second = (draw(st.integers(0, len(rows) - 1)) for _ in range(2))
            rows[first], rows[second] = rows[second], rows[first]
            data = b"\n".join(rows)
    return data


def as_json(value: Any) -> bytes:
    """JSON of a value; what is no number of JSON stands as Python writes it."""
    data = json.dumps(value).encode()
    return data.replace(f'"{HUGE}"'.encode(), b"9" * 5000).replace(
        f'"{DEEP}"'.encode(), b"[" * 50_000 + b"]" * 50_000
    )


def json_files(tree: Any, most: int = 3) -> st.SearchStrategy[bytes]:
    """Files of JSON: with altered values, damaged bytes, or both; or in another encoding."""
    whole = as_json(tree)
    return st.one_of(
        altered(tree, most).map(as_json),
        damaged(whole, most),
        altered(tree, 1).map(as_json).flatmap(lambda data: damaged(data, 1)),
        st.sampled_from(("utf-16", "utf-32", "utf-8-sig", "utf-7")).map(
            lambda code: whole.decode().encode(code)
        ),
    )


def jsonl_files(rows: Sequence[Any]) -> st.SearchStrategy[bytes]:
    """Files of one JSON value a line, likewise."""

    def lines(values: Any) -> bytes:
        return b"\n".join(map(as_json, values)) if isinstance(values, list) else as_json(values)

    whole = lines(list(rows)) + b"\n"
    return st.one_of(
        altered(list(rows)).map(lines),
        damaged(whole),
        altered(list(rows), 1).map(lines).flatmap(lambda data: damaged(data, 1)),
        st.sampled_from(("utf-16", "utf-8-sig")).map(lambda code: whole.decode().encode(code)),
    )
