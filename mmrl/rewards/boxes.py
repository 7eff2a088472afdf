"""Boxes as rows of x1 y1 x2 y2 with x1 < x2 and y1 < y2: overlaps of all pairs, and who belongs to whom.

Edges are continuous: a box from 0 to 10 is 10 wide. A box with x2 <= x1 or y2 <= y1 has no area.
"""

import numpy as np
from jaxtyping import Bool, Float, Int


def areas(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n"]:
    """The area of each box."""
    return _area(boxes[:, :2], boxes[:, 2:])


def iou(first: Float[np.ndarray, "n 4"], second: Float[np.ndarray, "m 4"]) -> Float[np.ndarray, "n m"]:
    """Intersection over union of all pairs, from 0 to 1; 0 with a box that has no area."""
    both, either = _overlap(first, second)
    return _ratio(both, either)


def giou(first: Float[np.ndarray, "n 4"], second: Float[np.ndarray, "m 4"]) -> Float[np.ndarray, "n m"]:
    """IoU less the share of the smallest box around both that neither covers, from -1 to 1.

    Rezatofighi et al. 2019, equation 1. A pair without any extent is -1.
    """
    both, either = _overlap(first, second)
    low = np.minimum(first[:, None].reshape(-1, 1, 2, 2).min(axis=2), second.reshape(1, -1, 2, 2).min(axis=2))
    high = np.maximum(
        first[:, None].reshape(-1, 1, 2, 2).max(axis=2), second.reshape(1, -1, 2, 2).max(axis=2)
    )
    around = _area(low, high)
    return _ratio(both, either) - 1.0 + _ratio(either, around)


def contains(boxes: Float[np.ndarray, "n 4"], points: Float[np.ndarray, "m 2"]) -> Bool[np.ndarray, "n m"]:
    """Whether each point lies in each box, edges included."""
    at = points[None]
    return np.asarray(((boxes[:, None, :2] <= at) & (at <= boxes[:, None, 2:])).all(axis=2))


def matched(gain: Float[np.ndarray, "n m"]) -> Int[np.ndarray, "k 2"]:
    """Pairs (row, column), each row and column at most once, with the greatest sum of gains (Kuhn 1955).

    Pairs without a positive gain are left out.
    """
    from scipy.optimize import linear_sum_assignment

    pairs = np.stack(linear_sum_assignment(gain, maximize=True), axis=1)
    return pairs[gain[pairs[:, 0], pairs[:, 1]] > 0.0]


def load() -> None:
    """Imports scipy's optimizer, half a second, ahead of the first boxes to be matched."""
    import scipy.optimize  # noqa: F401


def greedy(score: Float[np.ndarray, "n m"], least: float) -> Int[np.ndarray, "k 2"]:
    """Pairs (row, column), each row and column at most once, best score first, down to ``least``.

    Of equal scores the lower row goes first, then the lower column. Scores of 0 never match.
    """
    rows, columns = np.nonzero((score >= least) & (score > 0.0))
    pairs: list[tuple[int, int]] = []
    free_rows, free_columns = set(rows.tolist()), set(columns.tolist())
    for at in np.argsort(-score[rows, columns], kind="stable"):
        row, column = int(rows[at]), int(columns[at])
        if row in free_rows and column in free_columns:
            free_rows.remove(row)
            free_columns.remove(column)
            pairs.append((row, column))
    return np.array(pairs, int).reshape(-1, 2)


def _overlap(
    first: Float[np.ndarray, "n 4"], second: Float[np.ndarray, "m 4"]
) -> tuple[Float[np.ndarray, "n m"], Float[np.ndarray, "n m"]]:
    """The areas of intersection and union of all pairs."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    both = _area(low, high)
    return both, areas(first)[:, None] + areas(second)[None] - both


def _area(low: Float[np.ndarray, "*n 2"], high: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n"]:
    return np.prod(np.maximum(high - low, 0.0), axis=-1)


def _ratio(part: Float[np.ndarray, "n m"], whole: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "n m"]:
    """``part / whole`` within 0 and 1, and 0 where both are 0."""
    return np.clip(np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0.0), 0.0, 1.0)
