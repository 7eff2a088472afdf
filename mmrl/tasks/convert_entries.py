"""What the converters of all layouts share: reading the entries of a file, and finding their images."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from mmrl.data.columnar import columnar_table, schema_of
from mmrl.data.files import Table, jsonl_table, parse_json
from mmrl.data.folders import layout, located
from mmrl.data.rows import LONGEST_PATH
from mmrl.models.images import image_size
from mmrl.terminal import one_line

Entry = tuple[str, Any]  # its name, and the entry, or the ValueError that it cannot be read by
DELIMITERS = {".csv": ",", ".tsv": "\t"}
_ADDRESS = re.compile(r"\s*data:[\w/.+-]*(?:;[\w=.-]+)*?;base64,", re.ASCII)
_URL_SAFE = str.maketrans("-_", "+/")
# How images begin in base 64: PNG, JPEG, GIF, WebP, BMP, TIFF, and the box of JPEG 2000 and AVIF.
_BEGINNINGS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "Qk", "SUkqA", "TU0AK", "AAAA")
CSV_BLOCK = 64 << 20  # bytes; a line must fit in one


@dataclass(frozen=True)
class Options:
    """What to make of entries."""

    verifier: str = "text"  # of conversations and questions; of several, the first that can grade a row
    turns: str = "each"  # of a conversation: a row for "each" question, or for the "first" only
    task: str = "detect"  # of boxes: "detect" all objects of an image, or "ground" the only one of a category
    coordinates: str = "pixels"  # that answers are to be in, a key of ``convert_coco.UNITS``
    answer: str = ""  # how a choice is given: "letter", "index" (from 0), "text"; "": what fits it
    columns: Mapping[str, str] = field(default_factory=dict)  # of questions: a role, and what plays it
    where: tuple[tuple[str, tuple[str, ...]], ...] = ()  # only entries with one of these values in a column
    facts: Mapping[str, Any] = field(default_factory=dict)  # for every question
    ask: str = ""  # the question of entries that have none, as it stands in their image
    say: Mapping[str, str] = field(default_factory=dict)  # answers in other words: {"0": "no"}
    agreed: int = 1  # of several answers, how many people must have given one for it to be right


@dataclass(frozen=True)
class Images:
    """A folder of images."""

    folder: Path
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # (height, width) of those looked at

    def path(self, name: Any) -> str:
        """The file that an entry names. Raises ValueError if it is not in the folder."""
        if not isinstance(name, str) or not name or "\0" in name:
            raise ValueError(f"the image is {str(name)[:80]!r}, not a path")
        path = os.path.normpath(self.folder / name)
        if not Path(path).is_relative_to(self.folder):
            raise ValueError(f"the image {name[:200]!r} is not in the folder of images")
        if not os.path.isfile(path):
            raise ValueError(f"there is no image {name[:200]!r} in the folder of images")
        return path

    def picture(self, image: Any) -> bytes | str:
        """An image as entries have it: a path, encoded bytes, base 64, or an object of bytes or path.

        Raises ValueError if it is none of these.
        """
        if isinstance(image, Mapping):
            image = image.get("bytes") or image.get("path") or image.get("url")
        if isinstance(image, bytes):
            return image
        if isinstance(image, str) and not (len(image) <= LONGEST_PATH and self.holds(image)):
            encoded = _from_base_64(image)
            if encoded is not None:
                return encoded
        return self.path(image)

    def holds(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return "\0" not in name and os.path.isfile(self.folder / name)

    def size(self, path: str, name: str) -> tuple[int, int]:
        """(height, width) of an image, from its header. Raises ValueError naming ``name``."""
        if path not in self.sizes:
            self.sizes[path] = image_size(path, name)
        return self.sizes[path]


def _from_base_64(text: str) -> bytes | None:
    """The image that a text is, of either alphabet, with white space and a "data:" before it or not.

    None if it rather is a path. Raises ValueError if it is a damaged image.
    """
    address = _ADDRESS.match(text)
    letters = "".join(text[address.end() if address else 0 :].split()).translate(_URL_SAFE).rstrip("=")
    begins = letters.startswith(_BEGINNINGS) and "." not in text  # unlike the name of a file
    sure = address is not None or len(text) > LONGEST_PATH or begins
    try:
        image = base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        if sure:
            raise ValueError(
                f"the image is {len(text)} characters, which are not base 64: {error}"
            ) from error
        return None
    return image if sure else None


def read_entries(spec: Path) -> Iterator[Entry]:
    """The entries of JSON (a list, or an object of entries), JSONL, CSV, TSV or parquet, under their names.

    Raises ValueError for a file that cannot be read at all.
    """
    if spec.suffix in DELIMITERS:
        yield from _csv_entries(spec)
        return
    lies = layout(*located(spec))
    if lies.kind in ("parquet", "arrow"):
        columns = [schema_of(file).names for file in lies.files]
        yield from _rows(columnar_table(lies.files, columns), spec.name)
    elif lies.kind != "jsonl":
        raise ValueError(f"{spec}: entries are read from JSON, JSONL, CSV, TSV or parquet")
    elif len(lies.files) == 1 and (whole := read_json(lies.files[0])) is not None:
        if not isinstance(whole, list | dict):
            raise ValueError(f"{spec} holds neither a list nor an object of entries")
        if isinstance(whole, dict) and not all(isinstance(entry, Mapping) for entry in whole.values()):
            whole = [whole]  # a single entry
        named = whole.items() if isinstance(whole, dict) else enumerate(whole)
        yield from ((f"{spec.name}:{name}", entry) for name, entry in named)
    else:
        yield from _rows(jsonl_table(lies.files), spec.name)


def read_json(file: Path) -> Any:
    """The value of a file that is one JSON text; None where it has one object a line.

    Raises ValueError naming the file if it is neither.
    """
    if file.suffix != ".json":
        return None
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8: {error.reason} at byte {error.start}") from error
    try:
        return parse_json(text)
    except ValueError as error:
        try:
            first = parse_json(text.lstrip().partition("\n")[0])
        except ValueError:
            first = None
        if isinstance(first, dict):
            return None
        raise ValueError(f"{file} is not JSON: {error}") from error


def first_of(entry: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The value under the first of the names that has one; None if none does."""
    return next((entry[name] for name in names if entry.get(name) not in (None, "", [])), None)


def _rows(table: Table, name: str) -> Iterator[Entry]:
    for index in range(table.length):
        try:
            yield f"{name}:{index}", table.row(index)
        except ValueError as error:
            yield f"{name}:{index}", error


def _csv_entries(file: Path) -> Iterator[Entry]:
    """All cells as text, an empty one absent; a line of another number of cells is an error of its own."""
    bad: list[str] = []

    def note(row: Any) -> str:
        bad.append(f"{row.actual_columns} cells under a header of {row.expected_columns}")
        return "skip"

    read = pa.csv.ReadOptions(block_size=CSV_BLOCK)
    parse = pa.csv.ParseOptions(
        delimiter=DELIMITERS[file.suffix], newlines_in_values=True, invalid_row_handler=note
    )
    try:
        with pa.csv.open_csv(file, read_options=read, parse_options=parse) as reader:
            names = reader.schema.names
        bad.clear()  # of the look at the header
        if len(set(names)) < len(names):
            raise ValueError(f"{file}: its header names a column twice")
        cells = pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), null_values=[""], strings_can_be_null=True
        )
        index = 0
        with pa.csv.open_csv(file, read_options=read, parse_options=parse, convert_options=cells) as reader:
            for batch in reader:
                for row in batch.to_pylist():
                    yield f"{file.name}:{index}", row
                    index += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read: {one_line(error)}") from error
    for why in bad:
        yield file.name, ValueError(why)
