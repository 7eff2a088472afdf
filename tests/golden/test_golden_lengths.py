"""Overlong penalties of EasyR1 and TRL, VLM-R1's repetition penalty, and forms, on the reference tables."""

import pytest
import vectors

from mmrl.rewards.style import overlong, repetition, think_answer, think_boxed
from mmrl.sample import Sample


def rows(table):
    return vectors.tables("07")[table]


def scored(table, column):
    """Rows and what the reference gave, where it gave a value."""
    pairs = [(row, row["scores"][column]) for row in rows(table)]
    return [(row, value) for row, value in pairs if isinstance(value, int | float)]


@pytest.mark.parametrize("column", ["dapo", "trl"])
def test_overlong(column, record_property):
    assert rows("overlong")
    for row in rows("overlong"):
        length, most, buffer = (
            row[name] for name in ("response_length", "max_response_length", "overlong_buffer_length")
        )
        facts = {"rollout": {"tokens": length, "max_tokens": most}, "overlong_buffer": buffer}
        found = overlong(Sample("golden", "", "", facts=facts), "")["overlong"]
        assert found == pytest.approx(row[column], abs=1e-6), row
    record_property("golden", ("07_rewards", "overlong"))


def test_repetition(record_property):
    assert scored("detection", "repetition")
    for row, expected in scored("detection", "repetition"):
        found = repetition(Sample("golden", "", ""), row["response"])["repetition"]
        assert found == pytest.approx(expected, abs=1e-6), row
    record_property("golden", ("07_rewards", "det_repetition"))


@pytest.mark.parametrize(("column", "verifier"), [("math", think_boxed), ("r1v", think_answer)])
def test_forms(column, verifier):
    """An empty thought has the form: EasyR1's rule asks for tags alone, and the tables hold it to that."""
    graded = [
        (row, row["scores"][column]["format"])
        for row in rows("text")
        if isinstance(row["scores"][column], dict) and "format" in row["scores"][column]
    ]
    assert graded
    differing = [
        row["response"]
        for row, expected in graded
        if verifier(Sample("golden", "", ""), row["response"])["format"] != expected
    ]
    assert differing == []
