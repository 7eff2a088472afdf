r"""Verifiers of how a response is written: its form, length, repetition, language, and its reflection."""

import itertools
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Annotated, Any, Literal

from mmrl.rewards.math import equal
from mmrl.rewards.quantity import last_number, parse_number, same_number
from mmrl.rewards.text import MAX_ANSWER, canonical, last_boxed, unboxed
from mmrl.rewards.verifier import AnswerIn, Components, Size, Verifier, answer_of, rollout_info
from mmrl.sample import Sample

Tokens = Annotated[float, 1, 1e15]

MAX_LANGUAGE, MAX_REPETITION = 1_000_000, 300_000  # characters; what comes after is not looked at
MAX_LISTS = 100  # that are read, or turn out to be no JSON; what follows is text
WORD = 2  # a word is worth two characters of a script that writes no blanks between words
LONGEST_WORD = 100  # characters; what is longer is no word, and its characters count

# Scripts by language, as the names of Unicode's characters begin.
SCRIPTS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        language: frozenset(scripts.split())
        for languages, scripts in {
            "de en es fr id it nl pl pt sv tr vi": "LATIN",
            "bg ru uk": "CYRILLIC",
            "ar fa ur": "ARABIC",
            "hi mr ne": "DEVANAGARI",
            "bn": "BENGALI",
            "el": "GREEK",
            "he": "HEBREW",
            "ja": "CJK HIRAGANA KATAKANA KATAKANA-HIRAGANA IDEOGRAPHIC",
            "ka": "GEORGIAN",
            "ko": "HANGUL",
            "ta": "TAMIL",
            "te": "TELUGU",
            "th": "THAI",
            "zh": "CJK BOPOMOFO IDEOGRAPHIC",
        }.items()
        for language in languages.split()
    }
)

STAGES = ("think", "answer", "reflection", "think", "answer")
# By whether the first and the second answer are right.
GRADES = {(False, True): 1.0, (True, True): 0.75, (True, False): 0.25, (False, False): 0.0}
ONLY_ANSWER = 0.5  # if right

_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*+)</answer>", re.DOTALL)
_REFLECTION = re.compile(r"\s*<reflection>((?:(?!</?reflection>).)*+)</reflection>", re.DOTALL)
_CONCLUSION = re.compile(
    r"\b(?:answer|option|choice)(?:\s+is|\s*[:=])\s*:?\s*([^\n]{1,200}?)(?=[.;](?!\d)|\s*(?:\n|$))",
    re.IGNORECASE,
)
# A run of blanks is tried from its beginning only, which keeps the time linear.
_BLANKS_AT_TAGS = re.compile(r"(?<=[<>/])\s++|(?<!\s)\s++(?=[<>/])")
_STAGE = re.compile(r"[A-Za-z][\w-]*")
_WORD = re.compile(r"\w+")
_LIST = re.compile(r"\[\s*\{")
# Kana, Han, Thai, Lao, Burmese, Khmer: scripts without blanks between words.
_BLANKLESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
_UNITS = re.compile(f"([{_BLANKLESS}])|([^{_BLANKLESS}]+)")
# Formulas are in every language: what they are made of says nothing about the text around them.
_NO_TEXT = re.compile(r"```.*?```|</?\w+>|\\[A-Za-z]+", re.DOTALL)
_SYMBOLS = {
    "LATIN": re.compile(r"(?<![A-Za-z])[A-Za-z]{1,2}(?![A-Za-z])"),
    "GREEK": re.compile(r"(?<![\u0370-\u03ff])[\u0370-\u03ff]{1,2}(?![\u0370-\u03ff])"),
}


@partial(Verifier, name="format")
def response_format(sample: Sample, response: str, *, answer_in: AnswerIn = "box") -> Components:
    """``format``: a response has the form that goes with ``answer_in``.

    "box": `think_boxed`; "tag" and "tag_or_all": `think_answer`; others: `think_then`.
    """
    rule = {"box": think_boxed, "tag": think_answer, "tag_or_all": think_answer}.get(answer_in, think_then)
    return rule(sample, response)


def think_then(sample: Sample, response: str) -> Components:
    """``format``: the response is a ``<think>...</think>`` and something else, neither empty."""
    answer = response.rpartition("</think>")[2]
    return {"format": float(is_visible(_leading_thought(response)) and is_visible(answer))}


def think_boxed(sample: Sample, response: str) -> Components:
    r"""``format``: the whole response reads ``<think>.*</think>.*\boxed{.*}.*``.

    The rule of ``format_reward`` in EasyR1's ``examples/reward_function/math.py``, read without blanks around
    ``<``, ``>`` and ``/``. Searching for the parts one after another finds a match exactly when the
    backtracking expression does, in linear time.
    """
    text = tight_tags(response)
    if not text.startswith("<think>"):
        return {"format": 0.0}
    at = len("<think>")
    for part in ("</think>", "\\boxed{", "}"):
        found = text.find(part, at)
        if found < 0:
            return {"format": 0.0}
        at = found + len(part)
    return {"format": 1.0}


def think_answer(sample: Sample, response: str) -> Components:
    """``format``: the whole response reads ``<think>.*</think><answer>.*</answer>``.

    The rule of ``format_reward`` in EasyR1's ``examples/reward_function/r1v.py``, read without blanks around
    the tags.
    """
    text = tight_tags(response)
    middle = text.find("</think><answer>", len("<think>"))
    ending = len(text) - len("</answer>")
    inside = 0 <= middle <= ending - len("</think><answer>")
    return {"format": float(text.startswith("<think>") and text.endswith("</answer>") and inside)}


def tight_tags(response: str) -> str:
    """``response`` without the blanks around ``<``, ``>`` and ``/``."""
    return _BLANKS_AT_TAGS.sub("", response)


@Verifier
def thought(sample: Sample, response: str, *, least_words: Tokens = 1.0) -> Components:
    """``thought``: the response begins with a ``<think>`` of ``least_words`` different words.

    EasyR1's forms take an empty thought for a thought. Words are runs of letters and digits.
    """
    words: set[str] = set()
    for word in _WORD.finditer(_leading_thought(response)):
        words.add(word[0])
        if len(words) >= least_words:
            return {"thought": 1.0}
    return {"thought": 0.0}


def is_visible(text: str) -> bool:
    """True if any character of ``text`` can be seen: it is no blank and no control or format character."""
    return any(unicodedata.category(character)[0] not in "ZC" for character in text)


def _leading_thought(response: str) -> str:
    """The thinking with which a response begins; "" if there is none."""
    opened = response.lstrip()
    inside, closing, _ = opened.removeprefix("<think>").partition("</think>")
    return inside if closing and opened.startswith("<think>") else ""


@Verifier
def stages(sample: Sample, response: str, *, stages: Sequence[Any]) -> Components:
    """The tagged stages ``stages``, each in tags of its name.

    ``stages``: each stage stands where the list has it, is not empty, and nothing but blanks stands around
    them. ``stage_tags``: the share of the list's opening and closing tags that occur as often as it has them;
    those of a stage that is empty, or closed before it is opened, do not count. V-Triune pays 0.25 for each
    of the tags of ``["think", "answer"]``. ValueError if the list is empty or has other things than names.
    """
    if not stages or not all(isinstance(name, str) and _STAGE.fullmatch(name) for name in stages):
        raise ValueError(
            f'sample {sample.id}: facts["stages"] should be names of tags, but is {stages!r:.80}'
        )
    right = 0
    for name, count in Counter(stages).items():
        ends = [[m.start() for m in re.finditer(tag, response)] for tag in (f"<{name}>", f"</{name}>")]
        complete = [len(places) == count for places in ends]
        if all(complete):
            inside = (response[start + len(name) + 2 : end] for start, end in zip(*ends, strict=True))
            right += 2 * sum(map(is_visible, inside))
        else:
            right += count * sum(complete)
    return {"stages": float(in_stages(response, stages)), "stage_tags": right / (2 * len(stages))}


def in_stages(response: str, names: Sequence[str]) -> bool:
    """True if ``response`` is the tagged stages ``names`` in this order, none blank, and nothing else."""
    expected = [tag for name in names for tag in (f"<{name}>", f"</{name}>")]
    any_tag = re.compile("</?(?:" + "|".join(sorted(set(names))) + ")>")
    tags = itertools.islice(any_tag.finditer(response), len(expected) + 1)
    if [tag[0] for tag in tags] != expected:
        return False
    pieces = any_tag.split(response)
    return all(map(is_visible, pieces[1::2])) and not any(piece.strip() for piece in pieces[::2])


@Verifier
def overlong(sample: Sample, response: str, *, overlong_buffer: Size) -> Components:
    """``overlong``: 0 up to ``max_tokens - overlong_buffer`` tokens, falling linearly to -1 at
    ``max_tokens``, -1 beyond.

    Source: DAPO, Yu et al. 2025, equation 13; with a buffer of 0 only what is longer than ``max_tokens`` is
    punished, as in EasyR1's and TRL's ``soft_overlong_punishment``.
    """
    info = rollout_info(sample)
    buffer = overlong_buffer
    if buffer > (info.max_tokens or math.inf):  # before a run, the budget is not known yet
        raise ValueError(
            f"sample {sample.id}: facts['overlong_buffer'] is '{buffer:g}', but should be a number from 0 to"
            f" {info.max_tokens:g}"
        )
    over = info.tokens - max(0.0, info.max_tokens - buffer)
    return {"overlong": 0.0 if over <= 0 else -1.0 if over >= buffer else -over / buffer}


@Verifier
def length_target(
    sample: Sample, response: str, *, target_tokens: Annotated[float, 1, math.inf]
) -> Components:
    """``length_target``: 1 at ``target_tokens`` tokens, falling to 0 at none and at twice as many."""
    return {"length_target": max(0.0, 1.0 - abs(rollout_info(sample).tokens - target_tokens) / target_tokens)}


@Verifier
def repetition(sample: Sample, response: str, *, ngram: Annotated[float, 1, 100] = 6.0) -> Components:
    """``repetition``, from -1 to 0: minus the share of n-grams that occurred before.

    n is ``ngram`` words. In a JSON list of objects the objects are the words and n is
    1: the same box twice is a repetition. The text outside such lists and each list are judged apart, and the
    worst counts. Sources: ``get_repetition_penalty`` of Yeo et al. 2025 (Demystifying long chain-of-thought),
    and VLM-R1's ``repetition_reward`` for lists of boxes.
    """
    text, lists = _split_lists(response[:MAX_REPETITION])
    items: list[Sequence[Any]] = [_ngrams(list(_units(text)), round(ngram)), *lists]
    return {"repetition": min(len(set(each)) / len(each) if each else 1.0 for each in items) - 1.0}


def _units(text: str) -> Iterator[tuple[str, int]]:
    """Words of ``text``, or characters where a script has no blanks or a word no end; with their worth."""
    for word in text.lower().split():
        if len(word) > LONGEST_WORD:
            yield from ((character, 1) for character in word)
        elif word.isascii():
            yield word, WORD
        else:
            for character, rest in _UNITS.findall(word):
                yield (character, 1) if character else (rest, WORD)


def _ngrams(units: Sequence[tuple[str, int]], size: int) -> list[int]:
    """Hashes of the runs of units that are worth ``size`` words, one for each beginning."""
    grams, end, worth = [], 0, 0
    for start in range(len(units)):
        while end < len(units) and worth < WORD * size:
            worth, end = worth + units[end][1], end + 1
        if worth < WORD * size:
            break
        grams.append(hash(tuple(units[start:end])))
        worth -= units[start][1]
    return grams


def _split_lists(text: str) -> tuple[str, list[list[str]]]:
    """``text`` without its JSON lists of objects, and the objects of each."""
    decoder, rest, lists, end = json.JSONDecoder(), [], [], 0
    opening = _LIST.search(text)
    for _ in range(MAX_LISTS):
        if opening is None:
            break
        try:
            items, after = decoder.raw_decode(text, opening.start())
            lists.append([_object_key(item) for item in items])
            rest.append(text[end : opening.start()])
            end = after
        except (ValueError, RecursionError):
            after = opening.end()
        opening = _LIST.search(text, after)
    return " ".join([*rest, text[end:]]), lists


def _object_key(item: Any) -> str:
    """Box and label of an object that has both, else all of it."""
    if isinstance(item, dict) and "bbox_2d" in item and "label" in item:
        return f"{item['bbox_2d']}_{item['label']}"
    return repr(item)


@Verifier
def language(sample: Sample, response: str, *, language: str) -> Components:
    """``language``: the share of the response's letters that are of that language's scripts (`SCRIPTS`).

    Left out are tags, fenced code, LaTeX commands, and runs of one or two Latin or Greek letters (``x``,
    ``AB``, ``cm``) in a language of another script. A response without letters is in no language: 0.
    Languages of one script, such as English and French, are not told apart.
    """
    if language not in SCRIPTS:
        raise ValueError(
            f"sample {sample.id}: facts['language'] is {language!r:.80}, but should be one of"
            f" {', '.join(sorted(SCRIPTS))}"
        )
    scripts = SCRIPTS[language]
    text = _NO_TEXT.sub(" ", response[:MAX_LANGUAGE])
    for script, symbols in _SYMBOLS.items():
        if script not in scripts:
            text = symbols.sub(" ", text)
    counts: Counter[str] = Counter()
    for character, count in Counter(text).items():
        counts[_script(character)] += count
    letters = counts.total() - counts[""]
    return {"language": sum(counts[script] for script in scripts) / letters if letters else 0.0}


@lru_cache(maxsize=65536)
def _script(character: str) -> str:
    """The first word of a letter's Unicode name, its width left out; "" for what is no letter of a text."""
    if not unicodedata.category(character).startswith("L"):
        return ""
    name = unicodedata.name(character, "UNKNOWN").removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ")
    script = name.split()[0]
    return "" if script in ("MATHEMATICAL", "MODIFIER", "DOUBLE-STRUCK", "SCRIPT") else script


@Verifier
def reflection(sample: Sample, response: str, *, compare: Literal["math", "text"] = "math") -> Components:
    """Grades a first answer, a reflection on it and a second answer, in ``<answer>`` and ``<reflection>``.

    ``reflection``: 1 wrong, then right; 0.75 right twice; 0.25 right, then wrong; 0 wrong twice; 0.5 for a
    right answer without a second one. More than two answers are wrong, and so are two without a reflection
    between them. ``accuracy``: the last answer is right. ``format``: the response is `STAGES` and nothing
    else. Answers are compared as mathematics (`equal`), or with ``compare="text"`` as text.
    Source: SRPO, Wan et al. 2025, ``srpo_reward_func.py``. ValueError if the sample's answer is blank.
    """
    truth = sample.answer.strip()
    if not truth:
        raise ValueError(f"sample {sample.id}: the answer is empty; give the text that a right response has")
    right = [_right(answer, truth, compare == "text") for answer in _answers(response)]
    grade = GRADES[right[0], right[1]] if len(right) == 2 else ONLY_ANSWER if right == [True] else 0.0
    return {
        "reflection": grade,
        "accuracy": float(bool(right) and right[-1]),
        "format": float(in_stages(response, STAGES)),
    }


def _answers(response: str) -> list[str]:
    """The only answer, or the two around a reflection; none if there are others."""
    found = list(itertools.islice(_ANSWER.finditer(response), 3))
    if len(found) == 2:
        between = _REFLECTION.match(response, found[0].end(), found[1].start())
        if between is None or not is_visible(between[1]):
            return []
    elif len(found) != 1:
        return []
    return [match[1].strip() for match in found]


def _right(answer: str, truth: str, as_text: bool) -> bool:
    given = unboxed(answer)
    if not given or len(given) > MAX_ANSWER:
        return False
    return canonical(given) == canonical(truth) if as_text else equal(given, truth)


@Verifier
def consistency(sample: Sample, response: str, *, answer_in: AnswerIn = "box") -> Components:
    """``{"consistency": 1.0}`` if the thinking concludes what is answered (`answer_of`), right or wrong.

    The thinking is what stands between ``<think>`` and the last ``</think>``. Its conclusion is its last box,
    else what its last "answer is", "Answer:" or "option is" says, else, if the answer is a number, its last
    number. Both are the same if they are one number, or one text (`canonical`). 0 without an answer, a
    thinking or a conclusion that can be read.
    """
    answer = unboxed(answer_of(response, answer_in)) or ""
    is_number = parse_number(answer) is not None
    thinking = response.partition("<think>")[2].rpartition("</think>")[0]
    concluded = _conclusions(thinking[-MAX_ANSWER:], is_number) if canonical(answer) else ()
    return {"consistency": float(any(_same(answer, text) for text in concluded))}


def _same(answer: str, conclusion: str) -> bool:
    given, concluded = parse_number(answer), parse_number(conclusion)
    if given is not None and concluded is not None:
        return same_number(given, concluded, rounded=False)
    return canonical(conclusion) == canonical(answer)


def _conclusions(thinking: str, number: bool) -> tuple[str, ...]:
    """Readings of the conclusion: where a sentence goes on after a comma, with and without the rest."""
    if "\\boxed" in thinking:
        return (last_boxed(thinking) or "",)
    said = _CONCLUSION.findall(thinking)
    if said:
        return (said[-1], said[-1].split(", ")[0])
    return (last_number(thinking) or "",) if number else ()
