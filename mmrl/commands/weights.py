"""Weights that ``mmrl eval`` and ``mmrl generate`` sample with: their options, their config, progress."""

import argparse
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl.commands import options as option
from mmrl.terminal import rewrite, tell

if TYPE_CHECKING:
    from mmrl.config import Config
    from mmrl.open import OpenModel
    from mmrl.types import Params

EVERY_S = 1.0  # between two reports of progress
BATCH = 32  # prompts at a time
# Keys that an option stands for, in both commands.
OPTIONS = {
    "seed": ("seed",),
    "temperature": ("rollout.temperature", "evaluation.temperature"),
    "top_p": ("rollout.top_p", "evaluation.top_p"),
    "max_tokens": ("rollout.max_tokens",),
}
# Keys that say nothing here, and what does.
ELSEWHERE = {
    "model.path": "--model or --workdir",
    "data.train": "--data or --prompts",
    "data.heldout": "--data",
}
# Parts of the config that say nothing at all.
TRAINING = ("corruption", "algorithm", "optimizer", "train", "log", "cold_start", "world")


def add_arguments(sub: argparse.ArgumentParser, required: bool = True) -> None:
    """Options that name weights, and say how they are sampled."""
    where = sub.add_mutually_exclusive_group(required=required)
    where.add_argument(
        "--model", type=option.path, help="a Hugging Face directory, or ORG/NAME[@REVISION] of the hub"
    )
    where.add_argument("--workdir", type=option.path, help="a run's folder")
    sub.add_argument(
        "--step", type=option.integer(0), help="which checkpoint of the run (default: the newest)"
    )
    sub.add_argument(
        "--temperature", type=float, help="0 takes the most likely token (default: 1, or the run's)"
    )
    sub.add_argument("--top-p", type=float, help="nucleus (default: 1, or the run's)")
    sub.add_argument("--max-tokens", type=option.count, help="of a response (default: 512, or the run's)")
    sub.add_argument("--seed", type=option.seed, help="(default: 0)")
    sub.add_argument("--batch", type=option.count, help=f"prompts at a time (default: {BATCH})")


def open_weights(
    options: argparse.Namespace, settings: Sequence[str] = ()
) -> tuple["Config", "OpenModel", Callable[[], tuple[int | None, "Params"]]]:
    """Config and model that ``--model`` or ``--workdir`` name, and what reads the step and the weights.

    ``settings`` overrule keys of the config, as "--config.KEY=VALUE".
    """
    from mmrl import hub
    from mmrl.config import from_dict, unresolved
    from mmrl.experiment import overrule
    from mmrl.open import config_without_run, open_model, resolve_model_path
    from mmrl.run_folder import read_config

    if options.model and options.step is not None:
        raise ValueError("--step is of a run: name that by --workdir, or leave --step out")
    config = config_without_run() if options.model else read_config(options.workdir)
    if settings:
        values = unresolved(config)
        overrule(values, settings)
        config = from_dict(values.to_dict())
    if options.model:
        options.model = Path(hub.local(str(options.model), "model"))
        model = open_model(config, options.model)
        return config, model, lambda: (None, model.load())
    model = open_model(config, resolve_model_path(config, options.workdir))
    return config, model, lambda: option.load_step(options.workdir, options.step, model)


def overrides_of(
    options: argparse.Namespace,
    overrides: Sequence[str],
    defaults: Mapping[str, Any],
    keys: Mapping[str, Sequence[str]],
    silent: Collection[str],
    elsewhere: Mapping[str, str],
) -> list[str]:
    """Overrides of the config, the last one counts: defaults, those given, and those that options stand for.

    Where the images of the run's data lie says nothing about those of other data.

    Raises ValueError for a key that says nothing here, or that an option says too.
    """
    given = [override.removeprefix("--config.").partition("=")[0] for override in overrides]
    for key in given:
        if key in elsewhere:
            raise ValueError(f"config.{key} says nothing here: use {elsewhere[key]}")
        if key.partition(".")[0] in silent:
            raise ValueError(f"config.{key} says nothing to mmrl {options.command.name}: leave it out")
    chosen = []
    for name, meant in keys.items():
        if (value := getattr(options, name)) is None:
            continue
        twice = [key for key in meant if key in given]
        if twice:
            raise ValueError(
                f"--{name.replace('_', '-')} and --config.{twice[0]} say the same: leave out one of them"
            )
        chosen += [f"{key}={value}" for key in meant]
    first = {"seed": 0, "data.image_root": "", **defaults}
    return [
        *(f"--config.{key}={value}" for key, value in first.items()),
        *overrides,
        *(f"--config.{pair}" for pair in chosen),
    ]


def check_out(out: Path | None, flag: str, read: Iterable[Path]) -> None:
    """Raises ValueError if ``--out`` is a folder, or one of the files that are read, by whatever name."""
    if out is None:
        return
    if out.is_dir():
        raise ValueError(f"--out={out} is a folder: name a file")
    if out.exists() and any(file.exists() and out.samefile(file) for file in read):
        raise ValueError(f"--out={out} is a file that {flag} reads: name another")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out={out}: its folder cannot be made: {error}") from error


@contextmanager
def show_progress(total: int) -> Iterator[Callable[[int], None]]:
    """A function to call with the tokens of each response that has ended; progress stands on stderr."""
    start = shown = time.monotonic()
    done = tokens = 0

    def on_response(more: int) -> None:
        nonlocal done, tokens, shown
        done, tokens = done + 1, tokens + more
        now = time.monotonic()
        if done == 1 or done == total or now - shown > EVERY_S:
            shown = now
            seconds = max(now - start, 1e-9)
            left = int(seconds / done * (total - done))
            line = f"{done} of {total} responses, {tokens / seconds:.1f} tokens/s"
            rewrite(f"{line}, {left // 60}:{left % 60:02d} left", last=done == total, error=True)

    yield on_response
    if 0 < done < total:  # of prompts that could not be used
        tell(error=True)
