"""Data sets in the public schema, by random access: files, folders of files, image folders, TFDS.

A row has ``problem`` (text with one "<image>" for each image) and ``answer``; it may have ``images`` (a list
of {bytes, path}, of encoded bytes or of paths; or one such image), ``verifier``, ``solution``, ``turns`` (a
list of text), ``facts`` (a JSON object) and ``difficulty`` (a number). Other columns are ignored. This is the
layout of Geometry3K and ViRL39K as EasyR1, PAPO and VPPO read them.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from mmrl import hub
from mmrl.data import tfds
from mmrl.data.columnar import columnar_table, schema_of
from mmrl.data.files import UTF8_MARK, Table, csv_table, jsonl_table
from mmrl.data.folders import Layout, conversion, layout, locate
from mmrl.data.rows import OPTIONAL, PROMPT, REQUIRED, images_of, sample_of
from mmrl.sample import Sample

FILE_NAME = "file_name"  # the column of an image folder that names the image
# Column names that data sets give to questions and answers; the first are those that converters know.
QUESTIONS = ("question", "problem", "query", "text", "prompt")
ANSWERS = ("answer", "answers", "label", "ground_truth")
ROLE_WORDS = {
    "question": ("question", "problem", "prompt", "query", "instruction", "text", "input"),
    "answer": ("answer", "label", "truth", "solution", "target", "output", "response", "gt"),
}
FIRST_ROWS = 100  # of a file whose columns its rows tell


class ColumnSpec(NamedTuple):
    """The columns to look for."""

    names: Mapping[str, str]  # name in the schema -> name in the file
    required: frozenset[str]  # names in the schema


Origin: TypeAlias = tuple[str, Mapping[str, str], str | None, bool]


@dataclass(frozen=True, eq=False)
class Source:
    """A data set, or a view of one: ``source[i]`` reads and checks row i, decoding no image.

    It pickles as its path and the rows chosen: whoever unpickles it opens the files anew.
    """

    name: str
    length: int
    table: Table  # raw rows, under the file's own column names
    columns: Mapping[str, str]  # name in the schema -> name in the file, of the columns there are
    root: Path  # relative image paths start here
    origin: Origin  # the arguments of `read`
    chosen: np.ndarray | None = None  # rows of the files that are used, in order; None: all

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        """Row ``index`` as a `Sample`. Raises ValueError naming the row and what is wrong with it."""
        name = self.id(index)
        try:
            raw = self.table.row(self._row(index))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        required = REQUIRED if self.origin[-1] else PROMPT[:1]
        return sample_of(raw, self.columns, self.root, name, self.name, required)

    def id(self, index: int) -> str:
        """The name of row ``index``, "<source>:<row of the files>": in a view as in the whole."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        return f"{self.name}:{self._row(index)}"

    def place(self, index: int) -> str:
        """The place of row ``index``: a file and its line, of files without lines the row's number from 0."""
        place = self.table.place
        return place(self._row(index)) if place else f"{self.origin[0]}, row {self._row(index)}"

    def choose(self, rows: Sequence[int] | np.ndarray) -> Source:
        """A view of some rows of this source, in the order given; ids stay those of the files.

        Raises ValueError for a row that this source does not have.
        """
        wanted = np.asarray(rows, np.int64).reshape(-1)
        outside = wanted[(wanted < 0) | (wanted >= self.length)]
        if len(outside):
            raise ValueError(f"{self.name}: no row {outside[0]} among {self.length}")
        chosen = wanted if self.chosen is None else self.chosen[wanted]
        return replace(self, length=len(wanted), chosen=chosen)

    def _row(self, index: int) -> int:
        return int(index if self.chosen is None else self.chosen[index])

    def __reduce__(self) -> tuple[Callable[..., Source], tuple[Any, ...]]:
        return _reopen, (self.origin, self.table.length, self.name, self.length, self.chosen)


def _reopen(origin: Origin, rows: int, name: str, length: int, chosen: np.ndarray | None) -> Source:
    source = read(*origin)
    if len(source) != rows:
        raise ValueError(f"{origin[0]} has {len(source)} rows, but had {rows}: leave data as it is in a run")
    return replace(source, name=name, length=length, chosen=chosen)


def read(
    spec: str | Path,
    columns: Mapping[str, str] | None = None,
    image_root: str | Path | None = None,
    answered: bool = True,
) -> Source:
    """Open a data set.

    Args:
      spec: one of
        a parquet or JSONL file, or a directory of files of one of these kinds;
        a directory with files named after splits ("train-00000-of-00002.parquet"), in it or in its folder
        "data", or with a folder a split; "DIR:train" picks a split;
        an image folder: a directory with metadata.jsonl, .csv or .parquet, whose "file_name" is the image;
        a data set of the hub, "ORG/NAME", "ORG/NAME@REVISION" or "ORG/NAME@REVISION:train" (`mmrl.hub`);
        a directory that TFDS wrote, or "tfds:NAME[:VERSION][:SPLIT]" for one in TFDS's data directory.
      columns: maps names of the schema to the file's names where they differ: ``{"images": "image"}``.
      image_root: where relative image paths start; by default the folder of the file.
      answered: False for prompts alone, of which only ``problem`` and ``images`` are read.

    Raises ValueError naming the file and the fix: missing, empty or unknown kind of file, missing column,
    no split picked, a data set of the hub that cannot be fetched. Nothing else is ever downloaded.
    """
    columns = dict(columns or {})
    unknown = set(columns) - {*REQUIRED, *OPTIONAL}
    if unknown:
        raise ValueError(f"columns: {min(unknown)!r} is not in the schema {[*REQUIRED, *OPTIONAL]}")
    names = (*REQUIRED, *OPTIONAL) if answered else PROMPT
    required = {*(REQUIRED if answered else PROMPT[:1]), *columns} & {*names}
    wanted = ColumnSpec({name: columns.get(name, name) for name in names}, frozenset(required))
    if str(spec).startswith(tfds.PREFIX):
        title, split = tfds.parse(str(spec))
        name, where, table, found = _read_tfds(tfds.named_builder(title), split, wanted)
        base = Path.cwd()
    else:
        path, split = locate(hub.local(str(spec), "dataset"))
        lies, base = layout(path, split), path
        if lies.kind == "tfds":
            name, where, table, found = _read_tfds(tfds.directory_builder(path), split, wanted)
        else:
            name, where = (f"{what}:{split}" if split else str(what) for what in (hub.title(path), path))
            table, found = READERS[lies.kind](lies, wanted)
            base = lies.root
    if not table.length:
        raise ValueError(f"{where} has no rows")
    root = Path(image_root).absolute() if image_root is not None else base
    origin = (where, columns, None if image_root is None else str(root), answered)
    return Source(name, table.length, table, found, root, origin)


def mixture(text: str, key: str = "config.data.train") -> list[tuple[str, float | None]]:
    """The data sets of "a.parquet@0.3,tfds:x:train@0.7" with their weights; None where none is given.

    A path may hold "@" if a weight follows it, and no comma. "ORG/NAME@v1" is a revision of what is on the
    hub (`mmrl.hub`), "ORG/NAME@2" a weight, and "ORG/NAME@v1@2" has both. ``key`` names the text in
    messages.

    Raises ValueError for an empty or repeated part, a weight that is not a positive finite number, or weights
    for some parts only.
    """
    parts: list[tuple[str, float | None]] = []
    for part in (part.strip() for part in text.split(",")):
        spec, at, after = part.rpartition("@")
        if at and not re.fullmatch(r"[\d.e+-]+", after) and hub.reference(part):
            spec, at = part, ""
        spec, weight = (spec, _weight(after, key, part)) if at else (part, None)
        if not spec:
            raise ValueError(f"{key}={text!r}: a part is empty; write PATH, or PATH@WEIGHT,PATH@WEIGHT")
        if spec in (other for other, _ in parts):
            raise ValueError(f"{key}={text!r}: {spec} stands twice; give it once, with the weight of both")
        parts.append((spec, weight))
    without = [spec for spec, weight in parts if weight is None]
    if 0 < len(without) < len(parts):
        raise ValueError(f"{key}={text!r}: {without[0]} has no weight; give all parts one, or none")
    return parts


def _weight(text: str, key: str, part: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not (0 < weight < math.inf):
        raise ValueError(
            f"{key}, {part!r}: the weight {text!r} is not a positive number; after a path that holds '@',"
            " write one all the same"
        )
    return weight


def fingerprint(source: Source) -> str:
    """SHA-256, in hexadecimal, of what a source reads; equal for a copy elsewhere, whatever its view.

    Of data files all bytes count, and their order; of images that rows name by a path, that path (which the
    file holds) and the size of the image's file, but not its content.
    """
    table = source.table
    digest = hashlib.sha256(json.dumps([table.length, table.part, sorted(source.columns.items())]).encode())
    for file in table.files:
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    for row in range(table.length if table.paths else 0):
        digest.update(f"{_image_sizes(source, row)}\n".encode())
    return digest.hexdigest()


def _image_sizes(source: Source, row: int) -> list[int]:
    """Bytes of the images that a row of the files names by a path; -1 for one that is not there."""
    try:
        images = images_of(source.table.row(row).get(source.columns.get("images", "")), source.root, "")
    except ValueError:  # a broken row, whose bytes count already
        return []
    sizes = []
    for path in (image for image in images if isinstance(image, str)):
        try:
            sizes.append(os.stat(path).st_size)
        except (OSError, ValueError):
            sizes.append(-1)
    return sizes


def _read_columnar(lies: Layout, wanted: ColumnSpec) -> tuple[Table, dict[str, str]]:
    present = [_columns(schema_of(file).names, file, lies, wanted) for file in lies.files]
    table = columnar_table(lies.files, [list(dict.fromkeys(part.values())) for part in present])
    return table, {name: column for part in present for name, column in part.items()}


def _read_jsonl(lies: Layout, wanted: ColumnSpec) -> tuple[Table, dict[str, str]]:
    """A row may leave columns out or be broken, so the first ones tell together which columns there are."""
    table = jsonl_table(lies.files)
    seen: dict[str, None] = {}
    problems: list[str] = []
    for index in range(min(table.length, FIRST_ROWS)):
        try:
            seen |= dict.fromkeys(table.row(index))
        except ValueError as error:
            problems.append(f"{table.place(index) if table.place else lies.files[0]}: {error}")
    if problems and not seen:
        raise ValueError(f"{problems[0]}{_list_hint(lies)}")
    for name in OPTIONAL:  # may come in any later row, but for the image of an image folder
        if name != "images" or not lies.described:
            seen.setdefault(wanted.names.get(name, name))
    return table, _columns(list(seen), lies.files[0], lies, wanted) if table.length else {}


def _list_hint(lies: Layout) -> str:
    """A hint for a file that is one JSON list of rows."""
    with lies.files[0].open("rb") as handle:
        begins = handle.read(100).removeprefix(UTF8_MARK).strip()
    is_list = lies.files[0].suffix == ".json" and begins.startswith(b"[")
    return f" The file is a list; make rows of it: {conversion(lies.files[0], lies.root)}" if is_list else ""


def _read_csv(lies: Layout, wanted: ColumnSpec) -> tuple[Table, dict[str, str]]:
    table, there = csv_table(lies.files[0])
    return table, _columns(there, lies.files[0], lies, wanted)


def _read_tfds(builder: Any, split: str, wanted: ColumnSpec) -> tuple[str, str, Table, dict[str, str]]:
    """Its name and its directory, both with the split, its rows and their columns."""
    split = tfds.choose_split(builder, split)
    directory = Path(builder.data_dir)
    found = _columns(tfds.feature_names(builder), directory, Layout("tfds", (), directory), wanted)
    table = tfds.tfds_table(builder, split, found)
    return f"{builder.info.name}:{split}", f"{directory}:{split}", table, found


READERS: Mapping[str, Callable[[Layout, ColumnSpec], tuple[Table, dict[str, str]]]] = {
    "parquet": _read_columnar,
    "arrow": _read_columnar,
    "jsonl": _read_jsonl,
    "csv": _read_csv,
}


def _columns(there: Sequence[str], file: Path, lies: Layout, wanted: ColumnSpec) -> dict[str, str]:
    """The columns to read of those that are ``there``, by their names in the schema.

    Raises ValueError if a required one, or one that the caller named, is not.
    """
    found = dict(wanted.names)
    if lies.described and "images" not in (*wanted.required, *there):
        found["images"] = FILE_NAME
    for name, column in found.items():
        if column not in there and name in wanted.required:
            near = difflib.get_close_matches(column, there, n=1, cutoff=0.0)
            hint = f" The nearest is {near[0]!r}." if near else ""
            fix = "" if lies.kind == "tfds" else f" Rename it, or: {_conversion(there, file, lies)}"
            raise ValueError(f"{file}: no column {column!r}.{hint} It has {list(there)}.{fix}")
    return {name: column for name, column in found.items() if column in there}


def _conversion(there: Sequence[str], file: Path, lies: Layout) -> str:
    """The command that makes rows of a file whose columns are called otherwise."""
    layout = "questions"
    if {"conversations", "messages"} & set(there):
        layout = "llava"
    elif "bbox" in there or {"images", "annotations", "categories"} <= set(there):
        layout = "coco"
    roles: dict[str, str] = {}
    for role, names in (("question", QUESTIONS), ("answer", ANSWERS)) if layout == "questions" else ():
        if not set(names) & set(there):
            free = [name for name in there if name not in roles.values()]
            near = [name for name in free if any(word in name.lower() for word in ROLE_WORDS[role])]
            near = near or difflib.get_close_matches(role, free, n=1, cutoff=0.0)
            roles |= {role: near[0]} if near else {}
    if lies.described:
        roles["images"] = FILE_NAME
    return conversion(file, lies.root, layout, ",".join(f"{role}={name}" for role, name in roles.items()))
