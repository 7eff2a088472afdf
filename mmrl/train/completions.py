"""Responses to given prompts, outside of training."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from mmrl.config import Config
from mmrl.mesh import put
from mmrl.models.prompts import bucket, collate, encode, messages
from mmrl.rollout import engine
from mmrl.rollout.sampling import Sampling
from mmrl.train.assemble import Model
from mmrl.train.rollouts import decode_texts, prompt_keys
from mmrl.types import Params, StopReason

_PURPOSE = 3  # of random keys
_STOP = {StopReason.EOS: "stop", StopReason.LENGTH: "length"}


def complete(
    rows: Sequence[dict[str, Any]], config: Config, model: Model, params: Params, *, n: int, batch: int
) -> Iterator[dict[str, Any]]:
    """Sample ``n`` responses to each of ``rows`` ("name", "problem", "images"), in order.

    All prompts are encoded, and so checked, before the first is sampled. Yields one dict a response: prompt
    (its number), sample, tokens, text, logprobs (nats, of the distribution sampled from) and stop ("stop" for
    a stop token, "length" for the budget).
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
    size = min(batch, len(encoded))
    policy = model.policy(config.rollout.temperature)
    with jax.set_mesh(model.mesh):
        acting = engine.decoding_weights(params, model.config)
    for start in range(0, len(encoded), size):
        part = encoded[start : start + size]
        filled = [part[index % len(part)] for index in range(size)]  # one shape, one compilation
        with jax.set_mesh(model.mesh):
            responses = engine.generate(
                acting,
                model.config,
                put(collate(filled, processor, tokens, slots), model.mesh),
                prompt_keys(config.seed, _PURPOSE, 0, size, start=start),
                group=n,
                sampling=sampling,
                bias=policy.bias,
                stop_ids=processor.stop,
            )
        responses = jax.tree.map(np.asarray, jax.device_get(responses))
        texts = decode_texts(processor, responses)
        for b in range(len(part)):
            for g in range(n):
                written = responses.mask[b, g]
                yield {
                    "prompt": start + b,
                    "sample": g,
                    "text": texts[b][g],
                    "tokens": responses.tokens[b, g][written].tolist(),
                    "logprobs": [round(float(x), 6) for x in responses.logprob[b, g][written]],
                    "stop": _STOP[int(responses.stop[b, g])],
                }
