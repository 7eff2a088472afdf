"""Lengths of prompts, images and responses that plans are made for, and the rows they take."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Int

from mmrl.config import Config
from mmrl.kernels.packed import Span, block_of, needed_pairs, visible_pairs
from mmrl.kernels.vocab import CHUNK
from mmrl.packing import Piece, RowBudget, balanced_order, first_fit, group_spans, pack_groups
from mmrl.run_folder import read_lengths


@dataclass(frozen=True)
class Lengths:
    """Sizes of the groups of a batch; the patches of each are counted as one image."""

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


@dataclass(frozen=True)
class LengthDistribution:
    """What lengths are drawn from: ``draw`` gives those of so many groups of a config."""

    name: str
    draw: Callable[[Config, int], Lengths]


FULL = LengthDistribution("full", full)
LENGTHS: Mapping[str, LengthDistribution] = {
    one.name: one for one in (FULL, LengthDistribution("long-tailed", long_tailed))
}


def length_distribution(name: str) -> LengthDistribution:
    """One of `LENGTHS`, or of the run in the folder ``name``.

    Raises:
      ValueError: it is neither, or the run has no lengths.
    """
    if name in LENGTHS:
        return LENGTHS[name]
    if not Path(name).is_dir():
        known = ", ".join(map(repr, LENGTHS))
        raise ValueError(f"--lengths={name}: there is no {name!r}; there are {known} and folders of runs")
    return LengthDistribution(name, lengths_of_run(Path(name)))


def lengths_of_run(workdir: Path) -> Callable[[Config, int], Lengths]:
    """Lengths of the groups that a run trained on: the newest, over again where there are not so many.

    Of each group as many responses as the config has, likewise, and cut where the config's limits are lower.

    Raises:
      ValueError: the folder has no lengths.
    """
    rows = read_lengths(workdir)[::-1]
    if len({len(row["responses"][0]) for row in rows}) > 1:
        raise ValueError(f"{workdir / 'lengths.jsonl'} has groups of different sizes: it is not of one run")
    groups = [
        group
        for row in rows
        for group in zip(row["prompts"], row["patches"], row["responses"], strict=True)
        if group[0] and any(group[2])
    ]
    if not groups:
        raise ValueError(
            f"{workdir} has no lengths of responses (lengths.jsonl): no run has taken a step of reinforcement"
            " learning there, or an older version did"
        )
    prompts, patches, responses = map(np.array, zip(*groups, strict=True))

    def draw(config: Config, count: int) -> Lengths:
        data, rollout = config.data, config.rollout
        chosen = np.arange(count) % len(groups)
        members = np.arange(rollout.group) % responses.shape[1]
        return Lengths(
            np.minimum(prompts[chosen], max(data.prompt_buckets)),
            np.minimum(patches[chosen], max(data.patch_buckets)),
            np.minimum(responses[chosen][:, members], rollout.max_tokens),
        )

    return draw


def balanced(lengths: Lengths, shards: int) -> Lengths:
    """The groups in the order in which a run cuts them into equal parts for ``shards``."""
    order = balanced_order((lengths.prompts + lengths.responses.sum(axis=1)).tolist(), shards)
    return Lengths(lengths.prompts[order], lengths.patches[order], lengths.responses[order])


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
    """The rows that a batch takes when each of ``shards`` has an equal part of its groups, in their order."""
    parts = np.arange(len(lengths.prompts)).reshape(shards, -1)
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
        rows = first_fit(prompts, budget.tokens)
        text.append([group_spans([Piece(k, ()) for k in row], prompts, []) for row in rows])
    return _count(text, [0], lengths, parts, budget)


def needed_rows(lengths: Lengths, budget: RowBudget, shards: int, *, repeated: bool = False) -> RowCounts:
    """Rows without an empty slot, in fractions, and in them the pairs of tokens that read each other.

    On average over ``shards``; pairs in blocks. ``repeated``: were each response to come with its prompt.
    """
    prompts, responses = lengths.prompts.astype(float), lengths.responses.astype(float)
    patches = lengths.patches.astype(float)
    windows, rest = np.divmod(patches, budget.window)
    copies = responses.shape[1] if repeated else 1
    tokens = lengths.repeated_tokens if repeated else lengths.tokens
    pairs = copies * (prompts * (prompts + 1) / 2).sum()
    pairs += (responses * (responses + 1) / 2 + responses * prompts[:, None]).sum()
    token_rows = tokens / budget.tokens
    patch_rows = copies * patches.sum() / budget.patches if budget.patches else 0.0

    def in_blocks(count: float, rows: float, n: int) -> float:
        return count / block_of(n) ** 2 / rows if rows else 0.0

    return RowCounts(
        token_rows=token_rows / shards,
        patch_rows=patch_rows / shards,
        text_pairs=in_blocks(pairs, token_rows, budget.tokens),
        image_pairs=in_blocks(copies * (patches**2).sum(), patch_rows, budget.patches),
        window_pairs=in_blocks(
            copies * (windows * budget.window**2 + rest**2).sum(), patch_rows, budget.patches
        ),
        chunks={size: responses.sum() / size / token_rows for size in _chunk_sizes(budget)},
    )


def _chunk_sizes(budget: RowBudget) -> set[int]:
    """Targets that are held at once, by the programs that have logits."""
    return {min(chunk, budget.tokens) for chunk in (CHUNK, CHUNK // 2)}


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
            size: float(np.mean([-(-count // size) for count in targets])) for size in _chunk_sizes(budget)
        },
    )


def _in_line(sizes: list[int]) -> list[Span]:
    """Images, or windows of them, each of which reads all of itself."""
    ends = np.cumsum([0, *sizes]).tolist()
    return [Span(start, stop, k) for k, (start, stop) in enumerate(pairwise(ends))]


def _mean_pairs(rows: list[list[Span]], n: int) -> float:
    return float(np.mean([needed_pairs(visible_pairs(row, n, block_of(n))).sum() for row in rows]))
