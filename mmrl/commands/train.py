"""``mmrl train`` and ``mmrl sft``: an experiment's stages, alone or with other processes."""

import argparse
import inspect
import signal
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrl.commands import options as option
from mmrl.commands.options import Command, check_platform, open_experiment
from mmrl.terminal import command, tell


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Arguments of both commands."""
    option.add_experiment(sub)
    sub.add_argument(
        "--workdir",
        type=option.path,
        help="the run's folder (default: runs/<name of the experiment>)",
    )
    group = sub.add_argument_group("several processes, started with the same command each")
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="where process 0 listens, or auto on machines that know it (Cloud TPU, Slurm)",
    )
    group.add_argument("--processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")


def train(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """``mmrl train``."""
    config, workdir = open_experiment(options, overrides)

    def run() -> None:
        from mmrl.hosts import say
        from mmrl.train import stages

        stages.run(config, workdir)
        say("\n" + after_training(options.config, overrides, workdir, config.algorithm["name"]))

    _run_with_processes(options, run)


def sft(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """``mmrl sft``."""
    config, workdir = open_experiment(options, overrides)
    if not config.cold_start.steps:
        raise ValueError("config.cold_start.steps=0: this experiment has no supervised stage")

    def run() -> None:
        from mmrl.train.stages import run_cold_start

        tell(f"model     {run_cold_start(config, workdir).directory}")

    _run_with_processes(options, run)


def _run_with_processes(options: argparse.Namespace, run: Callable[[], None]) -> None:
    """Run with the other processes, if there are any; a failure of one is then the end of it at once."""
    from mmrl import hosts
    from mmrl.train.stop_signal import Interrupted

    if options.coordinator:
        hosts.join(options.coordinator, options.processes, options.process)
    elif options.processes is not None or options.process is not None:
        raise ValueError("--processes and --process need --coordinator=HOST:PORT")
    try:
        check_platform()
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


def after_training(config: str, overrides: Sequence[str], workdir: Path, name: str) -> str:
    """Commands that may follow ``mmrl train``, as text to be pasted.

    Args:
      config: the run's experiment, FILE[:ARG].
      overrides: its words ``--config.KEY=VALUE``.
      workdir: its folder.
      name: its method.
    """
    other = "vppo" if name != "vppo" else "papo_g"
    beside = workdir.parent / other
    if beside.exists():
        beside = workdir.parent / f"{workdir.name}-{other}"
    words = ["mmrl", "train", f"--config={config}", *with_method(config, overrides, other)]
    steps = {
        "a page about it": command("mmrl", "report", workdir, "--out=report.html"),
        "another method": command(*words, f"--workdir={beside}"),
        "for transformers": command("mmrl", "export", f"--workdir={workdir}", "--out=policy"),
        "every metric": command("tensorboard", f"--logdir={workdir}") + "  (after pip install tensorboard)",
        "your own data": "see the README",
    }
    first = "next: "
    return "\n".join(f"{'' if k else first:<6}{what:<18}{how}" for k, (what, how) in enumerate(steps.items()))


def with_method(config: str, overrides: Sequence[str], name: str) -> list[str]:
    """The overrides for the same run with the recipe ``name``, without hyper-parameters that it lacks."""
    from mmrl.algorithms.recipes import RECIPES
    from mmrl.experiment import load

    accepted = inspect.signature(RECIPES[name]).parameters
    own: Mapping[str, Any] = load(config).algorithm
    kept = [word for word in overrides if _hyper_parameter(word) in (None, *accepted)]
    unset = [key for key, value in own.items() if key not in ("name", *accepted) and value is not None]
    return [*kept, f"--config.algorithm.name={name}", *(f"--config.algorithm.{key}=None" for key in unset)]


def _hyper_parameter(override: str) -> str | None:
    """The hyper-parameter, or "name", that a word --config.algorithm.KEY=VALUE sets; None for other words."""
    key = override.partition("=")[0].removeprefix("--config.algorithm.")
    return None if key.startswith("--") else key


_TRAIN_EXAMPLES = """\
examples:
  mmrl train --config=experiments/quickstart.py
  mmrl train --config=experiments/quickstart.py:smoke --config.algorithm.name=vppo --workdir=runs/vppo
  mmrl train --config=experiments/papo_qwen2_5_vl_3b.py --config.model.path=DIR \\
      --config.data.train=FILE.parquet

An interrupted run goes on from its last checkpoint when called again with the same --workdir.
On several hosts, start the same command on each, with --coordinator=auto on Cloud TPU."""
TRAIN = Command(
    "train",
    "Run every stage of an experiment, reinforcement learning last.",
    _TRAIN_EXAMPLES,
    add_arguments,
    train,
    takes_config=True,
)
_SFT_EXAMPLES = """\
examples:
  mmrl sft --config=experiments/quickstart.py --workdir=runs/cold

Runs the supervised stage of a config (config.cold_start) and writes a Hugging Face directory to
WORKDIR/cold_start/model."""
SFT = Command(
    "sft", "Run the supervised stage of an experiment.", _SFT_EXAMPLES, add_arguments, sft, takes_config=True
)
