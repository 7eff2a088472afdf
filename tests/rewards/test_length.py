import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.rewards.style import length_target, overlong
from mmrl.sample import Sample

LENGTHS = st.integers(0, 5000)


def sample(tokens, max_tokens=2048, **facts):
    rollout = {"progress": 0.5, "tokens": tokens, "max_tokens": max_tokens, "truncated": tokens >= max_tokens}
    return Sample("test:0", "", "7", facts={"rollout": rollout, **facts})


def overlong_of(tokens, buffer=512.0):
    return overlong(sample(tokens, overlong_buffer=buffer), "")["overlong"]


def target_of(tokens, target=100):
    return length_target(sample(tokens, target_tokens=target), "")["length_target"]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(0, 0.0), (1536, 0.0), (1537, -1 / 512), (1792, -0.5), (2048, -1.0), (9999, -1.0)],
)
def test_overlong(tokens, expected):
    assert overlong_of(tokens) == pytest.approx(expected, abs=1e-12)


def test_without_a_buffer_only_what_is_too_long_is_punished():
    assert [overlong_of(tokens, 0) for tokens in (2047, 2048, 2049)] == [0.0, 0.0, -1.0]


@given(LENGTHS, LENGTHS)
@settings(max_examples=40, deadline=None)
def test_a_longer_response_is_never_punished_less(a, b):
    assert -1.0 <= overlong_of(max(a, b)) <= overlong_of(min(a, b)) <= 0.0


def test_the_buffer_must_fit_into_the_budget():
    with pytest.raises(ValueError, match=r"test:0.*overlong_buffer.*from 0 to 2048"):
        overlong_of(0, 4096)
    with pytest.raises(ValueError, match=r"needs facts\['overlong_buffer'\]"):
        overlong(sample(7), "")
    with pytest.raises(ValueError, match="facts of a rollout"):
        overlong(Sample("test:0", "", "7", facts={"overlong_buffer": 1}), "")


def test_before_a_run_the_budget_is_unknown():
    assert overlong(sample(0, max_tokens=0, overlong_buffer=512), "") == {"overlong": 0.0}


@pytest.mark.parametrize(
    ("tokens", "expected"), [(0, 0.0), (25, 0.25), (100, 1.0), (150, 0.5), (200, 0.0), (4000, 0.0)]
)
def test_length_target(tokens, expected):
    assert target_of(tokens) == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_too_short_and_too_long_cost_the_same(distance):
    assert target_of(100 - distance) == target_of(100 + distance)


def test_a_target_is_needed():
    with pytest.raises(ValueError, match=r"facts\['target_tokens'\]"):
        length_target(sample(7), "")
    with pytest.raises(ValueError, match="a number from 1"):
        target_of(7, target=0)
