"""Jitted programs of sampling: prefill into prompt slots, decode in response slots.

A prompt slot holds the KV cache of one prompt, read once a step for all of its response slots, and of each
response slot the KV cache of its response so far. `mmrl.rollout.scheduler` decides on the host what runs in
which slot. ``l`` prompt slots, ``w`` response slots of each, ``t`` response tokens that a cache has room for;
other letters as in `mmrl.types`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from mmrl.kernels.vocab import BANNED
from mmrl.mesh import DECODING, constrain, constrain_weights
from mmrl.models.config import Cache, ModelConfig, Prefix, empty_cache
from mmrl.models.family import param_specs
from mmrl.models.image_rows import features_of, image_features, take_row
from mmrl.models.language_model import (
    embed,
    embed_prompts,
    extend,
    prefill_rows,
    split_layers,
    unembedding,
)
from mmrl.models.layers import last
from mmrl.models.rows import TokenRows, scatter_rows
from mmrl.packing import PackedBatch
from mmrl.rollout.sampling import Draws, SamplingArrays, sample
from mmrl.types import Params, Prompts

_SMALLEST_CACHE = 256  # response tokens that a slot's KV cache has room for at first


@dataclass(frozen=True)
class RolloutShape:
    """Numbers of slots that are decoded at once; the shapes of all programs of a rollout follow from it."""

    prompt_slots: int  # prompts
    slots_per_prompt: int  # responses of a prompt
    prompt: int  # tokens of a prompt
    max_tokens: int  # of a response, what it reads included
    observation: int = 0  # tokens of one observation
    observation_patches: int = 0  # patch slots of one
    chunk: int = 16  # steps between two looks of the host
    compacts: bool = False  # into fewer slots, once no response waits for one

    @property
    def cache_sizes(self) -> tuple[int, ...]:
        """Sizes of a slot's cache: it grows with its responses, up to the last."""
        sizes = [self.max_tokens]
        while sizes[0] > 2 * _SMALLEST_CACHE:
            sizes.insert(0, -(-sizes[0] // 4))
        return tuple(sizes)

    def compact_grids(self, shards: int) -> tuple[tuple[int, int], ...]:
        """Numbers of prompt slots, and of response slots in each, that running responses are compacted into.

        A half of the slots, and an eighth, in no more prompt slots. What ``shards`` divide is so afterwards.
        """
        if not self.compacts:
            return ()
        slots, parts = self.prompt_slots * self.slots_per_prompt, math.gcd(self.prompt_slots, shards)
        widths = [max(self.slots_per_prompt // size, 1) for size in (2, 4)]
        rows = (-(-slots // (size * width)) for size, width in zip((2, 8), widths, strict=True))
        return tuple(
            (min(-(-row // parts) * parts, self.prompt_slots), width)
            for row, width in zip(rows, widths, strict=True)
        )

    @property
    def prefill_sizes(self) -> tuple[int, int]:
        """Prompts of one prefill: an eighth of the prompt slots where few are free, or all."""
        return max(1, self.prompt_slots // 8), self.prompt_slots

    def within(self, prompts: int, group: int) -> "RolloutShape":
        """The shape for so many prompts and responses to each: never larger; 0 slots mean all."""
        return replace(
            self,
            prompt_slots=min(self.prompt_slots or prompts, prompts),
            slots_per_prompt=min(self.slots_per_prompt or group, group),
            chunk=min(self.chunk, self.max_tokens),
        )


def cache_bytes(config: ModelConfig, shape: RolloutShape) -> int:
    """Bytes of the keys and values of a rollout at its largest, over all devices."""
    token = 2 * config.layers * config.kv_heads * config.head_dim * np.dtype(config.dtype).itemsize
    return token * shape.prompt_slots * (shape.prompt + shape.slots_per_prompt * shape.max_tokens)


@struct.dataclass
class DecodeState:
    """State of decoding: KV caches, and what each response slot runs.

    The cache of a response slot holds all tokens of its response but the last one of a turn that has ended:
    whether that one is read depends on what follows.
    """

    prefix: Prefix
    prompt_hidden: Float[Array, "l d"]  # after the prompt's last token
    prompt_next: Int[Array, "l"]  # mRoPE position of the first response token
    cache: Cache
    hidden: Float[Array, "l w d"]  # predicts the next token
    position: Int[Array, "l w"]  # mRoPE position of the next token
    count: Int[Array, "l w"]  # tokens of the response so far, read ones included
    running: Bool[Array, "l w"]
    limit: Int[Array, "l w"]  # ``count`` at which the turn ends
    key: Key[Array, "l w"]
    options: SamplingArrays  # of rows ``l w``


@struct.dataclass
class SlotCommands:
    """Commands of the host for each response slot: begin a response in it, or stop."""

    begins: Bool[Array, "l w"]  # at the prompt's end
    halts: Bool[Array, "l w"]
    limit: Int[Array, "l w"]
    key: UInt32[Array, "l w x"]
    options: SamplingArrays


@struct.dataclass
class DecodedTokens:
    """Tokens that one call of `decode` has sampled; ``s`` steps, of which ``steps`` were taken."""

    tokens: Int[Array, "l w s"]
    logprob: Float[Array, "l w s"]
    log_kept: Float[Array, "l w s"]
    entropy: Float[Array, "l w s"] | None
    drawn: Int[Array, "l w"]  # tokens of each slot
    running: Bool[Array, "l w"]
    steps: Int[Array, ""]


@partial(jax.jit, static_argnames="config")
def decoding_weights(params: Params, config: ModelConfig) -> Params:
    """The weights as sampling reads them.

    In the type of the matrix products, cut over ``tensor`` alone, and ``layers`` a tuple: slices of a stack
    would be copied in every step.
    """
    cast = jax.tree.map(lambda leaf: leaf.astype(config.dtype), params)
    placed = constrain_weights(cast, param_specs(config), DECODING)
    return {**placed, "layers": split_layers(config, placed["layers"])}


@partial(jax.jit, static_argnames="config")
def prefill(
    params: Params, config: ModelConfig, prompts: Prompts, packed: PackedBatch
) -> tuple[Prefix, Float[Array, "b d"]]:
    """Run prompts in packed rows: the prefix their groups share, and what predicts the first response token.

    Args:
      params: weights of the policy, as `decoding_weights` lays them out.
      config: its sizes.
      prompts: padded; only their masks, their patches and their shapes are read.
      packed: their rows (`mmrl.packing.pack_prompts`). Prompts that are in none of them get zeros.
    """
    (b, length), shards = prompts.mask.shape, packed.tokens.tokens.shape[1]
    _, slots, width = prompts.images.patches.shape
    of_shards = prompts.images.patches.reshape(shards, b // shards * slots, width)
    with jax.named_scope("prefill"):
        patches = constrain(of_shards, "batch", None, None)
        features = image_features(params, config, patches, packed.patches, packed.patch_rows)
        heads = ("batch", None, "heads", None)
        shape = (shards, b // shards * length, config.kv_heads, config.head_dim)
        layers = [(jnp.zeros(shape, config.dtype),) * 2 for _ in range(config.layers)]
        hidden = jnp.zeros((shards, b // shards, config.width), config.dtype)
        start = constrain(hidden, "batch", None, None), jax.tree.map(lambda x: constrain(x, *heads), layers)

        def add_row(m: Array, made: tuple) -> tuple:
            rows = take_row(packed.tokens, m)
            states, stored = prefill_rows(params, config, rows, features_of(features, rows))
            ends = jnp.take_along_axis(states, rows.predictor[..., None], axis=1)
            real = jnp.arange(rows.place.shape[1]) < rows.count[:, None]
            hidden = scatter_rows(made[0], jnp.where(real, rows.place, -1), ends, ("batch", None, None))
            put = partial(scatter_rows, axes=heads)
            at = _places(rows, length)
            return hidden, jax.tree.map(lambda layer, new: put(layer, at, new), made[1], stored)

        with jax.named_scope("token_rows"):
            hidden, layers = jax.lax.fori_loop(0, packed.token_rows, add_row, start)

    def whole(x: Array) -> Array:
        return x.reshape(b, -1, *x.shape[2:])

    key, value = zip(*jax.tree.map(whole, layers), strict=True)
    return Prefix(key, value, prompts.mask), hidden.reshape(b, -1)


def _places(rows: TokenRows, length: int) -> Int[Array, "d n"]:
    """Of each slot of a row of prompts, its place in the prefix of the shard; -1 of those of no prompt."""

    def of_shard(span: Array, predictor: Array, place: Array, count: Array) -> Array:
        starts = jnp.concatenate([jnp.zeros(1, jnp.int32), predictor[:-1] + 1])
        number = jnp.maximum(span, 0)
        at = place[number] * length + jnp.arange(len(span)) - starts[number]
        return jnp.where((span >= 0) & (span < count), at, -1)

    span = jnp.asarray(rows.segments.span)
    return jax.vmap(of_shard)(span, rows.predictor, rows.place, rows.count)


@partial(
    jax.jit,
    static_argnames=("config", "prompt_slots", "slots_per_prompt", "prompt", "cache_size", "max_stop_ids"),
)
def init_decode_state(
    config: ModelConfig,
    *,
    prompt_slots: int,
    slots_per_prompt: int,
    prompt: int,
    cache_size: int,
    max_stop_ids: int,
) -> DecodeState:
    """Idle slots for prompts of ``prompt`` tokens and responses of up to ``cache_size`` tokens."""
    grid = (prompt_slots, slots_per_prompt)
    shape = (prompt_slots, prompt, config.kv_heads, config.head_dim)

    def layers() -> tuple[Array, ...]:
        made = (jnp.zeros(shape, config.dtype) for _ in range(config.layers))
        return tuple(constrain(layer, "batch", None, "heads", None) for layer in made)

    def zeros(*width: int, dtype: Any = jnp.int32) -> Array:
        return constrain(jnp.zeros((*grid, *width), dtype), "batch", *[None] * (1 + len(width)))

    return DecodeState(
        prefix=Prefix(layers(), layers(), constrain(jnp.zeros(shape[:2], bool), "batch", None)),
        prompt_hidden=constrain(jnp.zeros((prompt_slots, config.width), config.dtype), "batch", None),
        prompt_next=constrain(jnp.zeros(prompt_slots, jnp.int32), "batch"),
        cache=empty_cache(config, prompt_slots, slots_per_prompt, cache_size, config.dtype),
        hidden=zeros(config.width, dtype=config.dtype),
        position=zeros(),
        count=zeros(),
        running=zeros(dtype=bool),
        limit=zeros(),
        key=jnp.broadcast_to(jax.random.key(0), grid),
        options=SamplingArrays(
            temperature=zeros(dtype=jnp.float32),
            top_p=zeros(dtype=jnp.float32),
            top_k=zeros(),
            min_p=zeros(dtype=jnp.float32),
            stop_ids=zeros(max_stop_ids),
        ),
    )


@partial(jax.jit, static_argnames="config", donate_argnames="state")
def admit(
    params: Params,
    config: ModelConfig,
    state: DecodeState,
    prompts: Prompts,
    packed: PackedBatch,
    prompt_slot: Int[Array, "b"],
) -> DecodeState:
    """`prefill` prompts and put each into its prompt slot; an index past the end drops it."""
    prefix, hidden = prefill(params, config, prompts, packed)

    def scatter(rows: Array, new: Array) -> Array:
        return rows.at[prompt_slot].set(new.astype(rows.dtype), mode="drop")

    return replace(
        state,
        prefix=jax.tree.map(scatter, state.prefix, prefix),
        prompt_hidden=scatter(state.prompt_hidden, hidden),
        prompt_next=scatter(state.prompt_next, prompts.next_position),
    )


@partial(jax.jit, donate_argnames="state")
def copy_prompts(state: DecodeState, source: Int[Array, "n"], target: Int[Array, "n"]) -> DecodeState:
    """Copy prompts between prompt slots, so that more slots serve them; a target past the end is dropped."""

    def copy(rows: Array) -> Array:
        return rows.at[target].set(rows[source], mode="drop")

    return replace(
        state,
        prefix=jax.tree.map(copy, state.prefix),
        prompt_hidden=copy(state.prompt_hidden),
        prompt_next=copy(state.prompt_next),
    )


def compact(
    state: DecodeState,
    source: Int[np.ndarray, "m n 2"],
    runs: Bool[np.ndarray, "m n"],
    cache_size: int,
) -> DecodeState:
    """Move running responses into fewer slots, with caches of the given size; the state is given away.

    Args:
      state: the slots before.
      source: of each new slot, the old one: its prompt slot, and which of that one's. A prompt slot gets the
        prompt of its first.
      runs: False in slots that stay empty.
      cache_size: at least that of the caches before.
    """
    prefix, cache = state.prefix, state.cache
    kept = replace(state, prefix=replace(prefix, key=(), value=()), cache=replace(cache, key=(), value=()))
    kept = _take_slots(kept, source, runs)
    prompts = partial(_take_prompts, source=source)
    responses = partial(_take_responses, source=source, size=cache_size)
    return replace(
        kept,
        prefix=replace(kept.prefix, key=_each(prompts, prefix.key), value=_each(prompts, prefix.value)),
        cache=replace(kept.cache, key=_each(responses, cache.key), value=_each(responses, cache.value)),
    )


@jax.jit
def _take_slots(state: DecodeState, source: Int[Array, "m n 2"], runs: Bool[Array, "m n"]) -> DecodeState:
    """All of a state but its caches, in other slots."""

    def of_prompts(tree: Any) -> Any:
        return jax.tree.map(lambda rows: _by_batch(rows[source[:, 0, 0]]), tree)

    def of_responses(tree: Any) -> Any:
        return jax.tree.map(lambda rows: _by_batch(rows[source[..., 0], source[..., 1]]), tree)

    return DecodeState(
        prefix=of_prompts(state.prefix),
        prompt_hidden=of_prompts(state.prompt_hidden),
        prompt_next=of_prompts(state.prompt_next),
        cache=of_responses(state.cache),
        hidden=of_responses(state.hidden),
        position=of_responses(state.position),
        count=of_responses(state.count),
        running=of_responses(state.running) & runs,
        limit=of_responses(state.limit),
        key=of_responses(state.key),
        options=of_responses(state.options),
    )


def _by_batch(rows: Array) -> Array:
    return constrain(rows, "batch", *[None] * (rows.ndim - 1))


@jax.jit
def _take_prompts(layer: Float[Array, "l s h k"], source: Int[Array, "m n 2"]) -> Float[Array, "m s h k"]:
    return constrain(layer[source[:, 0, 0]], "batch", None, "heads", None)


@partial(jax.jit, static_argnames="size")
def _take_responses(
    layer: Float[Array, "l w h t k"], source: Int[Array, "m n 2"], size: int
) -> Float[Array, "m n h size k"]:
    return _pad(layer[source[..., 0], source[..., 1]], size)


def _each(make: Callable[[Array], Array], layers: tuple[Array, ...]) -> tuple[Array, ...]:
    """New layers of old ones, one after another, so that only one exists twice."""
    made = []
    for layer in layers:
        made.append(make(layer))
        layer.delete()
    return tuple(made)


@partial(jax.jit, donate_argnames="state")
def apply_commands(state: DecodeState, commands: SlotCommands) -> DecodeState:
    """Carry out the host's commands; slots without one go on as they were."""

    def where(yes: Array, new: Array | int, old: Array) -> Array:
        return jnp.where(yes.reshape(yes.shape + (1,) * (old.ndim - yes.ndim)), new, old)

    begins = commands.begins
    fresh = partial(where, begins)
    return replace(
        state,
        cache=replace(state.cache, length=fresh(0, state.cache.length)),
        hidden=fresh(state.prompt_hidden[:, None], state.hidden),
        position=fresh(state.prompt_next[:, None], state.position),
        count=fresh(0, state.count),
        running=(state.running | begins) & ~commands.halts,
        limit=fresh(commands.limit, state.limit),
        key=jnp.where(begins, jax.random.wrap_key_data(commands.key), state.key),
        options=jax.tree.map(fresh, commands.options, state.options),
    )


@partial(jax.jit, static_argnames=("config", "steps", "entropy"), donate_argnames="state")
def decode(
    params: Params,
    config: ModelConfig,
    state: DecodeState,
    bias: Float[Array, "v"],
    *,
    steps: int,
    entropy: bool = False,
) -> tuple[DecodeState, DecodedTokens]:
    """Let every running slot write up to ``steps`` tokens; ends early when all have stopped.

    A token depends on its prompt, what its slot has read and written, the slot's key and options alone:
    not on the other slots, nor on how the steps are cut into calls.

    Args:
      params: weights of the policy, as `decoding_weights` lays them out.
      config: its sizes.
      state: the prompt slots; given away. There must be room for the tokens.
      bias: added to the logits: 0, or `BANNED` for ids that must never be sampled.
      steps: at most.
      entropy: give that of each draw too.
    """
    prompt_slots, width = state.hidden.shape[:2]
    table = unembedding(params)
    blank = jnp.zeros((prompt_slots, width, steps), jnp.float32)
    drawn = DecodedTokens(
        tokens=blank.astype(jnp.int32),
        logprob=blank,
        log_kept=blank,
        entropy=blank if entropy else None,
        drawn=jnp.zeros((prompt_slots, width), jnp.int32),
        running=state.running,
        steps=jnp.int32(0),
    )

    def step(carried: tuple[DecodeState, DecodedTokens]) -> tuple[DecodeState, DecodedTokens]:
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

    def going(carried: tuple[DecodeState, DecodedTokens]) -> Array:
        return (carried[1].steps < steps) & carried[0].running.any()

    with jax.named_scope("decode_steps"):
        state, drawn = jax.lax.while_loop(going, step, (state, drawn))
    # Small, and read by every host.
    return state, jax.tree.map(lambda leaf: constrain(leaf, *[None] * leaf.ndim), drawn)


def _draw(state: DecodeState, table: Float[Array, "v d"], bias: Float[Array, "v"], entropy: bool) -> Draws:
    """The next token of every slot, arrays ``l w``; idle ones get something too."""
    with jax.named_scope("sample"):
        shape = state.running.shape
        rows = state.hidden.reshape(-1, state.hidden.shape[-1])
        logits = jnp.einsum("td,vd->tv", rows, table.astype(rows.dtype), preferred_element_type=jnp.float32)
        keys = jax.vmap(jax.random.fold_in)(state.key.reshape(-1), state.count.reshape(-1))
        options = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), state.options)
        made = sample(keys, logits + bias, options, entropy=entropy)
        return jax.tree.map(lambda row: row.reshape(shape), made)


def _read(params: Params, config: ModelConfig, state: DecodeState, token: Int[Array, "l w"]) -> DecodeState:
    """Let the running slots read their token, if there are any.

    A loop of one turn or none: unlike a condition's, its state is changed in place.
    """

    def read(carried: tuple[Array, DecodeState]) -> tuple[Array, DecodeState]:
        _, state = carried
        position = jnp.broadcast_to(state.position[..., None, None], (*token.shape, 1, 3))
        x = embed(params, config, token)[:, :, None]
        mask = state.running[..., None]
        hidden, cache = extend(params, config, x, position, mask, state.prefix, state.cache)
        after = replace(state, hidden=hidden[:, :, 0], cache=cache, position=state.position + state.running)
        return jnp.bool_(False), after

    with jax.named_scope("read_token"):
        return jax.lax.while_loop(lambda carried: carried[0], read, (state.running.any(), state))[1]


@partial(jax.jit, static_argnames="config", donate_argnames="state")
def prefill_observation(
    params: Params,
    config: ModelConfig,
    state: DecodeState,
    prompts: Prompts,
    slot: Int[Array, "l"],
    length: Int[Array, "l"],
    limit: Int[Array, "l"],
    options: SamplingArrays,
) -> DecodeState:
    """Prefill an observation into the KV cache of one response slot of each prompt slot, then decode on.

    Args:
      params: weights of the policy, as `decoding_weights` lays them out.
      config: its sizes.
      state: the prompt slots; given away. There must be room for the tokens.
      prompts: the observations, a row a prompt slot, begun by the last token of the turn before; positions
        are whole. A row with an empty mask leaves its prompt slot as it was.
      slot: which one.
      length: tokens of its response that are in the cache and stay there.
      limit: ``count`` at which the coming turn ends.
      options: of the coming turn, rows ``l``.
    """
    prompt_slot = jnp.arange(len(slot))
    reads = prompts.mask.any(axis=1)
    with jax.named_scope("append"):
        x = embed_prompts(params, config, prompts)
        mine = Cache(
            key=tuple(layer[prompt_slot, slot][:, None] for layer in state.cache.key),
            value=tuple(layer[prompt_slot, slot][:, None] for layer in state.cache.value),
            length=length[:, None],
        )
        hidden, cache = extend(
            params,
            config,
            x[:, None],
            prompts.position[:, None],
            prompts.mask[:, None],
            state.prefix,
            mine,
        )

    def scatter(rows: Array, new: Array) -> Array:
        old = rows[prompt_slot, slot]
        keep = reads.reshape(reads.shape + (1,) * (old.ndim - 1))
        return rows.at[prompt_slot, slot].set(jnp.where(keep, new, old))

    return replace(
        state,
        cache=Cache(
            key=tuple(scatter(old, new[:, 0]) for old, new in zip(state.cache.key, cache.key, strict=True)),
            value=tuple(
                scatter(old, new[:, 0]) for old, new in zip(state.cache.value, cache.value, strict=True)
            ),
            length=scatter(state.cache.length, cache.length[:, 0]),
        ),
        hidden=scatter(state.hidden, last(hidden[:, 0], prompts.mask)),
        position=scatter(state.position, prompts.next_position),
        count=scatter(state.count, cache.length[:, 0]),
        running=scatter(state.running, reads),
        limit=scatter(state.limit, limit),
        options=jax.tree.map(scatter, state.options, options),
    )


def grow_cache(state: DecodeState, size: int) -> DecodeState:
    """Give every slot room for ``size`` tokens; the state is given away."""
    key, value = (_each(partial(_pad, size=size), layers) for layers in (state.cache.key, state.cache.value))
    return replace(state, cache=replace(state.cache, key=key, value=value))


@partial(jax.jit, static_argnames="size")
def _pad(layer: Float[Array, "l w h t k"], size: int) -> Float[Array, "l w h size k"]:
    padded = jnp.pad(layer, ((0, 0), (0, 0), (0, 0), (0, size - layer.shape[3]), (0, 0)))
    return constrain(padded, "batch", None, "heads", None, None)


def vocabulary_bias(vocabulary: int, tokenizer_size: int, banned_ids: tuple[int, ...]) -> Float[Array, "v"]:
    """Bias that bans ids: vision placeholders, and rows of the table beyond the tokenizer (padding)."""
    ids = jnp.arange(vocabulary)
    banned = (ids >= tokenizer_size) | jnp.isin(ids, jnp.array(banned_ids, jnp.int32))
    return jnp.where(banned, jnp.float32(BANNED), jnp.float32(0))
