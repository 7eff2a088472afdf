import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.rewards.text import (
    MAX_ANSWER,
    canonical,
    first_tagged,
    has_control_characters,
    last_answer_line,
    last_boxed,
    nesting,
    peel,
    to_latex,
)

MATH_TEXT = st.text(
    st.sampled_from("\\{}()[],$<>/ 0179xab^_%.-\n\u2212\u00b2\u2153") | st.characters(), max_size=60
)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{7}", "7"),
        (r"\boxed{1} then \boxed{ 2 }.", "2"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{\{7\}}", r"\{7\}"),
        (r"\boxed{a \} b}", r"a \} b"),
        (r"\boxed{}", ""),
        ("\\boxed{a\nb}", "a\nb"),
        ("no box", None),
        (r"\boxed{7", None),
        (r"\boxed{7} but \boxed{8", None),
        (r"\boxed {7}", "7"),
        ("\\boxed\n {7} \\boxed", "7"),
        (r"\fbox{7}", None),
    ],
)
def test_last_boxed(text, content):
    assert last_boxed(text) == content


@given(st.integers(0, 50), st.text(st.characters(exclude_characters="\\{}"), min_size=1, max_size=20))
def test_last_boxed_returns_any_balanced_content(depth, inside):
    content = "{" * depth + inside + "}" * depth
    assert last_boxed("before \\boxed{" + content + "} after") == content.strip()


def test_a_box_longer_than_an_answer_is_none():
    assert last_boxed("\\boxed{" + "7" * MAX_ANSWER + "}") == "7" * MAX_ANSWER
    assert last_boxed("\\boxed{" + "7" * (MAX_ANSWER + 1) + "}") is None


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" + "{" * 10_000_000,
        "\\boxed{" * 1_500_000,
        "\\boxed{" + "x" * 10_000_000 + "}",
        "\\boxed{" + "{" * 4000 + "7" + "}" * 4000 + "}",
        "}" * 10_000_000,
    ],
    ids=["open braces", "open boxes", "long box", "deep", "closing braces"],
)
def test_extraction_is_bounded_on_ten_megabytes(text):
    start = time.process_time()
    boxed = last_boxed(text)
    peel(boxed or "")
    first_tagged(text)
    last_answer_line(text)
    assert time.process_time() - start < 1.0


def test_deeply_nested_braces_peel():
    assert peel("{" * 4000 + "7" + "}" * 4000) == "7"


@pytest.mark.parametrize(
    ("text", "peeled"),
    [
        ("{7}{8}", "{7}{8}"),
        ("((7))", "7"),
        ("(7,8)", "(7,8)"),
        ("{(1,2)}", "(1,2)"),
        ("(x)(y)", "(x)(y)"),
        ("{(7}", "{(7}"),
    ],
)
def test_peel_keeps_what_does_not_enclose_everything(text, peeled):
    assert peel(text) == peeled


def test_tagged_and_line_answers():
    assert first_tagged("<answer> 7\n</answer><answer>8</answer>") == "7"
    assert first_tagged("<answer>7") is None
    assert last_answer_line("Answer: 6\nanswer : 7 \nend") == "7"
    assert last_answer_line("Answer: 6" + "x" * 300) is None
    assert last_answer_line("The result is 7") is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\dfrac{1}{2}", r"\frac12"),
        ("\u221270", "-70"),
        ("\uff13", "3"),
        ("x²", "x^{2}"),
        ("No  Solution.", "no solution"),
        (r"\text{(B)}", "b"),
        (r"90^\circ", "90°"),
        (r"15\%", "15"),
        (r"\left( 1, 2 \right)", "(1,2)"),
        (r"\$5", "5"),
    ],
)
def test_spellings_with_one_key(one, other):
    assert canonical(one) == canonical(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("(1,2)", "[1,2]"),
        (r"\frac{1}{23}", r"\frac{12}{3}"),
        ("2⅓", "21/3"),
        ("[21,19)", "(21,19)"),
        ("x^{23}", "x^{2}3"),
    ],
)
def test_spellings_with_different_keys(one, other):
    assert canonical(one) != canonical(other)


@given(MATH_TEXT)
def test_any_text_is_read_without_an_error(text):
    last_boxed(text)
    to_latex(text)
    canonical(text)
    assert nesting(text) >= 0
    assert peel(text) in text


@given(MATH_TEXT)
def test_a_canonical_form_has_no_capitals_and_blanks_only_between_digits(text):
    key = canonical(text)
    assert key == key.lower()
    for before, blank, after in zip(key, key[1:], key[2:], strict=False):
        assert not blank.isspace() or (before.isdigit() and after.isdigit())


def test_control_characters_are_noticed():
    assert has_control_characters("5\x00")
    assert not has_control_characters("5\t\n")
