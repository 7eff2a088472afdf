"""Verifier `boxes`: all objects of the image with their labels, and the rewards that papers make of them."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from mmrl.rewards.answers import answer_of, number_fact, rollout_info
from mmrl.rewards.boxes import (
    LEAST_THRESHOLD,
    THRESHOLDS,
    Boxes,
    answer_scale,
    average_precision,
    best_matching,
    greedy_matching,
    iou,
    read_boxes,
    true_boxes,
)
from mmrl.sample import Sample

REFERENCE_THRESHOLD = 0.5  # of IoU, in Visual-RFT and VLM-R1
POSITION, COMPLETENESS = 0.7, 0.3  # weights of both VLM-R1's and V-Triune's score
PROGRESSIVE = ((0.10, 0.85), (0.25, 0.95), (1.0, 0.99))  # until this progress, this threshold (V-Triune)
COUNT_DECAY = 0.6  # for each box too many or too few (V-Triune)


class Detections(NamedTuple):
    """Predicted boxes against true ones, at least one of each."""

    overlap: Float[np.ndarray, "p t"]  # IoU of each predicted box with each true one
    same: Bool[np.ndarray, "p t"]  # whether their labels agree; true where the truth has none
    confidence: Float[np.ndarray, "p"]
    classes: Int[np.ndarray, "t"]  # number of the label of each true box
    progress: float = 1.0  # of the run

    @property
    def surplus(self) -> float:
        """min(1, true / predicted number)."""
        return min(1.0, self.overlap.shape[1] / self.overlap.shape[0])


def boxes(sample: Sample, response: str) -> dict[str, float]:
    """The boxes that an answer gives, against those of ``sample.answer``, and their labels if it has any.

    ``accuracy``: F1, ``precision`` and ``recall`` of a best matching at IoU ``facts["threshold"]`` (0.5); and
    the components of `REWARDS`. All are from 0 to 1: all are 1 if truth and answer both say that there is
    nothing, and 0 if only one does, or if no box can be read. ValueError if ``sample.answer`` does not hold
    boxes, or a fact is wrong.
    """
    truth, scale = true_boxes(sample), answer_scale(sample)
    threshold = number_fact(sample, "threshold", 0.5, least=LEAST_THRESHOLD, most=1.0)
    progress = rollout_info(sample).progress if "rollout" in sample.facts else 1.0
    given = read_boxes(answer_of(sample, response) or "")
    if given is None or not len(given.corners) or not len(truth.corners):
        nothing = given is not None and len(given.corners) == len(truth.corners)
        return dict.fromkeys(("accuracy", "precision", "recall", *REWARDS), float(nothing))
    found = detections(given._replace(corners=given.corners * np.tile(scale, 2)), truth, progress)
    right = len(best_matching((found.same & (found.overlap >= threshold)).astype(float)))
    return {
        "accuracy": 2.0 * right / sum(found.overlap.shape),
        "precision": right / found.overlap.shape[0],
        "recall": right / found.overlap.shape[1],
        **{name: float(reward(found)) for name, reward in REWARDS.items()},
    }


def detections(given: Boxes, truth: Boxes, progress: float = 1.0) -> Detections:
    """``given`` against ``truth``."""
    names = list(dict.fromkeys(truth.labels))
    return Detections(
        overlap=iou(given.corners, truth.corners),
        same=np.array([[wanted in (None, label) for wanted in truth.labels] for label in given.labels]),
        confidence=given.confidence,
        classes=np.array([names.index(label) for label in truth.labels]),
        progress=progress,
    )


def mean_average_precision(found: Detections, thresholds: Float[np.ndarray, "k"] = THRESHOLDS) -> float:
    """COCO's AP, averaged over ``thresholds`` and the labels of the truth; other labels cost nothing."""
    precisions = []
    for name in np.unique(found.classes):
        of = found.classes == name
        given = found.same[:, of.argmax()]
        precisions.append(average_precision(found.overlap[given][:, of], found.confidence[given], thresholds))
    return float(np.mean(precisions))


def detection_score(found: Detections) -> float:
    """``detection_score`` of VLM-R1's ``grpo_jsonl.py``: 0.7 position + 0.3 completeness at IoU 0.5.

    Pairs are matched best IoU first, whatever their labels; the IoU of a pair counts if the labels agree.
    """
    return _position_and_completeness(found, greedy_matching(found.overlap, REFERENCE_THRESHOLD))


def progressive_iou(found: Detections) -> float:
    """V-Triune's dynamic IoU reward (``calculate_iou_score`` in ``verify.py``, 0.3 of it completeness).

    The threshold rises with the progress of the run (`PROGRESSIVE`); only boxes of the same label match. The
    result shrinks by `COUNT_DECAY` for each box too many or too few.
    """
    threshold = next((value for until, value in PROGRESSIVE if found.progress <= until), PROGRESSIVE[-1][1])
    pairs = greedy_matching(np.where(found.same, found.overlap, 0.0), threshold)
    predicted, true = found.overlap.shape
    return _position_and_completeness(found, pairs) * COUNT_DECAY ** abs(predicted - true)


def matched_iou(found: Detections) -> float:
    """Visual-RFT's R_iou: the summed IoU of matched boxes over the larger of the two numbers of boxes."""
    predicted, true = _match_by_confidence(found).T
    return float(found.overlap[predicted, true].sum()) / max(found.overlap.shape)


def confidence(found: Detections) -> float:
    """Visual-RFT's R_conf: the mean of the confidences of matched boxes and 1 - those of the others.

    Times min(1, true / predicted number), and 0 if nothing matches: as published, any number of wrong boxes
    with confidence 0 would earn all of it.
    """
    pairs = _match_by_confidence(found)
    calibrated = 1.0 - found.confidence
    calibrated[pairs[:, 0]] = found.confidence[pairs[:, 0]]
    return float(calibrated.mean()) * found.surplus if len(pairs) else 0.0


REWARDS: Mapping[str, Callable[[Detections], float]] = MappingProxyType(
    {
        "count": lambda found: min(found.overlap.shape) / max(found.overlap.shape),
        "map": mean_average_precision,
        "map50": lambda found: mean_average_precision(found, THRESHOLDS[:1]),
        # ``odLength_reward`` of VLM-R1's ``grpo_jsonl.py``
        "map_times_count": lambda found: mean_average_precision(found) * found.surplus,
        "detection": detection_score,
        "matched_iou": matched_iou,
        "confidence": confidence,
        "progressive_iou": progressive_iou,
    }
)


def _match_by_confidence(found: Detections) -> Int[np.ndarray, "k 2"]:
    """Pairs (predicted, true): the surest prediction first, each takes what it overlaps most, from 0.5 on."""
    overlap = np.where(found.same, found.overlap, 0.0)
    pairs: list[tuple[int, int]] = []
    for row in np.argsort(-found.confidence, kind="stable"):
        column = int(overlap[row].argmax())
        if overlap[row, column] >= REFERENCE_THRESHOLD:
            pairs.append((int(row), column))
            overlap[:, column] = 0.0
    return np.array(pairs, int).reshape(-1, 2)


def _position_and_completeness(found: Detections, pairs: Int[np.ndarray, "k 2"]) -> float:
    """0.7 position + 0.3 completeness.

    The IoU of pairs with the same label, for each true box; and 1 less the mean of the shares of true and of
    predicted boxes that are in no pair.
    """
    overlap = np.where(found.same, found.overlap, 0.0)[pairs[:, 0], pairs[:, 1]].sum()
    predicted, true = found.overlap.shape
    completeness = (len(pairs) / true + len(pairs) / predicted) / 2.0
    return float(POSITION * overlap / true + COMPLETENESS * completeness)
