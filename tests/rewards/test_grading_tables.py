"""Pairs of a gold answer and a response with the right verdict, of the kinds that public reports are about.

Every table of ``tests/cases/grading`` is graded whole. What mmrl judges otherwise is listed here and in
``docs/rewards.md``, each with its reason, and nothing else may be.
"""

import json
from pathlib import Path

import pytest

from mmrl.rewards.verifiers import VERIFIERS
from mmrl.sample import Sample

REPOSITORY = Path(__file__).resolve().parents[2]
TABLES = sorted((REPOSITORY / "tests" / "cases" / "grading").glob("*.jsonl"))
WRONG_AT_MOST = 0.02  # of the pairs that are not debatable
# Verifier, gold answer and answer: of what mmrl judges otherwise than the table.
ACCEPTED = {
    ("math", "1:2", "2:4"): "a ratio is a number",
    ("math", "B", "B. 12 cm"): "letters with a text are for the verifier `choice`",
    ("choice", "B", "B. 14 cm"): "without options nobody can tell whose text it is",
    ("choice", "1", "B"): "an index may count from 0 or from 1; the row is broken",
    ("number", "1500000", "1.5 m"): "a small m is a metre",
}


def pairs(table):
    return [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]


def verdict(pair):
    """1, 0, or None where the row itself cannot be graded."""
    facts = pair.get("facts") or {}
    sample = Sample("row", "q", pair["gold"], verifier=pair["verifier"], facts=facts)
    try:
        return VERIFIERS[pair["verifier"]](sample, pair["response"])["accuracy"]
    except ValueError:
        return None


def key(pair):
    boxed = pair["response"].partition("\\boxed{")[2]
    return pair["verifier"], pair["gold"], boxed[:-1] or pair["response"]


def is_accepted(pair):
    """Of rows with and without options only the latter ones, if the text is what is debatable."""
    without = key(pair) != ("choice", "B", "B. 14 cm") or not pair["facts"]
    return key(pair) in ACCEPTED and without


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.stem)
def test_verdicts(table):
    rows = pairs(table)
    assert rows
    wrong = [pair for pair in rows if verdict(pair) != pair["right"]]
    assert [(key(pair), pair["right"]) for pair in wrong if not is_accepted(pair)] == []
    certain = [pair for pair in rows if not pair.get("debatable")]
    assert sum(pair in wrong for pair in certain) <= WRONG_AT_MOST * len(certain)


def test_what_is_judged_otherwise_is_listed_and_nothing_more():
    wrong = {key(pair) for table in TABLES for pair in pairs(table) if verdict(pair) != pair["right"]}
    assert wrong == ACCEPTED.keys()


def test_the_manual_lists_what_is_judged_otherwise():
    text = (REPOSITORY / "docs" / "rewards.md").read_text().split("<!-- judged otherwise -->\n")[1]
    rows = [line.split("|")[1:-1] for line in text.split("\n\n")[0].splitlines()[2:]]
    listed = {tuple(cell.strip().strip("`") for cell in row[:3]): row[-1].strip() for row in rows}
    assert listed == ACCEPTED
