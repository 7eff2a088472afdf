r"""Mathematical answers: the last ``\boxed{}`` against the truth, decided by math-verify.

The answer format and the rule "last box" are those of ``compute_score`` in PAPO, VPPO and EasyR1
(``examples/reward_function/math.py``); equality is not mathruler's but mathematical. ``docs/rewards.md``
lists where the two part.
"""

import itertools
import logging
import re
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

from mmrl.rewards.quantity import (
    DECIMAL_SLACK,
    RADIAN,
    in_terms_of,
    is_decimal,
    parse_number,
    read_quantity,
    same_number,
    split_units,
)
from mmrl.rewards.text import (
    canonical,
    has_control_characters,
    last_boxed,
    nesting,
    plain_fonts,
    to_latex,
    without_lead,
)
from mmrl.rewards.verifier import AnswerIn, Components, Verifier, answer_of
from mmrl.sample import Sample

MAX_PARSED = 400  # characters; a longer answer is compared as text only
MAX_NESTING = 8  # brackets within brackets; the parser's time grows with a power of it
MAX_BARS = 12  # of absolute values, which the parser pairs in every way
MAX_NODES = 400  # size of an expression tree that is still compared
MAX_EXPONENT = 200  # of a number; sympy writes powers out
MAX_SYMBOLIC_EXPONENT = 20  # of anything with a variable in it; sympy expands these
ROUNDING = 0.02  # relative; between the sides of an equation
MAX_COUNT = 200  # argument of a factorial or binomial
DIGITS = 40  # to which constants are computed
EXACT = 1e-25  # relative; between constants that are not rounded

_ONLY_WORDS = re.compile(r"[^\W\d_]+(?:[\s.,'-]+[^\W\d_]+)*")
_NOT_MATHEMATICS = re.compile(r"[;#\"`@?]|__|\*\*|\\(?:boxed|fbox)")
_COUNTING = re.compile(r"binom|choose|!")
_LARGE_NUMBER = re.compile(r"\d{4}|\^")
_ROW = re.compile(r"(\(|\[|\\\{|)([^%]*,[^%]*?)(\)|\]|\\\}|)", re.DOTALL)
_NAME = re.compile(r"\s*\\?[A-Za-z]+(?:_\S+)?(?:\([^()]*\))?\s*")  # x, A_1, \theta, f(x)
_BOXED_TRUTH = re.compile(r"\s*\\boxed\s*\{")
_SIMPLER = (
    (re.compile(r"^\s*[A-Za-z]\s?\([a-z]\)\s?="), ""),  # f(x) =
    (re.compile(r"\+\s?-"), "-"),
    (re.compile(r"(?<=\d)\.0+(?!\d)"), ""),
    (re.compile(r"(?<![\d.])1(?=i(?![A-Za-z]))"), ""),
)
_OF_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s?\^\s?(?:\{\s?\\circ\s?\}|\\circ)")
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_VARIABLE_AT_END = re.compile(r"(?<![\\A-Za-z])[A-Za-z](?![A-Za-z]).*[\d\s}][A-Za-z]$", re.DOTALL)
_ENGINEERS = re.compile(r"(?<![A-Za-z\\])j(?![A-Za-z])")  # their imaginary unit
_ARTICLE = re.compile(r"(?:an?|the) (?=\w{2})", re.IGNORECASE)
_NONE = re.compile(r"(?:there (?:is|are) )?(no .*?[a-rt-z])s?(?: exists?)?", re.IGNORECASE)  # no solutions
_SAME = {  # words and signs for one thing
    **dict.fromkeys(("does not exist", "doesn't exist"), "dne"),
    **dict.fromkeys(("not defined", "is undefined"), "undefined"),
    **dict.fromkeys(("empty set", "null set"), "\\emptyset"),
    **dict.fromkeys(("all real numbers", "all reals", "real numbers", "(-\\infty,\\infty)"), "r"),
    **dict.fromkeys(("infinity", "+\\infty", "positive infinity"), "\\infty"),
    "negative infinity": "-\\infty",
}
# Relations of one variable, 0 < x \le 5 and x > 3, and intervals.
_RELATIONS = {
    **dict.fromkeys(("<", "\\lt"), "<"),
    **dict.fromkeys(("\\le", "\\leq", "<=", "=<"), "<="),
    **dict.fromkeys((">", "\\gt"), ">"),
    **dict.fromkeys(("\\ge", "\\geq", ">="), ">="),
    **dict.fromkeys(("\\ne", "\\neq"), "!="),
}
_RELATION = re.compile(r"[<>]=?|=<|\\(?:leq?|geq?|lt|gt|neq?)(?![A-Za-z])")
_TURNED = str.maketrans("<>", "><")
_VARIABLE = re.compile("[A-Za-z]")
_BOUND = re.compile(r"(?:[^<>=,()\[\]\\A-Za-z]|\\(?:frac|sqrt|pi|infty|times|cdot)(?![a-z]))+")
_INTERVAL = re.compile(r"(?:([A-Za-z])\s*\\in\s*)?([(\[])([^,]+),([^,]+?)([)\]])")
_DESCRIBED = re.compile(r"\\\{\s*[A-Za-z]\s*(?:\\mid(?![a-z])|\||:)(.*)\\\}", re.DOTALL)  # {x | x > 2}
_UNION = re.compile(r"\\cup|\\lor|\\vee|\bor\b")


@Verifier
def math(sample: Sample, response: str, *, answer_in: AnswerIn = "box") -> Components:
    """``accuracy``: the answer of ``response`` (`answer_of`) equals ``sample.answer`` (`equal`).

    No answer or an empty one is 0 whatever the truth is. May run long on hostile answers: meant to be called
    by a ``RewardPool``, under its deadline.
    """
    answer, truth = answer_of(response, answer_in), sample.answer
    if _BOXED_TRUTH.match(truth):
        truth = last_boxed(truth) or ""
    return {"accuracy": float(bool(answer and truth.strip()) and equal(answer, truth))}


@lru_cache(maxsize=4096)
def equal(answer: str, truth: str) -> bool:
    """True if ``answer`` is the same mathematical object, or the same text, as ``truth``.

    Decided in order by: units, which have to fit where both state one (`in_terms_of`); exact rational
    arithmetic if both are numbers or rows of them; the spelling (``text.canonical``); and math-verify for the
    rest. Words are compared as text only, because LaTeX reads them as products of letters and "left" would
    equal "felt".
    """
    if has_control_characters(answer):
        return False
    answer, truth = without_lead(answer), without_lead(truth)
    given, wanted = read_quantity(answer), read_quantity(truth)
    if given and wanted and given.alone and wanted.alone:
        rounded = is_decimal(answer) or is_decimal(truth)
        return any(same_number(value, wanted.value, rounded) for value in in_terms_of(wanted, given))
    (answer, given), (truth, wanted) = split_units(answer, truth)
    if given.unit and wanted.unit is None and given.unit.is_angle and "\\pi" in truth:
        wanted = replace(wanted, unit=RADIAN)
    elif wanted.unit and given.unit is None and wanted.unit.is_angle and "\\pi" in answer:
        given = replace(given, unit=RADIAN)
    return any(_equal(answer, truth, factor) for factor in in_terms_of(wanted, given))


def _equal(answer: str, truth: str, factor: Fraction) -> bool:
    """True if ``answer`` times ``factor`` is the same as ``truth``; neither has a unit."""
    if factor == 1 and (key := _spelling(truth)) and _spelling(answer) == key:
        return True
    if _is_words(answer) or _is_words(truth) or _NOT_MATHEMATICS.search(answer):
        return False
    answer, truth = to_latex(answer), to_latex(truth)
    if factor == 1:
        for verdict in (_same_row(answer, truth), _same_intervals(answer, truth)):
            if verdict is not None:
                return verdict
    if _is_costly_to_parse(answer) or _is_costly_to_parse(truth):
        return False
    try:
        return _same_mathematics(*_unify_notation(answer, truth), factor)
    except MemoryError:
        raise
    except Exception:  # sympy raises errors of many kinds on nonsense, which is no right answer
        return False


def _spelling(answer: str) -> str:
    """The spelling of an answer, with one word for each thing."""
    text = _ARTICLE.sub("", plain_fonts(to_latex(answer)), count=1)
    plural = _NONE.fullmatch(text)
    text = plural[1] if plural else text
    return canonical(_SAME.get(text.lower()) or _SAME.get(canonical(text)) or text)


def _unify_notation(answer: str, truth: str) -> tuple[str, str]:
    """Both without the name of what they define (``x =``, ``f(x) =``), degrees in radians, ``i`` for ``j``,
    ``- i`` for ``+ -1.0i``.
    """
    if _ENGINEERS.search(answer) and "i" in truth and not _ENGINEERS.search(truth):
        answer = _ENGINEERS.sub("i", answer)
    for pattern, plain in _SIMPLER:
        answer, truth = pattern.sub(plain, answer), pattern.sub(plain, truth)
    answer, truth = (
        _OF_DEGREES.sub(r"(\1 \\cdot \\frac{\\pi}{180})", text) if _TRIGONOMETRY.search(text) else text
        for text in (answer, truth)
    )
    sides = [text.split("=") for text in (answer, truth)]
    named = [len(side) == 2 and bool(_NAME.fullmatch(side[0])) for side in sides]
    same_name = all(named) and sides[0][0].strip() == sides[1][0].strip()
    if same_name or (named[0] and "=" not in truth) or (named[1] and "=" not in answer):
        return sides[0][-1].strip(), sides[1][-1].strip()
    return answer, truth


def _same_row(answer: str, truth: str) -> bool | None:
    """True if two rows of numbers in the same brackets are the same; None if they are no such rows.

    Tuples, intervals and vectors have an order; sets and rows without brackets have none, and no repeats.
    Much quicker than parsing them as LaTeX.
    """
    (brackets, given), (true_brackets, wanted) = _read_row(answer), _read_row(truth)
    if not given or not wanted:
        return None
    if brackets != true_brackets:
        return False if {brackets, true_brackets} == {"()", ""} else None
    if brackets in ("\\{\\}", ""):
        given, wanted = sorted(set(given)), sorted(set(wanted))
    rounded = is_decimal(answer) or is_decimal(truth)
    return len(given) == len(wanted) and all(
        same_number(a, b, rounded) for a, b in zip(given, wanted, strict=True)
    )


def _read_row(latex: str) -> tuple[str, list[Fraction]]:
    """The brackets of a row of numbers, and these; none if there is anything else in it."""
    match = _ROW.fullmatch(latex) if len(latex) <= MAX_PARSED else None
    numbers = [parse_number(item) for item in match[2].split(",")] if match else []
    if match is None or None in numbers:
        return "", []
    return match[1] + match[3], [number for number in numbers if number is not None]


class _Interval(NamedTuple):
    """An interval between two bounds, each of which may belong to it."""

    variable: str  # "" if none is named
    low: str
    has_low: bool
    high: str
    has_high: bool

    def same(self, other: "_Interval") -> bool:
        other_name = self.variable and other.variable and self.variable != other.variable
        closed = (self.has_low, self.has_high) == (other.has_low, other.has_high)
        return closed and not other_name and equal(self.low, other.low) and equal(self.high, other.high)


def _same_intervals(answer: str, truth: str) -> bool | None:
    """True if a union of intervals or relations is the same as another, where one of them is a relation.

    None if they are nothing of the kind: ``(1, 2)`` alone may be a point.
    """
    given, wanted = _read_intervals(answer), _read_intervals(truth)
    if given is None or wanted is None or not any(interval.variable for interval in given + wanted):
        return None
    left = list(wanted)
    for interval in given:
        match = next((other for other in left if interval.same(other)), None)
        if match is None:
            return False
        left.remove(match)
    return not left


def _read_intervals(latex: str) -> list[_Interval] | None:
    """The intervals of a union of intervals and relations of one variable; None if there is anything else."""
    if len(latex) > MAX_PARSED:
        return None
    described = _DESCRIBED.fullmatch(latex)
    latex = described[1] if described else latex
    found: list[_Interval] = []
    for piece in _UNION.split(_RELATION.sub(lambda sign: _RELATIONS[sign[0].strip()], plain_fonts(latex))):
        interval = _INTERVAL.fullmatch(piece.strip())
        if interval:
            variable, opening, low, high, closing = interval.groups()
            found.append(_Interval(variable or "", low, opening == "[", high, closing == "]"))
        elif (relation := _read_relation(re.split("(<=|>=|<|>|!=)", piece))) is not None:
            found += relation
        else:
            return None
    return found


def _read_relation(parts: list[str]) -> list[_Interval] | None:
    """The intervals of a relation, cut at its signs: ``3 < x``, ``3 < x <= 5``; None if it is no such one."""
    parts = [part.strip() for part in parts]
    reverse = [part.translate(_TURNED) for part in parts[::-1]]
    if len(parts) == 3:
        name, sign, bound = reverse if _VARIABLE.fullmatch(parts[2]) else parts
        if not _VARIABLE.fullmatch(name) or not _BOUND.fullmatch(bound):
            return None
        below = _Interval(name, "-\\infty", False, bound, sign == "<=")
        above = _Interval(name, bound, sign == ">=", "\\infty", False)
        return [below, above] if sign == "!=" else [below if "<" in sign else above]
    if len(parts) != 5 or not _VARIABLE.fullmatch(parts[2]):
        return None
    low, first, name, second, high = reverse if ">" in parts[1] and ">" in parts[3] else parts
    if "<" not in first or "<" not in second or not (_BOUND.fullmatch(low) and _BOUND.fullmatch(high)):
        return None
    return [_Interval(name, low, first == "<=", high, second == "<=")]


def _is_costly_to_parse(latex: str) -> bool:
    """True if even reading ``latex`` could take long: the parser computes binomials as it meets them."""
    counts = _COUNTING.search(latex) and _LARGE_NUMBER.search(latex)
    return (
        len(latex) > MAX_PARSED or nesting(latex) > MAX_NESTING or bool(counts) or latex.count("|") > MAX_BARS
    )


def _is_words(text: str) -> bool:
    return bool(_ONLY_WORDS.fullmatch(to_latex(text).rstrip(".!")))


def load_math_verify() -> None:
    """Imports math-verify and sympy, a third of a second, ahead of the first answer that needs them."""
    import math_verify  # noqa: F401

    # It warns that no time limit is set; the pool's deadline is the limit here.
    logging.getLogger("math_verify").setLevel(logging.ERROR)


def _same_mathematics(answer: str, truth: str, factor: Fraction) -> bool:
    import sympy
    from math_verify import verify

    wanted = _parse(truth)
    given = _parse(answer) if wanted else []
    if not given or any(_is_costly(expression) for expression in (*wanted, *given)):
        return False
    if factor != 1:
        times = sympy.Rational(factor.numerator, factor.denominator)
        given = [times * expression for expression in given if isinstance(expression, sympy.Expr)]
    if _contradicts_itself(answer, truth):
        return False
    constants = [[e for e in parsed if _constant(e) is not None] for parsed in (wanted, given)]
    if all(constants):
        slack = float(DECIMAL_SLACK) if is_decimal(answer) or is_decimal(truth) else EXACT
        return not _differ(constants[1][0], constants[0][0], slack)
    if any(_differ(a, b) for a in wanted for b in given):
        return False
    return bool(verify(wanted, given, timeout_seconds=None))


def _contradicts_itself(answer: str, truth: str) -> bool:
    """True if an equation has sides of different values: who writes "4 = 3" has not said 3.

    Sides may be rounded. Sides with variables may differ where the truth is an equation to be solved.
    """
    sides = [_parse(side.strip()) for side in answer.split("=") if not _NAME.fullmatch(side)]
    values = [expression for side in sides for expression in side if not _is_costly(expression)]
    return any(
        _differ(a, b, slack=ROUNDING) and not (a.free_symbols and "=" in truth)
        for a, b in itertools.combinations(values if len(sides) > 1 else [], 2)
    )


def _differ(a: Any, b: Any, slack: float = 1e-5) -> bool:
    """True if two expressions certainly have different values; much quicker than failing to simplify.

    Values differ if they do so by more than ``slack``, relative to the larger, however small they are. They
    are computed with every variable at a positive number of its own. Rows and matrices differ if one of their
    items does. Relations, sets and percentages are left to math-verify, which has several readings.
    """
    import sympy

    rows = [_items(expression) for expression in (a, b)]
    if rows[0] is not None and rows[1] is not None and len(rows[0]) == len(rows[1]):
        return any(_differ(x, y, slack) for x, y in zip(*rows, strict=True))
    if not (isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr)) or a.free_symbols != b.free_symbols:
        return False
    names = sorted(a.free_symbols, key=str)
    point = {name: sympy.Rational(13 + 7 * i, 11) for i, name in enumerate(names)}
    one, other = (_constant(expression.subs(point)) for expression in (a, b))
    if one is None or other is None:
        return False
    difference = max(abs(x - y) for x, y in zip(one, other, strict=True))
    return bool(difference > slack * max(map(abs, (*one, *other))))


def _items(expression: Any) -> list[Any] | None:
    """The items of a matrix, a tuple or a set of numbers in order; None of anything else."""
    import sympy

    if isinstance(expression, sympy.MatrixBase):
        return [*map(sympy.Integer, expression.shape), *expression]
    if isinstance(expression, sympy.FiniteSet) and not expression.free_symbols:
        return sorted(expression, key=lambda item: float(item.evalf()) if item.is_real else 0.0)
    return list(expression) if isinstance(expression, sympy.Tuple) else None


def _constant(expression: Any) -> tuple[Any, Any] | None:
    """The real and the imaginary part of an expression without variables; None if it is no number."""
    import sympy

    if not isinstance(expression, sympy.Expr) or expression.free_symbols:
        return None
    if expression.has(sympy.UnevaluatedExpr, sympy.MatrixExpr):
        return None
    try:
        parts = expression.evalf(DIGITS).as_real_imag()
    except (TypeError, ValueError, ArithmeticError):  # not a number even then: an integral, a set
        return None
    if not all((part.is_Float or part.is_Integer or part.is_Rational) and part.is_finite for part in parts):
        return None
    # A part of which no digit could be made sure is zero: sqrt(2) sqrt(3) - sqrt(6).
    return tuple(sympy.S.Zero if part.is_Float and part._prec == 1 else part for part in parts)


@lru_cache(maxsize=4096)
def _parse(latex: str) -> list[Any]:
    """The sympy expressions of a LaTeX answer; empty if it cannot be read."""
    from math_verify import LatexExtractionConfig, parse

    config = LatexExtractionConfig(boxed_match_priority=0)
    if _VARIABLE_AT_END.search(latex):  # the "t" of 3s + 2t is no unit
        config = replace(config, normalization_config=replace(config.normalization_config, units=False))
    text = "\\boxed{" + latex + "}"
    return parse(text, extraction_config=[config], fallback_mode="no_fallback", parsing_timeout=None)


def _is_costly(expression: Any) -> bool:
    """True if evaluating a parsed expression could take long: power towers, sums."""
    import sympy

    refused = (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit, sympy.Derivative)
    counted = (sympy.factorial, sympy.binomial)
    for nodes, node in enumerate(sympy.preorder_traversal(expression)):
        if nodes > MAX_NODES or isinstance(node, refused):
            return True
        if isinstance(node, counted) and any(not _is_below(argument, MAX_COUNT) for argument in node.args):
            return True
        if isinstance(node, sympy.Pow):
            base, exponent = node.args
            limit = MAX_SYMBOLIC_EXPONENT if base.free_symbols else MAX_EXPONENT
            if not exponent.free_symbols and not _is_below(exponent, limit):
                return True
    return False


def _is_below(exponent: Any, limit: int) -> bool:
    """True if a subexpression is certainly smaller than ``limit`` in size: a symbol counts as small."""
    if exponent.is_Number:
        return bool(abs(exponent) <= limit)
    if exponent.is_Atom:
        return True
    if exponent.is_Add or exponent.is_Mul:
        share = int(limit ** (1 / len(exponent.args)))
        return all(_is_below(argument, share) for argument in exponent.args)
    if exponent.is_Pow:
        base, power = exponent.args
        if power in (-1, 0, 1):
            return _is_below(base, limit)
        return _is_below(base, 3) and _is_below(power, 3)
    return False
