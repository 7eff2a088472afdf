import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.rewards.boxes import areas, best_matching, contains, giou, greedy_matching, iou

quick = settings(max_examples=40, deadline=None)
whole = st.integers(-50, 50)
corners = st.tuples(whole, whole, st.integers(1, 60), st.integers(1, 60)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
lists = st.lists(corners, min_size=1, max_size=5).map(lambda rows: np.array(rows, float))
anything = st.lists(st.tuples(whole, whole, whole, whole), min_size=1, max_size=5).map(
    lambda rows: np.array(rows, float)
)
gains = st.integers(1, 4).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 9), min_size=n, max_size=n), min_size=1, max_size=4).map(
        lambda rows: np.array(rows, float)
    )
)


def box(*numbers):
    return np.array([numbers], float)


@pytest.mark.parametrize(
    ("first", "second", "expected", "generalized"),
    [
        (box(0, 0, 10, 10), box(0, 0, 10, 10), 1.0, 1.0),
        (box(0, 0, 10, 10), box(5, 0, 15, 10), 1 / 3, 1 / 3),
        (box(0, 0, 10, 10), box(9, 0, 20, 10), 10 / 200, 10 / 200),
        (box(0, 0, 10, 10), box(10, 0, 20, 10), 0.0, 0.0),
        (box(0, 0, 10, 10), box(20, 0, 30, 10), 0.0, -1 / 3),
        (box(0, 0, 1, 1), box(2, 2, 3, 3), 0.0, 2 / 9 - 1.0),
        (box(0, 0, 10, 10), box(5, 5, 5, 5), 0.0, 0.0),
        (box(0, 0, 10, 10), box(10, 10, 0, 0), 0.0, 0.0),
        (box(7, 7, 7, 7), box(7, 7, 7, 7), 0.0, -1.0),
        (box(0, 0, 0.5, 0.5), box(0, 0, 0.5, 0.5), 1.0, 1.0),
    ],
)
def test_overlaps_by_hand(first, second, expected, generalized):
    assert iou(first, second)[0, 0] == pytest.approx(expected, abs=1e-15)
    assert giou(first, second)[0, 0] == pytest.approx(generalized, abs=1e-15)


@quick
@given(lists)
def test_a_box_is_itself(boxes):
    np.testing.assert_allclose(np.diag(iou(boxes, boxes)), 1.0)
    np.testing.assert_allclose(np.diag(giou(boxes, boxes)), 1.0)


@quick
@given(anything, anything)
def test_overlap_is_symmetric_and_bounded(first, second):
    for overlap, least in ((iou, 0.0), (giou, -1.0)):
        values = overlap(first, second)
        np.testing.assert_allclose(values, overlap(second, first).T, atol=1e-12)
        assert (values >= least).all()
        assert (values <= 1.0).all()
    assert (giou(first, second) <= iou(first, second) + 1e-12).all()


@quick
@given(lists, lists, st.sampled_from([0.001, 0.37, 3.0, 1e4]), whole)
def test_units_and_place_do_not_matter(first, second, scale, shift):
    for overlap in (iou, giou):
        moved = overlap(first * scale + shift, second * scale + shift)
        np.testing.assert_allclose(moved, overlap(first, second), atol=1e-6)


@quick
@given(corners, st.lists(st.integers(0, 70), min_size=2, max_size=6))
def test_overlap_falls_with_distance(corner, shifts):
    """A box that moves away from another of the same size."""
    still = box(*corner)
    apart = np.array([still[0] + [shift, shift / 2, shift, shift / 2] for shift in sorted(shifts)])
    assert (np.diff(iou(apart, still)[:, 0]) <= 1e-12).all()
    assert (np.diff(giou(apart, still)[:, 0]) <= 1e-12).all()


@quick
@given(corners, st.integers(0, 30), st.integers(0, 30))
def test_overlap_falls_as_a_box_shrinks_within_another(corner, less, still_less):
    outer, width = box(*corner), corner[2] - corner[0]
    less, least = sorted((min(less, width - 1), min(still_less, width - 1)))
    larger, smaller = (box(corner[0], corner[1], corner[2] - cut, corner[3]) for cut in (less, least))
    assert iou(smaller, outer)[0, 0] <= iou(larger, outer)[0, 0]
    assert iou(larger, outer)[0, 0] == pytest.approx(areas(larger)[0] / areas(outer)[0])


def test_points_in_boxes():
    boxes = np.array([[0, 0, 10, 10], [10, 10, 0, 0]], float)
    points = np.array([[5, 5], [0, 10], [10.5, 5], [-1, -1]], float)
    assert contains(boxes, points).tolist() == [[True, True, False, False], [False] * 4]


@quick
@given(gains)
def test_matching_is_the_best_of_all(gain):
    rows, columns = gain.shape
    wide = gain if rows <= columns else gain.T
    best = max(
        sum(wide[row, column] for row, column in enumerate(order))
        for order in itertools.permutations(range(wide.shape[1]), len(wide))
    )
    for pairs in (best_matching(gain), greedy_matching(gain, 1.0)):
        assert all(len(set(side)) == len(pairs) for side in pairs.T.tolist())
        assert (gain[pairs[:, 0], pairs[:, 1]] > 0.0).all()
    pairs = best_matching(gain)
    assert gain[pairs[:, 0], pairs[:, 1]].sum() == best


@quick
@given(gains, st.randoms(use_true_random=False))
def test_matching_does_not_depend_on_the_order(gain, random):
    order = random.sample(range(len(gain)), len(gain))
    apart = 2.0 ** np.argsort(gain, axis=None).argsort().reshape(gain.shape)  # no two sums are equal
    for match in (best_matching, lambda score: greedy_matching(score, 1.0)):
        first, second = match(apart), match(apart[order])
        assert {(order[row], column) for row, column in second.tolist()} == set(map(tuple, first.tolist()))
    first, second = best_matching(gain), best_matching(gain[order])
    assert gain[tuple(first.T)].sum() == gain[order][tuple(second.T)].sum()


def test_greedy_takes_the_best_first_and_of_equals_the_first():
    score = np.array([[0.6, 0.9], [0.9, 0.7], [0.9, 0.2]])
    assert greedy_matching(score, 0.5).tolist() == [[0, 1], [1, 0]]
    assert greedy_matching(score, 0.95).tolist() == []
    assert greedy_matching(np.zeros((2, 2)), 0.0).tolist() == []


def test_nothing_to_match():
    assert best_matching(np.zeros((0, 3))).shape == greedy_matching(np.zeros((3, 0)), 0.5).shape == (0, 2)
    assert iou(np.zeros((0, 4)), box(0, 0, 1, 1)).shape == (0, 1)
