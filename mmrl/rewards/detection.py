"""All objects of the image: boxes with labels, and the rewards that are made of them."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from mmrl.rewards.answers import answer_of
from mmrl.rewards.average_precision import THRESHOLDS, average_precision
from mmrl.rewards.box_reading import Boxes, read_boxes, scale, scaled, true_boxes
from mmrl.rewards.boxes import greedy, iou, matched
from mmrl.rewards.facts import number_fact, rollout
from mmrl.rewards.grounding import LEAST_THRESHOLD
from mmrl.sample import Sample

REFERENCE_THRESHOLD = 0.5  # of IoU, in Visual-RFT and VLM-R1
POSITION, COMPLETENESS = 0.7, 0.3  # weights of both VLM-R1's and V-Triune's score
PROGRESSIVE = ((0.10, 0.85), (0.25, 0.95), (1.0, 0.99))  # until this progress, this threshold (V-Triune)
COUNT_DECAY = 0.6  # for each box too many or too few (V-Triune)


class Scene(NamedTuple):
    """Predicted boxes against true ones, at least one of each."""

    overlap: Float[np.ndarray, "p t"]  # IoU of each predicted box with each true one
    same: Bool[np.ndarray, "p t"]  # whether their labels agree; true where the truth has none
    confidence: Float[np.ndarray, "p"]
    classes: Int[np.ndarray, "t"]  # number of the label of each true box


def boxes(sample: Sample, response: str) -> dict[str, float]:
    """The boxes that an answer gives, against those of ``sample.answer``, and their labels if it has any.

    Returns:
        Components from 0 to 1. All are 1 if truth and answer both say that there is nothing, and all are 0 if
        only one does, or if no box can be read.
        ``accuracy``: F1, ``precision`` and ``recall`` of a best matching at IoU ``facts["threshold"]`` (0.5).
        ``count``: the smaller of the two numbers of boxes over the larger.
        Rewards of the literature: ``map``, ``map50`` (COCO), ``map_times_count``, ``detection`` (VLM-R1),
        ``matched_iou``, ``confidence`` (Visual-RFT), ``progressive_iou`` (V-Triune): see the functions.

    Raises:
        ValueError: ``sample.answer`` does not hold boxes, or a fact is wrong (see `box_reading`).
    """
    truth, by = true_boxes(sample), scale(sample)
    threshold = number_fact(sample, "threshold", 0.5, least=LEAST_THRESHOLD, most=1.0)
    progress = rollout(sample).progress if "rollout" in sample.facts else 1.0
    found = read_boxes(answer_of(sample, response) or "")
    if found is None or not len(found.corners) or not len(truth.corners):
        nothing = found is not None and len(found.corners) == len(truth.corners)
        return dict.fromkeys(("accuracy", "precision", "recall", *REWARDS), float(nothing))
    seen = scene(scaled(found, by), truth)
    right = _pairs(seen, threshold)
    return {
        "accuracy": 2.0 * right / sum(seen.overlap.shape),
        "precision": right / seen.overlap.shape[0],
        "recall": right / seen.overlap.shape[1],
        **{name: float(reward(seen, progress)) for name, reward in REWARDS.items()},
    }


def scene(found: Boxes, truth: Boxes) -> Scene:
    """``found`` against ``truth``."""
    names = list(dict.fromkeys(truth.labels))
    return Scene(
        overlap=iou(found.corners, truth.corners),
        same=np.array([[wanted in (None, label) for wanted in truth.labels] for label in found.labels]),
        confidence=found.confidence,
        classes=np.array([names.index(label) for label in truth.labels]),
    )


def count(seen: Scene, progress: float) -> float:
    """The smaller number of boxes over the larger."""
    return min(seen.overlap.shape) / max(seen.overlap.shape)


def mean_average_precision(seen: Scene, thresholds: Float[np.ndarray, "k"] = THRESHOLDS) -> float:
    """COCO's AP, averaged over ``thresholds`` and the labels of the truth.

    Boxes with other labels cost nothing, as there.
    """
    precisions = []
    for name in np.unique(seen.classes):
        of = seen.classes == name
        given = seen.same[:, of.argmax()]
        precisions.append(average_precision(seen.overlap[given][:, of], seen.confidence[given], thresholds))
    return float(np.mean(precisions))


def map_times_count(seen: Scene, progress: float) -> float:
    """AP times min(1, true / predicted number): ``odLength_reward`` of VLM-R1's ``grpo_jsonl.py``."""
    return mean_average_precision(seen) * _surplus(seen)


def detection(seen: Scene, progress: float) -> float:
    """``detection_score`` of VLM-R1's ``grpo_jsonl.py``: 0.7 position + 0.3 completeness at IoU 0.5.

    Pairs are matched best IoU first, whatever their labels; the IoU of a pair counts if the labels agree.
    """
    return _position_and_completeness(seen, greedy(seen.overlap, REFERENCE_THRESHOLD))


def progressive_iou(seen: Scene, progress: float) -> float:
    """V-Triune's dynamic IoU reward (``calculate_iou_score`` in ``verify.py``, 0.3 of it completeness).

    The threshold rises with the progress of the run (`PROGRESSIVE`); only boxes of the same label match. The
    result shrinks by `COUNT_DECAY` for each box too many or too few.
    """
    threshold = next((value for until, value in PROGRESSIVE if progress <= until), PROGRESSIVE[-1][1])
    pairs = greedy(np.where(seen.same, seen.overlap, 0.0), threshold)
    predicted, true = seen.overlap.shape
    return _position_and_completeness(seen, pairs) * COUNT_DECAY ** abs(predicted - true)


def matched_iou(seen: Scene, progress: float) -> float:
    """Visual-RFT's R_iou: the summed IoU of matched boxes over the larger of the two numbers of boxes."""
    predicted, true = _by_confidence(seen).T
    return float(seen.overlap[predicted, true].sum()) / max(seen.overlap.shape)


def confidence(seen: Scene, progress: float) -> float:
    """Visual-RFT's R_conf: the mean of the confidences of matched boxes and 1 - those of the others.

    Times min(1, true / predicted number), and 0 if nothing matches: as published, any number of wrong boxes
    with confidence 0 would earn all of it.
    """
    pairs = _by_confidence(seen)
    calibrated = 1.0 - seen.confidence
    calibrated[pairs[:, 0]] = seen.confidence[pairs[:, 0]]
    return float(calibrated.mean()) * _surplus(seen) if len(pairs) else 0.0


REWARDS: Mapping[str, Callable[[Scene, float], float]] = MappingProxyType(
    {
        "count": count,
        "map": lambda seen, progress: mean_average_precision(seen),
        "map50": lambda seen, progress: mean_average_precision(seen, THRESHOLDS[:1]),
        "map_times_count": map_times_count,
        "detection": detection,
        "matched_iou": matched_iou,
        "confidence": confidence,
        "progressive_iou": progressive_iou,
    }
)


def _surplus(seen: Scene) -> float:
    predicted, true = seen.overlap.shape
    return min(1.0, true / predicted)


def _pairs(seen: Scene, threshold: float) -> int:
    """How many boxes of the truth can be found at once, each by a box of its own with its label."""
    return len(matched((seen.same & (seen.overlap >= threshold)).astype(float)))


def _by_confidence(seen: Scene) -> Int[np.ndarray, "k 2"]:
    """Pairs (predicted, true): the surest prediction first, each takes what it overlaps most, from 0.5 on."""
    overlap = np.where(seen.same, seen.overlap, 0.0)
    pairs: list[tuple[int, int]] = []
    for row in np.argsort(-seen.confidence, kind="stable"):
        column = int(overlap[row].argmax())
        if overlap[row, column] >= REFERENCE_THRESHOLD:
            pairs.append((int(row), column))
            overlap[:, column] = 0.0
    return np.array(pairs, int).reshape(-1, 2)


def _position_and_completeness(seen: Scene, pairs: Int[np.ndarray, "k 2"]) -> float:
    """0.7 position + 0.3 completeness.

    The IoU of pairs with the same label, for each true box; and 1 less the mean of the shares of true and of
    predicted boxes that are in no pair.
    """
    predicted, true = pairs.T
    kept = np.where(seen.same, seen.overlap, 0.0)[predicted, true].sum()
    found, wanted = seen.overlap.shape
    completeness = (len(pairs) / wanted + len(pairs) / found) / 2.0
    return float(POSITION * kept / wanted + COMPLETENESS * completeness)
