"""Rows in the public schema to a file written atomically."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmrl.atomic import atomic_file

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
SCHEMA = pa.schema(
    {
        "problem": pa.string(),
        "answer": pa.string(),
        "images": pa.list_(IMAGE),
        "verifier": pa.string(),
        "solution": pa.string(),
        "facts": pa.string(),
        "kind": pa.string(),
        "origin": pa.string(),
    }
)
GROUP_ROWS = 1024  # rows of a row group, the unit that a damaged byte costs
GROUP_BYTES = 64 << 20  # of its images, which are all in memory until it is written
KINDS = (".parquet", ".jsonl")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows of `SCHEMA` (``facts`` an object; ``kind`` and ``origin`` are for the reader) as they come.

    A column that a row leaves out is null, in JSONL absent. If ``rows`` raises, nothing is left behind.

    Returns: how many there were.

    Raises ValueError for a kind of file that is not written, an image's bytes in JSONL, or no row at all.
    """
    check_kind(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as part:
        written = (write_parquet if path.suffix == ".parquet" else _write_jsonl)(part, rows)
        if not written:
            raise ValueError(f"there is no row to write to {path}")
    return written


def check_kind(path: Path) -> None:
    """Raises ValueError for a file of a kind that is not written."""
    if path.suffix not in KINDS:
        raise ValueError(f"{path}: data is written as {' or '.join(KINDS)}; let its name end so")


def write_parquet(path: Path, rows: Iterable[Mapping[str, Any]], schema: pa.Schema = SCHEMA) -> int:
    """Write rows as they come, with checksums, so that a reader tells damage from data.

    ``facts`` may be an object. Returns how many rows there were.
    """
    written = 0
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for group in _groups(rows):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
            written += len(group)
    return written


def _groups(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        group.append(
            {**row, "facts": json.dumps(row["facts"])} if isinstance(row.get("facts"), dict) else {**row}
        )
        size += sum(len(image.get("bytes") or b"") for image in row.get("images") or ())
        if len(group) == GROUP_ROWS or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    written = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            images = row.get("images") or ()
            if any(image.get("bytes") for image in images):
                raise ValueError("JSONL holds no images: write a .parquet file")
            paths = {"images": [image["path"] for image in images]} if images else {}
            file.write(json.dumps({**row, **paths}, ensure_ascii=False) + "\n")
            written += 1
    return written
