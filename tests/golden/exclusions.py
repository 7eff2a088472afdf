"""What mmrl leaves out of the golden vectors, in one table: which cases, and why.

``docs/algorithms.md`` shows the same table to readers; a test holds the two together.
"""

from collections.abc import Callable
from dataclasses import dataclass

from vectors import Case


@dataclass(frozen=True)
class Exclusion:
    """Cases of a family for which ``applies`` holds are not reproduced, for ``reason``."""

    what: str
    reason: str
    applies: Callable[[Case], bool]


EXCLUSIONS: tuple[Exclusion, ...] = (
    Exclusion(
        "cases tagged `reference_bug`",
        "they record a defect of the reference",
        lambda case: "reference_bug" in case.tags,
    ),
)


def exclusion(case: Case) -> Exclusion | None:
    """The first row of the table that leaves ``case`` out, if any."""
    return next((row for row in EXCLUSIONS if row.applies(case)), None)
