"""Types of command-line values, for `argparse`: each is read, or refused in one line with the fix."""

from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path


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
