"""Verifiers of answers in words: yes or no, exact text, text by its words, and text by its characters."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from rapidfuzz.distance import Levenshtein

from mmrl.rewards.text import plain_characters, plain_fonts, without_lead
from mmrl.rewards.verifier import AnswerIn, Components, Verifier, answer_of, wrong_answer
from mmrl.sample import Sample

Aliases = Sequence[Any]  # other texts for the answer

ANLS_THRESHOLD = 0.5  # a normalised distance of this or more is no credit

_MEANINGFUL = "#%&*@"  # punctuation to Unicode, but "C#" is not "C"
_ARTICLES = frozenset(("a", "an", "the"))
_UNSPOKEN = re.compile(r"['\u2019]|\*\*")  # apostrophes, bold type in Markdown
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_YES, _NO = frozenset(("yes", "true", "correct", "right")), frozenset(("no", "false", "incorrect", "wrong"))


@Verifier
def yes_no(sample: Sample, response: str, *, answer_in: AnswerIn = "box") -> Components:
    """``accuracy``: the answer says yes where ``sample.answer`` does, or no where that does.

    "Yes" or "no" may have words behind it, unless the other of the two is among them; "true", "correct",
    "right" and their opposites count only as the whole answer. ValueError if ``sample.answer`` is neither.
    """
    truth = says_yes(sample.answer)
    if truth is None:
        raise wrong_answer(sample, "is neither yes nor no; use the verifier 'text'")
    return {"accuracy": float(says_yes(answer_of(response, answer_in)) == truth)}


def says_yes(text: str) -> bool | None:
    """True if ``text`` says yes (True) or no (False); None if it says neither, or both."""
    plain = without_lead(words_of(text))
    if plain in _YES or plain in _NO:
        return plain in _YES
    words = plain.split()
    if not words or words[0] not in ("yes", "no") or {"yes", "no"} <= set(words):
        return None
    return words[0] == "yes"


@Verifier
def exact(sample: Sample, response: str, *, aliases: Aliases = (), answer_in: AnswerIn = "box") -> Components:
    """``accuracy``: the answer is ``sample.answer``, or one of ``aliases``, to the character."""
    truths = {truth.strip() for truth in _truths(sample, aliases)}
    return {"accuracy": float(answer_of(response, answer_in) in truths)}


@Verifier
def text(sample: Sample, response: str, *, aliases: Aliases = (), answer_in: AnswerIn = "box") -> Components:
    """``accuracy``: the answer has the words (`words_of`) of ``sample.answer``, or of one of ``aliases``."""
    truths = {words_of(truth) for truth in _truths(sample, aliases)}
    answer = answer_of(response, answer_in)
    return {"accuracy": float(bool(answer) and words_of(answer) in truths)}


def words_of(answer: str) -> str:
    """``answer`` as words with a blank between them: NFKC, without case, articles and punctuation.

    In the manner of SQuAD's official evaluation (Rajpurkar et al. 2016), but for what stands in or before a
    number (3.5 is not 35, -3 is not 3) and for ``#%&*@``. An answer of articles and punctuation alone is
    kept.
    """
    folded = " ".join(plain_characters(plain_fonts(answer)).casefold().split())
    spelt = _THOUSANDS.sub("", _UNSPOKEN.sub("", folded))
    kept = "".join(
        character if _is_kept(spelt, place, character) else " " for place, character in enumerate(spelt)
    )
    return " ".join(word for word in kept.split() if word not in _ARTICLES) or folded


def _is_kept(text: str, place: int, character: str) -> bool:
    if character in _MEANINGFUL or not unicodedata.category(character).startswith("P"):
        return True
    before, after = text[place - 1 : place], text[place + 1 : place + 2]
    if character in "-." and not (before.isalnum() or before == character):
        return after.isdigit() or (character == "-" and after == ".")
    return before.isdigit() and after.isdigit()


@Verifier
def anls(sample: Sample, response: str, *, aliases: Aliases = (), answer_in: AnswerIn = "box") -> Components:
    """``accuracy``: ANLS of one question (Biten et al. 2019, equation 1; the score of ST-VQA and DocVQA).

    1 - d with d the Levenshtein distance over the longer length, if d < 0.5, else 0; the best over
    ``sample.answer`` and ``aliases``, in lower case and with single blanks.
    """
    truths = [_single_blanks(truth).lower() for truth in _truths(sample, aliases)]
    given = similarity(_single_blanks(answer_of(response, answer_in)).lower(), truths)
    return {"accuracy": given if given > 1.0 - ANLS_THRESHOLD else 0.0}


@Verifier
def edit(sample: Sample, response: str, *, aliases: Aliases = (), answer_in: AnswerIn = "box") -> Components:
    """``accuracy``: the same text; ``similarity``: 1 minus the Levenshtein distance over the longer length.

    The best over ``sample.answer`` and ``aliases``; case counts, how many blanks there are does not.
    """
    truths = [_single_blanks(truth) for truth in _truths(sample, aliases)]
    given = similarity(_single_blanks(answer_of(response, answer_in)), truths)
    return {"accuracy": float(given == 1.0), "similarity": given}


def similarity(answer: str, truths: list[str]) -> float:
    """1 minus the Levenshtein distance to the nearest truth over the longer length; 0 without an answer."""
    if not answer:
        return 0.0
    return max(1.0 - Levenshtein.normalized_distance(answer, truth) for truth in truths)


def _single_blanks(text: str) -> str:
    return " ".join(text.split())


def _truths(sample: Sample, aliases: Aliases) -> list[str]:
    """``sample.answer`` and ``aliases``. ValueError if one of them is empty, or no text."""
    truths = [sample.answer, *aliases]
    for truth in truths:
        if not isinstance(truth, str) or not truth.strip():
            raise ValueError(
                f"sample {sample.id}: {str(truth)[:80]!r} is no text to compare with; give the answer and "
                'facts["aliases"] as text that is not empty'
            )
    return truths
