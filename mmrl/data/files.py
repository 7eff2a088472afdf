"""Raw rows of JSONL and CSV files by random access: no meaning of a column, no image.

`mmrl.data.columnar` has those of parquet. A row that cannot be read is an error of its own, raised where that
row is asked for, so that one damaged line or row group costs the rows it holds and no others.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

LONGEST_LINE = 64 << 20  # bytes of a line of JSON
LARGEST_CSV = 1 << 30  # bytes of a CSV file, which is held in memory
LFS_POINTER = b"version https://git-lfs"
UTF8_MARK = b"\xef\xbb\xbf"  # some editors begin a file with it


class Table(NamedTuple):
    """The rows of some files as one list."""

    length: int
    row: Callable[[int], Mapping[str, Any]]  # ValueError without the row's name if it cannot be read
    files: tuple[Path, ...]  # what it reads, in order
    part: str = ""  # which rows of the files, where it is not all
    paths: bool = True  # whether a row may name an image by its path
    place: Callable[[int], str] | None = None  # "FILE, line 3" of a row, of files that have lines


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises ValueError where it is no JSON, holds a number that is not finite, is nested too deeply, or names a
    key twice: then nobody can know which of the two is meant.
    """
    try:
        return json.loads(
            text, object_pairs_hook=_object, parse_constant=_no_number, parse_float=_finite_number
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:40]!r} stands twice in one object")
    return value


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not a number of JSON")


def _finite_number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def refuse_pointer(file: Path) -> None:
    """Raises ValueError for the note that git leaves in the place of a file kept by git-lfs."""
    with file.open("rb") as handle:
        if handle.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ValueError(f"{file} is a pointer of git-lfs, not the file itself: run git lfs pull")


def jsonl_table(files: Sequence[Path]) -> Table:
    """Rows of files with one JSON object a line; blank lines do not count."""
    # Read by position, not mapped into memory: of a mapped file that is cut short, a read kills the process.
    handles: list[BinaryIO] = []
    spans: list[tuple[int, int, int, int]] = []  # (file, byte, length, number) of each line that is not blank
    for file in files:
        refuse_pointer(file)
        handle, start = file.open("rb"), 0
        number = 0
        while line := handle.readline(LONGEST_LINE):
            number += 1
            mark = len(UTF8_MARK) if not start and line.startswith(UTF8_MARK) else 0
            blank, size = not line[mark:].strip(), len(line)
            while not line.endswith(b"\n") and (line := handle.readline(LONGEST_LINE)):  # of an endless one
                size += len(line)
            if not blank:
                spans.append((len(handles), start + mark, size - line.endswith(b"\n") - mark, number))
            start += size
        handles.append(handle)
    table = np.array(spans, np.int64).reshape(-1, 4)

    def row(index: int) -> Mapping[str, Any]:
        k, start, length, _ = (int(x) for x in table[index])
        if length > LONGEST_LINE:
            raise ValueError(f"a line of {length} bytes, over {LONGEST_LINE}")
        text = os.pread(handles[k].fileno(), length, start)
        if len(text) < length:
            raise ValueError(f"{handles[k].name} was cut short after it was opened")
        try:
            value = parse_json(text.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8: {error.reason} at byte {error.start} of the line") from error
        except ValueError as error:
            raise ValueError(f"not JSON: {error}. One object a line, please.") from error
        if not isinstance(value, dict):
            raise ValueError(f"a {type(value).__name__}, not a JSON object")
        return value

    def place(index: int) -> str:
        return f"{files[table[index, 0]]}, line {table[index, 3]}"

    return Table(len(table), row, tuple(files), place=place)


def csv_rows(file: Path) -> tuple[list[str], Iterator[dict[str, str] | ValueError]]:
    """The header of a CSV or TSV file, and its rows one after the other: all text, an empty cell absent.

    A row that cannot be read is its ValueError. Raises ValueError naming the file for a bad header.
    """
    refuse_pointer(file)
    lines = _csv_lines(file)
    header = next(lines, [])
    if isinstance(header, ValueError) or len(set(header)) < len(header):
        why = header if isinstance(header, ValueError) else "it names a column twice"
        raise ValueError(f"{file}: the header cannot be used: {why}")

    def row(cells: list[str] | ValueError) -> dict[str, str] | ValueError:
        if isinstance(cells, ValueError):
            return cells
        if len(cells) != len(header):
            return ValueError(f"{len(cells)} cells under a header of {len(header)}")
        return {name: cell for name, cell in zip(header, cells, strict=True) if cell}

    return header, (row(cells) for cells in lines if cells)


def _csv_lines(file: Path) -> Iterator[list[str] | ValueError]:
    csv.field_size_limit(LONGEST_LINE)
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
        lines = csv.reader(handle, delimiter="\t" if file.suffix == ".tsv" else ",", strict=True)
        while True:
            try:
                yield next(lines)
            except StopIteration:
                return
            except csv.Error as error:
                yield ValueError(f"not CSV: {error}")


def csv_table(file: Path) -> tuple[Table, list[str]]:
    """Rows of a CSV file in memory, and its header. Raises ValueError as `csv_rows` does."""
    if file.stat().st_size > LARGEST_CSV:
        raise ValueError(f"{file} is over {LARGEST_CSV >> 20} MiB: write a parquet file of it")
    header, found = csv_rows(file)
    rows = list(found)

    def row(index: int) -> Mapping[str, Any]:
        cells = rows[index]
        if isinstance(cells, ValueError):
            raise cells
        return cells

    return Table(len(rows), row, (file,)), header
