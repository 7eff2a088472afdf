"""Has the wall clock of a Python process jump, ten seconds after its start; found by being on its path.

``CLOCK_JUMP_S``: by how many seconds. ``CLOCK_EVERY_S``: back and forth so often; 0: once.
"""

import os
import time

_REAL, _BEGIN, _WAIT_S = time.time, time.monotonic(), 10.0
_JUMP_S, _EVERY_S = float(os.environ["CLOCK_JUMP_S"]), float(os.environ["CLOCK_EVERY_S"])


def _jumping() -> float:
    since = time.monotonic() - _BEGIN - _WAIT_S
    there = since > 0 and (not _EVERY_S or int(since / _EVERY_S) % 2 == 0)
    return _REAL() + (_JUMP_S if there else 0.0)


time.time = _jumping
time.time_ns = lambda: int(_jumping() * 1e9)
