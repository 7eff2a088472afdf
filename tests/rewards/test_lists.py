import random
from itertools import combinations, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.rewards.lists import concordant_pairs, list_, order, rank, set_
from mmrl.sample import Sample


def grade(verifier, answer, truth, **facts):
    return verifier(Sample("test:0", "", truth, facts=facts), f"so \\boxed{{{answer}}}")


def test_lists():
    assert grade(list_, "1, 2.0, red", "1, 2, red") == {"accuracy": 1.0, "positions": 1.0}
    assert grade(list_, "2, 1, red", "1, 2, red") == {"accuracy": 0.0, "positions": pytest.approx(1 / 3)}
    assert grade(list_, "1, 2", "1, 2, red") == {"accuracy": 0.0, "positions": pytest.approx(2 / 3)}
    assert grade(list_, "1, 2, red, red", "1, 2, red") == {"accuracy": 0.0, "positions": 0.75}
    assert grade(list_, "", "1, 2, red") == {"accuracy": 0.0, "positions": 0.0}


def test_sets():
    assert grade(set_, "red, blue", "blue, red") == {"accuracy": 1.0, "item_f1": 1.0, "jaccard": 1.0}
    half = {"accuracy": 0.0, "item_f1": 0.5, "jaccard": pytest.approx(1 / 3)}
    assert grade(set_, "red, green", "blue, red") == half
    assert grade(set_, "red, red, red, green", "blue, red") == half  # repeats do not pay
    assert set(grade(set_, "", "blue, red").values()) == {0.0}
    assert (
        grade(set_, "red", "blue, red")["accuracy"]
        == grade(set_, "red, blue, tea", "blue, red")["accuracy"]
        == 0
    )


def test_orders():
    assert grade(order, "2, 0, 1", "2, 0, 1") == {"accuracy": 1.0, "positions": 1.0, "pairs": 1.0}
    assert grade(order, "[2, 1, 0]", "2, 0, 1") == {
        "accuracy": 0.0,
        "positions": pytest.approx(1 / 3),
        "pairs": pytest.approx(2 / 3),
    }
    assert grade(order, "1 0 2", "2, 0, 1")["pairs"] == 0.0
    assert (
        grade(order, "201", "2, 0, 1")["accuracy"] == grade(order, "C > A > B", "C, A, B")["accuracy"] == 1.0
    )
    assert grade(order, "red", "red") == {"accuracy": 1.0, "positions": 1.0, "pairs": 1.0}


@pytest.mark.parametrize(
    "answer", ["", "2, 0", "2, 0, 1, 1", "2, 0, 0", "2, 0, 3", "2, 0, 1, 3", "20", "2001", "all"]
)
def test_what_is_no_permutation_is_nothing(answer):
    assert set(grade(order, answer, "2, 0, 1").values()) == {0.0}


def test_ranks():
    facts = {"candidates": ["1", "2", "3", "4"]}
    assert grade(rank, "3, 1, 2, 4", "1, 3", **facts) == {"accuracy": 1.0, "rank_gain": 1.0, "listing": 1.0}
    late = grade(rank, "2, 1, 3, 4", "1, 3", **facts)
    assert late == {
        "accuracy": 0.0,
        "rank_gain": pytest.approx((1 / 8 + 1 / 27) / (1 + 1 / 8)),
        "listing": 1.0,
    }
    short = grade(rank, "1, 3", "1, 3", **facts)
    assert short == {"accuracy": 1.0, "rank_gain": 1.0, "listing": 0.5}
    repeated = grade(rank, "1, 1, 1, 1", "1, 3", **facts)
    assert repeated == {"accuracy": 0.0, "rank_gain": pytest.approx(8 / 9), "listing": 0.25}
    assert grade(rank, "9, 1, 3, 2", "1, 3", **facts)["listing"] == 0.75
    assert set(grade(rank, "", "1, 3", **facts).values()) == {0.0}
    assert grade(rank, ", ".join("1234" * 5), "1, 3", **facts)["listing"] == 0.0


@pytest.mark.parametrize(
    ("verifier", "truth", "facts"),
    [
        (list_, "", {}),
        (set_, "[]", {}),
        (order, ",", {}),
        (order, "1, 2, 1", {}),
        (rank, "1", {}),
        (rank, "5", {"candidates": [1, 2]}),
        (rank, "1", {"candidates": [1, 1]}),
        (rank, "", {"candidates": [1, 2]}),
    ],
)
def test_a_row_that_cannot_be_graded_is_an_error(verifier, truth, facts):
    with pytest.raises(ValueError, match="test:0"):
        grade(verifier, "", truth, **facts)


def test_pairs_are_those_of_kendall():
    for places in permutations(range(5)):
        rising = sum(places[i] < places[j] for i, j in combinations(range(5), 2))
        assert concordant_pairs(places) == pytest.approx(rising / 10)


ITEMS = st.lists(
    st.sampled_from(["red", "blue", "tea", "7", "1/2", "north", "x"]), min_size=1, max_size=7, unique=True
)


@settings(max_examples=40, deadline=None)
@given(ITEMS, ITEMS, st.integers(0, 9))
def test_sets_have_no_order_and_are_symmetric(one, other, seed):
    shuffled = random.Random(seed).sample(one, len(one))
    expected = grade(set_, ", ".join(one), ", ".join(other))
    assert grade(set_, "; ".join(shuffled), ", ".join(other)) == expected
    assert grade(set_, ", ".join(other), ", ".join(one)) == pytest.approx(expected)
    assert set(grade(set_, ", ".join(one), ", ".join(shuffled)).values()) == {1.0}


@settings(max_examples=40, deadline=None)
@given(ITEMS, st.integers(0, 9), st.integers(0, 9))
def test_names_of_items_do_not_matter_to_an_order(items, one, other):
    """Only where the items stand does, and the reverse has the other pairs."""
    given_, truth = (random.Random(seed).sample(range(len(items)), len(items)) for seed in (one, other))
    named = [", ".join(items[i] for i in places) for places in (given_, truth)]
    numbered = [", ".join(map(str, places)) for places in (given_, truth)]
    assert grade(order, *named) == grade(order, *numbered)
    backwards = grade(order, ", ".join(map(str, given_[::-1])), numbered[1])
    if len(items) > 1:
        assert grade(order, *numbered)["pairs"] + backwards["pairs"] == pytest.approx(1.0)


@settings(max_examples=40, deadline=None)
@given(st.text() | st.text("[]{},;\n 012ab", max_size=20))
def test_no_text_raises(answer):
    for verifier in (list_, set_, order, rank):
        values = grade(verifier, answer, "1, 0, 2", candidates=["2", "1", "0", "a"])
        assert all(0.0 <= value <= 1.0 for value in values.values())
