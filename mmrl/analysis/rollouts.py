"""Held-out responses of a run, with what is needed to look at one: pictures, and tokens with perception."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmrl.analysis.perception import TokenPerception, perceive
from mmrl.analysis.pictures import pictures_seen, png
from mmrl.analysis.runs import Run, load_params
from mmrl.data.sources import Source
from mmrl.open import open_data
from mmrl.sample import Sample

Row = Mapping[str, Any]  # of responses_before.jsonl and responses_after.jsonl
RIGHT, WRONG, UNGRADED = "right", "wrong", "ungraded"
ERRORS = ("perception_error", "reasoning_error", "format_error")  # of verifiers that tell them apart
KINDS = (RIGHT, *ERRORS, WRONG, UNGRADED)


@dataclass(frozen=True)
class Shown:
    """A held-out response as people look at it. Its texts are data, never markup: a model wrote them."""

    sample: Sample
    row: Row  # of the run's file: "id", "problem", "answer", "response", "reward", each component
    kind: str  # one of `KINDS`
    perception: TokenPerception  # by the weights that were loaded; its ``pieces`` are the response's text
    images: tuple[bytes, ...]  # PNG files: what the model saw
    corrupted: tuple[bytes, ...]  # and what it saw with the image corrupted


def error_kind(row: Row) -> str:
    """What became of a response, one of `KINDS`.

    "right" is an accuracy of at least one half; of others the verifier may tell what went wrong.
    """
    accuracy = row.get("accuracy")
    if accuracy is None:
        return UNGRADED
    if accuracy >= 0.5:
        return RIGHT
    return next((kind for kind in ERRORS if row.get(kind, 0.0) >= 0.5), WRONG)


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
        found |= {one: source[index] for one, index in _places(source, wanted).items()}
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
    without = [row["id"] for row in rows if "tokens" not in row]
    if without:
        raise ValueError(
            f"{run.workdir}: the response to {without[0]} has no tokens, as it is of an older version; sample"
            " anew by `mmrl eval --workdir`"
        )
    return [row["tokens"] for row in rows]


def responses_of(run: Run, when: str) -> list[dict[str, Any]]:
    """Held-out responses "before" the first step or "after" the last. Raises ValueError if there are none."""
    if when not in ("before", "after"):
        raise ValueError(f"when={when!r} should be 'before' or 'after'")
    rows = run.before if when == "before" else run.after
    if not rows:
        empty = "config.data.heldout is empty"
        why = "its first evaluation is not done" if run.config.data.heldout else empty
        raise ValueError(f"{run.workdir} has no responses {when} reinforcement learning: {why}")
    return rows


def rollout_sample(
    run: Run,
    count: int,
    *,
    when: str = "after",
    step: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Shown]:
    """Some held-out responses of a run: as evenly as there are of each kind, of different questions first.

    Args:
      run: of `load_run`.
      count: how many, at most.
      when: responses "before" the first step, or "after" the last.
      step: of the weights that look at them; by default those that wrote them: 0 before, the newest after.
      seed: of the corruption.
      progress: as for `perceive`.

    Raises ValueError if responses, data or weights are not there, or the run is one with tools.
    """
    if count < 1:
        raise ValueError(f"count={count}: show at least one response")
    rows = choose_evenly(responses_of(run, when), count)
    written, samples = tokens_of(run, rows), samples_of(run, rows)
    model, params = load_params(run, 0 if step is None and when == "before" else step)
    config = run.config
    measured = perceive(params, samples, written, model=model, config=config, seed=seed, progress=progress)
    shown = []
    for row, sample, perception in zip(rows, samples, measured, strict=True):
        seen, corrupted = pictures_seen(sample, model=model, config=config, seed=seed)
        images = tuple(map(png, seen)), tuple(map(png, corrupted))
        shown.append(Shown(sample, row, error_kind(row), perception, *images))
    return shown


def choose_evenly(rows: Sequence[Row], count: int) -> list[Row]:
    """At most ``count`` rows: kind after kind in turn, within a kind spread over the questions; no chance."""
    queues = []
    for kind in KINDS:
        mine = [row for row in rows if error_kind(row) == kind]
        first = {row["id"]: index for index, row in reversed(list(enumerate(mine)))}
        once = [mine[index] for index in sorted(first.values())]
        more = [row for index, row in enumerate(mine) if index not in set(first.values())]
        queues.append([*_spread(once), *more])
    chosen = []
    for place in range(max(map(len, queues), default=0)):
        chosen += [queue[place] for queue in queues if place < len(queue)]
    return chosen[:count]


def _spread(rows: Sequence[Row]) -> list[Row]:
    """All rows in an order whose first few, however many, lie evenly apart: that of van der Corput."""
    bits = len(rows).bit_length()
    places = (int(f"{k:0{bits}b}"[::-1], 2) * len(rows) >> bits for k in range(1 << bits))
    return [rows[place] for place in dict.fromkeys(places)] if rows else []


def _places(source: Source, wanted: set[str]) -> dict[str, int]:
    """Where the rows called so are, of those that this source has."""
    return {one: index for index in range(len(source)) if (one := source.id(index)) in wanted}
