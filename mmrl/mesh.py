"""One device mesh for every program: logical axes of arrays, and the mesh axes they are spread over.

Arrays name their dimensions by what they are ("batch", "heads", ...). A table of rules maps those names to
mesh axes: one for weights in training, one for activations, one for weights in decoding. Functions of the
model say `constrain(x, "batch", "heads")` and never name a mesh axis; without a mesh around them that is
nothing.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("replica", "data", "fsdp", "expert", "tensor")
BATCH_AXES = ("replica", "data", "fsdp", "expert")  # what the prompts of a batch are spread over

_INSTALL = {"cuda": 'pip install "jax[cuda13]"', "tpu": 'pip install "jax[tpu]"'}
Rules = Mapping[str, tuple[str, ...]]
Axes = Sequence[str | None]  # the logical axis of each dimension of an array

WEIGHTS: Rules = {
    "layers": (),
    "embed": ("fsdp", "expert"),
    "expert_embed": ("fsdp",),  # the width of weights that have a matrix for each expert
    "experts": ("expert",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
}
"""Weights and optimizer state while training: cut over ``fsdp``, ``expert`` and ``tensor``, else copied."""

DECODING: Rules = {**WEIGHTS, "embed": (), "expert_embed": ()}
"""Weights while decoding: cut by expert and over ``tensor`` alone: a token needs no weight from elsewhere."""

ACTIVATIONS: Rules = {
    "batch": BATCH_AXES,
    "tokens": ("tensor",),  # of one prompt and its group, between the layers of a training pass
    "experts": ("expert",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "features": ("tensor",),  # the width of those of images, until a row of tokens takes them
}
"""Activations: prompts over all axes but ``tensor``, which cuts what is inside a layer."""


def check_devices() -> str | None:
    """A warning, with the fix, if there is an accelerator that jax does not know how to use; else None.

    Raises:
      ValueError: the platform that JAX_PLATFORMS names cannot be used; with the fix.
    """
    asked = os.environ.get("JAX_PLATFORMS", "")
    try:
        found = jax.devices()[0].platform
    except (RuntimeError, AssertionError) as error:  # jax asserts that "cuda" has a plugin
        platform = next((name for name in _INSTALL if name in asked), "")
        known = f"{_INSTALL[platform]}, and see that the driver finds a device; or " if platform else ""
        reason = (str(error).splitlines() or ["no plugin for it is installed"])[0]
        raise ValueError(
            f"JAX_PLATFORMS={asked} cannot be used ({reason}): {known}unset it to take what there is"
        ) from error
    if found != "cpu" or asked:
        return None
    for platform, marks in (("cuda", ("/dev/nvidia0",)), ("tpu", ("/dev/accel0", "/dev/vfio/0"))):
        if any(os.path.exists(mark) for mark in marks):
            return (
                f"{marks[0]} is there, but jax computes on the CPU: {_INSTALL[platform]}, or set"
                " JAX_PLATFORMS=cpu if that is meant"
            )
    return None


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with the axes `AXES` over ``devices`` (default: all there are).

    Args:
      sizes: of each axis; an axis left out has 1, and one of them may be -1: whatever is left.
      devices: in any order; those of a TPU slice are laid out along its links, ``replica`` across slices.

    Raises:
      ValueError: the sizes do not multiply to the number of devices (both are named).
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = _filled([sizes.get(axis, 1) for axis in AXES], len(devices))
    if hasattr(devices[0], "slice_index") and shape[0] > 1:
        grid = mesh_utils.create_hybrid_device_mesh(
            (1, *shape[1:]), (shape[0], 1, 1, 1, 1), devices=devices, allow_split_physical_axes=True
        )
    elif devices[0].platform == "tpu":
        grid = mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)
    else:
        grid = np.array(devices).reshape(shape)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _filled(sizes: list[int], devices: int) -> tuple[int, ...]:
    named = ", ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(f"config.mesh ({named}): sizes are 1 or more, and one of them may be -1")
    if devices % known or (-1 not in sizes and known != devices):
        raise ValueError(
            f"config.mesh ({named}) does not fit {devices} devices: the sizes must multiply to {devices}"
        )
    return tuple(devices // known if size == -1 else size for size in sizes)


def spec(axes: Axes, shape: Sequence[int], rules: Rules, sizes: Mapping[str, int]) -> PartitionSpec:
    """The partition of an array with logical ``axes`` over a mesh with axis ``sizes``.

    A dimension that its mesh axes do not divide is cut over the first ones that do, or stays whole.

    Raises:
      ValueError: two dimensions of the array claim the same mesh axis (both are named).
    """
    taken: dict[str, str] = {}
    parts: list[tuple[str, ...] | None] = []
    for axis, length in zip(axes, shape, strict=True):
        wanted = rules.get(axis, ()) if axis is not None else ()
        for name in wanted:
            if name in taken:
                raise ValueError(
                    f"the logical axes {taken[name]!r} and {axis!r} of one array of shape {tuple(shape)} "
                    f"are both cut over the mesh axis {name!r}; change one of the two rules"
                )
            taken[name] = str(axis)
        while length % math.prod(sizes[name] for name in wanted):
            wanted = wanted[:-1]
        parts.append(wanted or None)
    return PartitionSpec(*parts)


def sharding(
    mesh: Mesh | AbstractMesh, axes: Axes, shape: Sequence[int], rules: Rules = ACTIVATIONS
) -> NamedSharding:
    """`spec` on a given mesh."""
    return NamedSharding(mesh, spec(axes, shape, rules, dict(mesh.shape)))


def shardings(description: dict, mesh: Mesh, rules: Rules = WEIGHTS) -> dict:
    """The sharding of each weight of a ``description`` (a nested dict with ``axes`` and ``shape``)."""
    return jax.tree.map(
        lambda param: sharding(mesh, param.axes, param.shape, rules),
        description,
        is_leaf=_is_description,
    )


def _is_description(node: Any) -> bool:
    return hasattr(node, "axes")


def constrain(x: jax.Array, *axes: str | None, rules: Rules = ACTIVATIONS) -> jax.Array:
    """`with_sharding_constraint` by logical axes; ``x`` itself without a mesh, or inside `jax.shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.are_all_axes_manual:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes, x.shape, rules, dict(mesh.shape)))


def constrain_weights(weights: dict, description: dict, rules: Rules) -> dict:
    """`constrain` for each weight, or its gradient, of a model's ``description``."""
    return jax.tree.map(
        lambda param, leaf: constrain(leaf, *param.axes, rules=rules),
        description,
        weights,
        is_leaf=_is_description,
    )


def abstract_arrays(like: Any, places: Any) -> Any:
    """`jax.ShapeDtypeStruct` for each array, that says where it lies."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), like, places
    )


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts the prompts of a batch are cut."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def shard_batch(tree: Any, mesh: Mesh) -> Any:
    """Host arrays of this process's rows as global arrays ``[b, ...]``, sharded over the batch axes.

    Each process of the mesh gives its `local_rows`; with one process that is all of them.
    """
    processes = len({device.process_index for device in mesh.devices.flat})

    def one(leaf: Any) -> jax.Array:
        leaf = np.asarray(leaf)
        count = leaf.shape[0] * processes
        where = sharding(mesh, ("batch", *[None] * (leaf.ndim - 1)), (count, *leaf.shape[1:]))
        mine = local_rows(mesh, count)

        def rows(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(count)
            return leaf[np.searchsorted(mine, np.arange(start, stop))]

        return jax.make_array_from_callback((count, *leaf.shape[1:]), where, rows)

    return jax.tree.map(one, tree)


def local_rows(mesh: Mesh, count: int) -> np.ndarray:
    """Those of the ``count`` prompts of a batch that this process reads, samples and grades; ascending.

    Raises:
      ValueError: there are several processes, and the parts of the batch are not each one process's own.
    """
    here = jax.process_index()
    if all(device.process_index == here for device in mesh.devices.flat):
        return np.arange(count)
    owners = [{device.process_index for device in part} for part in _samplers(mesh)]
    if any(len(owner) > 1 for owner in owners):
        raise ValueError(
            f"config.mesh.expert={mesh.shape['expert']} and config.mesh.tensor={mesh.shape['tensor']} reach "
            "over several processes: each samples responses on its own devices, which therefore must hold "
            "all of both"
        )
    parts = batch_shards(mesh)
    if count % parts:
        raise ValueError(
            f"a batch of {count} prompts cannot be cut into {parts} parts (config.mesh), which several "
            "processes need: make it a multiple"
        )
    size = count // len(owners)
    return np.concatenate(
        [np.arange(k * size, (k + 1) * size) for k, owner in enumerate(owners) if here in owner]
    )


def _samplers(mesh: Mesh) -> np.ndarray:
    """The devices of a mesh in rows, each of which holds all weights while decoding."""
    return mesh.devices.reshape(-1, mesh.shape["expert"] * mesh.shape["tensor"])


def local_mesh(mesh: Mesh) -> Mesh:
    """The part of ``mesh`` on this process's devices, copies as ``fsdp``; all of it where it is whole."""
    parts = _samplers(mesh)
    mine = np.array([part for part in parts if part[0].process_index == jax.process_index()])
    if len(mine) == len(parts):
        return mesh
    grid = mine.reshape(1, 1, -1, *mesh.devices.shape[3:])
    return Mesh(grid, AXES, axis_types=mesh.axis_types)


def local_copy(tree: Any, mesh: Mesh) -> Any:
    """Arrays that only ``expert`` and ``tensor`` cut, as arrays over `local_mesh`, whose data stays there."""

    def one(x: Any) -> jax.Array:
        pieces = [shard.data for shard in x.addressable_shards]
        place = NamedSharding(mesh, x.sharding.spec)
        return jax.make_array_from_single_device_arrays(x.shape, place, pieces)

    return jax.tree.map(one, tree)


def local_parts(tree: Any) -> list[Any]:
    """The parts of a batch on the mesh that this process holds, in order, as arrays of its host."""

    def parts(x: jax.Array) -> list[np.ndarray]:
        found = {shard.index[0].indices(x.shape[0])[0]: shard.data for shard in x.addressable_shards}
        return [np.asarray(found[start]) for start in sorted(found)]

    leaves, structure = jax.tree.flatten(tree)
    of_leaves = [parts(leaf) for leaf in leaves]
    return [jax.tree.unflatten(structure, part) for part in zip(*of_leaves, strict=True)]


def to_host(tree: Any) -> Any:
    """Arrays as numpy arrays on the host of every process; all of them must call this."""

    def one(x: jax.Array) -> np.ndarray:
        if x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(one, tree)


def sharded_over(x: jax.Array, *axes: str | None) -> tuple[tuple[str, ...], ...]:
    """The mesh axes that each dimension of ``x`` is cut over by `ACTIVATIONS`; without a mesh, none."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return ((),) * x.ndim
    parts = spec(axes, x.shape, ACTIVATIONS, dict(mesh.shape))
    return tuple((part,) if isinstance(part, str) else part or () for part in parts)


def shard_map_kernel(
    function: Callable, in_axes: Sequence[Axes], like: int, *, checked: bool = True
) -> Callable:
    """`jax.shard_map` of ``function``, each device on its part of the arguments, cut by `ACTIVATIONS`.

    For kernels the compiler cannot cut by itself. ``in_axes`` has the logical axes of each argument; all
    that comes out is cut as argument number ``like`` is. ``checked`` False is for kernels that do not say how
    their outputs vary over the mesh. Without a mesh, ``function`` itself.
    """

    def run(*arguments: jax.Array) -> Any:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            return function(*arguments)
        sizes = dict(mesh.shape)
        specs = tuple(
            spec(axes, argument.shape, ACTIVATIONS, sizes)
            for axes, argument in zip(in_axes, arguments, strict=True)
        )
        return jax.shard_map(function, in_specs=specs, out_specs=specs[like], check_vma=checked)(*arguments)

    return run
