"""``mmrl plan`` and ``mmrl bench``: programs of a run, compiled for TPUs, or timed on this machine."""

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mmrl.commands import options as option
from mmrl.commands.options import Command, check_platform, open_experiment
from mmrl.terminal import tell

if TYPE_CHECKING:
    from mmrl.config import Config
    from mmrl.models.config import ModelConfig


def _add_programs(sub: argparse.ArgumentParser) -> None:
    option.add_experiment(sub)
    sub.add_argument(
        "--model-size",
        metavar="SIZE",
        help="a published model: 3b, 7b, 32b or 72b (default: what config.model.path holds)",
    )
    sub.add_argument(
        "--program",
        action="append",
        choices=("prefill", "decode", "score", "update"),
        help="only this one; may be given again (default: all)",
    )
    sub.add_argument(
        "--lengths",
        metavar="NAME|RUN",
        default="full",
        help="of prompts, images and responses: full, long-tailed, or those of the run in a folder; memory is"
        " for the longest (default: %(default)s)",
    )


def add_plan_arguments(sub: argparse.ArgumentParser) -> None:
    """Arguments of ``mmrl plan``."""
    _add_programs(sub)
    where = sub.add_mutually_exclusive_group(required=True)
    where.add_argument("--topology", help="the slice to compile for")
    where.add_argument(
        "--smallest", metavar="GENERATION", help="find the smallest slice on which every program fits"
    )
    sub.add_argument(
        "--per-shard",
        type=option.count,
        metavar="N",
        help="prompts sampled at once for each part of a batch (default: the config's; 1 with --smallest)",
    )
    sub.add_argument("--suggest", action="store_true", help="also look for the largest batches that fit")
    sub.add_argument(
        "--quick", action="store_true", help="compile without optimization: verdicts, no cycle sums"
    )
    sub.add_argument("--json", action="store_true", help="print one JSON object")
    sub.set_defaults(workdir=None)


def add_bench_arguments(sub: argparse.ArgumentParser) -> None:
    """Arguments of ``mmrl bench``."""
    _add_programs(sub)
    sub.add_argument(
        "--workdir",
        type=option.path,
        help="for paths of the config (default: runs/<name of the experiment>)",
    )
    sub.add_argument("--repeats", type=option.count, default=5, help="timed calls (default: %(default)s)")
    sub.add_argument(
        "--json",
        type=option.path,
        metavar="FILE",
        help="also write the numbers here; - prints them, and no table",
    )


def plan(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """``mmrl plan``."""
    if options.suggest and options.smallest:
        raise ValueError("--suggest looks at one slice: name it with --topology, instead of --smallest")
    config, workdir = open_experiment(options, overrides)
    _compile_without_devices()
    from mmrl.plan import report, search
    from mmrl.plan.chips import parse_topology
    from mmrl.plan.lengths import length_distribution

    lengths = length_distribution(options.lengths)
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
            lengths=lengths,
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
            lengths=lengths,
            log=log,
        )
    if options.json:
        tell(json.dumps(report.plan_json(name, found, attempts), indent=1))
    else:
        tell(report.plan_text(name, found, attempts))


def bench(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """``mmrl bench``."""
    config, workdir = open_experiment(options, overrides)
    from mmrl.atomic import atomic_write
    from mmrl.mesh import make_mesh
    from mmrl.open import check_corruption, sharding_warnings, with_compute_options
    from mmrl.plan import measure, report
    from mmrl.plan.lengths import length_distribution
    from mmrl.plan.useful import real_tokens
    from mmrl.plan.workload import PROGRAMS, workload

    lengths = length_distribution(options.lengths)
    check_corruption(config)
    check_platform()
    name, model = _model_config(options.model_size, config, workdir)
    mesh = make_mesh(dataclasses.asdict(config.mesh))
    for line in sharding_warnings(config, model, mesh):
        measure.log(line)
    work = workload(config, with_compute_options(model, config, mesh), mesh, lengths)
    chosen = [program for program in PROGRAMS if program in (options.program or PROGRAMS)]
    limits = measure.limits(mesh, work.model.dtype)
    found = [
        measure.measure(
            work, program, options.repeats, real_tokens(work, program, limits.flops / limits.bandwidth)
        )
        for program in chosen
    ]
    made = report.bench_json(name, work, found, limits)
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


def _model_config(name: str | None, config: "Config", workdir: Path) -> tuple[str, "ModelConfig"]:
    """Name and sizes of the model: a published one, or that of the config's directory."""
    from mmrl.models.family import read_config
    from mmrl.models.published import published
    from mmrl.open import resolve_model_path

    if name:
        return f"Qwen2.5-VL-{name.upper()}", published(name)
    directory = resolve_model_path(config, workdir, weights=False)
    if not directory or not Path(directory).is_dir():
        raise ValueError(
            f"config.model.path={directory!r} is no directory: name one with a config.json, or a published "
            "model with --model-size"
        )
    return directory, read_config(directory)


_PLAN_EXAMPLES = """\
examples:
  mmrl plan --config=experiments/papo_qwen2_5_vl_7b.py --model-size=7b --topology=v5p:4x4x4 --per-shard=1
  mmrl plan --config=experiments/papo_qwen2_5_vl_7b.py --config.model.path=DIR --config.mesh.tensor=4 \\
      --topology=v5e:4x4 --per-shard=1 --program=update --quick
  mmrl plan --config=experiments/papo_qwen2_5_vl_3b.py --model-size=3b --smallest=v5e --quick
  mmrl plan --config=experiments/papo_qwen2_5_vl_7b.py --model-size=7b --topology=v5p:2x2x1 \\
      --lengths=runs/papo_7b

Compiles the programs of a run for TPUs that need not be there, and says what they need of a device. No
weights are read. A topology is a slice by its chips (v6e:8x8) or its Google Cloud name (v5p-128), "*2" behind
it two slices. Needs libtpu: pip install "mmrl[tpu]"."""
PLAN = Command(
    "plan",
    "Compile a run for TPUs, and say what fits.",
    _PLAN_EXAMPLES,
    add_plan_arguments,
    plan,
    takes_config=True,
)
_BENCH_EXAMPLES = """\
examples:
  mmrl bench --config=experiments/quickstart.py
  mmrl bench --config=experiments/papo_qwen2_5_vl_3b.py --model-size=3b --config.train.update_prompts=8 \\
      --config.rollout.prompt_slots=8 --program=decode --program=update --json=bench.json

Times the programs of a run on the devices that are there, at their largest shapes, with random weights."""
BENCH = Command(
    "bench",
    "Time the programs of a run where we are.",
    _BENCH_EXAMPLES,
    add_bench_arguments,
    bench,
    takes_config=True,
)
