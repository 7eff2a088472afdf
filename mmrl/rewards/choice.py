"""Multiple choice: a letter or the text of an option, one of them or several."""

import re
from collections.abc import Mapping

from mmrl.rewards.answers import answer_of, wrong_answer
from mmrl.rewards.facts import flag_fact
from mmrl.rewards.items import json_items, unbracketed
from mmrl.rewards.number import parse_number
from mmrl.rewards.text import canonical, plain_fonts, to_latex
from mmrl.sample import Sample

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_LEAD = re.compile(
    r"(?:the )?(?:correct |final )?(?:answer|option|choice)s?\b(?: is| are)?\s?:?\s?", re.IGNORECASE
)
_LETTER = re.compile(r"\(\s?([A-Za-z])\s?\)|\[\s?([A-Za-z])\s?\]|([A-Za-z])")
_LABELLED = re.compile(r"(?:\(\s?([A-Za-z])\s?\)|([A-Za-z])\s?[.):])\s?(.*)", re.DOTALL)
_LABEL = re.compile(r"(?<![\w)])(?:\(\s?[A-Z]\s?\)|\[\s?[A-Z]\s?\])|(?<![\w.])[A-Z][.):](?!\S)")
_JOINING = re.compile(r"\b(?:and|or|both|nor|maybe|either)\b", re.IGNORECASE)
_ROW = re.compile(r"[A-Za-z](?:[\s,;/&]+[A-Za-z])+")
_RUN_TOGETHER = re.compile(r"(?:\(\s?[A-Za-z]\s?\)\s?){2,}|(?:[A-Z]\s?){2,}")
# The first of these that cuts an answer into options does: texts of options may hold commas.
_BETWEEN = (re.compile(r"[;\n]"), re.compile(r"[;,\n]|\band\b|&", re.IGNORECASE))


def read_choice(answer: str) -> tuple[str | None, str]:
    """The letter (upper case, or None) and the text of an option as ``answer`` gives them.

    ``A``, ``(A)``, ``[A]``, ``A.``, ``A) text``, ``Option A``, ``The answer is A`` name a letter;
    ``A and B``, ``A dog``, ``(A) or (B)`` do not.
    """
    text = plain_fonts(to_latex(answer)).strip()
    lead = _LEAD.match(text)
    if lead:
        text = text[lead.end() :].strip()
    alone = _LETTER.fullmatch(text)
    if alone:
        return (alone[1] or alone[2] or alone[3]).upper(), ""
    labelled = _LABELLED.fullmatch(text)
    if labelled:
        letter, rest = labelled[1] or labelled[2], labelled[3].strip()
        if not _names_another(letter, rest):
            return letter.upper(), rest
    return None, text


def _names_another(letter: str, text: str) -> bool:
    """Whether what follows a letter names further ones: ``(B)``, ``B. dog``, ``, C and D``, ``ABCD``."""
    # A single "x" behind "A." may be its text, and so may f(x); behind "a." a small letter is one like it.
    text = _JOINING.sub(" ", text if letter.isupper() else text.upper()).strip()
    words = re.findall(r"\w+", text)
    if all(re.fullmatch("[A-Z]", word) or LETTERS.startswith(word) for word in words) or _ROW.fullmatch(text):
        return not set("".join(words)) <= {letter.upper()}
    labels = "".join(_LABEL.findall(text))
    return any(character.isalpha() and character != letter.upper() for character in labels)


def letter_of(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter that ``answer`` stands for; None if it is not one of ``options``, where there are some.

    Named outright, by the text of one option, or both, if they agree.
    """
    letter, text = read_choice(answer)
    if not options:
        return letter
    by_text = _letter_of_text(text, options) if text else None
    if letter is None:
        label = text.upper()  # options may have other labels than letters
        return label if label in options else by_text or _letter_of_whole(answer, options)
    if letter not in options:
        return None if text else _letter_of_text(letter, options)
    return letter if by_text in (None, letter) else None


def _letter_of_text(text: str, options: Mapping[str, str]) -> str | None:
    """The one option with this text, or else with this number."""
    same = [name for name, option in options.items() if canonical(option) == canonical(text)]
    number = parse_number(text)
    if not same and number is not None:
        same = [name for name, option in options.items() if parse_number(option) == number]
    return same[0] if len(same) == 1 else None


def _letter_of_whole(answer: str, options: Mapping[str, str]) -> str | None:
    """The option that ``answer`` writes out from its first character on.

    Its label and text, of which the text may look like a further letter ("B. X"); or the text alone, if that
    begins like a sentence about the answer ("Choice of words").
    """
    key = canonical(answer)
    for name, option in options.items():
        written = (f"{name}. {option}", f"{name}) {option}", f"({name}) {option}", f"{name}: {option}")
        if key in map(canonical, written):
            return name
    return _letter_of_text(answer, options)


def letters_of(answer: str, options: Mapping[str, str]) -> frozenset[str] | None:
    """The letters that ``answer`` stands for: ``A,C``, ``AC``, ``(A) and (C)``, ``["A", "C"]``, texts of
    options. None if any part of it is no option.
    """
    one = letter_of(answer, options)
    if one is not None:
        return frozenset((one,))
    parts = json_items(answer)
    if parts is not None:
        return _each(parts, options)
    text = plain_fonts(to_latex(answer)).strip()
    lead = _LEAD.match(text)
    text = unbracketed(text[lead.end() :].strip() if lead else text)
    if _RUN_TOGETHER.fullmatch(text):
        return _each([character for character in text if character.isalpha()], options)
    for between in _BETWEEN:
        found = _each([part for part in between.split(text) if part.strip()], options)
        if found is not None:
            return found
    return None


def _each(parts: list[str], options: Mapping[str, str]) -> frozenset[str] | None:
    """The letters of all parts; None if there are none, more than the alphabet has, or one is no option."""
    if not 0 < len(parts) <= max(len(LETTERS), len(options)):
        return None
    letters = [letter_of(part, options) for part in parts]
    return None if None in letters else frozenset(letter for letter in letters if letter)


def choice(sample: Sample, response: str) -> dict[str, float]:
    """``accuracy``: the answer names the option that ``sample.answer`` names.

    ``facts["options"]``, a list in the order A, B, ... or a mapping from label to text, lets answer and truth
    be given as text; without it, text is compared with text. With ``facts["several"]`` both may name more
    than one, and the answer is right if it names the same; with ``facts["partial"]`` as well, an answer
    without a wrong option gets the share of the right ones that it names. ValueError if the truth is none of
    the options, or the options are not such a list or mapping.
    """
    options = options_of(sample)
    answer = answer_of(sample, response) or ""
    if flag_fact(sample, "several", False):
        return {"accuracy": _several(sample, answer, options)}
    truth = letter_of(sample.answer, options)
    if truth is None and options:
        raise wrong_answer(sample, "is none of facts['options']; name one, or set facts['several']")
    given = letter_of(answer, options)
    if given is not None and truth is not None:
        return {"accuracy": float(given == truth)}
    given_text, truth_text = canonical(read_choice(answer)[1]), canonical(read_choice(sample.answer)[1])
    return {"accuracy": float(not options and bool(truth_text) and given_text == truth_text)}


def _several(sample: Sample, answer: str, options: Mapping[str, str]) -> float:
    truth, given = letters_of(sample.answer, options), letters_of(answer, options)
    partial = flag_fact(sample, "partial", False)
    if truth is None:
        raise wrong_answer(sample, "names no options; name them by letters, as 'A,C', or by texts")
    if given is None or not given <= truth:
        return 0.0
    return len(given) / len(truth) if partial else float(given == truth)


def options_of(sample: Sample) -> dict[str, str]:
    """The texts of ``facts["options"]`` by label, if it gives any. ValueError if it is no such thing."""
    options = sample.facts.get("options", {})
    if isinstance(options, list | tuple) and len(options) <= len(LETTERS):
        options = dict(zip(LETTERS, options, strict=False))
    if not isinstance(options, Mapping) or not all(
        isinstance(name, str) and isinstance(text, str | int | float) for name, text in options.items()
    ):
        raise ValueError(
            f"sample {sample.id}: facts['options'] should be a list of at most {len(LETTERS)} texts, or a "
            "mapping from label to text"
        )
    return {name.upper(): str(text) for name, text in options.items()}
