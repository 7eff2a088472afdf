"""Numbers of a benchmark out of graded responses: avg@k, pass@k, by category, with and without images.

A question counts by the mean accuracy over its graded responses, and intervals are over questions: responses
to one question are alike. What is drawn for intervals is fixed, so that the same responses give the same row.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import comb, isnan
from typing import Any

import numpy as np
from jaxtyping import Float

from mmrl.statistics import Interval, bootstrap_interval, stratified_interval

Rows = Sequence[Mapping[str, Any]]  # of mmrl.train.evaluate.evaluate
NO_CATEGORY = "(none)"
_APART = ("accuracy", "reward", "length", "truncated", "skipped", "invalid")  # have places of their own


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
    powers = [2**k for k in range(samples.bit_length()) if 2**k <= samples]
    return powers if samples in powers else [*powers, samples]


def by_question(rows: Rows) -> dict[str, list[float]]:
    """Accuracy of each graded response, by question, in the order of the rows."""
    out: dict[str, list[float]] = {}
    for row in rows:
        out.setdefault(row["id"], []).append(row["accuracy"])
    return out


def figures(
    values: Mapping[str, float],
    rows: Rows,
    samples: int,
    categories: Mapping[str, str],
    masked: Rows | None = None,
) -> dict[str, Any]:
    """What a result row says of responses, as JSON.

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
    seen, hidden = by_question(rows), None if masked is None else by_question(masked)
    out = {
        "questions": len(seen),
        **_of_questions(seen, samples),
        "components": {name: value for name, value in values.items() if name not in _APART},
        **{name: values[name] for name in _APART[2:] if name in values},
    }
    if hidden is not None:
        out["masked"] = _of_masked(seen, hidden)
    if categories:
        names = {name: categories.get(name, NO_CATEGORY) for name in seen}
        out["categories"] = {}
        for one in sorted(set(names.values())):
            of_it = {name: graded for name, graded in seen.items() if names[name] == one}
            row = {"questions": len(of_it), **_of_questions(of_it, samples)}
            if hidden is not None:
                row["masked"] = _of_masked(of_it, hidden)
            out["categories"][one] = row
    return out


def overall(seen: Sequence[Rows], masked: Sequence[Rows]) -> dict[str, Any]:
    """The mean over benchmarks, each of one weight, with an interval over questions within them.

    ``masked`` are the responses without images of all benchmarks, or none.
    """
    questions = [by_question(rows) for rows in seen]
    out: dict[str, Any] = {
        "benchmarks": len(seen),
        "accuracy": told(stratified_interval([_means(one.values()) for one in questions], _rng())),
    }
    if masked and len(masked) == len(seen):
        hidden = [by_question(rows) for rows in masked]
        differences = [_differences(a, b) for a, b in zip(questions, hidden, strict=True)]
        out["masked"] = {
            "accuracy": told(stratified_interval([_means(one.values()) for one in hidden], _rng())),
            "difference": told(stratified_interval(differences, _rng())),
        }
    return out


def told(interval: Interval) -> dict[str, float | int | None]:
    """An interval as JSON, which has no NaN."""
    return {name: None if isnan(value) else value for name, value in interval._asdict().items()}


def _of_questions(graded: Mapping[str, Sequence[float]], samples: int) -> dict[str, Any]:
    chances = {
        tries: [
            pass_at(len(one), sum(value >= 1.0 for value in one), tries)
            for one in graded.values()
            if len(one) >= tries
        ]
        for tries in tries_of(samples)
    }
    return {
        "accuracy": told(bootstrap_interval(_means(graded.values()), _rng())),
        "pass": {
            str(tries): told(bootstrap_interval(np.array(of_it, float), _rng()))
            for tries, of_it in chances.items()
        },
    }


def _of_masked(
    seen: Mapping[str, Sequence[float]], hidden: Mapping[str, Sequence[float]]
) -> dict[str, dict[str, float | int | None]]:
    of_these = [graded for name, graded in hidden.items() if name in seen]
    return {
        "accuracy": told(bootstrap_interval(_means(of_these), _rng())),
        "difference": told(bootstrap_interval(_differences(seen, hidden), _rng())),
    }


def _means(graded: Iterable[Sequence[float]]) -> Float[np.ndarray, "n"]:
    return np.array([np.mean(one) for one in graded], float)


def _differences(
    seen: Mapping[str, Sequence[float]], hidden: Mapping[str, Sequence[float]]
) -> Float[np.ndarray, "n"]:
    """What each question loses without its image, of those graded with and without."""
    both = [name for name in seen if name in hidden]
    return _means(seen[name] for name in both) - _means(hidden[name] for name in both)


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)
