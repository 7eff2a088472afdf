"""Parts of all commands: what one is, types of its options, and the experiment that ``--config`` names.

Heavy libraries are imported when a command runs: ``--help`` is quick.
"""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmrl.terminal import tell

if TYPE_CHECKING:
    from mmrl.config import Config
    from mmrl.open import OpenModel
    from mmrl.types import Params


@dataclass(frozen=True)
class Command:
    """A command: its words, its help, its arguments, and the function that runs it."""

    name: str  # its words, such as "data inspect"
    summary: str
    examples: str  # and what else stands below its options
    add_arguments: Callable[[ArgumentParser], None] = lambda sub: None
    run: Callable[[Namespace, Sequence[str]], None] | None = None  # None if one of ``parts`` must follow
    takes_config: bool = False  # takes --config.KEY=VALUE, which ``run`` gets as its second argument
    parts: tuple["Command", ...] = ()


def text(word: str) -> str:
    """A name or a path as text; an empty one is mostly a variable of the shell that is not set."""
    if not word.strip():
        raise ArgumentTypeError("it is empty: name a file or a folder")
    return word


def path(word: str) -> Path:
    """A path; an empty one would be the current folder."""
    return Path(text(word))


def integer(least: int, most: int | None = None) -> Callable[[str], int]:
    """The type of a whole number from ``least`` on, up to ``most`` if that is given."""

    def read(word: str) -> int:
        try:
            number = int(word)
        except ValueError:
            number = None
        if number is None or number < least or (most is not None and number > most):
            limit = "or more" if most is None else f"to {most}"
            raise ArgumentTypeError(f"{word[:40]!r} should be a whole number, {least} {limit}")
        return number

    return read


count, seed = integer(1), integer(0, 2**32 - 1)


def share(word: str) -> float:
    """A number in [0, 1]."""
    try:
        number = float(word)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise ArgumentTypeError(f"{word[:40]!r} should be a number from 0 to 1")
    return number


def add_experiment(sub: ArgumentParser) -> None:
    """The option ``--config`` of commands that run an experiment."""
    sub.add_argument(
        "--config",
        required=True,
        metavar="FILE[:ARG]",
        help="an experiment; its keys are overruled by --config.KEY=VALUE",
    )


def open_experiment(options: Namespace, overrides: Sequence[str]) -> tuple["Config", Path]:
    """The config that ``--config`` and the overrides give, and the run's folder. Raises ValueError."""
    from mmrl.config import resolve
    from mmrl.experiment import load

    config = resolve(load(options.config, overrides))
    name = Path(options.config.partition(":")[0]).stem
    return config, options.workdir or Path("runs") / name


def load_step(workdir: Path, step: int | None, model: "OpenModel") -> tuple[int, "Params"]:
    """The step and the weights of a run's checkpoint."""
    from mmrl.train.checkpoint import load_params

    return load_params(workdir / "checkpoints", model.description, step, model.shardings)


def check_platform() -> None:
    """Refuse a platform that cannot be used, and warn of a device that will not be."""
    from mmrl import hosts
    from mmrl.mesh import check_devices

    warning = check_devices()
    if warning and hosts.is_main_process():
        tell(f"mmrl: {warning}", error=True)
