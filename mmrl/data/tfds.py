"""Data sets that TFDS wrote in a format with random access (ArrayRecord), read without TensorFlow.

Only what lies on the disk is opened; nothing is downloaded or generated.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmrl.data.files import Table
from mmrl.terminal import one_line

PREFIX = "tfds:"
VERSION = re.compile(r"\d+\.\d+\.\d+")


def named_builder(name: str) -> Any:
    """The builder of a data set that lies in TFDS's data directory (``TFDS_DATA_DIR``), newest version.

    Args: ``name``, "NAME", "NAME/CONFIG" or either with ":VERSION".

    Raises ValueError if it is not there.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    try:
        return read_only_builder.builder_from_files(name)
    except Exception as error:  # of several modules of TFDS; all mean that nothing usable is there
        raise ValueError(
            f"TFDS has no data set {name!r} on this machine, and none is downloaded here: prepare it with"
            ' file_format="array_record", and name its folder by TFDS_DATA_DIR, or the directory of its'
            f" version instead of {PREFIX}{name} ({tfds.core.constants.DATA_DIR} is where TFDS looks)"
        ) from error


def directory_builder(directory: Path) -> Any:
    """The builder of the data set whose files lie in a directory. Raises ValueError naming it."""
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(directory)
    except Exception as error:  # as above
        raise ValueError(f"{directory} is not a readable directory of TFDS: {one_line(error)}") from error


def parse(spec: str) -> tuple[str, str]:
    """Name with version, and split ("" if none), of "tfds:NAME[:VERSION][:SPLIT]".

    Raises ValueError for anything else.
    """
    name, *rest = spec.removeprefix(PREFIX).split(":", 2)
    if rest and VERSION.fullmatch(rest[0]):
        name = f"{name}:{rest.pop(0)}"
    if not name or (len(rest) > 1 and not rest[0].count("[")):
        raise ValueError(f"{spec!r} is not of the form {PREFIX}NAME[:VERSION][:SPLIT]")
    return name, ":".join(rest)


def choose_split(builder: Any, split: str) -> str:
    """The split asked for, or the only one there is. Raises ValueError if several could be meant."""
    there = sorted(builder.info.splits)
    if not there:
        raise ValueError(f"TFDS data set {builder.info.name} in {builder.data_dir} has no split")
    if not split and len(there) > 1:
        raise ValueError(
            f"TFDS data set {builder.info.name} has the splits {', '.join(there)}: add one of them to its"
            f" name, as in {PREFIX}{builder.info.name}:{there[0]}"
        )
    return split or there[0]


def feature_names(builder: Any) -> list[str]:
    """The columns, by name: TFDS gives them in an order that differs from process to process."""
    return sorted(builder.info.features or ())


def tfds_table(builder: Any, split: str, columns: Mapping[str, str]) -> Table:
    """Rows of a split by random access, of each the columns named; images stay encoded where they are.

    Raises ValueError for a split that is not there or a format without random access.
    """
    import tensorflow_datasets as tfds

    class KeepEncoded(tfds.decode.SkipDecoding):
        """Leaves an image as it is stored; TFDS's own cannot do so in a list of images."""

        def decode_batch_example_np(self, serialized_example: Any) -> Any:
            return serialized_example

    features = builder.info.features
    inner = {
        name: feature.feature if isinstance(feature, tfds.features.Sequence) else feature
        for name, feature in features.items()
    }
    pictures = [name for name, feature in inner.items() if isinstance(feature, tfds.features.Image)]
    decoders = {name: KeepEncoded() for name in pictures}
    try:
        rows = builder.as_data_source(split, decoders=decoders)
        files = [Path(part.filename) for part in builder.info.splits[split].file_instructions]
    except NotImplementedError as error:
        raise ValueError(
            f"{builder.data_dir} is in the format {builder.info.file_format.value}, which cannot be read at"
            ' random: prepare it again with file_format="array_record"'
        ) from error
    except Exception as error:  # an unknown split, or a file that is damaged or gone
        raise ValueError(f"TFDS data set {builder.data_dir}, split {split!r}: {one_line(error)}") from error
    widths = {name: getattr(feature, "np_dtype", None) for name, feature in features.items()}
    bytes_columns = {*pictures, columns.get("images", "")}

    def row(index: int) -> Mapping[str, Any]:
        try:
            values = rows[index]
        except Exception as error:  # the reader's own kinds
            raise ValueError(f"its record cannot be read: {one_line(error)}") from error
        return {name: _plain(values[name], name in bytes_columns, widths[name]) for name in columns.values()}

    paths = "images" in columns and columns["images"] not in pictures
    return Table(len(rows), row, tuple(files), split, paths)


def _plain(value: Any, image: bool, width: Any = None) -> Any:
    """A value as JSON would have it; of an image column encoded images, pixels as PNG.

    A float is the shortest decimal that is this number in the ``width`` that its feature states, in which
    TFDS does not give it: 0.1 in 32 bits is no 0.10000000149011612.
    """
    if isinstance(value, float) and width is not None and not isinstance(width, dict):
        value = np.dtype(width).type(value)
    if isinstance(value, bytes) and not image:
        return value.decode("utf-8")
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        item = value.item()
        return float(str(value)) if isinstance(item, float) else _plain(item, image)
    if image and isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3:
        out = io.BytesIO()
        pixels = value[..., 0] if value.shape[-1] == 1 else value
        Image.fromarray(pixels).save(out, "PNG", compress_level=1)
        return out.getvalue()
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item, image, width) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item, image) for key, item in value.items()}
    return value
