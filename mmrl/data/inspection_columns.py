"""Which columns a data set has, of what type, and what each is used as."""

from __future__ import annotations

from typing import NamedTuple

from mmrl.data import tfds
from mmrl.data.columnar import schema_of
from mmrl.data.folders import SUFFIXES
from mmrl.data.sources import FIRST_ROWS, Source

LONGEST_TYPE = 60  # characters


class Column(NamedTuple):
    """A column of a data set's files."""

    name: str
    type: str
    used_as: str  # its name in the schema; "" if it is ignored


def columns_of(source: Source) -> tuple[Column, ...]:
    """All columns of the files, in their order; of JSONL and CSV those that the first rows have."""
    suffix = source.table.files[0].suffix if source.table.files else ""
    if suffix in (".parquet", ".arrow"):
        types = _columnar(source)
    elif suffix == ".csv" or suffix in SUFFIXES:
        types = _first_rows(source)
    else:
        types = _tfds(source)
    used = {column: name for name, column in source.columns.items()}
    return tuple(Column(name, _short(kind), used.get(name, "")) for name, kind in types.items())


def _short(kind: str) -> str:
    return kind if len(kind) <= LONGEST_TYPE else kind[: LONGEST_TYPE - 3] + "..."


def _columnar(source: Source) -> dict[str, str]:
    schemas = [schema_of(file) for file in source.table.files]
    return {field.name: str(field.type).replace("element: ", "") for schema in schemas for field in schema}


def _tfds(source: Source) -> dict[str, str]:
    builder = tfds.directory_builder(source.table.files[0].parent)
    return {name: " ".join(str(builder.info.features[name]).split()) for name in tfds.feature_names(builder)}


def _first_rows(source: Source) -> dict[str, str]:
    """The kinds of value that a column's first rows hold."""
    found: dict[str, dict[str, None]] = {}
    for index in range(min(source.table.length, FIRST_ROWS)):
        try:
            row = source.table.row(index)
        except ValueError:  # a broken row, which is listed as such
            continue
        for name, value in row.items():
            found.setdefault(name, {})[_kind(value)] = None
    return {name: " or ".join(kinds) for name, kinds in found.items()}


def _kind(value: Any) -> str:
    names = {str: "text", bool: "true or false", int: "number", float: "number", dict: "object"}
    if isinstance(value, list):
        inner = dict.fromkeys(_kind(one) for one in value)
        return f"list of {' or '.join(inner)}" if inner else "empty list"
    return names.get(type(value), "null")
