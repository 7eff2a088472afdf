"""Makes ``vectors`` and ``exclusions`` importable and prints the coverage of the golden vectors."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest
import vectors
from exclusions import exclusion

COVERED: dict[str, set[str]] = {}


@pytest.fixture(autouse=True)
def _record_golden_case(request, record_property):
    """Notes which case a test was given, so that the summary can count those that passed."""
    case = getattr(request.node, "callspec", None) and request.node.callspec.params.get("case")
    if isinstance(case, vectors.Case):
        record_property("golden", (case.family, case.id))


def pytest_runtest_logreport(report):
    """Counts the cases that passed; a test without a parameter ``case`` records ("golden", (family, id))."""
    if report.when == "call" and report.passed:
        for name, value in report.user_properties:
            if name == "golden":
                COVERED.setdefault(value[0], set()).add(value[1])


def pytest_terminal_summary(terminalreporter):
    if not COVERED:
        return
    terminalreporter.section("golden vectors")
    for family in sorted(COVERED):
        every = vectors.cases(family[:2])
        left_out = [case for case in every if exclusion(case)]
        terminalreporter.write_line(
            f"{family}: {len(COVERED[family])} of {len(every)} cases checked, "
            f"{len(left_out)} left out by the table, "
            f"{len({case.id for case in every} - COVERED[family] - {case.id for case in left_out})} not run"
        )
