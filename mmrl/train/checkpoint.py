"""Checkpoints of a stage: Orbax, asynchronous and atomic; weights are an item of their own."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from mmrl.mesh import stand_ins
from mmrl.models.params import abstract
from mmrl.train.programs import TrainState
from mmrl.types import Params


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds: enough to go on as if nothing had happened."""

    step: int
    state: TrainState
    facts: dict[str, Any]  # what `save` was given


def open_manager(directory: Path, keep: int, keep_best: int = 0, best: str = "") -> ocp.CheckpointManager:
    """The checkpoints under ``directory`` (made if need be); the newest ``keep`` stay."""
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, create=True, cleanup_tmp_directories=True, enable_async_checkpointing=True
    )
    return ocp.CheckpointManager(directory.absolute(), options=options)


def save(
    manager: ocp.CheckpointManager,
    step: int,
    state: TrainState,
    facts: dict[str, Any],
    metrics: dict[str, float] | None = None,
) -> None:
    """Save after ``step`` steps; returns when the arrays are copied, the writing goes on behind."""
    manager.save(
        step,
        args=ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            optimizer=ocp.args.StandardSave({"state": state.optimizer, "updates": state.updates}),
            run=ocp.args.JsonSave({"facts": json.loads(json.dumps(facts)), "metrics": metrics or {}}),
        ),
    )


def restore(manager: ocp.CheckpointManager, like: TrainState, say: Callable[[str], None]) -> Saved | None:
    """The newest checkpoint, or None where there is none; ``like`` gives structure, shapes and shardings."""
    step = manager.latest_step()
    if step is None:
        return None
    target = jax.tree.map(_abstract, like)
    items = manager.restore(
        step,
        args=ocp.args.Composite(
            params=ocp.args.StandardRestore(target.params),
            optimizer=ocp.args.StandardRestore({"state": target.optimizer, "updates": target.updates}),
            run=ocp.args.JsonRestore(),
        ),
    )
    state = TrainState(items.params, items.optimizer["state"], items.optimizer["updates"])
    return Saved(step=step, state=state, facts=items.run["facts"])


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def load_params(
    directory: Path, description: dict, step: int | None = None, shardings: dict | None = None
) -> tuple[int, Params]:
    """Weights alone, of one step (by default the newest); optimizer state is not read.

    ``shardings`` says where each goes, a tree like ``description``; by default the first device.

    Raises:
      ValueError: there is no checkpoint, or not of that step (those there are named).
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
    target = stand_ins(like, shardings)
    with ocp.CheckpointManager(directory.absolute(), item_names=("params",)) as manager:
        items = manager.restore(step, args=ocp.args.Composite(params=ocp.args.StandardRestore(target)))
    return step, items.params


def saved_steps(directory: Path) -> list[int]:
    """Steps that have a finished checkpoint, ascending."""
    if not directory.is_dir():
        return []
    return sorted(ocp.utils.checkpoint_steps(directory.absolute()))
