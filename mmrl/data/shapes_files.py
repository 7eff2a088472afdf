"""The shapes world on disk: parquet in the public schema."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmrl.atomic import atomic_file
from mmrl.data.shapes import LEVELS, PRIOR, SPLITS, example
from mmrl.data.shapes_questions import KINDS
from mmrl.data.writing import IMAGE, write_parquet

SCHEMA = pa.schema(
    {
        "problem": pa.string(),
        "answer": pa.string(),
        "images": pa.list_(IMAGE),
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
    with ExitStack() as all_or_none:
        for split, size in sizes.items():
            part = all_or_none.enter_context(atomic_file(paths[split]))
            write_parquet(part, (row(split, index) for index in range(size)), schema)
    return paths
