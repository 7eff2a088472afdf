"""Kinds of answers on which mmrl and the official graders part, and who is right.

A kind says by rules that use no verdict of mmrl what such an answer looks like, so that it can be applied to
another table. What no kind explains is a fault of ours until somebody has looked at it.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cache


@dataclass(frozen=True)
class Difference:
    """One row that a reference and mmrl judge differently."""

    column: str
    accepted: bool  # by the reference
    given: str | None  # the answer that mmrl reads; None: there is none
    truth: str
    response: str
    seconded: bool  # another reference judges this answer and this truth as mmrl does


@dataclass(frozen=True)
class Kind:
    """Differences of one sort."""

    name: str
    right: str  # "mmrl", "reference" or "open"
    accepted: bool  # by the reference
    applies: Callable[[Difference], bool]


def kind_of(difference: Difference) -> Kind | None:
    """The first kind that explains a difference."""
    fitting = (kind for kind in KINDS if kind.accepted == difference.accepted and kind.applies(difference))
    return next(fitting, None)


def _plain(text: str | None) -> str:
    """Without case, blanks and what may stand around: brackets, full stops, LaTeX fonts."""
    text = re.sub(r"\\(?:text|textbf|mathrm)\{([^{}]*)\}", r"\1", text or "")
    return re.sub(r"[\s.(){}]|\\[,;! ]", "", text).casefold()


def _decimal(text: str | None) -> Decimal | None:
    try:
        return Decimal(text or "")
    except InvalidOperation:
        return None


def _nearly(difference: Difference) -> bool:
    given, truth = _decimal(difference.given), _decimal(difference.truth)
    return given is not None and truth is not None and 0 < abs(given - truth) <= Decimal("1e-6")


def _other_order(difference: Difference) -> bool:
    given, truth = (re.sub(r"\s", "", text or "").split(",") for text in (difference.given, difference.truth))
    bare = not re.search(r"[()\[\]{}]", (difference.given or "") + difference.truth)
    return bare and len(given) > 1 and given != truth and sorted(given) == sorted(truth)


def _with_a_unit(difference: Difference) -> bool:
    number = r"\s*([\d.,]+)\s*"
    unit = r"(?:\\[,;! ])?\s*(?:\\(?:text|mathrm)\{[^{}]*\}|[A-Za-z]+(?:/[a-z]+)?)"
    given, truth = (
        re.fullmatch(number + f"({unit})?", text or "") for text in (difference.given, difference.truth)
    )
    return bool(given and truth and given[1] == truth[1])


def _of_degrees(difference: Difference) -> bool:
    bare = (
        re.sub(r"\\angle\s*[A-Z]\s*=|\^?\{?\s*\\circ\s*\}?|°|\s", "", text or "")
        for text in (difference.given, difference.truth)
    )
    return (
        len(set(bare)) == 1
        and re.search(r"°|\\circ", (difference.given or "") + difference.truth) is not None
    )


def _of_percent(difference: Difference) -> bool:
    both = (difference.given or "", difference.truth)
    values = [_decimal(re.sub(r"\\?%|percent|\s", "", text)) for text in both]
    scaled = [Decimal(1), Decimal(100), Decimal("0.01")]
    marked = any(re.search("%|percent", text) for text in both)
    return marked and None not in values and any(values[0] == values[1] * scale for scale in scaled)


@cache
def _equal_as_latex(given: str, truth: str) -> bool:
    """What math-verify says of the two between dollar signs, which it wants around LaTeX."""
    from math_verify import parse, verify

    if len(given) > 100 or not re.fullmatch(r"[\w\s\\{}()\[\]|+\-*/^=<>.,!:]*", given + truth, re.ASCII):
        return False
    return bool(
        verify(
            parse(f"${truth}$", parsing_timeout=None),
            parse(f"${given}$", parsing_timeout=None),
            timeout_seconds=None,
        )
    )


# Characters of mathematics, and how LaTeX writes them.
_IN_LATEX = {
    0x3C0: r"\pi ",
    0x221A: r"\sqrt ",
    0x221E: r"\infty ",
    0xB0: r"^\circ ",
    0xD7: r"\times ",
    0x2212: "-",
    0xB2: "^2",
    0xB3: "^3",
    0x200B: "",
}


def _in_unicode(difference: Difference) -> bool:
    """Characters that have a plain form: of NFKC, or a sign that LaTeX writes out."""
    plain = unicodedata.normalize("NFKC", (difference.given or "").translate(_IN_LATEX)).replace(
        "\u2044", "/"
    )
    return plain != difference.given and (
        plain == difference.truth or _equal_as_latex(plain, difference.truth)
    )


def _of_another_place(difference: Difference) -> bool:
    """The reference reads more than the last box, or one that is not closed; or the last of two tags."""
    response = difference.response
    boxes = response.count("\\boxed{")
    return boxes > 1 or (boxes == 1 and difference.given is None) or response.count("<answer>") > 1


def _is_letter(difference: Difference) -> bool:
    letter = difference.truth.strip()
    given = re.sub(r"\\(?:text|textbf)\{([^{}]*)\}", r"\1", difference.given or "").upper()
    named = re.fullmatch(rf"[\s(\[]*{re.escape(letter)}\s*(?:[)\].:].*)?", given)
    return re.fullmatch("[A-Z]", letter) is not None and named is not None


def _behind_words(difference: Difference) -> bool:
    """Nothing but the truth behind words that say that an answer follows, and an article."""
    words = r"\s*(?:(?:the\s)?(?:answer|option|choice)(?:\sis)?\s*:?|答案是)\s*(?:an?\s)?(?P<rest>.+)"
    found = re.fullmatch(words, difference.given or "", re.IGNORECASE)
    return found is not None and (
        _plain(found["rest"]) == _plain(difference.truth) or _equal_as_latex(found["rest"], difference.truth)
    )


KINDS = (
    # accepted by a reference, and not by mmrl
    Kind(
        "no answer; its marker for that (`None`, `[INVALID]`) or nothing is the truth",
        "mmrl",
        True,
        lambda d: not d.given and d.truth in ("None", "[INVALID]", ""),
    ),
    Kind(
        "it reads several boxes as one answer, an unclosed one, or the last of two tags",
        "mmrl",
        True,
        _of_another_place,
    ),
    Kind(
        "a comma between other digits than thousands",
        "mmrl",
        True,
        lambda d: bool(re.search(r"\d,(?!\d{3}(?!\d))", d.given or "")),
    ),
    Kind("two answers, or a number and code", "mmrl", True, lambda d: ";" in (d.given or "")),
    Kind(
        '"no" found within another word',
        "mmrl",
        True,
        lambda d: (
            d.column == "vlmr1_yes_no" and not re.search(r"\b(?:yes|no)\b", d.given or "", re.IGNORECASE)
        ),
    ),
    Kind(
        "the truth stands in tags; a row's answer is to be written bare",
        "open",
        True,
        lambda d: d.truth.startswith("<answer>"),
    ),
    Kind(
        "about a number, where the number is the truth",
        "open",
        True,
        lambda d: bool(re.match(r"\\approx|≈", d.given or "")),
    ),
    Kind(
        "over 400 characters of mathematics, which mmrl does not compute",
        "reference",
        True,
        lambda d: len(d.given or "") > 400,
    ),
    Kind(
        "another case or a full stop; `exact` is exact, `text` is not",
        "open",
        True,
        lambda d: d.column == "vlmr1_all_match" and _plain(d.given) == _plain(d.truth),
    ),
    # accepted by mmrl, and not by a reference
    Kind("a rounding error of up to a millionth", "open", False, _nearly),
    Kind("solutions in another order; as a sequence it would be wrong", "open", False, _other_order),
    Kind("the same letter, in brackets or LaTeX, with a full stop, or its text", "mmrl", False, _is_letter),
    Kind(
        "the same text but for case, blanks, brackets or a full stop",
        "mmrl",
        False,
        lambda d: _plain(d.given) == _plain(d.truth),
    ),
    Kind("the same share: with or without the percent sign, or as a decimal", "mmrl", False, _of_percent),
    Kind("the same angle: with or without the degree sign", "mmrl", False, _of_degrees),
    Kind("words that say that an answer follows", "mmrl", False, _behind_words),
    Kind("a unit beside the number", "mmrl", False, _with_a_unit),
    Kind("Unicode for the same mathematics", "mmrl", False, _in_unicode),
    Kind(
        "the same mathematics; another reference, or this one given `$...$`, says so",
        "mmrl",
        False,
        lambda d: d.seconded or _equal_as_latex(d.given or "", d.truth),
    ),
)
