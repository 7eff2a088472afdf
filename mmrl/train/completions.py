"""Responses to given prompts, outside of training."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from mmrl.config import Config
from mmrl.data.pipeline import encode_sample
from mmrl.models.prompts import collate, padded
from mmrl.open import OpenModel, prompt_format
from mmrl.rollout.engine import decoding_weights
from mmrl.rollout.sampling import Sampling
from mmrl.rollout.stats import Stats
from mmrl.rollout.trajectory import Trajectory
from mmrl.sample import Sample
from mmrl.train.rollouts import play, prompt_keys, tool_pool
from mmrl.types import Params, StopReason
from mmrl.workers.pool import WorkerPool

_PURPOSE = 3  # of random keys
HELD = 4  # times the prompts decoded at once, whose images are in memory
_STOP = {StopReason.EOS: "stop", StopReason.STRING: "stop", StopReason.LENGTH: "length"}


def check(samples: Sequence[Sample], config: Config, model: OpenModel) -> tuple[int, int]:
    """Encode every prompt; the buckets of tokens and of patch slots that hold them all.

    Raises ValueError naming the first that cannot be used.
    """
    form = prompt_format(config)
    tokens = slots = 0
    for sample in samples:
        encoded = encode_sample(sample, model.processor, form)
        tokens, slots = max(tokens, len(encoded.tokens)), max(slots, len(encoded.patches))
    return padded(tokens, slots, model.processor, form.prompt_buckets, form.patch_buckets)


def complete(
    samples: Sequence[Sample],
    buckets: tuple[int, int],
    config: Config,
    model: OpenModel,
    params: Params,
    *,
    n: int,
    heard: Callable[[int], None] = lambda tokens: None,
) -> Iterator[dict[str, Any]]:
    """Sample ``n`` responses to each prompt, in order, in the buckets that `check` gave.

    Yields one dict a response: prompt (its number), sample, tokens, text, logprobs (nats, of the distribution
    sampled from), stop ("stop" for a stop token or string, "length" for the budget) and, where tools may be
    called, facts. What tools answered is not among the tokens. ``heard`` is told the tokens of each response
    that has ended, which may be before others that come first.
    """
    parts = -(-len(samples) // (HELD * (config.rollout.lanes or len(samples))))
    weights = decoding_weights(params, model.config)
    with jax.set_mesh(model.mesh), tool_pool(config) as tools:
        for rows in np.array_split(np.arange(len(samples)), parts):
            part = [samples[row] for row in rows]
            yield from _part(part, int(rows[0]), buckets, config, model, weights, tools, n, heard)


def _part(
    samples: Sequence[Sample],
    start: int,
    buckets: tuple[int, int],
    config: Config,
    model: OpenModel,
    weights: Params,
    tools: WorkerPool | None,
    n: int,
    heard: Callable[[int], None],
) -> Iterator[dict[str, Any]]:
    """Responses to so many prompts as are held at once, ``start`` the number of the first."""
    processor, form = model.processor, prompt_format(config)
    encoded = [encode_sample(sample, processor, form) for sample in samples]
    sampling = Sampling(
        max_tokens=config.rollout.max_tokens,
        temperature=config.rollout.temperature,
        top_p=config.rollout.top_p,
        top_k=config.rollout.top_k,
        min_p=config.rollout.min_p,
    )
    early: dict[tuple[int, int], Trajectory] = {}
    following = iter((b, g) for b in range(len(samples)) for g in range(n))
    seat = next(following)
    for one in play(
        weights,
        model.policy(config.rollout.temperature),
        model,
        samples,
        collate(encoded, processor, *buckets),
        prompt_keys(config.seed, _PURPOSE, 0, len(samples), start=start),
        group=n,
        sampling=sampling,
        config=config,
        stats=Stats(),
        tools=tools,
    ):
        heard(int(one.written.sum()))
        early[one.group, one.member] = one
        while seat in early:
            yield _row(early.pop(seat), start)
            seat = next(following, (-1, -1))


def _row(one: Trajectory, start: int) -> dict[str, Any]:
    return {
        "prompt": start + one.group,
        "sample": one.member,
        "text": one.text,
        "tokens": one.tokens[one.written].tolist(),
        "logprobs": [round(float(x), 6) for x in one.logprob[one.written]],
        "stop": _STOP[one.stop],
        **({"facts": dict(one.facts)} if one.facts else {}),
    }
