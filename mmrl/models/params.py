"""One description per weight: shape, sharding axes, initialisation, place in a Hugging Face checkpoint.

A model states its weights once, as a nested dict of `Param`. The abstract tree, the random initialisation and
the mapping to checkpoint tensors are all read off that description, so they cannot disagree.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.typing import DTypeLike

from mmrl.types import Params


@dataclass(frozen=True)
class Param:
    """Description of one weight.

    ``hf_name`` holds ``{}`` where the layer number goes when the first axis of ``shape`` stacks layers (its
    logical axis is then "layers"). ``layout`` is an einops pattern from the checkpoint tensor of one layer to
    ours, e.g. ``"(h k) d -> d h k"``; sizes it needs are read off ``shape``. Where files differ in
    the order of a tensor's last two axes, ``either_way`` reads both, and the shape tells which it is.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]  # logical axis of each dimension, for the sharding rules
    hf_name: str
    layout: str
    init: str = "fan_in"  # "fan_in", "expert_fan_in", "zeros", "ones" or "embedding"
    layers: tuple[int, ...] | None = None  # numbers of those that are stacked; None: all, from 0
    either_way: bool = False

    def __post_init__(self) -> None:
        target = self.layout.split("->")[1].split()
        if self.init not in ("fan_in", "expert_fan_in", "zeros", "ones", "embedding"):
            raise ValueError(f"{self.hf_name}: unknown init {self.init!r}")
        if len(self.shape) != len(self.axes) or len(target) != len(self.shape) - self.stacked:
            raise ValueError(f"{self.hf_name}: shape, axes and layout do not describe the same array")

    @property
    def stacked(self) -> bool:
        """True if the first axis stacks the layers of the model."""
        return self.axes[0] == "layers"

    @property
    def sizes(self) -> dict[str, int]:
        """Length of every axis named on the right-hand side of ``layout``."""
        names = self.layout.split("->")[1].split()
        return dict(zip(names, self.shape[self.stacked :], strict=True))

    @property
    def hf_shape(self) -> tuple[int, ...]:
        """Shape of one tensor of this weight in the checkpoint."""
        source = self.layout.split("->")[0].replace("(", " ( ").replace(")", " ) ").split()
        shape: list[int] = []
        group: int | None = None
        for word in source:
            if word == "(":
                group = 1
            elif word == ")":
                shape.append(group or 1)
                group = None
            elif group is not None:
                group *= self.sizes[word]
            else:
                shape.append(self.sizes[word])
        return tuple(shape)

    @property
    def hf_names(self) -> list[str]:
        """Name of each tensor of this weight in the checkpoint."""
        if not self.stacked:
            return [self.hf_name]
        return [self.hf_name.format(layer) for layer in self.layers or range(self.shape[0])]

    @property
    def fan_in(self) -> int:
        """Number of inputs summed into one output: all checkpoint axes but the first (the output).

        Of a matrix for each expert, the axis behind the first.
        """
        return self.hf_shape[1] if self.init == "expert_fan_in" else math.prod(self.hf_shape[1:])


def flatten(tree: dict) -> dict[str, Any]:
    """Nested dict to ``{"a/b/c": leaf}``."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(flat: dict[str, Any]) -> dict:
    """Inverse of `flatten`."""
    return traverse_util.unflatten_dict(flat, sep="/")


def abstract(description: dict, dtype: DTypeLike = jnp.float32) -> Params:
    """The tree of `jax.ShapeDtypeStruct` that ``description`` promises."""
    return jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(p.shape, dtype), description, is_leaf=lambda x: isinstance(x, Param)
    )


def initialise(description: dict, seed: int, dtype: jnp.dtype = jnp.float32) -> Params:
    """Random weights: normal with variance 1 / fan-in, zero biases, unit norms.

    Each weight's draw depends on the seed and its own path alone, so adding a weight leaves the others as
    they were. Drawn on the host: compiling a program for every shape would take longer.
    """
    flat = flatten(description)
    return unflatten({path: jnp.asarray(_draw(param, path, seed), dtype) for path, param in flat.items()})


def _draw(param: Param, path: str, seed: int) -> np.ndarray:
    if param.init == "zeros":
        return np.zeros(param.shape, np.float32)
    if param.init == "ones":
        return np.ones(param.shape, np.float32)
    scale = (param.shape[-1] if param.init == "embedding" else param.fan_in) ** -0.5
    generator = np.random.default_rng([seed, *path.encode()])
    return generator.standard_normal(param.shape, np.float32) * np.float32(scale)
