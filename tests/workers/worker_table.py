"""Functions, good and bad, for the tests of the pool. Imported by its workers."""

import os
import sys
import time

import numpy as np


def join(*parts, sep=" "):
    return sep.join(parts)


def reverse(data):
    return {"data": data[::-1], "length": np.int64(len(data)), "nested": [data, {"again": data}]}


def modules():
    return [name for name in ("jax", "flax") if name in sys.modules]


def load_order():
    return LOADED


def an_object():
    return object()


def raises(text):
    raise ValueError(text)


def sleep():
    time.sleep(600)


def exits():
    os._exit(3)


def rubbish():
    """What a taken-over worker might write: no JSON, before anything else."""
    for fd in range(3, 30):
        try:
            os.write(fd, b"\x00\x00\x00\x04\xff\xfe{[")
        except OSError:
            continue
    time.sleep(600)


LOADED = []
LOADERS = {"load_order": lambda: LOADED.append("loaded")}
FUNCTIONS = {
    f.__name__: f for f in (join, reverse, modules, load_order, an_object, raises, sleep, exits, rubbish)
}
