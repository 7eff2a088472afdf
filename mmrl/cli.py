"""The commands: ``mmrl train | sft | eval | generate | export | plan | bench | report | sweep | data``."""

import argparse
import errno
import io
import os
import platform
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn

from mmrl.commands.data import DATA
from mmrl.commands.eval import EVAL
from mmrl.commands.export import EXPORT
from mmrl.commands.generate import GENERATE
from mmrl.commands.options import Command
from mmrl.commands.plan import BENCH, PLAN
from mmrl.commands.report import REPORT
from mmrl.commands.sweep import SWEEP
from mmrl.commands.train import SFT, TRAIN
from mmrl.suggest import suggest
from mmrl.terminal import refuse, tell

COMMANDS = (TRAIN, SFT, EVAL, GENERATE, PLAN, BENCH, EXPORT, REPORT, SWEEP, DATA)
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE)  # that some calls report without a name


def main(argv: list[str] | None = None) -> int:
    """Run one command; a mistake of the caller's is one line on stderr and exit status 2."""
    for stream in (sys.stdout, sys.stderr):  # what an encoding lacks is escaped, and ends no command
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    parser = _parser()
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    try:
        known, rest = parser.parse_known_args(words)
        _check_words(known.command, rest)
        known.command.run(known, rest)
    except ValueError as error:
        refuse(error)
        return 2
    except KeyboardInterrupt:
        tell("mmrl: interrupted; the same command goes on from the last checkpoint", error=True)
        return 130
    except BrokenPipeError:  # as in mmrl data list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.filename is None and error.errno not in _DISK:
            tell(traceback.format_exc(), error=True)
            return 1
        refuse(_describe(error))
        return 2
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, MemoryError):  # the first is JAX's word
            tell(
                f"mmrl: out of memory ({str(error).partition(chr(10))[0]}): fewer prompts at once (--batch),"
                " smaller images (config.data.max_pixels) or shorter responses (--max-tokens) take less",
                error=True,
            )
            return 1
        tell(traceback.format_exc(), error=True)
        return 1
    return 0


def _describe(error: OSError) -> str:
    """The file and the reason, on one line."""
    reason = error.strerror or str(error)
    named = isinstance(error.filename, str | bytes | os.PathLike)
    return f"{os.fsdecode(error.filename)}: {reason}" if named else reason


def _check_words(command: Command, rest: Sequence[str]) -> None:
    """Raises ValueError if a command was given words that it does not take."""
    for word in rest:
        if command.takes_config and re.match(r"--config\.[^=]+=", word):
            continue
        if command.takes_config and word.startswith("--config."):
            raise ValueError(f"{word} has no value: write {word}=VALUE, in one word")
        raise ValueError(f"unknown argument {word!r}; see {f'mmrl {command.name}'.strip()} --help")


def _versions() -> str:
    """Of mmrl, Python and jax, as a report of a bug begins."""
    found = []
    for name in ("mmrl", "jax"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name}, not installed as a package")
    return f"{found[0]} (Python {platform.python_version()}, {found[1]})"


class _Parser(argparse.ArgumentParser):
    """Reads words; those that it cannot read are a ValueError."""

    def error(self, message: str) -> NoReturn:
        wrong = re.match(r"argument .*: invalid choice: '(.*)' \(choose from (.*)\)", message, re.DOTALL)
        if wrong:
            choices = [choice.strip(" '") for choice in wrong[2].split(",")]
            message = f"there is no '{wrong[1]}'{suggest(wrong[1], choices)}"
        raise ValueError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mmrl",
        description="Multimodal policy optimization in JAX.",
        epilog="Begin with mmrl train --config=experiments/quickstart.py; mmrl COMMAND --help has examples.",
    )
    parser.add_argument("--version", action="version", version=_versions())

    def run_nothing(*_: object) -> NoReturn:
        tell(parser.format_help(), error=True)
        raise ValueError("name a command")

    parser.set_defaults(command=Command("", "", "", run=run_nothing))
    subparsers = parser.add_subparsers(metavar="COMMAND")
    for command in COMMANDS:
        _add_command(subparsers, command)
    return parser


def help_texts() -> list[tuple[str, str]]:
    """The name of each command and what its ``--help`` prints."""
    found: list[tuple[str, str]] = []

    def add(parser: argparse.ArgumentParser) -> None:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for sub in action.choices.values():
                    found.append((sub.prog.partition(" ")[2], sub.format_help()))
                    add(sub)

    add(_parser())
    return found


def _add_command(subparsers, command: Command) -> None:
    """Add the parser of a command, and those of its parts."""
    sub = subparsers.add_parser(
        command.name.split()[-1],
        help=command.summary,
        description=command.summary,
        epilog=command.examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    sub.set_defaults(command=command)
    command.add_arguments(sub)
    if command.parts:
        parts = sub.add_subparsers(dest="what", required=True, metavar="WHAT")
        for part in command.parts:
            _add_command(parts, part)


if __name__ == "__main__":
    sys.exit(main())
