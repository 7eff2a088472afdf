"""A whole run: the world and the cold start if asked for, reinforcement learning, a summary."""

import json
import time
from pathlib import Path

import numpy as np

from mmrl import hosts
from mmrl.algorithms.passes import LOGPROB, passes_of
from mmrl.atomic import atomic_write
from mmrl.config import Config, algorithm
from mmrl.curves import draw_curves
from mmrl.data.sources import Source, fingerprint
from mmrl.grading import check_sources
from mmrl.hosts import say
from mmrl.open import (
    OpenModel,
    TrainingData,
    check_corruption,
    check_processes,
    hub_commits,
    open_data,
    open_heldout_with_lengths,
    open_model,
    open_source,
    open_training_data,
    resolve_model_path,
    sampling_of,
    sharding_warnings,
)
from mmrl.rewards.judge_client import check_judge
from mmrl.run_folder import read_metrics, read_starts
from mmrl.train.agreement import agree, check_start, model_fingerprint
from mmrl.train.fit import Fitted, fit
from mmrl.train.memory import device_bytes
from mmrl.train.rl import train
from mmrl.train.sft import sft
from mmrl.train.stop_signal import StopSignal, catch_stop_signals
from mmrl.train.workdir import hold, open_workdir, record_start
from mmrl.train.writers import check_wandb
from mmrl.user_code import load_function, run_user_code

_TABLE = (
    ("accuracy", "heldout/accuracy"),
    ("perception_errors", "heldout/perception_error"),
    ("reasoning_errors", "heldout/reasoning_error"),
)
_TOOL_TABLE = (
    ("tool_calls", "heldout/tool_calls"),  # in a response
    ("tool_errors", "heldout/tool_errors"),
)


def run(config: Config, workdir: Path) -> dict[str, float | None]:
    """Run every stage of ``config`` that is not done yet in ``workdir``; returns what ``summary.json`` holds.

    Every process of the run calls this.

    Raises:
      ValueError: anything about config, model or data that can be known before computing.
      Interrupted: the run was asked to stop (SIGTERM, Ctrl-C); what it has done is saved.
    """
    start = time.perf_counter()
    algorithm(config)
    sampling_of(config)
    check_corruption(config)
    check_wandb(config.log.wandb)
    if config.reward.judge.endpoint:
        check_judge(config.reward.judge)
    with hold(workdir), hosts.exit_on_lost_process(), catch_stop_signals() as stop:
        check_start(config, workdir)
        open_workdir(config, workdir)
        spent = _seconds_before(workdir)
        fitted, model, data, heldout = prepare_run(config, workdir)
        with fitted.explained():
            if config.cold_start.steps:
                model = cold_start(config, model, workdir, stop)
            train(fitted.config, model, data, heldout, workdir, stop, open_keys=fitted.chosen)
        with hosts.on_main_process() as writes:
            if writes:
                name = f"{config.algorithm['name']}, seed {config.seed}"
                draw_curves(workdir, workdir / "curves.png", name)
        summary = summarise(workdir, config.train.steps, spent + time.perf_counter() - start)
        if hosts.is_main_process():
            atomic_write(workdir / "summary.json", json.dumps(summary, indent=1) + "\n")
            print_summary(config, workdir, summary)
    return summary


def run_cold_start(config: Config, workdir: Path) -> OpenModel:
    """The supervised stage alone, like `run`; returns the model it made."""
    with hold(workdir), hosts.exit_on_lost_process(), catch_stop_signals() as stop:
        check_start(config, workdir)
        open_workdir(config, workdir)
        write_world(config, workdir)
        model = open_model(config, resolve_model_path(config, workdir))
        model.check()
        demonstrations = fingerprint(open_data(config, config.cold_start.data, workdir))
        agree({"cold_start.data": demonstrations, "the model's files": model_fingerprint(model.directory)})
        return cold_start(config, model, workdir, stop)


def prepare_run(config: Config, workdir: Path) -> tuple[Fitted, OpenModel, TrainingData, tuple[Source, ...]]:
    """Write the world if the config asks for one, open model and data, check them, and record the start.

    Returns:
      The config, with what data and memory decide; the model, the training data and the held-out sources
      (none where the config names none).
    """
    write_world(config, workdir)
    model = open_model(config, resolve_model_path(config, workdir))
    _check_views(config, model)
    check_processes(config, model.mesh)
    data = open_training_data(config, workdir, model)
    heldout, lengths = open_heldout_with_lengths(config, config.data.heldout, workdir, model)
    starts = hosts.gather(read_starts(workdir)[-1:])[0]
    fitted = fit(
        config,
        model.config,
        model.mesh,
        np.concatenate([data.lengths, lengths]),
        device_bytes(model.mesh),
        starts[0].get("chosen", {}) if starts else {},
    )
    say(fitted.stated())
    for warning in sharding_warnings(fitted.config, model.config, model.mesh):
        say(warning)
    model.check()
    fingerprints = {f"data.train[{k}]": fingerprint(source) for k, source in enumerate(data.sources)}
    if config.cold_start.steps:
        demonstrations = open_data(config, config.cold_start.data, workdir)
        fingerprints["cold_start.data"] = fingerprint(demonstrations)
    fingerprints |= {f"data.heldout[{k}]": fingerprint(source) for k, source in enumerate(heldout)}
    check_sources(config, [source.name for source in (*data.sources, *heldout)])
    agree({**fingerprints, "the model's files": model_fingerprint(model.directory)})
    record_start(workdir, fingerprints, say, hub_commits(config, workdir), fitted.chosen)
    return fitted, model, data, heldout


def _check_views(config: Config, model: OpenModel) -> None:
    """Raises ValueError for a method that looks at images in another view, with a model that sees none."""
    method = algorithm(config)
    views = {each.view for each in passes_of({LOGPROB} | method.needs | method.live)} - {"clean"}
    if views and not model.processor.sees:
        raise ValueError(
            f"config.algorithm.name={config.algorithm['name']} compares views of images, which the model in "
            f"{model.directory} does not read; take a vision-language model, or a method such as grpo"
        )


def write_world(config: Config, workdir: Path) -> None:
    """Write data and untrained model of ``config.world`` to ``{workdir}/world``, unless they are there."""
    if config.world.train:
        with hosts.on_main_process() as writes:
            directory, name = workdir / "world", config.world.name
            if writes and not (directory / "model" / "config.json").is_file():  # it is written last
                say(f"writing the {name} world to {directory}")
                where, function = (
                    "config.world.name",
                    name if ":" in name else f"mmrl.tasks.{name}_world:write",
                )
                with run_user_code(where, function.rpartition(":")[0]):
                    load_function(where, function)(directory, config.seed, config.world)


def cold_start(config: Config, model: OpenModel, workdir: Path, stop: StopSignal) -> OpenModel:
    """The supervised stage, unless its result is there; returns the model it made."""
    out = workdir / "cold_start" / "model"
    if not (out / "config.json").is_file():
        stage = config.cold_start
        source = open_source(
            config, stage.data, workdir, model, key="cold_start.data", longest=stage.max_tokens
        )
        sft(config, model, source, workdir / "cold_start", out, stop)
    return open_model(config, out)


def summarise(workdir: Path, steps: int, seconds: float) -> dict[str, float | None]:
    """Held-out figures of a run before its first and after its last step; None for what is not known there.

    Figures of tools are left out where there are none.
    """
    rows = {row["step"]: row for row in read_metrics(workdir)}
    before, after = rows.get(0, {}), rows.get(steps, {})
    summary: dict[str, float | None] = {}
    for name, key in (*_TABLE, *_TOOL_TABLE):
        if key in before or key in after or (name, key) in _TABLE:
            summary[f"{name}_before"] = before.get(key)
            summary[f"{name}_after"] = after.get(key)
    return {**summary, "seconds": round(seconds, 1)}


def _seconds_before(workdir: Path) -> float:
    """Time that earlier, interrupted calls spent on the steps that count."""
    rows = read_metrics(workdir) + read_metrics(workdir / "cold_start")
    return sum(row.get("time/step", 0.0) for row in rows)


def print_summary(config: Config, workdir: Path, summary: dict[str, float | None]) -> None:
    name = config.algorithm["name"]
    lines = ["", f"{'held out':<20}{'before RL':>12}{f'after {name}':>16}"]
    for label, _ in (*_TABLE, *_TOOL_TABLE):
        before, after = summary.get(f"{label}_before"), summary.get(f"{label}_after")
        if before is not None and after is not None:
            lines.append(f"{label.replace('_', ' '):<20}{before:>11.1%} {after:>15.1%}")
    lines += [
        "",
        f"run       {workdir}  ({summary['seconds']:.0f} s)",
        f"curves    {workdir / 'curves.png'}",
        f"responses {workdir / 'responses_before.jsonl'}, {workdir / 'responses_after.jsonl'}",
    ]
    say("\n".join(lines))
