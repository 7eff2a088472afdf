"""Chunked vocabulary statistics against the plain formulas, and what the compiled program holds."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.kernels.vocab import BANNED, token_statistics

T, D, V = 21, 16, 97


@pytest.fixture(scope="module")
def inputs():
    keys = jax.random.split(jax.random.key(0), 4)
    bias = jnp.where(jnp.arange(V) % 7 == 3, BANNED, 0.0)
    tokens = jax.random.categorical(keys[3], jnp.broadcast_to(bias, (T, V)))
    return {
        "hidden": jax.random.normal(keys[0], (T, D)),
        "table": jax.random.normal(keys[1], (V, D)),
        "corrupted_hidden": jax.random.normal(keys[2], (T, D)),
        "tokens": tokens,
        "bias": bias,
    }


def _plain(hidden, table, tokens, bias, temperature, corrupted_hidden):
    """Over the emittable columns alone, so that bans cannot matter."""
    allowed = np.flatnonzero(np.asarray(bias) == 0)
    column = jnp.searchsorted(allowed, tokens)

    def log_p(states):
        return jax.nn.log_softmax(states @ table[allowed].T / temperature, axis=-1)

    p, q = log_p(hidden), log_p(corrupted_hidden)
    return {
        "logprob": p[jnp.arange(T), column],
        "entropy": -(jnp.exp(p) * p).sum(-1),
        "corrupted": q[jnp.arange(T), column],
        "perception": (jnp.exp(p) * (p - q)).sum(-1),
    }


@pytest.mark.parametrize(("chunk", "temperature"), [(1, 1.0), (4, 0.6), (7, 1.0), (64, 0.6)])
def test_values_and_gradients(inputs, chunk, temperature):
    fixed = {name: inputs[name] for name in ("tokens", "bias")}
    moving = {name: inputs[name] for name in ("hidden", "table", "corrupted_hidden")}
    direction = jax.random.normal(jax.random.key(5), (4, T))

    def chunked(moving):
        return token_statistics(
            **moving,
            **fixed,
            temperature=temperature,
            entropy=True,
            perception=True,
            corrupted_gradient=True,
            chunk=chunk,
        )

    def plain(moving):
        return _plain(**moving, **fixed, temperature=temperature)

    def weighed(function):
        def total(moving):
            out = function(moving)
            return sum((out[name] * d).sum() for name, d in zip(sorted(out), direction, strict=True))

        return total

    ours, theirs = jax.jit(chunked)(moving), plain(moving)
    assert set(ours) == set(theirs)
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], atol=2e-5, err_msg=name)
    our_gradient, their_gradient = (jax.jit(jax.grad(weighed(f)))(moving) for f in (chunked, plain))
    for name in moving:
        np.testing.assert_allclose(our_gradient[name], their_gradient[name], atol=1e-4, err_msg=name)


def test_corrupted_distribution_is_constant_unless_asked(inputs):
    def total(corrupted_hidden, **options):
        out = token_statistics(**inputs | {"corrupted_hidden": corrupted_hidden}, perception=True, **options)
        return out["perception"].sum() + out["corrupted"].sum()

    hidden = inputs["corrupted_hidden"]
    np.testing.assert_array_equal(jax.grad(total)(hidden), 0)
    asked = jax.grad(lambda hidden: total(hidden, corrupted_gradient=True))(hidden)
    assert jnp.abs(asked).max() > 0.1


def test_only_what_was_asked_is_given(inputs):
    without = {name: value for name, value in inputs.items() if name != "corrupted_hidden"}
    assert set(token_statistics(**without)) == {"logprob"}
    assert set(token_statistics(**inputs)) == {"logprob", "corrupted"}


def test_equal_states_have_no_perception(inputs):
    same = inputs | {"corrupted_hidden": inputs["hidden"]}
    out = token_statistics(**same, perception=True)
    np.testing.assert_array_equal(out["perception"], 0)
    np.testing.assert_array_equal(out["corrupted"], out["logprob"])


def test_no_array_of_tokens_by_vocabulary_is_compiled():
    tokens, width, vocabulary, chunk = 640, 8, 1009, 64
    hidden, table = jnp.ones((tokens, width)), jnp.ones((vocabulary, width))
    ids, bias = jnp.zeros(tokens, jnp.int32), jnp.zeros(vocabulary)

    def program(chunk):
        def total(hidden, table, corrupted):
            out = token_statistics(
                hidden,
                table,
                ids,
                bias,
                entropy=True,
                corrupted_hidden=corrupted,
                perception=True,
                corrupted_gradient=True,
                chunk=chunk,
            )
            return sum(value.sum() for value in out.values())

        lowered = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2))).lower(hidden, table, hidden)
        return lowered.compile().as_text()

    def largest(text):
        shapes = re.findall(r"f32\[([\d,]+)\]", text)
        sizes = [[int(n) for n in shape.split(",")] for shape in shapes]
        return max(int(np.prod(size)) for size in sizes if vocabulary in size)

    assert largest(program(chunk)) == chunk * vocabulary
    assert largest(program(tokens)) == tokens * vocabulary  # the search does see such arrays
