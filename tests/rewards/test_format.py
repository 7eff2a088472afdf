import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.rewards.style import (
    in_stages,
    response_format,
    stages,
    think_answer,
    think_boxed,
    think_then,
    thought,
    tight_tags,
)
from mmrl.sample import Sample

SAMPLE = Sample("test:0", "", "7")
PIECES = ["<think>", "</think>", "\\boxed{", "}", "<answer>", "</answer>", " ", "\n", "x", "{", "<", "/", ">"]
RESPONSES = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


@given(RESPONSES)
def test_blanks_are_removed_as_by_the_regular_expression_of_the_references(response):
    assert tight_tags(response) == re.sub(r"\s*(<|>|/)\s*", r"\1", response)


@given(RESPONSES)
def test_think_boxed_equals_the_backtracking_expression(response):
    text = re.sub(r"\s*(<|>|/)\s*", r"\1", response)
    matches = re.fullmatch(r"<think>.*</think>.*\\boxed\{.*\}.*", text, re.DOTALL)
    assert think_boxed(SAMPLE, response) == {"format": float(matches is not None)}


@given(RESPONSES)
def test_think_answer_equals_the_backtracking_expression(response):
    text = re.sub(r"\s*(<|>|/)\s*", r"\1", response)
    matches = re.fullmatch(r"<think>.*?</think>\s*<answer>.*?</answer>", text, re.DOTALL)
    assert think_answer(SAMPLE, response) == {"format": float(matches is not None)}


@pytest.mark.parametrize(
    ("response", "format_reward"),
    [
        ("<think>a</think> \\boxed{7}", 1.0),
        ("< think >\na\n< / think >\n\\boxed{7}.", 1.0),
        ("say <think>a</think>\\boxed{7}", 0.0),
        ("<think>a \\boxed{7}</think>", 0.0),
        ("<THINK>a</THINK>\\boxed{7}", 0.0),
        ("<think>a</think>\\boxed{7", 0.0),
    ],
)
def test_think_boxed(response, format_reward):
    assert think_boxed(SAMPLE, response) == {"format": format_reward}


@pytest.mark.parametrize(
    "text", [" " * 5_000_000, "<think></think>" * 300_000, "<think>" + "\\boxed{" * 700_000]
)
def test_formats_take_linear_time(text):
    start = time.process_time()
    think_boxed(SAMPLE, text)
    think_answer(SAMPLE, text)
    assert time.process_time() - start < 5.0
    think_then(SAMPLE, text)
    thought(SAMPLE, text)
    in_stages(text, ["think", "look", "answer"])


@pytest.mark.parametrize(
    ("where", "response"),
    [
        ("box", "<think>a</think>\\boxed{7}"),
        ("tag", "<think>a</think><answer>7</answer>"),
        ("tag_or_all", "<think>a</think><answer>7</answer>"),
        ("line", "<think>a</think>Answer: 7"),
        ("number", "<think>a</think>7"),
        ("all", "<think>a</think>7"),
    ],
)
def test_the_form_goes_with_where_the_answer_stands(where, response):
    sample = Sample("test:0", "", "7", facts={"answer_in": where})
    assert response_format(sample, response) == {"format": 1.0}
    assert response_format(sample, response.replace("</think>", "")) == {"format": 0.0}
    assert response_format(sample, "<think>a</think>") == {"format": 0.0}


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("<think>a</think> 7", 1.0),
        ("\n<think>a</think> 7\n", 1.0),
        ("<think></think> 7", 0.0),
        ("<think> \u200b\n</think> 7", 0.0),
        ("<think></think></think> 7", 0.0),
        ("<think>a</think> \u200b", 0.0),
        ("so <think>a</think> 7", 0.0),
        ("<think>a 7", 0.0),
        ("7", 0.0),
    ],
)
def test_think_then(response, expected):
    assert think_then(SAMPLE, response) == {"format": expected}


@pytest.mark.parametrize(
    ("response", "words"),
    [
        ("<think>I see two dogs, two cats</think>7", 5),
        ("<think>I see two dogs", 0),
        ("I see <think>two dogs</think>", 0),
        ("<think></think>I see two dogs</think>", 0),
        ("<think>... !? \u200b</think>7", 0),
        ("<think>" + "look " * 100 + "</think>7", 1),
        ("<think>三</think>7", 1),
    ],
)
def test_a_thought_has_different_words(response, words):
    for least in (1, 2, 5, 6):
        sample = Sample("test:0", "", "7", facts={"least_words": least})
        assert thought(sample, response) == {"thought": float(words >= least)}


def staged(response, names=("think", "look", "answer")):
    found = stages(Sample("test:0", "", "7", facts={"stages": list(names)}), response)
    return found["stages"], found["stage_tags"]


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("<think>a</think><look>b</look><answer>c</answer>", (1.0, 1.0)),
        (" <think>a</think>\n<look>b</look>\n\n<answer>c</answer>\n", (1.0, 1.0)),
        ("<look>b</look><think>a</think><answer>c</answer>", (0.0, 1.0)),
        ("so <think>a</think><look>b</look><answer>c</answer>", (0.0, 1.0)),
        ("<think>a</think> and <look>b</look><answer>c</answer>", (0.0, 1.0)),
        ("<think>a</think><look>b</look><answer>c</answer>.", (0.0, 1.0)),
        ("<think>a<look>b</look></think><answer>c</answer>", (0.0, 1.0)),
        ("<think>a</think><answer>c</answer>", (0.0, 4 / 6)),
        ("<think>a</think><look>b</look><answer>c", (0.0, 5 / 6)),
        ("<think></think><look>b</look><answer>c</answer>", (0.0, 4 / 6)),
        ("<think> \u200b</think><look>b</look><answer>c</answer>", (0.0, 4 / 6)),
        ("</think>a<think><look>b</look><answer>c</answer>", (0.0, 4 / 6)),
        ("<think>a</think><look>b</look><answer>c</answer><answer>d</answer>", (0.0, 4 / 6)),
        ("<think>a</think>" * 9, (0.0, 0.0)),
        ("", (0.0, 0.0)),
    ],
)
def test_stages(response, expected):
    assert staged(response) == pytest.approx(expected)


def test_each_tag_of_two_stages_is_a_quarter():
    """As V-Triune pays them."""
    whole = "<think>a</think><answer>c</answer>"
    assert staged(whole, ["think", "answer"]) == (1.0, 1.0)
    for tag in ("<think>", "</think>", "<answer>", "</answer>"):
        assert staged(whole.replace(tag, ""), ["think", "answer"]) == (0.0, 0.75)


def test_a_stage_may_come_twice():
    names = ["think", "answer", "think", "answer"]
    once = "<think>a</think><answer>b</answer>"
    assert staged(once + once, names) == (1.0, 1.0)
    assert staged(once + once.replace("a", ""), names)[0] == 0.0
    assert staged(once, names) == (0.0, 0.0)


@pytest.mark.parametrize("names", [[], [""], ["a b"], ["<think>"], [1], "think"])
def test_stages_are_names(names):
    with pytest.raises(ValueError, match=r"test:0.*facts\['?\"?stages"):
        stages(Sample("test:0", "", "7", facts={"stages": names}), "")


@given(st.lists(st.sampled_from([*PIECES, "<look>", "</look>"]), max_size=14).map("".join))
@settings(max_examples=40, deadline=None)
def test_whole_stages_have_all_tags(response):
    whole, tags = staged(response, ["think", "answer"])
    assert 0.0 <= whole <= tags <= 1.0


@given(st.text(st.characters(codec=None)))
@settings(max_examples=40, deadline=None)
def test_no_text_raises(text):
    assert think_then(SAMPLE, text) == {"format": 0.0}
    assert thought(SAMPLE, f"<think>{text}</think>").keys() == {"thought"}
    assert staged(f"<think>{text}</think>")[0] == 0.0
