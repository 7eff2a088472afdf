r"""Text of responses and answers: where an answer stands, and which spellings of one are alike.

Every function takes time linear in its text; nothing is evaluated.
"""

import re
import unicodedata
from functools import lru_cache

MAX_ANSWER = 8192  # characters; a box with more in it is no answer

_OPENING_BOX = re.compile(r"\\boxed\s*+\{")
_TAG, _CLOSING_TAG = re.compile("<answer>", re.IGNORECASE), re.compile("</answer>", re.IGNORECASE)
_ANSWER_LINE = re.compile(r"(?:answer(?:\s+is)?|答案[是为]?)[\s*_]*[:\uff1a]([^\n]+)", re.IGNORECASE)
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BRACE_OR_PARENTHESIS = re.compile(r"\\.|[{}()]", re.DOTALL)
_PARTNER = {"}": "{", ")": "("}

# Superscripts keep their place: their compatibility forms would make 10⁵ into 105. So do fractions: 2½.
_RAISED, _LOWERED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+"), re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_VULGAR_FRACTION = re.compile("[\u00bc-\u00be\u2150-\u215f]")
# Hyphens, dashes and minus signs, each of which may be a minus.
DASHES = {ord(dash): "-" for dash in "\u2010\u2011\u2012\u2013\u2014\u2212\u02d7\uff0d"}
# The same; quotation marks; Chinese punctuation; characters without width, and what directs how text runs.
_PLAIN = DASHES | str.maketrans(
    {
        **dict.fromkeys("\u201c\u201d\u201e\u00ab\u00bb\u300c\u300d\u300e\u300f", '"'),
        **dict.fromkeys("\u2018\u2019\u201a\u2032", "'"),
        **{"\u3001": ",", "\u3002": ".", "\u3010": "[", "\u3011": "]", "\u2044": "/"},
        **{"\u02da": "°", "º": "°"},
        **dict.fromkeys(
            map(chr, (0xAD, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A), 0xFEFF)),
            None,
        ),
    }
)
# Characters of mathematics, and how LaTeX writes them.
_SYMBOLS = str.maketrans(
    {
        **{"\u00d7": "\\times ", "\u00b7": "\\cdot ", "\u22c5": "\\cdot ", "\u2217": "*", "÷": "\\div "},
        **{"≤": "\\le ", "⩽": "\\le ", "≥": "\\ge ", "⩾": "\\ge ", "≠": "\\ne ", "≈": "\\approx "},
        **{"\u222a": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "∅": "\\emptyset ", "∞": "\\infty "},
        **{"π": "\\pi ", "θ": "\\theta ", "\u03b1": "\\alpha ", "β": "\\beta ", "\u03b3": "\\gamma "},
        **{"λ": "\\lambda ", "μ": "\\mu ", "φ": "\\phi ", "ω": "\\omega ", "±": "\\pm ", "√": "\\sqrt "},
        **{"△": "\\triangle ", "∠": "\\angle ", "⊥": "\\perp ", "\u2225": "\\parallel ", "°": "^\\circ "},
    }
)
_RENAMED = {
    **{"\\dfrac": "\\frac", "\\tfrac": "\\frac", "\\varnothing": "\\emptyset", "\\{\\}": "\\emptyset"},
    **{"\\&": "&", "{,}": ",", "\\$": "", "$": "", "\\lvert": "|", "\\rvert": "|", "\\geqslant": "\\ge"},
    **{"\\leqslant": "\\le", "\\overrightarrow": "\\vec", "\\langle": "(", "\\rangle": ")"},
}
_OLD_NAME = re.compile("|".join(re.escape(name) + "(?![A-Za-z])" * name[-1].isalpha() for name in _RENAMED))
_SPACING = re.compile(r"\\\\|\\[,!;:()\[\] ]|~|\\(?:left|right|q?quad|displaystyle)(?![A-Za-z])")
_FONT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt)?|math(?:rm|bf|it|bb|sf|cal)|boldsymbol|bm|mbox|operatorname|ce)"
    r"\s?\{((?:[^{}]|\{[^{}]*\})*+)\}"
)
_ACCENT = re.compile(r"\\(?:hat|widehat|vec)\s?\{(\w+)\}|\\overline\s?\{([A-Z]{2})\}")  # of vectors, segments
_DEGREE = re.compile(r"\^\s?\{?\s?\\circ\s?\}?|\\degree")
_PLAIN_PI = re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])")
_PLAIN_CALL = re.compile(r"(?<![\\A-Za-z])(sqrt|exp)\(([^()]*)\)")
_PLAIN_FUNCTION = re.compile(r"(?<![\\A-Za-z])((?:arc)?(?:sin|cos|tan)|ln|log)(?=\s?\(|\^)")
_CODE_POWER = re.compile(r"(?<=[\w)])\*\*\s?(-?\d+(?:\.\d+)?|[a-z]|\([^()]*\))(?!\*\*)")
_BOLD = re.compile(r"(?<![\w)])\*\*(?=\S)([^*]{1,400}+)\*\*(?![\w(])")
_BLANK = re.compile(r"(?<!\d) | (?!\d)")
_BRACED_CHARACTER = re.compile(r"\{(\w)\}")
_SUBSCRIPT = re.compile(r"(?<=[A-Za-z])_(?:\{(\w+)\}|(\w))")
_ONE_IN_BRACKETS = re.compile(r"\(([^\s,()\[\]]*)\)|\[([^\s,()\[\]]*)\]")
_INITIAL = re.compile(r"(?<![^\W_])([A-Za-z])\.(?=[A-Za-z](?![A-Za-z]))")  # a.m., U.S.
_LEAD = re.compile(
    r"(?:(?:so|thus|hence|therefore)\b,?\s*)?"
    r"(?:i(?:'d| would)? (?:think|believe|choose|pick|select|say)\b(?: that)?\s*)?(?:it(?:'s| is)\s+)?"
    r"(?:(?:the |my )?(?:(?:best|correct|right|final)\s+)*(?:answer|option|choice|letter)s?\b"
    r"(?:\s+(?:is|are|should be|would be)\b)?\s?[:=]?\s*){0,3}"
    r"(?:(?:正确|最终)?(?:答案|选项)?[是为选]?择?\s?:?\s*)?",
    re.IGNORECASE,
)


def last_boxed(text: str) -> str | None:
    r"""Content of the last ``\boxed{...}`` of ``text``, stripped.

    None if there is no box, if the last one is never closed (an earlier good one does not count), or if it
    holds more than ``MAX_ANSWER`` characters. Braces escaped by a backslash do not nest.
    """
    opening, at = None, len(text)
    while opening is None and (at := text.rfind("\\boxed", 0, at)) >= 0:
        opening = _OPENING_BOX.match(text, at)
    if opening is None:
        return None
    end = _closing_brace(text, opening.end(), min(len(text), opening.end() + MAX_ANSWER + 1))
    return None if end is None else text[opening.end() : end].strip()


def unboxed(answer: str | None) -> str | None:
    r"""The content of the only ``\boxed{...}`` in ``answer``, if it has one; else ``answer``."""
    return (last_boxed(answer) or answer) if answer and answer.count("\\boxed") == 1 else answer


def has_tag(text: str) -> bool:
    """True if an ``<answer>`` opens, in any case."""
    return _TAG.search(text) is not None


def first_tagged(text: str) -> str | None:
    """Content of the first ``<answer>...</answer>``, stripped; None if there is none or it is too long."""
    opening = _TAG.search(text)
    closing = _CLOSING_TAG.search(text, opening.end()) if opening else None
    if opening is None or closing is None or closing.start() - opening.end() > MAX_ANSWER:
        return None
    return text[opening.end() : closing.start()].strip()


def last_answer_line(text: str) -> str | None:
    """Text behind the last ``Answer:`` on its line (in any case, bold, in Chinese), near the end."""
    lines = _ANSWER_LINE.findall(text[-300:])
    return lines[-1].strip() if lines else None


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


def plain_characters(text: str) -> str:
    """``text`` with one character for each kind of dash, quotation mark and full stop, and compatibility
    forms (NFKC) made plain; superscripts and subscripts become ``^{...}`` and ``_{...}``.
    """
    text = _RAISED.sub(lambda run: "^{" + unicodedata.normalize("NFKC", run[0]) + "}", text)
    text = _LOWERED.sub(lambda run: "_{" + unicodedata.normalize("NFKC", run[0]) + "}", text)
    text = _VULGAR_FRACTION.sub(lambda match: " " + match[0], text)
    return unicodedata.normalize("NFKC", text).translate(_PLAIN)


def to_latex(answer: str) -> str:
    """``answer`` with Unicode mathematics and code written as LaTeX, and without typographical commands.

    What stands around all of it goes too: signs of mathematics, braces, Markdown's stars, quotes, and
    punctuation behind.
    """
    text = _BOLD.sub(r"\1", plain_characters(answer).translate(_SYMBOLS))
    text = _OLD_NAME.sub(lambda match: _RENAMED[match[0]], text)
    text = _SPACING.sub(_drop_spacing, text)
    text = _PLAIN_CALL.sub(_call, _PLAIN_PI.sub(r"\\pi ", text))
    text = _CODE_POWER.sub(r"^{\1}", _PLAIN_FUNCTION.sub(r"\\\1 ", text))
    return _unwrap(peel(_unwrap(text)))


def _unwrap(text: str) -> str:
    text = text.strip().strip("*`").strip()
    text = text[2:-2] if len(text) > 4 and text[:2] == text[-2:] == "__" else text
    if len(text) > 2 and text[0] == text[-1] and text[0] in "\"'_" and text[0] not in text[1:-1]:
        text = text[1:-1]
    return text.strip().rstrip(".,;").strip()


def _call(match: re.Match[str]) -> str:
    return f"\\sqrt{{{match[2]}}}" if match[1] == "sqrt" else f"e^{{{match[2]}}}"


def _drop_spacing(match: re.Match[str]) -> str:
    if match[0] == "\\\\":  # a new row of a matrix
        return match[0]
    return "" if match[0][1:] in tuple("!()[]") else " "


def plain_fonts(latex: str) -> str:
    r"""``latex`` with the content of ``\text{...}`` and other fonts in their place."""
    return _FONT.sub(r"\1", _FONT.sub(r"\1", latex))


def without_lead(text: str) -> str:
    """``text`` without words that only say that an answer follows: "The answer is", "Option", "I think"."""
    lead = _LEAD.match(text)
    return text[lead.end() :].strip() if lead else text


@lru_cache(maxsize=1024)
def canonical(answer: str) -> str:
    """The key under which two spellings of one answer are equal: no fonts, lower case, and no blanks but one
    between digits, which tells ``2 1/2`` from ``21/2``.

    Degrees and percent signs are dropped, and brackets around a single item: ``(A)`` is ``a``. Meant for
    comparison only.
    """
    text = plain_fonts(_ACCENT.sub(r"\1\2", _DEGREE.sub("", to_latex(answer))))
    text = _INITIAL.sub(r"\1", text.replace("\\%", "").replace("%", "").strip())
    bracketed = _ONE_IN_BRACKETS.fullmatch(text)
    if bracketed:
        text = bracketed[1] or bracketed[2] or ""
    text = _SUBSCRIPT.sub(r"\1\2", _BLANK.sub("", " ".join(text.split())))
    return _BRACED_CHARACTER.sub(r"\1", text).lower()


def has_control_characters(text: str) -> bool:
    """True if ``text`` holds characters no writer types: C0/C1 controls other than tab and newlines."""
    return any(unicodedata.category(c) == "Cc" and c not in "\t\n\r" for c in text)
