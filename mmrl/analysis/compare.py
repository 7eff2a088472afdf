"""Comparisons of runs: curves over seeds, kinds of errors, responses before and after, changed weights."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mmrl.analysis.runs import KINDS, RIGHT, Row, Run, by_question, error_kind, responses_of, samples_of
from mmrl.models.params import flatten
from mmrl.statistics import Interval, bootstrap_interval, mean_interval
from mmrl.suggest import suggest
from mmrl.types import Params

RunsByArm = Mapping[str, Sequence[Run]]  # runs that differ in their seeds alone, by the name of their arm
ALL = "all"
_STACKED = "layers"  # a part of the path of weights whose first axis counts layers


@dataclass(frozen=True)
class Curve:
    """A metric of one arm, at every step at which any of the arms has it."""

    arm: str
    metric: str
    seeds: tuple[int, ...]
    steps: Int[np.ndarray, "n"]
    values: Float[np.ndarray, "seeds n"]  # NaN where a run has nothing
    means: tuple[Interval, ...]  # over seeds, at each step
    differences: tuple[Interval, ...]  # from the baseline's run of the same seed; none without a baseline


class Share(NamedTuple):
    """Share of the responses to a group of questions that are of one kind."""

    group: str
    kind: str  # one of `mmrl.analysis.runs.KINDS`
    share: Interval  # over questions, by the bootstrap
    responses: int  # in the group


class QuestionChange(NamedTuple):
    """Share of right responses to one question, before and after."""

    id: str
    problem: str
    answer: str
    before: float
    after: float


@dataclass(frozen=True)
class Transitions:
    """Responses before and after, of one question and place in its group: sampled by the same draws."""

    kinds: tuple[str, ...]  # those that occur
    counts: Int[np.ndarray, "k k"]  # responses, by kind before (row) and after (column)
    questions: tuple[QuestionChange, ...]  # those that gained most first; their responses may be several


class Change(NamedTuple):
    """Difference of a weight, or of several together, between two checkpoints; norms are Euclidean."""

    path: str  # as in the parameter tree, the layer's number after "layers"
    size: int  # numbers
    before: float  # norm
    after: float
    moved: float  # norm of the difference
    changed: float  # share of the numbers that are not equal

    @property
    def relative(self) -> float:
        """Norm of the difference by the norm before; infinite for zeros that moved."""
        return self.moved / self.before if self.before else (math.inf if self.moved else 0.0)

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the two; NaN where one is zero."""
        product = self.before * self.after
        if not product:
            return math.nan
        # From the difference, as weights are nearly parallel: 1 - cosine keeps its digits.
        return 1.0 - (self.moved**2 - (self.before - self.after) ** 2) / (2 * product)


def compare_runs(runs: Sequence[Run] | RunsByArm, metric: str, baseline: str = "") -> list[Curve]:
    """The curves of a metric over the same steps.

    Args:
      runs: by arm; runs without arms are one each, called by their names.
      metric: a name in metrics.jsonl, such as "heldout/accuracy".
      baseline: the arm that the others are compared with, seed by seed.

    Raises ValueError if no run has the metric, an arm has no run or two of one seed, or there is no such
    baseline.
    """
    arms = runs if isinstance(runs, Mapping) else runs_by_name(runs)
    if baseline and baseline not in arms:
        raise ValueError(f"baseline={baseline!r} is none of the arms{suggest(baseline, arms)}")
    for arm, members in arms.items():
        seeds = [run.config.seed for run in members]
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"arm {arm!r} has the seeds {seeds}: give it one run of each of its seeds")
    logged = {key for members in arms.values() for run in members for row in run.metrics for key in row}
    if metric not in logged:
        raise ValueError(f"no run has logged {metric!r}{suggest(metric, logged)}")
    found = {
        arm: {run.config.seed: dict(zip(*run.curve(metric), strict=True)) for run in members}
        for arm, members in arms.items()
    }
    steps = sorted({int(step) for seeds in found.values() for curve in seeds.values() for step in curve})
    tables = {
        arm: {seed: np.array([curve.get(step, np.nan) for step in steps]) for seed, curve in seeds.items()}
        for arm, seeds in found.items()
    }
    curves = []
    for arm, own in tables.items():
        other = tables.get(baseline, {}) if arm != baseline else {}
        pairs = np.array([own[seed] - other[seed] for seed in own if seed in other]).reshape(-1, len(steps))
        values = np.stack(list(own.values()))
        differences = _intervals(pairs) if baseline and arm != baseline else ()
        curves.append(
            Curve(arm, metric, tuple(own), np.array(steps, int), values, _intervals(values), differences)
        )
    return curves


def runs_by_name(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Each run as an arm, called by its name; by its folder where several have one name."""
    names = [run.name for run in runs]
    return {(run.name if names.count(run.name) == 1 else f"{run.name}, {run.workdir}"): [run] for run in runs}


def _intervals(table: Float[np.ndarray, "seeds n"]) -> tuple[Interval, ...]:
    """At each step, over the seeds that have a number there."""
    return tuple(mean_interval(column[~np.isnan(column)]) for column in table.T)


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
    kinds = {error_kind(row) for row in rows}
    shares = []
    for group, members in sorted(_groups(run, rows, by).items()):
        questions = [[error_kind(row) for row in answers] for answers in by_question(members).values()]
        for kind in (kind for kind in KINDS if kind in kinds):
            values = np.array([answers.count(kind) / len(answers) for answers in questions], float)
            share = bootstrap_interval(values, np.random.default_rng(0))
            shares.append(Share(group, kind, share, len(members)))
    return shares


def transitions(run: Run) -> Transitions:
    """Responses and questions that became right or wrong between the first and the last evaluation.

    Raises ValueError if either has no responses, or they have no question in common.
    """
    before, after = (by_question(responses_of(run, when)) for when in ("before", "after"))
    common = [question for question in before if question in after]
    if not common:
        raise ValueError(f"{run.workdir}: the responses before and after have no question in common")
    pairs = [
        (error_kind(old), error_kind(new))
        for question in common
        # A response that could not be graded is missing.
        for old, new in zip(before[question], after[question], strict=False)
    ]
    kinds = tuple(kind for kind in KINDS if any(kind in pair for pair in pairs))
    counts = np.zeros((len(kinds), len(kinds)), int)
    for old, new in pairs:
        counts[kinds.index(old), kinds.index(new)] += 1
    questions = [
        QuestionChange(
            question,
            after[question][0]["problem"],
            after[question][0]["answer"],
            *(
                float(np.mean([error_kind(row) == RIGHT for row in rows[question]]))
                for rows in (before, after)
            ),
        )
        for question in common
    ]
    return Transitions(kinds, counts, tuple(sorted(questions, key=lambda q: (q.before - q.after, q.id))))


def _groups(run: Run, rows: Sequence[Row], by: str) -> dict[str, list[Row]]:
    values: list[Any] = [ALL if not by else row["source"] for row in rows]
    if by not in ("", "source"):
        facts = [sample.facts for sample in samples_of(run, rows)]
        values = [fact.get(by) for fact in facts]
        if all(value is None for value in values):
            known = ", ".join(sorted({name for fact in facts for name in fact})) or "none"
            raise ValueError(f"{run.workdir}: no question has a fact {by!r}; there are {known}")
    groups: dict[str, list[Row]] = {}
    for value, row in zip(values, rows, strict=True):
        groups.setdefault("none" if value is None else str(value), []).append(row)
    return groups


def diff_params(before: Params, after: Params) -> list[Change]:
    """The change of each weight, each layer's apart, the relatively largest first.

    Raises ValueError if the two are not of one model.
    """
    old, new = flatten(before), flatten(after)
    for path in sorted(old.keys() | new.keys()):
        shapes = [getattr(tree.get(path), "shape", "nothing") for tree in (old, new)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"not of one model: {path} is {shapes[0]} before, {shapes[1]} after")
    changes = []
    for path in old:
        stem, stacked, rest = path.partition(f"{_STACKED}/")
        sums = _layer_sums(old[path], new[path], bool(stacked))
        layers = len(sums[0])
        names = [f"{stem}{stacked}{k}/{rest}" for k in range(layers)] if stacked else [path]
        size = old[path].size // layers
        for name, norm, other, moved, count in zip(names, *(column.tolist() for column in sums), strict=True):
            changes.append(Change(name, size, norm**0.5, other**0.5, moved**0.5, count / size))
    return _largest_first(changes)


def by_module(changes: Sequence[Change], depth: int = 2) -> list[Change]:
    """Changes of weights whose paths begin with the same ``depth`` parts, taken together.

    With 1 vision tower, layers and tables; 2 tells the layers of the language model apart, 3 those of the
    vision tower too. The relatively largest comes first. Raises ValueError for a depth below 1.
    """
    if depth < 1:
        raise ValueError(f"depth={depth}: group by one part of the path or more")
    groups: dict[str, list[Change]] = {}
    for change in changes:
        groups.setdefault("/".join(change.path.split("/")[:depth]), []).append(change)
    merged = []
    for path, members in groups.items():
        size = sum(change.size for change in members)
        before, after, moved = map(math.hypot, *(change[2:5] for change in members))
        changed = sum(change.changed * change.size for change in members) / size
        merged.append(Change(path, size, before, after, moved, changed))
    return _largest_first(merged)


def _largest_first(changes: Sequence[Change]) -> list[Change]:
    return sorted(changes, key=lambda change: (-change.relative, change.path))


def _layer_sums(old: Array, new: Array, stacked: bool) -> list[Float[np.ndarray, "k"]]:
    """Squares of the norms before, after and of the difference, and numbers not equal: of each layer."""
    old, new = jnp.asarray(old, jnp.float32), jnp.asarray(new, jnp.float32)
    sums = (jnp.square(old), jnp.square(new), jnp.square(new - old), (new != old).astype(jnp.float32))
    # The rest on the host, in double precision: a float32 counts no further than 2^24.
    rows = [np.asarray(values.sum(axis=-1), np.float64) for values in sums]
    return [row.reshape(len(row) if stacked else 1, -1).sum(axis=1) for row in rows]
