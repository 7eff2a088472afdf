import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.rewards.lists import MAX_ITEMS, items_of, key_of, ordered_items


@pytest.mark.parametrize(
    "answer",
    [
        "red, green, blue",
        "red; green; blue",
        "red\ngreen\nblue",
        "red, green and blue",
        "red, green, and blue.",
        "[red, green, blue]",
        '["red", "green", "blue"]',
        "['red', 'green', 'blue']",
        "(red, green, blue)",
        r"\{red, green, blue\}",
        r"\text{red, green, blue}",
        "- red\n- green\n- blue",
        "1. red\n2. green\n3. blue",
        "red,\ngreen,\nblue",
        "red,, green, blue,",
    ],
)
def test_ways_to_list(answer):
    assert items_of(answer) == ["red", "green", "blue"]


@pytest.mark.parametrize(
    ("answer", "items"),
    [
        ("(1,2), (3,4)", ["(1,2)", "(3,4)"]),
        ("1,000; 2,000", ["1,000", "2,000"]),
        ("salt and pepper, sugar", ["salt and pepper", "sugar"]),
        ('["salt, pepper", "sugar"]', ["salt, pepper", "sugar"]),
        ("[1, 2.5, true]", ["1", "2.5", "true"]),
        ("red", ["red"]),
        ("[[1,2],[3]]", ["[1,2]", "[3]"]),
    ],
)
def test_what_is_not_cut(answer, items):
    assert items_of(answer) == items


@pytest.mark.parametrize("answer", ["", " ", ",", ";\n,", "[]", "1," * (MAX_ITEMS + 1)])
def test_what_lists_nothing(answer):
    assert items_of(answer) is None


@pytest.mark.parametrize(
    "answer", ["3 1 2", "3 > 1 > 2", "3->1->2", "3 → 1 → 2", r"3 \to 1 \to 2", "3, 1 and 2"]
)
def test_ways_to_order(answer):
    assert ordered_items(answer) == ["3", "1", "2"]


def test_words_are_not_parted_by_blanks():
    assert ordered_items("New York") == ["New York"]
    assert ordered_items("New York > Los Angeles") == ["New York", "Los Angeles"]


def test_keys():
    assert key_of("2.0") == key_of("2") == key_of(r"\frac{4}{2}")
    assert key_of("Red") == key_of(r"\text{red}")
    assert key_of("(A)") == key_of("a")
    assert key_of("2") != key_of("2 m")


WORDS = st.lists(
    st.text("abcxyz", min_size=1, max_size=5).filter(lambda word: word != "and"), min_size=1, max_size=8
)


@settings(max_examples=40, deadline=None)
@given(WORDS, st.sampled_from([", ", ",", "; ", "\n"]), st.sampled_from(["{}", "[{}]", "({})"]))
def test_what_is_listed_is_read_back(words, between, around):
    assert items_of(around.format(between.join(words))) == words


@settings(max_examples=40, deadline=None)
@given(st.text() | st.text('[](){},;\n\\" 12ab->', max_size=30))
def test_no_text_raises(answer):
    for read in (items_of, ordered_items):
        assert read(answer) is None or len(read(answer)) > 0
