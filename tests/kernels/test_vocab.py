"""Chunked vocabulary statistics against the plain formulas, and what the compiled program holds."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.kernels.vocab import BANNED, log_distribution, token_statistics, top_tokens

T, D, V = 21, 16, 97
EVERYTHING = {"entropy": True, "perception": True, "reverse_perception": True, "corrupted_gradient": True}


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
        "reverse_perception": (jnp.exp(q) * (q - p)).sum(-1),
    }


def _split(inputs):
    moving = {name: inputs[name] for name in ("hidden", "table", "corrupted_hidden")}
    return moving, {name: inputs[name] for name in ("tokens", "bias")}


def _weighed(function):
    """Sum of all statistics under fixed random weights, jitted."""
    direction = jax.random.normal(jax.random.key(5), (5, T))

    def total(moving):
        out = function(moving)
        return sum((out[name] * d).sum() for name, d in zip(sorted(out), direction, strict=True))

    return jax.jit(total)


@pytest.mark.parametrize(
    ("chunk", "temperature"),
    [
        (8, 0.6),
        *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in ((1, 1.0), (21, 1.0), (64, 0.6))),
    ],
)
@pytest.mark.parametrize("scale", [D**-0.5, 1.0])
def test_values_and_gradients(inputs, chunk, temperature, scale):
    """To 1e-5 where logits are of order one, and in proportion where they are larger."""
    moving, fixed = _split({**inputs, "table": inputs["table"] * scale})

    def chunked(moving):
        return token_statistics(**moving, **fixed, **EVERYTHING, temperature=temperature, chunk=chunk)

    def plain(moving):
        return _plain(**moving, **fixed, temperature=temperature)

    ours, theirs = jax.jit(chunked)(moving), plain(moving)
    assert set(ours) == set(theirs)
    for name in theirs:
        bound = 1e-5 * max(1, jnp.abs(theirs[name]).max())
        np.testing.assert_allclose(ours[name], theirs[name], atol=bound, rtol=0, err_msg=name)
    our_gradient, their_gradient = (jax.grad(_weighed(f))(moving) for f in (chunked, plain))
    for name in moving:
        bound = 1e-5 * max(1, jnp.abs(their_gradient[name]).max())
        np.testing.assert_allclose(our_gradient[name], their_gradient[name], atol=bound, rtol=0, err_msg=name)


@pytest.mark.parametrize(
    "count", [8, *(pytest.param(count, marks=pytest.mark.exhaustive) for count in (0, 1, 15, T))]
)
def test_the_first_tokens_alone(inputs, count):
    """Their values and gradients are as ever; a chunk in which none is wanted is not computed."""
    moving, fixed = _split(inputs)
    there = jnp.arange(T) < count

    def statistics(moving, **some):
        out = token_statistics(**moving, **fixed, **EVERYTHING, chunk=8, **some)
        return {name: jnp.where(there, value, 0.0) for name, value in out.items()}

    @jax.jit
    def some(moving, count):
        def made(moving):
            return statistics(moving, count=count)

        return made(moving), jax.grad(_weighed(made))(moving)

    ours, theirs = (
        some(moving, jnp.int32(count)),
        (statistics(moving), jax.grad(_weighed(statistics))(moving)),
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)
    poisoned = {**moving, "hidden": moving["hidden"].at[-(-count // 4) * 4 :].set(jnp.nan)}
    values, gradient = some(poisoned, jnp.int32(count))  # a chunk is 4 tokens, each with two states
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), values, theirs[0])
    assert np.isfinite(gradient["table"]).all()


@pytest.mark.exhaustive
def test_finite_differences(inputs):
    moving, fixed = _split({**inputs, "table": inputs["table"] * D**-0.5})
    total = _weighed(lambda moving: token_statistics(**moving, **fixed, **EVERYTHING, chunk=10))
    gradient = jax.grad(total)(moving)
    step = 2e-2
    for name in moving:
        for row, column in [(0, 0), (7, 3), (20, 15)]:

            def at(offset, name=name, row=row, column=column):
                return total({**moving, name: moving[name].at[row, column].add(offset)})

            slope = (at(step) - at(-step)) / (2 * step)
            np.testing.assert_allclose(gradient[name][row, column], slope, atol=2e-3, rtol=2e-3, err_msg=name)


def test_bfloat16_against_float32(inputs):
    """On the same rounded inputs. Values as in float32, for products are exact and sums are float32.
    Gradients to 2^-8 in norm: their products read slopes rounded to bfloat16 (2^-9), and are rounded."""
    moving, fixed = _split({**inputs, "table": inputs["table"] * D**-0.5})
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), moving)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), rounded)

    def chunked(moving):
        return token_statistics(**moving, **fixed, **EVERYTHING, chunk=10)

    ours, theirs = jax.jit(chunked)(rounded), _plain(**exact, **fixed, temperature=1.0)
    for name in theirs:
        assert ours[name].dtype == jnp.float32
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5, rtol=0, err_msg=name)
    our_gradient = jax.grad(_weighed(chunked))(rounded)
    their_gradient = jax.grad(_weighed(lambda moving: _plain(**moving, **fixed, temperature=1.0)))(exact)
    for name in moving:
        assert our_gradient[name].dtype == jnp.bfloat16
        error = jnp.linalg.norm(our_gradient[name].astype(jnp.float32) - their_gradient[name])
        assert error < 2**-8 * jnp.linalg.norm(their_gradient[name]), name


def test_a_float32_table_has_a_float32_gradient(inputs):
    """Also under bfloat16 states: chunks are summed in float32 and never rounded between."""
    moving, fixed = _split({**inputs, "table": inputs["table"] * D**-0.5})
    moving = {**moving, "hidden": moving["hidden"].astype(jnp.bfloat16)}

    def gradient(chunk):
        def total(table):
            return token_statistics(moving["hidden"], table, **fixed, chunk=chunk)["logprob"].sum()

        return jax.grad(total)(moving["table"])

    one, many = gradient(64), gradient(1)
    assert many.dtype == jnp.float32
    np.testing.assert_allclose(many, one, atol=1e-5, rtol=0)


def test_corrupted_distribution_is_constant_unless_asked(inputs):
    def total(corrupted_hidden, **options):
        out = token_statistics(
            **inputs | {"corrupted_hidden": corrupted_hidden},
            perception=True,
            reverse_perception=True,
            **options,
        )
        return sum(out[name].sum() for name in ("perception", "reverse_perception", "corrupted"))

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
    out = token_statistics(**same, perception=True, reverse_perception=True)
    np.testing.assert_array_equal(out["perception"], 0)
    np.testing.assert_array_equal(out["reverse_perception"], 0)
    np.testing.assert_array_equal(out["corrupted"], out["logprob"])


@pytest.mark.parametrize("chunk", [1, 8, 64])
def test_top_tokens(inputs, chunk):
    log_p = log_distribution(inputs["hidden"], inputs["table"], inputs["bias"], 0.6)
    expected, expected_ids = jax.lax.top_k(log_p, 5)
    find = jax.jit(
        lambda hidden, table, bias: top_tokens(hidden, table, bias, 5, temperature=0.6, chunk=chunk)
    )
    ids, logprobs = find(inputs["hidden"], inputs["table"], inputs["bias"])
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(logprobs, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("k", [0, V + 1])
def test_more_top_tokens_than_there_are(inputs, k):
    with pytest.raises(ValueError, match=f"k is {k}; it must be between 1 and the {V}"):
        top_tokens(inputs["hidden"], inputs["table"], inputs["bias"], k)


def _shapes(chunk, tokens=640, width=8, vocabulary=1009, corrupted_gradient=True):
    """Shapes of all arrays in the compiled gradient of every statistic."""
    hidden, table = jnp.ones((tokens, width)), jnp.ones((vocabulary, width))
    ids, bias = jnp.zeros(tokens, jnp.int32), jnp.zeros(vocabulary)
    asked = {**EVERYTHING, "corrupted_gradient": corrupted_gradient}

    def total(hidden, table, corrupted):
        out = token_statistics(hidden, table, ids, bias, **asked, corrupted_hidden=corrupted, chunk=chunk)
        return sum(value.sum() for value in out.values())

    lowered = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2))).lower(hidden, table, hidden)
    shapes = re.findall(r"\b[a-z]+\d*\[([\d,]+)\]", lowered.compile().as_text())
    return [tuple(int(n) for n in shape.split(",")) for shape in shapes], lowered.as_text()


def test_no_array_of_tokens_by_vocabulary_is_compiled():
    tokens, vocabulary = 640, 1009

    def whole(shapes):
        return [shape for shape in shapes if np.prod(shape) >= tokens * vocabulary]

    shapes, _ = _shapes(64)
    assert (64, vocabulary) in shapes
    assert not whole(shapes)
    assert max(np.prod(shape) for shape in shapes if vocabulary in shape) == 64 * vocabulary
    assert whole(_shapes(2 * tokens)[0])  # the search does see such arrays


def test_a_constant_corrupted_distribution_costs_no_product_backward():
    """Of both branches: the logits forward, the logits backward, the gradient of the states, and that of the
    table. The branches are rows of the same products, so the number of rows tells what is done."""

    def rows(corrupted_gradient):
        text = _shapes(64, corrupted_gradient=corrupted_gradient)[1]
        return sorted(re.findall(r"dot_general.*: \(tensor<(\d+)x", text))

    assert rows(True) == ["64", "64", "64", "64"]
    assert rows(False) == ["32", "32", "64", "64"]
