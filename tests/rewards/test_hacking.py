"""Responses that game a verifier get no more than an honest wrong answer.

Where an answer may list several things, "no more" holds for lists that are long enough: of n things of which
k are all the right ones the F1 is 2k / (n + k), and an honest answer with one thing wrong has (k - 1) / k,
which is no less from n = k (k + 1) / (k - 1) on: 6 things for k = 2 or 3. Components that are left out of
the weights of the cases have holes by their design; the last tests say which.
"""

import math

import pytest
from hacking_responses import FAULTS, attacks
from rewards_cases import ANSWERS, CASES, STYLES

from mmrl.rewards.verifiers import VERIFIERS


def components(case, response):
    return VERIFIERS[case.sample.verifier](case.sample, response)


def reward(case, response):
    return case.reward(components(case, response))


def test_every_verifier_has_a_case():
    assert {case.sample.verifier for case in CASES.values()} == set(VERIFIERS)
    assert set(FAULTS) == set(STYLES) - {"overlong", "length_target"}  # these look at no text


@pytest.mark.parametrize("name", sorted(ANSWERS))
def test_right_pays_more_than_wrong(name):
    case = CASES[name]
    right, wrong = (case.response(answer) for answer in (case.truth, case.wrong))
    assert reward(case, right) > reward(case, wrong) >= reward(case, case.response("")) >= 0.0
    assert components(case, right)["accuracy"] == 1.0
    assert components(case, wrong)["accuracy"] < 1.0


@pytest.mark.parametrize("name", sorted(CASES))
def test_gaming_pays_no_more_than_an_honest_wrong_answer(name):
    case = CASES[name]
    honest = reward(case, case.response(case.wrong))
    paid = {attack: reward(case, response) for attack, response in attacks(name, case).items()}
    assert {attack: value for attack, value in paid.items() if value > honest + 1e-9} == {}


@pytest.mark.parametrize(
    ("name", "response"), [(name, text) for name, texts in FAULTS.items() for text in texts]
)
def test_faults_of_style_cost(name, response):
    case = CASES[name]
    assert reward(case, response) < reward(case, case.response(case.wrong))


@pytest.mark.parametrize("name", sorted(ANSWERS.keys() - {"reflection"}))  # has a rule for two answers
def test_the_last_box_or_the_first_tag_is_the_answer(name):
    """Giving answers one after another helps nobody who does not know which one is right."""
    case = ANSWERS[name]
    head, closing, answer = case.slot.rpartition("</think>")
    answers = [answer.replace("@", text) for text in (case.truth, case.wrong)]
    read = 1 if "\\boxed{" in answer else 0
    for order in (answers, answers[::-1]):
        alone = components(case, head + closing + order[read])["accuracy"]
        assert components(case, head + closing + "".join(order))["accuracy"] == alone


def test_known_srpo_pays_a_feigned_mistake_more_than_two_right_answers():
    """By SRPO's table: 1 for wrong, then right; 0.75 for right twice. And two guesses out of n pay 1.25 / n,
    where one guess twice pays 0.75 / n. `accuracy` has neither hole: only the last answer counts."""
    case = CASES["reflection"]
    first, answer, last = case.slot.split("@")[0], case.slot.split("@")[1], case.slot.split("@")[2]
    found = components(case, f"{first}4{answer}3{last}")
    assert found == {"reflection": 1.0, "accuracy": 1.0, "format": 1.0}
    assert components(case, case.response("3"))["reflection"] == 0.75
    assert components(case, f"{first}3{answer}4{last}") == {
        "reflection": 0.25,
        "accuracy": 0.0,
        "format": 1.0,
    }


def test_known_easyr1_takes_an_empty_thought_for_one():
    """The reference tables hold `format` to it; `thought` is the fix."""
    empty = "<think></think>\\boxed{4}"
    assert components(CASES["format"], empty) == {"format": 1.0}
    assert components(CASES["thought"], empty) == {"thought": 0.0}


def test_known_average_precision_costs_nothing_for_boxes_of_other_labels():
    """As in COCO; `map_times_count` is the fix."""
    case = CASES["boxes"]
    spam = ", ".join('{"bbox_2d": [1, 1, 9, 9], "label": "hen"}' for _ in range(20))
    found = components(case, case.response(f"{case.truth[:-1]}, {spam}]"))
    assert found["map"] == pytest.approx(1.0)
    assert found["map_times_count"] == pytest.approx(2 / 22)


def test_known_a_box_around_everything_has_half_of_giou():
    """(GIoU + 1) / 2 of a box around the truth is (IoU + 1) / 2, and of no box 0; `iou` is the fix."""
    case = CASES["box"]
    found = components(case, case.response("[0, 0, 640, 480]"))
    assert found["iou"] < 0.01
    assert 0.5 < found["giou"] < 0.51
    assert components(case, case.response(case.wrong))["giou"] > 0.6


def test_known_exploration_pays_for_more_candidates():
    """As AEPO means it: 1 / sqrt(n k) for the first hit at k of n, and -1 / n instead of -1 for none."""
    case = CASES["gui_candidates"]
    for places, expected in (
        ("[80, 20]", -1.0),
        ("[80, 20] [0, 0] [9, 99]", -1 / 3),
        ("[80, 20] [30, 30]", 1 / math.sqrt(4)),
        ("[30, 30]", 1.0),
    ):
        found = components(case, case.response(places))
        assert found["exploration"] == pytest.approx(expected)
        assert found["accuracy"] == float(expected == 1.0)


def test_known_two_answers_are_near_to_a_long_truth():
    """`anls` and `similarity` are of characters: the other answer counts as a misspelling."""
    case = CASES["anls"]
    assert components(case, case.response("red cat or red dog"))["accuracy"] == 0.0
    assert 0.5 < components(case, case.response("red dog, cat"))["accuracy"] < 0.6
