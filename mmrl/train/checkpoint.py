"""Checkpoints of a stage: Orbax, asynchronous, atomic and sharded, with a checksum of everything in them.

A checkpoint has three items: ``params``, ``optimizer``, and ``run``, JSON that holds the facts a stage wants
back, versions, metrics, and what every array should be. A checkpoint that is not what its ``run`` says is
damaged: it is set aside, and the one before is used.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped, UInt32

from mmrl import hosts
from mmrl.mesh import abstract_arrays
from mmrl.models.params import abstract
from mmrl.train.environment import versions
from mmrl.train.state import TrainState, select_paths
from mmrl.types import Params

_ASIDE = "damaged"  # folder beside the checkpoints


@dataclass(frozen=True)
class Saved:
    """The content of a checkpoint: enough to go on as if nothing had happened."""

    step: int
    state: TrainState
    facts: dict[str, Any]  # what `save` was given
    metrics: dict[str, float]  # of the step, likewise


class NotWritten(ValueError):
    """An error of the disk: a checkpoint could not be written."""


class _Damaged(Exception):
    """A checkpoint is not what was written; the message says why."""


class _Manager(ocp.CheckpointManager):
    """Orbax's, except that a failure to write, which comes up wherever it is waited for, says what to do."""

    def wait_until_finished(self) -> None:
        with _name_disk_errors(Path(self.directory)):
            super().wait_until_finished()

    def close(self) -> None:
        with _name_disk_errors(Path(self.directory)):
            super().close()


@dataclass(frozen=True)
class _Retention:
    """A preservation policy of Orbax: `select_kept`."""

    directory: Path
    keep: int
    keep_best: int
    best: str

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        values = [(info.metrics or self._metrics(info.step)).get(self.best) for info in checkpoints]
        return select_kept(values, self.keep, self.keep_best)

    def _metrics(self, step: int) -> dict[str, float]:
        """Those of a checkpoint of an earlier call of the run."""
        try:
            return _read_run(self.directory / str(step))["metrics"]
        except _Damaged:
            return {}


def select_kept(values: Sequence[float | None], keep: int, keep_best: int) -> list[bool]:
    """The checkpoints that stay: the newest ``keep``, and the ``keep_best`` with the highest value.

    ``values`` are in order of steps, None (or not a number) where there is none: never among the best. Of
    equal ones the newer is better.
    """
    ranked = sorted(
        (value, index) for index, value in enumerate(values) if value is not None and np.isfinite(value)
    )
    best = {index for _, index in ranked[len(ranked) - min(keep_best, len(ranked)) :]}
    return [index >= len(values) - keep or index in best for index in range(len(values))]


def open_manager(directory: Path, keep: int, keep_best: int = 0, best: str = "") -> ocp.CheckpointManager:
    """The checkpoints under ``directory`` (made if need be), to be used in a ``with`` block.

    The newest ``keep`` stay, and the ``keep_best`` for which the metric ``best`` was highest. What a killed
    run has left unfinished is deleted.

    Raises:
      ValueError: the folder cannot be made.
    """
    directory = directory.absolute()
    options = ocp.CheckpointManagerOptions(
        preservation_policy=_Retention(directory, keep, keep_best, best),
        cleanup_tmp_directories=True,
        enable_async_checkpointing=True,
    )
    with _name_disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        return _Manager(directory, options=options)


def save(
    manager: ocp.CheckpointManager,
    step: int,
    state: TrainState,
    facts: dict[str, Any],
    metrics: dict[str, float] | None = None,
) -> None:
    """Save after ``step`` steps; returns when the arrays are copied, the writing goes on behind.

    A step that is saved already, or before the newest that is, is not saved again. Every process calls this.

    Args:
      manager: of `open_manager`.
      step: steps taken.
      state: weights, optimizer, updates.
      facts: JSON that `restore` gives back.
      metrics: among them perhaps the one that decides which checkpoints are best.

    Raises:
      NotWritten: this one cannot be written, or the one before could not; earlier ones are whole.
    """
    newest = manager.latest_step()
    if newest is not None and newest >= step:
        return
    tree = _tree(state)
    run = {
        "facts": facts,
        "metrics": metrics or {},
        "versions": versions(),
        "shapes": shapes(tree),
        "checksums": checksums(tree),
    }
    with _name_disk_errors(Path(manager.directory)):
        manager.save(
            step,
            metrics=metrics or {},
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(tree["params"]),
                optimizer=ocp.args.StandardSave(tree["optimizer"]),
                run=ocp.args.JsonSave({"run": run, "sha256": digest(run)}),
            ),
        )


def restore(manager: ocp.CheckpointManager, like: TrainState, say: Callable[[str], None]) -> Saved | None:
    """The newest checkpoint that is whole, or None where there is none. Every process calls this.

    Damaged ones are set aside in a folder ``damaged`` beside the checkpoints, each with a line to ``say``.

    Args:
      manager: of `open_manager`.
      like: structure, shapes and shardings: arrays, or stand-ins for them.
      say: takes a line of text.

    Raises:
      ValueError: no checkpoint is whole, or the newest that is belongs to another model (leaves are named).
    """
    directory = Path(manager.directory)
    damaged: dict[int, str] = {}
    for step in reversed(saved_steps(directory)):
        try:
            run, tree = _read(directory / str(step), _tree(jax.tree.map(_abstract, like)), hosts.gather)
        except _Damaged as fault:
            damaged[step] = str(fault)
            continue
        if damaged:
            _set_aside(directory, damaged, f"going on from step {step}", say)
            manager.reload()
        params, optimizer = tree["params"], tree["optimizer"]
        parts = [select_paths(params, part) for part in (like.trainable, like.frozen)]
        state = TrainState(parts[0], optimizer["state"], optimizer["updates"], parts[1])
        return Saved(step, state, run["facts"], run["metrics"])
    if damaged:
        faults = "; ".join(f"step {step}: {fault}" for step, fault in damaged.items())
        raise ValueError(
            f"{directory}: every checkpoint here is damaged ({faults}). Put back a good copy, or delete"
            " this folder to begin anew"
        )
    return None


def load_params(
    directory: Path, description: dict, step: int | None = None, shardings: dict | None = None
) -> tuple[int, Params]:
    """Weights alone, of one step (by default the newest); optimizer state is not read.

    ``shardings`` says where each goes, a tree like ``description``; by default the first device.

    Raises:
      ValueError: there is no checkpoint, or not of that step (those there are named), it is damaged, or of
        another model.
    """
    steps = saved_steps(directory)
    if not steps:
        raise ValueError(f"{directory}: no checkpoint here; has the run reached its first?")
    if step is None:
        step = steps[-1]
    if step not in steps:
        raise ValueError(f"{directory}: no checkpoint of step {step}; there are {', '.join(map(str, steps))}")
    like = abstract(description)
    if shardings is None:
        shardings = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), like)
    try:
        _, tree = _read((directory / str(step)).absolute(), {"params": abstract_arrays(like, shardings)})
    except _Damaged as fault:
        others = ", ".join(str(other) for other in steps if other != step) or "none"
        raise ValueError(
            f"{directory}: the checkpoint of step {step} is damaged ({fault}); others: {others}"
        ) from fault
    return step, tree["params"]


def saved_steps(directory: Path) -> list[int]:
    """Steps that have a finished checkpoint, ascending."""
    if not directory.is_dir():
        return []
    return sorted(ocp.utils.checkpoint_steps(directory.absolute()))


def _tree(state: TrainState) -> dict[str, Any]:
    """The items that hold arrays."""
    return {"params": state.params, "optimizer": {"state": state.optimizer, "updates": state.updates}}


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _read_run(folder: Path) -> dict[str, Any]:
    with _name_damage("run"):
        read = ocp.JsonCheckpointHandler().restore(epath.Path(folder / "run"))
        run = read["run"]
        if digest(run) != read["sha256"]:
            raise _Damaged("run: its content is not what was written")
    return run


def _read(
    folder: Path, like: dict[str, Any], agree: Callable[[Any], list[Any]] = lambda fault: [fault]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ``run`` of a checkpoint, and its items that ``like`` asks for.

    Each process reads its own part, without waiting for others, for one may fail where others do not;
    ``agree`` then tells each what every one has met.

    Raises:
      _Damaged: it is not as it was written.
      ValueError: it is whole, but of another model.
    """
    run: dict[str, Any] = {}
    tree: dict[str, Any] = {}
    fault = None
    try:
        run = _read_run(folder)
        _check_same_model(folder, run["shapes"], shapes(like), tuple(like))
        for item, wanted in like.items():
            with _name_damage(item):
                tree[item] = ocp.StandardCheckpointHandler().restore(
                    epath.Path(folder / item), args=ocp.args.StandardRestore(wanted)
                )
    except _Damaged as error:
        fault = str(error)
    faults = [fault for fault in agree(fault) if fault is not None]
    if faults:
        raise _Damaged(faults[0])
    found = checksums(tree)
    wrong = [path for path, value in found.items() if value != run["checksums"].get(path)]
    if wrong:
        raise _Damaged(f"{len(wrong)} of {len(found)} arrays are not what was written, first {wrong[0]}")
    return run, tree


def _check_same_model(folder: Path, there: dict[str, str], here: dict[str, str], items: tuple) -> None:
    there = {path: shape for path, shape in there.items() if path.split("/")[0] in items}
    differing = [
        f"{path}: {there.get(path, 'nothing')} there, {here.get(path, 'nothing')} wanted"
        for path in sorted(there.keys() | here.keys())
        if there.get(path) != here.get(path)
    ]
    if differing:
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise ValueError(
            f"{folder} is of another model or optimizer ({'; '.join(differing[:5])}{more}); name another"
            " --workdir, or go back to that config"
        )


@contextmanager
def _name_damage(item: str) -> Iterator[None]:
    """Errors of reading, as damage; but not those that a whole checkpoint may meet."""
    try:
        yield
    except (_Damaged, MemoryError, PermissionError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0]
        raise _Damaged(f"{item}: {type(error).__name__}: {line[:200]}") from error


def _set_aside(directory: Path, damaged: dict[int, str], after: str, say: Callable[[str], None]) -> None:
    for step, fault in damaged.items():
        place = directory / _ASIDE / str(step)
        number = 1
        while place.exists():
            number += 1
            place = directory / _ASIDE / f"{step}-{number}"
        hosts.barrier()  # all have seen which names are taken
        with hosts.on_main_process() as acting, _name_disk_errors(directory):
            if acting:
                place.parent.mkdir(exist_ok=True)
                (directory / str(step)).rename(place)
        say(f"warning: the checkpoint of step {step} is damaged ({fault}), now in {place}; {after}")


@contextmanager
def _name_disk_errors(directory: Path) -> Iterator[None]:
    """Errors of the disk, named as such."""
    try:
        yield
    except NotWritten:
        raise
    except (OSError, ValueError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        free = ""
        with suppress(OSError):
            free = f", {shutil.disk_usage(directory).free / 1e9:.1f} GB free"
        raise NotWritten(
            f"{directory}: a checkpoint cannot be written ({line[:300]}){free}; those finished before are"
            " whole: make room, and start again with the same command"
        ) from error


def checksums(tree: Any) -> dict[str, int]:
    """A number for each array of ``tree``, by its path: the same however it is cut over devices.

    Each element's bits are mixed with its index, and the results summed modulo 2^32. So one changed element
    is always seen, and several are but for one case in 2^32.
    """
    paths, leaves = zip(*_by_path(tree).items(), strict=True)
    place = leaves[0].sharding
    whole = NamedSharding(place.mesh, PartitionSpec()) if isinstance(place, NamedSharding) else None
    return dict(zip(paths, np.asarray(_sums(leaves, whole)).tolist(), strict=True))


def shapes(tree: Any) -> dict[str, str]:
    """Type and shape of each array of ``tree``, by its path."""
    return {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in _by_path(tree).items()}


def digest(content: Any) -> str:
    """SHA-256 of JSON, however its keys are ordered."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@partial(jax.jit, static_argnames="place")
def _sums(leaves: tuple[Array, ...], place: NamedSharding | None) -> UInt32[Array, "leaves"]:
    sums = jnp.stack([_mixed(leaf).sum(dtype=jnp.uint32) for leaf in leaves])
    return sums if place is None else jax.lax.with_sharding_constraint(sums, place)


def _mixed(x: Shaped[Array, "..."]) -> UInt32[Array, "..."]:
    """The finaliser of MurmurHash3 (public domain, A. Appleby) over bits + index times the golden ratio."""
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
    index, stride = jnp.zeros(bits.shape, jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        steps = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        index += steps * jnp.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    h = bits + index * jnp.uint32(0x9E3779B9)
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def _by_path(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
