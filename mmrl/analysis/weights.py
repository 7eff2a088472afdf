"""What training has changed in the weights."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mmrl.models.params import flatten
from mmrl.types import Params

_STACKED = "layers"  # a part of the path of weights whose first axis counts layers


class Change(NamedTuple):
    """How a weight, or several together, differ between two checkpoints; norms are Euclidean."""

    path: str  # as in the parameter tree, the layer's number after "layers"
    size: int  # numbers
    before: float  # norm
    after: float
    moved: float  # norm of the difference
    changed: float  # share of the numbers that are not equal

    @property
    def relative(self) -> float:
        """Norm of the difference by the norm before; infinite for zeros that moved."""
        return self.moved / self.before if self.before else (math.inf if self.moved else 0.0)

    @property
    def cosine(self) -> float:
        """Of the angle between the two; NaN where one is zero."""
        product = self.before * self.after
        if not product:
            return math.nan
        # From the difference, as weights are nearly parallel: 1 - cosine keeps its digits.
        return 1.0 - (self.moved**2 - (self.before - self.after) ** 2) / (2 * product)


def diff_params(before: Params, after: Params) -> list[Change]:
    """The change of each weight, each layer's apart, the relatively largest first.

    Raises ValueError if the two are not of one model.
    """
    old, new = flatten(before), flatten(after)
    for path in sorted(old.keys() | new.keys()):
        shapes = [getattr(one.get(path), "shape", "nothing") for one in (old, new)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"not of one model: {path} is {shapes[0]} before, {shapes[1]} after")
    changes = []
    for path in old:
        parts = path.split("/")
        stacked = _STACKED in parts
        figures = _figures(old[path], new[path], stacked)
        names = _paths(parts, len(figures[0]) if stacked else 0)
        size = old[path].size // len(names)
        for k, name in enumerate(names):
            one, other, moved, count = (float(figure[k]) for figure in figures)
            changes.append(Change(name, size, one**0.5, other**0.5, moved**0.5, count / size))
    return _sorted(changes)


def by_module(changes: Sequence[Change], depth: int = 2) -> list[Change]:
    """Changes of weights whose paths begin with the same ``depth`` parts, taken together.

    With 1 vision tower, layers and tables; 2 tells the layers of the language model apart, 3 those of the
    vision tower too. The relatively largest comes first. Raises ValueError for a depth below 1.
    """
    if depth < 1:
        raise ValueError(f"depth={depth}: group by one part of the path or more")
    groups: dict[str, list[Change]] = {}
    for change in changes:
        groups.setdefault("/".join(change.path.split("/")[:depth]), []).append(change)
    return _sorted([_together(path, members) for path, members in groups.items()])


def _together(path: str, members: Sequence[Change]) -> Change:
    size = sum(one.size for one in members)
    before, after, moved = (
        math.hypot(*(getattr(one, name) for one in members)) for name in ("before", "after", "moved")
    )
    changed = sum(one.changed * one.size for one in members) / size
    return Change(path, size, before, after, moved, changed)


def _sorted(changes: Sequence[Change]) -> list[Change]:
    return sorted(changes, key=lambda one: (-one.relative, one.path))


def _paths(parts: Sequence[str], layers: int) -> list[str]:
    """The names of a weight's layers, or its own."""
    if not layers:
        return ["/".join(parts)]
    at = list(parts).index(_STACKED) + 1
    return ["/".join([*parts[:at], str(k), *parts[at:]]) for k in range(layers)]


def _figures(old: Array, new: Array, stacked: bool) -> list[Float[np.ndarray, "k"]]:
    """Squares of the norms before, after and of the difference, and numbers not equal: of each layer."""
    old, new = (jnp.asarray(one, jnp.float32) for one in (old, new))
    sums = (jnp.square(old), jnp.square(new), jnp.square(new - old), (new != old).astype(jnp.float32))
    # The rest on the host, in double precision: a float32 counts no further than 2^24.
    rows = [np.asarray(one.sum(axis=-1), np.float64) for one in sums]
    return [one.reshape(len(one) if stacked else 1, -1).sum(axis=1) for one in rows]
