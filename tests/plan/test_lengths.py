"""Distributions of lengths, and the rows that they take, against counts one token at a time."""

import json

import numpy as np
import pytest

from mmrl.config import Config, from_dict
from mmrl.kernels.packed import block_of
from mmrl.models.published import published
from mmrl.packing import RowBudget, first_fit, pack_groups, rows_of_prompts
from mmrl.plan.lengths import (
    Lengths,
    RowCounts,
    count_prompt_rows,
    count_rows,
    full,
    length_distribution,
    long_tailed,
    needed_rows,
)

PROMPT, PATCHES, GROUP, TOKENS = 4096, 12288, 8, 2048


def config(scale: int = 1) -> Config:
    return from_dict(
        {
            "data": {
                "prompt_buckets": (PROMPT // scale // 2, PROMPT // scale),
                "patch_buckets": (PATCHES // scale,),
            },
            "rollout": {"group": GROUP, "max_tokens": TOKENS // scale},
        }
    )


def test_full_lengths_are_the_longest():
    made = full(config(), 3)
    assert made.prompts.tolist() == [PROMPT] * 3
    assert made.patches.tolist() == [PATCHES] * 3
    assert made.responses.tolist() == [[TOKENS] * GROUP] * 3
    assert made.tokens == 3 * (PROMPT + GROUP * TOKENS)
    assert made.repeated_tokens == 3 * GROUP * (PROMPT + TOKENS)


@pytest.mark.parametrize("scale", [1, 4])
def test_long_tailed_lengths(scale):
    """Of 16,000 responses and 2,000 prompts, quantiles and means within 5 %."""
    made = long_tailed(config(scale), 2000)
    responses = scale * made.responses
    assert np.median(responses) == pytest.approx(300, rel=0.05)
    assert np.quantile(responses, 0.841) == pytest.approx(300 * np.exp(0.9), rel=0.05)  # a deviation above
    assert responses.max() == TOKENS
    assert np.mean(responses == TOKENS) == pytest.approx(0.0165, abs=0.005)  # of the normal, above 2.134
    assert made.responses.min() >= 1
    for found, least, most in ((made.prompts, 300, 2000), (made.patches, 256, 2500)):
        assert least <= scale * found.min() + scale
        assert scale * found.max() <= most
        assert scale * found.mean() == pytest.approx((least + most) / 2, rel=0.05)


def test_seeds_of_long_tailed_lengths():
    one, again, other = (long_tailed(config(), 4, seed) for seed in (0, 0, 1))
    assert (one.responses == again.responses).all()
    assert (one.prompts == again.prompts).all()
    assert (one.responses != other.responses).any()
    assert (one.prompts != other.prompts).any()


def pairs_by_hand(owners: list[list[tuple[int, ...]]], n: int, sees) -> float:
    """Pairs of blocks of a row where some slot sees another, on average; ``owners`` of the slots of each."""
    block, found = block_of(n), []
    for row in owners:
        seen = {(k, k) for k in range(n // block)}
        for query, of in enumerate(row):
            seen |= {(query // block, key // block) for key, to in enumerate(row) if sees(query, of, key, to)}
        found.append(len(seen))
    return float(np.mean(found))


def reads(query, of, key, to) -> bool:
    """What owns a slot is a group and a member, or None for the prompt, which every member reads whole."""
    return (of == to and key <= query) or (of[0] == to[0] and to[1] is None and of[1] is not None)


@pytest.mark.parametrize("shards", [1, 2])
def test_rows_against_a_count_of_slots(shards):
    rng = np.random.default_rng(1)
    lengths = Lengths(rng.integers(20, 200, 6), 4 * rng.integers(4, 60, 6), rng.integers(1, 120, (6, 3)))
    budget = RowBudget(tokens=512, patches=384, token_rows=99, patch_rows=99, token_patches=4, window=64)
    tokens, images, windows, most_tokens, most_images = [], [], [], 0, 0
    for part in np.array_split(np.arange(6), shards):
        prompts, responses = lengths.prompts[part].tolist(), lengths.responses[part].tolist()
        packed = pack_groups(prompts, responses, budget.tokens)
        most_tokens = max(most_tokens, len(packed))
        for number, row in enumerate(packed):
            slots = []
            for piece, (b, members) in enumerate(row):
                slots += [((number, piece), None)] * prompts[b]
                for g in members:
                    slots += [((number, piece), g)] * responses[b][g]
            tokens.append(slots)
        patches = lengths.patches[part].tolist()
        bins = first_fit(patches, budget.patches)
        most_images = max(most_images, len(bins))
        images += [[k for k in row for _ in range(patches[k])] for row in bins]
        windows += [[(k, at // budget.window) for k in row for at in range(patches[k])] for row in bins]

    def same(query, of, key, to) -> bool:
        return of == to

    assert count_rows(lengths, budget, shards) == RowCounts(
        token_rows=most_tokens,
        patch_rows=most_images,
        text_pairs=pairs_by_hand(tokens, budget.tokens, reads),
        image_pairs=pairs_by_hand(images, budget.patches, same),
        window_pairs=pairs_by_hand(windows, budget.patches, same),
        chunks={512: np.mean([1 if any(of[1] is not None for of in row) else 0 for row in tokens])},
    )


def test_needed_rows_against_a_count_of_pairs():
    """Each pair of tokens of which one reads the other, and of patches of an image or a window, is one."""
    rng = np.random.default_rng(2)
    lengths = Lengths(rng.integers(1, 30, 4), rng.integers(0, 90, 4), rng.integers(0, 20, (4, 3)))
    budget = RowBudget(tokens=512, patches=384, token_rows=99, patch_rows=99, token_patches=4, window=64)
    groups = [*zip(lengths.prompts.tolist(), lengths.responses.tolist(), strict=True)]
    shared = [
        [("prompt", 0)] * p + [("own", g) for g, r in enumerate(own) for _ in range(r)] for p, own in groups
    ]
    alone = [[("own", 0)] * (p + r) for p, own in groups for r in own]
    images = [[k // budget.window for k in range(n)] for n in lengths.patches.tolist()]

    def read(rows, sees) -> int:
        return sum(sees(q, of, k, to) for row in rows for q, of in enumerate(row) for k, to in enumerate(row))

    def causal(q, of, k, to) -> bool:
        return k <= q and (to[0] == "prompt" or of == to)

    for rows, copies in ((shared, 1), (alone, 3)):
        found = needed_rows(lengths, budget, 2, repeated=copies > 1)
        slots, patches = sum(map(len, rows)), copies * lengths.patches.sum()
        assert found.token_rows == pytest.approx(slots / 512 / 2)
        assert found.patch_rows == pytest.approx(patches / 384 / 2)
        pairs, of_patches = (
            2 * found.token_rows * block_of(512) ** 2,
            2 * found.patch_rows * block_of(384) ** 2,
        )
        assert found.text_pairs * pairs == pytest.approx(read(rows, causal))
        assert found.image_pairs * of_patches == pytest.approx(copies * (lengths.patches**2).sum())
        windows = copies * read(images, lambda q, of, k, to: of == to)
        assert found.window_pairs * of_patches == pytest.approx(windows)
        assert found.chunks == {512: pytest.approx(lengths.responses.sum() / 512 / found.token_rows / 2)}


def test_lengths_of_a_run(tmp_path):
    """The newest groups first, over again where they are few; those that were not computed are left out."""
    row = {"step": 1, "prompts": [10, 0, 12], "patches": [4, 0, 8], "responses": [[1, 2], [0, 0], [3, 4000]]}
    later = {"step": 2, "prompts": [5000, 14], "patches": [12, 16], "responses": [[5, 0], [0, 0]]}
    stale = {**row, "prompts": [1, 1, 1]}  # of a step that was taken again
    lines = [json.dumps(one) for one in (stale, later, row)]
    (tmp_path / "lengths.jsonl").write_text("\n".join([*lines, lines[0][:20]]))
    made = length_distribution(str(tmp_path))
    assert made.name == str(tmp_path)
    found = made.draw(config(), 4)
    assert found.prompts.tolist() == [PROMPT, 10, 12, PROMPT]
    assert found.patches.tolist() == [12, 4, 8, 12]
    assert found.responses.tolist() == [[5, 0] * 4, [1, 2] * 4, [3, TOKENS] * 4, [5, 0] * 4]


def test_folders_without_lengths_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no lengths of responses \(lengths.jsonl\)"):
        length_distribution(str(tmp_path))
    with pytest.raises(ValueError, match="no 'nowhere'; there are 'full', 'long-tailed' and folders"):
        length_distribution("nowhere")
    rows = [{"step": k, "prompts": [1], "patches": [0], "responses": [[1] * k]} for k in (1, 2)]
    (tmp_path / "lengths.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match="groups of different sizes"):
        length_distribution(str(tmp_path))


def test_rows_and_trips():
    """Two groups of a prompt of one block and a response of another, in one row."""
    lengths = Lengths(np.full(2, 128), np.full(2, 256), np.full((2, 1), 128))
    budget = RowBudget(tokens=1024, patches=1024, token_rows=2, patch_rows=2, token_patches=4, window=64)
    found = count_rows(lengths, budget, 1)
    assert found.trips() == {
        "token_rows": 1, "patch_rows": 1, "text_pairs": 8 + 2, "image_pairs": 8 + 2 * 2, "window_pairs": 8,
        "chunks_of_1024": 1, "chunks_of_512": 1,
    }  # fmt: skip
    cut = count_rows(lengths, budget, 2)
    assert (cut.token_rows, cut.patch_rows) == (1, 1)
    assert (cut.text_pairs, cut.image_pairs) == (8 + 1, 8 + 2)  # the slots that are empty read themselves


@pytest.mark.parametrize("seed", range(5))
def test_rows_of_long_tailed_lengths_are_full(seed):
    """128 prompts with 8 responses each: at most a tenth more is computed than there is."""
    lengths = long_tailed(config(), 128, seed)
    budget = RowBudget(tokens=16384, patches=16384, token_rows=99, patch_rows=99, token_patches=4, window=64)
    found = count_rows(lengths, budget, 1)
    assert found.token_rows * budget.tokens <= 1.1 * lengths.tokens
    assert found.patch_rows * budget.patches <= 1.1 * lengths.patches.sum()
    assert lengths.repeated_tokens > 2.7 * lengths.tokens


@pytest.mark.parametrize("seed", range(5))
def test_rows_of_prompts_are_full(seed):
    """All 128 prompts of a batch prefilled at once, on one part of the mesh."""
    lengths = long_tailed(config(), 128, seed)
    budget = rows_of_prompts(published("7b"), 128, PROMPT, PATCHES)
    rows = count_prompt_rows(lengths, budget, 1)
    assert rows.token_rows * budget.tokens <= 1.05 * lengths.prompts.sum()
    assert rows.patch_rows * budget.patches <= 1.1 * lengths.patches.sum()
    assert rows.text_pairs < (budget.tokens // block_of(budget.tokens)) ** 2
