import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.rewards.text import MAX_ANSWER
from mmrl.rewards.words import anls, edit, exact, similarity, text, words_of, yes_no
from mmrl.sample import Sample


def grade(verifier, answer, truth, **facts):
    return verifier(Sample("test:0", "", truth, facts=facts), f"so \\boxed{{{answer}}}")


def accuracy(verifier, answer, truth, **facts):
    return grade(verifier, answer, truth, **facts)["accuracy"]


@pytest.mark.parametrize(
    "answer",
    [
        "yes",
        "Yes",
        "YES.",
        r"\text{Yes}",
        "true",
        "Correct",
        "Yes, it is red.",
        "The answer is yes",
        "**Yes**",
    ],
)
def test_answers_that_say_yes(answer):
    assert accuracy(yes_no, answer, "yes") == accuracy(yes_no, answer, "True") == 1.0
    assert accuracy(yes_no, answer, "no") == accuracy(yes_no, answer, "false") == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "yes and no",
        "yes/no",
        "Yes. No.",
        "no, yes",
        "maybe",
        "not yes",
        "true or false",
        "correct answer: no or yes",
        "nobody",
        "yesterday",
        "it is true that it is not",
        "incorrect is right",
        "unknown",
        "y",
    ],
)
def test_answers_that_say_neither_or_both(answer):
    assert accuracy(yes_no, answer, "yes") == accuracy(yes_no, answer, "no") == 0.0


def test_yes_or_no_needs_such_a_truth():
    with pytest.raises(ValueError, match=r"test:0.*neither yes nor no"):
        grade(yes_no, "", "perhaps")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The Eiffel Tower", "eiffel tower"),
        ("x-ray", "X ray"),
        ("don't", "dont"),
        ("“red”", "red"),
        ("1,000 m", "1000 m"),
        ("\uff52\uff45\uff44", "red"),
        ("stop !", "Stop"),
        ("a\n b", "B"),
        ("Straße", "STRASSE"),
        (r"\text{red}", "red"),
        ("\u22123", "-3"),
        ("A", "a"),
    ],
)
def test_texts_of_the_same_words(one, other):
    assert words_of(one) == words_of(other)
    assert accuracy(text, one, other) == 1.0
    assert accuracy(exact, one, other) == 0.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3.5", "35"),
        ("-3", "3"),
        (".5", "5"),
        ("C#", "C"),
        ("C++", "C"),
        ("5%", "5"),
        ("10:30", "1030"),
        ("1/2", "12"),
        ("cat dog", "cat"),
        ("cats", "cat"),
        ("A", "B"),
        ("the", "a"),
        ("red", "not red"),
        ("?", "!"),
    ],
)
def test_texts_of_other_words(one, other):
    assert words_of(one) != words_of(other)
    assert accuracy(text, one, other) == accuracy(text, other, one) == 0.0


def test_aliases_are_as_right():
    for verifier in (text, exact, anls, edit):
        assert accuracy(verifier, "NYC", "New York City", aliases=["NYC", "New York"]) == 1.0
        assert accuracy(verifier, "NYC, New York City", "New York City", aliases=["NYC"]) < 1.0


def test_exact_is_exact():
    assert accuracy(exact, " A b ", "A b") == 1.0
    assert (
        accuracy(exact, "A  b", "A b") == accuracy(exact, "a b", "A b") == accuracy(exact, "", "A b") == 0.0
    )


def test_anls_of_the_paper():
    assert accuracy(anls, "Hello World", "hello  world") == 1.0
    assert accuracy(anls, "helo world", "hello world") == pytest.approx(1 - 1 / 11)
    assert accuracy(anls, "abcd", "abxy") == 0.0  # a distance of a half is no credit
    assert accuracy(anls, "abcde", "abcxy") == pytest.approx(0.6)
    assert accuracy(anls, "xyz", "hello", aliases=["xyw"]) == pytest.approx(2 / 3)
    assert accuracy(anls, "", "hello") == 0.0


def test_edit_similarity():
    assert grade(edit, "kitten", "sitting") == {"accuracy": 0.0, "similarity": pytest.approx(1 - 3 / 7)}
    assert grade(edit, "Red", "red") == {"accuracy": 0.0, "similarity": pytest.approx(2 / 3)}
    assert grade(edit, "so  red", "so red") == {"accuracy": 1.0, "similarity": 1.0}
    assert grade(edit, "", "red") == {"accuracy": 0.0, "similarity": 0.0}


@pytest.mark.parametrize("verifier", [text, exact, anls, edit])
def test_a_row_that_cannot_be_graded_is_an_error(verifier):
    with pytest.raises(ValueError, match=r"test:0.*no text"):
        grade(verifier, "", " ")
    for aliases in ([""], [3], "red"):
        with pytest.raises(ValueError, match=r"test:0.*aliases"):
            grade(verifier, "", "red", aliases=aliases)


PLAIN = st.text("abcDE 12.,-", min_size=1, max_size=10).filter(str.strip)


@settings(max_examples=40, deadline=None)
@given(PLAIN, PLAIN)
def test_symmetry_and_identity(one, other):
    for verifier in (text, exact, anls, edit):
        assert grade(verifier, one, other) == grade(verifier, other, one)
        assert set(grade(verifier, one, one).values()) == {1.0}


@settings(max_examples=40, deadline=None)
@given(st.text())
def test_words_of_words_are_the_same(answer):
    assert words_of(words_of(answer)) == words_of(answer)


@settings(max_examples=40, deadline=None)
@given(st.text())
def test_no_text_raises(answer):
    for verifier in (yes_no, text, exact, anls, edit):
        assert all(0.0 <= value <= 1.0 for value in grade(verifier, answer, "yes").values())


SHORT_TEXT = st.text("abc ", min_size=1, max_size=12) | st.text(min_size=1, max_size=8)


def plain(one, other):
    """The textbook's table, a row at a time."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


@settings(max_examples=40, deadline=None)
@given(SHORT_TEXT, SHORT_TEXT)
def test_distance_is_that_of_the_table(one, other):
    distance = plain(one, other) / max(len(one), len(other))
    assert abs(similarity(one, [other]) - (1.0 - distance)) < 1e-12
    assert similarity(one, [other]) == similarity(other, [one])
    assert (similarity(one, [other]) == 1.0) == (one == other)


def test_the_nearest_truth_counts():
    assert similarity("kitten", ["", "sitting"]) == 1.0 - 3 / 7
    assert similarity("", ["abc"]) == similarity("", []) == 0.0


def test_time_is_bounded():
    start = time.process_time()
    one, other = "ab" * (MAX_ANSWER // 2), "ba" * (MAX_ANSWER // 2)
    assert similarity(one, [other]) == 1.0 - 2 / MAX_ANSWER
    assert time.process_time() - start < 2.0
