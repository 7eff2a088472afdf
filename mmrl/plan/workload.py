"""The programs of a config at its largest shapes, with arguments: abstract for plans, arrays for timing.

Each argument is described once, as arrays made from a key: random weights; prompts, images and responses of
given lengths in arrays of the largest. `program` takes their shapes alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Key

from mmrl.algorithms.algorithm import Algorithm
from mmrl.algorithms.passes import LOGPROB
from mmrl.config import Config, algorithm
from mmrl.kernels.packed import row_length
from mmrl.mesh import DECODING, WEIGHTS, abstract_arrays, batch_shards, sharding, shardings, to_host
from mmrl.models.config import ModelConfig, Prefix
from mmrl.models.family import param_specs
from mmrl.models.full_prompts import full_prompts
from mmrl.models.language_model import split_layers
from mmrl.models.params import flatten, unflatten
from mmrl.open import sampling_of
from mmrl.packing import (
    PackedBatch,
    RowBudget,
    pack_batch,
    pack_prompts,
    prompt_shards,
    row_budget,
    rows_of_prompts,
    zero_rows,
)
from mmrl.plan.lengths import (
    FULL,
    LengthDistribution,
    Lengths,
    RowCounts,
    balanced,
    count_prompt_rows,
    count_rows,
    needed_rows,
)
from mmrl.rollout import engine
from mmrl.rollout.sampling import Policy, sampling_arrays
from mmrl.rollout.scheduler import MAX_STOP_IDS
from mmrl.rollout.slots import DecodeCount, choose_slots, count_steps, smaller_shapes
from mmrl.train import programs
from mmrl.train.fit import row_choices
from mmrl.train.optimizer import make_optimizer
from mmrl.train.programs import TrainBatch, views_of
from mmrl.train.state import TrainState, abstract_state, split_params, state_sharding
from mmrl.types import Params, Prompts, Responses, StopReason

PROGRAMS = ("prefill", "decode", "score", "update")
_SCALE = 0.02  # standard deviation of random weights, as in Qwen2.5's own initialisation
_STEPS = 100  # of a run, where a schedule ends
_KEY = jax.eval_shape(lambda: jax.random.key(0))


@dataclass(frozen=True)
class Workload:
    """A config on a mesh."""

    config: Config
    model: ModelConfig
    mesh: Mesh
    algorithm: Algorithm
    optimizer: optax.GradientTransformation
    distribution: LengthDistribution = FULL  # of lengths

    @property
    def prompt_slots(self) -> int:
        """Prompts that are prefilled, and whose groups are decoded, at once."""
        return self.config.rollout.prompt_slots or self.config.rollout.prompts

    def trips(self, name: str) -> dict[str, float]:
        """Iterations of the loops of a program whose number is data (`mmrl.plan.flops.count`)."""
        rows = self.prompt_rows if name == "prefill" else self.rows
        return {
            "decode_steps": self.config.rollout.max_tokens,
            "read_token": 1,
            "further_passes": 0,
            **rows.trips(),
        }

    @cached_property
    def lengths(self) -> Lengths:
        """Lengths of the groups of an update."""
        return balanced(self._draw(self.config.train.update_prompts), batch_shards(self.mesh))

    def _draw(self, groups: int) -> Lengths:
        """Lengths with whole image tokens, and images no larger than `_prompts` has."""
        drawn, data, block = (
            self.distribution.draw(self.config, groups),
            self.config.data,
            self.model.token_patches,
        )
        most = min(max(data.patch_buckets), block * max(data.prompt_buckets))
        most = most // self.model.window_slots * self.model.window_slots
        return replace(drawn, patches=np.minimum(drawn.patches // block * block, most))

    @cached_property
    def budget(self) -> RowBudget:
        """Rows of an update."""
        prompts, responses = jax.eval_shape(partial(_unpacked, self), _KEY)
        shards, row_tokens = batch_shards(self.mesh), self.config.train.row_tokens
        return row_budget(self.model, prompts, responses, shards, row_tokens)

    @cached_property
    def rows(self) -> RowCounts:
        """Rows that an update takes."""
        return count_rows(self.lengths, self.budget, batch_shards(self.mesh))

    @cached_property
    def prompt_budget(self) -> RowBudget:
        """Rows of the prompts that are prefilled at once."""
        data, each = self.config.data, self.prompt_slots // self.prompt_shards
        return rows_of_prompts(self.model, each, max(data.prompt_buckets), max(data.patch_buckets))

    @cached_property
    def prompt_rows(self) -> RowCounts:
        """Rows that prompts take in prefill."""
        return count_prompt_rows(self.prompt_lengths, self.prompt_budget, self.prompt_shards)

    @cached_property
    def prompt_lengths(self) -> Lengths:
        """Lengths of the prompts that are prefilled at once."""
        return self._draw(self.prompt_slots)

    def needed_rows(self, name: str, *, repeated: bool = False) -> RowCounts:
        """Rows of the program ``name`` if it computed nothing but what there is (`lengths.needed_rows`)."""
        if name == "prefill":
            asked = replace(self.prompt_lengths, responses=self.prompt_lengths.responses[:, :0])
            return needed_rows(asked, self.prompt_budget, self.prompt_shards)
        return needed_rows(self.lengths, self.budget, batch_shards(self.mesh), repeated=repeated)

    def decode_count(self, flops_per_byte: float) -> tuple[int, DecodeCount]:
        """Tokens of the responses of a rollout, and the steps in which they are decoded.

        In the slots that a run chooses after its first step, on a device that does so many operations while
        it reads a byte.
        """
        config, shards = self.config, self.prompt_shards
        lengths = self._draw(config.rollout.prompts).responses
        most = engine.RolloutShape(
            self.prompt_slots,
            config.rollout.slots_per_prompt,
            max(config.data.prompt_buckets),
            config.rollout.max_tokens,
            chunk=config.rollout.chunk,
        ).within(config.rollout.prompts, config.rollout.group)
        shapes = smaller_shapes(
            most,
            shards,
            fewer_prompts=not config.rollout.prompt_slots,
            fewer_responses=not config.rollout.slots_per_prompt,
        )
        shape = choose_slots(lengths, shapes, shards, self.model, flops_per_byte)
        return int(lengths.sum()), count_steps(lengths, shape, shards)

    @property
    def prompt_shards(self) -> int:
        """Parts that the prompts of one prefill are cut into."""
        return prompt_shards(self.prompt_slots, self.mesh)

    @property
    def computed_rows(self) -> int:
        """Rows of tokens that score and update compute, over all devices."""
        return round(self.rows.token_rows) * batch_shards(self.mesh)

    @property
    def full_attention_fraction(self) -> float:
        """Share of the vision layers that attend over the whole image: the one choice in a program."""
        vision = self.model.vision
        return len(vision.full_layers) / max(vision.layers, 1)


def workload(
    config: Config, model: ModelConfig, mesh: Mesh, distribution: LengthDistribution = FULL
) -> Workload:
    """The run ``config`` with a model of these sizes on ``mesh``, with lengths of a distribution.

    Raises:
      ValueError: no buckets, the largest patch bucket is no whole number of windows, or the sampling is out
        of range.
    """
    for key in ("prompt_buckets", "patch_buckets"):
        if not getattr(config.data, key):
            raise ValueError(f"config.data.{key} is left to the data, which is not looked at here: name it")
    patches, slots = max(config.data.patch_buckets), model.window_slots
    if patches % slots:
        raise ValueError(
            f"config.data.patch_buckets: {patches} is not a multiple of {slots}, the patches of a window"
        )
    prompt = max(config.data.prompt_buckets)
    row = config.train.row_tokens or row_choices(config, batch_shards(mesh), prompt)[0]
    row = row_length(max(row, prompt + config.rollout.max_tokens))
    config = replace(config, train=replace(config.train, row_tokens=row))
    sampling_of(config)
    optimizer = make_optimizer(config.optimizer, _STEPS)
    return Workload(config, model, mesh, algorithm(config), optimizer, distribution)


def program(work: Workload, name: str) -> tuple[Any, tuple, dict[str, Any]]:
    """A jitted program with abstract arguments: ``function.trace(*arguments, **static)`` under the mesh."""
    made = jax.eval_shape(partial(_MAKERS[name], work), _KEY)
    given = tuple(_placed(work, argument, decoding=name in ("prefill", "decode")) for argument in made)
    if name == "prefill":
        return engine.prefill, (given[0], work.model, *given[1:]), {}
    if name == "decode":
        return engine.decode, (given[0], work.model, *given[1:]), {"steps": work.config.rollout.max_tokens}
    if name == "score":
        wanted = work.algorithm.needs_of("policy") | {LOGPROB}
        return programs.score, given, {"wanted": wanted}
    return programs.update, given, {"algorithm": work.algorithm, "optimizer": work.optimizer}


def arguments(work: Workload, name: str, seed: int = 0) -> tuple:
    """Arrays for the compiled program ``name``, laid out as `program` says; static arguments are left out."""
    like = tuple(argument for argument in program(work, name)[1] if argument is not work.model)
    layout = jax.tree.map(lambda leaf: leaf.sharding, like)
    with jax.set_mesh(work.mesh):
        made = jax.jit(partial(_MAKERS[name], work), out_shardings=layout)(jax.random.key(seed))

        def pack(argument: Any) -> Any:
            if isinstance(argument, PackedBatch):
                prompts = to_host(made[1])
                return pack_prompts(prompts, np.ones(len(prompts.mask), bool), work.model, work.mesh)
            if not isinstance(argument, TrainBatch):
                return argument
            row_tokens = work.config.train.row_tokens
            packed = pack_batch(argument.prompts, argument.responses, work.model, work.mesh, row_tokens)
            return replace(argument, packed=packed)

        return tuple(map(pack, made))


def _prefill(work: Workload, key: Key[Array, ""]) -> tuple:
    """Prompts whose rows are yet to be packed (`arguments`)."""
    packed = zero_rows(work.prompt_budget, work.prompt_shards)
    return random_weights(work.model, key, decoding=True), _prompts(work, work.prompt_lengths), packed


def _decode(work: Workload, key: Key[Array, ""]) -> tuple:
    """The whole budget of tokens in one call, all slots from their first token on; nothing stops them."""
    rollout, of_weights, of_prefix, of_draws = work.config.rollout, *jax.random.split(key, 3)
    empty = engine.init_decode_state(
        work.model,
        prompt_slots=work.prompt_slots,
        slots_per_prompt=min(rollout.slots_per_prompt or rollout.group, rollout.group),
        prompt=max(work.config.data.prompt_buckets),
        cache_size=rollout.max_tokens,
        max_stop_ids=MAX_STOP_IDS,
    )
    grid, prompt = empty.running.shape, empty.prefix.mask.shape[1]
    prefix, hidden = _noise_like(((empty.prefix.key, empty.prefix.value), empty.hidden), of_prefix)
    options = sampling_arrays([replace(sampling_of(work.config), stop_ids=())], MAX_STOP_IDS)
    state = replace(
        empty,
        prefix=Prefix(prefix[0], prefix[1], jnp.ones_like(empty.prefix.mask)),
        prompt_hidden=hidden[:, 0],
        prompt_next=jnp.full_like(empty.prompt_next, prompt),
        hidden=hidden,
        position=jnp.full_like(empty.position, prompt),
        running=jnp.ones_like(empty.running),
        limit=jnp.full_like(empty.limit, np.iinfo(np.int32).max),  # so that one call can go on from another
        key=jax.random.split(of_draws, grid),
        options=jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[0], (*grid, *leaf.shape[1:])), options),
    )
    return random_weights(work.model, of_weights, decoding=True), state, jnp.zeros(work.model.vocabulary)


def _score(work: Workload, key: Key[Array, ""]) -> tuple:
    models = {"policy": random_weights(work.model, key)}
    return models, _policy(work), _batch(work, key), views_of(work.config)


def _update(work: Workload, key: Key[Array, ""]) -> tuple:
    """`_score` with a fresh optimizer, and `programs.prepare` of random rewards and likely scores."""
    models, policy, batch, views = _score(work, key)
    trainable, frozen = split_params(models["policy"], work.config.optimizer.freeze)
    state = TrainState(trainable, work.optimizer.init(trainable), jnp.int32(0), frozen)
    measured = sorted(work.algorithm.needs | {LOGPROB})
    of_rewards, *of_scores = jax.random.split(key, 1 + len(measured))
    scores = {}
    for each, of_score in zip(measured, of_scores, strict=True):
        score = jax.random.uniform(of_score, batch.responses.tokens.shape)
        shift = math.log(work.model.vocabulary) if each.quantity == "logprob" else 0.0
        scores[each] = score - shift
    rewards = jax.random.bernoulli(of_rewards, shape=batch.responses.valid.shape).astype(jnp.float32)
    valid, mask = batch.responses.valid, batch.responses.mask
    targets = programs.prepare(
        work.algorithm, rewards, rewards, valid, mask, scores, jnp.int32(0), total_steps=_STEPS
    )
    return state, policy, batch, targets, views


_MAKERS: dict[str, Callable[[Workload, Any], tuple]] = {
    "prefill": _prefill,
    "decode": _decode,
    "score": _score,
    "update": _update,
}


def random_weights(model: ModelConfig, key: Key[Array, ""], *, decoding: bool = False) -> Params:
    """Weights for training (float32) or for decoding: random but for norms (one) and biases (zero)."""
    dtype = jnp.dtype(model.dtype if decoding else jnp.float32)
    described = flatten(param_specs(model))
    made = {}
    for (path, param), seed in zip(described.items(), jax.random.bits(key, (len(described),)), strict=True):
        if param.init in ("zeros", "ones"):
            made[path] = jnp.full(param.shape, float(param.init == "ones"), dtype)
        else:
            made[path] = (_SCALE * _noise(param.shape, seed)).astype(dtype)
    params = unflatten(made)
    return engine.decoding_weights(params, model) if decoding else params


def _prompts(work: Workload, lengths: Lengths) -> Prompts:
    """Prompts of these lengths: an image, and text behind it if there is room."""
    data, model = work.config.data, work.model
    p, n = max(data.prompt_buckets), max(data.patch_buckets)
    made = full_prompts(model, len(lengths.prompts), p, n)
    mask = jnp.arange(p) < lengths.prompts[:, None]
    seen = mask & (jnp.arange(p) < lengths.patches[:, None] // model.token_patches)
    shown = jnp.arange(n) < lengths.patches[:, None]
    return replace(
        made,
        mask=mask,
        image_token=jnp.where(seen, jnp.arange(p), -1),
        images=replace(made.images, image=jnp.where(shown, 0, -1)),
    )


def _batch(work: Workload, key: Key[Array, ""]) -> TrainBatch:
    """A batch whose rows are yet to be packed (`arguments`)."""
    of_batch, of_views = jax.random.split(key)
    prompts, responses = _unpacked(work, of_batch)
    packed = zero_rows(work.budget, batch_shards(work.mesh))
    return TrainBatch(prompts, responses, packed, jax.random.split(of_views, len(prompts.mask)))


def _unpacked(work: Workload, key: Key[Array, ""]) -> tuple[Prompts, Responses]:
    b = work.config.train.update_prompts
    rows = (b, work.config.rollout.group)
    shape = (*rows, work.config.rollout.max_tokens)
    responses = Responses(
        tokens=jax.random.randint(key, shape, 0, work.model.vocabulary),
        mask=jnp.arange(shape[2]) < work.lengths.responses[..., None],
        logprob=jnp.full(shape, -math.log(work.model.vocabulary)),
        log_kept=jnp.zeros(shape),
        stop=jnp.full(rows, StopReason.LENGTH, jnp.int32),
        valid=jnp.ones(rows, bool),
    )
    return _prompts(work, work.lengths), responses


def _policy(work: Workload) -> Policy:
    return Policy(work.model, work.config.rollout.temperature, jnp.zeros(work.model.vocabulary))


def _noise(shape: tuple[int, ...], seed: Array) -> Array:
    """Uniform numbers of variance 1, hashes of their indices, which compile sooner than `jax.random`."""
    bits = jnp.full(shape, seed, jnp.uint32)
    for axis, size in enumerate(shape):
        bits = bits * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    for factor in (0x85EBCA6B, 0xC2B2AE35):  # the finaliser of MurmurHash3
        bits = (bits ^ (bits >> 15)) * jnp.uint32(factor)
    return ((bits >> 8).astype(jnp.float32) / 2**23 - 1) * 3**0.5


def _noise_like(tree: Any, key: Key[Array, ""]) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    seeds = jax.random.bits(key, (len(leaves),))
    made = [_noise(leaf.shape, seed).astype(leaf.dtype) for leaf, seed in zip(leaves, seeds, strict=True)]
    return jax.tree.unflatten(structure, made)


def _placed(work: Workload, argument: Any, *, decoding: bool) -> Any:
    """An abstract argument that knows its sharding: of weights by their description, else by its rows."""
    if isinstance(argument, TrainState):
        return _abstract_state(work)
    if isinstance(argument, dict) and jax.tree.leaves(argument):
        weights = abstract_weights(work.model, work.mesh, decoding=decoding)
        return {"policy": weights} if "policy" in argument else weights
    caches = {4: ("batch", None, "heads", None), 5: ("batch", None, "heads", None, None)} if decoding else {}

    def place(leaf: Any) -> Any:
        axes = caches.get(leaf.ndim, ("batch", *[None] * (leaf.ndim - 1))[: leaf.ndim])
        if isinstance(argument, Policy | jax.ShapeDtypeStruct):  # the bias of the vocabulary
            axes = (None,)
        placed = sharding(work.mesh, axes, leaf.shape)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed)

    def place_row(leaf: Any) -> Any:  # ``m d``
        axes = (None, "batch", *[None] * leaf.ndim)[: leaf.ndim]
        placed = sharding(work.mesh, axes, leaf.shape)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed)

    if isinstance(argument, PackedBatch):
        return jax.tree.map(place_row, argument)
    if isinstance(argument, TrainBatch):
        packed = jax.tree.map(place_row, argument.packed)
        return replace(jax.tree.map(place, argument), packed=packed)
    return jax.tree.map(place, argument)


def abstract_weights(model: ModelConfig, mesh: Mesh, *, decoding: bool = False) -> Params:
    """The weights as they lie while training (float32), or while decoding (in the type of the products)."""
    like = jax.eval_shape(partial(random_weights, model, decoding=decoding), _KEY)
    layout = shardings(param_specs(model), mesh, DECODING if decoding else WEIGHTS)
    if decoding:

        def layer(stack: NamedSharding, i: int) -> NamedSharding:
            return NamedSharding(mesh, PartitionSpec(*stack.spec[1:]))

        layout = {**layout, "layers": split_layers(model, layout["layers"], layer)}
    return abstract_arrays(like, layout)


def _abstract_state(work: Workload) -> TrainState:
    params, freeze = abstract_weights(work.model, work.mesh), work.config.optimizer.freeze
    state = abstract_state(params, work.optimizer, freeze)
    return abstract_arrays(state, state_sharding(params, work.optimizer, freeze))


def resident_bytes(work: Workload, name: str) -> int:
    """Bytes per device that stay in memory beside the arguments of a program: weights it does not read."""
    trained = abstract_weights(work.model, work.mesh)
    in_products = jax.tree.map(lambda leaf: leaf.update(dtype=work.model.dtype), trained)
    reference = device_bytes(in_products) if "reference" in work.algorithm.models else 0
    if name == "update":
        return reference
    state = device_bytes(_abstract_state(work))
    return reference + state - (device_bytes(trained) if name == "score" else 0)


def token_read_bytes(work: Workload) -> int:
    """Bytes of one device that decoding reads for every token, caches of responses apart.

    All weights but the vision tower and the table of inputs, and the keys and values of the prompts.
    """
    params, _, state, _ = program(work, "decode")[1]
    head = params.get("lm_head", params["embedding"])
    return device_bytes((params["layers"], params["final_norm"], head, state.prefix.key, state.prefix.value))


def device_bytes(tree: Any) -> int:
    """Bytes of one device's part of the arrays in a tree; other leaves count nothing."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if isinstance(leaf, jax.ShapeDtypeStruct)
    )
