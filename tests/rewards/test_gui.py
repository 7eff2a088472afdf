import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.rewards.gui import ARGUMENTS, MAX_CANDIDATES, gui, gui_candidates, read_action, three_on_a_line
from mmrl.sample import Sample

quick = settings(max_examples=40, deadline=None)
text = st.text(alphabet=st.characters(exclude_categories=()))
WRONG = {"accuracy": 0.0, "action_type": 0.0, "argument": 0.0}
RIGHT = {"accuracy": 1.0, "action_type": 1.0, "argument": 1.0}
CLICK = {"action": "click", "box": [10, 10, 50, 30]}


def grade(answer, truth=CLICK, **facts):
    sample = Sample("test:0", "", json.dumps(truth), verifier="gui", facts={"answer_in": "all", **facts})
    return gui(sample, answer)


@pytest.mark.parametrize(
    "answer",
    [
        "click(20, 20)",
        "click(x=20, y=20)",
        "pyautogui.click(x=20, y=20)",
        "click(start_box='(20,20)')",
        "click(start_box='<|box_start|>(20,20)<|box_end|>')",
        "tap([20, 20])",
        "Thought: the button. Action: click(20, 20)",
        '{"action": "click", "coordinate": [20, 20]}',
        "[{'action': 'click', 'coordinate': [20, 20]}]",
        '```json\n{"action_type": "CLICK", "x": 20, "y": 20}\n```',
        '{"name": "mobile_use", "arguments": {"action": "left_click", "coordinate": [20, 20]}}',
        '{"name": "click", "arguments": {"point_2d": [20, 20]}}',
    ],
)
def test_ways_to_click(answer):
    assert grade(answer) == RIGHT


@pytest.mark.parametrize(
    ("answer", "kind", "argument"),
    [
        ("click(60, 20)", 1, 0),
        ("click()", 1, 0),
        ("click(20, 20, 30)", 1, 0),
        ("long_press(20, 20)", 0, 1),
        ("click([20, 20], [40, 20])", 1, 0),
        ("scroll(down)", 0, 0),
    ],
)
def test_half_right_clicks(answer, kind, argument):
    assert grade(answer) == {"accuracy": 0.0, "action_type": kind, "argument": argument}


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "(20, 20)",
        "I would click there",
        "click(20, 20); click(20, 20)",
        "dance(20, 20)",
        '[{"action": "click", "coordinate": [20, 20]}, {"action": "wait"}]',
        "click(20, 20) or wait()",
    ],
)
def test_no_action_or_several(answer):
    assert grade(answer) == WRONG


def test_a_click_in_other_units_and_one_of_several_boxes():
    assert grade("click(0.05, 0.1)", coordinates="unit", image_size=[400, 200]) == RIGHT
    either = {"action": "click", "box": [[0, 0, 5, 5], [10, 10, 50, 30]]}
    assert grade("click(20, 20)", either) == grade("click(1, 1)", either) == RIGHT


@pytest.mark.parametrize(
    ("truth", "right", "wrong"),
    [
        (
            {"action": "type", "text": "New  York"},
            [
                'type("new york")',
                'type(text="New York")',
                '{"action": "type", "text": "new york"}',
                "type(New York)",
            ],
            ['type("york new")', 'type("new york city")', "type()", 'type("")'],
        ),
        (
            {"action": "type", "text": "5 + 3"},
            ['type("5 + 3")', "type(content='5 + 3')", '{"action": "type", "text": "5 + 3"}'],
            ['type("5 3")', "type(8)"],
        ),
        ({"action": "type", "text": "007"}, ['type("007")', "type(007)"], ["type(7)", 'type("7")']),
        (
            {"action": "open_app", "text": "Maps"},
            [
                'open_app("maps")',
                "open_app(Maps)",
                "open(app='Maps')",
                '{"action": "open_app", "app": "Maps"}',
            ],
            ["open_app(Mail)", "open_app(Maps, Mail)"],
        ),
        (
            {"action": "scroll", "direction": "down"},
            [
                "scroll(down)",
                "scroll('down')",
                "scroll(direction='down', start_box='(5,5)')",
                "scroll(20, 20, DOWN)",
            ],
            ["scroll(up)", "scroll(up, down)", "scroll()", "scroll(down, up, left, right)"],
        ),
        (
            {"action": "press", "key": "ctrl+c"},
            [
                "hotkey('ctrl', 'c')",
                "hotkey(key='ctrl c')",
                "press(Control+C)",
                '{"action": "key", "keys": ["ctrl", "c"]}',
            ],
            ["press(c)", "press(ctrl)", "hotkey('ctrl', 'c', 'v')", "press()"],
        ),
        ({"action": "wait"}, ["wait()", "wait(5)", '{"action": "wait"}'], []),
        ({"action": "finished"}, ["finished()", "finished(content='done')", '{"action": "terminate"}'], []),
    ],
)
def test_other_actions(truth, right, wrong):
    for answer in right:
        assert grade(answer, truth) == RIGHT, answer
    for answer in wrong:
        assert grade(answer, truth) == {"accuracy": 0.0, "action_type": 1.0, "argument": 0.0}, answer
    assert grade("back()", truth) == WRONG


def test_part_of_a_text_where_the_row_allows_it():
    truth = {"action": "type", "text": "weather in new york"}
    assert grade('type("new york weather")', truth)["argument"] == 0.0
    assert grade('type("new york weather")', truth, text_f1=0.5) == RIGHT
    assert grade('type("new")', truth, text_f1=0.5)["argument"] == 0.0
    assert grade('type("")', truth, text_f1=0.5)["argument"] == 0.0


@pytest.mark.parametrize(
    ("truth", "facts", "message"),
    [
        ("click", {}, "no action"),
        ({"action": "dance"}, {}, "no action"),
        ({"action": "click"}, {}, 'needs a "box"'),
        ({"action": "click", "box": []}, {}, 'needs a "box"'),
        ({"action": "click", "box": [1, 2, 3]}, {}, 'needs a "box"'),
        ({"action": "type", "text": " "}, {}, 'under "text"'),
        ({"action": "press"}, {}, 'under "key"'),
        ({"action": "scroll", "direction": "there"}, {}, "up, down"),
        (CLICK, {"text_f1": 0}, "text_f1"),
        (CLICK, {"coordinates": "unit"}, "image_size"),
    ],
)
def test_wrong_rows(truth, facts, message):
    with pytest.raises(ValueError, match=f"(?s)test:0.*{message}"):
        grade("", truth, **facts)


@quick
@given(
    text
    | st.lists(st.sampled_from([*ARGUMENTS, *"(){}[]:,'\"= \ud800", "action", "1"]), max_size=20).map("".join)
)
def test_any_text_is_graded(answer):
    assert grade(answer).keys() == WRONG.keys()
    assert read_action(answer) is None or grade(answer)["action_type"] in (0.0, 1.0)
    assert candidates(answer).keys() == {"accuracy", "exploration"}


def candidates(answer, truth="[10, 10, 50, 30]", **facts):
    sample = Sample("test:0", "", truth, verifier="gui_candidates", facts={"answer_in": "all", **facts})
    return gui_candidates(sample, answer)


@pytest.mark.parametrize(
    ("answer", "accuracy", "exploration"),
    [
        ("(20, 20)", 1.0, 1.0),
        ("(90, 90)", 0.0, -1.0),
        ("(20, 20) (90, 90)", 1.0, 1 / math.sqrt(2)),
        ("(90, 90) (20, 20)", 0.0, 0.5),
        ("(90, 90) (80, 97)", 0.0, -0.5),
        ("(90, 91) (80, 97) (20, 20) (30, 21)", 0.0, 1 / math.sqrt(12)),
        ("(20, 20) (30, 30) (40, 40)", 1.0, -1.0),
        ("(20, 20) (20, 20) (90, 91)", 1.0, -1.0),
        ("", 0.0, -1.0),
        ("there", 0.0, -1.0),
        ("".join(f"({n}, {n * n})" for n in range(MAX_CANDIDATES + 1)), 0.0, -1.0),
        ("".join(f"({n + 60}, {n * n})" for n in range(MAX_CANDIDATES)), 0.0, -1 / MAX_CANDIDATES),
    ],
)
def test_the_exploration_reward(answer, accuracy, exploration):
    assert candidates(answer) == {"accuracy": accuracy, "exploration": pytest.approx(exploration)}


def test_candidates_near_a_point_and_wrong_rows():
    assert candidates("(21, 20)", "[20, 20]", radius=2)["accuracy"] == 1.0
    for truth in ("[]", "[20, 20]", "here"):
        with pytest.raises(ValueError, match="test:0"):
            candidates("", truth)


@quick
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=5), st.sampled_from([1.0, 1e-3, 1e6])
)
def test_three_on_a_line(points, scale):
    expected = any(
        (b[0] - a[0]) * (c[1] - a[1]) == (b[1] - a[1]) * (c[0] - a[0])
        for a, b, c in itertools.combinations(points, 3)
    )
    assert three_on_a_line(np.array(points, float).reshape(-1, 2) * scale) == expected
