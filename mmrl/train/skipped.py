"""The list of rows that a run could not use, and the share of them at which it stops."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrl import hosts
from mmrl.atomic import read_jsonl, set_aside, write_jsonl
from mmrl.data.pipeline import Skipped
from mmrl.hosts import say


@dataclass
class Ledger:
    """Rows that could not be used, by id; the same in every process."""

    path: Path
    rows: int  # of all training data
    most: float  # share of them that may be unusable
    reasons: dict[str, str]


def open_ledger(path: Path, rows: int, most: float, broken: Iterable[Skipped]) -> Ledger:
    """The list at ``path``: what an earlier start of the run found, and what this one knows to begin with."""
    found, damaged = read_jsonl(path, _wrong)
    hosts.barrier()  # until all have read it
    if damaged and hosts.is_main_process():
        set_aside(damaged, say)
        write_jsonl(path, found)
    ledger = Ledger(path, rows, most, {row["id"]: row["reason"] for row in found})
    note(ledger, broken)
    return ledger


def _wrong(row: dict[str, Any]) -> str | None:
    named = isinstance(row.get("id"), str) and isinstance(row.get("reason"), str)
    return None if named else "it has no id and reason"


def note(ledger: Ledger, skipped: Iterable[Skipped]) -> None:
    """Add rows to the list.

    Raises:
      ValueError: they have become more than the share that may be unusable.
    """
    new = {one.id: one.reason for one in skipped if one.id not in ledger.reasons}
    if not new:
        return
    ledger.reasons |= new
    if hosts.is_main_process():
        rows = ({"id": name, "reason": reason} for name, reason in ledger.reasons.items())
        write_jsonl(ledger.path, rows)
    if len(ledger.reasons) > ledger.most * ledger.rows:
        last = ", ".join(f"{name} ({reason})" for name, reason in [*new.items()][:5])
        raise ValueError(
            f"{len(ledger.reasons)} of {ledger.rows} rows of the data cannot be used, more than the share of "
            f"config.data.max_broken={ledger.most}; the last are {last}; all are in {ledger.path}"
        )
