"""Printing: text that does nothing to a terminal, tables, progress, and commands that can be pasted."""

import shlex
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

LONGEST = 1000  # characters of a line of a refusal: data, keys and libraries bring what they like
_SHOWN = ("Zs",)  # categories that Python calls unprintable, and a terminal shows: spaces of other scripts


def printable(text: str) -> str:
    """``text`` with what a terminal would act on, or not show, in the escapes of Python.

    Of data, names of files, models and remote machines nothing else may be printed: escape sequences and
    other control characters (line breaks and tabs stay), marks of direction, zero-width characters, halves of
    surrogate pairs.
    """
    return "".join(
        one if one.isprintable() or one in "\n\t" or unicodedata.category(one) in _SHOWN else ascii(one)[1:-1]
        for one in text
    )


def one_line(said: object, most: int = 300) -> str:
    """The message of an error, or a text of data, on one line of bounded length."""
    text = printable(" ".join(str(said).split())) or type(said).__name__
    return text if len(text) <= most else text[: most - 3] + "..."


def tell(text: str = "", *, error: bool = False) -> None:
    """Print lines at once, on stdout or stderr, `printable`: the only way in which mmrl prints."""
    print(printable(text), file=sys.stderr if error else sys.stdout, flush=True)


def refuse(reason: object) -> None:
    """Print on stderr why a command does nothing. Of a line too long to read the middle is left out."""
    lines = f"mmrl: {reason}".split("\n")
    half = LONGEST // 2
    tell(
        "\n".join(line if len(line) <= LONGEST else f"{line[:half]} [...] {line[-half:]}" for line in lines),
        error=True,
    )


def rewrite(line: str, *, last: bool, error: bool = False) -> None:
    """Print a line in the place of the one before, as progress is shown; the ``last`` one stays."""
    stream = sys.stderr if error else sys.stdout
    clear = "\r\x1b[2K" if stream.isatty() else "\r"
    print(f"{clear}{printable(line)}", end="\n" if last else "", file=stream, flush=True)


def table_lines(rows: Sequence[Sequence[str]], *, numbers: bool = False) -> list[str]:
    """Lines of a table, its columns aligned: on the left, or with ``numbers`` on the right but the first."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    align = [str.ljust, *([str.rjust if numbers else str.ljust] * (len(widths) - 1))]
    return [
        "  ".join(put(cell, width) for put, cell, width in zip(align, row, widths, strict=True)).rstrip()
        for row in rows
    ]


def command(*words: str | Path) -> str:
    """A command as a shell takes it. A path that is a word by itself is never read as an option."""
    return " ".join(map(_quote, words))


def _quote(word: str | Path) -> str:
    text = f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word)
    if printable(text) == text and "\n" not in text and "\t" not in text:
        return shlex.quote(text)
    # What cannot be shown is written by its bytes: bash, zsh and ksh read this.
    kept = (
        chr(byte) if 32 <= byte < 127 and chr(byte) not in "\\'" else f"\\{byte:03o}"
        for byte in text.encode(errors="surrogateescape")
    )
    return f"$'{''.join(kept)}'"
