"""What held-out responses got wrong: by kind of error, by group of questions, before against after."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from mmrl.analysis.rollouts import KINDS, RIGHT, Row, error_kind, responses_of, samples_of
from mmrl.analysis.runs import Run
from mmrl.statistics import Interval, bootstrap_interval

ALL = "all"


class Share(NamedTuple):
    """How many responses of a group of questions are of one kind."""

    group: str
    kind: str  # one of `mmrl.analysis.rollouts.KINDS`
    share: Interval  # over questions, by the bootstrap
    responses: int  # in the group


class QuestionChange(NamedTuple):
    """What became of one question."""

    id: str
    problem: str
    answer: str
    before: float  # share of its responses that are right
    after: float


@dataclass(frozen=True)
class Transitions:
    """Responses before and after, of one question and place in its group: sampled by the same draws."""

    kinds: tuple[str, ...]  # those that occur
    counts: Int[np.ndarray, "k k"]  # responses, by kind before (row) and after (column)
    questions: tuple[QuestionChange, ...]  # those that gained most first; their responses may be several


def error_breakdown(run: Run, when: str = "after", by: str = "") -> list[Share]:
    """Shares of right responses and of each kind of error; the kinds of a group sum to 1.

    Args:
      run: of `load_run`.
      when: responses "before" the first step, or "after" the last.
      by: "" for all together, "source" for each data set apart, or the name of a fact of the data, such as
        "kind" in the shapes world, by whose values questions are grouped.

    Raises ValueError if there are no responses, or no question has that fact (the facts are named).
    """
    rows = responses_of(run, when)
    groups = _groups(run, rows, by)
    present = [kind for kind in KINDS if any(error_kind(row) == kind for row in rows)]
    return [
        Share(group, kind, _share(members, kind), len(members))
        for group, members in groups.items()
        for kind in present
    ]


def transitions(run: Run) -> Transitions:
    """Which responses and questions became right or wrong between the first and the last evaluation.

    Raises ValueError if either has no responses, or they have no question in common.
    """
    before, after = (_by_question(responses_of(run, when)) for when in ("before", "after"))
    common = [one for one in before if one in after]
    if not common:
        raise ValueError(f"{run.workdir}: the responses before and after have no question in common")
    pairs = [
        (error_kind(old), error_kind(new))
        for one in common
        for old, new in zip(before[one], after[one], strict=False)  # one that could not be graded is missing
    ]
    kinds = tuple(kind for kind in KINDS if any(kind in pair for pair in pairs))
    counts = np.zeros((len(kinds), len(kinds)), int)
    for old, new in pairs:
        counts[kinds.index(old), kinds.index(new)] += 1
    questions = [
        QuestionChange(
            one,
            after[one][0]["problem"],
            after[one][0]["answer"],
            *(_right(rows[one]) for rows in (before, after)),
        )
        for one in common
    ]
    return Transitions(
        kinds, counts, tuple(sorted(questions, key=lambda one: (one.before - one.after, one.id)))
    )


def _groups(run: Run, rows: Sequence[Row], by: str) -> dict[str, list[Row]]:
    if not by:
        return {ALL: list(rows)}
    if by == "source":
        values: list[Any] = [row["source"] for row in rows]
    else:
        facts = [sample.facts for sample in samples_of(run, rows)]
        values = [one.get(by) for one in facts]
        if all(value is None for value in values):
            there = sorted({name for one in facts for name in one})
            raise ValueError(
                f"{run.workdir}: no question has a fact {by!r}; there are {', '.join(there) or 'none'}"
            )
    groups: dict[str, list[Row]] = {}
    for value, row in zip(values, rows, strict=True):
        groups.setdefault("none" if value is None else str(value), []).append(row)
    return dict(sorted(groups.items()))


def _share(rows: Sequence[Row], kind: str) -> Interval:
    shares = [
        np.mean([error_kind(row) == kind for row in members]) for members in _by_question(rows).values()
    ]
    return bootstrap_interval(np.array(shares, float), np.random.default_rng(0))


def _by_question(rows: Sequence[Row]) -> Mapping[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["id"], []).append(row)
    return found


def _right(rows: Sequence[Row]) -> float:
    return float(np.mean([error_kind(row) == RIGHT for row in rows]))
