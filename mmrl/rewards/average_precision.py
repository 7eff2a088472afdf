"""COCO's average precision for boxes of one image, as ``pycocotools`` computes it."""

import numpy as np
from jaxtyping import Bool, Float

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of IoU
RECALLS = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = 100  # of a class, by confidence; the rest is not looked at


def average_precision(
    overlap: Float[np.ndarray, "p t"],
    confidence: Float[np.ndarray, "p"],
    thresholds: Float[np.ndarray, "k"] = THRESHOLDS,
) -> Float[np.ndarray, "k"]:
    """The average precision of one class at each threshold of IoU.

    Args:
        overlap: IoU of each predicted box with each true one; there is at least one true box.
        confidence: of each predicted box; of equal ones the first given comes first.
        thresholds: the IoU from which on a box is found.

    Returns:
        The mean, over 101 levels of recall, of the best precision at that recall or above.
    """
    order = np.argsort(-confidence, kind="stable")[:MAX_DETECTIONS]
    hits = _hits(overlap[order], thresholds)
    right = np.cumsum(hits, axis=1)
    precision = right / np.arange(1, len(order) + 1)
    best_after = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = right / overlap.shape[1]
    padded = np.pad(best_after, ((0, 0), (0, 1)))  # a recall that is never reached has precision 0
    at = [np.searchsorted(row, RECALLS, side="left") for row in recall]
    return np.array([row[places].mean() for row, places in zip(padded, at, strict=True)])


def _hits(overlap: Float[np.ndarray, "p t"], thresholds: Float[np.ndarray, "k"]) -> Bool[np.ndarray, "k p"]:
    """Whether each prediction finds a true box, in the order given, at each threshold.

    It takes the true box that it overlaps most of those not found yet; of equals the last.
    """
    kinds, (predicted, true) = np.arange(len(thresholds)), overlap.shape
    free = np.ones((len(thresholds), true), bool)
    hits = np.zeros((len(thresholds), predicted), bool)
    for row in range(predicted):
        candidates = np.where(free, overlap[row], -1.0)
        best = true - 1 - np.argmax(candidates[:, ::-1], axis=1)
        found = candidates[kinds, best] >= thresholds
        hits[:, row] = found
        free[kinds[found], best[found]] = False
    return hits
