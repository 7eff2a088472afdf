"""What is kept of a batch whose loss or gradient was not finite, and when a run gives up."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmrl.atomic import atomic_folder
from mmrl.train.experience import Experience

KEPT = 8  # steps, the newest; a run that gives up after fewer skipped updates in a row has all of those
TEXT_LIMIT = 20_000  # characters of one text; a response's tokens are kept whole, in ``arrays.npz``


def save_incident(
    workdir: Path,
    step: int,
    experience: Experience,
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
                file.writelines(json.dumps(row) + "\n" for row in _rows(experience))
            np.savez_compressed(part / "arrays.npz", **_arrays(experience))
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


def count_skipped(in_a_row: int, skipped: bool, most: int, folder: Path) -> int:
    """Updates skipped in a row, now that one more was tried; ``folder`` has what is known of them.

    Raises ValueError when they are ``most``: a policy that gives no finite loss does not recover by itself.
    """
    in_a_row = in_a_row + 1 if skipped else 0
    if in_a_row >= most:
        raise ValueError(
            f"{in_a_row} updates in a row had a loss or gradient that is not finite; what is known of them"
            f" is in {folder}. Lower optimizer.learning_rate, or go on from an earlier checkpoint"
        )
    return in_a_row


def _step_of(folder: Path) -> str:
    return folder.name.partition("_draw_")[0]


def _rows(experience: Experience) -> Iterator[dict[str, Any]]:
    for sample, texts in zip(experience.samples, experience.texts, strict=True):
        yield {
            "id": sample.id,
            "problem": sample.problem[:TEXT_LIMIT],
            "answer": sample.answer[:TEXT_LIMIT],
            "images": [_fingerprint(image) for image in sample.images],
            "responses": [text[:TEXT_LIMIT] for text in texts],
        }


def _fingerprint(image: bytes | str) -> str:
    return image if isinstance(image, str) else f"sha256:{hashlib.sha256(image).hexdigest()}"


def _arrays(experience: Experience) -> dict[str, Any]:
    prompts, responses = experience.prompts, experience.responses
    arrays = {
        "row": experience.rows,
        "prompt.tokens": prompts.tokens,
        "prompt.mask": prompts.mask,
        "response.tokens": responses.tokens,
        "response.mask": responses.mask,
        "response.logprob": responses.logprob,
        "response.log_kept": responses.log_kept,
        "response.stop": responses.stop,
        "response.valid": responses.valid,
        "reward": experience.rewards,
        **{f"component.{name}": values for name, values in experience.components.items()},
        **{f"fact.{name}": values for name, values in experience.facts.items()},
    }
    if responses.observed is not None:
        arrays["response.real"] = responses.observed.real
    return {name: np.asarray(values) for name, values in arrays.items()}
