# ruff: noqa: RUF001  (punctuation of other scripts is what some of this is about)
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.rewards.style import repetition
from mmrl.sample import Sample

BOX = '{"bbox_2d": [1, 2, 30, 40], "label": "cat"}'
OTHER = '{"bbox_2d": [5, 6, 70, 80], "label": "dog"}'
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def penalty(response, **facts):
    return repetition(Sample("test:0", "", "7", facts=facts), response)["repetition"]


def test_the_share_of_ngrams_seen_before():
    assert penalty(" ".join(WORDS)) == 0.0
    # 24 words have 19 runs of six, of which the last seven are the first seven again.
    assert penalty(" ".join(WORDS + WORDS)) == pytest.approx(12 / 19 - 1)
    assert penalty(" ".join(WORDS + WORDS).upper() + "\n") == penalty(" ".join(WORDS + WORDS))
    assert penalty("yes " * 1000) == pytest.approx(1 / 995 - 1)


def test_the_size_of_a_run_is_a_fact():
    text = "the cat and the dog and the cow"
    assert penalty(text, ngram=1) == pytest.approx(5 / 8 - 1)
    assert penalty(text, ngram=2) == pytest.approx(6 / 7 - 1)
    assert penalty(text, ngram=3) == 0.0
    with pytest.raises(ValueError, match=r"test:0.*facts\['ngram'\]"):
        penalty(text, ngram=0)


@pytest.mark.parametrize(
    "text", ["", " ", "one two three four five", "{", "[{", "[{}]", "\ud800", "\x00" * 9]
)
def test_what_is_too_short_repeats_nothing(text):
    assert penalty(text) == 0.0


def test_in_a_list_the_objects_are_compared():
    assert penalty(f"[{BOX}, {OTHER}]") == 0.0
    assert penalty(f"<think>so</think>```json\n[{BOX}, {OTHER}, {BOX}, {BOX}]\n```") == -0.5
    assert penalty(f'[{BOX}, {BOX[:-1]}, "confidence": 0.5}}]') == -0.5  # the same box, sure or not
    assert penalty('[{"point_2d": [1, 2]}, {"point_2d": [1, 2]}]') == -0.5


def test_the_thinking_and_the_answer_may_list_the_same():
    assert penalty(f"<think>[{BOX}, {OTHER}]</think>[{BOX}, {OTHER}]") == 0.0


def test_a_list_does_not_hide_the_text_around_it():
    assert penalty(" ".join(WORDS * 9) + f" [{BOX}]") < -0.8
    assert penalty(f"[{BOX}] " + " ".join(WORDS * 9)) < -0.8


def test_scripts_without_blanks():
    assert penalty("因为三角形的内角和是一百八十度，所以第三个角是七十度。") == 0.0
    assert penalty("因为三角形的内角和是一百八十度。" * 20) < -0.8
    assert penalty("ดังนั้นคำตอบคือสามสิบห้าองศา" * 20) < -0.8


def test_words_without_an_end():
    assert penalty("ha" * 400) < -0.9
    assert penalty("http://example.org/a/long/address/of/a/page/that/is/no/repetition.html") == 0.0


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_repeating_more_is_never_punished_less_than_all_new(words, size):
    once, twice = " ".join(words), " ".join(words + words)
    assert -1.0 < penalty(twice, ngram=size) <= 0.0
    assert len(words) < size or penalty(twice, ngram=size) < 0.0
    assert penalty(once, ngram=size) <= 0.0


@given(st.text(st.characters(codec=None)))
@settings(max_examples=40, deadline=None)
def test_no_text_raises(text):
    assert -1.0 <= penalty(text) <= 0.0


@pytest.mark.parametrize(
    "text",
    [
        "a " * 500_000,
        "x" * 1_000_000,
        "[{" * 500_000,
        '[{"a":0},' * 110_000,
        "三" * 1_000_000,
        "[{}]" * 250_000,
    ],
)
def test_a_million_characters_take_seconds_at_most(text):
    start = time.process_time()
    penalty(text)
    assert time.process_time() - start < 2.0
