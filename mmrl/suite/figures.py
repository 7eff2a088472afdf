"""Figures of a benchmark from graded responses: avg@k, pass@k, by category, with and without images.

A question counts by the mean accuracy over its graded responses, and intervals are over questions: responses
to one question are alike. The draws of the bootstrap are fixed, so that the same responses give the same row.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import comb, isnan
from typing import Any

import numpy as np

from mmrl.analysis.runs import Row, by_question
from mmrl.statistics import Interval, bootstrap_interval, stratified_interval

NO_CATEGORY = "(none)"
_NO_COMPONENTS = ("accuracy", "reward", "length", "truncated", "skipped", "invalid")  # have their own keys

Graded = Mapping[str, Sequence[float]]  # accuracy of each graded response, by question
JsonInterval = dict[str, float | int | None]


def pass_at(samples: int, solved: int, tries: int) -> float:
    """Chance that one of ``tries`` responses is right, of ``samples`` of which ``solved`` were.

    The unbiased estimator 1 - C(n - c, k) / C(n, k) of Chen et al. 2021 (arXiv:2107.03374, equation 1).
    Raises ValueError for more tries than samples.
    """
    if tries > samples:
        raise ValueError(f"pass@{tries} of {samples} samples cannot be estimated")
    return 1.0 - comb(samples - solved, tries) / comb(samples, tries)


def tries_of(samples: int) -> list[int]:
    """The k for which pass@k is given: powers of 2, and the number of samples."""
    return sorted({2**k for k in range(samples.bit_length()) if 2**k <= samples} | {samples})


def figures(
    values: Mapping[str, float],
    rows: Sequence[Row],
    samples: int,
    categories: Mapping[str, str],
    masked: Sequence[Row] | None = None,
) -> dict[str, Any]:
    """Figures of a result row, as JSON.

    Args:
      values, rows: of `mmrl.train.evaluate.evaluate`.
      samples: responses asked for.
      categories: of questions, by id; empty where there are none.
      masked: the rows with every image hidden.

    Returns:
      "questions" with a graded response; "accuracy", an interval: avg@k; "pass", intervals by k, over the
      questions with so many graded responses (a response is right where its accuracy is 1); "categories",
      with the same for each; "components", means; "length", "truncated", "skipped" (questions) and "invalid"
      (responses); "masked" with "accuracy" and "difference", an interval over questions of what the image
      gives, by category too.
    """
    seen, hidden = _graded(rows), None if masked is None else _graded(masked)
    out = {
        **_figures(seen, samples, hidden),
        "components": {name: value for name, value in values.items() if name not in _NO_COMPONENTS},
        **{name: values[name] for name in _NO_COMPONENTS[2:] if name in values},
    }
    if categories:
        groups: dict[str, dict[str, Sequence[float]]] = {}
        for question, accuracies in seen.items():
            groups.setdefault(categories.get(question, NO_CATEGORY), {})[question] = accuracies
        out["categories"] = {name: _figures(groups[name], samples, hidden) for name in sorted(groups)}
    return out


def overall(seen: Sequence[Sequence[Row]], masked: Sequence[Sequence[Row]]) -> dict[str, Any]:
    """The mean over benchmarks, each of one weight, with an interval over questions within them.

    ``masked`` are the responses without images of all benchmarks, or none.
    """

    def interval(groups: Iterable[np.ndarray]) -> JsonInterval:
        return _json(stratified_interval(list(groups), np.random.default_rng(0)))

    graded = [_graded(rows) for rows in seen]
    out: dict[str, Any] = {
        "benchmarks": len(seen),
        "accuracy": interval(_means(group.values()) for group in graded),
    }
    if masked and len(masked) == len(seen):
        hidden = [_graded(rows) for rows in masked]
        out["masked"] = {
            "accuracy": interval(_means(group.values()) for group in hidden),
            "difference": interval(map(_differences, graded, hidden)),
        }
    return out


def _figures(graded: Graded, samples: int, hidden: Graded | None) -> dict[str, Any]:
    passes = {
        str(tries): _over_questions(
            np.array(
                [
                    pass_at(len(accuracies), sum(value >= 1.0 for value in accuracies), tries)
                    for accuracies in graded.values()
                    if len(accuracies) >= tries
                ],
                float,
            )
        )
        for tries in tries_of(samples)
    }
    accuracy = _over_questions(_means(graded.values()))
    out = {"questions": len(graded), "accuracy": accuracy, "pass": passes}
    if hidden is not None:
        same = [accuracies for question, accuracies in hidden.items() if question in graded]
        difference = _over_questions(_differences(graded, hidden))
        out["masked"] = {"accuracy": _over_questions(_means(same)), "difference": difference}
    return out


def _graded(rows: Sequence[Row]) -> dict[str, list[float]]:
    return {question: [row["accuracy"] for row in found] for question, found in by_question(rows).items()}


def _means(graded: Iterable[Sequence[float]]) -> np.ndarray:
    return np.array([np.mean(accuracies) for accuracies in graded], float)


def _differences(seen: Graded, hidden: Graded) -> np.ndarray:
    """Accuracy that each question loses without its image, of those graded with and without."""
    both = [question for question in seen if question in hidden]
    return _means(seen[question] for question in both) - _means(hidden[question] for question in both)


def _over_questions(values: np.ndarray) -> JsonInterval:
    return _json(bootstrap_interval(values, np.random.default_rng(0)))


def _json(interval: Interval) -> JsonInterval:
    """An interval as JSON, which has no NaN."""
    return {name: None if isnan(value) else value for name, value in interval._asdict().items()}
