"""One object of the image: its box, or a point on it."""

import numpy as np
from jaxtyping import Bool, Float

from mmrl.rewards.answers import answer_of, wrong_answer
from mmrl.rewards.box_reading import read_boxes, read_points, scale, scaled, true_boxes, true_points
from mmrl.rewards.boxes import areas, contains, giou, iou, matched
from mmrl.rewards.facts import flag_fact, number_fact
from mmrl.sample import Sample

LEAST_THRESHOLD = 0.01  # of IoU; from 0 on everything would be right


def box(sample: Sample, response: str) -> dict[str, float]:
    """The one box that an answer gives, against the one of ``sample.answer``.

    Returns:
        ``accuracy``: 1 if the IoU is at least ``facts["threshold"]`` (0.5).
        ``iou``: the intersection over union, from 0 to 1.
        ``giou``: (GIoU + 1) / 2, from 0 to 1, as in VLA-R1's ``robot_bbox_traj_norm.py``.
        All are 0 if the answer gives no box, several, or one without area.

    Raises:
        ValueError: ``sample.answer`` is not one box, or a fact is wrong (see `box_reading`).
    """
    truth, by = true_boxes(sample), scale(sample)
    threshold = number_fact(sample, "threshold", 0.5, least=LEAST_THRESHOLD, most=1.0)
    if len(truth.corners) != 1:
        raise wrong_answer(sample, f"holds {len(truth.corners)} boxes; 'box' wants one, 'boxes' any number")
    found = read_boxes(answer_of(sample, response) or "")
    if found is None or len(found.corners) != 1 or areas(found.corners)[0] <= 0.0:
        return {"accuracy": 0.0, "iou": 0.0, "giou": 0.0}
    given = scaled(found, by).corners
    overlap = float(iou(given, truth.corners)[0, 0])
    return {
        "accuracy": float(overlap >= threshold),
        "iou": overlap,
        "giou": (float(giou(given, truth.corners)[0, 0]) + 1.0) / 2.0,
    }


def point(sample: Sample, response: str) -> dict[str, float]:
    """Whether the point that an answer gives lies on what ``sample.answer`` marks.

    The truth is one or more boxes, or points with ``facts["radius"]`` pixels around them. ``accuracy`` is 1
    if the answer gives one point and it lies in one of them. With ``facts["several"]`` it is to point once at
    each, and ``accuracy`` is the F1 of a best matching of its points to them.

    Raises ValueError if the answer of the row marks nothing, or a fact is wrong.
    """
    answer, by = answer_of(sample, response) or "", scale(sample)
    given = read_points(answer) * by
    hits = point_hits(sample, given)
    if not flag_fact(sample, "several", False):
        return {"accuracy": float(len(given) == 1 and bool(hits.any()))}
    pairs = len(matched(hits.astype(float)))
    return {"accuracy": 2.0 * pairs / (len(given) + len(hits))}


def point_hits(sample: Sample, points: Float[np.ndarray, "m 2"]) -> Bool[np.ndarray, "n m"]:
    """Whether each point lies on each of the things that the truth marks."""
    centers = true_points(sample)
    if centers is not None:
        radius = number_fact(sample, "radius", least=0.0)
        return np.hypot(*np.moveaxis(points[None] - centers[:, None], -1, 0)) <= radius
    marked = true_boxes(sample).corners
    if not len(marked):
        raise wrong_answer(sample, "marks nothing to point at; give a box, or a point")
    return contains(marked, points)
