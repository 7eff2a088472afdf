"""Runs read from their folders: config, metrics, held-out responses with their samples, weights."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mmrl.atomic import is_number, read_jsonl, warn_of
from mmrl.config import Config, MeshConfig
from mmrl.open import OpenModel, open_data, open_model, resolve_model_path
from mmrl.run_folder import read_config, read_metrics
from mmrl.sample import Sample
from mmrl.train import checkpoint
from mmrl.train.evaluate import wrong_response
from mmrl.types import Params

Row = Mapping[str, Any]  # of responses_before.jsonl and responses_after.jsonl
RIGHT, WRONG, UNGRADED = "right", "wrong", "ungraded"
ERRORS = ("perception_error", "reasoning_error", "format_error")  # of verifiers that tell them apart
KINDS = (RIGHT, *ERRORS, WRONG, UNGRADED)


@dataclass(frozen=True)
class Run:
    """Contents of a run's folder so far. Weights are read by `load_params`."""

    workdir: Path
    config: Config
    metrics: list[dict[str, float]]  # a row a step
    before: list[dict[str, Any]]  # held-out responses before the first step; none where nothing is held out
    after: list[dict[str, Any]]  # and at the last evaluation
    summary: dict[str, float | None]  # empty until the run is finished

    @property
    def name(self) -> str:
        """Method and seed, to tell it from others."""
        return f"{self.config.algorithm['name']}, seed {self.config.seed}"

    @property
    def finished(self) -> bool:
        return bool(self.summary)

    def curve(self, metric: str) -> tuple[Int[np.ndarray, "n"], Float[np.ndarray, "n"]]:
        """Steps that have ``metric``, and its values there; empty where nothing wrote it."""
        rows = [row for row in self.metrics if metric in row]
        return np.array([row["step"] for row in rows], int), np.array([row[metric] for row in rows], float)


def load_run(workdir: str | Path) -> Run:
    """Read the folder of a run, which may still be going on. Raises ValueError if it holds none.

    Damaged lines of its files are left out, with a warning for each.
    """
    workdir = Path(workdir)
    return Run(
        workdir=workdir,
        config=read_config(workdir),
        metrics=read_metrics(workdir),
        before=_responses(workdir / "responses_before.jsonl"),
        after=_responses(workdir / "responses_after.jsonl"),
        summary=_summary(workdir / "summary.json"),
    )


def load_params(run: Run, step: int | None = None) -> tuple[OpenModel, Params]:
    """The model of a run and its weights at ``step``, laid out over the devices that are here.

    Args:
      run: of `load_run`.
      step: of a checkpoint; None means the newest, 0 the weights that reinforcement learning began with.

    Raises ValueError if that step was not kept (those that were are named), or the model is not there.
    """
    started = run.workdir / "cold_start" / "model" if run.config.cold_start.steps else None
    # A run's mesh is that of its slice, and it is looked at elsewhere.
    config = replace(run.config, mesh=MeshConfig())
    model = open_model(config, started or resolve_model_path(config, run.workdir))
    if step == 0:
        return model, model.load()
    _, params = checkpoint.load_params(run.workdir / "checkpoints", model.description, step, model.shardings)
    return model, params


def error_kind(row: Row) -> str:
    """Kind of a response, one of `KINDS`.

    "right" is an accuracy of at least one half; of others the verifier may tell what went wrong.
    """
    accuracy = row.get("accuracy")
    if accuracy is None:
        return UNGRADED
    if accuracy >= 0.5:
        return RIGHT
    return next((kind for kind in ERRORS if row.get(kind, 0.0) >= 0.5), WRONG)


def by_question(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Responses to each question, by its id, in the order of the rows."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["id"], []).append(row)
    return found


def responses_of(run: Run, when: str) -> list[dict[str, Any]]:
    """Held-out responses "before" the first step or "after" the last. Raises ValueError if there are none."""
    if when not in ("before", "after"):
        raise ValueError(f"when={when!r} should be 'before' or 'after'")
    rows = run.before if when == "before" else run.after
    if not rows:
        held_out = run.config.data.heldout
        why = "its first evaluation is not done" if held_out else "config.data.heldout is empty"
        raise ValueError(f"{run.workdir} has no responses {when} reinforcement learning: {why}")
    return rows


def samples_of(run: Run, rows: Sequence[Row]) -> list[Sample]:
    """The held-out sample of each response of a run, by its id.

    Raises ValueError if the run's held-out data is not there, or does not have a row of that id and question.
    """
    wanted = {row["id"] for row in rows}
    if not wanted:
        return []
    if not run.config.data.heldout:
        raise ValueError(f"{run.workdir}: config.data.heldout is empty, so its responses have no data set")
    found: dict[str, Sample] = {}
    for path in run.config.data.heldout.split(","):
        source = open_data(run.config, path.strip(), run.workdir)
        found |= {name: source[index] for index in range(len(source)) if (name := source.id(index)) in wanted}
    for row in rows:
        sample = found.get(row["id"])
        if sample is None or sample.problem != row["problem"]:
            what = "no such row" if sample is None else "another question"
            raise ValueError(
                f"{run.workdir}: the response {row['id']} has {what} in config.data.heldout="
                f"{run.config.data.heldout!r}; put the run's own data back"
            )
    return [found[row["id"]] for row in rows]


def tokens_of(run: Run, rows: Sequence[Row]) -> list[list[int]]:
    """The token ids of each response.

    Raises ValueError for a row of an older version, which has none, and for a run with tools: what those
    answered within a response is not kept.
    """
    if run.config.episode.tools:
        raise ValueError(
            f"{run.workdir}: with tools (config.episode.tools) a response reads what its row does not keep,"
            " so its tokens cannot be measured again"
        )
    for row in rows:
        if "tokens" not in row:
            raise ValueError(
                f"{run.workdir}: the response to {row['id']} has no tokens, as it is of an older version;"
                " sample anew by `mmrl eval --workdir`"
            )
    return [row["tokens"] for row in rows]


def choose_evenly(rows: Sequence[Row], count: int) -> list[Row]:
    """At most ``count`` rows: kind after kind in turn, within a kind spread over the questions; no chance."""
    queues = []
    for kind in KINDS:
        mine = [row for row in rows if error_kind(row) == kind]
        firsts = [members[0] for members in by_question(mine).values()]
        queues.append([*_spread(firsts), *(row for row in mine if not any(row is first for first in firsts))])
    chosen = [queue[k] for k in range(max(map(len, queues))) for queue in queues if k < len(queue)]
    return chosen[:count]


def _spread(rows: Sequence[Row]) -> list[Row]:
    """All rows in an order whose first few, however many, lie evenly apart: that of van der Corput."""
    bits = len(rows).bit_length()
    places = (int(f"{k:0{bits}b}"[::-1], 2) * len(rows) >> bits for k in range(1 << bits))
    return [rows[place] for place in dict.fromkeys(places)] if rows else []


def _responses(path: Path) -> list[dict[str, Any]]:
    rows, damaged = read_jsonl(path, wrong_response)
    warn_of(damaged)
    return rows


def _summary(path: Path) -> dict[str, float | None]:
    try:
        found = json.loads(path.read_bytes()) if path.is_file() else {}
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(v is None or is_number(v) for v in found.values()):
        raise ValueError(f"{path} is damaged; the same mmrl train writes it anew")
    return found
