"""The jitted programs of a step besides prefill and decode: score, prepare and update.

Score and update run over micro-batches of prompts (a group stays together, so that its prompt and images are
computed once). What they compute is a plain sum over tokens with coefficients fixed in `prepare`, so the size
of a micro-batch changes memory and nothing else.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from mmrl.algorithms import algorithm as algorithms
from mmrl.algorithms.algorithm import Algorithm, Targets
from mmrl.algorithms.passes import (
    CORRUPTED_LOGPROB,
    ENTROPY,
    LOGPROB,
    PERCEPTION,
    POLICY,
    REFERENCE_LOGPROB,
    Pass,
    Score,
    entropy,
    kl,
    logprob,
    passes_of,
)
from mmrl.config import Config
from mmrl.kernels.vocab import token_statistics
from mmrl.mesh import WEIGHTS, constrain, constrain_weights, shard_map_kernel, sharded_over
from mmrl.models.corruption import corrupt
from mmrl.models.family import family_of, param_specs
from mmrl.rollout.sampling import Policy
from mmrl.train.state import TrainState, merge_params, select_paths
from mmrl.types import Params, Prompts, Responses


@struct.dataclass
class TrainBatch:
    """One batch of prompts with their sampled groups."""

    prompts: Prompts
    responses: Responses
    view_keys: Key[Array, "b"]  # what the views of each prompt are drawn with


@struct.dataclass
class ImageCorruption:
    """A view of a prompt: its images corrupted (see `mmrl.models.corruption`)."""

    method: str = struct.field(pytree_node=False)
    probability: float = struct.field(pytree_node=False)


Views = dict[str, ImageCorruption]  # by the name that a `Pass` has for it; "clean" is not among them


def views_of(config: Config) -> Views:
    """The views that a run of this config can show the images in, beside clean ones."""
    return {"corrupted": ImageCorruption(config.corruption.method, config.corruption.probability)}


def split(tree: Any, count: int) -> Any:
    """Cut every ``[b, ...]`` leaf into ``[count, b / count, ...]``, strided.

    Micro-batch i takes rows i, i + count, ...: when the batch is spread over devices each one then holds an
    equal part of every micro-batch.
    """

    def cut(x: Array) -> Array:
        pieces = x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)
        return constrain(pieces, None, "batch", *[None] * (x.ndim - 1))

    return jax.tree.map(cut, tree)


def join(tree: Any) -> Any:
    """Inverse of `split`."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), tree)


def token_scores(
    models: dict[str, Params],
    policy: Policy,
    batch: TrainBatch,
    views: Views,
    wanted: frozenset[Score],
    differentiated: frozenset[Pass] = frozenset(),
) -> dict[Score, Float[Array, "b g r"]]:
    """Scores of each response token: those of ``wanted``, by one forward pass for each pass that they name.

    Args:
      models: weights by the name that a pass has for them.
      policy: sizes and sampled distribution.
      batch: prompts and responses.
      views: how the images of each view are made.
      wanted: what to measure; a pass that several of them name is made once.
      differentiated: passes to let gradients through, beside that of the policy with clean images.

    Raises:
      ValueError: a score that cannot be measured: of unknown name, or between the passes of two models.
    """
    hidden = {}
    for each in sorted(passes_of(wanted)):
        params = models[each.model]
        if each not in differentiated | {POLICY}:
            params = jax.lax.stop_gradient(params)
        with jax.named_scope(each.view):
            seen = _viewed(batch, views, each.view)
            hidden[each] = family_of(policy.model).predict(params, policy.model, *seen)
    found: dict[Score, Array] = {}
    for first, *rest in _pairs(wanted):
        second = rest[0] if rest else None
        if second and second.model != first.model:
            raise ValueError(f"{first} and {second} are passes of two models, which cannot be compared")
        out = vocabulary_statistics(
            models[first.model],
            policy,
            batch.responses.tokens,
            hidden[first],
            hidden[second] if second else None,
            entropy=entropy(first) in wanted,
            perception=second is not None and kl(first, second) in wanted,
            corrupted_gradient=second in differentiated,
        )
        names = {"logprob": logprob(first), "entropy": entropy(first)}
        if second:
            names |= {"corrupted": logprob(second), "perception": kl(first, second)}
        found |= {names[name]: value for name, value in out.items()}
    if unknown := wanted - found.keys():
        raise ValueError(f"these scores cannot be measured: {', '.join(map(str, sorted(unknown)))}")
    # Padding reads garbage; zeros there keep metrics and masks simple.
    return {score: jnp.where(batch.responses.mask, found[score], 0.0) for score in sorted(wanted)}


def _pairs(wanted: frozenset[Score]) -> list[tuple[Pass, ...]]:
    """The passes in the pairs that are compared; those that are not, two by two of one model."""
    compared = sorted({score.passes for score in wanted if len(score.passes) > 1})
    rest = sorted(passes_of(wanted).difference(*compared))
    of_models = [list(passes) for _, passes in groupby(rest, key=lambda each: each.model)]
    return compared + [
        tuple(passes[start : start + 2]) for passes in of_models for start in range(0, len(passes), 2)
    ]


def _viewed(batch: TrainBatch, views: Views, view: str) -> tuple[Prompts, Responses]:
    """Prompts and responses with their images in this view, those that a response has looked at included."""
    prompts, responses = batch.prompts, batch.responses
    if view == "clean":
        return prompts, responses
    method, probability = views[view].method, views[view].probability
    prompts = replace(prompts, images=corrupt(prompts.images, batch.view_keys, method, probability))
    if responses.observed is None:
        return prompts, responses
    seen = responses.observed.images
    b, g = seen.image.shape[:2]
    members = jax.vmap(lambda key: jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(g)))
    flat = jax.tree.map(lambda leaf: leaf.reshape(b * g, *leaf.shape[2:]), seen)
    flat = corrupt(flat, members(batch.view_keys).reshape(-1), method, probability)
    seen = jax.tree.map(lambda leaf: leaf.reshape(b, g, *leaf.shape[1:]), flat)
    return prompts, replace(responses, observed=replace(responses.observed, images=seen))


def vocabulary_statistics(
    params: Params,
    policy: Policy,
    tokens: Int[Array, "b g r"],
    hidden: Float[Array, "b g r d"],
    corrupted: Float[Array, "b g r d"] | None = None,
    **wanted: bool,
) -> dict[str, Float[Array, "b g r"]]:
    """`mmrl.kernels.vocab.token_statistics` on the mesh: each device takes its tokens and its vocabulary."""
    table = family_of(policy.model).unembedding(params).astype(hidden.dtype)
    (cut,) = sharded_over(table, "vocab", None)[:1]
    token_axes = sharded_over(tokens, "batch", None, None)[0]

    def of_device(tokens: Array, table: Array, bias: Array, hidden: Array, *corrupted: Array) -> dict:
        flat = [states.reshape(-1, states.shape[-1]) for states in (hidden, *corrupted)]
        out = token_statistics(
            flat[0],
            table,
            tokens.reshape(-1),
            bias,
            temperature=policy.temperature,
            corrupted_hidden=flat[1] if corrupted else None,
            vocab_axis=cut[0] if cut else None,
            token_axes=token_axes,
            **wanted,
        )
        return {name: value.reshape(tokens.shape) for name, value in out.items()}

    states = [hidden] if corrupted is None else [hidden, corrupted]
    of_tokens = ("batch", None, None)
    axes = [of_tokens, ("vocab", None), ("vocab",), *[(*of_tokens, None)] * len(states)]
    return shard_map_kernel(of_device, axes, like=0)(tokens, table, policy.bias, *states)


@partial(jax.jit, static_argnames=("wanted", "micro_batches"))
def score(
    models: dict[str, Params],
    policy: Policy,
    batch: TrainBatch,
    views: Views,
    *,
    wanted: frozenset[Score],
    micro_batches: int,
) -> dict[Score, Float[Array, "b g r"]]:
    """`token_scores` of the whole batch, micro-batch by micro-batch, without gradients."""

    def score_micro(micro: TrainBatch) -> dict[Score, Array]:
        return token_scores(models, policy, micro, views, wanted)

    return join(jax.lax.map(score_micro, split(batch, micro_batches)))


@jax.jit
def score_metrics(
    scores: dict[Score, Float[Array, "b g r"]], responses: Responses
) -> dict[str, Float[Array, ""]]:
    """Metrics of scores: how far sampler and scorer disagree, what truncation cut, entropy and perception.

    Sampler and scorer are compared under one distribution, the tempered one before top-k, top-p and min-p,
    so that rounding is all that they can differ by ("sampler/logprob_difference_..."). How much of its mass
    these have cut off where a token was drawn is "sampler/cut_mass_...". Zeros if no response is valid.
    """
    mask = responses.mask & responses.valid[..., None]
    count = jnp.maximum(mask.sum(), 1)

    def mean(values: Array) -> Array:
        return jnp.where(mask, values, 0.0).sum() / count

    policy = scores[LOGPROB]
    difference = jnp.where(mask, jnp.abs(policy - (responses.logprob + responses.log_kept)), 0.0)
    cut = jnp.where(mask, -jnp.expm1(responses.log_kept), 0.0)
    out = {
        "sampler/logprob_difference_mean": mean(difference),
        "sampler/logprob_difference_max": difference.max(),
        "sampler/cut_mass_mean": mean(cut),
        "sampler/cut_mass_max": cut.max(),
        "policy/sampled_entropy": -mean(policy),
    }
    if ENTROPY in scores:
        out["policy/entropy"] = mean(scores[ENTROPY])
    perception = scores.get(PERCEPTION)
    if perception is None and CORRUPTED_LOGPROB in scores:
        # The sampled-token estimate k3 of KL(image present || corrupted).
        log_ratio = jnp.clip(scores[CORRUPTED_LOGPROB] - policy, -20, 20)
        perception = jnp.clip(jnp.expm1(log_ratio) - log_ratio, 0, 10)
    if perception is not None:
        out["perception/mean"] = mean(perception)
        present = jnp.where(mask, perception, jnp.nan)
        for percent in (50, 90):
            value = jnp.nanpercentile(present, percent)
            out[f"perception/p{percent}"] = jnp.where(mask.any(), value, 0.0)
    if REFERENCE_LOGPROB in scores:
        log_ratio = jnp.clip(scores[REFERENCE_LOGPROB] - policy, -20, 20)
        out["policy/reference_kl"] = mean(jnp.expm1(log_ratio) - log_ratio)
    return out


@partial(jax.jit, static_argnames=("algorithm", "total_steps"))
def prepare(
    algorithm: Algorithm,
    rewards: Float[Array, "b g"],
    accuracy: Float[Array, "b g"],
    valid: Bool[Array, "b g"],
    mask: Bool[Array, "b g r"],
    scores: dict[Score, Float[Array, "b g r"]],
    step: Int[Array, ""],
    total_steps: int,
) -> Targets:
    """`mmrl.algorithms.algorithm.prepare`, over the whole batch of one optimizer step."""
    return algorithms.prepare(
        algorithm,
        rewards=rewards,
        accuracy=accuracy,
        mask=mask,
        valid=valid,
        scores=scores,
        step=step,
        total_steps=total_steps,
    )


@partial(jax.jit, static_argnames=("algorithm", "optimizer", "micro_batches"), donate_argnums=0)
def update(
    state: TrainState,
    policy: Policy,
    batch: TrainBatch,
    targets: Targets,
    views: Views,
    *,
    algorithm: Algorithm,
    optimizer: optax.GradientTransformation,
    micro_batches: int,
) -> tuple[TrainState, dict[str, Array]]:
    """One optimizer step on one batch; a non-finite one leaves the state as it was and is counted.

    Returns:
      The new state, and metrics; where ``targets`` hold no logprob of the policy, as the batch is new to it,
      also "logprob", that of each token ``b g r`` before the step.
    """

    def loss(trainable: Params, micro: tuple[TrainBatch, Targets]) -> tuple[Array, tuple[dict, dict]]:
        inputs, goals = micro
        params = merge_params(trainable, state.frozen)
        wanted = algorithm.live | {LOGPROB}
        live = token_scores({"policy": params}, policy, inputs, views, wanted, algorithm.differentiated)
        value, metrics = algorithms.loss(algorithm, goals, live)
        unscored = LOGPROB not in goals.scores
        return value, (metrics, {"logprob": live[LOGPROB]} if unscored else {})

    gradient, metrics, tokens = accumulate(loss, state.trainable, split((batch, targets), micro_batches))
    state, metrics = apply(state, gradient, metrics, optimizer, param_specs(policy.model))
    return state, {**metrics, **join(tokens)}


def accumulate(
    loss: Callable[[Params, Any], tuple[Array, tuple[dict, dict]]], params: Params, micro: Any
) -> tuple[Params, dict[str, Array], dict[str, Array]]:
    """Sum of the gradients and metrics of ``loss`` over the leading axis of ``micro``; metrics get "loss".

    Beside its metrics, ``loss`` gives values of tokens, which are kept apart along that axis.
    """

    def differentiate(params: Params, piece: Any) -> tuple[tuple[Params, dict[str, Array]], dict[str, Array]]:
        (value, (metrics, tokens)), gradient = jax.value_and_grad(loss, has_aux=True)(params, piece)
        return (gradient, {**metrics, "loss": value}), tokens

    first = jax.tree.map(lambda x: x[0], micro)
    if jax.tree.leaves(micro)[0].shape[0] == 1:
        total, tokens = differentiate(params, first)
        return *total, jax.tree.map(lambda x: x[None], tokens)
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(differentiate, params, first)[0]
    )

    def add(total: Any, piece: Any) -> tuple[Any, dict[str, Array]]:
        more, tokens = differentiate(params, piece)
        return jax.tree.map(jnp.add, total, more), tokens

    total, tokens = jax.lax.scan(add, zeros, micro)
    return *total, tokens


def apply(
    state: TrainState,
    gradient: Params,
    metrics: dict[str, Array],
    optimizer: optax.GradientTransformation,
    description: dict,
) -> tuple[TrainState, dict[str, Array]]:
    """Take the optimizer step, unless loss or gradient is not finite.

    Gradients, which only trainable weights have, are laid out as the weights of ``description`` are: each
    device gets the sums of its own part.
    """
    gradient = constrain_weights(gradient, select_paths(description, gradient), WEIGHTS)
    norm = optax.global_norm(gradient)
    finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
    changes, moments = optimizer.update(gradient, state.optimizer, state.trainable)
    taken = optax.apply_updates(state.trainable, changes), moments, state.updates + 1
    before = state.trainable, state.optimizer, state.updates
    trainable, moments, updates = jax.tree.map(lambda new, old: jnp.where(finite, new, old), taken, before)
    state = TrainState(trainable, moments, updates, state.frozen)
    return state, {**metrics, "gradient_norm": norm, "skipped": 1.0 - finite.astype(jnp.float32)}


@partial(jax.jit, static_argnames=("optimizer", "micro_batches"), donate_argnums=0)
def imitate(
    state: TrainState,
    policy: Policy,
    prompts: Prompts,
    responses: Responses,
    *,
    optimizer: optax.GradientTransformation,
    micro_batches: int,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One supervised step: maximise the logprob of the responses, averaged over all tokens of the batch."""
    total = jnp.maximum(responses.mask.sum(), 1)

    def loss(trainable: Params, micro: tuple[Prompts, Responses]) -> tuple[Array, tuple[dict, dict]]:
        prompts, responses = micro
        params = merge_params(trainable, state.frozen)
        hidden = family_of(policy.model).predict(params, policy.model, prompts, responses)
        out = vocabulary_statistics(params, policy, responses.tokens, hidden)
        return -jnp.where(responses.mask, out["logprob"], 0.0).sum() / total, ({}, {})

    gradient, metrics, _ = accumulate(loss, state.trainable, split((prompts, responses), micro_batches))
    return apply(state, gradient, metrics, optimizer, param_specs(policy.model))
