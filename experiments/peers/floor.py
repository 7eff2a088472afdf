"""The least time of a decode step, from the measured rates of this machine."""

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

REPEATS = 5
SPAN = 0.05  # seconds a measurement should at least last


def floor(config: Any, batch: int, prompt: int, new: int) -> dict[str, float]:
    """Milliseconds of a step of ``batch`` responses, on average over ``new`` tokens, and what they come from.

    Bytes: weights of the language model, keys and values of the prompt once, and those of each response so
    far. FLOPs: products with the weights, and attention. Both rates are measured here: bytes read from an
    array as large as all that, so that a small model has the speed of the cache it stays in; products in the
    decode's own shapes.
    """
    weights = _product_weights(config)
    cached = prompt + batch * (new - 1) / 2  # tokens read from the cache
    one_token = 2 * config.layers * config.kv_heads * config.head_dim
    seen = prompt + (new - 1) / 2
    attention = 4 * config.layers * config.query_heads * config.head_dim * seen * batch
    moved = 4 * (weights + cached * one_token)
    operations = 2 * weights * batch + attention
    bandwidth, rate = read_rate(int(moved)), product_rate(config, batch)
    return {
        "bytes": moved,
        "flops": operations,
        "bytes_per_second": bandwidth,
        "flops_per_second": rate,
        "milliseconds": 1e3 * max(moved / bandwidth, operations / rate),
    }


def _product_weights(config: Any) -> int:
    """Elements of the matrices that every token is multiplied with."""
    heads = config.query_heads + 2 * config.kv_heads
    attention = config.width * config.head_dim * (heads + config.query_heads)
    return (
        config.layers * (attention + 3 * config.width * config.mlp_width) + config.vocabulary * config.width
    )


def read_rate(size: int) -> float:
    """Bytes a second at which an array of ``size`` bytes is summed: the better of jax and numpy."""
    length = max(size // 4, 2**18)
    array = np.ones(length, np.float32)
    return max(_jax_read(array), _numpy_read(array))


def _jax_read(array: np.ndarray) -> float:
    x = jnp.asarray(array)
    times = _times(x.nbytes / 2e10)

    @jax.jit
    def passes(x: jax.Array) -> jax.Array:
        # Each pass reads x anew: what is added depends on the one before.
        return jax.lax.fori_loop(0, times, lambda _, total: total + jnp.sum(x + total * 0), jnp.float32(0))

    return times * x.nbytes / _best(lambda: jax.block_until_ready(passes(x)))


def _numpy_read(array: np.ndarray) -> float:
    parts = np.array_split(array, 2)
    times = _times(array.nbytes / 2e10)

    def read(part: np.ndarray) -> None:
        for _ in range(times):
            np.dot(part, part)  # two operands, read once: they are the same

    with ThreadPoolExecutor(len(parts)) as pool:
        return times * array.nbytes / _best(lambda: list(pool.map(read, parts)))


def product_rate(config: Any, rows: int) -> float:
    """FLOP/s of float32 products of ``rows`` rows with matrices of the layers: the best shape's."""
    d, f = config.width, config.mlp_width
    return max(_product(rows, inner, outer) for inner, outer in ((d, f), (f, d), (d, d)))


def _product(rows: int, inner: int, outer: int) -> float:
    cost = 4 * rows * inner * outer  # there and back
    times = _times(cost / 5e10)
    there = jnp.full((inner, outer), inner**-0.5, jnp.float32)
    back = jnp.full((outer, inner), outer**-0.5, jnp.float32)

    @partial(jax.jit, static_argnums=3)
    def chain(x: jax.Array, there: jax.Array, back: jax.Array, times: int) -> jax.Array:
        return jax.lax.fori_loop(0, times, lambda _, x: x @ there @ back * 0.5, x)

    x = jnp.ones((rows, inner), jnp.float32)
    return times * cost / _best(lambda: jax.block_until_ready(chain(x, there, back, times)))


def _times(seconds: float) -> int:
    """The number of repeats of what takes about so long."""
    return max(1, round(SPAN / seconds))


def _best(call: Any) -> float:
    call()
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)
