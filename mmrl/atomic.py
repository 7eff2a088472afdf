"""Files and folders that appear whole or not at all (atomic writes), and JSONL that is read back.

What is written stands beside its place under a fixed name, ``.NAME.part``, and is renamed when it is whole.
So what a killed writer leaves is found, and cleared, by the next that writes the same.
"""

import errno
import fcntl
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrl.terminal import tell

WAIT_S = 10.0  # for another process that is writing the same
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)  # of some network file systems


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """The path to write the file at that takes the place of ``path`` when the block ends, unless it raises.

    A device or a pipe, whose place nothing can take, is written to directly.

    Raises ValueError if no file can be made there, or another process is writing the same for `WAIT_S`.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    path = path.resolve()
    with _part(path, Path.touch) as part:
        yield part
        _to_disk(part)
        part.replace(path)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of ``path`` when the block ends, likewise. Parents are made.

    Its files get ordinary modes: some libraries write such as only the owner may read.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _part(path, Path.mkdir) as part:
        yield part
        mode = part.stat().st_mode & 0o666
        for file in part.rglob("*"):
            if file.is_file():
                file.chmod(mode)
                _to_disk(file)
        old = part.with_name(f".{path.name}.old.part")
        remove(old)
        if path.exists():
            path.rename(old)  # at once: nobody ever sees half of a folder that is being deleted
        part.rename(path)
        remove(old)


def atomic_write(path: Path, text: str) -> None:
    """Put ``text`` in the place of what ``path`` held; all or nothing, even if the machine stops."""
    with atomic_file(path) as part, part.open("w", encoding="utf-8") as file:
        file.write(text)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Put ``rows`` in the place of what ``path`` held, likewise: JSON, one a line."""
    atomic_write(path, "".join(json.dumps(row) + "\n" for row in rows))


def as_json(value: Any, indent: int | None = None) -> str:
    """JSON of a value; a number that is not finite, for which JSON has no word, is null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class DamagedLine:
    """A line of a JSONL file that is no row of it."""

    path: Path
    number: int  # from 1
    why: str
    content: bytes

    def __str__(self) -> str:
        return f"{self.path}, line {self.number}, is damaged ({self.why})"


def read_jsonl(
    path: Path, wrong: Callable[[dict[str, Any]], str | None], *, appended: bool = False
) -> tuple[list[dict[str, Any]], list[DamagedLine]]:
    """The rows of a JSONL file and its damaged lines, in order; neither where there is no file.

    Args:
      path: the file.
      wrong: says why an object is no row of this file; None if it is one.
      appended: lines are added one by one, so that a kill may cut the last short: that one is in neither.
    """
    rows, damaged = [], []
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            why = wrong(row) if isinstance(row, dict) else "not an object"
        except UnicodeDecodeError as error:
            row, why = None, f"not UTF-8 at byte {error.start + 1}"
        except (ValueError, RecursionError) as error:
            row, why = None, f"not JSON: {error}"
        if why is None:
            rows.append(row)
        elif not (appended and number == len(lines) and line[:1] == b"{" and row is None):
            damaged.append(DamagedLine(path, number, why, line))
    return rows, damaged


def is_number(value: Any) -> bool:
    """True if a JSON value is a number that a float can hold."""
    return type(value) is float or (type(value) is int and abs(value) < 1 << 63)


def warn_of(damaged: Iterable[DamagedLine]) -> None:
    """Warn of lines that are left out, each by its file and number, on stderr."""
    for one in damaged:
        tell(f"mmrl: warning: {one}: it is left out", error=True)


def set_aside(damaged: Sequence[DamagedLine], say: Callable[[str], None]) -> None:
    """Keep lines that are about to leave their file in ``NAME.damaged`` beside it, and say so."""
    for one in damaged:
        place = one.path.with_name(f"{one.path.name}.damaged")
        with place.open("ab") as file:
            file.write(one.content + b"\n")
        say(f"warning: {one}: it is kept in {place}")


def remove_partial(folder: Path) -> None:
    """Delete what killed writers have left anywhere in ``folder``; what is being written stays."""
    for part in list(folder.rglob(".*.part")):
        _discard(part)


@contextmanager
def _part(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """The part of ``path``, made anew, and kept from other processes until the block ends."""
    part = path.with_name(f".{path.name}.part")
    end = time.monotonic() + WAIT_S
    while (descriptor := _claimed(part, make)) is None:
        if time.monotonic() > end:
            raise ValueError(f"{path} is being written by another process: let that end, or name another")
        time.sleep(0.05)
    try:
        yield part
    except BaseException:
        remove(part)
        raise
    finally:
        os.close(descriptor)


def _claimed(part: Path, make: Callable[[Path], None]) -> int | None:
    """Makes a part where a killed writer may have left one; the descriptor of its lock, None if one lives."""
    try:
        if not _discard(part):
            return None
        make(part)
    except FileExistsError:  # made by another meanwhile
        return None
    except OSError as error:
        raise ValueError(f"{part.parent} cannot be written to: {error}") from error
    return _locked(part)


def _discard(part: Path) -> bool:
    """Deletes a part whose writer is dead; False if it lives."""
    if not part.exists():
        return True
    descriptor = _locked(part)
    if descriptor is None:
        return False
    remove(part)
    os.close(descriptor)
    return True


def _locked(part: Path) -> int | None:
    """A descriptor that locks ``part`` until it is closed or the process ends; None if another does."""
    try:
        descriptor = os.open(part, os.O_RDONLY if part.is_dir() else os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        there = part.exists() and os.path.samestat(part.stat(), os.fstat(descriptor))  # not renamed meanwhile
    except OSError as error:
        there = error.errno in NO_LOCKS
    if there:
        return descriptor
    os.close(descriptor)
    return None


def _to_disk(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file, a link or a folder with all that is in it; nothing if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
