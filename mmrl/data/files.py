"""Raw rows of parquet, JSONL and CSV files by random access: no meaning of a column, no image.

A row that cannot be read is an error of its own, raised where that row is asked for, so that one damaged line
or row group costs the rows it holds and no others.
"""

from __future__ import annotations

import csv
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

IN_MEMORY = 1 << 30  # bytes of parquet columns that are kept in memory; more is spilled to a temporary file
SPILL_ROWS = 64  # rows of a batch in the spilled file
BATCH_ROWS = 1024  # rows of a batch in memory
UTF8_MARK = b"\xef\xbb\xbf"  # some editors begin a file with it


class Table(NamedTuple):
    """The rows of some files as one list."""

    length: int
    row: Callable[[int], Mapping[str, Any]]  # ValueError without the row's name if it cannot be read
    files: tuple[Path, ...]  # what it reads, in order
    part: str = ""  # which rows of the files, where it is not all
    paths: bool = True  # whether a row may name an image by its path


class Damaged(NamedTuple):
    """Rows in the place of which a file holds no readable data."""

    num_rows: int
    reason: str


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


def open_parquet(file: Path) -> pq.ParquetFile:
    """Raises ValueError naming the file if its footer cannot be read."""
    try:
        return pq.ParquetFile(file, page_checksum_verification=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{file} is not a readable parquet file: {error}") from error


def parquet_table(files: Sequence[Path], columns: Sequence[Sequence[str]]) -> Table:
    """Rows of parquet files, of each file the columns named.

    Columns up to 1 GiB stay in memory. Larger ones are unpacked once to a temporary file that is mapped into
    memory, because a row of a parquet file costs the decoding of its whole row group.
    """
    tables = [open_parquet(file) for file in files]

    def batches(rows: int) -> Iterator[pa.RecordBatch | Damaged]:
        for table, names in zip(tables, columns, strict=True):
            yield from _batches(table, names, rows)

    size = sum(t.metadata.row_group(g).total_byte_size for t in tables for g in range(t.num_row_groups))
    parts = list(batches(BATCH_ROWS)) if size <= IN_MEMORY else _spill(batches(SPILL_ROWS))
    starts = np.cumsum([0, *(part.num_rows for part in parts)])

    def row(index: int) -> Mapping[str, Any]:
        place = int(np.searchsorted(starts, index, side="right")) - 1
        part = parts[place]
        if isinstance(part, Damaged):
            raise ValueError(f"its part of the file cannot be read: {part.reason}")
        return part.slice(index - int(starts[place]), 1).to_pylist()[0]

    return Table(int(starts[-1]), row, tuple(files))


def _batches(table: pq.ParquetFile, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch | Damaged]:
    """Batches of at most ``rows`` rows; what is left of a row group that cannot be read on is `Damaged`."""
    for group in range(table.num_row_groups):
        left = table.metadata.row_group(group).num_rows
        try:
            for batch in table.iter_batches(batch_size=rows, row_groups=[group], columns=list(columns)):
                if 0 < batch.num_rows <= left:
                    left -= batch.num_rows
                    yield batch
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = str(error)
        else:
            reason = "it ends early"
        if left:
            yield Damaged(left, reason)


def _spill(batches: Iterable[pa.RecordBatch | Damaged]) -> list[pa.RecordBatch | Damaged]:
    """Write batches to temporary files, one for each schema in turn, and map them back into memory."""
    order: list[Damaged | None] = []  # None: the next batch of the files
    parts: list[pa.RecordBatch] = []
    with tempfile.TemporaryDirectory(prefix="mmrl-") as folder:
        writer, schema, files = None, None, 0
        for batch in batches:
            if isinstance(batch, Damaged):
                order.append(batch)
                continue
            if writer is None or batch.schema != schema:
                if writer is not None:
                    writer.close()
                schema, files = batch.schema, files + 1
                writer = pa.ipc.new_file(f"{folder}/{files}.arrow", schema)
            writer.write_batch(batch)
            order.append(None)
        if writer is not None:
            writer.close()
        for k in range(1, files + 1):  # the mapping outlives the name of the file
            reader = pa.ipc.open_file(pa.memory_map(f"{folder}/{k}.arrow"))
            parts += [reader.get_batch(i) for i in range(reader.num_record_batches)]
    written = iter(parts)
    return [next(written) if one is None else one for one in order]


def jsonl_table(files: Sequence[Path]) -> Table:
    """Rows of files with one JSON object a line; blank lines do not count."""
    # Read by position, not mapped into memory: of a mapped file that is cut short, a read kills the process.
    handles: list[BinaryIO] = []
    spans: list[tuple[int, int, int]] = []  # (file, first byte, length) of every line that is not blank
    for file in files:
        handle, start = file.open("rb"), 0
        for line in handle:
            mark = len(UTF8_MARK) if not start and line.startswith(UTF8_MARK) else 0
            if line[mark:].strip():
                spans.append((len(handles), start + mark, len(line.removesuffix(b"\n")) - mark))
            start += len(line)
        handles.append(handle)
    table = np.array(spans, np.int64).reshape(-1, 3)

    def row(index: int) -> Mapping[str, Any]:
        k, start, length = (int(x) for x in table[index])
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

    return Table(len(table), row, tuple(files))


def csv_table(file: Path) -> tuple[Table, list[str]]:
    """Rows of a CSV file with a header, all text, in memory; and the header. An empty cell is absent.

    Raises ValueError naming the file if its header cannot be read.
    """
    rows: list[list[str] | str] = []  # text: why the row cannot be read
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
        lines = csv.reader(handle, strict=True)
        while True:
            try:
                rows.append(next(lines))
            except StopIteration:
                break
            except csv.Error as error:
                rows.append(f"not CSV: {error}")
    header, rows = (rows[0], [row for row in rows[1:] if row]) if rows else ([], [])
    if isinstance(header, str) or len(set(header)) < len(header):
        why = header if isinstance(header, str) else "it names a column twice"
        raise ValueError(f"{file}: the header cannot be used: {why}")

    def row(index: int) -> Mapping[str, Any]:
        cells = rows[index]
        if isinstance(cells, str):
            raise ValueError(cells)
        if len(cells) != len(header):
            raise ValueError(f"{len(cells)} cells under a header of {len(header)}")
        return {name: cell for name, cell in zip(header, cells, strict=True) if cell}

    return Table(len(rows), row, (file,)), list(header)
