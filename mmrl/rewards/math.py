r"""Mathematical answers: the last ``\boxed{}`` against the truth, decided by math-verify.

The answer format and the rule "last box" are those of ``compute_score`` in PAPO, VPPO and EasyR1
(``examples/reward_function/math.py``); equality is not mathruler's but mathematical. ``docs/rewards.md``
lists where the two part.
"""

import itertools
import logging
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from mmrl.rewards.answers import answer_of
from mmrl.rewards.number import is_decimal, parse_number, same_number
from mmrl.rewards.text import (
    canonical,
    has_control_characters,
    last_boxed,
    nesting,
    to_latex,
)
from mmrl.sample import Sample

MAX_PARSED = 400  # characters; a longer answer is compared as text only
MAX_NESTING = 8  # brackets within brackets; the parser's time grows with a power of it
MAX_NODES = 400  # size of an expression tree that is still compared
MAX_EXPONENT = 200  # of a number; sympy writes powers out
MAX_SYMBOLIC_EXPONENT = 20  # of anything with a variable in it; sympy expands these
ROUNDING = 0.02  # relative; between the sides of an equation
MAX_COUNT = 200  # argument of a factorial or binomial

_ONLY_WORDS = re.compile(r"[^\W\d_]+(?:[\s.,'-]+[^\W\d_]+)*")
_NOT_MATHEMATICS = re.compile(r"[;#\"`@?]|__|\*\*|\\boxed")
_COUNTING = re.compile(r"binom|choose|!")
_LARGE_NUMBER = re.compile(r"\d{4}|\^")
_ROW = re.compile(r"(\(|\[|\\\{|)([^%]*,[^%]*?)(\)|\]|\\\}|)", re.DOTALL)
_NAME = re.compile(r"\s*\\?[A-Za-z]+(?:_\S+)?(?:\([^()]*\))?\s*")  # x, A_1, \theta, f(x)
_BOXED_TRUTH = re.compile(r"\s*\\boxed\{")


def math(sample: Sample, response: str) -> dict[str, float]:
    """``{"accuracy": 1.0}`` if the answer of ``response`` (`answer_of`) equals ``sample.answer``, else 0.

    No answer or an empty one is 0 whatever the truth is. May run long on hostile answers: meant
    to be called by a ``RewardPool``, under its deadline.
    """
    return _accuracy(answer_of(sample, response), sample.answer)


def _accuracy(answer: str | None, truth: str) -> dict[str, float]:
    if _BOXED_TRUTH.match(truth):
        truth = last_boxed(truth) or ""
    return {"accuracy": float(bool(answer and truth.strip()) and equal(answer or "", truth))}


@lru_cache(maxsize=4096)
def equal(answer: str, truth: str) -> bool:
    """Whether ``answer`` is the same mathematical object, or the same text, as ``truth``.

    Decided in order by: the spelling (``text.canonical``), exact rational arithmetic if both are numbers or
    rows of them, and math-verify for the rest. Words are compared as text only, because LaTeX reads them as
    products of letters and "left" would equal "felt".
    """
    if has_control_characters(answer):
        return False
    if (key := canonical(truth)) and canonical(answer) == key:
        return True
    given, wanted = parse_number(answer), parse_number(truth)
    if given is not None and wanted is not None:
        rounded = is_decimal(answer) or is_decimal(truth)
        shares = (given / 100, wanted) if "%" in answer else (given, wanted / 100)
        marked_apart = ("%" in answer) != ("%" in truth)
        return same_number(given, wanted, rounded) or (marked_apart and same_number(*shares, rounded))
    if _is_words(answer) or _is_words(truth) or _NOT_MATHEMATICS.search(answer):
        return False
    latex = to_latex(answer), to_latex(truth)
    if given is None and wanted is None:
        same = _same_row(*latex)
        if same is not None:
            return same
    if any(_is_costly_to_parse(text) for text in latex):
        return False
    try:
        return _same_mathematics(*latex)
    except MemoryError:
        raise
    except Exception:  # sympy raises errors of many kinds on nonsense, which is no right answer
        return False


def _same_row(answer: str, truth: str) -> bool | None:
    """Whether two rows of numbers in the same brackets are the same; None if they are no such rows.

    Tuples, intervals and vectors have an order; sets and rows without brackets have none, and no repeats.
    Much quicker than parsing them as LaTeX.
    """
    (given_in, given), (wanted_in, wanted) = _row(answer), _row(truth)
    if not given or not wanted or given_in != wanted_in:
        return None
    if given_in in ("\\{\\}", ""):
        given, wanted = sorted(set(given)), sorted(set(wanted))
    rounded = is_decimal(answer) or is_decimal(truth)
    return len(given) == len(wanted) and all(
        same_number(a, b, rounded) for a, b in zip(given, wanted, strict=True)
    )


def _row(latex: str) -> tuple[str, list[Fraction]]:
    """The brackets of a row of numbers, and these; none if there is anything else in it."""
    match = _ROW.fullmatch(latex)
    items = [parse_number(item) for item in match[2].split(",")] if match and len(latex) <= MAX_PARSED else []
    numbers = [item for item in items if item is not None]
    return (match[1] + match[3], numbers) if match and len(numbers) == len(items) else ("", [])


def _is_costly_to_parse(latex: str) -> bool:
    """Whether even reading ``latex`` could take long: the parser computes binomials as it meets them."""
    counts = _COUNTING.search(latex) and _LARGE_NUMBER.search(latex)
    return len(latex) > MAX_PARSED or nesting(latex) > MAX_NESTING or bool(counts)


def _is_words(text: str) -> bool:
    return bool(_ONLY_WORDS.fullmatch(to_latex(text).rstrip(".!")))


def load() -> None:
    """Imports math-verify and sympy, a third of a second, ahead of the first answer that needs them."""
    import math_verify  # noqa: F401

    # It warns that no time limit is set; the pool's deadline is the limit here.
    logging.getLogger("math_verify").setLevel(logging.ERROR)


def _same_mathematics(answer: str, truth: str) -> bool:
    from math_verify import verify

    wanted = _parse(truth)
    if not wanted:
        return False
    given = _parse(answer)
    if not given or any(_is_costly(expression) for expression in (*wanted, *given)):
        return False
    if any(_differ(a, b) for a in wanted for b in given) or _contradicts_itself(answer, truth):
        return False
    return bool(verify(wanted, given, timeout_seconds=None))


def _contradicts_itself(answer: str, truth: str) -> bool:
    """Whether an equation has sides of different values: who writes "4 = 3" has not said 3.

    Sides may be rounded. Sides with variables may differ where the truth is an equation to be solved.
    """
    sides = [_parse(side.strip()) for side in answer.split("=") if not _NAME.fullmatch(side)]
    values = [expression for side in sides for expression in side if not _is_costly(expression)]
    return any(
        _differ(a, b, slack=ROUNDING) and not (a.free_symbols and "=" in truth)
        for a, b in itertools.combinations(values if len(sides) > 1 else [], 2)
    )


def _differ(a: Any, b: Any, slack: float = 1e-5) -> bool:
    """Whether two expressions certainly have different values; much quicker than failing to simplify.

    They are evaluated with every variable at a positive number of its own. Relations, sets, matrices and
    percentages are left to math-verify, which reads them in more than one way.
    """
    import sympy

    if not (isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr)) or a.free_symbols != b.free_symbols:
        return False
    if a.has(sympy.UnevaluatedExpr, sympy.MatrixExpr) or b.has(sympy.UnevaluatedExpr, sympy.MatrixExpr):
        return False
    names = sorted(a.free_symbols, key=str)
    point = {name: sympy.Rational(13 + 7 * i, 11) for i, name in enumerate(names)}
    try:
        values = [complex(expression.subs(point).evalf(15)) for expression in (a, b)]
    except (TypeError, ValueError, ArithmeticError):  # not a number even then: an integral, a set
        return False
    return abs(values[0] - values[1]) > slack * max(1.0, abs(values[1]))


@lru_cache(maxsize=4096)
def _parse(latex: str) -> list[Any]:
    """The sympy expressions of a LaTeX answer; empty if it cannot be read."""
    from math_verify import LatexExtractionConfig, parse

    return parse(
        "\\boxed{" + latex + "}",
        extraction_config=[LatexExtractionConfig(boxed_match_priority=0)],
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )


def _is_costly(expression: Any) -> bool:
    """Whether evaluating a parsed (not yet evaluated) expression could take long: power towers, sums"""
    import sympy

    refused = (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit, sympy.Derivative)
    counted = (sympy.factorial, sympy.binomial)
    for nodes, node in enumerate(sympy.preorder_traversal(expression)):
        if nodes > MAX_NODES or isinstance(node, refused):
            return True
        if isinstance(node, counted) and any(not _below(argument, MAX_COUNT) for argument in node.args):
            return True
        if isinstance(node, sympy.Pow):
            base, exponent = node.args
            limit = MAX_SYMBOLIC_EXPONENT if base.free_symbols else MAX_EXPONENT
            if not exponent.free_symbols and not _below(exponent, limit):
                return True
    return False


def _below(exponent: Any, limit: int) -> bool:
    """Whether a subexpression is certainly smaller than ``limit`` in size: a symbol counts as small."""
    if exponent.is_Number:
        return bool(abs(exponent) <= limit)
    if exponent.is_Atom:
        return True
    if exponent.is_Add or exponent.is_Mul:
        share = int(limit ** (1 / len(exponent.args)))
        return all(_below(argument, share) for argument in exponent.args)
    if exponent.is_Pow:
        base, power = exponent.args
        return _below(base, limit) if power in (-1, 0, 1) else _below(base, 3) and _below(power, 3)
    return False
