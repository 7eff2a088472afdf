"""Reading answers out of a response. Every function takes time linear in its text; nothing is evaluated."""

import re
import unicodedata

MAX_ANSWER = 8192  # characters; a box with more in it is no answer

_LAST_NUMBERS = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?(?![\w])")
_ANSWER_LINE = re.compile(r"answer\s*:\s*([^\n]+)", re.IGNORECASE)
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BRACE_OR_PARENTHESIS = re.compile(r"\\.|[{}()]", re.DOTALL)
_PARTNER = {"}": "{", ")": "("}
_VULGAR_FRACTION = re.compile("[\u00bc-\u00be\u2150-\u215f]")
_SYMBOLS = str.maketrans(
    {
        "\u2212": "-",
        "\u2013": "-",
        "\u00d7": "\\times ",
        "·": "\\cdot ",
        "÷": "\\div ",
        "π": "\\pi ",
        "∞": "\\infty ",
        "°": "^\\circ ",
        "²": "^{2}",
        "³": "^{3}",
        "≤": "\\le ",
        "≥": "\\ge ",
        "±": "\\pm ",
        "\u222a": "\\cup ",
        "√": "\\sqrt ",
        "θ": "\\theta ",
    }
)
_SPACING = re.compile(r"\\\\|\\[,!;: ]|~|\\(?:left|right|q?quad|displaystyle)(?![A-Za-z])")
_FONT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s?\{([^{}]*)\}")
_DEGREE = re.compile(r"\^\s?\{?\s?\\circ\s?\}?|\\degree")
_PLAIN_PI = re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])")
_PLAIN_ROOT = re.compile(r"(?<![\\A-Za-z])sqrt\(([^()]*)\)")
_BLANK = re.compile(r"(?<!\d) | (?!\d)")
_BRACED_CHARACTER = re.compile(r"\{(\w)\}")
_ONE_IN_BRACKETS = re.compile(r"\(([^\s,()\[\]]*)\)|\[([^\s,()\[\]]*)\]")


def last_boxed(text: str) -> str | None:
    r"""Content of the last ``\boxed{...}`` of ``text``, stripped.

    None if there is no box, if the last one is never closed (an earlier good one does not count), or if it
    holds more than ``MAX_ANSWER`` characters. Braces escaped by a backslash do not nest.
    """
    opening = text.rfind("\\boxed{")
    if opening < 0:
        return None
    start = opening + len("\\boxed{")
    end = _closing_brace(text, start, min(len(text), start + MAX_ANSWER + 1))
    return None if end is None else text[start:end].strip()


def first_tagged(text: str) -> str | None:
    """Content of the first ``<answer>...</answer>``, stripped; None if there is none or it is too long."""
    _, opening, rest = text.partition("<answer>")
    content, closing, _ = rest.partition("</answer>")
    return content.strip() if opening and closing and len(content) <= MAX_ANSWER else None


def last_answer_line(text: str) -> str | None:
    """What follows the last ``Answer:`` (in any case) on its line, within the last 300 characters."""
    lines = _ANSWER_LINE.findall(text[-300:])
    return lines[-1].strip() if lines else None


def last_number(text: str) -> str | None:
    """The last number of ``text`` as it is written, with its sign, thousands' commas and fraction."""
    numbers = _LAST_NUMBERS.findall(text[-MAX_ANSWER:])
    return numbers[-1] if numbers else None


def _closing_brace(text: str, start: int, limit: int) -> int | None:
    """Index of the brace closing the group whose content begins at ``start``, if it lies before ``limit``."""
    depth = 1
    for match in _BRACE.finditer(text, start, limit):
        if match[0] == "{":
            depth += 1
        elif match[0] == "}":
            depth -= 1
            if depth == 0:
                return match.start()
    return None


def peel(text: str) -> str:
    """``text`` without the braces and parentheses that enclose all of it.

    ``{{7}}`` and ``((7))`` are ``7``; ``{7}{8}`` stays, and so do the parentheses of a tuple.
    """
    openings: list[int] = []
    closes: dict[int, int] = {}
    for match in (_BRACE if "," in text else _BRACE_OR_PARENTHESIS).finditer(text):
        if match[0] in "{(":
            openings.append(match.start())
        elif match[0] in "})" and openings and text[openings[-1]] == _PARTNER[match[0]]:
            closes[openings.pop()] = match.start()
    start, end = 0, len(text)
    while closes.get(start) == end - 1:
        start, end = start + 1, end - 1
    return text[start:end]


def nesting(text: str) -> int:
    """The greatest depth of brackets of any kind in ``text``."""
    depth = deepest = 0
    for character in text:
        if character in "{([":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "})]":
            depth -= 1
    return deepest


def to_latex(answer: str) -> str:
    """``answer`` with Unicode mathematics written as LaTeX and typographical commands removed.

    Full-width and other compatibility characters become their plain form (NFKC).
    """
    text = _VULGAR_FRACTION.sub(lambda match: " " + match[0], answer.translate(_SYMBOLS))
    text = unicodedata.normalize("NFKC", text).replace("\u2044", "/")
    text = text.replace("\\$", "").replace("$", "").replace("\\(", "(").replace("\\)", ")")
    text = text.replace("{,}", ",").replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = _SPACING.sub(_without_spacing, text)
    text = _PLAIN_ROOT.sub(r"\\sqrt{\1}", _PLAIN_PI.sub(r"\\pi ", text))
    return peel(text.strip()).strip().rstrip(".").strip()


def _without_spacing(match: re.Match[str]) -> str:
    if match[0] == "\\\\":  # a new row of a matrix
        return match[0]
    return "" if match[0] == "\\!" else " "


def plain_fonts(latex: str) -> str:
    r"""``latex`` with the content of ``\text{...}`` and other fonts in their place."""
    return _FONT.sub(r"\1", latex)


def canonical(answer: str) -> str:
    """The key under which two spellings of one answer are equal: no fonts, lower case, and no blanks but one
    between digits, which tells ``2 1/2`` from ``21/2``.

    Degrees and percent signs are dropped, and brackets around a single item: ``(A)`` is ``a``. Meant for
    comparison only.
    """
    text = plain_fonts(_DEGREE.sub("", to_latex(answer)))
    text = text.replace("\\%", "").replace("%", "").strip()
    bracketed = _ONE_IN_BRACKETS.fullmatch(text)
    if bracketed:
        text = bracketed[1] or bracketed[2] or ""
    return _BRACED_CHARACTER.sub(r"\1", _BLANK.sub("", " ".join(text.split()))).lower()


def has_control_characters(text: str) -> bool:
    """Whether ``text`` holds characters no writer types: C0/C1 controls other than tab and newlines."""
    return any(unicodedata.category(c) == "Cc" and c not in "\t\n\r" for c in text)
