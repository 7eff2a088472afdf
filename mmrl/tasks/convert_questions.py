"""Questions with their answers under column names of a data set's own: most benchmarks as they are published.

A row with options becomes multiple choice (`convert_choice`), any other an open question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmrl.data.sources import ANSWERS, QUESTIONS
from mmrl.tasks import convert_choice
from mmrl.tasks.convert_entries import Entry, Images, Options, first_of, read_entries

# What a column may be named for, and the columns that it then replaces.
ROLES: Mapping[str, tuple[str, ...]] = {
    "question": QUESTIONS,
    "answer": ANSWERS,
    "images": ("image", "images"),
    "options": ("options", "choices", *convert_choice.LETTERS),
    "hint": ("hint", "context"),
}


def entries(spec: Path) -> Iterator[Entry]:
    """The questions of a file."""
    return read_entries(spec)


def rows(entry: Mapping[str, Any], images: Images, options: Options) -> list[dict[str, Any]]:
    """The row of a question; none if ``options.where`` leaves it out.

    ``options.columns`` says which column plays which of `ROLES`; ``options.ask`` is the question where no
    column holds one. Of a list of answers the commonest is the truth, and the others are aliases.

    Raises ValueError for a column that is not there, a question without text or answer, or what
    `convert_choice.rows` refuses.
    """
    if any(str(_column(entry, name)) not in values for name, values in options.where):
        return []
    entry = _under_roles(entry, options)
    if convert_choice.has_options(entry):
        made = convert_choice.rows(entry, images, options)
        return [{**row, "facts": {**options.facts, **row["facts"]}} for row in made]
    question = first_of(entry, QUESTIONS)
    if not isinstance(question, str):
        raise ValueError(f"no text under {', '.join(QUESTIONS)}")
    hint = first_of(entry, ROLES["hint"])
    told = f"{hint.strip()}\n{question.strip()}" if isinstance(hint, str) else question.strip()
    problem, pictures = convert_choice.placed(told, entry, images)
    truth, aliases = _answers(first_of(entry, ANSWERS), options.agreed)
    return [
        {
            "problem": problem,
            "answer": truth,
            "images": pictures,
            "verifier": options.verifier,
            "facts": {**options.facts, **({"aliases": aliases} if aliases else {})},
            "kind": "question",
        }
    ]


def _under_roles(entry: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """The entry with each column under the name that it plays."""
    found = dict(entry)
    for role, column in options.columns.items():
        value = _column(entry, column)
        found |= dict.fromkeys(ROLES[role])
        found[ROLES[role][0]] = value
    if options.ask and first_of(found, QUESTIONS) is None:
        found[QUESTIONS[0]] = options.ask
    if options.say:
        answer = first_of(found, ANSWERS)
        found |= dict.fromkeys(ANSWERS)
        found[ANSWERS[0]] = options.say.get(str(answer), answer)
    return found


def _column(entry: Mapping[str, Any], name: str) -> Any:
    if name not in entry:
        raise ValueError(f"no column {name!r}; it has {', '.join(entry)}")
    return entry[name]


def _answers(told: Any, agreed: int) -> tuple[Any, list[str]]:
    """The commonest of several answers, and those others that at least ``agreed`` people gave."""
    if not isinstance(told, list):
        return told, []
    counts = Counter(str(answer).strip() for answer in told if answer is not None and str(answer).strip())
    if not counts:
        return None, []
    (truth, _), *others = counts.most_common()
    return truth, [answer for answer, given in others if given >= agreed]
