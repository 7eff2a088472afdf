"""State of training: weights that are trained, weights that are frozen, and the moments of the former."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct, traverse_util
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jax.tree_util import DictKey
from jaxtyping import Array, Int

from mmrl.types import Params


@struct.dataclass
class TrainState:
    """Weights and moments that an update changes, and the weights that it leaves as they are."""

    trainable: Params
    optimizer: optax.OptState  # of ``trainable``
    updates: Int[Array, ""]  # optimizer steps taken, skipped ones not counted
    frozen: Params = struct.field(default_factory=dict)  # no gradient, no moments

    @property
    def params(self) -> Params:
        """All weights."""
        return merge_params(self.trainable, self.frozen)


def split_params(params: Params, freeze: Sequence[str]) -> tuple[Params, Params]:
    """The trainable and the frozen part of a tree like the weights; ``freeze`` has prefixes of paths.

    Raises:
      ValueError: a prefix matches no weight.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    for prefix in freeze:
        if not any(is_under(path, prefix) for path in flat):
            raise ValueError(f"config.optimizer.freeze: no weight is under {prefix!r}")
    frozen = {path: leaf for path, leaf in flat.items() if any(is_under(path, prefix) for prefix in freeze)}
    if len(frozen) == len(flat):
        raise ValueError("config.optimizer.freeze names every weight: nothing is left to train")
    trainable = {path: leaf for path, leaf in flat.items() if path not in frozen}
    return traverse_util.unflatten_dict(trainable, sep="/"), traverse_util.unflatten_dict(frozen, sep="/")


def merge_params(trainable: Params, frozen: Params) -> Params:
    """The whole tree again of the parts of `split_params`."""
    if not frozen:
        return trainable
    return traverse_util.unflatten_dict(
        traverse_util.flatten_dict(trainable) | traverse_util.flatten_dict(frozen)
    )


def select_paths(tree: Params, part: Params) -> Params:
    """The leaves of ``tree`` that stand where ``part`` has some."""
    flat = traverse_util.flatten_dict(tree)
    return traverse_util.unflatten_dict({path: flat[path] for path in traverse_util.flatten_dict(part)})


def is_under(path: str, prefix: str) -> bool:
    """True if the weight at ``path`` is one of those that ``prefix`` names."""
    return path == prefix or path.startswith(prefix + "/")


def initial_state(
    params: Params, optimizer: optax.GradientTransformation, freeze: Sequence[str] = ()
) -> TrainState:
    """A state that has taken no update; moments are laid out as the weights they belong to."""
    trainable, frozen = split_params(params, freeze)
    layout = state_sharding(params, optimizer, freeze)
    made = jax.jit(optimizer.init, out_shardings=layout.optimizer)(trainable)
    return TrainState(trainable, made, jax.device_put(jnp.int32(0), layout.updates), frozen)


def abstract_state(
    params: Params, optimizer: optax.GradientTransformation, freeze: Sequence[str] = ()
) -> TrainState:
    """Shapes and types of `initial_state`, of arrays or stand-ins."""
    trainable, frozen = split_params(params, freeze)
    updates: Any = jax.ShapeDtypeStruct((), jnp.int32)
    return TrainState(trainable, jax.eval_shape(optimizer.init, trainable), updates, frozen)


def state_sharding(
    params: Params, optimizer: optax.GradientTransformation, freeze: Sequence[str] = ()
) -> TrainState:
    """The sharding of each leaf of a state; ``params`` are arrays or stand-ins that know their sharding."""
    state = abstract_state(params, optimizer, freeze)
    trainable, frozen = (
        jax.tree.map(lambda leaf: leaf.sharding, part) for part in (state.trainable, state.frozen)
    )
    layout = traverse_util.flatten_dict(trainable)
    anywhere = next(iter(layout.values()))
    whole: Any = anywhere
    if isinstance(anywhere, NamedSharding):
        whole = NamedSharding(anywhere.mesh, PartitionSpec())

    def place(path: tuple, _: jax.ShapeDtypeStruct) -> Sharding:
        keys = tuple(key.key for key in path if isinstance(key, DictKey))
        ends = (keys[start:] for start in range(len(keys)))
        return next((layout[end] for end in ends if end in layout), whole)

    moments = jax.tree_util.tree_map_with_path(place, state.optimizer)
    return TrainState(trainable, moments, whole, frozen)
