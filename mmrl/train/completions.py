"""Responses to given prompts, outside of training."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax

from mmrl.config import Config
from mmrl.models.prompts import bucket, collate, encode, messages
from mmrl.rollout.engine import decoding_weights
from mmrl.rollout.sampling import Sampling
from mmrl.rollout.stats import Stats
from mmrl.rollout.trajectory import Trajectory
from mmrl.sample import Sample
from mmrl.train.assemble import Model
from mmrl.train.rollouts import play, prompt_keys, tool_pool
from mmrl.types import Params, StopReason

_PURPOSE = 3  # of random keys
_STOP = {StopReason.EOS: "stop", StopReason.STRING: "stop", StopReason.LENGTH: "length"}


def complete(
    rows: Sequence[dict[str, Any]], config: Config, model: Model, params: Params, *, n: int, batch: int
) -> Iterator[dict[str, Any]]:
    """Sample ``n`` responses to each of ``rows`` ("name", "problem", "images"), in order.

    All prompts are encoded, and so checked, before the first is sampled. Yields one dict a response: prompt
    (its number), sample, tokens, text, logprobs (nats, of the distribution sampled from), stop ("stop" for a
    stop token or string, "length" for the budget) and, where tools may be called, facts. What tools answered
    is not among the tokens.
    """
    processor = model.processor
    encoded = [
        encode(
            processor,
            messages(row["problem"], config.data.system or None, config.data.suffix),
            row["images"],
            name=row["name"],
            prompt_budget=max(config.data.prompt_buckets),
            patch_budget=max(config.data.patch_buckets),
        )
        for row in rows
    ]
    if not encoded:
        return
    tokens = bucket(max(len(item.tokens) for item in encoded), config.data.prompt_buckets)
    slots = bucket(max(len(item.patches) for item in encoded), config.data.patch_buckets)
    sampling = Sampling(
        max_tokens=config.rollout.max_tokens,
        temperature=config.rollout.temperature,
        top_p=config.rollout.top_p,
    )
    policy = model.policy(config.rollout.temperature)
    config = replace(config, rollout=replace(config.rollout, lanes=batch))
    samples = [Sample(row["name"], row["problem"], answer="", images=tuple(row["images"])) for row in rows]
    early: dict[tuple[int, int], Trajectory] = {}
    following = iter((b, g) for b in range(len(rows)) for g in range(n))
    seat = next(following)
    with jax.set_mesh(model.mesh), tool_pool(config) as tools:
        for one in play(
            decoding_weights(params, model.config),
            policy,
            model,
            samples,
            collate(encoded, processor, tokens, slots),
            prompt_keys(config.seed, _PURPOSE, 0, len(rows)),
            group=n,
            sampling=sampling,
            config=config,
            stats=Stats(),
            tools=tools,
        ):
            early[one.group, one.member] = one
            while seat in early:
                yield _row(early.pop(seat))
                seat = next(following, (-1, -1))


def _row(one: Trajectory) -> dict[str, Any]:
    return {
        "prompt": one.group,
        "sample": one.member,
        "text": one.text,
        "tokens": one.tokens[one.written].tolist(),
        "logprobs": [round(float(x), 6) for x in one.logprob[one.written]],
        "stop": _STOP[one.stop],
        **({"facts": dict(one.facts)} if one.facts else {}),
    }
