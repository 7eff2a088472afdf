"""Files that appear whole or not at all."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write what takes the place of ``path`` when the block ends; if it raises, nothing does."""
    part = path.with_name(path.name + ".part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Put ``text`` in the place of what ``path`` held; all or nothing, even if the machine stops."""
    with whole(path) as part, part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Put ``rows`` in the place of what ``path`` held, likewise: JSON, one a line."""
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
