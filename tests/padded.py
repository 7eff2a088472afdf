"""The padded form of scoring: each response in slots of its own behind its group's prefix, no packing.

The twin of packed rows (`mmrl.packing`): plain, and made of `extend`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmrl.algorithms.passes import POLICY, Pass, Score, entropy, kl, logprob, passes_of
from mmrl.kernels.vocab import log_distribution
from mmrl.models import language_model
from mmrl.models.config import ModelConfig, Prefix, empty_cache
from mmrl.models.layers import last
from mmrl.train import programs
from mmrl.types import Params, Prompts, Responses


def forward(params, config, x, position, mask, prefix=None):
    """`extend` of a cache with room for just these tokens."""
    cache = empty_cache(config, *x.shape[:3], x.dtype)
    return language_model.extend(params, config, x, position, mask, prefix, cache)


def prefill(params: Params, config: ModelConfig, prompts: Prompts) -> tuple[Prefix, Float[Array, "b d"]]:
    """The prefix of padded prompts, and the hidden state after each prompt's last token."""
    x = language_model.embed_prompts(params, config, prompts)
    hidden, cache = forward(params, config, x[:, None], prompts.position[:, None], prompts.mask[:, None])
    key, value = (
        tuple(jnp.swapaxes(part[:, 0], 1, 2) for part in parts) for parts in (cache.key, cache.value)
    )
    return Prefix(key, value, prompts.mask), last(hidden[:, 0], prompts.mask)


def predict(
    params: Params, config: ModelConfig, prompts: Prompts, responses: Responses
) -> Float[Array, "b g r d"]:
    """Hidden states that predict each response token, teacher forced."""
    prefix, before = prefill(params, config, prompts)
    b, g, r = responses.tokens.shape
    seen = responses.observed
    if seen is None:
        index = jnp.broadcast_to(jnp.arange(r), (b, g, r))
        position = language_model.response_position(prompts, index)
        x, real = language_model.embed(params, config, responses.tokens), responses.mask
    else:
        position = prompts.next_position[:, None, None, None] + seen.position
        flat = jax.tree.map(lambda leaf: leaf.reshape(b * g, *leaf.shape[2:]), (responses.tokens, seen))
        rows = Prompts(
            tokens=flat[0],
            mask=flat[1].real,
            position=flat[1].position,
            next_position=jnp.zeros(b * g, jnp.int32),
            image_token=flat[1].image_token,
            images=flat[1].images,
        )
        x = language_model.embed_prompts(params, config, rows).reshape(b, g, r, -1)
        real = seen.real
    hidden, _ = forward(params, config, x, position, real, prefix)
    first = jnp.broadcast_to(before[:, None, None], (b, g, 1, hidden.shape[-1]))
    return jnp.concatenate([first, hidden[:, :, :-1]], axis=2)


def scores(
    models, policy, batch, views, wanted: frozenset[Score], differentiated: frozenset[Pass] = frozenset()
) -> dict[Score, Float[Array, "b g r"]]:
    """`programs.token_scores` with the logits of all tokens at once; zeros where no token was written."""
    there = batch.responses.mask & batch.responses.valid[..., None]
    distributions = {}
    for each in passes_of(wanted):
        prompts, responses = programs.viewed(batch, views, each.view)
        params = models[each.model]
        if each not in differentiated | {POLICY}:
            params = jax.lax.stop_gradient(params)
        hidden = predict(params, policy.model, prompts, responses)
        table = language_model.unembedding(params)
        flat = hidden.reshape(-1, hidden.shape[-1])
        made = log_distribution(flat, table, policy.bias, policy.temperature)
        distributions[each] = made.reshape(*hidden.shape[:-1], -1)
    found = {}
    for first, of_first in distributions.items():
        own = jnp.take_along_axis(of_first, batch.responses.tokens[..., None], axis=-1)[..., 0]
        found[logprob(first)] = own
        found[entropy(first)] = -(jnp.exp(of_first) * of_first).sum(axis=-1)
        for second, of_second in distributions.items():
            found[kl(first, second)] = (jnp.exp(of_first) * (of_first - of_second)).sum(axis=-1)
    return {name: jnp.where(there, found[name], 0.0) for name in wanted}
