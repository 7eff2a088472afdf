"""Verifiers against the reward functions of PAPO, VPPO, EasyR1, TRL and VLM-R1.

``docs/rewards.md`` lists the kinds of answers on which mmrl and they part; with the vectors of this
repository the list must be complete and true. Other vectors must agree by the same rules (``disagreements``).
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cache
from pathlib import Path

import pytest
import vectors
from disagreements import KINDS, Difference, kind_of

from mmrl.rewards.math import equal
from mmrl.rewards.reward import score
from mmrl.rewards.text import last_boxed
from mmrl.rewards.verifier import READERS
from mmrl.rewards.verifiers import VERIFIERS
from mmrl.sample import Sample

REPOSITORY = Path(__file__).resolve().parents[2]
OWN_VECTORS = (REPOSITORY / "third_party" / "golden").resolve() == vectors.GOLDEN_DIR.resolve()
RECALL = 0.97  # of the answers that a reference accepts
AGREEMENT = 0.97  # with mathruler-style grading, but for what it gets wrong
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
def components(verifier, answer, response, place):
    return VERIFIERS[verifier](Sample("golden", "", answer, facts={"answer_in": place}), response)


def ours(verifier, row, place="box"):
    return components(verifier, row["ground_truth"], row["response"], place)


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


@pytest.mark.parametrize(("column", "place"), [("math", "box"), ("r1v", "tag_or_all")])
def test_format_agrees_on_every_row(column, place):
    differing = [
        row["response"]
        for row in rows(column)
        if row["scores"][column]["format"] != ours("math", row, place)["format"]
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
    ("column", "place"), [("math", "box"), ("r1v", "tag_or_all"), ("mathruler_grade_extracted", "box")]
)
def test_what_mathruler_accepts_is_accepted(column, place, record_property):
    graded = [
        (accuracy(row, column), ours("math", row, place)["accuracy"])
        for row in rows(column)
        if row["ground_truth"].strip() and (place != "box" or last_boxed(row["response"]))
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
        (accuracy(row, "dapo"), ours("math", row, "line")["accuracy"])
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


def differences(reference):
    """Rows on which a reference gave a value, how many of them mmrl judges alike, and the other ones."""
    alike, differing = 0, []
    for row in rows(reference.column):
        if not reference.is_about(row):
            continue
        accepted, own = accuracy(row, reference.column) == 1.0, reference.judged(row)
        if accepted == (own == 1.0):
            alike += 1
        else:
            given = reference.given(row)
            seconded = any(
                judges_like(row, column, own) for column in SECOND_OPINIONS if column != reference.column
            )
            differing.append(
                Difference(reference.column, accepted, given, row["ground_truth"], row["response"], seconded)
            )
    return alike, differing


def judges_like(row, column, own):
    value = row["scores"][column]
    return value is not None and not is_error(value) and accuracy(row, column) == own


@dataclass(frozen=True)
class Reference:
    """A column of the table, the verifier that answers to it, and the rows that both are about."""

    column: str
    verifier: str | None  # None: the bare answer, judged by `equal`
    place: str | None  # of the answer; None: the tag, else the box, else all
    is_about: Callable[[dict], bool]

    def given(self, row):
        return row["answer"] if self.verifier is None else READERS[self.place_in(row)](row["response"])

    def judged(self, row):
        if self.verifier is None:
            return float(equal(row["answer"], row["ground_truth"]))
        return ours(self.verifier, row, self.place_in(row))["accuracy"]

    def place_in(self, row):
        return self.place or ("tag" if has_tag(row) else "box" if "\\boxed{" in row["response"] else "all")


def has_tag(row):
    return "<answer>" in row["response"]


def has_letter(row):
    return re.fullmatch("[A-Z]", row["ground_truth"].strip()) is not None


def has_number(row):
    return plain(row["ground_truth"].strip()) is not None


REFERENCES = (
    Reference("math", "math", "box", lambda row: True),
    Reference("mathruler_grade_extracted", "math", "box", lambda row: True),
    Reference("mathruler_grade_raw", None, None, lambda row: row["answer"].strip() != ""),
    Reference("r1v", "math", "tag_or_all", lambda row: True),
    Reference("dapo", "math", "line", lambda row: True),
    Reference("trl_accuracy", "math", "box", lambda row: "\\boxed{" in row["response"]),
    Reference("math_verify_parse_both", "math", "box", lambda row: "\\boxed{" in row["response"]),
    Reference("vlmr1_grpo_accuracy", "math", "tag", has_tag),
    Reference("vlmr1_default_accuracy", "math", "tag", lambda row: has_tag(row) and not has_letter(row)),
    Reference("vlmr1_math", "math", "tag", has_tag),
    Reference("vlmr1_mcq", "choice", "tag", lambda row: has_tag(row) and has_letter(row)),
    Reference("vlmr1_numeric", "number", "tag", lambda row: has_tag(row) and has_number(row)),
    Reference(
        "vlmr1_all_match", "exact", "tag", lambda row: has_tag(row) and row["ground_truth"].strip() != ""
    ),
    Reference(
        "vlmr1_yes_no", "yes_no", None, lambda row: row["ground_truth"].strip().lower() in ("yes", "no")
    ),
)
MATHRULER = ("math", "mathruler_grade_extracted", "mathruler_grade_raw", "r1v", "dapo")
# Columns that judge the answer of a row wherever it stands: a second opinion of a verdict.
SECOND_OPINIONS = ("math", "mathruler_grade_raw", "trl_accuracy", "math_verify_parse_both", "vlmr1_math")


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda reference: reference.column)
def test_agreement_but_for_what_the_reference_gets_wrong(reference, record_property):
    """Left out are the differences of a kind in which mmrl is right; those that are open count against it."""
    alike, differing = differences(reference)
    against = [d for d in differing if (kind := kind_of(d)) is None or kind.right != "mmrl"]
    if reference.column in MATHRULER:
        assert alike / (alike + len(against)) >= AGREEMENT, against
    else:  # some are about few rows
        assert len(against) <= max(2, 0.1 * (alike + len(against))), against
    record_property("golden", ("07_rewards", f"text_{reference.column}"))


@pytest.mark.skipif(not OWN_VECTORS, reason="the table is about the vectors of this repository")
def test_the_table_of_differences_is_complete_and_true():
    """Every difference is of a kind; the manual counts them by kind and column, and its examples are some."""
    found, examples = {}, {}
    for reference in REFERENCES:
        for difference in differences(reference)[1]:
            kind = kind_of(difference)
            assert kind is not None, difference
            counts = found.setdefault(kind.name, dict.fromkeys(COLUMNS, 0))
            counts[reference.column] += 1
            examples.setdefault(kind.name, set()).add((difference.given, difference.truth))
    assert {kind.name for kind in KINDS} == found.keys()
    manual = documented()
    assert {name: row[1] for name, row in manual.items()} == found
    for kind in KINDS:
        right, _, example = manual[kind.name]
        assert right == kind.right
        assert example in examples[kind.name], kind.name


COLUMNS = tuple(reference.column for reference in REFERENCES)


def documented():
    """Name of the kind -> who is right, counts by column, an example of answer and truth."""
    text = (REPOSITORY / "docs" / "rewards.md").read_text().split("<!-- kinds of differences -->\n")[1]
    lines = itertools.takewhile(lambda line: line.startswith("|"), text.splitlines()[2:])
    table = {}
    for line in lines:
        name, right, _, answer, truth, counted = (part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1])
        counts = dict.fromkeys(COLUMNS, 0)
        for part in counted.split(", "):
            column, number = part.rsplit(" ", 1)
            counts[column] = int(number)
        table[name.replace("\\|", "|")] = (right, counts, (cell(answer), cell(truth)))
    return table


def cell(text):
    text = text.replace("\\|", "|")
    return {"(none)": None, "(empty)": "", "1+1+...+1": "+".join("1" * 401)}.get(
        text.strip("`"), text.strip("`")
    )
