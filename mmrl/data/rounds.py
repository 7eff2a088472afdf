"""The order of the training rows where rules say so: planned round by round.

A *round* is the order of some batches. It is planned once, when the first of its batches is asked for, and is
a function of the seed, its number, what is remembered of the rows at that moment, and the rules. So the state
of the order is the round and the memory, and neither who reads nor how far ahead changes it.

Rows are numbered through the files of all sources, one source after the other, whether they are used or not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Int32

from mmrl.data.curriculum import Curriculum, Memory, Round, figures, tiers, too_easy_or_hard

_ROUND, _EPOCH, _TIES = 0, 1, 2  # purposes of random draws


class Rows(NamedTuple):
    """The rows of the files; this stays the same in a run."""

    starts: Int[np.ndarray, "s+1"]  # first row of each source, and the number of all
    usable: Bool[np.ndarray, "n"]
    difficulty: Float[np.ndarray, "n"] | None = None


class Mixture(NamedTuple):
    """How much is drawn of each source, from a share of the run on."""

    start: float
    weights: tuple[float, ...]  # 0: nothing is drawn of that source
    by_rows: bool = False  # a source counts by its rows besides


def plan(
    rules: Curriculum,
    rows: Rows,
    mixture: Mixture,
    memory: Memory,
    before: Round,
    *,
    seed: int,
    share: float,
    batches: int,
    batch_size: int,
    temperature: float = 1.0,
) -> Round:
    """The round after ``before``.

    Args:
      rules, rows, mixture, memory: what it depends on.
      before: the last round.
      seed: of all orders.
      share: of the run that is done.
      batches, batch_size: its size.
      temperature: of sources that count by their rows (see `weights_by_rows`).
    """
    number, total = before.number + 1, batches * batch_size
    draws = np.random.default_rng([seed, _ROUND, number])
    drawn_from = rows.usable & np.repeat(np.array(mixture.weights) > 0, np.diff(rows.starts))
    resting = drawn_from & too_easy_or_hard(rules, memory, number)
    shares = _source_shares(mixture, rows, drawn_from, drawn_from & ~resting, temperature)
    resting = _woken(resting, drawn_from, memory.last, np.ceil(batch_size * shares), rows.starts, draws)
    labels = tiers(rules, memory)
    cursors = before.cursors.copy()
    picked: list[np.ndarray] = []
    places: list[np.ndarray] = []
    for source, wanted in enumerate(_whole(total * shares, draws.random())):
        if not wanted:
            continue
        of = slice(rows.starts[source], rows.starts[source + 1])
        awake = (drawn_from & ~resting)[of]
        pool = labels[of] if rules.tiers else np.zeros(len(awake), np.int8)
        if rules.order:
            pool = _outside_window(rules, _hardness(rules, rows, memory)[of], awake, share, [seed, source])
        sizes = np.bincount(pool[awake], minlength=len(_pool_shares(rules)))
        parts = _filled(float(wanted), np.array(_pool_shares(rules), float), sizes)
        for k, count in enumerate(_whole(parts, draws.random())):
            chosen, cursors[source, k] = _walked(
                awake & (pool == k), int(cursors[source, k]), int(count), [seed, source]
            )
            picked.append(chosen + rows.starts[source])
            # Evenly over the round, so that every batch has nearly the shares of the whole.
            places.append((np.arange(count) + draws.random()) / max(count, 1))
    order = np.argsort(np.concatenate(places), kind="stable")
    return Round(
        number=number,
        first=before.first + len(before.rows) // batch_size,
        rows=np.concatenate(picked)[order].astype(np.int32),
        cursors=cursors,
        figures=figures(rules, memory, labels, drawn_from, resting),
    )


def weights_by_rows(rows: Int[np.ndarray, "s"], temperature: float) -> Float[np.ndarray, "s"]:
    """Weights of sources with so many rows: rows^(1/T); by rows at T = 1, nearly equal for large T."""
    largest = max(float(rows.max()), 1.0)
    return np.where(rows > 0, (np.maximum(rows, 1) / largest) ** (1.0 / temperature), 0.0)


def _pool_shares(rules: Curriculum) -> Sequence[float]:
    return rules.tiers or ((1.0 - rules.random, rules.random) if rules.order else (1.0,))


def _source_shares(
    mixture: Mixture,
    rows: Rows,
    drawn_from: Bool[np.ndarray, "n"],
    awake: Bool[np.ndarray, "n"],
    temperature: float,
) -> Float[np.ndarray, "s"]:
    """Shares of the sources in a round; one that counts by its rows counts by those that do not rest."""
    weights = np.array(mixture.weights, float)
    if mixture.by_rows:
        counted = awake if awake.any() else drawn_from
        weights *= weights_by_rows(np.add.reduceat(counted.astype(np.int64), rows.starts[:-1]), temperature)
    return weights / weights.sum()


def _woken(
    resting: Bool[np.ndarray, "n"],
    drawn_from: Bool[np.ndarray, "n"],
    last: Int32[np.ndarray, "n"],
    needed: Float[np.ndarray, "s"],
    starts: Int[np.ndarray, "s+1"],
    draws: np.random.Generator,
) -> Bool[np.ndarray, "n"]:
    """Who still rests when each source has the rows it needs for a batch; the longest rested come back."""
    resting = resting.copy()
    for source, need in enumerate(needed):
        of = slice(starts[source], starts[source + 1])
        there, asleep = np.count_nonzero(drawn_from[of]), np.flatnonzero(resting[of])
        missing = int(min(need, there)) - (there - len(asleep))
        if missing > 0:
            asleep = draws.permutation(asleep)
            longest = asleep[np.argsort(last[of][asleep], kind="stable")[:missing]]
            resting[of][longest] = False
    return resting


def _hardness(rules: Curriculum, rows: Rows, memory: Memory) -> Float[np.ndarray, "n"]:
    """By what rows are ranked; by pass rate, one not yet measured counts as right half of the time."""
    if rules.order == "difficulty":
        assert rows.difficulty is not None
        return rows.difficulty
    return -np.nan_to_num(memory.rate, nan=0.5)


def _outside_window(
    rules: Curriculum,
    hardness: Float[np.ndarray, "n"],
    awake: Bool[np.ndarray, "n"],
    share: float,
    address: list[int],
) -> Int[np.ndarray, "n"]:
    """0 for rows within the window, which slides over the ranks as the run goes on; 1 for all others."""
    ties = np.random.default_rng([*address, _TIES]).permutation(len(hardness))
    ranked = ties[np.argsort(hardness[ties], kind="stable")]
    ranked = ranked[awake[ranked]]
    start = math.floor(share * (1.0 - rules.window) * len(ranked))
    end = math.ceil((share * (1.0 - rules.window) + rules.window) * len(ranked))
    outside = np.ones(len(hardness), np.int8)
    outside[ranked[start:end]] = 0
    return outside


def _filled(
    total: float, shares: Float[np.ndarray, "p"], sizes: Int[np.ndarray, "p"]
) -> Float[np.ndarray, "p"]:
    """How many of ``total`` rows come from each pool: by its share, but no more than it has.

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


def _whole(amounts: Float[np.ndarray, "k"], shift: float) -> Int[np.ndarray, "k"]:
    """Whole numbers with the same sum, each within one of its amount, and equal to it on the average."""
    edges = np.floor(np.round(np.cumsum(amounts), 6) + shift).astype(np.int64)
    return np.diff(edges, prepend=0)


def _walked(
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
