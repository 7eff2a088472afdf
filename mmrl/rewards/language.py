"""In which language a response is written, as far as its script tells."""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from mmrl.rewards.facts import text_fact
from mmrl.sample import Sample

MAX_CHARACTERS = 1_000_000  # what comes after these is not looked at

_LATIN = ("de", "en", "es", "fr", "id", "it", "nl", "pl", "pt", "sv", "tr", "vi")
# Scripts by language, as the names of Unicode's characters begin.
SCRIPTS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        **dict.fromkeys(_LATIN, frozenset({"LATIN"})),
        **dict.fromkeys(("bg", "ru", "uk"), frozenset({"CYRILLIC"})),
        **dict.fromkeys(("ar", "fa", "ur"), frozenset({"ARABIC"})),
        **dict.fromkeys(("hi", "mr", "ne"), frozenset({"DEVANAGARI"})),
        "bn": frozenset({"BENGALI"}),
        "el": frozenset({"GREEK"}),
        "he": frozenset({"HEBREW"}),
        "ja": frozenset({"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "IDEOGRAPHIC"}),
        "ka": frozenset({"GEORGIAN"}),
        "ko": frozenset({"HANGUL"}),
        "ta": frozenset({"TAMIL"}),
        "te": frozenset({"TELUGU"}),
        "th": frozenset({"THAI"}),
        "zh": frozenset({"CJK", "BOPOMOFO", "IDEOGRAPHIC"}),
    }
)

# Formulas are in every language: what they are made of says nothing about the text around them.
_NO_TEXT = re.compile(r"```.*?```|</?\w+>|\\[A-Za-z]+", re.DOTALL)
_SYMBOLS = {
    "LATIN": re.compile(r"(?<![A-Za-z])[A-Za-z]{1,2}(?![A-Za-z])"),
    "GREEK": re.compile(r"(?<![\u0370-\u03ff])[\u0370-\u03ff]{1,2}(?![\u0370-\u03ff])"),
}


def language(sample: Sample, response: str) -> dict[str, float]:
    """``{"language": x}``: the share of the response's letters that are of ``facts["language"]``'s scripts.

    Left out are tags, fenced code, LaTeX commands, and runs of one or two Latin or Greek letters (``x``,
    ``AB``, ``cm``) in a language of another script. A response without letters is in no language: 0.
    Languages of one script, such as English and French, are not told apart. Raises ValueError for a language
    that is not in ``SCRIPTS``.
    """
    scripts = SCRIPTS[text_fact(sample, "language", choices=SCRIPTS)]
    text = _NO_TEXT.sub(" ", response[:MAX_CHARACTERS])
    for script, symbols in _SYMBOLS.items():
        if script not in scripts:
            text = symbols.sub(" ", text)
    letters = own = 0
    for character, count in Counter(text).items():
        script = _script(character)
        letters += count if script else 0
        own += count if script in scripts else 0
    return {"language": own / letters if letters else 0.0}


@lru_cache(maxsize=65536)
def _script(character: str) -> str:
    """The first word of a letter's Unicode name, its width left out; "" for what is no letter of a text."""
    if not unicodedata.category(character).startswith("L"):
        return ""
    name = unicodedata.name(character, "UNKNOWN").removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ")
    script = name.split()[0]
    return "" if script in ("MATHEMATICAL", "MODIFIER", "DOUBLE-STRUCK", "SCRIPT") else script
