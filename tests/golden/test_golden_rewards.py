"""Verifiers against the reward functions of PAPO, VPPO and EasyR1.

``docs/rewards.md`` lists the answers on which mmrl and mathruler part; with the vectors of this repository
the list must be complete and true. Other vectors must agree by the rules of the other tests.
"""

import re
from decimal import Decimal, InvalidOperation
from functools import cache
from pathlib import Path

import pytest
import vectors

from mmrl.rewards.math import equal
from mmrl.rewards.text import last_boxed
from mmrl.rewards.verifier import VERIFIERS, score
from mmrl.sample import Sample

REPOSITORY = Path(__file__).resolve().parents[2]
OWN_VECTORS = (REPOSITORY / "third_party" / "golden").resolve() == vectors.GOLDEN_DIR.resolve()
RECALL = 0.97  # of the answers that a reference accepts
HOSTILE = (
    "injection",
    "long",
    "no_box",
    "unclosed",
    "empty",
    "deep",
    "many_boxes",
    "fbox",
    "whitespace",
    "only_tags",
)


def rows(column):
    """The rows on which the reference gave a value (it raised or hung on the others)."""
    every = vectors.tables("07")["text"]
    return [row for row in every if row["scores"][column] is not None and not is_error(row["scores"][column])]


def is_error(value):
    return isinstance(value, dict) and "error" in value


@cache
def components(verifier, answer, response):
    return VERIFIERS[verifier](Sample("golden", "", answer), response)


def ours(verifier, row):
    return components(verifier, row["ground_truth"], row["response"])


def case(name):
    return next(case for case in vectors.cases("07") if case.id == name)


def accuracy(row, column):
    """The reference's accuracy as 0 or 1 (DAPO's wrong is -1)."""
    value = row["scores"][column]
    return max(0.0, float(value["accuracy"] if isinstance(value, dict) else value))


def recall(graded):
    """Share of 1 among our accuracies of answers the reference accepts; (reference, ours) pairs."""
    accepted = [own for reference, own in graded if reference == 1.0]
    assert accepted
    return sum(accepted) / len(accepted)


@pytest.mark.parametrize(("column", "verifier"), [("math", "math"), ("r1v", "math_in_tag")])
def test_format_agrees_on_every_row(column, verifier):
    differing = [
        row["response"]
        for row in rows(column)
        if row["scores"][column]["format"] != ours(verifier, row)["format"]
    ]
    assert differing == []


@pytest.mark.parametrize("name", ["text_math", "text_math_wo_format"])
def test_reward_of_papo_and_vppo_where_accuracy_agrees(name, record_property):
    reference = case(name)
    share = reference.hparams.get("format_weight", 0.0)
    weights = {"accuracy": 1.0 - share, "format": share}
    column, checked = name.removeprefix("text_"), 0
    for row in rows(column):
        expected, found = row["scores"][column], ours("math", row)
        if expected["accuracy"] == found["accuracy"]:
            checked += 1
            assert score(found, weights) == pytest.approx(expected["overall"], abs=1e-12), row["response"]
    assert checked > 0.8 * len(rows(column))
    record_property("golden", (reference.family, reference.id))


@pytest.mark.parametrize(
    ("column", "verifier"), [("math", "math"), ("r1v", "math_in_tag"), ("mathruler_grade_extracted", "math")]
)
def test_what_mathruler_accepts_is_accepted(column, verifier, record_property):
    graded = [
        (accuracy(row, column), ours(verifier, row)["accuracy"])
        for row in rows(column)
        if row["ground_truth"].strip() and (verifier != "math" or last_boxed(row["response"]))
    ]
    assert recall(graded) >= RECALL
    record_property("golden", ("07_rewards", f"text_{column}"))


def test_bare_answers_that_mathruler_accepts_are_accepted(record_property):
    graded = [
        (accuracy(row, "mathruler_grade_raw"), float(equal(row["answer"], row["ground_truth"])))
        for row in rows("mathruler_grade_raw")
        if row["answer"].strip()
    ]
    assert recall(graded) >= RECALL
    record_property("golden", ("07_rewards", "text_mathruler_grade_raw"))


def test_answer_lines_that_dapo_accepts_are_accepted(record_property):
    """But for what DAPO's spelling rules let pass: misplaced commas, articles, its own marker of failure."""
    graded = [
        (accuracy(row, "dapo"), ours("math_in_line", row)["accuracy"])
        for row in rows("dapo")
        if accuracy(row, "dapo") == 1.0
        and row["ground_truth"] != "[INVALID]"
        and not re.search(r"(?i)answer\s*:\s*(?:an?\s|the\s|\d{1,2},\d{4,}|\d*,\d{4,})", row["response"])
    ]
    assert recall(graded) >= 0.9  # some twenty rows: each is five points
    record_property("golden", ("07_rewards", "text_dapo"))


def test_hostile_answers_are_right_only_if_a_second_implementation_says_so():
    hostile = [row for row in vectors.tables("07")["text"] if row["category"].startswith(HOSTILE)]
    assert hostile
    for row in hostile:
        if ours("math", row)["accuracy"] == 1.0:
            votes = [row["scores"][column] for column in ("trl_accuracy", "math_verify_parse_both", "math")]
            accepted = [v["accuracy"] if isinstance(v, dict) and "accuracy" in v else v for v in votes]
            assert any(vote in (1.0, True) for vote in accepted), row
            assert last_boxed(row["response"]), row


def test_plain_numbers_are_right_exactly_when_equal():
    checked = 0
    for row in vectors.tables("07")["text"]:
        given, truth = plain(last_boxed(row["response"]) or ""), plain(row["ground_truth"])
        if given is not None and truth is not None:
            checked += 1
            assert ours("math", row)["accuracy"] == float(abs(given - truth) <= Decimal("1e-6")), row
    assert checked > 20


def plain(text):
    if not re.fullmatch(r"[+-]?\d+(\.\d+)?", text, re.ASCII):
        return None
    try:
        return Decimal(text)
    except InvalidOperation:
        return None


@pytest.mark.skipif(not OWN_VECTORS, reason="the table is about the vectors of this repository")
def test_the_table_of_differences_is_complete_and_true():
    found = {
        (
            last_boxed(row["response"]),
            row["ground_truth"],
            accuracy(row, "math"),
            ours("math", row)["accuracy"],
        )
        for row in rows("math")
        if accuracy(row, "math") != ours("math", row)["accuracy"]
    }
    assert found == documented()


def documented():
    text = (REPOSITORY / "docs" / "rewards.md").read_text()
    lines = text.split("| who is right |\n|---|---|---|---|---|\n")[1].splitlines()
    table = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("|")]
    return {(cell(answer), cell(truth), float(ref), float(own)) for answer, truth, ref, own, _ in table}


def cell(text):
    text = text.strip().replace("\\|", "|")
    return {"(no box)": None, "(empty)": ""}.get(text, text[1:-1])
