"""Lengths of prompts, images and responses that plans are made for, and the rows they take."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Int

from mmrl.config import Config
from mmrl.kernels.packed import Span, block_of, needed_pairs, visible_pairs
from mmrl.kernels.vocab import CHUNK
from mmrl.packing import RowBudget, balanced_order, first_fit, group_spans, pack_groups


@dataclass(frozen=True)
class Lengths:
    """Sizes of the groups of a batch; each prompt has one image."""

    prompts: Int[np.ndarray, "b"]  # tokens
    patches: Int[np.ndarray, "b"]
    responses: Int[np.ndarray, "b g"]  # tokens

    @property
    def tokens(self) -> int:
        """Tokens that there are, each prompt once."""
        return int(self.prompts.sum() + self.responses.sum())

    @property
    def repeated_tokens(self) -> int:
        """Tokens that there are where each response comes with its prompt, as without a shared prompt."""
        return int(self.responses.shape[1] * self.prompts.sum() + self.responses.sum())


def full(config: Config, groups: int) -> Lengths:
    """Every prompt, image and response as long as the config allows."""
    data, rollout = config.data, config.rollout
    return Lengths(
        np.full(groups, max(data.prompt_buckets)),
        np.full(groups, max(data.patch_buckets)),
        np.full((groups, rollout.group), rollout.max_tokens),
    )


def long_tailed(config: Config, groups: int, seed: int = 0) -> Lengths:
    """Lengths as people see them: of responses log-normal, cut at the longest; of the others uniform.

    Where the config allows prompts of 4,096 tokens, 12,288 patches and responses of 2,048 tokens, prompts
    have 300 to 2,000 tokens and 256 to 2,500 patches, and responses a median of 300 with a deviation of the
    logarithm of 0.9; under other limits all is in proportion.
    """
    data, rollout, rng = config.data, config.rollout, np.random.default_rng(seed)

    def uniform(least: float, most: float, limit: int) -> np.ndarray:
        return np.maximum(rng.uniform(least, most, groups) * limit, 1).astype(int)

    drawn = rng.lognormal(np.log(rollout.max_tokens * 300 / 2048), 0.9, (groups, rollout.group))
    return Lengths(
        uniform(300 / 4096, 2000 / 4096, max(data.prompt_buckets)),
        uniform(256 / 12288, 2500 / 12288, max(data.patch_buckets)),
        np.clip(drawn, 1, rollout.max_tokens).astype(int),
    )


LENGTHS: Mapping[str, Callable[[Config, int], Lengths]] = {"full": full, "long-tailed": long_tailed}


@dataclass(frozen=True)
class RowCounts:
    """Rows that groups take on a device, and the pairs of blocks in one of them."""

    token_rows: float  # of the shard that has most, as all wait for it
    patch_rows: float
    text_pairs: float  # on average over rows
    image_pairs: float
    window_pairs: float
    chunks: Mapping[int, float]  # of so many targets, by their size

    def trips(self) -> dict[str, float]:
        """Of the loops of score and update, by the scopes they stand in (`mmrl.plan.flops.count`)."""
        chunks = {f"chunks_of_{size}": count for size, count in self.chunks.items()}
        return {**{name: value for name, value in vars(self).items() if name != "chunks"}, **chunks}


def count_rows(lengths: Lengths, budget: RowBudget, shards: int) -> RowCounts:
    """The rows that a batch takes when its groups are spread over ``shards``."""
    order = balanced_order((lengths.prompts + lengths.responses.sum(axis=1)).tolist(), shards)
    parts = order.reshape(shards, -1)
    text: list[list[list[Span]]] = []
    targets: list[int] = []
    for part in parts:
        of_groups = lengths.prompts[part].tolist(), lengths.responses[part].tolist()
        rows = pack_groups(*of_groups, budget.tokens)
        text.append([group_spans(row, *of_groups) for row in rows])
        targets += [sum(of_groups[1][k][member] for k, members in row for member in members) for row in rows]
    return _count(text, targets, lengths, parts, budget)


def count_prompt_rows(lengths: Lengths, budget: RowBudget, shards: int) -> RowCounts:
    """The rows that prefill takes for the prompts of a batch."""
    parts = np.arange(len(lengths.prompts)).reshape(shards, -1)
    text = []
    for part in parts:
        prompts = lengths.prompts[part].tolist()
        text.append([_in_line([prompts[k] for k in row]) for row in first_fit(prompts, budget.tokens)])
    return _count(text, [0], lengths, parts, budget)


def _count(
    text: list[list[list[Span]]],
    targets: list[int],
    lengths: Lengths,
    parts: Int[np.ndarray, "s b"],
    budget: RowBudget,
) -> RowCounts:
    """Counts of rows, of which ``text`` has the spans for each shard, and ``parts`` the groups."""
    images = []
    for part in parts:
        patches = lengths.patches[part].tolist()
        images.append([[patches[k] for k in row] for row in first_fit(patches, budget.patches)])
    whole = [_in_line(row) for shard in images for row in shard]
    windows = [
        _in_line([min(budget.window, size - at) for size in row for at in range(0, size, budget.window)])
        for shard in images
        for row in shard
    ]
    return RowCounts(
        token_rows=max(map(len, text)),
        patch_rows=max(map(len, images)),
        text_pairs=_mean_pairs([row for shard in text for row in shard], budget.tokens),
        image_pairs=_mean_pairs(whole, budget.patches),
        window_pairs=_mean_pairs(windows, budget.patches),
        chunks={
            size: float(np.mean([-(-count // size) for count in targets]))
            for size in {min(chunk, budget.tokens) for chunk in (CHUNK, CHUNK // 2)}
        },
    )


def _in_line(sizes: list[int]) -> list[Span]:
    ends = np.cumsum([0, *sizes]).tolist()
    return [Span(start, stop, k) for k, (start, stop) in enumerate(pairwise(ends))]


def _mean_pairs(rows: list[list[Span]], n: int) -> float:
    return float(np.mean([needed_pairs(visible_pairs(row, n, block_of(n))).sum() for row in rows]))
