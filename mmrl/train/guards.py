"""Guards of a run: rows that cannot be used, and updates whose loss or gradient is not finite."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmrl import hosts
from mmrl.atomic import atomic_folder, read_jsonl, set_aside, write_jsonl
from mmrl.data.pipeline import Skipped
from mmrl.train.rollout_batch import RolloutBatch

KEPT = 8  # steps, the newest; a run that gives up after fewer skipped updates in a row has all of those
TEXT_LIMIT = 20_000  # characters of one text; a response's tokens are kept whole, in ``arrays.npz``


@dataclass
class Guards:
    """Counts of what a stage could not use, at whose limits it stops; the same in every process."""

    path: Path  # list of the rows that could not be used
    rows: int  # of all training data
    max_broken: float  # share of them that may be unusable
    max_skipped: int  # updates in a row
    skipped_in_a_row: int = 0
    reasons: dict[str, str] = field(default_factory=dict)  # of unusable rows, by id

    def note_rows(self, skipped: Iterable[Skipped]) -> None:
        """Add rows to the list.

        Raises ValueError when they have become more than the share that may be unusable.
        """
        new = {row.id: row.reason for row in skipped if row.id not in self.reasons}
        if not new:
            return
        self.reasons |= new
        if hosts.is_main_process():
            write_jsonl(self.path, ({"id": name, "reason": reason} for name, reason in self.reasons.items()))
        if len(self.reasons) > self.max_broken * self.rows:
            last = ", ".join(f"{name} ({reason})" for name, reason in [*new.items()][:5])
            raise ValueError(
                f"{len(self.reasons)} of {self.rows} rows of the data cannot be used, more than the share of "
                f"config.data.max_broken={self.max_broken}; the last are {last}; all are in {self.path}"
            )

    def count_update(self, skipped: bool, folder: Path) -> None:
        """Count an update; ``folder`` has what is known of those that were skipped.

        Raises ValueError when too many in a row were: such a policy does not recover by itself.
        """
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        if self.skipped_in_a_row >= self.max_skipped:
            raise ValueError(
                f"{self.skipped_in_a_row} updates in a row had a loss or gradient that is not finite; what is"
                f" known of them is in {folder}. Lower optimizer.learning_rate, or go on from an earlier"
                " checkpoint"
            )


def open_guards(
    path: Path, rows: int, max_broken: float, max_skipped: int, broken: Iterable[Skipped] = ()
) -> Guards:
    """Guards with the list at ``path`` of an earlier start, and the rows known to be ``broken``."""
    found, damaged = read_jsonl(path, _damage_of_row)
    hosts.barrier()  # until all have read it
    if damaged and hosts.is_main_process():
        set_aside(damaged, hosts.say)
        write_jsonl(path, found)
    guards = Guards(path, rows, max_broken, max_skipped, reasons={row["id"]: row["reason"] for row in found})
    guards.note_rows(broken)
    return guards


def _damage_of_row(row: dict[str, Any]) -> str | None:
    named = isinstance(row.get("id"), str) and isinstance(row.get("reason"), str)
    return None if named else "it has no id and reason"


def save_incident(
    workdir: Path,
    step: int,
    batch: RolloutBatch,
    metrics: Mapping[str, float],
    process: int = 0,
    draw: int = 0,
) -> Path:
    """Keep the batch of ``step`` in ``{workdir}/incidents/step_000012``; other processes than the first in
    ``{workdir}/incidents/process_1`` and so on, each its own rows. What was drawn after the first batch of a
    step (dynamic sampling) is kept in ``step_000012_draw_1`` and so on.

    - ``rows.jsonl``: a row a prompt: id, problem, answer, fingerprints of its images, its responses' texts.
    - ``arrays.npz``: ``row`` [b], its number in the whole batch; ``prompt.*`` [b p]; ``response.*`` [b g r]
      and [b g]; ``reward``, ``component.*`` and ``fact.*`` [b g]. Images are not copied: the ids and
      fingerprints lead to them.
    - ``metrics.json``: what is known of the step; NaN and Infinity stand there as Python's ``json`` has them.

    The folder appears whole or not at all, in the place of an earlier one of the same step. Only the newest
    ``KEPT`` steps of a process stay. Gives the folder. Raises ValueError if it cannot be written.
    """
    incidents = workdir / "incidents" / (f"process_{process}" if process else "")
    folder = incidents / (f"step_{step:06d}" + (f"_draw_{draw}" if draw else ""))
    try:
        with atomic_folder(folder) as part:
            with (part / "rows.jsonl").open("w") as file:
                file.writelines(json.dumps(row) + "\n" for row in _rows(batch))
            np.savez_compressed(part / "arrays.npz", **_arrays(batch))
            values = {"step": step, **{name: float(value) for name, value in metrics.items()}}
            (part / "metrics.json").write_text(json.dumps(values, indent=1) + "\n")
        kept = sorted(incidents.glob("step_*"), key=lambda path: path.stat().st_mtime, reverse=True)
        steps = list(dict.fromkeys(_step_of(path) for path in (folder, *kept)))[:KEPT]
        for old in kept:
            if _step_of(old) not in steps:
                shutil.rmtree(old)
    except OSError as error:
        raise ValueError(f"step {step}: its batch cannot be kept in {folder}: {error}") from error
    return folder


def _step_of(folder: Path) -> str:
    return folder.name.partition("_draw_")[0]


def _rows(batch: RolloutBatch) -> Iterator[dict[str, Any]]:
    for sample, texts in zip(batch.samples, batch.texts, strict=True):
        yield {
            "id": sample.id,
            "problem": sample.problem[:TEXT_LIMIT],
            "answer": sample.answer[:TEXT_LIMIT],
            "images": [_fingerprint(image) for image in sample.images],
            "responses": [text[:TEXT_LIMIT] for text in texts],
        }


def _fingerprint(image: bytes | str) -> str:
    return image if isinstance(image, str) else f"sha256:{hashlib.sha256(image).hexdigest()}"


def _arrays(batch: RolloutBatch) -> dict[str, Any]:
    prompts, responses, stats = batch.prompts, batch.responses, batch.local_stats
    arrays = {
        "row": batch.rows,
        "prompt.tokens": prompts.tokens,
        "prompt.mask": prompts.mask,
        "response.tokens": responses.tokens,
        "response.mask": responses.mask,
        "response.logprob": responses.logprob,
        "response.log_kept": responses.log_kept,
        "response.stop": responses.stop,
        "response.valid": responses.valid,
        "reward": stats.rewards,
        **{f"component.{name}": values for name, values in stats.components.items()},
        **{f"fact.{name}": values for name, values in stats.episode_metrics.items()},
    }
    if responses.observed is not None:
        arrays["response.real"] = responses.observed.real
    return {name: np.asarray(values) for name, values in arrays.items()}
