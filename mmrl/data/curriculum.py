"""What a run remembers of the rows it has drawn, and the rules that follow from it.

`mmrl.data.rounds` plans the order of coming batches by them.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32

ORDERS = ("", "difficulty", "pass_rate")
TIERS = ("easy", "medium", "hard", "new")


@dataclass(frozen=True)
class Curriculum:
    """Rules by which rows are drawn (docs/data.md); by default there is none, and the seed alone decides."""

    batches: int = 8  # of a round: the order of so many is planned at once
    newest: float = 0.5  # weight of the newest visit in a row's remembered pass rate
    rest: int = 0  # rounds that a row rests when its pass rate is not strictly between low and high; 0: none
    low: float = 0.05
    high: float = 0.95
    order: str = ""  # from easy to hard: by the column "difficulty", or by the remembered "pass_rate"
    window: float = 0.25  # share of the rows, by rank, that the order draws from at a time
    random: float = 0.2  # share of the rows drawn that comes from outside the window
    tiers: tuple[float, ...] = ()  # shares drawn of easy, medium and hard rows; a fourth is of new rows
    bounds: tuple[float, ...] = (0.25, 0.75)  # pass rates below which a row is hard, above which it is easy

    @property
    def active(self) -> bool:
        """Whether there is a rule."""
        return bool(self.rest or self.order or self.tiers)


def check(rules: Curriculum, stages: Sequence[Any], temperature: float) -> None:
    """Raises ValueError for what cannot be followed in ``config.data``, by its key."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"config.data.temperature={temperature} should be a positive number")
    starts = [stage[0] for stage in stages if _is_stage(stage)]
    if len(starts) < len(stages) or not all(np.diff([0.0, *starts, 1.0]) > 0):
        raise ValueError(
            f"config.data.stages={stages!r} should be like ((0.5, 'FILE@1,FILE@3'),): the data sets from a"
            " share of the run on, shares between 0 and 1 and ascending"
        )
    for name, valid, should in (
        ("batches", rules.batches >= 1, "be 1 or more"),
        ("newest", 0 < rules.newest <= 1, "be in (0, 1]"),
        ("rest", rules.rest >= 0, "be 0 (no rests) or more rounds"),
        ("low", 0 <= rules.low < rules.high, "be in [0, high)"),
        ("high", rules.low < rules.high <= 1, "be in (low, 1]"),
        ("order", rules.order in ORDERS, f"be one of {', '.join(map(repr, ORDERS))}"),
        ("window", 0 < rules.window <= 1, "be in (0, 1]"),
        ("random", 0 <= rules.random <= 1, "be in [0, 1]"),
        ("tiers", _shares(rules.tiers), "be shares of easy, medium and hard rows, and perhaps of new ones"),
        ("bounds", _bounds(rules.bounds), "be two pass rates, the lower one first"),
        ("order", not (rules.order and rules.tiers), "be '' where tiers are set: choose one of the two"),
    ):
        if not valid:
            raise ValueError(f"config.data.curriculum.{name}={getattr(rules, name)!r} should {should}")


def _is_stage(stage: Any) -> bool:
    return isinstance(stage, tuple) and [type(part) for part in stage] == [float, str]


def _numbers(values: Sequence[Any]) -> bool:
    return all(type(value) in (int, float) and 0 <= value < math.inf for value in values)


def _shares(tiers: Sequence[Any]) -> bool:
    return not tiers or (len(tiers) in (3, 4) and _numbers(tiers) and sum(tiers) > 0)


def _bounds(bounds: Sequence[Any]) -> bool:
    return len(bounds) == 2 and _numbers(bounds) and bounds[0] <= bounds[1] <= 1


class Memory(NamedTuple):
    """What is remembered of each row."""

    rate: Float32[np.ndarray, "n"]  # pass rate, of newer visits more; NaN where nothing was measured
    visits: Int32[np.ndarray, "n"]  # that were measured
    last: Int32[np.ndarray, "n"]  # round of the last one, measured or not; -1: none


class Round(NamedTuple):
    """The order of some batches, and where the next one goes on."""

    number: int
    first: int  # batches before it
    rows: Int32[np.ndarray, "k"]
    cursors: Int[np.ndarray, "s p"]  # places in the endless order of each source and pool, after this round
    figures: dict[str, float]  # for the log, of the moment when it was planned


class State(NamedTuple):
    """All that the order of the coming batches depends on and a run changes."""

    memory: Memory
    round: Round


def beginning(rows: int, sources: int) -> State:
    """Before the first batch: nothing remembered, and a round that holds none."""
    memory = Memory(np.full(rows, np.nan, np.float32), np.zeros(rows, np.int32), np.full(rows, -1, np.int32))
    return State(memory, Round(-1, 0, np.zeros(0, np.int32), np.zeros((sources, len(TIERS)), np.int64), {}))


def packed(state: State) -> dict[str, Any]:
    """A state as JSON of a few bytes a row; `unpacked` gives it back, bit by bit."""
    made = state.round
    return {
        **{name: _text(array) for name, array in state.memory._asdict().items()},
        "number": made.number,
        "first": made.first,
        "rows": _text(made.rows),
        "cursors": made.cursors.tolist(),
        "figures": made.figures,
    }


def unpacked(saved: Mapping[str, Any], rows: int) -> State:
    """The state that `packed` took. Raises ValueError if it is not of so many ``rows``."""
    memory = Memory(
        rate=_array(saved["rate"], np.float32),
        visits=_array(saved["visits"], np.int32),
        last=_array(saved["last"], np.int32),
    )
    if len(memory.rate) != rows:
        raise ValueError(
            f"the checkpoint remembers {len(memory.rate)} rows of the training data, which has {rows}: put"
            " back the files that the run began with"
        )
    order, cursors = _array(saved["rows"], np.int32), np.array(saved["cursors"], np.int64)
    return State(memory, Round(saved["number"], saved["first"], order, cursors, dict(saved["figures"])))


def _text(array: np.ndarray) -> str:
    """Bytes of one significance lie together, which packs better."""
    planes = array.view(np.uint8).reshape(len(array), array.itemsize).T
    return base64.b64encode(zlib.compress(planes.tobytes())).decode()


def _array(text: str, kind: type[np.generic]) -> np.ndarray:
    planes = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    return np.ascontiguousarray(planes.reshape(np.dtype(kind).itemsize, -1).T).view(kind).reshape(-1)


def update(
    memory: Memory,
    rows: Int[np.ndarray, "b"],
    accuracy: Float[np.ndarray, "b g"],
    valid: Bool[np.ndarray, "b g"],
    *,
    number: int,
    newest: float,
) -> Memory:
    """What is remembered after a batch of round ``number``: rate <- (1 - newest) rate + newest measured.

    Args:
      memory: before it.
      rows: drawn; one that was drawn twice counts as one visit with the responses of both.
      accuracy: of each response, in [0, 1]; NaN where it was not measured.
      valid: False for responses that do not count.
      number: of the round.
      newest: weight of this visit; a first visit counts alone.
    """
    counted = valid & ~np.isnan(accuracy)
    which, place = np.unique(rows, return_inverse=True)
    responses = np.bincount(place, counted.sum(axis=1), len(which))
    right = np.bincount(place, np.where(counted, np.clip(accuracy, 0.0, 1.0), 0.0).sum(axis=1), len(which))
    measured = responses > 0
    seen, found = which[measured], right[measured] / responses[measured]
    rate, visits, last = (array.copy() for array in memory)
    rate[seen] = np.where(visits[seen] > 0, (1.0 - newest) * rate[seen] + newest * found, found)
    visits[seen] += 1
    last[which] = number
    return Memory(rate, visits, last)


def too_easy_or_hard(rules: Curriculum, memory: Memory, number: int) -> Bool[np.ndarray, "n"]:
    """Rows that rest in round ``number``: drawn within ``rules.rest`` rounds, and no use then.

    A row of which nothing could be measured rests too: it is damaged, or its grading fails.
    """
    useful = (rules.low < memory.rate) & (memory.rate < rules.high)  # False for NaN
    return (memory.last >= 0) & ~useful & (number - memory.last <= rules.rest)


def tiers(rules: Curriculum, memory: Memory) -> Int[np.ndarray, "n"]:
    """The tier of each row, by its index in `TIERS`; new rows are medium unless they have a share."""
    low, high = rules.bounds
    found = np.ones(len(memory.rate), np.int8)
    found[memory.rate > high] = 0
    found[memory.rate < low] = 2
    if len(rules.tiers) == len(TIERS):
        found[memory.last < 0] = 3
    return found


def figures(
    rules: Curriculum,
    memory: Memory,
    labels: Int[np.ndarray, "n"],
    drawn_from: Bool[np.ndarray, "n"],
    resting: Bool[np.ndarray, "n"],
) -> dict[str, float]:
    """Metrics of the moment when a round is planned, over the rows ``drawn_from``."""
    total = np.count_nonzero(drawn_from)
    seen = drawn_from & (memory.visits > 0)
    out = {"curriculum/seen": float(np.count_nonzero(seen) / total)}
    if seen.any():
        out["curriculum/pass_rate"] = float(memory.rate[seen].mean(dtype=np.float64))
    if rules.rest:
        out["curriculum/resting"] = float(np.count_nonzero(resting) / total)
    for k in range(len(rules.tiers)):
        out[f"curriculum/tier_{TIERS[k]}"] = float(np.count_nonzero(drawn_from & (labels == k)) / total)
    return out
