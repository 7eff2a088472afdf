"""AdamW from the config: schedule, clipping, decay and frozen parts."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jax.tree_util import DictKey

from mmrl.algorithms.learning_rate import constant_with_warmup, cosine_with_warmup
from mmrl.config import OptimizerConfig
from mmrl.train.programs import TrainState
from mmrl.types import Params


def make_optimizer(config: OptimizerConfig, params: Params, updates: int) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW (arXiv:1711.05101); weights under ``config.freeze`` stay as they are.

    Args:
      config: hyper-parameters.
      params: the weights, or their abstract tree.
      updates: optimizer steps of the whole run, where the schedule ends.

    Raises:
      ValueError: a prefix in ``config.freeze`` matches no weight.
    """
    chain = optax.chain(
        optax.clip_by_global_norm(config.max_gradient_norm),
        optax.adamw(
            learning_rate(config, updates),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
        ),
    )
    if not config.freeze:
        return chain
    flat = traverse_util.flatten_dict(params, sep="/")
    for prefix in config.freeze:
        if not any(is_under(path, prefix) for path in flat):
            raise ValueError(f"config.optimizer.freeze: no weight is under {prefix!r}")
    labels = traverse_util.unflatten_dict(
        {
            path: "frozen" if any(is_under(path, prefix) for prefix in config.freeze) else "trained"
            for path in flat
        },
        sep="/",
    )
    return optax.multi_transform({"trained": chain, "frozen": optax.set_to_zero()}, labels)


def is_under(path: str, prefix: str) -> bool:
    """Whether the weight at ``path`` is one of those that ``prefix`` names."""
    return path == prefix or path.startswith(prefix + "/")


def learning_rate(config: OptimizerConfig, updates: int) -> optax.Schedule:
    """Warm-up over ``warmup_updates``, then constant, or a cosine to 0 at ``updates``."""
    if config.schedule == "cosine":
        return cosine_with_warmup(config.learning_rate, config.warmup_updates, updates)
    return constant_with_warmup(config.learning_rate, config.warmup_updates)


def initial_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """A state that has taken no update; moments are laid out as the weights they belong to."""
    layout = state_sharding(params, optimizer)
    made = jax.jit(optimizer.init, out_shardings=layout.optimizer)(params)
    return TrainState(params, made, jax.device_put(jnp.int32(0), layout.updates))


def state_sharding(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Where each leaf of the state belongs; ``params`` are arrays or stand-ins that know their sharding."""
    layout = traverse_util.flatten_dict(jax.tree.map(lambda leaf: leaf.sharding, params))
    anywhere = next(iter(layout.values()))
    whole: Any = anywhere
    if isinstance(anywhere, NamedSharding):
        whole = NamedSharding(anywhere.mesh, PartitionSpec())

    def place(path: tuple, _: jax.ShapeDtypeStruct) -> Sharding:
        keys = tuple(key.key for key in path if isinstance(key, DictKey))
        ends = (keys[start:] for start in range(len(keys)))
        return next((layout[end] for end in ends if end in layout), whole)

    made = jax.eval_shape(optimizer.init, params)
    return TrainState(
        params=traverse_util.unflatten_dict(layout),
        optimizer=jax.tree_util.tree_map_with_path(place, made),
        updates=whole,
    )
