"""Data sets in the public schema, by random access.

A row has ``problem`` (text with one "<image>" for each image) and ``answer``; it may have ``images`` (a list
of {bytes, path}, of encoded bytes or of paths; or one such image), ``verifier``, ``solution``, ``turns`` (a
list of text) and ``facts`` (a JSON object). Other columns are ignored. This is the layout of Geometry3K and
ViRL39K as EasyR1, PAPO and VPPO read them.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmrl.data.files import Table, jsonl_table, open_parquet, parquet_table, parse_json
from mmrl.sample import Sample

REQUIRED = ("problem", "answer")
OPTIONAL = ("images", "verifier", "solution", "turns", "facts")
SUFFIXES = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
FIRST_ROWS = 100  # of a file whose columns its rows tell


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
    origin: tuple[str, Mapping[str, str], str | None]  # the arguments of `read`
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
        return _sample(raw, self, name)

    def id(self, index: int) -> str:
        """The name of row ``index``, "<source>:<row of the files>": in a view as in the whole."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        return f"{self.name}:{self._row(index)}"

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
        return _reopened, (self.origin, self.table.length, self.name, self.length, self.chosen)


def _reopened(
    origin: tuple[str, Mapping[str, str], str | None],
    rows: int,
    name: str,
    length: int,
    chosen: np.ndarray | None,
) -> Source:
    source = read(*origin)
    if len(source) != rows:
        raise ValueError(f"{origin[0]} has {len(source)} rows, but had {rows}: leave data as it is in a run")
    return replace(source, name=name, length=length, chosen=chosen)


def read(
    spec: str | Path, columns: Mapping[str, str] | None = None, image_root: str | Path | None = None
) -> Source:
    """Open a parquet or JSONL file, or a directory of either.

    Args: ``columns`` maps names of the schema to the file's names where they differ, e.g.
    ``{"images": "image"}``; ``image_root`` is where relative image paths start (default: the file's folder).

    Raises ValueError naming the file and the mend: missing, empty or unknown kind of file, missing column.
    """
    path, columns = Path(spec).absolute(), dict(columns or {})
    unknown = set(columns) - {*REQUIRED, *OPTIONAL}
    if unknown:
        raise ValueError(f"columns: {min(unknown)!r} is not in the schema {[*REQUIRED, *OPTIONAL]}")
    files, kind = _files(path)
    wanted = {name: columns.get(name, name) for name in (*REQUIRED, *OPTIONAL)}
    table, found = (_read_parquet if kind == "parquet" else _read_jsonl)(files, wanted, columns)
    if not len(table.files) or not table.length:
        raise ValueError(f"{path} has no rows")
    root = Path(image_root).absolute() if image_root is not None else path if path.is_dir() else path.parent
    origin = (str(path), columns, None if image_root is None else str(root))
    return Source(path.name, table.length, table, found, root, origin)


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


def _read_parquet(
    files: Sequence[Path], wanted: Mapping[str, str], named: Mapping[str, str]
) -> tuple[Table, dict[str, str]]:
    present = [_present(wanted, named, open_parquet(file).schema_arrow.names, file) for file in files]
    table = parquet_table(files, [list(dict.fromkeys(columns.values())) for columns in present])
    return table, {name: column for part in present for name, column in part.items()}


def _read_jsonl(
    files: Sequence[Path], wanted: Mapping[str, str], named: Mapping[str, str]
) -> tuple[Table, dict[str, str]]:
    """A row may leave columns out or be broken, so the first ones tell together which columns there are."""
    table = jsonl_table(files)
    seen: dict[str, None] = {}
    problems: list[str] = []
    for index in range(min(table.length, FIRST_ROWS)):
        try:
            seen |= dict.fromkeys(table.row(index))
        except ValueError as error:
            problems.append(f"row {index}: {error}")
    if problems and not seen:
        raise ValueError(f"{files[0]}: {problems[0]}")
    if table.length:
        columns = {name: wanted[name] for name in REQUIRED}
        _present(columns, {k: v for k, v in named.items() if k in REQUIRED}, list(seen), files[0])
    return table, dict(wanted)


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


def _sample(raw: Mapping[str, Any], source: Source, name: str) -> Sample:
    value: dict[str, Any] = {key: raw.get(column) for key, column in source.columns.items()}
    for key in REQUIRED:
        if value.get(key) is None:
            raise ValueError(f"{name}: column {source.columns[key]!r} is absent or null")
    value["answer"] = _answer(value["answer"], name)
    for key in ("problem", "answer", "verifier", "solution"):
        if not isinstance(value.get(key), str | None):
            raise ValueError(f"{name}: {key} is a {type(value[key]).__name__}, not text")
        _check_text(value.get(key) or "", key, name)
    turns = value.get("turns") or []
    if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
        raise ValueError(f"{name}: turns is not a list of text")
    for turn in turns:
        _check_text(turn, "turns", name)
    verifier = value.get("verifier")
    return Sample(
        id=name,
        problem=value["problem"],
        answer=value["answer"],
        images=_images(value.get("images"), source.root, name),
        **({"verifier": verifier} if verifier else {}),
        solution=value.get("solution"),
        turns=tuple(turns),
        facts=_facts(value.get("facts"), name),
        source=source.name,
    )


def _answer(value: Any, name: str) -> Any:
    """A number as text; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}: the answer is {value}, not a number to compare with")
    try:
        return str(value)
    except ValueError as error:  # Python writes no whole number of over 4300 digits
        raise ValueError(f"{name}: the answer is a number too long to write") from error


def _facts(value: Any, name: str) -> dict[str, Any]:
    facts = value or {}
    try:
        facts = parse_json(facts) if isinstance(facts, str) else facts
    except ValueError as error:
        raise ValueError(f"{name}: facts is not JSON: {error}") from error
    if not isinstance(facts, dict):
        raise ValueError(f"{name}: facts is a {type(facts).__name__}, not an object")
    try:
        text = json.dumps(facts, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name}: facts holds what JSON has no word for: {error}") from error
    _check_text(text, "facts", name)
    return facts


def _check_text(text: str, key: str, name: str) -> None:
    """Half of a surrogate pair is no text: neither a tokenizer nor a file takes it."""
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: {key} is not valid Unicode at character {error.start}") from error


def _images(value: Any, root: Path, name: str) -> tuple[bytes | str, ...]:
    """Images of a row as encoded bytes or absolute paths; one image may stand without a list."""
    items = value if isinstance(value, list) else [] if value is None else [value]
    images: list[bytes | str] = []
    for k, item in enumerate(items):
        if isinstance(item, dict):
            item = item.get("bytes") or item.get("path")
        if isinstance(item, str) and item:
            _check_text(item, f"the path of image {k}", name)
            images.append(str(root / item))
        elif isinstance(item, bytes) and item:
            images.append(item)
        else:
            raise ValueError(f"{name}, image {k}: neither bytes nor a path")
    return tuple(images)
