"""Files and folders that appear whole or not at all (atomic writes).

What is written stands beside its place under a fixed name, ``.NAME.part``, and is renamed when it is whole.
So what a killed writer leaves is found, and cleared, by the next that writes the same.
"""

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WAIT_S = 10.0  # for another process that is writing the same
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)  # of some network file systems


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write the file that takes the place of ``path`` when the block ends, unless it raises.

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
def whole_folder(path: Path) -> Iterator[Path]:
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
        _remove(old)
        if path.exists():
            path.rename(old)  # at once: nobody ever sees half of a folder that is being deleted
        part.rename(path)
        _remove(old)


def write_whole(path: Path, text: str) -> None:
    """Put ``text`` in the place of what ``path`` held; all or nothing, even if the machine stops."""
    with whole(path) as part, part.open("w", encoding="utf-8") as file:
        file.write(text)


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Put ``rows`` in the place of what ``path`` held, likewise: JSON, one a line."""
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))


def clear_parts(folder: Path) -> None:
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
        _remove(part)
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
    _remove(part)
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


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
