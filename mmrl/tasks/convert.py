"""From common public layouts to the schema: entries are read, converted, checked and written in turn."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mmrl.data.rows import sample_of
from mmrl.data.validation import EVERY, SHOWN, reason
from mmrl.data.writing import SCHEMA, check_kind, write_rows
from mmrl.models.images import image_size
from mmrl.models.prompts import IMAGE, check_placeholders
from mmrl.sample import Sample
from mmrl.tasks import convert_choice, convert_coco, convert_llava, convert_questions
from mmrl.tasks.convert_entries import Entry, Images, Options

# Each layout: its entries in a file, and the rows of one. Both raise ValueError.
LAYOUTS: Mapping[
    str, tuple[Callable[[Path], Iterator[Entry]], Callable[[Any, Images, Options], list[dict[str, Any]]]]
] = MappingProxyType(
    {
        "llava": (convert_llava.entries, convert_llava.rows),
        "coco": (convert_coco.entries, convert_coco.rows),
        "choice": (convert_choice.entries, convert_choice.rows),
        "questions": (convert_questions.entries, convert_questions.rows),
    }
)
_COLUMNS = {name: name for name in SCHEMA.names}


@dataclass(frozen=True)
class Converted:
    """What became of a file's entries."""

    entries: int
    rows: int
    empty: int  # entries that are no question of the kind asked for
    broken: tuple[tuple[str, str], ...]  # name and reason


def convert(
    layout: str,
    spec: Path,
    images: Path,
    out: Path,
    options: Options,
    *,
    embed: bool = False,
    max_broken: float = 0.0,
    probe: Callable[[Sample], Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Converted:
    """Write the rows of a file of another layout to ``out``, parquet or JSONL; all or nothing.

    Args:
      layout: a key of `LAYOUTS`.
      spec: the file, or a data set of several (see `mmrl.data.folders.layout`).
      images: where the image paths of its entries start; none may lead out of it.
      options: what to make of an entry.
      embed: put the images into the file, instead of their paths from the folder of ``out``.
      max_broken: the share of entries that may be unusable; they are left out.
      probe: raises ValueError for a row that its verifier cannot grade.
      progress: called now and then with the number of entries looked at.

    Raises ValueError naming entries if more are broken, and for a file that cannot be read or written.
    """
    check_kind(out)
    if embed and out.suffix == ".jsonl":
        raise ValueError(f"{out}: JSONL holds no images; write a .parquet file, or paths")
    if out.exists() and spec.exists() and out.samefile(spec):
        raise ValueError(f"{out} is what is to be converted: write to another file")
    if not images.is_dir():
        raise ValueError(f"the folder of images {images} does not exist")
    read_entries, rows_of = LAYOUTS[layout]
    pictures = Images(images.absolute())
    count, empty = 0, 0
    broken: list[tuple[str, str]] = []

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal count, empty
        for count, (name, entry) in enumerate(read_entries(spec), 1):
            try:
                made = [
                    _finished(row, name, out, pictures, embed, probe)
                    for row in rows_of(_readable(entry), pictures, options)
                ]
            except Exception as error:  # whatever an entry makes a parser raise, that entry is broken
                broken.append((name, reason(error, name)))
                continue
            empty += not made
            if progress and count % EVERY == 0:
                progress(count)
            yield from made
        if len(broken) > max_broken * count:
            raise ValueError(_refusal(spec, broken, count, max_broken))
        if empty + len(broken) == count:
            raise ValueError(f"{spec}: {count} entries, of which none makes a row")

    written = write_rows(out, rows())
    return Converted(entries=count, rows=written, empty=empty, broken=tuple(broken))


def _readable(entry: Any) -> Any:
    if isinstance(entry, Exception):
        raise entry
    if not isinstance(entry, Mapping):
        raise ValueError(f"a {type(entry).__name__}, not an object")
    return entry


def _finished(
    row: dict[str, Any],
    name: str,
    out: Path,
    pictures: Images,
    embed: bool,
    probe: Callable[[Sample], Any] | None,
) -> dict[str, Any]:
    """A row as it is written: checked as it will be when it is read, its images in place."""
    row, sample = _graded(row, name, probe)
    check_placeholders(sample.problem.count(IMAGE), len(sample.images), name)
    for k, image in enumerate(sample.images):
        what = f"{name}, image {k}"
        if isinstance(image, bytes):
            image_size(image, what)
        else:
            pictures.size(image, what)
    written = [_image(image, out.absolute().parent, embed) for image in sample.images]
    return {**row, "answer": sample.answer, "images": written, "origin": name}


def _graded(
    row: dict[str, Any], name: str, probe: Callable[[Sample], Any] | None
) -> tuple[dict[str, Any], Sample]:
    """The row, and its sample, under the first of its verifiers ("number,text") that can grade it."""
    *others, last = (row.get("verifier") or "").split(",")
    for verifier in others:
        sample = sample_of({**row, "verifier": verifier}, _COLUMNS, Path(), name, "")
        with contextlib.suppress(ValueError):
            if probe:
                probe(sample)
            return {**row, "verifier": verifier}, sample
    row = {**row, "verifier": last}
    sample = sample_of(row, _COLUMNS, Path(), name, "")
    if probe:
        probe(sample)
    return row, sample


def _image(image: bytes | str, folder: Path, embed: bool) -> dict[str, Any]:
    if isinstance(image, bytes):
        return {"bytes": image}
    if embed:
        return {"bytes": Path(image).read_bytes()}
    return {"path": os.path.relpath(image, folder)}


def _refusal(spec: Path, broken: list[tuple[str, str]], count: int, max_broken: float) -> str:
    shown = "\n  ".join(f"{name}: {why}" for name, why in broken[:SHOWN])
    return (
        f"{spec}: {len(broken)} of {count} entries cannot be used:\n  {shown}\nMend or remove them, or raise"
        f" the share that may be broken, {max_broken:g}."
    )
