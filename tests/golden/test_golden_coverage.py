"""Every golden case is either checked or left out by the table, and the table says nothing that is not so."""

from pathlib import Path

import pytest
import test_golden_advantages
import test_golden_controllers
import test_golden_divergences
import test_golden_papo
import test_golden_policy_losses
import test_golden_vppo
import vectors
from exclusions import EXCLUSIONS, exclusion

DOCS = Path(__file__).resolve().parents[2] / "docs" / "algorithms.md"

BY_FUNCTION = {
    "01": test_golden_advantages.CHECKS,
    "03": test_golden_divergences.CHECKS,
    "04": test_golden_papo.CHECKS,
    "05": test_golden_vppo.CHECKS,
    "08": test_golden_controllers.CHECKS,
}


@pytest.mark.parametrize("family", sorted(BY_FUNCTION))
def test_every_function_is_checked_or_left_out(family):
    unknown = {
        case.function
        for case in vectors.cases(family)
        if exclusion(case) is None and case.function not in BY_FUNCTION[family]
    }
    assert not unknown


def test_every_project_with_policy_losses_is_checked():
    projects = {case.project for case in vectors.cases("02") if exclusion(case) is None}
    assert projects <= set(test_golden_policy_losses.CHECKS)


def test_papo_vppo_and_easyr1_leave_out_only_defects():
    for family in ("01", "02", "03", "04", "05", "08"):
        for case in vectors.cases(family):
            if case.project in ("PAPO", "VPPO-RL", "EasyR1") and exclusion(case):
                assert "reference_bug" in case.tags, case.id


def test_the_manual_shows_the_table():
    """docs/algorithms.md has a row for each exclusion, with its reason, and no other."""
    section = DOCS.read_text().split("## What is left out")[1].split("\n## ")[0]
    rows = [
        tuple(cell.strip() for cell in line.split("|")[1:3])
        for line in section.splitlines()
        if line[:1] == "|"
    ]
    assert rows[2:] == [(row.what, row.reason) for row in EXCLUSIONS]
