"""How much of decoding is spent on tokens, for responses of very different lengths: counts, without a model.

The scheduler is the real one; its programs only count. `docs/rollout.md` has the counts, and is compared.
"""

import re
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.models.prompts import encode_turn
from mmrl.models.published import published
from mmrl.rollout import engine, scheduler
from mmrl.rollout.engine import RolloutShape
from mmrl.rollout.episodes import Request, single_turn
from mmrl.rollout.sampling import Sampling
from mmrl.rollout.scheduler import PromptGroup, Stats, roll_out
from mmrl.rollout.slots import choose_slots, count_steps, halves
from mmrl.types import Images, Prompts

PAGE = Path(__file__).parents[2] / "docs" / "rollout.md"
PROMPTS, GROUP, MOST = 128, 8, 2048
LENGTHS = np.random.default_rng(0).lognormal(np.log(300), 0.9, (PROMPTS, GROUP)).clip(1, MOST).astype(int)
BUSY = [(1, 1.25), (4, 1.25), (16, 1.55)]  # parts of the mesh, and slots a token at most
ROW = Prompts(  # of one token
    tokens=np.zeros((1, 1), np.int32),
    mask=np.ones((1, 1), bool),
    position=np.zeros((1, 1, 3), np.int32),
    next_position=np.zeros(1, np.int32),
    image_token=np.full((1, 1), -1),
    images=Images(np.zeros((1, 4, 3), np.uint8), np.zeros((1, 4, 2), np.int32), np.full((1, 4), -1)),
)


def counting(monkeypatch):
    """Programs that write nothing: a slot's count goes up to its limit."""

    def init_decode_state(config, *, prompt_slots, slots_per_prompt, **_):
        names = [field.name for field in fields(engine.DecodeState)]
        count = np.zeros((prompt_slots, slots_per_prompt), int)
        held = {"count": count, "limit": count, "running": count > 0, "prompt_hidden": count}
        return engine.DecodeState(**dict.fromkeys(names) | held)

    def apply_commands(state, commands):
        return replace(
            state,
            count=np.where(commands.begins, 0, state.count),
            limit=np.where(commands.begins, commands.limit, state.limit),
            running=(state.running | commands.begins) & ~commands.halts,
        )

    def decode(params, config, state, bias, *, steps, entropy):
        left = np.where(state.running, state.limit - state.count, 0)
        drawn, running = np.minimum(left, steps), left > steps
        zeros = np.zeros((*left.shape, steps))
        state = replace(state, count=state.count + drawn, running=running)
        return state, engine.DecodedTokens(zeros.astype(int), zeros, zeros, None, drawn, running, drawn.max())

    def prefill_observation(params, config, state, prompts, slot, length, limit, options):
        count, most, running = state.count.copy(), state.limit.copy(), state.running.copy()
        for prompt_slot in np.flatnonzero(prompts.mask.any(axis=1)):
            at = prompt_slot, slot[prompt_slot]
            count[at] = length[prompt_slot] + prompts.mask[prompt_slot].sum()
            most[at], running[at] = limit[prompt_slot], True
        return replace(state, count=count, limit=most, running=running)

    def compact(state, source, runs, cache_size):
        rows = source[..., 0], source[..., 1]
        moved = {name: getattr(state, name)[rows] for name in ("count", "limit", "running")}
        return replace(state, **{**moved, "running": moved["running"] & runs})

    programs = {
        "init_decode_state": init_decode_state,
        "apply_commands": apply_commands,
        "compact": compact,
        "decode": decode,
        "prefill_observation": prefill_observation,
    }
    for name in ("admit", "copy_prompts", "grow_cache"):
        programs[name] = lambda *arguments: next(
            one for one in arguments if isinstance(one, engine.DecodeState)
        )
    monkeypatch.setattr(scheduler, "engine", SimpleNamespace(**programs))


def counted(config, lengths, prompt_slots, slots, chunk=16, compacts=False):
    """What a rollout of responses of these lengths did."""
    keys = np.zeros((lengths.shape[1], 2), np.uint32)
    groups = (PromptGroup(ROW, keys, [single_turn(Sampling(int(n))) for n in row]) for row in lengths)
    shape, stats = RolloutShape(prompt_slots, slots, 1, MOST, chunk=chunk, compacts=compacts), Stats()
    done = list(
        roll_out({}, config, jnp.zeros(1), groups, shape, text=str, collate=lambda _: ROW, stats=stats)
    )
    assert sorted((one.group, one.member, len(one.tokens)) for one in done) == [
        (b, g, n) for b, row in enumerate(lengths) for g, n in enumerate(row)
    ]
    assert stats.sampled_tokens == lengths.sum()
    return stats


def in_batches(config, lengths, prompts):
    """Batches of whole groups, each decoded until its longest response has ended."""
    parts = [counted(config, part, prompts, GROUP) for part in np.split(lengths, len(lengths) // prompts)]
    return Stats(
        steps=sum(part.steps for part in parts),
        token_capacity=sum(part.token_capacity for part in parts),
        sampled_tokens=sum(part.sampled_tokens for part in parts),
    )


@pytest.fixture(scope="module")
def rows(policy):
    """Of the table: 64 slots in all, and 32."""
    with pytest.MonkeyPatch.context() as patch:
        counting(patch)
        made = {"batches of 8 prompts": in_batches(policy.config, LENGTHS, 8)}
        for prompt_slots, slots in ((8, 8), (16, 4), (32, 2), (64, 1), (16, 2)):
            made[f"{prompt_slots} prompt slots of {slots}"] = counted(
                policy.config, LENGTHS, prompt_slots, slots
            )
    return made


@pytest.mark.exhaustive
def test_long_responses_keep_few_waiting(rows):
    assert LENGTHS.max() > 4 * LENGTHS.mean()
    work = {name: one.token_capacity / one.sampled_tokens for name, one in rows.items()}
    assert work["batches of 8 prompts"] > 4
    assert max(work["64 prompt slots of 1"], work["16 prompt slots of 2"]) <= 1.3


@pytest.mark.exhaustive
def test_the_manual_has_these_counts(rows):
    found = dict(re.findall(r"^\| ([\w ]+?) \| ([\d,]+ \| [\d.]+ %) \|", PAGE.read_text(), re.MULTILINE))
    made = {
        name: f"{one.steps:,} | {100 * one.sampled_tokens / one.token_capacity:.1f} %"
        for name, one in rows.items()
    }
    assert found == made


@pytest.mark.parametrize(
    ("prompt_slots", "slots", "chunk"), [(128, 8, 16), (12, 3, 5), (7, 1, 16), (1, 8, 9), (40, 2, 7)]
)
@pytest.mark.parametrize("compacts", [False, True])
def test_steps_are_foreseen(policy, monkeypatch, prompt_slots, slots, chunk, compacts):
    counting(monkeypatch)
    lengths = LENGTHS[:30] // 4 + 1
    stats = counted(policy.config, lengths, prompt_slots, slots, chunk, compacts)
    shape = RolloutShape(prompt_slots, slots, 1, MOST, chunk=chunk, compacts=compacts)
    foreseen = count_steps(lengths, shape)
    assert (stats.steps, stats.token_capacity) == (foreseen.steps, foreseen.token_capacity)
    assert len(foreseen.steps_in) > 1 or not compacts


@pytest.mark.parametrize(
    ("shards", "most", "seeds"),
    [(4, 1.25, [0]), *(pytest.param(*one, range(5), marks=pytest.mark.exhaustive) for one in BUSY)],
)
def test_slots_are_busy_with_long_tails(shards, most, seeds):
    """Of a 7B model with its papers' limits. More shards read the weights more often: steps cost more."""
    model = replace(published("7B"), dtype=jnp.bfloat16)
    for seed in seeds:
        lengths = np.random.default_rng(seed).lognormal(np.log(300), 0.9, (PROMPTS, GROUP))
        lengths = lengths.clip(1, MOST).astype(int)
        shape = choose_slots(lengths, shapes(GROUP), shards, model, 200.0)
        assert shape.prompt_slots % shards == 0
        assert count_steps(lengths, shape, shards).token_capacity <= most * lengths.sum()


def test_slots_of_equal_lengths_are_all_there_are():
    model = replace(published("7B"), dtype=jnp.bfloat16)
    shape = choose_slots(np.full((PROMPTS, GROUP), 700), shapes(GROUP), 4, model, 200.0)
    assert (shape.prompt_slots, shape.slots_per_prompt, shape.compacts) == (PROMPTS, GROUP, False)


def shapes(group):
    """Those that a batch of `PROMPTS` can be decoded in."""
    grids = [(rows, size) for rows in halves(PROMPTS) for size in halves(group)]
    return [RolloutShape(rows, size, 4096, MOST) for rows, size in grids]


@pytest.mark.parametrize(("prompt_slots", "chunk"), [(1, 3), (3, 16), (7, 50), (90, 16)])
def test_a_lane_of_one_column_works_while_anyone_waits(policy, monkeypatch, prompt_slots, chunk):
    """It is idle for less than a chunk after each response, until nobody waits any more."""
    counting(monkeypatch)
    lengths = LENGTHS[:10] // 4 + 1
    stats = counted(policy.config, lengths, prompt_slots, 1, chunk)
    waste = lengths.size * (chunk - 1) + (prompt_slots - 1) * (lengths.max() + chunk)
    assert stats.token_capacity <= lengths.sum() + waste


def test_an_observation_does_not_wait_for_the_longest(policy, monkeypatch):
    """Though too few wait for a pass of their own to be worth it."""
    counting(monkeypatch)
    observation = encode_turn(policy.processor, "Go on.", ended=True)

    def reader():
        yield Request(Sampling(10))
        yield Request(Sampling(10), observation=observation)
        return {}

    episodes = [[single_turn(Sampling(1500))], [single_turn(Sampling(1500))], [reader()], [reader()]]
    groups = [PromptGroup(ROW, np.zeros((1, 2), np.uint32), one) for one in episodes]
    shape = RolloutShape(16, 1, 1, MOST, observation=len(observation.tokens))
    played = roll_out(
        {}, policy.config, jnp.zeros(1), groups, shape, text=str, collate=lambda _: ROW, stats=Stats()
    )
    assert [one.group for one in played] == [2, 3, 0, 1]
