"""``mmrl generate``, and ``mmrl eval --data``: responses to prompts, and how good they are.

Heavy libraries are imported when one runs: ``--help`` is quick.
"""

import argparse
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl.terminal import rewrite, tell

if TYPE_CHECKING:
    from mmrl.config import Config
    from mmrl.data.sources import Source
    from mmrl.open import OpenModel
    from mmrl.sample import Sample
    from mmrl.types import Params

EVERY_S = 1.0  # between two reports of progress
BATCH = 32  # prompts at a time
# Keys that an option stands for; --batch is for "eval", "generate" calls it prompt_slots.
_OPTIONS = {
    "seed": ("seed",),
    "temperature": ("rollout.temperature", "evaluation.temperature"),
    "top_p": ("rollout.top_p", "evaluation.top_p"),
    "max_tokens": ("rollout.max_tokens",),
}
_EVALUATION = {**_OPTIONS, "samples": ("evaluation.samples",), "batch": ("evaluation.prompts",)}
_GENERATION = {**_OPTIONS, "batch": ("rollout.prompt_slots",)}
# Keys that say nothing here, and what does.
_ELSEWHERE = {
    "model.path": "--model or --workdir",
    "data.train": "--data or --prompts",
    "data.heldout": "--data",
}
# Parts of the config that say nothing at all.
_TRAINING = ("corruption", "algorithm", "optimizer", "train", "log", "cold_start", "world")
_NOT_GENERATION = (*_TRAINING, "episode", "evaluation", "reward")
_NO_EVALUATION = {
    "rollout.temperature": "--temperature",
    "rollout.top_p": "--top-p",
    "rollout.group": "--samples",
}
_NO_GENERATION = {
    "evaluation.temperature": "--temperature",
    "evaluation.top_p": "--top-p",
    "evaluation.samples": "--n",
    "rollout.group": "--n",
}


def evaluate(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """``mmrl eval --data``."""
    defaults = {"evaluation.samples": 1, "evaluation.prompts": BATCH, "evaluation.limit": 0}
    settings = _settings(options, overrides, defaults, _EVALUATION, _TRAINING, _ELSEWHERE | _NO_EVALUATION)
    config, model, load = opened(options, settings)
    import jax

    from mmrl.atomic import as_json, atomic_file
    from mmrl.open import open_heldout
    from mmrl.train.evaluate import evaluate as measure
    from mmrl.train.rollouts import open_rollouts

    sources = open_heldout(config, options.data, Path(), model, key="data")
    _check_out(options.out, "--data", [file for source in sources for file in source.table.files])
    _, params = load()
    total = config.evaluation.samples * sum(
        min(len(source), config.evaluation.limit or len(source)) for source in sources
    )
    with (
        atomic_file(options.out) if options.out else nullcontext() as part,
        jax.set_mesh(model.mesh),
        open_rollouts(config, model, options.workdir) as context,
    ):
        with _progress(total) as show:
            values, responses = measure(context, params, sources, on_response=show)
        if part:
            part.write_text("".join(as_json(row) + "\n" for row in responses), encoding="utf-8")
    told = {"rows": sum(map(len, sources)), "samples": config.evaluation.samples, **values}
    tell(as_json(told, indent=1))


def generate(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """``mmrl generate``."""
    settings = _settings(
        options,
        overrides,
        {"rollout.prompt_slots": BATCH},
        _GENERATION,
        _NOT_GENERATION,
        _ELSEWHERE | _NO_GENERATION,
    )
    config, model, load = opened(options, settings)
    from mmrl.atomic import as_json, atomic_file
    from mmrl.data.sources import read
    from mmrl.train.completions import choose_buckets, complete

    source = read(options.prompts, image_root=config.data.image_root or None, answered=False)
    _check_out(options.out, "--prompts", source.table.files)
    samples = list(_prompts(source))
    buckets = choose_buckets(samples, config, model)
    total = len(samples) * options.n
    with atomic_file(options.out) as part, part.open("w", encoding="utf-8") as file:
        _, params = load()
        with _progress(total) as show:
            for row in complete(samples, buckets, config, model, params, n=options.n, on_response=show):
                file.write(as_json(row) + "\n")
                file.flush()
    tell(f"{total} responses to {len(samples)} prompts in {options.out}")


def opened(
    options: argparse.Namespace, settings: Sequence[str] = ()
) -> tuple["Config", "OpenModel", Callable[[], tuple[int | None, "Params"]]]:
    """Config and model that ``--model`` or ``--workdir`` name, and what reads the step and the weights.

    ``settings`` overrule keys of the config, as "--config.KEY=VALUE".
    """
    from mmrl import hub
    from mmrl.commands.runs import at_step
    from mmrl.config import Config, from_dict, unresolved
    from mmrl.experiment import overrule
    from mmrl.open import model_directory, open_model
    from mmrl.run_folder import read_config

    if options.model and options.step is not None:
        raise ValueError("--step is of a run: name that by --workdir, or leave --step out")
    if options.model:
        config = replace(Config(), rollout=replace(Config().rollout, max_tokens=512))
    else:
        config = read_config(options.workdir)
    if settings:
        values = unresolved(config)
        overrule(values, settings)
        config = from_dict(values.to_dict())
    if options.model:
        options.model = Path(hub.local(str(options.model), "model"))
        model = open_model(config, options.model)
        return config, model, lambda: (None, model.load())
    model = open_model(config, model_directory(config, options.workdir))
    return config, model, lambda: at_step(options.workdir, options.step, model)


def _settings(
    options: argparse.Namespace,
    overrides: Sequence[str],
    defaults: Mapping[str, Any],
    keys: Mapping[str, Sequence[str]],
    silent: Collection[str],
    elsewhere: Mapping[str, str],
) -> list[str]:
    """Keys to set, the last one counts: of the command, of ``--config.KEY``, of its other options.

    Where the images of the run's data lie says nothing about those of other data.

    Raises ValueError for a key that says nothing here, or that an option says too.
    """
    given = [override.removeprefix("--config.").partition("=")[0] for override in overrides]
    for key in given:
        if key in elsewhere:
            raise ValueError(f"config.{key} says nothing here: use {elsewhere[key]}")
        if key.partition(".")[0] in silent:
            raise ValueError(f"config.{key} says nothing to mmrl {options.name}: leave it out")
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
        *(f"--config.{one}" for one in chosen),
    ]


def _check_out(out: Path | None, flag: str, read: Iterable[Path]) -> None:
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


def _prompts(source: "Source") -> Iterator["Sample"]:
    """The rows of a prompt file, called by file and line. Raises ValueError naming the first bad one."""
    from mmrl.data.validation import reason

    for index in range(len(source)):
        place = source.place(index)
        try:
            yield replace(source[index], id=place)
        except ValueError as error:
            raise ValueError(f"{place}: {reason(error, source.id(index))}") from error


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """What is told the tokens of each response that has ended, and tells people on stderr."""
    start = shown = time.monotonic()
    done = tokens = 0

    def heard(more: int) -> None:
        nonlocal done, tokens, shown
        done, tokens = done + 1, tokens + more
        now = time.monotonic()
        if done == 1 or done == total or now - shown > EVERY_S:
            shown = now
            seconds = max(now - start, 1e-9)
            left = int(seconds / done * (total - done))
            line = f"{done} of {total} responses, {tokens / seconds:.1f} tokens/s"
            rewrite(f"{line}, {left // 60}:{left % 60:02d} left", last=done == total, error=True)

    yield heard
    if 0 < done < total:  # of prompts that could not be used
        tell(error=True)
