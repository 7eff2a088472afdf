"""The reinforcement-learning stage: step after step, evaluated, logged, saved, and gone on with."""

import dataclasses
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from mmrl import hosts
from mmrl.config import Config, algorithm, from_dict
from mmrl.data import pipeline
from mmrl.data.curriculum import packed, unpacked
from mmrl.data.sources import Source
from mmrl.hosts import say
from mmrl.mesh import local_rows
from mmrl.open import OpenModel, TrainingData, prompt_format, readers
from mmrl.train import checkpoint
from mmrl.train.course import Course, fixed_weights, open_course, part
from mmrl.train.evaluate import evaluate, write_responses
from mmrl.train.experience import Experience
from mmrl.train.graded_rollouts import reward_pool
from mmrl.train.metrics import CompileCounter, Metrics, Phases, Progress
from mmrl.train.optimizer import initial_state, make_optimizer
from mmrl.train.preemption import Interrupted, Notice, due
from mmrl.train.programs import TrainState
from mmrl.train.rollouts import tool_pool
from mmrl.train.shown import choose_shown
from mmrl.train.skipped import open_ledger
from mmrl.train.step import Run, Stage, take_step
from mmrl.train.workdir import check_same
from mmrl.train.writers import Wandb, Writer
from mmrl.types import Params

_BEST = "heldout/accuracy"  # of which the best checkpoints are kept


def train(
    config: Config,
    model: OpenModel,
    data: TrainingData,
    heldout: tuple[Source, ...],
    workdir: Path,
    notice: Notice,
) -> None:
    """Run the stage in ``workdir``, going on from its newest checkpoint if there is one.

    Order on resuming: (1) weights, optimizer and update count, (2) the place in the data and what a
    curriculum remembers of it, (3) the metrics file, cut back to the checkpoint's step. Random draws need no
    restoring: each has the step in its address.

    Raises:
      Interrupted: ``notice`` was given; the last step that was taken is saved.
    """
    params = model.load()
    chosen = algorithm(config)
    total_updates = config.train.steps * (config.rollout.prompts // config.train.update_prompts)
    optimizer = make_optimizer(config.optimizer, params, total_updates)
    # The update gives its input's memory away, so the reference policy needs weights of its own. The model
    # casts every weight before its product, so that nothing is lost by keeping them in that type.
    reference = None
    if "reference" in chosen.needs:
        reference = jax.tree.map(lambda leaf: jnp.array(leaf, model.config.dtype), params)
    state = initial_state(params, optimizer)
    del params
    ledger = open_ledger(workdir / "skipped_rows.jsonl", data.rows, config.data.max_broken, data.broken)
    course = open_course(config, data)
    run = Run(0, _batches(config, model, data, course), ledger, course)
    manager = checkpoint.open_manager(
        workdir / "checkpoints", config.train.keep_checkpoints, config.train.keep_best, _BEST
    )
    saved = checkpoint.restore(manager, state, say)
    if saved is not None:
        check_same(config, from_dict(saved.facts["config"]), f"step {saved.step} in {workdir}")
        run.step, state = saved.step, saved.state
        run.unlucky, run.pending = saved.facts["unlucky"], saved.facts["pending"]
        if course is not None:
            course.state = unpacked(saved.facts["course"], len(course.index))
        run.batches.seek(saved.facts["batches"])
        say(f"resuming after step {run.step} of {config.train.steps}")
    before = -1 if saved is None else run.step - (run.pending is not None)
    with (
        closing(Metrics(workdir, before, partial(_more_writers, config, workdir))) as metrics,
        jax.set_mesh(model.mesh),
        manager,
        hosts.exit_on_lost_process(),
        CompileCounter() as compiles,
        reward_pool(config, workdir) as pool,
        tool_pool(config) as tools,
    ):
        stage = Stage(
            config=config,
            model=model,
            policy=model.policy(config.rollout.temperature),
            algorithm=chosen,
            optimizer=optimizer,
            reference=reference,
            heldout=heldout,
            pool=pool,
            tools=tools,
            notice=notice,
            total_updates=total_updates,
            workdir=workdir,
        )
        _run(stage, state, run, manager, metrics, compiles)


def _run(
    stage: Stage, state: TrainState, run: Run, manager: Any, metrics: Metrics, compiles: CompileCounter
) -> None:
    progress = Progress("rl", stage.config.train.steps)
    phases = Phases()

    def finish(values: dict[str, float]) -> None:
        """Evaluate, log, and then save: a checkpoint never knows of a step that the log does not."""
        nonlocal phases
        try:
            with phases("evaluate"):
                values |= _evaluate(stage, state.params, run.step, metrics)
        except Interrupted:
            _save(stage, state, run, manager, pending=values)
            raise
        values |= {**phases.metrics(), "compiles": float(compiles.count)}
        metrics.write(run.step, values)
        progress.show(run.step, **_shown(values))
        phases = Phases()
        with phases("checkpoint"):
            if _to_save(stage, run):
                _save(stage, state, run, manager, metrics=values)

    if run.pending is not None:
        finish(run.pending)
    elif run.step == 0 and stage.heldout:
        values = _evaluate(stage, state.params, 0, metrics)
        metrics.write(0, values)
        say(f"before: {_headline(values)}")
        phases = Phases()
    while run.step < stage.config.train.steps:
        given, learned = run.batches.given, None
        if run.course is not None:
            learned, run.course.step = run.course.state, run.step
        try:
            state, values = take_step(stage, state, run, phases)
        except Interrupted:
            if run.course is not None and learned is not None:
                run.course.state = learned
            run.batches.seek(given)
            if run.step:
                _save(stage, state, run, manager)
            raise
        run.step += 1
        finish(values)
    manager.wait_until_finished()


def _to_save(stage: Stage, run: Run) -> bool:
    train = stage.config.train
    if run.step == train.steps or run.step % train.checkpoint_every == 0:
        return True
    # The first process's clock decides for all.
    minutes = train.checkpoint_minutes
    return minutes > 0 and hosts.gather(due(run.saved, minutes, time.monotonic()))[0]


def _save(
    stage: Stage,
    state: TrainState,
    run: Run,
    manager: Any,
    metrics: dict[str, float] | None = None,
    pending: dict[str, float] | None = None,
) -> None:
    facts = {
        "batches": run.batches.given,
        "course": None if run.course is None else packed(run.course.state),
        "unlucky": run.unlucky,
        "pending": pending,
        "config": dataclasses.asdict(stage.config),
    }
    checkpoint.save(manager, run.step, state, facts, metrics)
    run.saved = time.monotonic()


def _more_writers(config: Config, workdir: Path) -> list[Writer]:
    """Those that the config asks for."""
    project = config.log.wandb
    return [Wandb(project, workdir, dataclasses.asdict(config), say)] if project else []


def _evaluate(stage: Stage, params: Params, step: int, metrics: Metrics) -> dict[str, float]:
    """Held-out figures, in the steps that have them; some of the responses are shown."""
    train = stage.config.train
    if not stage.heldout or not (step == train.steps or step % train.evaluate_every == 0):
        return {}
    policy, config = stage.policy, stage.config

    def look(experience: Experience, rows: list[list[dict[str, Any]]]) -> None:
        metrics.show(step, choose_shown(stage, params, experience, rows, tokens=bool(config.log.wandb)))

    values, responses = evaluate(
        params, policy, stage.model, stage.heldout, stage.pool, stage.tools, config, stage.notice, look=look
    )
    if hosts.is_main_process():
        when = "after" if step else "before"
        write_responses(stage.workdir / f"responses_{when}.jsonl", responses)
    return {f"heldout/{name}": value for name, value in values.items()}


def _batches(
    config: Config, model: OpenModel, data: TrainingData, course: Course | None
) -> pipeline.Batches[pipeline.Batch]:
    return pipeline.prompts(
        data.sources,
        model.processor,
        prompt_format(config),
        seed=config.seed,
        batch_size=config.rollout.prompts,
        weights=fixed_weights(config, data),
        rows=local_rows(model.mesh, config.rollout.prompts),
        readers=readers(config),
        part=None if course is None else partial(part, course),
    )


def _headline(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in values.items())


def _shown(values: dict[str, float]) -> dict[str, float]:
    """What the progress line has room for."""
    names = {
        "reward": "reward/mean",
        "accuracy": "reward/accuracy",
        "heldout": "heldout/accuracy",
        "length": "response/length",
        "tok/s": "rollout/tokens_per_second",
        "busy": "rollout/occupancy",
        "s": "time/step",
    }
    return {short: values[name] for short, name in names.items() if name in values}
