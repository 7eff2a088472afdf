import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.rewards.boxes import (
    MAX_DETECTIONS,
    THRESHOLDS,
    average_precision,
    boxes,
    detections,
    iou,
    read_boxes,
)
from mmrl.sample import Sample

quick = settings(max_examples=40, deadline=None)
TRUTH = [([0, 0, 10, 10], "cat"), ([20, 0, 30, 10], "cat"), ([0, 20, 10, 30], "dog")]
NAMES = {"accuracy", "precision", "recall", "count", "map", "map50", "map_times_count", "detection"} | {
    "matched_iou",
    "confidence",
    "progressive_iou",
}


def written(entries):
    fields = ("bbox_2d", "label", "confidence")
    return json.dumps([dict(zip(fields, entry, strict=False)) for entry in entries])


def grade(entries, truth=TRUTH, **facts):
    answer = entries if isinstance(entries, str) else written(entries)
    sample = Sample("test:0", "", written(truth), verifier="boxes", facts={"answer_in": "all", **facts})
    return boxes(sample, answer)


def few(most):
    """Up to ``most`` boxes near those of the truth, with labels and confidences."""
    corner = st.tuples(st.sampled_from([0, 1, 2, 5, 20]), st.sampled_from([0, 1, 3, 20]), st.integers(6, 12))
    box = corner.map(lambda at: [at[0], at[1], at[0] + at[2], at[1] + 10])
    return st.lists(
        st.tuples(box, st.sampled_from(["cat", "dog", "Cat"]), st.sampled_from([0.25, 0.5, 1.0])),
        max_size=most,
    )


def test_all_found():
    assert grade(TRUTH) == pytest.approx(dict.fromkeys(NAMES, 1.0))
    assert grade([(box, label.upper()) for box, label in TRUTH[::-1]]) == pytest.approx(
        dict.fromkeys(NAMES, 1.0)
    )


@pytest.mark.parametrize(
    "answer", ["", "I see none", "[1, 2, 3]", written(TRUTH) * 100, '[{"label": "cat"}]', "[]"]
)
def test_nothing_found(answer):
    assert grade(answer) == dict.fromkeys(NAMES, 0.0)


@pytest.mark.parametrize(
    ("answer", "value"), [("[]", 1.0), ("None", 1.0), ("", 0.0), ("who knows", 0.0), ("[0, 0, 1, 1]", 0.0)]
)
def test_nothing_to_find(answer, value):
    assert grade(answer, truth=[]) == dict.fromkeys(NAMES, value)


def test_one_of_three_and_one_too_many():
    """By hand: the first cat exactly, the other off by IoU 1/3, and a bird."""
    graded = grade(
        [TRUTH[0], ([25, 0, 35, 10], "cat"), ([50, 50, 60, 60], "bird"), ([70, 70, 80, 80], "bird")]
    )
    half = 51 / 101  # of the cats, by 101 levels of recall
    assert graded == pytest.approx(
        {
            "accuracy": 2 / 7,
            "precision": 1 / 4,
            "recall": 1 / 3,
            "count": 3 / 4,
            "map": half / 2,
            "map50": half / 2,
            "map_times_count": half / 2 * 3 / 4,
            "detection": 0.7 / 3 + 0.3 * (1 / 3 + 1 / 4) / 2,
            "matched_iou": 1 / 4,
            "confidence": 1 / 4 * 3 / 4,
            "progressive_iou": (0.7 / 3 + 0.3 * (1 / 3 + 1 / 4) / 2) * 0.6,
        }
    )


def test_labels():
    wrong = grade([(box, "bird") for box, _ in TRUTH])
    assert wrong["detection"] == pytest.approx(0.3)  # VLM-R1 gives completeness whatever the labels are
    assert {wrong[name] for name in NAMES - {"detection", "count"}} == {0.0}
    assert grade([(box,) for box, _ in TRUTH])["accuracy"] == 0.0
    bare = [(box,) for box, _ in TRUTH]
    assert grade(TRUTH, truth=bare) == grade(bare, truth=bare) == pytest.approx(dict.fromkeys(NAMES, 1.0))


@pytest.mark.parametrize(
    ("shift", "passes"), [(0, (1, 1, 1)), (1, (1, 1, 0)), (4, (1, 0, 0)), (10, (0, 0, 0))]
)
def test_the_progressive_threshold(shift, passes):
    """IoU 1, 0.98, 0.92, 0.8 against thresholds 0.85, 0.95, 0.99."""
    truth = [([0, 0, 99, 100], "cat")]
    given = [([shift, 0, 99 + shift, 100], "cat")]
    for progress, expected in zip((0.1, 0.25, 0.26), passes, strict=True):
        graded = grade(given, truth, rollout={"progress": progress})["progressive_iou"]
        assert (graded > 0.0) == bool(expected)
    assert grade(given, truth)["progressive_iou"] == grade(given, truth, rollout={})["progressive_iou"]


def test_surer_boxes_match_first():
    off, exact = [4, 0, 14, 10], [0, 0, 10, 10]
    truth = [(exact, "cat")]
    assert grade([(off, "cat", 0.9), (exact, "cat", 0.5)], truth)["matched_iou"] == 0.5
    near = [1, 0, 11, 10]
    assert grade([(near, "cat", 0.9), (exact, "cat", 0.5)], truth)["matched_iou"] == pytest.approx(9 / 11 / 2)
    assert grade([(near, "cat", 0.9), (exact, "cat", 0.5)], truth)["confidence"] == pytest.approx(1.4 / 2 / 2)


@quick
@given(few(4), st.randoms(use_true_random=False))
def test_order_does_not_matter(given_boxes, random):
    """But between equal confidences, and equal overlaps, which go by the order."""
    shuffled = random.sample(given_boxes, len(given_boxes))
    first, second = grade(given_boxes), grade(shuffled)
    for name in ("accuracy", "precision", "recall", "count"):
        assert first[name] == second[name]


@quick
@given(few(5), few(3))
def test_ranges_and_what_bounds_what(given_boxes, truth):
    graded = grade(given_boxes, [entry[:2] for entry in truth])
    assert graded.keys() == NAMES
    assert all(0.0 <= value <= 1.0 + 1e-12 for value in graded.values())
    assert min(graded["precision"], graded["recall"]) <= graded["accuracy"]
    assert (
        graded["accuracy"] <= min((graded["precision"] + graded["recall"]) / 2, graded["count"] * 2) + 1e-12
    )
    assert graded["map_times_count"] <= graded["map"] <= graded["map50"] + 1e-12
    if truth and given_boxes:
        best = np.float64(len(given_boxes)) / len(truth)
        assert graded["recall"] <= min(1.0, best) + 1e-12


@pytest.mark.parametrize("surplus", [1, 2, 10, 60])
@pytest.mark.parametrize("found", [0, 1, 2, 3])
def test_more_boxes_never_beat_the_honest_ones(found, surplus):
    """Boxes of what is not there only cost, but for recall and COCO's own AP, which they leave as it is."""
    far = [([500 + 20 * n, 0, 510 + 20 * n, 10], "cat") for n in range(surplus)]
    wrong = [([30 + n, 30, 40 + n, 40], "cat") for n in range(3 - found)]
    honest, flooded = grade([*TRUTH[:found], *wrong]), grade([*TRUTH[:found], *wrong, *far])
    for name in NAMES:
        assert flooded[name] <= honest[name]
    if found:
        for name in NAMES - {"recall", "map", "map50"}:
            assert flooded[name] < honest[name]


def test_a_flood_with_no_confidence_earns_nothing():
    flood = [([500 + n, 0, 510 + n, 10], "cat", 0.0) for n in range(100)]
    assert {value for name, value in grade(flood).items() if name != "count"} == {0.0}
    assert grade([*TRUTH, *flood])["confidence"] < 0.1


@quick
@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_any_text_is_graded(response):
    assert grade(response).keys() == NAMES


@pytest.mark.parametrize(
    ("facts", "truth", "message"),
    [
        ({"threshold": 2}, TRUTH, "threshold"),
        ({}, [([5, 5, 5, 5], "cat")], "without area"),
        ({}, [*TRUTH, ([0, 0, 1, 1],)], "labels some"),
        ({"answer_in": "hat"}, TRUTH, "answer_in"),
    ],
)
def test_wrong_rows(facts, truth, message):
    with pytest.raises(ValueError, match=f"(?s)test:0.*{message}"):
        grade("", truth, **facts)


def slow_average_precision(overlap, confidence, threshold):
    """COCO's AP spelt out: match one by one, then the best precision at each recall or beyond."""
    ranked = sorted(range(len(confidence)), key=lambda row: -confidence[row])[:100]
    taken, right, points = set(), 0, []
    for rank, row in enumerate(ranked, 1):
        best = None
        for column in range(overlap.shape[1]):
            enough = threshold if best is None else overlap[row, best]
            if column not in taken and overlap[row, column] >= enough:
                best = column
        if best is not None:
            taken.add(best)
            right += 1
        points.append((right / overlap.shape[1], right / rank))
    levels = [percent / 100 for percent in range(101)]
    return sum(max((p for r, p in points if r >= level - 1e-12), default=0.0) for level in levels) / 101


@quick
@given(few(6), few(4).filter(bool))
def test_average_precision_is_the_one_spelt_out(given_boxes, truth):
    found, true = (
        np.array([entry[0] for entry in entries], float).reshape(-1, 4) for entries in (given_boxes, truth)
    )
    overlap, confidence = iou(found, true), np.array([entry[2] for entry in given_boxes])
    expected = [slow_average_precision(overlap, confidence, threshold) for threshold in THRESHOLDS]
    np.testing.assert_allclose(average_precision(overlap, confidence), expected, atol=1e-12)


def test_average_precision_averages_over_labels():
    found, truth = TRUTH[:2], TRUTH  # both cats, no dog
    assert grade(found, truth)["map"] == pytest.approx(0.5)
    seen = detections(read_boxes(written(found)), read_boxes(written(truth)))
    assert seen.classes.tolist() == [0, 0, 1]


def test_only_a_hundred_boxes_of_a_label_count_in_average_precision():
    overlap = np.zeros((MAX_DETECTIONS + 1, 1))
    overlap[-1] = 1.0
    assert average_precision(overlap, np.ones(len(overlap))).sum() == 0.0
    assert average_precision(overlap[1:], np.ones(MAX_DETECTIONS))[0] == pytest.approx(1 / MAX_DETECTIONS)


def test_the_match_of_f1_is_the_best_one():
    """A greedy match takes the overlap of 0.9 and leaves the other box without one."""
    truth = [([0, 0, 10, 10], "cat"), ([3, 0, 13, 10], "cat")]
    given_boxes = [([1, 0, 11, 10], "cat"), ([-3, 0, 7, 10], "cat")]
    assert grade(given_boxes, truth)["accuracy"] == 1.0
