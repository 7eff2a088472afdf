"""Arrays in the place of a program's stand-ins: random weights, full prompts with an image and responses."""

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from mmrl.models.params import Param
from mmrl.models.positions import patch_grid, positions, window_blocks
from mmrl.models.qwen2_5_vl import Prefix
from mmrl.models.qwen2_5_vl_config import Config, describe
from mmrl.open import sampling_of
from mmrl.plan.workload import Workload, program
from mmrl.rollout.engine import Lanes, decoding_weights
from mmrl.rollout.sampling import Policy, options_of
from mmrl.train import programs
from mmrl.train.optimizer import initial_state
from mmrl.train.programs import Batch
from mmrl.types import Images, Params, Prompts, Responses, StopReason

_SCALE = 0.02  # standard deviation of random weights, as in Qwen2.5's own initialisation


def arguments(work: Workload, name: str, seed: int = 0) -> tuple:
    """What the compiled program ``name`` is called with: its static arguments are left out.

    Arrays are laid out as the stand-ins of `mmrl.plan.workload.program` say. Every prompt fills its bucket,
    with one image as large as both buckets allow. Every response has all its tokens: where they are sampled,
    nothing stops them.
    """
    _, stand_ins, _ = program(work, name)
    key = jax.random.key(seed)
    with jax.set_mesh(work.mesh):
        if name == "prefill":
            return _prefill(work, stand_ins, key)
        if name == "decode":
            return _decode(work, stand_ins, key)
        return _score(work, stand_ins, key) if name == "score" else _update(work, stand_ins, key)


def _prefill(work: Workload, stand_ins: tuple, key: Key[Array, ""]) -> tuple:
    params, _, prompts = stand_ins
    return weights(work.model, params, key), full_prompts(work.model, prompts)


def _decode(work: Workload, stand_ins: tuple, key: Key[Array, ""]) -> tuple:
    params, _, like, bias = stand_ins
    of_weights, of_state, of_draws = jax.random.split(key, 3)
    (prefix, hidden), grid = (like.prefix, like.hidden), like.running.shape
    (keys, values), hidden = _normal(((prefix.key, prefix.value), hidden), of_state)
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like.cache)
    plain = replace(sampling_of(work.config), stop_ids=())
    options = options_of([plain] * math.prod(grid), like.options.stop_ids.shape[-1])
    state = Lanes(
        prefix=Prefix(keys, values, _full(prefix.mask.shape, True, bool)),
        prompt_hidden=hidden[:, 0],
        prompt_next=_full(grid[:1], prefix.mask.shape[1], np.int32),
        cache=empty,
        hidden=hidden,
        position=_full(grid, prefix.mask.shape[1], np.int32),
        count=_full(grid, 0, np.int32),
        running=_full(grid, True, bool),
        limit=_full(grid, np.iinfo(np.int32).max, np.int32),  # so that one call can go on from another
        key=jax.random.split(of_draws, grid),
        options=jax.tree.map(lambda leaf: leaf.reshape(*grid, *leaf.shape[1:]), options),
    )
    state = jax.tree.map(_laid, state, like)
    return weights(work.model, params, of_weights), state, _laid(jnp.zeros(bias.shape), bias)


def _score(work: Workload, stand_ins: tuple, key: Key[Array, ""]) -> tuple:
    params, policy, batch, corruption = stand_ins
    return weights(work.model, params, key), _policy(policy), _batch(work.model, batch, key), corruption


def _update(work: Workload, stand_ins: tuple, key: Key[Array, ""]) -> tuple:
    state, policy, batch, targets, corruption = stand_ins
    made = initial_state(weights(work.model, state.params, key), work.optimizer)
    made_batch = _batch(work.model, batch, key)
    return made, _policy(policy), made_batch, _targets(work, targets, made_batch), corruption


def weights(sizes: Config, like: Params, key: Key[Array, ""]) -> Params:
    """Random weights made where they belong: normal but for norms (one) and biases (zero)."""
    described, tree = jax.tree.flatten(describe(sizes), is_leaf=lambda node: isinstance(node, Param))
    dtype = like["final_norm"].dtype

    def draw(key: Array) -> Params:
        made = []
        for number, param in enumerate(described):
            if param.init in ("zeros", "ones"):
                made.append(jnp.full(param.shape, float(param.init == "ones"), dtype))
            else:
                one = jax.random.fold_in(key, number)
                made.append(jax.random.normal(one, param.shape, dtype) * dtype.type(_SCALE))
        params = jax.tree.unflatten(tree, made)
        return decoding_weights(params, sizes) if isinstance(like["layers"], tuple) else params

    return jax.jit(draw, out_shardings=_shardings(like))(key)


def full_prompts(sizes: Config, like: Prompts) -> Prompts:
    """The same prompt in every row, without padding: text, an image, text."""
    (b, p), n = like.tokens.shape, like.images.image.shape[1]
    side, slots = math.isqrt(sizes.window_slots) // 2, sizes.window_slots
    windows = min(n, 4 * p) // slots  # four patches make a token
    high = max((size for size in range(1, math.isqrt(windows) + 1) if windows % size == 0), default=0)
    rows, columns = high * side, windows // max(high, 1) * side  # in merged tokens; whole windows
    start = (p - rows * columns) // 2
    position, following = positions(p, [(start, rows, columns)])
    rng: Any = np.random.default_rng(0)
    row: Any = Prompts(
        tokens=rng.integers(0, sizes.vocabulary, p, np.int32),
        mask=_full(p, True, bool),
        position=_full((p, 3), position, np.int32),
        next_position=_full((), following, np.int32),
        image_token=_full(p, -1, np.int32),
        images=Images(
            patches=rng.integers(0, 256, like.images.patches.shape[1:], np.uint8),
            position=_full((n, 2), 0, np.int32),
            image=_full(n, -1, np.int32),
        ),
    )
    if windows:
        place = window_blocks(rows, columns, side)
        slot = (4 * place[:, None] + np.arange(4)).reshape(-1)
        row.image_token[start : start + rows * columns] = place
        row.images.position[slot] = patch_grid(2 * rows, 2 * columns, 2)
        row.images.image[slot] = 0
    return jax.tree.map(lambda leaf, to: _laid(np.broadcast_to(leaf, (b, *leaf.shape)), to), row, like)


def _responses(sizes: Config, like: Responses) -> Responses:
    shape = like.tokens.shape
    rng: Any = np.random.default_rng(1)
    made = Responses(
        tokens=rng.integers(0, sizes.vocabulary, shape, np.int32),
        mask=_full(shape, True, bool),
        logprob=_full(shape, -math.log(sizes.vocabulary), np.float32),
        log_kept=_full(shape, 0.0, np.float32),
        stop=_full(shape[:2], StopReason.LENGTH, np.int32),
        valid=_full(shape[:2], True, bool),
    )
    return jax.tree.map(_laid, made, like)


def _batch(sizes: Config, like: Batch, key: Key[Array, ""]) -> Batch:
    return Batch(
        prompts=full_prompts(sizes, like.prompts),
        responses=_responses(sizes, like.responses),
        corruption_keys=_laid(jax.random.split(key, like.corruption_keys.shape), like.corruption_keys),
    )


def _policy(like: Policy) -> Policy:
    return Policy(like.model, like.temperature, _laid(_full(like.bias.shape, 0.0, np.float32), like.bias))


def _targets(work: Workload, like: Any, batch: Batch) -> Any:
    """What `programs.prepare` makes of random rewards and of scores about as large as real ones."""
    rng: Any = np.random.default_rng(2)
    shape = batch.responses.tokens.shape
    accuracy = rng.integers(0, 2, shape[:2]).astype(np.float32)
    scores = {}
    for name in sorted({"logprob"} | work.algorithm.needs):
        of_tokens = rng.random(shape, np.float32)
        logprobs = name in ("logprob", "reference", "corrupted")
        scores[name] = of_tokens - np.float32(math.log(work.model.vocabulary)) if logprobs else of_tokens
    made = programs.prepare(
        work.algorithm,
        accuracy,
        accuracy,
        batch.responses.valid,
        batch.responses.mask,
        scores,
        np.int32(0),
        100,
    )
    return jax.tree.map(_laid, made, like)


def _normal(like: Any, key: Key[Array, ""]) -> Any:
    leaves, tree = jax.tree.flatten(like)

    def draw(key: Array) -> Any:
        keys = jax.random.split(key, len(leaves))
        made = [
            jax.random.normal(one, leaf.shape, leaf.dtype) for one, leaf in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(tree, made)

    return jax.jit(draw, out_shardings=_shardings(like))(key)


def _full(shape: int | tuple[int, ...], value: Any, dtype: Any) -> Any:  # numpy until put on the device
    return np.full(shape, value, dtype)


def _laid(value: Any, like: Any) -> jax.Array:
    return jax.device_put(value, like.sharding)


def _shardings(like: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, like)
