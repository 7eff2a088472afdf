"""What a judge has replied and what runs have asked of it, in one sqlite3 file.

Any threads, and processes of one machine, may share a file. Grading never fails by it: a damaged file is set
aside, one that cannot be written to for a while loses replies, which are asked for again.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

_BUSY_S = 20.0  # for another process that writes
_TABLES = """
CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS spent (run TEXT PRIMARY KEY, requests INTEGER NOT NULL, tokens INTEGER NOT NULL);
"""
_SPEND = "UPDATE spent SET requests = requests + ? WHERE run = ? AND (requests + ? < ? OR ? = 0)"


class Cache:
    """Replies by key, and requests and tokens by run; a context manager.

    ``path``: of the file, made if need be; "" keeps all in memory. ``run``: whose requests are counted here.
    ``say``: tells people of a file that was set aside. Raises ValueError if the file cannot be opened.
    """

    def __init__(self, path: str, run: str = "", say: Callable[[str], None] = print) -> None:
        self._path, self._run, self._say = path, run, say
        self._lock = threading.RLock()
        self._closed = False
        self._requests = 0  # of this run, as far as this process knows: outlives a damaged file
        self._owed = 0  # of these, what the file does not know of yet
        try:
            if path:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._connection = self._opened()
        except (OSError, sqlite3.OperationalError) as error:
            raise ValueError(
                f"the judge's cache {path} cannot be opened: {error}; name another file"
            ) from error
        self.spent()

    def __enter__(self) -> "Cache":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, key: str) -> str | None:
        """The reply of that key, if there is one."""
        rows, _ = self._do("SELECT reply FROM replies WHERE key = ?", key)
        return rows[0][0] if rows and isinstance(rows[0][0], str) else None

    def put(self, key: str, reply: str) -> None:
        """Keep a reply."""
        self._do("INSERT OR REPLACE INTO replies VALUES (?, ?)", key, reply)

    def spend(self, most: int) -> bool:
        """Count one more request of the run, unless that would be more than ``most``; 0: any number."""
        with self._lock:
            rows, count = self._do(_SPEND, 1 + self._owed, self._run, self._owed, most, most)
            if rows is None:  # not now: what this process knows of must do
                count = int(self._requests < most or most == 0)
                self._owed += count
            elif count:
                self._owed = 0
            self._requests += count
            return count == 1

    def add_tokens(self, tokens: int) -> None:
        """Count tokens of the run."""
        self._do("UPDATE spent SET tokens = tokens + ? WHERE run = ?", tokens, self._run)

    def spent(self) -> tuple[int, int]:
        """Requests and tokens of the run so far, by all its processes that share the file."""
        rows, _ = self._do("SELECT requests, tokens FROM spent WHERE run = ?", self._run)
        requests, tokens = rows[0] if rows else (0, 0)
        self._requests = max(self._requests, requests)
        return self._requests, tokens

    def close(self) -> None:
        """Close the file; what is asked of the cache afterwards is nothing."""
        with self._lock:
            self._closed = True
            self._connection.close()

    def _do(self, statement: str, *values: Any) -> tuple[list[Any] | None, int]:
        """Rows of a statement, and how many it changed; None and 0 if it cannot be done now."""
        with self._lock:
            for last in (False, True):
                if self._closed:
                    break
                try:
                    cursor = self._connection.execute(statement, values)
                    return cursor.fetchall(), cursor.rowcount
                except sqlite3.OperationalError:  # locked for long, or the disk is full
                    break
                except sqlite3.DatabaseError as error:
                    if last:
                        break
                    self._fix(error)
            return None, 0

    def _fix(self, error: Exception) -> None:
        """Open a file that is found damaged anew; another process may have set it aside already."""
        with suppress(sqlite3.Error):
            self._connection.close()
        try:
            self._connection = self._opened(whole=True)
            self._owed = 0
        except (OSError, sqlite3.Error):
            self._say(f"the judge's cache {self._path} cannot be opened any more ({error}); it is left out")
            self._connection = _made("", self._run, self._requests)

    def _opened(self, whole: bool = False) -> sqlite3.Connection:
        """A connection to the file; one that is damaged is set aside first. ``whole``: look at all of it."""
        try:
            connection = _made(self._path, self._run, self._requests)
            if whole and connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                connection.close()
                raise sqlite3.DatabaseError("pages are damaged")
            return connection
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            aside = f"{self._path}.damaged-{time.time_ns()}"
            for ending in ("", "-wal", "-shm"):
                with suppress(FileNotFoundError):
                    os.replace(self._path + ending, aside + ending)
            self._say(
                f"the judge's cache {self._path} is damaged ({error}): it is kept as {aside}, and a new one"
                f" begun; requests count on from {self._requests}"
            )
            return _made(self._path, self._run, self._requests)


def _made(path: str, run: str, requests: int) -> sqlite3.Connection:
    """A connection to a file with its tables; made if need be."""
    connection = sqlite3.connect(
        path or ":memory:", timeout=_BUSY_S, isolation_level=None, check_same_thread=False
    )
    try:
        _begin(connection)
        connection.execute("INSERT OR IGNORE INTO spent VALUES (?, ?, 0)", (run, requests))
    except BaseException:
        connection.close()
        raise
    return connection


def _begin(connection: sqlite3.Connection) -> None:
    end = time.monotonic() + _BUSY_S
    while True:
        try:
            # Readers do not wait for writers then, and writers not for the disk.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.executescript(_TABLES)
            return
        except sqlite3.OperationalError as error:  # of several that begin at once, sqlite makes some fail
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.05)
