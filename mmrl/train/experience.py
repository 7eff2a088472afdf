"""What was sampled and graded: each process has its own rows, and all have the figures of the whole batch."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from mmrl import hosts
from mmrl.data.pipeline import Skipped
from mmrl.mesh import constrain, put
from mmrl.sample import Sample
from mmrl.types import Prompts, Responses, StopReason

Table = dict[str, Float[np.ndarray, "_ g"]]  # any number of rows: batches are put together


@dataclass(frozen=True)
class Experience:
    """Graded groups of responses: this process's rows of a batch, on the host."""

    rows: Int[np.ndarray, "b"]  # which of the whole batch they are
    samples: list[Sample]
    prompts: Prompts
    responses: Responses  # ``valid`` is False where grading failed and in empty slots
    texts: list[list[str]]
    rewards: Float[np.ndarray, "b g"]
    components: Table  # NaN where a verifier does not report it
    facts: Table = field(default_factory=dict)  # of episodes; NaN likewise
    skipped: tuple[Skipped, ...] = ()
    failures: tuple[str, ...] = ()  # why gradings failed


@dataclass(frozen=True)
class Overview:
    """The figures of all rows of a batch, those of other processes included; every process has the same."""

    ids: list[str]
    sources: list[str]  # the data set of each row
    rewards: Float[np.ndarray, "b g"]
    valid: Bool[np.ndarray, "b g"]
    lengths: Int[np.ndarray, "b g"]  # tokens that the policy wrote
    truncated: Bool[np.ndarray, "b g"]
    components: Table
    facts: Table
    digests: Int[np.ndarray, "b"]  # of each row's id and the tokens sampled
    sizes: Int[np.ndarray, "b 3"]  # prompt tokens, patches, response tokens of each row
    slots: Int[np.ndarray, "b 3"]  # the same with padding
    skipped: tuple[Skipped, ...]
    failures: tuple[str, ...]  # the first reasons for which gradings failed, of each process

    @property
    def accuracy(self) -> Float[np.ndarray, "b g"]:
        """The "accuracy" component, or the reward where no verifier reports one."""
        return np.nan_to_num(self.components.get("accuracy", self.rewards))


def overview(experience: Experience) -> Overview:
    """Exchange the figures of all rows; every process of the run must call it."""
    rows = hosts.gather_rows(experience.rows, _figures(experience))
    parts = hosts.gather([[[one.id, one.reason] for one in experience.skipped], experience.failures[:1]])
    grid = (len(rows), experience.rewards.shape[1])

    def column(name: str, kind: Any) -> np.ndarray:
        return np.array([row[name] for row in rows], kind)

    def table(kind: str) -> Table:
        names = sorted({name for row in rows for name in row[kind]})
        missing = [None] * grid[1]
        return {
            name: np.array([row[kind].get(name, missing) for row in rows], np.float32).reshape(grid)
            for name in names
        }

    return Overview(
        ids=[row["id"] for row in rows],
        sources=[row["source"] for row in rows],
        rewards=column("rewards", np.float32),
        valid=column("valid", bool),
        lengths=column("lengths", np.int32),
        truncated=column("truncated", bool),
        components=table("components"),
        facts=table("facts"),
        digests=column("digest", np.int64),
        sizes=column("sizes", np.int32),
        slots=column("slots", np.int32),
        skipped=tuple(Skipped(*pair) for skipped, _ in parts for pair in skipped),
        failures=tuple(reason for _, failures in parts for reason in failures),
    )


def _figures(experience: Experience) -> list[dict[str, Any]]:
    """What an `Overview` tells of each row, as JSON; None stands for NaN."""
    prompts, responses = experience.prompts, experience.responses
    count = len(experience.rows)
    truncated = responses.mask.any(axis=-1) & (responses.stop == StopReason.LENGTH)
    masks = (prompts.mask, prompts.images.image >= 0, responses.mask.reshape(count, -1))

    def of(table: Table, b: int) -> dict[str, Any]:
        return {
            name: [None if np.isnan(x) else float(x) for x in values[b]] for name, values in table.items()
        }

    return [
        {
            "id": sample.id,
            "source": sample.source,
            "rewards": experience.rewards[b].tolist(),
            "valid": np.asarray(responses.valid)[b].tolist(),
            "lengths": responses.mask[b].sum(axis=-1).tolist(),
            "truncated": truncated[b].tolist(),
            "components": of(experience.components, b),
            "facts": of(experience.facts, b),
            "digest": zlib.crc32(responses.tokens[b].tobytes(), zlib.crc32(sample.id.encode())),
            "sizes": [int(mask[b].sum()) for mask in masks],
            "slots": [mask.shape[1] for mask in masks],
        }
        for b, sample in enumerate(experience.samples)
    ]


def collect(
    draw: Callable[[int], tuple[Experience, Overview]],
    keep: Callable[[Overview], np.ndarray],
    prompts: int,
    max_batches: int,
) -> tuple[list[Experience], list[int], Overview, dict[str, float]]:
    """Dynamic sampling: draw batches until ``prompts`` groups are worth training on, at most ``max_batches``.

    When the bound is reached, the batch is filled up with groups that were passed over; having no spread of
    rewards they do not move the policy, and the shapes stay as they are.

    Args:
      draw: the experience of the n-th batch of this step.
      keep: which of its groups to train on, ``Bool[b]``.
      prompts: groups wanted, of all processes.
      max_batches: bound on the number of draws.

    Returns:
      What was drawn; which groups were chosen, counted through all of it; their figures; and the counts
      "rollout/batches" and "rollout/kept_groups" (share of the groups seen).
    """
    drawn: list[Experience] = []
    seen: list[Overview] = []
    kept: list[int] = []
    passed: list[int] = []
    while len(kept) < prompts and len(drawn) < max_batches:
        experience, whole = draw(len(drawn))
        start = sum(len(one.ids) for one in seen)
        for row, good in enumerate(keep(whole)):
            (kept if good else passed).append(start + row)
        drawn.append(experience)
        seen.append(whole)
    everything = reduce(concatenated, seen)
    metrics = {
        "rollout/batches": float(len(drawn)),
        "rollout/kept_groups": len(kept) / len(everything.ids),
    }
    chosen = (kept + passed)[:prompts]
    if len(drawn) == 1:
        chosen = sorted(chosen)
    return drawn, chosen, _rows_of(everything, chosen), metrics


def on_devices(drawn: Sequence[Experience], chosen: Sequence[int], mesh: Mesh) -> tuple[Prompts, Responses]:
    """The chosen groups as one batch over the mesh; prompts of unequal buckets are padded to the longest."""
    if len(drawn) == 1:
        return put((drawn[0].prompts, drawn[0].responses), mesh)
    tokens = max(one.prompts.tokens.shape[1] for one in drawn)
    slots = max(one.prompts.images.image.shape[1] for one in drawn)
    placed = [put((_padded(one.prompts, tokens, slots), one.responses), mesh) for one in drawn]
    return _pick(tuple(placed), np.array(chosen, np.int32))


@jax.jit
def _pick(batches: tuple[Any, ...], chosen: Int[Array, "b"]) -> Any:
    def rows(*leaves: Array) -> Array:
        return constrain(jnp.concatenate(leaves)[chosen], "batch", *[None] * (leaves[0].ndim - 1))

    return jax.tree.map(rows, *batches)


def _padded(prompts: Prompts, tokens: int, slots: int) -> Prompts:
    def pad(leaf: Any, width: int, fill: int = 0) -> Any:
        more = [(0, 0), (0, width - leaf.shape[1]), *[(0, 0)] * (leaf.ndim - 2)]
        return np.pad(leaf, more, constant_values=fill)

    images = prompts.images
    return Prompts(
        tokens=pad(prompts.tokens, tokens),
        mask=pad(prompts.mask, tokens),
        position=pad(prompts.position, tokens),
        next_position=prompts.next_position,
        image_token=pad(prompts.image_token, tokens, -1),  # -1, not 0, stands for "no image"
        images=replace(
            images,
            patches=pad(images.patches, slots),
            position=pad(images.position, slots),
            image=pad(images.image, slots, -1),
        ),
    )


def concatenated(left: Overview, right: Overview) -> Overview:
    """Two batches, one after the other."""

    def tables(a: Table, b: Table) -> Table:
        missing = [np.full(one.rewards.shape, np.nan, np.float32) for one in (left, right)]
        names = sorted({*a, *b})
        return {k: np.concatenate([a.get(k, missing[0]), b.get(k, missing[1])]) for k in names}

    def arrays(name: str) -> np.ndarray:
        return np.concatenate([getattr(left, name), getattr(right, name)])

    return Overview(
        ids=left.ids + right.ids,
        sources=left.sources + right.sources,
        **{name: arrays(name) for name in _ARRAYS},
        components=tables(left.components, right.components),
        facts=tables(left.facts, right.facts),
        skipped=left.skipped + right.skipped,
        failures=left.failures + right.failures,
    )


_ARRAYS = ("rewards", "valid", "lengths", "truncated", "digests", "sizes", "slots")


def _rows_of(whole: Overview, chosen: Sequence[int]) -> Overview:
    index = np.array(chosen)

    def table(values: Table) -> Table:
        return {name: value[index] for name, value in values.items()}

    return Overview(
        ids=[whole.ids[k] for k in chosen],
        sources=[whole.sources[k] for k in chosen],
        **{name: getattr(whole, name)[index] for name in _ARRAYS},
        components=table(whole.components),
        facts=table(whole.facts),
        skipped=whole.skipped,
        failures=whole.failures,
    )


def describe(whole: Overview) -> dict[str, float]:
    """Metrics of sampled and graded responses; apart for each data set where there are several.

    "rollout/digest" is equal in two runs that have drawn the same rows in the same order and sampled the same
    tokens.
    """
    valid, lengths = whole.valid, whole.lengths
    sampled = lengths > 0  # False in empty slots
    padding = 1.0 - whole.sizes.sum(axis=0) / np.maximum(whole.slots.sum(axis=0), 1)
    out = {
        "data/skipped": float(len(whole.skipped)),
        "rollout/digest": float(zlib.crc32(whole.digests.tobytes())),
        "reward/mean": _mean(whole.rewards, valid),
        "reward/invalid": _mean(~valid, sampled),
        "reward/equal_groups": float(_without_spread(whole.rewards, valid).mean()),
        "response/length": _mean(lengths, sampled),
        "response/longest": float(lengths.max()),
        "response/truncated": _mean(whole.truncated, sampled),
        **{f"padding/{n}": float(x) for n, x in zip(("prompt", "patches", "response"), padding, strict=True)},
    }
    for kind, table in (("reward", whole.components), ("episode", whole.facts)):
        for name, values in table.items():
            out[f"{kind}/{name}"] = _mean(values, valid & ~np.isnan(values))
    sources = np.array(whole.sources)
    names = sorted(set(whole.sources) - {""})
    for name in names if len(names) > 1 else ():
        of = (sources == name)[:, None]
        out[f"source/{name}/share"] = float(of.mean())
        out[f"source/{name}/reward"] = _mean(whole.rewards, valid & of)
        for component, values in {"accuracy": whole.accuracy, **whole.components}.items():
            known = valid & of & ~np.isnan(values)
            if known.any():
                out[f"source/{name}/{component}"] = _mean(values, known)
        out[f"source/{name}/length"] = _mean(lengths, np.broadcast_to(of, lengths.shape))
    return out


def _without_spread(rewards: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Groups whose valid rewards are all equal: they have no advantage to learn from."""
    highest = np.where(valid, rewards, -np.inf).max(axis=1)
    lowest = np.where(valid, rewards, np.inf).min(axis=1)
    return highest <= lowest


def _mean(values: np.ndarray, where: np.ndarray) -> float:
    return float(values[where].mean()) if where.any() else 0.0
