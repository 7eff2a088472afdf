"""Random episodes of a tiny policy, told by their seeds, and how a rollout plays them."""

import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tiny import Policy, noise_image, one_layer

from mmrl.kernels.vocab import BANNED
from mmrl.models.family import param_specs
from mmrl.models.params import Param
from mmrl.models.prompts import Encoded, chat_messages, collate, encode, encode_turn
from mmrl.rollout import engine
from mmrl.rollout.engine import RolloutShape
from mmrl.rollout.episodes import Call, Episode, Request, Turn
from mmrl.rollout.sampling import Sampling
from mmrl.rollout.scheduler import PromptGroup, Stats, roll_out
from mmrl.rollout.tools import Answer
from mmrl.rollout.trajectory import Trajectory
from mmrl.types import Prompts

PROMPT, PATCHES = 64, 64  # shape of every prompt
OBSERVATION, OBSERVATION_PATCHES = 40, 32
LETTERS = "abcdefgh"
STRINGS = ("a", "ab", "ba", "inc", "the", "é", "dé", "\n", "ghe")


@dataclass(frozen=True)
class World:
    """A policy of few words, and what its episodes are made of."""

    policy: Policy
    params: Any  # as the engine reads them
    bias: Any
    words: tuple[int, ...]  # ids that may be sampled
    prompts: list[Prompts]  # of one row each
    others: list[Encoded]  # prompts of second contexts
    seen: list[Encoded]  # observations, the first without images


def make_world(policy: Policy) -> World:
    """Two layers and one of the vision tower; some twenty ids, so that chance meets what stops."""
    config = replace(policy.config, layers=2, vision=one_layer(policy.config.vision))
    shapes = jax.tree.map(
        lambda param: param.shape, param_specs(config), is_leaf=lambda leaf: isinstance(leaf, Param)
    )
    params = jax.tree.map(lambda leaf, shape: leaf[: shape[0]], policy.params, shapes)
    processor, tokenizer = policy.processor, policy.processor.tokenizer
    words = tokenizer(f"{LETTERS}\né", add_special_tokens=False)["input_ids"]
    words += tokenizer.convert_tokens_to_ids([*LETTERS, "in", "th", "er", "<|box_start|>", "<tool_call>"])
    words = tuple(sorted({*words, processor.eos}))
    bias = jnp.full(config.vocabulary, BANNED).at[jnp.array(words)].set(0)

    def prompt(text: str, *sizes: tuple[int, int]) -> Encoded:
        return encode(
            processor, chat_messages("<image>" * len(sizes) + text), [noise_image(*size) for size in sizes]
        )

    def turn(text: str, *sizes: tuple[int, int]) -> Encoded:
        images = [noise_image(*size, seed=9) for size in sizes]
        return encode_turn(processor, "<image>" * len(sizes) + text, images, ended=not sizes)

    encoded = [
        prompt("Add."),
        prompt("What?", (56, 56)),
        prompt("Which?", (56, 28), (30, 60)),
        prompt("Go on."),
    ]
    return World(
        Policy(policy.directory, config, params, processor),
        jax.jit(engine.decoding_weights, static_argnums=1)(params, config),
        bias,
        words,
        [collate([one], processor, PROMPT, PATCHES) for one in encoded],
        [encoded[3], prompt("Again.", (28, 28))],
        [turn("1"), turn("No such thing."), turn("", (28, 28)), turn("so", (56, 28))],
    )


def random_sampling(world: World, rng: np.random.Generator, most: int = 16) -> Sampling:
    """Some options of every kind."""
    return Sampling(
        max_tokens=int(rng.integers(1, most + 1)),
        temperature=float(rng.choice([0, 0.7, 1, 1])),
        top_p=float(rng.choice([1, 1, 0.8])),
        top_k=int(rng.choice([0, 0, 5])),
        min_p=float(rng.choice([0, 0, 0.1])),
        stop_ids=tuple(rng.choice(world.words, rng.integers(0, 3), replace=False).tolist()),
        stop_strings=tuple(rng.choice(STRINGS, rng.integers(0, 4), replace=False).tolist()),
    )


def random_episode(world: World, seed: int, turns: list[Turn]) -> Episode:
    """Turns, tools, observations and second contexts in an order that the seed decides.

    What it receives is put into ``turns``; what it asks for depends on that, so mistakes do not stay alone.
    """
    rng = np.random.default_rng(seed)
    request = Request(random_sampling(world, rng))
    while True:
        turn = yield request
        turns.append(turn)
        deed = rng.choice(["end", "look", "look", "call", "call", "again"])
        if deed == "end":
            return {"turns": float(len(turns)), "letters": float(len(turn.text))}
        sampling = random_sampling(world, rng)
        if deed == "again":
            request = Request(sampling, prompt=world.others[rng.integers(len(world.others))])
            continue
        number = int(rng.integers(len(world.seen)))
        if deed == "call":
            answer = yield Call("pick", {"number": (number + len(turn.tokens)) % 5})
            number = 0 if answer.value is None else answer.value
        request = Request(sampling, observation=world.seen[number])


def key_of(seed: int) -> np.ndarray:
    """Data of the random key of an episode."""
    return np.array([seed, 2 * seed + 1], np.uint32)


def shape_of(prompt_slots: int, slots_per_prompt: int, chunk: int = 16, max_tokens: int = 96) -> RolloutShape:
    """A shape for the episodes of the world."""
    return RolloutShape(
        prompt_slots, slots_per_prompt, PROMPT, max_tokens, OBSERVATION, OBSERVATION_PATCHES, chunk
    )


@dataclass(frozen=True)
class Played:
    """An episode that is over."""

    trajectory: Trajectory
    turns: list[Turn]


def play(
    world: World,
    groups: list[tuple[int, list[int]]],
    shape: RolloutShape,
    *,
    episode: Any = random_episode,
    entropy: bool = False,
    late: float = 0.0,
    stats: Stats | None = None,
) -> dict[tuple[int, int], Played]:
    """Play groups of (number of the prompt, seeds); each episode exactly once, and to its end.

    Args:
      episode: makes one, of the world, a seed and the list of its turns.
      entropy: record it.
      late: seconds that a tool takes at most.
      stats: added to.
    """
    logs: dict[tuple[int, int], list[Turn]] = {}
    made = []
    for g, (number, seeds) in enumerate(groups):
        episodes = []
        for m, seed in enumerate(seeds):
            logs[g, m] = []
            episodes.append(episode(world, seed, logs[g, m]))
        made.append(PromptGroup(world.prompts[number], np.stack([key_of(seed) for seed in seeds]), episodes))
    processor = world.policy.processor
    stats = Stats() if stats is None else stats
    sampled = stats.sampled_tokens
    with ThreadPoolExecutor(8) as pool:
        order = np.random.default_rng(len(groups))

        def pick(call: Call, wait: float) -> Answer:
            time.sleep(wait)
            number = call.arguments["number"]
            return Answer(number) if number < len(world.seen) else Answer(error="no such observation")

        def tools(call: Call) -> Future:
            return pool.submit(pick, call, float(order.uniform(0, late)))

        done = list(
            roll_out(
                world.params,
                world.policy.config,
                world.bias,
                made,
                shape,
                text=lambda ids: processor.tokenizer.decode(ids, skip_special_tokens=True),
                collate=lambda one: collate([one], processor, PROMPT, PATCHES),
                stats=stats,
                tools=tools,
                entropy=entropy,
            )
        )
    assert Counter((one.group, one.member) for one in done) == Counter(list(logs))
    assert all(one.gi_frame is None for group in made for one in group.episodes)
    assert stats.sampled_tokens - sampled == sum(len(turn.tokens) for log in logs.values() for turn in log)
    return {(one.group, one.member): Played(one, logs[one.group, one.member]) for one in done}


def assert_same(found: Played, expected: Played, name: str = "", atol: float = 1e-4) -> None:
    """The same tokens, texts, stop reasons, facts and observations; numbers within ``atol``."""
    assert [replace(turn, logprobs=()) for turn in found.turns] == [
        replace(turn, logprobs=()) for turn in expected.turns
    ], name
    for a, b in zip(found.turns, expected.turns, strict=True):
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=atol, err_msg=name)
    one, other = vars(found.trajectory), vars(expected.trajectory)
    for field, value in one.items():
        if field in ("group", "member"):
            continue
        if field in ("logprob", "entropy", "log_kept") and value is not None:
            np.testing.assert_allclose(value, other[field], atol=atol, err_msg=f"{name} {field}")
        else:
            np.testing.assert_array_equal(value, other[field], err_msg=f"{name} {field}")
