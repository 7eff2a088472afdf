"""Curriculum sampling: training rows in an order that follows what the policy gets right.

A `SamplingPlan` is the order of some batches. It is made once, when the first of its batches is asked for,
and is a function of the seed, its number, the pass rates of the rows at that moment, and the rules. So the
state of the sampler is the plan and the pass rates, and neither who reads nor how far ahead changes it.

Rows are numbered through the files of all sources, one source after the other, whether they are used or not.
"""

from __future__ import annotations

import base64
import io
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32

from mmrl.data.sources import Source

ORDERS = ("", "difficulty", "pass_rate")
TIERS = ("easy", "medium", "hard", "new")
_PLAN, _EPOCH, _TIES = 0, 1, 2  # purposes of random draws


@dataclass(frozen=True)
class Curriculum:
    """Rules by which rows are drawn (docs/data.md); by default there is none, and the seed alone decides."""

    batches: int = 8  # of a plan: the order of so many is made at once
    newest: float = 0.5  # weight of the newest visit in a row's remembered pass rate
    rest: int = 0  # plans that a row rests when its pass rate is not strictly between low and high; 0: none
    low: float = 0.05
    high: float = 0.95
    order: str = ""  # from easy to hard: by the column "difficulty", or by the remembered "pass_rate"
    window: float = 0.25  # share of the rows, by rank, that the order draws from at a time
    random: float = 0.2  # share of the rows drawn that comes from outside the window
    tiers: tuple[float, ...] = ()  # shares drawn of easy, medium and hard rows; a fourth is of new rows
    bounds: tuple[float, ...] = (0.25, 0.75)  # pass rates below which a row is hard, above which it is easy

    @property
    def active(self) -> bool:
        """True if there is a rule."""
        return bool(self.rest or self.order or self.tiers)


def check(rules: Curriculum, stages: Sequence[Any], temperature: float) -> None:
    """Raises ValueError for what cannot be followed in ``config.data``, by its key."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"config.data.temperature={temperature} should be a positive number")
    starts = [
        stage[0] for stage in stages if isinstance(stage, tuple) and list(map(type, stage)) == [float, str]
    ]
    if len(starts) < len(stages) or not all(np.diff([0.0, *starts, 1.0]) > 0):
        raise ValueError(
            f"config.data.stages={stages!r} should be like ((0.5, 'FILE@1,FILE@3'),): the data sets from a"
            " share of the run on, shares between 0 and 1 and ascending"
        )
    tiers, bounds = rules.tiers, rules.bounds
    shares = not tiers or (len(tiers) in (3, 4) and _numbers(tiers) and sum(tiers) > 0)
    ordered = len(bounds) == 2 and _numbers(bounds) and bounds[0] <= bounds[1] <= 1
    for name, valid, should in (
        ("batches", rules.batches >= 1, "be 1 or more"),
        ("newest", 0 < rules.newest <= 1, "be in (0, 1]"),
        ("rest", rules.rest >= 0, "be 0 (no rests) or more plans"),
        ("low", 0 <= rules.low < rules.high, "be in [0, high)"),
        ("high", rules.low < rules.high <= 1, "be in (low, 1]"),
        ("order", rules.order in ORDERS, f"be one of {', '.join(map(repr, ORDERS))}"),
        ("window", 0 < rules.window <= 1, "be in (0, 1]"),
        ("random", 0 <= rules.random <= 1, "be in [0, 1]"),
        ("tiers", shares, "be shares of easy, medium and hard rows, and perhaps of new ones"),
        ("bounds", ordered, "be two pass rates, the lower one first"),
        ("order", not (rules.order and rules.tiers), "be '' where tiers are set: choose one of the two"),
    ):
        if not valid:
            raise ValueError(f"config.data.curriculum.{name}={getattr(rules, name)!r} should {should}")


def _numbers(values: Sequence[Any]) -> bool:
    return all(type(value) in (int, float) and 0 <= value < math.inf for value in values)


class PassRates(NamedTuple):
    """Measured pass rates of the rows."""

    rate: Float32[np.ndarray, "n"]  # of newer visits more; NaN where nothing was measured
    visits: Int32[np.ndarray, "n"]  # that were measured
    last: Int32[np.ndarray, "n"]  # number of the plan of the last visit, measured or not; -1: none


class SamplingPlan(NamedTuple):
    """The order of some batches, and where the next plan goes on."""

    number: int
    first: int  # batches before it
    rows: Int32[np.ndarray, "k"]
    cursors: Int[np.ndarray, "s p"]  # places in the endless order of each source and pool, after this plan
    metrics: dict[str, float]  # of the moment when it was made


class CurriculumState(NamedTuple):
    """All that the order of the coming batches depends on and a run changes."""

    pass_rates: PassRates
    plan: SamplingPlan


class Rows(NamedTuple):
    """The rows of the files; this stays the same in a run."""

    starts: Int[np.ndarray, "s+1"]  # first row of each source, and the number of all
    usable: Bool[np.ndarray, "n"]
    difficulty: Float[np.ndarray, "n"] | None = None


class Mixture(NamedTuple):
    """Shares of the sources, from a share of the run on."""

    start: float
    weights: tuple[float, ...]  # 0: nothing is drawn of that source
    by_rows: bool = False  # a source counts by its rows besides


class CurriculumSampler:
    """The order of the training rows; the same in every process."""

    def __init__(
        self,
        rules: Curriculum,
        sources: Sequence[Source],
        mixtures: Sequence[Mixture],
        difficulty: Float[np.ndarray, "n"] | None,
        *,
        seed: int,
        steps: int,
        batch_size: int,
        temperature: float,
    ) -> None:
        starts = np.array([0, *itertools.accumulate(source.table.length for source in sources)])
        self.index = np.full(int(starts[-1]), -1, np.int32)  # of each row in its source; -1: it is left out
        for source, start in zip(sources, starts[:-1], strict=True):
            chosen = np.arange(len(source)) if source.chosen is None else source.chosen
            self.index[start + chosen] = np.arange(len(source))
        self.rules, self.sources, self.mixtures = rules, tuple(sources), tuple(mixtures)
        self.rows = Rows(starts, self.index >= 0, difficulty)
        self.seed, self.steps, self.batch_size, self.temperature = seed, steps, batch_size, temperature
        self.step = 0  # steps taken
        self.state = initial_state(len(self.index), len(sources))

    def order_of(self, given: int) -> tuple[int, list[tuple[int, int]]]:
        """The plan that holds the batch of number ``given``, as `mmrl.data.pipeline.prompts` asks for it.

        It is made if it begins with that batch. Raises ValueError if a row of it cannot be used any more.
        """
        plan = self.state.plan
        end = plan.first + len(plan.rows) // self.batch_size
        if given == end:
            plan = self._next_plan()
            self.state = self.state._replace(plan=plan)
        elif not plan.first <= given < end:
            raise ValueError(f"batch {given} is not of the plan of batches {plan.first} to {end - 1}")
        which = np.searchsorted(self.rows.starts, plan.rows, side="right") - 1
        lost = np.flatnonzero(self.index[plan.rows] < 0)
        if len(lost):
            source, row = which[lost[0]], plan.rows[lost[0]]
            raise ValueError(
                f"{self.sources[source].name}:{row - self.rows.starts[source]} was to be drawn next when"
                " the run was saved, and cannot be used any more: put back the files that it names"
            )
        return plan.first, list(zip(which.tolist(), self.index[plan.rows].tolist(), strict=True))

    def _next_plan(self) -> SamplingPlan:
        """The next plan. It ends with its stage: each step draws one batch at least."""
        begins = [math.ceil(mixture.start * self.steps) for mixture in self.mixtures]  # steps taken by then
        stage = max(k for k, begin in enumerate(begins) if begin <= self.step)
        left = [*begins, self.steps][stage + 1] - self.step
        plan = make_plan(
            self.rules,
            self.rows,
            self.mixtures[stage],
            self.state,
            seed=self.seed,
            share=self.step / self.steps,
            batches=max(1, min(self.rules.batches, left)),
            batch_size=self.batch_size,
            temperature=self.temperature,
        )
        if len(self.mixtures) > 1:
            plan.metrics["curriculum/stage"] = float(stage)
        return plan

    def update(
        self, ids: Iterable[str], accuracy: Float[np.ndarray, "b g"], valid: Bool[np.ndarray, "b g"]
    ) -> None:
        """Learn the pass rates of a batch, groups that are passed over included."""
        names = (source.name for source in self.sources)
        starts = dict(zip(names, self.rows.starts.tolist(), strict=False))
        rows = [starts[source] + int(row) for source, _, row in (name.rpartition(":") for name in ids)]
        pass_rates = update_pass_rates(
            self.state.pass_rates,
            np.array(rows),
            accuracy,
            valid,
            number=self.state.plan.number,
            newest=self.rules.newest,
        )
        self.state = self.state._replace(pass_rates=pass_rates)


def initial_state(rows: int, sources: int) -> CurriculumState:
    """State before the first batch: nothing measured, and a plan that holds none."""
    rates = PassRates(
        np.full(rows, np.nan, np.float32), np.zeros(rows, np.int32), np.full(rows, -1, np.int32)
    )
    cursors = np.zeros((sources, len(TIERS)), np.int64)
    return CurriculumState(rates, SamplingPlan(-1, 0, np.zeros(0, np.int32), cursors, {}))


def state_to_json(state: CurriculumState) -> dict[str, Any]:
    """A state as JSON of a few bytes a row, its arrays compressed."""
    plan, buffer = state.plan, io.BytesIO()
    np.savez_compressed(buffer, **state.pass_rates._asdict(), rows=plan.rows, cursors=plan.cursors)
    arrays = base64.b64encode(buffer.getvalue()).decode()
    return {"number": plan.number, "first": plan.first, "metrics": plan.metrics, "arrays": arrays}


def state_from_json(saved: Mapping[str, Any], rows: int) -> CurriculumState:
    """The state that `state_to_json` took, bit by bit. Raises ValueError if it is not of so many ``rows``."""
    with np.load(io.BytesIO(base64.b64decode(saved["arrays"])), allow_pickle=False) as arrays:
        rates = PassRates(arrays["rate"], arrays["visits"], arrays["last"])
        order, cursors = arrays["rows"], arrays["cursors"]
    if len(rates.rate) != rows:
        raise ValueError(
            f"the checkpoint remembers {len(rates.rate)} rows of the training data, which has {rows}: put"
            " back the files that the run began with"
        )
    plan = SamplingPlan(saved["number"], saved["first"], order, cursors, dict(saved["metrics"]))
    return CurriculumState(rates, plan)


def update_pass_rates(
    pass_rates: PassRates,
    rows: Int[np.ndarray, "b"],
    accuracy: Float[np.ndarray, "b g"],
    valid: Bool[np.ndarray, "b g"],
    *,
    number: int,
    newest: float,
) -> PassRates:
    """Pass rates after a batch of plan ``number``: rate <- (1 - newest) rate + newest measured.

    A row that was drawn twice counts as one visit with the responses of both; a first visit counts alone.
    ``accuracy`` is in [0, 1], NaN where it was not measured; responses that are not ``valid`` do not count.
    """
    counted = valid & ~np.isnan(accuracy)
    which, place = np.unique(rows, return_inverse=True)
    responses = np.bincount(place, counted.sum(axis=1), len(which))
    right = np.bincount(place, np.where(counted, np.clip(accuracy, 0.0, 1.0), 0.0).sum(axis=1), len(which))
    measured = responses > 0
    seen, found = which[measured], right[measured] / responses[measured]
    rate, visits, last = (array.copy() for array in pass_rates)
    rate[seen] = np.where(visits[seen] > 0, (1.0 - newest) * rate[seen] + newest * found, found)
    visits[seen] += 1
    last[which] = number
    return PassRates(rate, visits, last)


def cooling_down(rules: Curriculum, pass_rates: PassRates, number: int) -> Bool[np.ndarray, "n"]:
    """Rows that rest in plan ``number``: drawn within the last ``rules.rest`` plans, and no use then.

    A row of which nothing could be measured rests too: it is damaged, or its grading fails.
    """
    useful = (rules.low < pass_rates.rate) & (pass_rates.rate < rules.high)  # False for NaN
    return (pass_rates.last >= 0) & ~useful & (number - pass_rates.last <= rules.rest)


def tiers_of(rules: Curriculum, pass_rates: PassRates) -> Int[np.ndarray, "n"]:
    """The tier of each row, by its index in `TIERS`; new rows are medium unless they have a share."""
    low, high = rules.bounds
    found = np.ones(len(pass_rates.rate), np.int8)
    found[pass_rates.rate > high] = 0
    found[pass_rates.rate < low] = 2
    if len(rules.tiers) == len(TIERS):
        found[pass_rates.last < 0] = 3
    return found


def make_plan(
    rules: Curriculum,
    rows: Rows,
    mixture: Mixture,
    state: CurriculumState,
    *,
    seed: int,
    share: float,
    batches: int,
    batch_size: int,
    temperature: float = 1.0,
) -> SamplingPlan:
    """The plan after that of ``state``.

    ``seed`` is that of all orders, ``share`` of the run is done, and ``temperature`` is that of sources that
    count by their rows (see `weights_by_rows`).
    """
    pass_rates, before = state
    number, total = before.number + 1, batches * batch_size
    draws = np.random.default_rng([seed, _PLAN, number])
    active = rows.usable & np.repeat(np.array(mixture.weights) > 0, np.diff(rows.starts))
    resting = active & cooling_down(rules, pass_rates, number)
    shares = _source_shares(mixture, rows, active, active & ~resting, temperature)
    resting = _end_cooldowns(
        resting, active, pass_rates.last, np.ceil(batch_size * shares), rows.starts, draws
    )
    awake = active & ~resting
    pools, pool_shares = _pools(rules, rows, pass_rates, awake, share, seed)
    cursors = before.cursors.copy()
    picked: list[np.ndarray] = []
    places: list[np.ndarray] = []
    for source, wanted in enumerate(_round_amounts(total * shares, draws.random())):
        if not wanted:
            continue
        of = slice(rows.starts[source], rows.starts[source + 1])
        sizes = np.bincount(pools[of][awake[of]], minlength=len(pool_shares))
        amounts = _allocate(float(wanted), pool_shares, sizes)
        for k, count in enumerate(_round_amounts(amounts, draws.random())):
            pool, cursor = awake[of] & (pools[of] == k), int(cursors[source, k])
            chosen, cursors[source, k] = _take_next(pool, cursor, int(count), [seed, source])
            picked.append(chosen + rows.starts[source])
            # Evenly over the plan, so that every batch has nearly the shares of the whole.
            places.append((np.arange(count) + draws.random()) / max(count, 1))
    order = np.argsort(np.concatenate(places), kind="stable")
    return SamplingPlan(
        number=number,
        first=before.first + len(before.rows) // batch_size,
        rows=np.concatenate(picked)[order].astype(np.int32),
        cursors=cursors,
        metrics=_plan_metrics(rules, pass_rates, pools, active, resting),
    )


def _plan_metrics(
    rules: Curriculum,
    pass_rates: PassRates,
    pools: Int[np.ndarray, "n"],
    active: Bool[np.ndarray, "n"],
    resting: Bool[np.ndarray, "n"],
) -> dict[str, float]:
    """Metrics over the ``active`` rows, those that the mixture draws from."""
    seen = active & (pass_rates.visits > 0)
    out = {"curriculum/seen": float(seen.sum() / active.sum())}
    if seen.any():
        out["curriculum/pass_rate"] = float(pass_rates.rate[seen].mean(dtype=np.float64))
    if rules.rest:
        out["curriculum/resting"] = float(resting.sum() / active.sum())
    for k in range(len(rules.tiers)):
        out[f"curriculum/tier_{TIERS[k]}"] = float((active & (pools == k)).sum() / active.sum())
    return out


def weights_by_rows(rows: Int[np.ndarray, "s"], temperature: float) -> Float[np.ndarray, "s"]:
    """Weights of sources with so many rows: rows^(1/T); by rows at T = 1, nearly equal for large T."""
    largest = max(float(rows.max()), 1.0)
    return np.where(rows > 0, (np.maximum(rows, 1) / largest) ** (1.0 / temperature), 0.0)


def _source_shares(
    mixture: Mixture,
    rows: Rows,
    active: Bool[np.ndarray, "n"],
    awake: Bool[np.ndarray, "n"],
    temperature: float,
) -> Float[np.ndarray, "s"]:
    """Shares of the sources in a plan; one that counts by its rows counts by those that do not rest."""
    weights = np.array(mixture.weights, float)
    if mixture.by_rows:
        counted = awake if awake.any() else active
        weights *= weights_by_rows(np.add.reduceat(counted.astype(np.int64), rows.starts[:-1]), temperature)
    return weights / weights.sum()


def _end_cooldowns(
    resting: Bool[np.ndarray, "n"],
    active: Bool[np.ndarray, "n"],
    last: Int32[np.ndarray, "n"],
    needed: Float[np.ndarray, "s"],
    starts: Int[np.ndarray, "s+1"],
    draws: np.random.Generator,
) -> Bool[np.ndarray, "n"]:
    """Rows that still rest when each source has what a batch needs; the longest rested come back."""
    resting = resting.copy()
    for source, need in enumerate(needed):
        of = slice(starts[source], starts[source + 1])
        there, asleep = np.count_nonzero(active[of]), np.flatnonzero(resting[of])
        missing = int(min(need, there)) - (there - len(asleep))
        if missing > 0:
            asleep = draws.permutation(asleep)
            longest = asleep[np.argsort(last[of][asleep], kind="stable")[:missing]]
            resting[of][longest] = False
    return resting


def _pools(
    rules: Curriculum,
    rows: Rows,
    pass_rates: PassRates,
    awake: Bool[np.ndarray, "n"],
    share: float,
    seed: int,
) -> tuple[Int[np.ndarray, "n"], Float[np.ndarray, "p"]]:
    """The pool of each row and the shares of the pools: tiers, or the window and the rest, or one of all.

    The window slides over the ranks of a source's awake rows, from easy to hard, as the run goes on.
    """
    pools = np.zeros(len(awake), np.int8)
    if rules.tiers:
        return tiers_of(rules, pass_rates), np.array(rules.tiers, float)
    if not rules.order:
        return pools, np.ones(1)
    by_difficulty = rules.order == "difficulty" and rows.difficulty is not None
    # A pass rate not yet measured counts as one half.
    hardness = rows.difficulty if by_difficulty else -np.nan_to_num(pass_rates.rate, nan=0.5)
    assert hardness is not None
    pools += 1
    for source, (first, end) in enumerate(itertools.pairwise(rows.starts)):
        ties = first + np.random.default_rng([seed, source, _TIES]).permutation(end - first)
        ranked = ties[np.argsort(hardness[ties], kind="stable")]
        ranked = ranked[awake[ranked]]
        low = share * (1.0 - rules.window)
        pools[ranked[math.floor(low * len(ranked)) : math.ceil((low + rules.window) * len(ranked))]] = 0
    return pools, np.array([1.0 - rules.random, rules.random])


def _allocate(
    total: float, shares: Float[np.ndarray, "p"], sizes: Int[np.ndarray, "p"]
) -> Float[np.ndarray, "p"]:
    """Part of ``total`` rows that comes from each pool: by its share, but no more than it has.

    What a pool is too small for goes to the others by their shares; if there are not enough rows at all, each
    is drawn equally often.
    """
    if total >= sizes.sum():
        return total * sizes / sizes.sum() if sizes.sum() else np.zeros(len(sizes))
    given = np.zeros(len(sizes))
    while True:
        room = sizes - given
        wanted = np.where(room > 0, shares, 0.0)
        if not wanted.sum():
            wanted = room
        wanted = (total - given.sum()) * wanted / wanted.sum()
        if (wanted <= room).all():
            return given + wanted
        given = np.where(wanted >= room, sizes, given)


def _round_amounts(amounts: Float[np.ndarray, "k"], shift: float) -> Int[np.ndarray, "k"]:
    """Whole numbers with the same sum, each within one of its amount, and equal to it on the average."""
    edges = np.floor(np.round(np.cumsum(amounts), 6) + shift).astype(np.int64)
    return np.diff(edges, prepend=0)


def _take_next(
    pool: Bool[np.ndarray, "n"], cursor: int, count: int, address: list[int]
) -> tuple[Int[np.ndarray, "k"], int]:
    """The next ``count`` rows of a pool in the endless order of its source, and the place after them.

    The order has every row once in an epoch, at random; rows that are not in the pool are passed over. A row
    may come twice only where one epoch ends and the next begins.
    """
    found: list[np.ndarray] = [np.zeros(0, np.int64)]
    while count:
        epoch, place = divmod(cursor, len(pool))
        ahead = np.random.default_rng([*address, _EPOCH, epoch]).permutation(len(pool))[place:]
        there = np.flatnonzero(pool[ahead])[:count]
        found.append(ahead[there])
        count -= len(there)
        cursor += len(ahead) if count else int(there[-1]) + 1
    return np.concatenate(found), cursor
