"""Verifier `choice`: a letter or the text of an option, one of them or several."""

import re
from collections.abc import Mapping
from typing import Any

from mmrl.rewards.lists import json_items, strip_brackets
from mmrl.rewards.quantity import in_terms_of, read_quantity
from mmrl.rewards.text import canonical, plain_fonts, to_latex, without_lead
from mmrl.rewards.verifier import AnswerIn, Components, Verifier, answer_of, wrong_answer
from mmrl.sample import Sample

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_TAIL = re.compile(
    r"\s(?:is|would be|seems) (?:(?:the )?(?:correct|right|best)(?: (?:answer|option|choice|one))?"
    r"|the answer)$"
)
_LETTER = re.compile(r"\(\s?([A-Za-z])\s?\)|\[\s?([A-Za-z])\s?\]|([A-Za-z])")
_LABELLED = re.compile(
    r"(?:\(\s?([A-Za-z])\s?\)|\[\s?([A-Za-z])\s?\]|([A-Za-z])(?=\s?[.:)(,;=-]|\n))"
    r"(?P<mark>\s?[.:)]|\s?(?:[,;=]|-+>?)*)"
    r"\s*(?P<text>.*)",
    re.DOTALL,
)
_LABEL = re.compile(r"(?<![\w)])(?:\(\s?[A-Z]\s?\)|\[\s?[A-Z]\s?\])|(?<![\w.])[A-Z][.):](?!\S)")
_LONE = re.compile(r"(?<![\w'.])[A-Z](?![\w'])")
_JOINING = re.compile(r"\b(?:and|or|both|nor|maybe|either|not|then)\b", re.IGNORECASE)
_ROW = re.compile(r"[A-Za-z](?:[\s,;/&]+[A-Za-z])+")
_RUN_TOGETHER = re.compile(r"(?:\(\s?[A-Za-z]\s?\)\s?){2,}|(?:[A-Z]\s?){2,}|[A-Z](?:\s?[/|+]\s?[A-Z])+")
# The first of these that cuts an answer into options does: texts of options may hold commas.
_BETWEEN = (re.compile(r"[;\n]"), re.compile(r"[;,\n]|\band\b|&", re.IGNORECASE))


def _bare(answer: str) -> str:
    """``answer`` without fonts, and without what stands around a letter or a text: "The answer is **B**!"."""
    text = plain_fonts(to_latex(answer)).strip()
    lead = without_lead(text)
    text = to_latex(lead) if lead else text  # a text in quotes or stars behind the lead
    return _TAIL.sub("", text.rstrip("!?.,;: ").replace("\\to", "->").removeprefix("- ")).strip()


def read_choice(answer: str) -> tuple[str | None, str]:
    """The letter (upper case, or None) and the text of an option as ``answer`` gives them.

    ``A``, ``(A)``, ``[A]``, ``A.``, ``A) text``, ``A (text)``, ``A, text``, ``Option A``, ``The answer is A``
    name a letter; ``A and B``, ``A dog``, ``(A) or (B)`` do not.
    """
    text = _bare(answer)
    alone = _LETTER.fullmatch(text)
    if alone:
        return (alone[1] or alone[2] or alone[3]).upper(), ""
    labelled = _LABELLED.fullmatch(text)
    if labelled:
        letter, rest = labelled[1] or labelled[2] or labelled[3], labelled["text"].strip()
        # Behind "B)" a text follows; behind "B," there may be a further letter.
        loose = labelled["mark"].strip() not in (".", ":", ")") and not (labelled[1] or labelled[2])
        further = set(_LONE.findall(rest)) - {letter.upper()} if loose else set()
        if not further and not _names_another(letter, rest):
            return letter.upper(), rest[1:-1].strip() if rest[:1] == "(" and rest[-1:] == ")" else rest
    return None, text


def _names_another(letter: str, text: str) -> bool:
    """True if what follows a letter names further ones: ``(B)``, ``B. dog``, ``, C and D``, ``ABCD``."""
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
        return _letter_of_whole(answer, options) if text else _letter_of_text(letter, options)
    if by_text is None and text and _contradicts(letter, text, options):
        return None
    return letter if by_text in (None, letter) else None


def _contradicts(letter: str, text: str, options: Mapping[str, str]) -> bool:
    """True if a text that is none of the options goes ill with ``letter``: it holds the words of another
    option, or another number than that of this one.
    """
    given, wanted = read_quantity(text), read_quantity(options[letter])
    if given and wanted and wanted.value not in in_terms_of(wanted, given):
        return True
    others = (_words(option) for name, option in options.items() if name != letter)
    return any(f" {other} " in f" {_words(text)} " for other in others if other)


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _letter_of_text(text: str, options: Mapping[str, str]) -> str | None:
    """The one option with this text, or else with this number."""
    key = canonical(text)
    same = [name for name, option in options.items() if canonical(option) == key]
    given = None if same else read_quantity(text)
    if given is not None and given.alone:
        read = {name: read_quantity(option) for name, option in options.items()}
        same = [
            name
            for name, wanted in read.items()
            if wanted and wanted.alone and wanted.value in in_terms_of(wanted, given)
        ]
    return same[0] if len(same) == 1 else None


def _letter_of_whole(answer: str, options: Mapping[str, str]) -> str | None:
    """The option that ``answer`` writes out from its first character on.

    Its label and text, of which the text may look like a further letter ("B. X"); or the text alone, if that
    begins like a sentence about the answer ("Choice of words").
    """
    keys = {canonical(answer), canonical(_bare(answer))}
    for name, option in options.items():
        marks = (f"{name}.", f"{name})", f"({name})", f"{name}:", f"{name},", f"{name} -", name)
        if not keys.isdisjoint(canonical(f"{mark} {option}") for mark in marks):
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
    text = strip_brackets(_bare(answer))
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


@Verifier
def choice(
    sample: Sample,
    response: str,
    *,
    options: Any = None,
    several: bool = False,
    partial: bool = False,
    answer_in: AnswerIn = "box",
) -> Components:
    """``accuracy``: the answer names the option that ``sample.answer`` names.

    ``options``, a list in the order A, B, ... or a mapping from label to text, lets answer and truth be given
    as text; without it, text is compared with text. With ``several`` both may name more than one, and the
    answer is right if it names the same; with ``partial`` as well, an answer without a wrong option gets the
    share of the right ones that it names. ValueError if the truth is none of the options.
    """
    texts, answer = _by_label(sample, options), answer_of(response, answer_in)
    if several:
        return {"accuracy": _several(sample, answer, texts, partial)}
    truth = letter_of(sample.answer, texts)
    if truth is None and texts:
        raise wrong_answer(sample, "is none of facts['options']; name one, or set facts['several']")
    given = letter_of(answer, texts)
    if given is not None and truth is not None:
        return {"accuracy": float(given == truth)}
    given_text, truth_text = canonical(read_choice(answer)[1]), canonical(read_choice(sample.answer)[1])
    return {"accuracy": float(not texts and bool(truth_text) and given_text == truth_text)}


def _several(sample: Sample, answer: str, options: Mapping[str, str], partial: bool) -> float:
    truth, given = letters_of(sample.answer, options), letters_of(answer, options)
    if truth is None:
        raise wrong_answer(sample, "names no options; name them by letters, as 'A,C', or by texts")
    if given is None or not given <= truth:
        return 0.0
    return len(given) / len(truth) if partial else float(given == truth)


def _by_label(sample: Sample, options: Any) -> dict[str, str]:
    """The texts of options by label. ValueError if they are neither a list nor a mapping of texts."""
    if options is None:
        return {}
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
