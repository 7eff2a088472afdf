"""The programs that sample: lanes of one prompt each, with columns in which its responses are decoded.

A lane holds the keys and values of its prompt once, read once a step for all of its columns, and of each
column those of the response so far. `mmrl.rollout.scheduler` decides on the host what runs in which lane.
``l`` lanes, ``w`` columns of a lane, ``t`` slots of a column for response tokens; other letters as in
`mmrl.types`.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from mmrl.kernels.vocab import BANNED
from mmrl.mesh import DECODING, constrain, constrain_weights
from mmrl.models import qwen2_5_vl as model
from mmrl.models.qwen2_5_vl_config import Config, describe
from mmrl.rollout.sampling import Draws, Options, sample
from mmrl.types import Params, Prompts


@struct.dataclass
class Lanes:
    """What is being decoded.

    The cache of a column holds all tokens of its response but the last one of a turn that has ended: whether
    that one is read depends on what follows.
    """

    prefix: model.Prefix
    prompt_hidden: Float[Array, "l d"]  # after the prompt's last token
    prompt_next: Int[Array, "l"]  # mRoPE position of the first response token
    cache: model.Cache
    hidden: Float[Array, "l w d"]  # predicts the next token
    position: Int[Array, "l w"]  # mRoPE position of the next token
    count: Int[Array, "l w"]  # tokens of the response so far, read ones included
    running: Bool[Array, "l w"]
    limit: Int[Array, "l w"]  # ``count`` at which the turn ends
    key: Key[Array, "l w"]
    options: Options  # of rows ``l w``


@struct.dataclass
class Columns:
    """Host's orders for each column: what begins anew in it, or reads an observation, or ends."""

    begins: Bool[Array, "l w"]  # at the prompt's end
    halts: Bool[Array, "l w"]
    limit: Int[Array, "l w"]
    key: UInt32[Array, "l w x"]
    options: Options


@struct.dataclass
class Drawn:
    """What one call of `decode` has sampled; ``s`` steps, of which ``steps`` were taken."""

    tokens: Int[Array, "l w s"]
    logprob: Float[Array, "l w s"]
    log_kept: Float[Array, "l w s"]
    entropy: Float[Array, "l w s"] | None
    drawn: Int[Array, "l w"]  # tokens of each column
    running: Bool[Array, "l w"]
    steps: Int[Array, ""]


@partial(jax.jit, static_argnames="config")
def decoding_weights(params: Params, config: Config) -> Params:
    """The weights as sampling reads them.

    In the type of the matrix products, cut over ``tensor`` alone, and ``layers`` a tuple: slices of a stack
    would be copied in every step.
    """
    cast = jax.tree.map(lambda leaf: leaf.astype(config.dtype), params)
    placed = constrain_weights(cast, describe(config), DECODING)
    layers = tuple(jax.tree.map(lambda stack, i=i: stack[i], placed["layers"]) for i in range(config.layers))
    return {**placed, "layers": layers}


prefill = jax.jit(model.prefill, static_argnames="config")
"""The jitted program `mmrl.models.qwen2_5_vl.prefill`."""


@partial(jax.jit, static_argnames=("config", "lanes", "columns", "prompt", "slots", "stop_slots"))
def empty_lanes(
    config: Config, *, lanes: int, columns: int, prompt: int, slots: int, stop_slots: int
) -> Lanes:
    """Idle lanes for prompts of ``prompt`` tokens, with ``slots`` of response tokens in each column."""
    grid = (lanes, columns)
    shape = (lanes, prompt, config.kv_heads, config.head_dim)

    def layers() -> tuple[Array, ...]:
        made = (jnp.zeros(shape, config.dtype) for _ in range(config.layers))
        return tuple(constrain(layer, "batch", None, "heads", None) for layer in made)

    def zeros(*width: int, dtype: Any = jnp.int32) -> Array:
        return constrain(jnp.zeros((*grid, *width), dtype), "batch", *[None] * (1 + len(width)))

    return Lanes(
        prefix=model.Prefix(layers(), layers(), constrain(jnp.zeros(shape[:2], bool), "batch", None)),
        prompt_hidden=constrain(jnp.zeros((lanes, config.width), config.dtype), "batch", None),
        prompt_next=constrain(jnp.zeros(lanes, jnp.int32), "batch"),
        cache=model.empty_cache(config, lanes, columns, slots, config.dtype),
        hidden=zeros(config.width, dtype=config.dtype),
        position=zeros(),
        count=zeros(),
        running=zeros(dtype=bool),
        limit=zeros(),
        key=jnp.broadcast_to(jax.random.key(0), grid),
        options=Options(
            temperature=zeros(dtype=jnp.float32),
            top_p=zeros(dtype=jnp.float32),
            top_k=zeros(),
            min_p=zeros(dtype=jnp.float32),
            stop_ids=zeros(stop_slots),
        ),
    )


@partial(jax.jit, static_argnames="config", donate_argnames="state")
def admit(params: Params, config: Config, state: Lanes, prompts: Prompts, lane: Int[Array, "b"]) -> Lanes:
    """Prefill ``prompts`` and put each into its lane; an index past the end drops the row."""
    prefix, hidden = model.prefill(params, config, prompts)

    def put(rows: Array, new: Array) -> Array:
        return rows.at[lane].set(new.astype(rows.dtype), mode="drop")

    return replace(
        state,
        prefix=jax.tree.map(put, state.prefix, prefix),
        prompt_hidden=put(state.prompt_hidden, hidden),
        prompt_next=put(state.prompt_next, prompts.next_position),
    )


@partial(jax.jit, donate_argnames="state")
def share(state: Lanes, source: Int[Array, "n"], target: Int[Array, "n"]) -> Lanes:
    """Copy prompts from lane to lane, so that more columns serve them; a target past the end is dropped."""

    def copy(rows: Array) -> Array:
        return rows.at[target].set(rows[source], mode="drop")

    return replace(
        state,
        prefix=jax.tree.map(copy, state.prefix),
        prompt_hidden=copy(state.prompt_hidden),
        prompt_next=copy(state.prompt_next),
    )


@partial(jax.jit, donate_argnames="state")
def direct(state: Lanes, columns: Columns) -> Lanes:
    """Carry out the host's orders; columns without one go on as they were."""

    def where(yes: Array, new: Array | int, old: Array) -> Array:
        return jnp.where(yes.reshape(yes.shape + (1,) * (old.ndim - yes.ndim)), new, old)

    begins = columns.begins
    fresh = partial(where, begins)
    return replace(
        state,
        cache=replace(state.cache, length=fresh(0, state.cache.length)),
        hidden=fresh(state.prompt_hidden[:, None], state.hidden),
        position=fresh(state.prompt_next[:, None], state.position),
        count=fresh(0, state.count),
        running=(state.running | begins) & ~columns.halts,
        limit=fresh(columns.limit, state.limit),
        key=jnp.where(begins, jax.random.wrap_key_data(columns.key), state.key),
        options=jax.tree.map(fresh, columns.options, state.options),
    )


@partial(jax.jit, static_argnames=("config", "steps", "entropy"), donate_argnames="state")
def decode(
    params: Params,
    config: Config,
    state: Lanes,
    bias: Float[Array, "v"],
    *,
    steps: int,
    entropy: bool = False,
) -> tuple[Lanes, Drawn]:
    """Let every running column write up to ``steps`` tokens; ends early when all have stopped.

    A token depends on its prompt, what its column has read and written, the column's key and options alone:
    not on the other columns, nor on how the steps are cut into calls.

    Args:
      params: weights of the policy, as `decoding_weights` lays them out.
      config: its sizes.
      state: the lanes; given away. There must be room for the tokens.
      bias: added to the logits: 0, or `BANNED` for ids that must never be sampled.
      steps: at most.
      entropy: give that of each draw too.
    """
    lanes, width = state.hidden.shape[:2]
    table = model.unembedding(params)
    blank = jnp.zeros((lanes, width, steps), jnp.float32)
    drawn = Drawn(
        tokens=blank.astype(jnp.int32),
        logprob=blank,
        log_kept=blank,
        entropy=blank if entropy else None,
        drawn=jnp.zeros((lanes, width), jnp.int32),
        running=state.running,
        steps=jnp.int32(0),
    )

    def step(carried: tuple[Lanes, Drawn]) -> tuple[Lanes, Drawn]:
        state, drawn = carried
        made = _draw(state, table, bias, entropy)
        token, spread = made.tokens, made.entropy
        active, at = state.running, drawn.steps

        def keep(rows: Array, new: Array) -> Array:
            return rows.at[:, :, at].set(jnp.where(active, new, 0))

        stops = (token[..., None] == state.options.stop_ids).any(-1) | (state.count + 1 >= state.limit)
        state = replace(state, running=active & ~stops, count=state.count + active)
        drawn = replace(
            drawn,
            tokens=keep(drawn.tokens, token),
            logprob=keep(drawn.logprob, made.logprob),
            log_kept=keep(drawn.log_kept, made.log_kept),
            entropy=None if drawn.entropy is None or spread is None else keep(drawn.entropy, spread),
            drawn=drawn.drawn + active,
            running=state.running,
            steps=at + 1,
        )
        return _read(params, config, state, token), drawn

    def going(carried: tuple[Lanes, Drawn]) -> Array:
        return (carried[1].steps < steps) & carried[0].running.any()

    state, drawn = jax.lax.while_loop(going, step, (state, drawn))
    # Small, and read by every host.
    return state, jax.tree.map(lambda leaf: constrain(leaf, *[None] * leaf.ndim), drawn)


def _draw(state: Lanes, table: Float[Array, "v d"], bias: Float[Array, "v"], entropy: bool) -> Draws:
    """The next token of every column, arrays ``l w``; idle ones get something too."""
    with jax.named_scope("sample"):
        shape = state.running.shape
        rows = state.hidden.reshape(-1, state.hidden.shape[-1])
        logits = jnp.einsum("td,vd->tv", rows, table.astype(rows.dtype), preferred_element_type=jnp.float32)
        keys = jax.vmap(jax.random.fold_in)(state.key.reshape(-1), state.count.reshape(-1))
        options = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), state.options)
        made = sample(keys, logits + bias, options, entropy=entropy)
        return jax.tree.map(lambda row: row.reshape(shape), made)


def _read(params: Params, config: Config, state: Lanes, token: Int[Array, "l w"]) -> Lanes:
    """Let the running columns read their token, if there are any.

    A loop of one turn or none: unlike a condition's, its state is changed in place.
    """

    def read(carried: tuple[Array, Lanes]) -> tuple[Array, Lanes]:
        _, state = carried
        position = jnp.broadcast_to(state.position[..., None, None], (*token.shape, 1, 3))
        x = model.embed(params, config, token)[:, :, None]
        mask = state.running[..., None]
        hidden, cache, _ = model.extend(params, config, x, position, mask, state.prefix, state.cache)
        after = replace(state, hidden=hidden[:, :, 0], cache=cache, position=state.position + state.running)
        return jnp.bool_(False), after

    return jax.lax.while_loop(lambda carried: carried[0], read, (state.running.any(), state))[1]


@partial(jax.jit, static_argnames="config", donate_argnames="state")
def append(
    params: Params,
    config: Config,
    state: Lanes,
    prompts: Prompts,
    column: Int[Array, "l"],
    length: Int[Array, "l"],
    limit: Int[Array, "l"],
    options: Options,
) -> Lanes:
    """Let one column of each lane read an observation, and write on.

    Args:
      params: weights of the policy, as `decoding_weights` lays them out.
      config: its sizes.
      state: the lanes; given away. There must be room for the tokens.
      prompts: the observations, a row a lane, begun by the last token of the turn before; positions are
        whole. A row with an empty mask leaves its lane as it was.
      column: which one.
      length: tokens of its response that are in the cache and stay there.
      limit: ``count`` at which the coming turn ends.
      options: of the coming turn, rows ``l``.
    """
    lane = jnp.arange(len(column))
    reads = prompts.mask.any(axis=1)
    with jax.named_scope("append"):
        x = model.embed_prompts(params, config, prompts)
        mine = model.Cache(
            key=tuple(layer[lane, column][:, None] for layer in state.cache.key),
            value=tuple(layer[lane, column][:, None] for layer in state.cache.value),
            length=length[:, None],
        )
        hidden, cache, _ = model.extend(
            params,
            config,
            x[:, None],
            prompts.position[:, None],
            prompts.mask[:, None],
            state.prefix,
            mine,
        )

    def put(rows: Array, new: Array) -> Array:
        old = rows[lane, column]
        keep = reads.reshape(reads.shape + (1,) * (old.ndim - 1))
        return rows.at[lane, column].set(jnp.where(keep, new, old))

    return replace(
        state,
        cache=model.Cache(
            key=tuple(put(old, new[:, 0]) for old, new in zip(state.cache.key, cache.key, strict=True)),
            value=tuple(put(old, new[:, 0]) for old, new in zip(state.cache.value, cache.value, strict=True)),
            length=put(state.cache.length, cache.length[:, 0]),
        ),
        hidden=put(state.hidden, model.last(hidden[:, 0], prompts.mask)),
        position=put(state.position, prompts.next_position),
        count=put(state.count, cache.length[:, 0]),
        running=put(state.running, reads),
        limit=put(state.limit, limit),
        options=jax.tree.map(put, state.options, options),
    )


def grow(state: Lanes, slots: int) -> Lanes:
    """Give every column room for ``slots`` tokens; layer by layer, so that only one exists twice."""

    def layers(old: tuple[Array, ...]) -> tuple[Array, ...]:
        new = []
        for layer in old:
            new.append(_pad(layer, slots))
            layer.delete()
        return tuple(new)

    key, value = layers(state.cache.key), layers(state.cache.value)
    return replace(state, cache=replace(state.cache, key=key, value=value))


@partial(jax.jit, static_argnames="slots")
def _pad(layer: Float[Array, "l w h t k"], slots: int) -> Float[Array, "l w h slots k"]:
    padded = jnp.pad(layer, ((0, 0), (0, 0), (0, 0), (0, slots - layer.shape[3]), (0, 0)))
    return constrain(padded, "batch", None, "heads", None, None)


def vocabulary_bias(vocabulary: int, tokenizer_size: int, banned_ids: tuple[int, ...]) -> Float[Array, "v"]:
    """Bias that bans ids: vision placeholders, and rows of the table beyond the tokenizer (padding)."""
    ids = jnp.arange(vocabulary)
    banned = (ids >= tokenizer_size) | jnp.isin(ids, jnp.array(banned_ids, jnp.int32))
    return jnp.where(banned, jnp.float32(BANNED), jnp.float32(0))
