"""The programs of a config at its largest shapes, ready to be traced: what plans and benchmarks look at.

Arguments are stand-ins (`jax.ShapeDtypeStruct`) that know their sharding; nothing is computed or held.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmrl.algorithms.algorithm import Algorithm
from mmrl.config import Config, algorithm
from mmrl.mesh import (
    ACTIVATIONS,
    DECODING,
    WEIGHTS,
    Rules,
    abstract_arrays,
    batch_shards,
    sharding,
    shardings,
)
from mmrl.models import qwen2_5_vl_config
from mmrl.models.params import abstract
from mmrl.open import sampling_of
from mmrl.rollout import engine
from mmrl.rollout.orders import STOP_SLOTS
from mmrl.rollout.sampling import Policy
from mmrl.train import programs
from mmrl.train.optimizer import make_optimizer, state_sharding
from mmrl.train.programs import Batch, ImageCorruption, TrainState
from mmrl.types import Images, Params, Prompts, Responses

PROGRAMS = ("prefill", "decode", "score", "update")


@dataclass(frozen=True)
class Workload:
    """A config on a mesh.

    Attributes:
      config: the run.
      model: sizes of the policy.
      mesh: what it is cut over.
      algorithm: of the run.
      optimizer: likewise.
    """

    config: Config
    model: qwen2_5_vl_config.Config
    mesh: Mesh
    algorithm: Algorithm
    optimizer: optax.GradientTransformation

    @property
    def lanes(self) -> int:
        """Prompts that are prefilled, and whose groups are decoded, at once."""
        return self.config.rollout.lanes or self.config.rollout.prompts


def costlier_branches(sizes: qwen2_5_vl_config.Config) -> float:
    """Share of the vision tower's layers that attend over the whole image: the one choice in a program."""
    return len(set(sizes.full_attention_layers) & set(range(sizes.vision_layers))) / sizes.vision_layers


def one_prompt_each(config: Config, shards: int) -> Config:
    """The config with micro-batches of a prompt in each of ``shards`` parts, where it leaves them open."""
    train = config.train
    if train.micro_prompts:
        return config
    return replace(config, train=replace(train, micro_prompts=math.gcd(train.update_prompts, shards)))


def workload(config: Config, sizes: qwen2_5_vl_config.Config, mesh: Mesh) -> Workload:
    """The run ``config`` with a model of ``sizes`` on ``mesh``.

    Raises:
      ValueError: no buckets, the largest patch bucket is no whole number of windows, or the sampling is out
        of range.
    """
    for key in ("prompt_buckets", "patch_buckets"):
        if not getattr(config.data, key):
            raise ValueError(f"config.data.{key} is left to the data, which is not looked at here: name it")
    config = one_prompt_each(config, batch_shards(mesh))
    patches, slots = max(config.data.patch_buckets), sizes.window_slots
    if patches % slots:
        raise ValueError(
            f"config.data.patch_buckets: {patches} is not a multiple of {slots}, the patches of a window"
        )
    sampling_of(config)
    params = weights(sizes, mesh)
    return Workload(config, sizes, mesh, algorithm(config), make_optimizer(config.optimizer, params, 100))


def program(work: Workload, name: str) -> tuple[Any, tuple, dict[str, Any]]:
    """A jitted program with its arguments: ``function.trace(*arguments, **static)`` under the mesh."""
    return {"prefill": _prefill, "decode": _decode, "score": _score, "update": _update}[name](work)


def resident_bytes(work: Workload, name: str) -> int:
    """Bytes per device that stay in memory beside the arguments of a program: weights it does not read."""
    trained = weights(work.model, work.mesh)
    in_products = jax.tree.map(lambda leaf: leaf.update(dtype=work.model.dtype), trained)
    reference = device_bytes(in_products) if "reference" in work.algorithm.needs else 0
    if name in ("prefill", "decode"):
        return device_bytes(_state(work)) + reference
    return reference + (device_bytes(_state(work)) - device_bytes(trained) if name == "score" else 0)


def weights(sizes: qwen2_5_vl_config.Config, mesh: Mesh, *, decoding: bool = False) -> Params:
    """The weights as they lie while training (float32), or while decoding (in the type of the products)."""
    description = qwen2_5_vl_config.describe(sizes)
    rules = DECODING if decoding else WEIGHTS
    like = abstract(description, sizes.dtype if decoding else jnp.float32)
    made = abstract_arrays(like, shardings(description, mesh, rules))
    if not decoding:
        return made

    def layer(stack: Any) -> Any:
        spec = PartitionSpec(*stack.sharding.spec[1:])
        return jax.ShapeDtypeStruct(stack.shape[1:], stack.dtype, sharding=NamedSharding(mesh, spec))

    return {**made, "layers": (jax.tree.map(layer, made["layers"]),) * sizes.layers}


def _array(
    mesh: Mesh, shape: tuple[int, ...], dtype: Any, *axes: str | None, rules: Rules = ACTIVATIONS
) -> Any:
    """A `jax.ShapeDtypeStruct` that stands in for an array."""
    axes = axes or ("batch", *[None] * (len(shape) - 1))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding(mesh, axes, shape, rules))


def _prompts(work: Workload, b: int) -> Prompts:
    array = partial(_array, work.mesh)
    p, n = max(work.config.data.prompt_buckets), max(work.config.data.patch_buckets)
    pixels = 3 * work.model.patch_size**2
    return Prompts(
        tokens=array((b, p), jnp.int32),
        mask=array((b, p), bool),
        position=array((b, p, 3), jnp.int32),
        next_position=array((b,), jnp.int32),
        image_token=array((b, p), jnp.int32),
        images=Images(
            patches=array((b, n, pixels), jnp.uint8),
            position=array((b, n, 2), jnp.int32),
            image=array((b, n), jnp.int32),
        ),
    )


def _responses(work: Workload, b: int) -> Responses:
    array = partial(_array, work.mesh)
    g, r = work.config.rollout.group, work.config.rollout.max_tokens
    return Responses(
        tokens=array((b, g, r), jnp.int32),
        mask=array((b, g, r), bool),
        logprob=array((b, g, r), jnp.float32),
        log_kept=array((b, g, r), jnp.float32),
        stop=array((b, g), jnp.int32),
        valid=array((b, g), bool),
    )


def _keys(work: Workload, b: int) -> Any:
    return _array(work.mesh, (b,), jax.eval_shape(lambda: jax.random.key(0)).dtype)


def _policy(work: Workload) -> Policy:
    bias = _array(work.mesh, (work.model.vocabulary,), jnp.float32, None)
    return Policy(model=work.model, temperature=work.config.rollout.temperature, bias=bias)


def _batch(work: Workload, b: int) -> Batch:
    return Batch(_prompts(work, b), _responses(work, b), _keys(work, b))


def _corruption(work: Workload) -> ImageCorruption:
    return ImageCorruption(work.config.corruption.method, work.config.corruption.probability)


def _prefill(work: Workload) -> tuple[Any, tuple, dict[str, Any]]:
    params = weights(work.model, work.mesh, decoding=True)
    return engine.prefill, (params, work.model, _prompts(work, work.lanes)), {}


def _decode(work: Workload) -> tuple[Any, tuple, dict[str, Any]]:
    """The whole budget of tokens in one call, all columns from their first token on."""
    rollout, sizes = work.config.rollout, work.model
    lanes = jax.eval_shape(
        partial(
            engine.empty_lanes,
            sizes,
            lanes=work.lanes,
            columns=min(rollout.columns or rollout.group, rollout.group),
            prompt=max(work.config.data.prompt_buckets),
            slots=rollout.max_tokens,
            stop_slots=STOP_SLOTS,
        )
    )

    def stand_in(leaf: Any) -> Any:
        heads = {4: ("batch", None, "heads", None), 5: ("batch", None, "heads", None, None)}
        return _array(work.mesh, leaf.shape, leaf.dtype, *heads.get(leaf.ndim, ()))

    state = jax.tree.map(stand_in, lanes)
    arguments = (weights(sizes, work.mesh, decoding=True), sizes, state, _policy(work).bias)
    return engine.decode, arguments, {"steps": rollout.max_tokens}


def _score(work: Workload) -> tuple[Any, tuple, dict[str, Any]]:
    train = work.config.train
    batch = _batch(work, train.update_prompts)
    arguments = (weights(work.model, work.mesh), _policy(work), batch, _corruption(work))
    static = {
        "wanted": work.algorithm.needs - {"reference"},
        "micro_batches": train.update_prompts // train.micro_prompts,
    }
    return programs.score, arguments, static


def _update(work: Workload) -> tuple[Any, tuple, dict[str, Any]]:
    train = work.config.train
    batch = _batch(work, train.update_prompts)
    of_tokens = _array(work.mesh, batch.responses.tokens.shape, jnp.float32)
    of_rows = _array(work.mesh, batch.responses.valid.shape, jnp.float32)
    targets = jax.eval_shape(
        partial(programs.prepare, work.algorithm, total_steps=100),
        of_rows,
        of_rows,
        batch.responses.valid,
        batch.responses.mask,
        dict.fromkeys({"logprob"} | work.algorithm.needs, of_tokens),
        jax.ShapeDtypeStruct((), jnp.int32),
    )
    targets = jax.tree.map(lambda leaf: _array(work.mesh, leaf.shape, leaf.dtype), targets)
    arguments = (_state(work), _policy(work), batch, targets, _corruption(work))
    static = {
        "algorithm": work.algorithm,
        "optimizer": work.optimizer,
        "micro_batches": train.update_prompts // train.micro_prompts,
    }
    return programs.update, arguments, static


def _state(work: Workload) -> TrainState:
    params = weights(work.model, work.mesh)
    made = jax.eval_shape(work.optimizer.init, params)
    updates: Any = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(params, made, updates)
    return abstract_arrays(state, state_sharding(params, work.optimizer))


def read_each_token(params: Params) -> tuple:
    """The weights that decoding reads for every token: all but the vision tower and the table of inputs."""
    return params["layers"], params["final_norm"], params.get("lm_head", params["embedding"])


def device_bytes(tree: Any) -> int:
    """Bytes of one device's part of the arrays in a tree; other leaves count nothing."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if isinstance(leaf, jax.ShapeDtypeStruct)
    )
