"""The language model as pure functions over a pytree of weights, as `mmrl.models.config` describes it.

The language model runs in two forms. `extend` extends a cache by some tokens: decoding, and tools' answers.
`row_states` and `prefill_rows` run packed rows: scoring and the update, and prefill.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmrl.kernels.attention import two_source_attention
from mmrl.mesh import constrain
from mmrl.models.config import Cache, ModelConfig, Prefix
from mmrl.models.experts import RouterStatistics, expert_mlp
from mmrl.models.layers import gated_mlp, mrope_angles, rematerialise, rms_norm, rotate
from mmrl.models.packed_attend import attend_packed
from mmrl.models.rows import TokenRows
from mmrl.models.vision_tower import encode_images
from mmrl.types import Params, Prompts


def unembedding(params: Params) -> Float[Array, "v d"]:
    """The output table: ``lm_head``, or the input embedding where the checkpoint ties them."""
    return params.get("lm_head", params["embedding"])


def embed(params: Params, config: ModelConfig, tokens: Int[Array, "*any"]) -> Float[Array, "*any d"]:
    """Input embeddings of text tokens, in the compute dtype."""
    table = constrain(params["embedding"].astype(config.dtype), "vocab", None)
    return constrain(table[tokens], "batch", *[None] * tokens.ndim)


def embed_prompts(params: Params, config: ModelConfig, prompts: Prompts) -> Float[Array, "b p e"]:
    """Inputs of prompts: text embeddings, and image features at the positions of image tokens.

    Without a single patch slot the tower is left out, and ``e`` is the model's width.
    """
    if not prompts.images.patches.shape[1]:
        return embed(params, config, prompts.tokens)
    features = encode_images(params, config, prompts.images)
    at_image = jnp.take_along_axis(features, jnp.maximum(prompts.image_token, 0)[..., None], axis=1)
    return _at_images(embed(params, config, prompts.tokens), at_image, prompts.image_token >= 0)


def _at_images(text: Float[Array, "b n d"], features: Array, shown: Bool[Array, "b n"]) -> Array:
    """Features where an image is ``shown``; elsewhere text, and zeros beyond the model's width."""
    beyond = ((0, 0), (0, 0), (0, features.shape[-1] - text.shape[-1]))
    return jnp.where(shown[..., None], features, jnp.pad(text, beyond))


def _split_inputs(config: ModelConfig, x: Float[Array, "b n e"]) -> tuple[Array, list[Array]]:
    """What the first layer reads, and what is added behind the first layers (deepstack)."""
    first, *added = jnp.split(x, x.shape[-1] // config.width, axis=-1)
    return first, added


def extend(
    params: Params,
    config: ModelConfig,
    x: Float[Array, "b g s e"],
    position: Int[Array, "b g s 3"],
    mask: Bool[Array, "b g s"],
    prefix: Prefix | None,
    cache: Cache,
) -> tuple[Float[Array, "b g s d"], Cache]:
    """Run ``s`` further tokens of each response through the language model.

    Each token reads the prefix of its group, if there is one, the tokens already in ``cache`` and the earlier
    ones of this call. Tokens with ``mask`` False, which come after the real ones, are read by nobody and take
    no slot. ``x`` is of `embed` or `embed_prompts`.

    Returns:
      The hidden states after the final norm, and the cache with the real tokens added.
    """
    b, g, s, _ = x.shape
    angle = mrope_angles(position.reshape(b, g * s, 3), config)
    slot, readable = _slots(cache.length, mask, cache)
    real = mask.reshape(b, g * s)
    hidden, added = _split_inputs(config, x.reshape(b, g * s, -1))
    made: list[tuple[Array, Array]] = []
    # Layer by layer, each with its own arrays: in a scan the cache would be copied at every step.
    for i, weights in enumerate(_each_layer(config, params["layers"])):
        of_prefix = () if prefix is None else (prefix.key[i], prefix.value[i], prefix.mask)

        def attend(*projected: Array, i: int = i, of_prefix: tuple = of_prefix) -> tuple[Array, tuple]:
            query, key, value = (part.reshape(b, g, s, *part.shape[2:]) for part in projected)
            key, value = _write(cache.key[i], slot, key), _write(cache.value[i], slot, value)
            read = (jnp.swapaxes(key, 2, 3), jnp.swapaxes(value, 2, 3))
            y = two_source_attention(query, *read, readable, *of_prefix)
            return y.reshape(b, -1, *y.shape[3:]), (key, value)

        hidden, own, _ = _decoder_layer(config, weights, hidden, angle, ("batch", None, None), real, attend)
        hidden = hidden + added[i] if i < len(added) else hidden
        made.append(own)
    keys, values = zip(*made, strict=True)
    hidden = rms_norm(hidden, params["final_norm"], config.norm_eps)
    return hidden.reshape(b, g, s, -1), Cache(keys, values, cache.length + mask.sum(axis=-1))


def _decoder_layer(
    config: ModelConfig,
    weights: Params,
    x: Float[Array, "b n d"],
    angle: Array,
    between: tuple[str | None, str | None, str | None],
    real: Bool[Array, "b n"],
    attend: Callable[..., tuple[Array, Any]],
) -> tuple[Float[Array, "b n d"], Any, RouterStatistics | None]:
    """One layer; ``between`` are the axes of what lies between layers.

    ``attend`` takes queries, keys and values; it gives what they attend to, ``b n h q k``, and a value more.
    """
    x = constrain(x, *between)
    with jax.named_scope("attention"):
        y, more = attend(*_project(config, x, weights["attention"], angle))
        y = jnp.einsum("bnhqk,hqkd->bnd", y, weights["attention"]["out"].astype(y.dtype))
        x = x + constrain(y, *between)
    with jax.named_scope("mlp"):
        y, router = rms_norm(x, weights["mlp_norm"], config.norm_eps), None
        if "router" in weights["mlp"]:
            assert config.experts is not None
            y, router = expert_mlp(constrain(y, *between), weights["mlp"], config.experts, real, between)
        else:
            y = gated_mlp(constrain(y, "batch", None, None), weights["mlp"])
        x = x + constrain(y, *between)
    return x, more, router


def _each_layer(config: ModelConfig, layers: Params | tuple[Params, ...]) -> Iterable[Params]:
    """The weights of each layer, of stacks or of each layer's own."""
    return layers if isinstance(layers, tuple) else split_layers(config, layers)


def split_layers(
    config: ModelConfig, layers: Params, take: Callable[[Any, int], Any] = lambda stack, i: stack[i]
) -> tuple[Params, ...]:
    """Of stacks of layers' weights, those of each layer; its "mlp" is one or a mixture of experts."""
    made, numbers = [], {"mlp": 0, "experts": 0}
    for i in range(config.layers):
        kind = "experts" if i in config.expert_layers else "mlp"
        own = {name: (stack, i) for name, stack in layers.items() if name not in numbers}
        own["mlp"] = layers[kind], numbers[kind]
        numbers[kind] += 1
        made.append(
            {name: jax.tree.map(lambda leaf, k=k: take(leaf, k), stack) for name, (stack, k) in own.items()}
        )
    return tuple(made)


def _slots(
    start: Int[Array, "b g"], mask: Bool[Array, "b g s"], cache: Cache
) -> tuple[Int[Array, "b g s"], Bool[Array, "b g s t"]]:
    """The cache slots of new tokens (past its end if they are not real), and the slots that each may read."""
    slot = start[..., None] + jnp.arange(mask.shape[-1])
    size = cache.key[0].shape[3]
    return jnp.where(mask, slot, size), slot[..., None] >= jnp.arange(size)


def _project(config: ModelConfig, x: Array, weights: dict, angle: Array) -> tuple[Array, Array, Array]:
    """Rotated queries ``b n h q k``, rotated keys and values ``b n h k`` of one layer."""
    y = constrain(rms_norm(x, weights["norm"], config.norm_eps), "batch", None, None)
    query = jnp.einsum("bnd,dhqk->bnhqk", y, weights["query"].astype(y.dtype))
    key, value = (jnp.einsum("bnd,dhk->bnhk", y, weights[name].astype(y.dtype)) for name in ("key", "value"))
    if config.qkv_bias:
        biases = (weights[f"{name}_bias"].astype(y.dtype) for name in ("query", "key", "value"))
        query, key, value = (part + bias for part, bias in zip((query, key, value), biases, strict=True))
    if config.qk_norm:
        query, key = (
            rms_norm(part, weights[f"{name}_norm"], config.norm_eps)
            for part, name in ((query, "query"), (key, "key"))
        )
    flat = query.reshape(*query.shape[:2], -1, query.shape[-1])
    query = constrain(rotate(flat, angle).reshape(query.shape), "batch", None, "heads", None, None)
    key, value = (constrain(part, "batch", None, "heads", None) for part in (rotate(key, angle), value))
    return query, key, value


def _write(
    stored: Float[Array, "b g h t k"], slot: Int[Array, "b g s"], new: Float[Array, "b g s h k"]
) -> Float[Array, "b g h t k"]:
    """Put new keys (or values) into their slots; slots past the end are dropped."""
    b, g, _ = slot.shape
    at = (jnp.arange(b)[:, None, None], jnp.arange(g)[:, None], slice(None), slot)
    return stored.at[at].set(new, mode="drop")


def row_states(
    params: Params, config: ModelConfig, rows: TokenRows, features: Float[Array, "b n e"]
) -> tuple[Float[Array, "b n d"], RouterStatistics | None]:
    """Hidden states, after the final norm, of packed rows; ``features`` of images at their tokens' slots.

    Beside them, of a mixture of experts, the router's statistics, stacked over layers.
    """
    x, added, layer = _row_layers(params, config, rows, features)

    def of_layer(x: Array, weights: Params) -> tuple[Array, RouterStatistics | None]:
        x, _, router = layer(x, weights)
        return x, router

    recomputed = rematerialise(config.remat, of_layer)
    if 0 < len(config.expert_layers) < config.layers:  # of two kinds, which one scan cannot go over
        found = []
        for i, weights in enumerate(split_layers(config, params["layers"])):
            x, router = recomputed(x, weights)
            x = x + added[i] if i < len(added) else x
            found += [] if router is None else [router]
        routers = jax.tree.map(lambda *each: jnp.stack(each), *found)
        return rms_norm(x, params["final_norm"], config.norm_eps), routers

    def through(x: Array, numbered: tuple[Array, Params]) -> tuple[Array, RouterStatistics | None]:
        number, weights = numbered
        x, router = recomputed(x, weights)
        for k, more in enumerate(added):
            x = x + jnp.where(number == k, more, 0)
        return x, router

    stacks = {"mlp" if name == "experts" else name: stack for name, stack in params["layers"].items()}
    x, routers = jax.lax.scan(through, x, (jnp.arange(config.layers), stacks), unroll=config.unroll)
    return rms_norm(x, params["final_norm"], config.norm_eps), routers


def prefill_rows(
    params: Params, config: ModelConfig, rows: TokenRows, features: Float[Array, "b n e"]
) -> tuple[Float[Array, "b n d"], list[tuple[Float[Array, "b n h k"], Float[Array, "b n h k"]]]]:
    """Hidden states as of `row_states`, with the weights of sampling, and keys and values of each layer."""
    x, added, layer = _row_layers(params, config, rows, features)
    made = []
    for i, weights in enumerate(_each_layer(config, params["layers"])):
        x, stored, _ = layer(x, weights)
        x = x + added[i] if i < len(added) else x
        made.append(stored)
    return rms_norm(x, params["final_norm"], config.norm_eps), made


def _row_layers(
    params: Params, config: ModelConfig, rows: TokenRows, features: Float[Array, "b n e"]
) -> tuple[Array, list[Array], Callable[[Array, Params], tuple[Array, Any, RouterStatistics | None]]]:
    """Of packed rows, what `_split_inputs` gives, and a function of a layer's input and its weights."""
    x = _at_images(embed(params, config, rows.tokens), features, rows.feature >= 0)
    angle, real = mrope_angles(rows.position, config), jnp.asarray(rows.segments.span) >= 0

    def attend(query: Array, key: Array, value: Array) -> tuple[Array, tuple[Array, Array]]:
        with jax.named_scope("text_pairs"):
            y = attend_packed(config.attention, query, key, value, rows.segments, rows.pairs)
        return y, (key, value)

    def layer(x: Array, weights: Params) -> tuple[Array, Any, RouterStatistics | None]:
        return _decoder_layer(config, weights, x, angle, ("batch", "tokens", None), real, attend)

    return *_split_inputs(config, x), layer


def response_position(prompts: Prompts, index: Int[Array, "b g s"]) -> Int[Array, "b g s 3"]:
    """mRoPE positions of response tokens number ``index``: text, so the same on all three axes."""
    position = prompts.next_position[:, None, None] + index
    return jnp.broadcast_to(position[..., None], (*position.shape, 3))
