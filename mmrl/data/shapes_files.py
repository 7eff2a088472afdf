"""The shapes world on disk: parquet in the public schema, and a picture to look at."""

import io
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from mmrl.data.shapes import LEVELS, PRIOR, SPLITS, example
from mmrl.data.shapes_questions import KINDS

SCHEMA = pa.schema(
    {
        "problem": pa.string(),
        "answer": pa.string(),
        "images": pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        "verifier": pa.string(),
        "solution": pa.string(),
        "facts": pa.string(),
        "kind": pa.string(),
        "difficulty": pa.int32(),
    }
)


def write_world(
    directory: Path,
    seed: int,
    *,
    cold_start: int,
    train: int,
    heldout: int,
    prior: float = PRIOR,
    kinds: Sequence[str] = tuple(KINDS),
    levels: Sequence[int] = LEVELS,
) -> dict[str, Path]:
    """Write ``{split}.parquet`` for each split, of the given numbers of examples; all or none of them appear.

    Returns:
        The path of each split's file.

    Raises:
        ValueError: a size below 1, or what ``example`` refuses.
    """
    return write_splits(
        directory,
        dict(zip(SPLITS, (cold_start, train, heldout), strict=True)),
        lambda split, index: example(seed, split, index, prior=prior, kinds=kinds, levels=levels),
        SCHEMA,
        "shapes world",
    )


def write_splits(
    directory: Path,
    sizes: Mapping[str, int],
    row: Callable[[str, int], dict[str, Any]],
    schema: pa.Schema,
    world: str,
) -> dict[str, Path]:
    """Write ``{split}.parquet`` of ``row(split, 0..size - 1)`` for each split; all or none of them appear.

    Returns:
        The path of each split's file.

    Raises:
        ValueError: a size below 1.
    """
    for split, size in sizes.items():
        if size < 1:
            raise ValueError(f"{world}: {split} has {size} examples; give at least 1")
    directory.mkdir(parents=True, exist_ok=True)
    paths = {split: directory / f"{split}.parquet" for split in sizes}
    partial = {split: directory / f".{split}.parquet.{os.getpid()}" for split in sizes}
    try:
        for split, size in sizes.items():
            table = pa.Table.from_pylist([row(split, index) for index in range(size)], schema=schema)
            pq.write_table(
                table, partial[split], compression="zstd", row_group_size=1024, write_page_checksum=True
            )
        for split in sizes:
            os.replace(partial[split], paths[split])
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)
    return paths


def contact_sheet(records: Sequence[dict[str, Any]], columns: int = 6) -> Image.Image:
    """A picture of records side by side: image, question and ideal response, for people."""
    wide, high, scale = 250, 310, 2
    rows = -(-len(records) // columns)
    sheet = Image.new("RGB", (wide * columns, high * rows), "black")
    pen = ImageDraw.Draw(sheet)
    for i, record in enumerate(records):
        left, top = wide * (i % columns) + 8, high * (i // columns) + 8
        with Image.open(io.BytesIO(record["images"][0]["bytes"])) as opened:
            picture = opened.convert("RGB")
        size = (picture.width * scale, picture.height * scale)
        sheet.paste(picture.resize(size, Image.Resampling.NEAREST), (left, top))
        words = (record["problem"].replace("<image>", ""), record["solution"])
        pen.text((left, top + 232), "\n".join(textwrap.fill(line, 38) for line in words), fill="white")
    return sheet
