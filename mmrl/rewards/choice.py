"""Multiple choice: a letter, or the text of an option."""

import re
from collections.abc import Mapping, Sequence

from mmrl.rewards.answers import answer_of
from mmrl.rewards.text import canonical, to_latex
from mmrl.sample import Sample

_FONT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s?\{([^{}]*)\}")
_LEAD = re.compile(r"(?:the )?(?:correct )?(?:answer|option|choice)(?: is)?\s?:?\s?", re.IGNORECASE)
_LETTER = re.compile(r"\(\s?([A-Za-z])\s?\)|\[\s?([A-Za-z])\s?\]|([A-Za-z])")
_LABELLED = re.compile(r"(?:\(\s?([A-Za-z])\s?\)|([A-Za-z])\s?[.):])\s?(.*)", re.DOTALL)


def read_choice(answer: str) -> tuple[str | None, str]:
    """The letter (upper case, or None) and the text of an option as ``answer`` gives them.

    ``A``, ``(A)``, ``[A]``, ``A.``, ``A) text``, ``Option A``, ``The answer is A`` name a letter;
    ``A and B``, ``A dog`` do not.
    """
    text = _FONT.sub(r"\1", to_latex(answer)).strip()
    lead = _LEAD.match(text)
    if lead:
        text = text[lead.end() :].strip()
    alone = _LETTER.fullmatch(text)
    if alone:
        return (alone[1] or alone[2] or alone[3]).upper(), ""
    labelled = _LABELLED.fullmatch(text)
    if labelled:
        return (labelled[1] or labelled[2]).upper(), labelled[3].strip()
    return None, text


def letter_of(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter ``answer`` stands for: named outright, or by the exact text of one option."""
    letter, text = read_choice(answer)
    if letter is not None:
        return letter
    same = [name for name, option in options.items() if canonical(option) == canonical(text)]
    return same[0] if len(same) == 1 else None


def choice(sample: Sample, response: str) -> dict[str, float]:
    r"""``{"accuracy": 1.0}`` if the last box names the option that ``sample.answer`` names.

    ``sample.facts["options"]``, a list in the order A, B, ... or a mapping from letter to text, lets answer
    and truth be given as text; without it, text is compared with text.
    """
    boxed = answer_of(sample, response)
    if not boxed:
        return {"accuracy": 0.0}
    options = _options(sample.facts.get("options", {}))
    given, truth = letter_of(boxed, options), letter_of(sample.answer, options)
    if given is not None and truth is not None:
        return {"accuracy": float(given == truth)}
    given_text, truth_text = canonical(read_choice(boxed)[1]), canonical(read_choice(sample.answer)[1])
    return {"accuracy": float(bool(truth_text) and given_text == truth_text)}


def _options(options: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    if isinstance(options, Mapping):
        return {name.upper(): text for name, text in options.items()}
    return {chr(ord("A") + i): text for i, text in enumerate(options)}
