"""Sampling groups of responses: prefill each prompt once, then decode its whole group against that prefix."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mmrl.kernels.vocab import BANNED
from mmrl.mesh import DECODING, constrain
from mmrl.models import qwen2_5_vl as model
from mmrl.models.params import Param
from mmrl.models.qwen2_5_vl_config import Config, describe
from mmrl.rollout.sampling import Sampling, sample
from mmrl.types import Params, Prompts, Responses, StopReason


@partial(jax.jit, static_argnames="config")
def decoding_weights(params: Params, config: Config) -> Params:
    """The weights in the type of the matrix products, laid out for decoding: cut over ``tensor`` alone."""
    return jax.tree.map(
        lambda param, leaf: constrain(leaf.astype(config.dtype), *param.axes, rules=DECODING),
        describe(config),
        params,
        is_leaf=lambda node: isinstance(node, Param),
    )


prefill = jax.jit(model.prefill, static_argnames="config")
"""The jitted program `mmrl.models.qwen2_5_vl.prefill`."""


def generate(
    params: Params,
    config: Config,
    prompts: Prompts,
    keys: Key[Array, "b"],
    *,
    group: int,
    sampling: Sampling,
    bias: Float[Array, "v"],
    stop_ids: tuple[int, ...],
) -> Responses:
    """Sample ``group`` responses to each prompt.

    The tokens depend on the prompt, its key and the sampling alone, not on what else is in the batch.

    Args:
      params: weights of the policy, as `decoding_weights` lays them out.
      config: its sizes.
      prompts: the batch; fixed shapes compile once.
      keys: one random key for each prompt.
      group: responses a prompt.
      sampling: temperature, truncation and the token budget.
      bias: added to the logits: 0, or `BANNED` for ids that must never be sampled.
      stop_ids: a response ends with the first of these (which is kept, and belongs to the loss mask).
    """
    prefix, hidden = prefill(params, config, prompts)
    return decode(
        params,
        config,
        prefix,
        hidden,
        prompts.next_position,
        keys,
        bias,
        group=group,
        sampling=sampling,
        stop_ids=stop_ids,
    )


@partial(jax.jit, static_argnames=("config", "group", "sampling", "stop_ids"))
def decode(
    params: Params,
    config: Config,
    prefix: model.Prefix,
    hidden: Float[Array, "b d"],
    next_position: Int[Array, "b"],
    keys: Key[Array, "b"],
    bias: Float[Array, "v"],
    *,
    group: int,
    sampling: Sampling,
    stop_ids: tuple[int, ...],
) -> Responses:
    """Decode until every response has stopped or the token budget is spent."""
    prompts, width = hidden.shape
    shape = (prompts, group, sampling.max_tokens)
    table = model.unembedding(params)
    member_keys = jax.vmap(lambda key: jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(group)))(keys)
    flat_keys = member_keys.reshape(-1)

    def draw(hidden: Array, step: Array) -> tuple[Array, Array]:
        with jax.named_scope("sample"):
            rows = hidden.reshape(-1, width)
            logits = jnp.einsum(
                "td,vd->tv", rows, table.astype(rows.dtype), preferred_element_type=jnp.float32
            )
            step_keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(flat_keys)
            tokens, logprob = sample(step_keys, logits + bias, sampling)
            return tokens.reshape(prompts, group), logprob.reshape(prompts, group)

    def body(state: tuple) -> tuple:
        step, hidden, cache, done, length, tokens, logprob = state
        token, token_logprob = draw(hidden, step)
        tokens = tokens.at[:, :, step].set(jnp.where(done, 0, token))
        logprob = logprob.at[:, :, step].set(jnp.where(done, 0.0, token_logprob))
        length = length + ~done
        done = done | jnp.isin(token, jnp.array(stop_ids, jnp.int32))
        position = jnp.broadcast_to((next_position + step)[:, None, None, None], (prompts, group, 1, 3))
        x = model.embed(params, config, token)[:, :, None]
        hidden, cache, _ = model.extend(params, config, x, position, ~done[..., None], prefix, cache)
        return step + 1, hidden[:, :, 0], cache, done, length, tokens, logprob

    def running(state: tuple) -> Array:
        step, _, _, done, *_ = state
        return (step < sampling.max_tokens) & ~done.all()

    group_hidden = jnp.broadcast_to(hidden[:, None], (prompts, group, width))
    start = (
        jnp.int32(0),
        group_hidden,
        model.empty_cache(config, prompts, group, sampling.max_tokens, hidden.dtype),
        jnp.zeros((prompts, group), bool),
        jnp.zeros((prompts, group), jnp.int32),
        jnp.zeros(shape, jnp.int32),
        jnp.zeros(shape, jnp.float32),
    )
    _, _, _, done, length, tokens, logprob = jax.lax.while_loop(running, body, start)
    return Responses(
        tokens=tokens,
        mask=jnp.arange(sampling.max_tokens) < length[..., None],
        logprob=logprob,
        stop=jnp.where(done, StopReason.EOS, StopReason.LENGTH),
        valid=jnp.ones((prompts, group), bool),
    )


def vocabulary_bias(vocabulary: int, tokenizer_size: int, banned_ids: tuple[int, ...]) -> Float[Array, "v"]:
    """Bias that bans ids: vision placeholders, and rows of the table beyond the tokenizer (padding)."""
    ids = jnp.arange(vocabulary)
    banned = (ids >= tokenizer_size) | jnp.isin(ids, jnp.array(banned_ids, jnp.int32))
    return jnp.where(banned, jnp.float32(BANNED), jnp.float32(0))
