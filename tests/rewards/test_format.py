import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.rewards.format import think_answer, think_boxed, tight_tags
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
