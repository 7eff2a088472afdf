import time

from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.rewards.edit_distance import MAX_COMPARED, levenshtein, normalized_distance

TEXT = st.text("abc ", max_size=12) | st.text(max_size=8)


def plain(one, other):
    """The textbook's table, a row at a time."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


@settings(max_examples=40, deadline=None)
@given(TEXT, TEXT)
def test_distance_is_that_of_the_table(one, other):
    assert levenshtein(one, other) == plain(one, other)


@settings(max_examples=40, deadline=None)
@given(TEXT, TEXT, TEXT)
def test_distance_is_a_metric(one, other, third):
    assert levenshtein(one, one) == 0
    assert levenshtein(one, other) == levenshtein(other, one)
    assert levenshtein(one, third) <= levenshtein(one, other) + levenshtein(other, third)
    assert (normalized_distance(one, other) == 0.0) == (one == other)
    assert normalized_distance(one, other) == normalized_distance(other, one) <= 1.0


def test_known_distances():
    assert levenshtein("kitten", "sitting") == 3
    assert levenshtein("", "abc") == levenshtein("abc", "") == 3
    assert normalized_distance("", "") == 0.0


def test_time_is_bounded():
    start = time.process_time()
    one, other = "ab" * (MAX_COMPARED // 2), "ba" * (MAX_COMPARED // 2)
    assert levenshtein(one, other) == 2
    assert normalized_distance(one + "a", other) == 1.0  # too long, and not equal
    assert normalized_distance(one + "a", one + "a") == 0.0
    assert time.process_time() - start < 2.0
