"""The training loop of every stage: step after step, evaluated, logged, saved, and gone on with."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from mmrl import hosts
from mmrl.config import Config, from_dict
from mmrl.data.curriculum import CurriculumSampler, CurriculumState, state_from_json, state_to_json
from mmrl.data.pipeline import Batches
from mmrl.hosts import say
from mmrl.train import checkpoint
from mmrl.train.guards import Guards
from mmrl.train.metrics import CompileCounter, Metrics, Phases, Progress
from mmrl.train.state import TrainState
from mmrl.train.stop_signal import Interrupted
from mmrl.train.workdir import check_same
from mmrl.train.writers import Writer
from mmrl.types import Params

BEST = "heldout/accuracy"  # metric of which the best checkpoints are kept
Values = dict[str, float]  # metrics by name


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of training, as the loop sees it."""

    name: str  # in the progress line
    config: Config
    mesh: Mesh
    workdir: Path  # where its checkpoints and metrics are
    steps: int
    batches: Batches[Any]
    guards: Guards
    phases: Phases
    take_step: Callable[[TrainState, int], tuple[TrainState, Values]]  # with the number of the step, from 1
    checkpoint_every: int
    evaluate: Callable[[Params, int, Metrics], Values] = lambda params, step, metrics: {}
    sampler: CurriculumSampler | None = None  # where a curriculum makes the order of the batches
    # Fields of `mmrl.rollout.engine.RolloutShape`, chosen once lengths are known; the step fills them in.
    slots: dict[str, Any] = dataclasses.field(default_factory=dict)
    checkpoint_minutes: float = 0.0  # save when so many have passed, too; 0: never
    checkpoint_last: bool = True
    keep: int = 2  # newest checkpoints
    keep_best: int = 0
    writers: Callable[[], Sequence[Writer]] = tuple  # of metrics, beside files in the folder
    headline: Mapping[str, str] = dataclasses.field(default_factory=dict)  # metrics of the progress line
    show_every: int = 1


@dataclasses.dataclass(frozen=True)
class Position:
    """The place of a stage in its data."""

    batches: int  # given
    curriculum: CurriculumState | None


def run_stage(stage: Stage, make_state: Callable[[], TrainState]) -> TrainState:
    """Take all steps of a stage, going on from its newest checkpoint; returns the last state.

    Restored are (1) weights, optimizer and update count, (2) the place in the data and what a curriculum
    remembers of it, and the slots to decode in, (3) the metrics file, cut back to the checkpoint's step.
    Random draws need no restoring: each has the step in its address. A step whose evaluation was interrupted
    is evaluated again.

    Raises:
      Interrupted: the run was asked to stop; the last step that was taken is saved.
    """
    directory = stage.workdir / "checkpoints"
    manager = checkpoint.open_manager(directory, stage.keep, stage.keep_best, BEST)
    state, step, values = make_state(), 0, {}
    saved = checkpoint.restore(manager, state, say)
    if saved is not None:
        step, state, values = saved.step, saved.state, saved.metrics
        _restore_position(stage, step, saved.facts)
        say(f"resuming after step {step} of {stage.steps}")
    position, saved_at = _position(stage), time.monotonic()
    with (
        closing(Metrics(stage.workdir, step if saved else -1, stage.writers)) as metrics,
        jax.set_mesh(stage.mesh),
        manager,
        hosts.exit_on_lost_process(),
        CompileCounter() as compiles,
    ):
        progress = Progress(stage.name, stage.steps)
        stage.phases.reset()
        try:
            if hosts.gather(metrics.last_step)[0] != step:
                values = _evaluate_and_log(stage, state, step, values, metrics, progress, compiles)
            while step < stage.steps:
                state, values = stage.take_step(state, step + 1)
                step, position = step + 1, _position(stage)
                values = _evaluate_and_log(stage, state, step, values, metrics, progress, compiles)
                if _should_save(stage, step, saved_at):
                    with stage.phases("checkpoint"):
                        _save(stage, manager, state, step, position, values)
                    saved_at = time.monotonic()
        except Interrupted:
            if step:
                _save(stage, manager, state, step, position, values)
            raise
        manager.wait_until_finished()
    return state


def _evaluate_and_log(
    stage: Stage,
    state: TrainState,
    step: int,
    values: Values,
    metrics: Metrics,
    progress: Progress,
    compiles: CompileCounter,
) -> Values:
    """All metrics of a step, written: a checkpoint is saved after that, and never knows more than the log."""
    with stage.phases("evaluate"):
        values = {**values, **stage.evaluate(state.params, step, metrics)}
    if step:
        values |= {**stage.phases.metrics(), "compiles": float(compiles.count)}
    if values:
        metrics.write(step, values)
    if step and (step == stage.steps or step % stage.show_every == 0):
        progress.show(step, **{name: values[key] for name, key in stage.headline.items() if key in values})
    elif values and not step:
        say("before: " + ", ".join(f"{name} {value:.3f}" for name, value in values.items()))
    stage.phases.reset()
    return values


def _should_save(stage: Stage, step: int, saved_at: float) -> bool:
    if step == stage.steps:
        return stage.checkpoint_last
    if step % stage.checkpoint_every == 0:
        return True
    # The first process's clock decides for all.
    minutes = stage.checkpoint_minutes
    return minutes > 0 and hosts.gather(minutes_passed(saved_at, minutes, time.monotonic()))[0]


def minutes_passed(since: float, minutes: float, now: float) -> bool:
    """True once ``minutes`` (0: never) have passed; both times are of `time.monotonic`."""
    return minutes > 0 and now - since >= 60 * minutes


def _position(stage: Stage) -> Position:
    return Position(stage.batches.given, None if stage.sampler is None else stage.sampler.state)


def _save(
    stage: Stage, manager: Any, state: TrainState, step: int, position: Position, values: Values
) -> None:
    facts = {
        "batches": position.batches,
        "curriculum": None if position.curriculum is None else state_to_json(position.curriculum),
        "skipped_in_a_row": stage.guards.skipped_in_a_row,
        "slots": stage.slots,
        "config": dataclasses.asdict(stage.config),
    }
    checkpoint.save(manager, step, state, facts, values)


def _restore_position(stage: Stage, step: int, facts: dict[str, Any]) -> None:
    check_same(stage.config, from_dict(facts["config"]), f"step {step} in {stage.workdir}")
    stage.guards.skipped_in_a_row = facts["skipped_in_a_row"]
    stage.slots.update(facts["slots"])
    if stage.sampler is not None:
        stage.sampler.state = state_from_json(facts["curriculum"], len(stage.sampler.index))
    stage.batches.seek(facts["batches"])
