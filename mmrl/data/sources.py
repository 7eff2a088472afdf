"""Rows of parquet and JSONL files in the public schema, by random access.

A row has ``problem`` (text with one "<image>" for each image) and ``answer``; it may have ``images`` (a list
of {bytes, path}, of encoded bytes or of paths; or one such image), ``verifier``, ``solution``, ``turns`` (a
list of text) and ``facts`` (a JSON object). Other columns are ignored. This is the layout of Geometry3K and
ViRL39K as EasyR1, PAPO and VPPO read them.
"""

from __future__ import annotations

import difflib
import json
import mmap
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmrl.sample import Sample

REQUIRED = ("problem", "answer")
OPTIONAL = ("images", "verifier", "solution", "turns", "facts")
SUFFIXES = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
IN_MEMORY = 1 << 30  # bytes of parquet columns that are kept in memory; more is spilled to a temporary file
SPILL_ROWS = 64  # rows of a batch in the spilled file


@dataclass(frozen=True)
class Source:
    """A data set: ``source[i]`` reads and checks row i, decoding no image."""

    name: str
    length: int
    row: Callable[[int], Mapping[str, Any]]  # the raw row, under the file's own column names
    columns: Mapping[str, str]  # name in the schema -> name in the file, of the columns there are
    root: Path  # relative image paths start here

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        """Row ``index`` as a `Sample`. Raises ValueError naming the row and what is wrong with it."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        raw = self.row(index)
        return _sample(raw, self, f"{self.name}:{index}")


def read(
    path: str | Path, columns: Mapping[str, str] | None = None, image_root: str | Path | None = None
) -> Source:
    """Open a parquet or JSONL file, or a directory of either.

    Args: ``columns`` maps names of the schema to the file's names where they differ, e.g.
    ``{"images": "image"}``; ``image_root`` is where relative image paths start (default: the file's folder).

    Parquet columns up to 1 GiB stay in memory. Larger ones are unpacked once to a temporary file that is
    mapped into memory, because a row of a parquet file costs the decoding of its whole row group.

    Raises ValueError naming the file and the mend: missing, empty or unknown kind of file, missing column.
    """
    path, columns = Path(path), dict(columns or {})
    unknown = set(columns) - {*REQUIRED, *OPTIONAL}
    if unknown:
        raise ValueError(f"columns: {min(unknown)!r} is not in the schema {[*REQUIRED, *OPTIONAL]}")
    files, kind = _files(path)
    wanted = {name: columns.get(name, name) for name in (*REQUIRED, *OPTIONAL)}
    if kind == "parquet":
        tables = [_open_parquet(file) for file in files]
        present = [
            _present(wanted, columns, t.schema_arrow.names, f) for t, f in zip(tables, files, strict=True)
        ]
        length, row = _parquet_rows(tables, present)
    else:
        length, row = _jsonl_rows(files)
        present = [wanted]  # a row may leave optional columns out, so the first does not tell
        if length:
            _present({name: wanted[name] for name in REQUIRED}, columns, list(row(0)), files[0])
    if not length:
        raise ValueError(f"{path} has no rows")
    found = {name: column for part in present for name, column in part.items()}
    root = Path(image_root) if image_root is not None else (path if path.is_dir() else path.parent)
    return Source(path.name, length, row, found, root)


def _files(path: Path) -> tuple[list[Path], str]:
    """The data files at a path, and their kind."""
    if not path.exists():
        raise ValueError(f"data file {path} does not exist")
    files = sorted(f for f in path.iterdir() if f.suffix in SUFFIXES) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"directory {path} holds no file ending in {', '.join(SUFFIXES)}")
    kinds = {SUFFIXES.get(f.suffix) for f in files}
    kind = kinds.pop()
    if kind is None:
        raise ValueError(f"{path}: not a parquet or JSONL file; its name must end in {', '.join(SUFFIXES)}")
    if kinds:
        raise ValueError(f"directory {path} holds parquet and JSONL files; name one file, or split them")
    return files, kind


def _present(
    wanted: Mapping[str, str], named: Mapping[str, str], there: Sequence[str], file: Path
) -> dict[str, str]:
    """The wanted columns a file has. Required ones, and those named by the caller, must be there."""
    for name, column in wanted.items():
        if column not in there and (name in REQUIRED or name in named):
            near = difflib.get_close_matches(column, there, n=1, cutoff=0.0)
            hint = (
                f' The nearest is {near[0]!r}: map it by columns={{"{name}": "{near[0]}"}}.' if near else ""
            )
            raise ValueError(f"{file}: no column {column!r}.{hint} It has {list(there)}.")
    return {name: column for name, column in wanted.items() if column in there}


def _open_parquet(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} is not a readable parquet file: {error}") from error


def _parquet_rows(
    tables: Sequence[pq.ParquetFile], present: Sequence[Mapping[str, str]]
) -> tuple[int, Callable[[int], Mapping[str, Any]]]:
    def batches(rows: int) -> Iterable[pa.RecordBatch]:
        for table, columns in zip(tables, present, strict=True):
            yield from table.iter_batches(batch_size=rows, columns=list(dict.fromkeys(columns.values())))

    size = sum(t.metadata.row_group(g).total_byte_size for t in tables for g in range(t.num_row_groups))
    parts = list(batches(1024)) if size <= IN_MEMORY else _spill(batches(SPILL_ROWS))
    starts = np.cumsum([0, *(part.num_rows for part in parts)])

    def row(index: int) -> Mapping[str, Any]:
        part = int(np.searchsorted(starts, index, side="right")) - 1
        return parts[part].slice(index - int(starts[part]), 1).to_pylist()[0]

    return int(starts[-1]), row


def _spill(batches: Iterable[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """Write batches to temporary files, one for each schema in turn, and map them back into memory."""
    parts: list[pa.RecordBatch] = []
    with tempfile.TemporaryDirectory(prefix="mmrl-") as folder:
        writer, schema, files = None, None, 0
        for batch in batches:
            if writer is None or batch.schema != schema:
                if writer is not None:
                    writer.close()
                schema, files = batch.schema, files + 1
                writer = pa.ipc.new_file(f"{folder}/{files}.arrow", schema)
            writer.write_batch(batch)
        if writer is not None:
            writer.close()
        for k in range(1, files + 1):  # the mapping outlives the name of the file
            reader = pa.ipc.open_file(pa.memory_map(f"{folder}/{k}.arrow"))
            parts += [reader.get_batch(i) for i in range(reader.num_record_batches)]
    return parts


def _jsonl_rows(files: Sequence[Path]) -> tuple[int, Callable[[int], Mapping[str, Any]]]:
    maps: list[tuple[Path, mmap.mmap]] = []
    spans: list[tuple[int, int, int]] = []  # (file, first byte, end) of every line that is not blank
    for file in files:
        if file.stat().st_size == 0:
            continue
        with file.open("rb") as handle:
            data = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        start = 0
        while start < len(data):
            newline = data.find(b"\n", start)
            end = len(data) if newline < 0 else newline
            if data[start:end].strip():
                spans.append((len(maps), start, end))
            start = end + 1
        maps.append((file, data))
    table = np.array(spans, np.int64).reshape(-1, 3)

    def row(index: int) -> Mapping[str, Any]:
        k, start, end = (int(x) for x in table[index])
        file, data = maps[k]
        try:
            value = json.loads(data[start:end])
        except ValueError as error:
            raise ValueError(f"{file}, row {index}: not JSON: {error}. One object a line, please.") from error
        if not isinstance(value, dict):
            raise ValueError(f"{file}, row {index}: a {type(value).__name__}, not a JSON object")
        return value

    return len(table), row


def _sample(raw: Mapping[str, Any], source: Source, name: str) -> Sample:
    value: dict[str, Any] = {key: raw.get(column) for key, column in source.columns.items()}
    for key in REQUIRED:
        if value.get(key) is None:
            raise ValueError(f"{name}: column {source.columns[key]!r} is absent or null")
    if isinstance(value["answer"], int | float):
        value["answer"] = str(value["answer"])
    for key in ("problem", "answer", "verifier", "solution"):
        if not isinstance(value.get(key), str | None):
            raise ValueError(f"{name}: {key} is a {type(value[key]).__name__}, not text")
    turns = value.get("turns") or []
    if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
        raise ValueError(f"{name}: turns is not a list of text")
    facts = value.get("facts") or {}
    try:
        facts = json.loads(facts) if isinstance(facts, str) else facts
    except ValueError as error:
        raise ValueError(f"{name}: facts is not JSON: {error}") from error
    if not isinstance(facts, dict):
        raise ValueError(f"{name}: facts is a {type(facts).__name__}, not an object")
    verifier = value.get("verifier")
    return Sample(
        id=name,
        problem=value["problem"],
        answer=value["answer"],
        images=_images(value.get("images"), source.root, name),
        **({"verifier": verifier} if verifier else {}),
        solution=value.get("solution"),
        turns=tuple(turns),
        facts=facts,
        source=source.name,
    )


def _images(value: Any, root: Path, name: str) -> tuple[bytes | str, ...]:
    """Images of a row as encoded bytes or absolute paths; one image may stand without a list."""
    items = value if isinstance(value, list) else [] if value is None else [value]
    images: list[bytes | str] = []
    for k, item in enumerate(items):
        if isinstance(item, dict):
            item = item.get("bytes") or item.get("path")
        if isinstance(item, str) and item:
            images.append(str(root / item))
        elif isinstance(item, bytes) and item:
            images.append(item)
        else:
            raise ValueError(f"{name}, image {k}: neither bytes nor a path")
    return tuple(images)
