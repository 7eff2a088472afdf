"""What the commands around a run do. Heavy libraries are imported when one runs: ``--help`` is quick."""

import argparse
import dataclasses
import json
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mmrl.terminal import tell

if TYPE_CHECKING:
    from mmrl.config import Config
    from mmrl.models import qwen2_5_vl_config
    from mmrl.open import OpenModel
    from mmrl.types import Params


def train(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """``mmrl train``."""
    config, workdir = experiment(options, overrides)

    def run() -> None:
        from mmrl.commands.next_steps import after_training
        from mmrl.hosts import say
        from mmrl.train import stages

        stages.run(config, workdir)
        say("\n" + after_training(options.config, overrides, workdir, config.algorithm["name"]))

    _together(options, run)


def sft(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """``mmrl sft``."""
    config, workdir = experiment(options, overrides)
    if not config.cold_start.steps:
        raise ValueError("config.cold_start.steps=0: this experiment has no supervised stage")
    _together(options, lambda: _sft(config, workdir))


def _sft(config: "Config", workdir: Path) -> None:
    from mmrl.train.stages import run_cold_start

    tell(f"model     {run_cold_start(config, workdir).directory}")


def _together(options: argparse.Namespace, run: Callable[[], None]) -> None:
    """Run with the other processes, if there are any; a failure of one is then the end of it at once."""
    from mmrl import hosts
    from mmrl.train.stop_signal import Interrupted

    if options.coordinator:
        hosts.join(options.coordinator, options.processes, options.process)
    elif options.processes is not None or options.process is not None:
        raise ValueError("--processes and --process need --coordinator=HOST:PORT")
    try:
        _look_at_devices()
        run()
    except Interrupted as error:
        tell(f"mmrl: stopped by {error}; the same command goes on from here", error=True)
        raise SystemExit(128 + signal.Signals[str(error)]) from error
    except Exception as error:
        if not options.coordinator:
            raise
        text = f"mmrl: {error}" if isinstance(error, ValueError) else traceback.format_exc()
        tell(text, error=True)
        hosts.exit_now(2 if isinstance(error, ValueError) else 1)


def _look_at_devices() -> None:
    """Refuse a platform that cannot be used, and tell of a device that will not be."""
    from mmrl import hosts
    from mmrl.mesh import check_devices

    warning = check_devices()
    if warning and hosts.is_main_process():
        tell(f"mmrl: {warning}", error=True)


def export(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """``mmrl export``."""
    if options.out.is_file() or (options.out.is_dir() and any(options.out.iterdir())):
        raise ValueError(f"--out={options.out} exists already: name another folder, or delete it first")
    import jax.numpy as jnp

    from mmrl import hub
    from mmrl.models.checkpoint import save

    config, model = _run(options.workdir)
    if options.push:
        hub.check_push(options.push)
    step, params = at_step(options.workdir, options.step, model)
    save(params, model.description, options.out, base=model.directory, dtype=jnp.dtype(options.dtype))
    tell(f"step {step} of {options.workdir} in {options.out} ({options.dtype})")
    if options.push:
        method = config.algorithm["name"]
        tell(f"pushed    {hub.push(options.out, options.push, f'{method}, step {step}, by mmrl')}")


def plan(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """``mmrl plan``."""
    if options.suggest and options.smallest:
        raise ValueError("--suggest looks at one slice: name it with --topology, instead of --smallest")
    config, workdir = experiment(options, overrides)
    _compile_without_devices()
    from mmrl.plan import report, search
    from mmrl.plan.chips import parse_topology

    name, model = _model_config(options.model_size, config, workdir)
    names = options.program or search.PROGRAMS
    log = partial(tell, error=True)
    attempts: tuple[search.Attempt, ...] = ()
    found: search.Plan | None
    if options.smallest:
        found, attempts = search.smallest(
            config,
            model,
            options.smallest,
            names,
            per_shard=options.per_shard or 1,
            quick=options.quick,
            log=log,
        )
    else:
        found = search.plan(
            config,
            model,
            parse_topology(options.topology),
            names,
            per_shard=options.per_shard,
            quick=options.quick,
            suggest=options.suggest,
            log=log,
        )
    if options.json:
        tell(json.dumps(report.plan_json(name, found, attempts), indent=1))
    else:
        tell(report.plan_text(name, found, attempts))


def bench(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """``mmrl bench``."""
    config, workdir = experiment(options, overrides)
    from mmrl.atomic import atomic_write
    from mmrl.mesh import make_mesh
    from mmrl.open import check_corruption, sharding_warnings, with_compute_options
    from mmrl.plan import measure, report
    from mmrl.plan.workload import PROGRAMS, workload

    check_corruption(config)
    _look_at_devices()
    name, model = _model_config(options.model_size, config, workdir)
    mesh = make_mesh(dataclasses.asdict(config.mesh))
    for line in sharding_warnings(config, model, mesh):
        measure.log(line)
    work = workload(config, with_compute_options(model, config, mesh), mesh)
    chosen = [program for program in PROGRAMS if program in (options.program or PROGRAMS)]
    found = [measure.measure(work, program, options.repeats) for program in chosen]
    made = report.bench_json(name, work, found, measure.limits(mesh, work.model.dtype))
    text = json.dumps(made, indent=1)
    if options.json == Path("-"):
        tell(text)
        return
    tell(report.bench_text(made))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(options.json, text + "\n")


def _compile_without_devices() -> None:
    """Have jax compute on the CPU and libtpu look for no TPU; the environment of the caller comes first."""
    import jax

    from mmrl.plan.aot import environment

    for name, value in environment().items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])


def _model_config(
    name: str | None, config: "Config", workdir: Path
) -> tuple[str, "qwen2_5_vl_config.Qwen2_5VLConfig"]:
    """Name and sizes of the model: a published one, or that of the config's directory."""
    from mmrl.models.published import published
    from mmrl.models.qwen2_5_vl_config import read_config
    from mmrl.open import model_directory

    if name:
        return f"Qwen2.5-VL-{name.upper()}", published(name)
    directory = model_directory(config, workdir, weights=False)
    if not directory or not Path(directory).is_dir():
        raise ValueError(
            f"config.model.path={directory!r} is no directory: name one with a config.json, or a published "
            "model with --model-size"
        )
    return directory, read_config(directory)


def experiment(options: argparse.Namespace, overrides: Sequence[str]) -> tuple["Config", Path]:
    """The config that ``--config`` and the overrides give, and the run's folder. Raises ValueError."""
    from mmrl.config import resolve
    from mmrl.experiment import load

    config = resolve(load(options.config, overrides))
    name = Path(options.config.partition(":")[0]).stem
    return config, options.workdir or Path("runs") / name


def _run(workdir: Path) -> tuple["Config", "OpenModel"]:
    from mmrl.open import model_directory, open_model
    from mmrl.run_folder import read_config

    config = read_config(workdir)
    return config, open_model(config, model_directory(config, workdir))


def at_step(workdir: Path, step: int | None, model: "OpenModel") -> tuple[int, "Params"]:
    """The step and the weights of a run's checkpoint."""
    from mmrl.train.checkpoint import load_params

    return load_params(workdir / "checkpoints", model.description, step, model.shardings)
