"""The jitted programs of a step besides prefill and decode: score, prepare and update.

Score and update compute packed rows (`mmrl.packing`), one after another, as many as there are: the number is
data. Images are encoded first, row by row of their patches, and where a row of tokens shows an image it takes
its features. In the update the gradients of the features are summed over all rows of tokens, and go through
the vision tower last. What is computed is a plain sum over tokens with coefficients fixed in `prepare`, so
that the packing changes time and memory and nothing else.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

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
from mmrl.models.config import ModelConfig
from mmrl.models.corruption import corrupt
from mmrl.models.experts import RouterStatistics, router_metrics
from mmrl.models.family import param_specs
from mmrl.models.image_rows import (
    add_to_features,
    encode_row,
    features_of,
    features_of_row,
    image_features,
    take_row,
)
from mmrl.models.language_model import row_states, unembedding
from mmrl.models.rows import TokenRows
from mmrl.packing import PackedBatch, pack_batch
from mmrl.rollout.sampling import Policy
from mmrl.train.state import TrainState, merge_params, select_paths
from mmrl.types import Params, Prompts, Responses


@struct.dataclass
class TrainBatch:
    """One batch of prompts with their sampled groups, and the rows that they are packed in."""

    prompts: Prompts
    responses: Responses
    packed: PackedBatch
    view_keys: Key[Array, "b"] | None = None  # what views of each prompt are drawn with; None: clean alone


def train_batch(
    prompts: Prompts,
    responses: Responses,
    model: ModelConfig,
    mesh: Mesh,
    row_tokens: int,
    view_keys: Key[Array, "b"] | None = None,
) -> TrainBatch:
    """A batch that lies on the mesh, packed; arguments as for `mmrl.packing.pack_batch`."""
    return TrainBatch(prompts, responses, pack_batch(prompts, responses, model, mesh, row_tokens), view_keys)


@struct.dataclass
class ImageCorruption:
    """A view of a prompt: its images corrupted (see `mmrl.models.corruption`)."""

    method: str = struct.field(pytree_node=False)
    probability: float = struct.field(pytree_node=False)


Features = dict[Pass, Float[Array, "d n w"]]  # of images, at their tokens' slots of a row of each shard
Views = dict[str, ImageCorruption]  # by the name that a `Pass` has for it; "clean" is not among them


def views_of(config: Config) -> Views:
    """The views that a run of this config can show the images in, beside clean ones."""
    return {"corrupted": ImageCorruption(config.corruption.method, config.corruption.probability)}


def token_scores(
    models: dict[str, Params],
    policy: Policy,
    rows: TokenRows,
    features: Features,
    wanted: frozenset[Score],
    differentiated: frozenset[Pass] = frozenset(),
) -> tuple[dict[Score, Float[Array, "d k"]], RouterStatistics | None]:
    """Scores of each target of some rows: those of ``wanted``, by one forward pass for each that they name.

    Beside them, of a mixture of experts, the router's statistics in the policy's pass with clean images.

    Args:
      models: weights by the name that a pass has for them.
      policy: sizes and sampled distribution.
      rows: one row of each shard.
      features: of their images, by pass.
      wanted: what to measure; a pass that several of them name is made once.
      differentiated: passes to let gradients through, beside that of the policy with clean images.

    Raises:
      ValueError: a score that cannot be measured: of unknown name, or between the passes of two models.
    """
    hidden, routers = {}, None
    for each in sorted(passes_of(wanted)):
        inputs = (models[each.model], features[each])
        if each not in differentiated | {POLICY}:
            inputs = jax.lax.stop_gradient(inputs)
        with jax.named_scope(each.view):
            states, statistics = row_states(inputs[0], policy.model, rows, inputs[1])
            routers = statistics if each == POLICY else routers
            hidden[each] = jnp.take_along_axis(states, rows.predictor[..., None], axis=1)
    found: dict[Score, Array] = {}
    for first, *rest in _pairs(wanted):
        second = rest[0] if rest else None
        if second and second.model != first.model:
            raise ValueError(f"{first} and {second} are passes of two models, which cannot be compared")
        out = vocabulary_statistics(
            models[first.model],
            policy,
            rows.target,
            rows.count,
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
    return {score: found[score] for score in sorted(wanted)}, routers


def _pairs(wanted: frozenset[Score]) -> list[tuple[Pass, ...]]:
    """The passes in the pairs that are compared; those that are not, two by two of one model."""
    compared = sorted({score.passes for score in wanted if len(score.passes) > 1})
    rest = sorted(passes_of(wanted).difference(*compared))
    of_models = [list(passes) for _, passes in groupby(rest, key=lambda each: each.model)]
    return compared + [
        tuple(passes[start : start + 2]) for passes in of_models for start in range(0, len(passes), 2)
    ]


def viewed(batch: TrainBatch, views: Views, view: str) -> tuple[Prompts, Responses]:
    """Prompts and responses with their images in this view, those that a response has looked at included."""
    prompts, responses = batch.prompts, batch.responses
    if view == "clean":
        return prompts, responses
    method, probability, keys = views[view].method, views[view].probability, batch.view_keys
    assert keys is not None
    prompts = replace(prompts, images=corrupt(prompts.images, keys, method, probability))
    if responses.observed is None:
        return prompts, responses
    seen = responses.observed.images
    b, g = seen.image.shape[:2]
    members = jax.vmap(lambda key: jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(g)))
    flat = jax.tree.map(lambda leaf: leaf.reshape(b * g, *leaf.shape[2:]), seen)
    flat = corrupt(flat, members(keys).reshape(-1), method, probability)
    seen = jax.tree.map(lambda leaf: leaf.reshape(b, g, *leaf.shape[1:]), flat)
    return prompts, replace(responses, observed=replace(responses.observed, images=seen))


def vocabulary_statistics(
    params: Params,
    policy: Policy,
    tokens: Int[Array, "b t"],
    count: Int[Array, "b"],
    hidden: Float[Array, "b t d"],
    corrupted: Float[Array, "b t d"] | None = None,
    **wanted: bool,
) -> dict[str, Float[Array, "b t"]]:
    """`mmrl.kernels.vocab.token_statistics` on the mesh: each device takes its tokens and its vocabulary.

    A device has one shard of ``b``, of which the first ``count`` tokens are wanted.
    """
    table = unembedding(params).astype(hidden.dtype)
    (cut,) = sharded_over(table, "vocab", None)[:1]
    token_axes = sharded_over(tokens, "batch", None)[0]

    def of_device(
        tokens: Array, count: Array, table: Array, bias: Array, hidden: Array, *corrupted: Array
    ) -> dict:
        flat = [states.reshape(-1, states.shape[-1]) for states in (hidden, *corrupted)]
        out = token_statistics(
            flat[0],
            table,
            tokens.reshape(-1),
            bias,
            temperature=policy.temperature,
            corrupted_hidden=flat[1] if corrupted else None,
            count=count[0],
            vocab_axis=cut[0] if cut else None,
            token_axes=token_axes,
            **wanted,
        )
        return {name: value.reshape(tokens.shape) for name, value in out.items()}

    states = [hidden] if corrupted is None else [hidden, corrupted]
    of_tokens = ("batch", None)
    axes = [of_tokens, ("batch",), ("vocab", None), ("vocab",), *[(*of_tokens, None)] * len(states)]
    return shard_map_kernel(of_device, axes, like=0)(tokens, count, table, policy.bias, *states)


def _patches(batch: TrainBatch, views: Views, view: str) -> UInt8[Array, "d f c"]:
    """All patches of each shard in a view: those of its prompts, then those that its responses looked at."""
    prompts, responses = viewed(batch, views, view)
    images = [prompts.images] + ([] if responses.observed is None else [responses.observed.images])
    shards = batch.packed.patches.source.shape[1]
    tables = [each.patches.reshape(shards, -1, each.patches.shape[-1]) for each in images]
    return constrain(jnp.concatenate(tables, axis=1), "batch", None, None)


def scatter_to_responses(
    values: Float[Array, "d k"], rows: TokenRows, shape: tuple[int, ...]
) -> Float[Array, "b g r"]:
    """Values of packed targets, scattered to their responses; zeros elsewhere."""
    real = jnp.arange(values.shape[1]) < rows.count[:, None]
    size = shape[0] // values.shape[0] * shape[1] * shape[2]

    def of_device(values: Array, place: Array) -> Array:
        def of_shard(values: Array, place: Array) -> Array:
            return jnp.zeros(size, values.dtype).at[place].add(values, mode="drop")

        return jax.vmap(of_shard)(values, place)

    axes = ("batch", None)
    flat = shard_map_kernel(of_device, (axes, axes), like=0, checked=False)(
        jnp.where(real, values, 0.0), rows.place
    )
    return constrain(flat.reshape(shape), "batch", None, None)


def _sum_rows(scope: str, count: Int[Array, ""], of_row: Callable[[Array], Any]) -> Any:
    """The sum of a pytree over rows ``0 .. count - 1``; ``scope`` names the loop."""
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of_row, jnp.int32(0)))
    with jax.named_scope(scope):
        return jax.lax.fori_loop(0, count, lambda m, total: jax.tree.map(jnp.add, total, of_row(m)), zeros)


@partial(jax.jit, static_argnames="wanted")
def score(
    models: dict[str, Params],
    policy: Policy,
    batch: TrainBatch,
    views: Views,
    *,
    wanted: frozenset[Score],
) -> dict[Score, Float[Array, "b g r"]]:
    """Logprobs, entropies and divergences of a batch (`token_scores`), no gradient; zeros elsewhere."""
    shape, features = batch.responses.mask.shape, {}
    for each in sorted(passes_of(wanted)):
        table = _patches(batch, views, each.view)
        features[each] = image_features(
            models[each.model], policy.model, table, batch.packed.patches, batch.packed.patch_rows
        )

    def of_row(m: Array) -> dict[Score, Array]:
        rows = take_row(batch.packed.tokens, m)
        of_images = {each: features_of(table, rows) for each, table in features.items()}
        found, _ = token_scores(models, policy, rows, of_images, wanted)
        return {name: scatter_to_responses(values, rows, shape) for name, values in found.items()}

    return _sum_rows("token_rows", batch.packed.token_rows, of_row)


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


@partial(jax.jit, static_argnames=("algorithm", "optimizer"), donate_argnums=0)
def update(
    state: TrainState,
    policy: Policy,
    batch: TrainBatch,
    targets: Targets,
    views: Views,
    *,
    algorithm: Algorithm,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, Array]]:
    """One optimizer step on one batch; a non-finite one leaves the state as it was and is counted.

    Returns:
      The new state, and metrics; where ``targets`` hold no logprob of the policy, as the batch is new to it,
      also "logprob", that of each token ``b g r`` before the step.
    """
    shape = batch.responses.mask.shape

    def loss(params: Params, features: Features, rows: TokenRows) -> tuple[Array, tuple[dict, Any]]:
        wanted = algorithm.live | {LOGPROB}
        found, routers = token_scores(
            {"policy": params}, policy, rows, features, wanted, algorithm.differentiated
        )
        live = {name: scatter_to_responses(values, rows, shape) for name, values in found.items()}
        there = scatter_to_responses(jnp.ones(rows.target.shape, jnp.float32), rows, shape) > 0
        value, metrics = algorithms.loss(algorithm, algorithms.mask_targets(targets, there), live)
        return value, (metrics, (live[LOGPROB], routers))

    passes = passes_of(algorithm.live | {LOGPROB})
    gradient, metrics, (found, routers) = accumulate(
        loss, state, policy, batch, views, passes, passes & (algorithm.differentiated | {POLICY})
    )
    state, metrics = apply(state, gradient, metrics, optimizer, param_specs(policy.model))
    metrics |= router_metrics(routers) if routers else {}
    return state, metrics if LOGPROB in targets.scores else {**metrics, "logprob": found}


def accumulate(
    loss: Callable[[Params, Features, TokenRows], tuple[Array, tuple[dict, Any]]],
    state: TrainState,
    policy: Policy,
    batch: TrainBatch,
    views: Views,
    passes: Iterable[Pass],
    differentiated: Iterable[Pass],
) -> tuple[Params, dict[str, Array], Any]:
    """Gradient accumulation: of the sum of ``loss`` over the rows of a batch; and metrics, with "loss".

    Args:
      loss: of all weights, the features of images at the slots of a row by pass, and that row of tokens of
        each shard; it gives metrics and one more value, which are summed as well.
      state, policy, batch, views: as for `update`.
      passes: those that ``loss`` makes, and ``differentiated`` those of them that have gradients.
    """
    tables = {each: _patches(batch, views, each.view) for each in sorted(passes)}
    features = {
        each: image_features(state.params, policy.model, table, batch.packed.patches, batch.packed.patch_rows)
        for each, table in tables.items()
    }

    def of_row(m: Array) -> tuple[tuple[Params, dict[str, Array], Any], Features]:
        rows = take_row(batch.packed.tokens, m)

        def of_trainable(trainable: Params, of_images: Features) -> tuple[Array, tuple[dict, Any]]:
            return loss(merge_params(trainable, state.frozen), of_images, rows)

        differentiate = jax.value_and_grad(of_trainable, argnums=(0, 1), has_aux=True)
        of_images = {each: features_of(table, rows) for each, table in features.items()}
        (value, (metrics, found)), (gradient, direction) = differentiate(state.trainable, of_images)
        return (gradient, {**metrics, "loss": value}, found), direction

    def add_row(m: Array, total: tuple) -> tuple:
        made, direction = of_row(m)
        feature = take_row(batch.packed.tokens, m).feature
        return jax.tree.map(jnp.add, total[0], made), {
            each: add_to_features(table, feature, direction[each]) for each, table in total[1].items()
        }

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of_row, jnp.int32(0))[0])
    start = zeros, {each: jnp.zeros_like(features[each]) for each in sorted(differentiated)}
    with jax.named_scope("token_rows"):
        (gradient, metrics, found), directions = jax.lax.fori_loop(0, batch.packed.token_rows, add_row, start)
    if "vision" not in state.trainable or not any(table.shape[1] for table in tables.values()):
        return gradient, metrics, found
    size = batch.packed.patches.source.shape[-1] // policy.model.token_patches

    def of_images(m: Array) -> Params:
        total = jax.tree.map(jnp.zeros_like, state.trainable["vision"])
        rows = take_row(batch.packed.patches, m)
        for each, direction in directions.items():

            def encode(vision: Params, table: Array = tables[each]) -> Array:
                params = merge_params({**state.trainable, "vision": vision}, state.frozen)
                return encode_row(params, policy.model, table, rows)

            of_row = features_of_row(direction, m, size)
            (more,) = jax.vjp(encode, state.trainable["vision"])[1](of_row)
            total = jax.tree.map(jnp.add, total, more)
        return total

    more = _sum_rows("patch_rows", batch.packed.patch_rows, of_images)
    gradient = {**gradient, "vision": jax.tree.map(jnp.add, gradient["vision"], more)}
    return gradient, metrics, found


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


@partial(jax.jit, static_argnames="optimizer", donate_argnums=0)
def imitate(
    state: TrainState,
    policy: Policy,
    batch: TrainBatch,
    *,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One supervised step: maximise the logprob of the responses, averaged over all tokens of the batch."""
    total = jnp.maximum((batch.responses.mask & batch.responses.valid[..., None]).sum(), 1)

    def loss(params: Params, features: Features, rows: TokenRows) -> tuple[Array, tuple[dict, Any]]:
        found, routers = token_scores({"policy": params}, policy, rows, features, frozenset({LOGPROB}))
        real = jnp.arange(rows.target.shape[1]) < rows.count[:, None]
        return -jnp.where(real, found[LOGPROB], 0.0).sum() / total, ({}, routers)

    gradient, metrics, routers = accumulate(loss, state, policy, batch, {}, {POLICY}, {POLICY})
    state, metrics = apply(state, gradient, metrics, optimizer, param_specs(policy.model))
    return state, {**metrics, **(router_metrics(routers) if routers else {})}
