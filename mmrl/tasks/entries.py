"""Entries of public files, whatever their layout, and the folder that holds their images."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from mmrl.data.columnar import columnar_table
from mmrl.data.files import Table, csv_rows, jsonl_table, parse_json
from mmrl.data.folders import layout, locate
from mmrl.data.rows import LONGEST_PATH
from mmrl.models.images import image_size

NamedEntry: TypeAlias = tuple[str, Any]  # the entry under its name, or its ValueError
READERS: Mapping[str, Callable[[Sequence[Path]], Table]] = {
    "jsonl": jsonl_table,
    "parquet": columnar_table,
    "arrow": columnar_table,
}
_ADDRESS = re.compile(r"\s*data:[\w/.+-]*(?:;[\w=.-]+)*?;base64,", re.ASCII)
_URL_SAFE = str.maketrans("-_", "+/")
# How images begin in base 64: PNG, JPEG, GIF, WebP, BMP, TIFF, and the box of JPEG 2000 and AVIF.
_BEGINNINGS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "Qk", "SUkqA", "TU0AK", "AAAA")


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images that entries name."""

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
        if isinstance(image, str) and not self.holds(image):
            encoded = _from_base_64(image)
            if encoded is not None:
                return encoded
        return self.path(image)

    def holds(self, name: str) -> bool:
        """True if there is a file of that name."""
        return len(name) <= LONGEST_PATH and "\0" not in name and os.path.isfile(self.folder / name)

    def size(self, image: bytes | str, name: str) -> tuple[int, int]:
        """(height, width) of an image, from its header. Raises ValueError naming ``name``."""
        if isinstance(image, bytes):
            return image_size(image, name)
        if image not in self.sizes:
            self.sizes[image] = image_size(image, name)
        return self.sizes[image]


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


def read_entries(spec: Path) -> Iterator[NamedEntry]:
    """The entries of JSON (a list, or an object of entries), JSONL, CSV, TSV or parquet, under their names.

    Raises ValueError for a file that cannot be read at all.
    """
    if spec.suffix in (".csv", ".tsv"):
        entries: Iterable[tuple[Any, Any]] = enumerate(csv_rows(spec)[1])
    else:
        found = layout(*locate(spec))
        whole = read_json(found.files[0]) if found.kind == "jsonl" and len(found.files) == 1 else None
        if isinstance(whole, dict) and not all(isinstance(entry, Mapping) for entry in whole.values()):
            whole = [whole]  # a single entry
        if isinstance(whole, list | dict):
            entries = whole.items() if isinstance(whole, dict) else enumerate(whole)
        elif whole is not None:
            raise ValueError(f"{spec} holds neither a list nor an object of entries")
        elif found.kind in READERS:
            entries = _rows(READERS[found.kind](found.files))
        else:
            raise ValueError(f"{spec}: entries are read from JSON, JSONL, CSV, TSV or parquet")
    yield from ((f"{spec.name}:{name}", entry) for name, entry in entries)


def _rows(table: Table) -> Iterator[tuple[int, Any]]:
    for index in range(table.length):
        try:
            yield index, table.row(index)
        except ValueError as error:
            yield index, error


def box_entries(spec: Path) -> Iterator[NamedEntry]:
    """Images with their annotations, of a file of instances; else what ``read_entries`` finds.

    Raises ValueError for a file of instances without one of its lists.
    """
    whole = read_json(spec) if spec.is_file() else None
    if not isinstance(whole, Mapping) or "annotations" not in whole:
        yield from read_entries(spec)
        return
    for key in ("images", "annotations", "categories"):
        part = whole.get(key)
        if not isinstance(part, list) or not all(isinstance(item, Mapping) for item in part):
            raise ValueError(f"{spec}: {key!r} is not a list of objects, as COCO's instances have")
    names = {str(category.get("id")): category.get("name") for category in whole["categories"]}
    found: dict[str, list[Any]] = {str(image.get("id")): [] for image in whole["images"]}
    for annotation in whole["annotations"]:
        owner = str(annotation.get("image_id"))
        if owner in found:
            found[owner].append(annotation)
        else:
            error = ValueError(f"it is of no image: {owner[:40]}")
            yield f"{spec.name}: annotation {annotation.get('id')}", error
    for image in whole["images"]:
        owner = str(image.get("id"))
        yield f"{spec.name}: image {owner}", {"image": image, "annotations": found[owner], "names": names}


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
