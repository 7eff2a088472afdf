"""Raw rows of parquet and Arrow files by random access, in bounded memory however far a file unpacks."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmrl.data.files import Table, refuse_pointer
from mmrl.terminal import one_line

IN_MEMORY = 1 << 30  # bytes of rows that are kept in memory; what is more goes to a temporary file
BATCH_ROWS = 1024  # most rows of a batch, the unit that is decoded and kept
BATCH_BYTES = 64 << 20  # that one may decode to
REPEATED_BYTES = 1 << 16  # of values in a batch from which on it is looked whether they repeat
MOST_UNPACKED = 16 << 30  # bytes of rows of files that
MOST_TIMES = 100  # hold less than one in so many of them
DISK_LEFT = 1 << 30  # bytes that a temporary file leaves free
MOST_ROWS = 20_000_000  # of one data set; a file of a few bytes may state any number
TEXTS = (pa.string(), pa.binary(), pa.large_string(), pa.large_binary())
UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError)  # what pyarrow raises at damaged files


class Damaged(NamedTuple):
    """Rows in the place of which a file holds no readable data."""

    num_rows: int
    reason: str


def schema_of(file: Path) -> pa.Schema:
    """The columns of a parquet or Arrow file. Raises ValueError naming the file if it is none."""
    return open_parquet(file).schema_arrow if file.suffix == ".parquet" else _open_arrow(file).schema


def open_parquet(file: Path) -> pq.ParquetFile:
    """Raises ValueError naming the file if its footer cannot be read."""
    refuse_pointer(file)
    try:
        return pq.ParquetFile(file, page_checksum_verification=True)
    except UNREADABLE as error:
        raise ValueError(f"{file} is not a readable parquet file: {one_line(error)}") from error


def columnar_table(files: Sequence[Path], columns: Sequence[Sequence[str]] | None = None) -> Table:
    """Rows of parquet or Arrow files, of each file the columns named, or all.

    Rows are unpacked once, as a row of a parquet file costs the decoding of its whole row group. Up to 1 GiB
    of them stays in memory, the rest lies in a temporary file that is mapped into memory; a value that
    repeats within a batch is held once.

    Raises ValueError naming the file: a column that stands twice, too many rows, no room for the rest.
    """
    schemas = [schema_of(file).names for file in files]
    columns = columns or schemas
    for file, names, there in zip(files, columns, schemas, strict=True):
        twice = [name for name in names if there.count(name) > 1]
        if twice:
            raise ValueError(f"{file}: the column {twice[0]!r} stands twice; leave one of the two")
    rows = sum(open_parquet(file).metadata.num_rows for file in files if file.suffix == ".parquet")
    if rows > MOST_ROWS:
        raise ValueError(f"{files[0]}: a data set of {rows} rows, over {MOST_ROWS}; take a part of it")
    parts = _store(_batches(files, columns), files)
    starts = np.cumsum([0, *(part.num_rows for part in parts)])

    def row(index: int) -> Mapping[str, Any]:
        place = int(np.searchsorted(starts, index, side="right")) - 1
        part = parts[place]
        if isinstance(part, Damaged):
            raise ValueError(f"its part of the file cannot be read: {part.reason}")
        try:
            values = part.slice(index - int(starts[place]), 1).to_pylist()[0]
        except (pa.ArrowException, OverflowError, RecursionError) as error:
            raise ValueError(f"its values cannot be read: {one_line(error)}") from error
        return {field.name: _shortest(values[field.name], field.type) for field in part.schema}

    return Table(int(starts[-1]), row, tuple(files))


def _shortest(value: Any, kind: pa.DataType) -> Any:
    """A value as it was meant: of a number in 16 or 32 bits the shortest decimal that is that number.

    Python has one width of numbers only, in which the float32 0.1 is 0.10000000149011612.
    """
    if pa.types.is_dictionary(kind):
        return _shortest(value, kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return _shortest(value, kind.storage_type)
    if value is None:
        return None
    if pa.types.is_float32(kind) or pa.types.is_float16(kind):
        return float(str(kind.to_pandas_dtype()(value)))
    if pa.types.is_map(kind):
        return [(_shortest(key, kind.key_type), _shortest(item, kind.item_type)) for key, item in value]
    if pa.types.is_struct(kind):
        return {field.name: _shortest(value[field.name], field.type) for field in kind}
    if isinstance(value, list) and kind.num_fields == 1:  # every kind of list
        inner = kind.field(0).type
        return [_shortest(item, inner) for item in value]
    return value


def _batches(files: Sequence[Path], columns: Sequence[Sequence[str]]) -> Iterator[pa.RecordBatch | Damaged]:
    """The rows of files, in batches of at most `BATCH_ROWS`. Raises ValueError naming a file."""
    for file, names in zip(files, columns, strict=True):
        yield from (_parquet if file.suffix == ".parquet" else _arrow)(file, list(names))


def _parquet(file: Path, names: list[str]) -> Iterator[pa.RecordBatch | Damaged]:
    """Batches of a file; the rest of a row group that cannot be read on is `Damaged`."""
    metadata = open_parquet(file).metadata
    for group in range(metadata.num_row_groups):
        left = metadata.row_group(group).num_rows
        try:
            for batch in _decoded(file, metadata, group, names):
                if 0 < batch.num_rows <= left:
                    left -= batch.num_rows
                    yield batch
        except UNREADABLE as error:
            reason = one_line(error)
        else:
            reason = "it ends early"
        if left:
            yield Damaged(left, reason)


def _decoded(file: Path, metadata: Any, group: int, names: list[str]) -> Iterator[pa.RecordBatch]:
    """A row group in batches. Raises what pyarrow raises where it is damaged."""

    def batches(rows: int, shared: Sequence[str]) -> Iterator[pa.RecordBatch]:
        table = pq.ParquetFile(
            file, metadata=metadata, read_dictionary=shared, page_checksum_verification=True
        )
        return table.iter_batches(batch_size=rows, row_groups=[group], columns=names)

    stated = metadata.row_group(group)
    shared, largest = _dictionaries(stated, batches)
    mean = stated.total_byte_size // max(1, stated.num_rows)
    rows = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, largest, mean)))
    done = 0
    try:
        for batch in batches(rows, shared):
            yield batch
            done += batch.num_rows
    except pa.ArrowNotImplementedError:  # of nested values, some stand in the dictionary and some do not
        for batch in batches(rows, ()):
            if batch.num_rows > done:
                yield batch.slice(done)
            done = max(0, done - batch.num_rows)


def _dictionaries(
    stated: Any, batches: Callable[[int, Sequence[str]], Iterator[pa.RecordBatch]]
) -> tuple[list[str], int]:
    """Columns of a row group to be left in their dictionaries: all values stand there, and repeat.

    A value of a dictionary is stored once however many rows have it, so that nothing else tells how far a
    batch unpacks. Also returns the bytes of the largest value of the other dictionaries.
    """
    columns = [stated.column(k) for k in range(stated.num_columns)]
    texts = [
        column.path_in_schema
        for column in columns
        if column.physical_type == "BYTE_ARRAY" and column.has_dictionary_page
    ]
    try:
        first = next(batches(1, texts), None)
    except UNREADABLE:  # said where the rows are read
        first = None
    shared, largest = [], 0
    for name, values in zip(first.schema.names, first.columns, strict=True) if first and texts else ():
        stored = [column for column in columns if column.path_in_schema.partition(".")[0] == name]
        for column, leaf in zip(stored, _leaves(values), strict=False):
            if not pa.types.is_dictionary(leaf.type) or not len(leaf.dictionary):
                continue
            apart = column.total_uncompressed_size - leaf.dictionary.nbytes  # places in it, and other values
            repeats = column.num_values >= 2 * len(leaf.dictionary)
            if repeats and apart <= 8 * column.num_values + REPEATED_BYTES:
                shared.append(column.path_in_schema)
            else:
                largest = max(largest, pc.max(pc.binary_length(leaf.dictionary)).as_py() or 0)
    return shared, largest


def _leaves(values: pa.Array) -> Iterator[pa.Array]:
    """The arrays that a nested one is made of, in the order of parquet's columns."""
    if pa.types.is_struct(values.type):
        for k in range(values.type.num_fields):
            yield from _leaves(values.field(k))
    elif pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        yield from _leaves(values.values)
    else:
        yield values


def _open_arrow(file: Path) -> Any:
    """A reader of batches, of either of Arrow's formats. Raises ValueError naming the file."""
    refuse_pointer(file)
    try:
        opened = pa.OSFile(str(file))
        if opened.read(6) == b"ARROW1":
            return pa.ipc.open_file(opened)
        opened.seek(0)
        return pa.ipc.open_stream(opened)
    except UNREADABLE as error:
        raise ValueError(f"{file} is not a readable Arrow file: {one_line(error)}") from error


def _arrow(file: Path, names: list[str]) -> Iterator[pa.RecordBatch]:
    """Raises ValueError naming the file where it is damaged: of what follows, the rows cannot be counted."""
    reader = _open_arrow(file)
    count = getattr(reader, "num_record_batches", None)
    place = 0
    while count is None or place < count:
        try:
            batch = reader.read_next_batch() if count is None else reader.get_batch(place)
            batch.validate(full=True)
        except StopIteration:
            return
        except UNREADABLE as error:
            raise ValueError(f"{file} is damaged: {one_line(error)}") from error
        place += 1
        batch = batch.select(names)
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.slice(start, BATCH_ROWS)


def _store(
    batches: Iterator[pa.RecordBatch | Damaged], files: Sequence[Path]
) -> list[pa.RecordBatch | Damaged]:
    """Batches in memory up to `IN_MEMORY` bytes, those that follow in a temporary file that is mapped."""
    parts: list[Any] = []  # an int: bytes in the file
    size, stored = 0, sum(file.stat().st_size for file in files)
    with tempfile.NamedTemporaryFile(prefix="mmrl-") as disk:
        for batch in batches:
            if isinstance(batch, Damaged):
                parts.append(batch)
                continue
            packed = _pack(batch)
            size += packed.size
            if size <= IN_MEMORY:
                parts.append(_unpack(packed))
                continue
            if size > max(MOST_UNPACKED, MOST_TIMES * stored):
                raise ValueError(
                    f"{files[0]} unpacks to over {size >> 30} GiB, over {MOST_TIMES} times what is"
                    " stored: take fewer rows"
                )
            if shutil.disk_usage(disk.name).free < packed.size + DISK_LEFT:
                raise ValueError(
                    f"{files[0]} unpacks to over {size >> 20} MiB, and the folder of temporary files has"
                    " no room for more: name a larger one by TMPDIR, or take fewer rows"
                )
            disk.write(packed)
            parts.append(packed.size)
        disk.flush()
        mapped: Any = pa.memory_map(disk.name) if size > IN_MEMORY else None  # outlives the name of the file
        return [_unpack(mapped.read_buffer(part)) if isinstance(part, int) else part for part in parts]


def _pack(batch: pa.RecordBatch) -> pa.Buffer:
    """A batch as bytes: what was decoded has buffers up to twice as large as what they hold."""
    columns = [_share(column) for column in batch.columns]
    fields = [pa.field(name, column.type) for name, column in zip(batch.schema.names, columns, strict=True)]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pa.schema(fields)) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields)))
    return pa.py_buffer(sink.getvalue().to_pybytes())  # the sink's own buffer is up to twice as large too


def _unpack(packed: pa.Buffer) -> pa.RecordBatch:
    return pa.ipc.open_stream(packed).read_next_batch()


def _share(values: pa.Array) -> pa.Array:
    """The same values, of texts and bytes that repeat each one once."""
    kind = values.type
    if values.nbytes < REPEATED_BYTES or values.offset:
        return values
    if pa.types.is_dictionary(kind):  # without what other batches have of it
        used = values.indices.dictionary_encode()
        return pa.DictionaryArray.from_arrays(used.indices, values.dictionary.take(used.dictionary))
    if pa.types.is_struct(kind):
        inner = [_share(values.field(k)) for k in range(kind.num_fields)]
        fields = [pa.field(kind.field(k).name, part.type) for k, part in enumerate(inner)]
        return pa.StructArray.from_arrays(inner, fields=fields, mask=values.is_null())
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return type(values).from_arrays(values.offsets, _share(values.values), mask=values.is_null())
    if kind in TEXTS:
        encoded = values.dictionary_encode()
        return encoded if 2 * encoded.dictionary.nbytes < values.nbytes else values
    return values
