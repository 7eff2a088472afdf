"""Tools that a policy can call by writing, and how a call is read out of its text.

``<zoom>left top right bottom</zoom>``
    Looks closer at a part of the image: four whole numbers, in percent of the image's width and height, from
    the left and the top. The part is cut out of the original image, before any shrinking for the model, so
    it shows what the model's own view of the whole image lost.

``<calculate>expression</calculate>``
    Arithmetic: numbers, parentheses, and + - * / // % **.

The text is hostile. Reading it takes time linear in its length and never raises; a call that makes no sense
is read as an error, in words meant for the policy. The functions of `TOOLS` run in killable processes
(``mmrl.workers``), which this module starts quickly: it imports no jax. What they raise is an answer's error.
"""

import ast
import io
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from PIL import Image

from mmrl.models.images import open_image, to_rgb, upright
from mmrl.workers.pool import Answer

__all__ = ["TABLE", "TOOLS", "Answer", "ToolCallMatch", "calculate", "closing_tags", "find_call", "zoom"]

TABLE = "mmrl.rollout.tools:TOOLS"  # for `mmrl.workers.pool.WorkerPool`
LONGEST = 200  # characters of a call's content
SMALLEST = 28  # pixels of a side; less, which is under one image token, is enlarged
THINNEST = 200  # how many times longer than the other a side may be, for such a model
DEEPEST = 50  # nested operations and parentheses of an expression
LARGEST = 10**30  # no intermediate result may reach it
LARGEST_EXPONENT = 100

BOX_NEEDS = "zoom needs four whole numbers from 0 to 100: left top right bottom"
BOX_ORDER = "zoom needs left before right and top before bottom"
NO_ARITHMETIC = "calculate needs numbers, parentheses and + - * / // % **"

_BOX = re.compile(r"\s*" + r"\s+".join([r"(\d{1,3})"] * 4) + r"\s*", re.ASCII)
_ARITHMETIC = re.compile(r"[0-9.+\-*/%() ]+", re.ASCII)
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


@dataclass(frozen=True)
class ToolCallMatch:
    """A call in a text: the tool and its arguments, or why they cannot be read."""

    tool: str
    arguments: dict[str, Any]
    error: str | None = None


def find_call(text: str, tools: Sequence[str]) -> ToolCallMatch | None:
    """The first call of one of ``tools`` in ``text``, or None. Never raises, in time linear in the text."""
    starts = {tool: text.find(f"<{tool}>") for tool in tools}
    opened = [tool for tool in tools if starts[tool] >= 0]
    if not opened:
        return None
    tool = min(opened, key=lambda name: starts[name])
    start = starts[tool] + len(f"<{tool}>")
    end = text.find(f"</{tool}>", start)
    if end < 0:
        return ToolCallMatch(tool, {}, f"{tool} is not closed")
    if end - start > LONGEST:
        return ToolCallMatch(tool, {}, f"{tool} takes at most {LONGEST} characters")
    return _READERS[tool](text[start:end])


def closing_tags(tools: Sequence[str]) -> tuple[str, ...]:
    """The strings that end a turn which calls one of ``tools``. Raises ValueError for an unknown tool."""
    unknown = [tool for tool in tools if tool not in TOOLS]
    if unknown:
        raise ValueError(f"there is no tool {unknown[0]!r}; there are {', '.join(TOOLS)}")
    return tuple(f"</{tool}>" for tool in tools)


def zoom(image: bytes | str, box: Sequence[int]) -> bytes:
    """Cut ``box`` (left, top, right, bottom in percent) out of an image (encoded bytes or a path): a PNG.

    Borders fall on whole pixels, outwards. A part with a side below 28 pixels, which is one image token, is
    enlarged (bicubic, aspect ratio kept) until that side has 28. Raises ValueError if the box is no box, the
    part is too thin for a model, or the image cannot be read.
    """
    left, top, right, bottom = box
    if not (0 <= left < right <= 100 and 0 <= top < bottom <= 100):
        raise ValueError(BOX_ORDER)
    opened = upright(open_image(image, "zoom"))
    wide, high = opened.size
    edges = (left * wide // 100, top * high // 100, -(-right * wide // 100), -(-bottom * high // 100))
    part = to_rgb(opened.crop(edges))
    if max(part.size) > THINNEST * min(part.size):
        raise ValueError("zoom needs a wider part")
    if min(part.size) < SMALLEST:
        scale = SMALLEST / min(part.size)
        part = part.resize((round(part.width * scale), round(part.height * scale)), Image.Resampling.BICUBIC)
    png = io.BytesIO()
    part.save(png, "PNG")
    return png.getvalue()


def calculate(expression: str) -> str:
    """The value of an arithmetic expression; fractions to 12 digits.

    The expression is parsed, never evaluated as code: anything but numbers and operators is refused, and so
    are expressions too long or too deep, exponents over 100, and results of 1e30 and over, before they are
    computed. Raises ValueError with what is wrong.
    """
    if len(expression) > LONGEST:
        raise ValueError(f"calculate takes at most {LONGEST} characters")
    plain = expression.strip()
    if not _ARITHMETIC.fullmatch(plain):
        raise ValueError(NO_ARITHMETIC)
    if plain.count("(") > DEEPEST:  # before parsing, which has a stack of its own
        raise ValueError("calculate: too deep")
    try:
        value = _value(ast.parse(plain, mode="eval").body, DEEPEST)
    except SyntaxError:
        raise ValueError(NO_ARITHMETIC) from None
    except ZeroDivisionError:
        raise ValueError("calculate: division by zero") from None
    return str(value) if isinstance(value, int) else format(value, ".12g")


def _value(node: ast.expr, depth: int) -> int | float:
    """The number that an expression's node stands for. Raises ValueError, ZeroDivisionError."""
    if depth == 0:
        raise ValueError("calculate: too deep")
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _bounded(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.UAdd, ast.USub)):
        value = _value(node.operand, depth - 1)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _value(node.left, depth - 1), _value(node.right, depth - 1)
        if isinstance(node.op, ast.Pow) and abs(right) > LARGEST_EXPONENT:
            raise ValueError(f"calculate: an exponent over {LARGEST_EXPONENT}")
        try:
            return _bounded(_BINARY[type(node.op)](left, right))
        except OverflowError:
            raise ValueError("calculate: too large") from None
    raise ValueError(NO_ARITHMETIC)


def _bounded(value: Any) -> int | float:
    if isinstance(value, complex):
        raise ValueError("calculate: a root of a negative number")
    if not math.isfinite(value) or abs(value) >= LARGEST:
        raise ValueError("calculate: too large")
    return value


def _read_box(content: str) -> ToolCallMatch:
    match = _BOX.fullmatch(content)
    box = [int(number) for number in match.groups()] if match else []
    if match is None or max(box) > 100:
        return ToolCallMatch("zoom", {}, BOX_NEEDS)
    if box[0] >= box[2] or box[1] >= box[3]:
        return ToolCallMatch("zoom", {}, BOX_ORDER)
    return ToolCallMatch("zoom", {"box": box})


def _read_expression(content: str) -> ToolCallMatch:
    if not _ARITHMETIC.fullmatch(content.strip()):
        return ToolCallMatch("calculate", {}, NO_ARITHMETIC)
    return ToolCallMatch("calculate", {"expression": content.strip()})


TOOLS: Mapping[str, Callable[..., Any]] = MappingProxyType({"zoom": zoom, "calculate": calculate})
_READERS: Mapping[str, Callable[[str], ToolCallMatch]] = MappingProxyType(
    {"zoom": _read_box, "calculate": _read_expression}
)
