"""Responses to given prompts, outside of training."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from mmrl.config import Config
from mmrl.data.pipeline import Batch, encode_sample
from mmrl.models.prompts import collate, padded
from mmrl.open import OpenModel, prompt_format, sampling_of
from mmrl.rollout.engine import decoding_weights
from mmrl.rollout.trajectory import Trajectory
from mmrl.sample import Sample
from mmrl.train.rollouts import RolloutContext, play, prompt_keys, tool_pool
from mmrl.types import Params, StopReason

_PURPOSE = 3  # of random keys
HELD = 4  # times the prompts decoded at once, whose images are in memory
_STOP = {StopReason.EOS: "stop", StopReason.STRING: "stop", StopReason.LENGTH: "length"}


def choose_buckets(samples: Sequence[Sample], config: Config, model: OpenModel) -> tuple[int, int]:
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
    on_response: Callable[[int], None] = lambda tokens: None,
) -> Iterator[dict[str, Any]]:
    """Sample ``n`` responses to each prompt, in order, in the buckets that `choose_buckets` gave.

    Yields one dict a response: prompt (its number), sample, tokens, text, logprobs (nats, of the distribution
    sampled from), stop ("stop" for a stop token or string, "length" for the budget) and, where tools may be
    called, facts. What tools answered is not among the tokens. ``on_response`` is called with the tokens of
    each response that has ended, which may be before others that come first.
    """
    parts = -(-len(samples) // (HELD * (config.rollout.prompt_slots or len(samples))))
    weights = decoding_weights(params, model.config)
    form, sampling = prompt_format(config), sampling_of(config)
    with jax.set_mesh(model.mesh), tool_pool(config) as tools:
        context = RolloutContext(config, model, model.policy(sampling.temperature), tools)
        for rows in np.array_split(np.arange(len(samples)), parts):
            part, start = [samples[row] for row in rows], int(rows[0])
            encoded = [encode_sample(sample, model.processor, form) for sample in part]
            prompts = collate(encoded, model.processor, *buckets)
            batch = Batch(rows, part, prompts, keep=np.ones(len(part), bool), skipped=())
            keys = prompt_keys(config.seed, _PURPOSE, 0, len(part), start=start)
            early: dict[tuple[int, int], Trajectory] = {}
            following = iter(np.ndindex(len(part), n))
            cell = next(following)
            for response in play(context, weights, batch, keys, group=n, sampling=sampling):
                on_response(int(response.written.sum()))
                early[response.group, response.member] = response
                while cell in early:
                    yield _row(early.pop(cell), start)
                    cell = next(following, (-1, -1))


def _row(response: Trajectory, start: int) -> dict[str, Any]:
    written = response.written
    return {
        "prompt": start + response.group,
        "sample": response.member,
        "text": response.text,
        "tokens": response.tokens[written].tolist(),
        "logprobs": [round(float(x), 6) for x in response.logprob[written]],
        "stop": _STOP[response.stop],
        **({"facts": dict(response.facts)} if response.facts else {}),
    }
