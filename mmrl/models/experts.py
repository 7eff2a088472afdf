"""Mixture of experts in place of the gated MLP: each token goes to the few experts that a router chooses.

The router works in float32 and no token is dropped. Weights are cut by expert over the mesh axis ``expert``,
and by hidden unit over ``tensor``. Prompts are cut over ``expert`` as over the other axes of the batch, so
that attention and all else is computed once: for this layer the devices along the axis exchange tokens. Each
gathers the tokens of all, computes those that chose its own experts, and the sums go back to where the tokens
lie. A device sends its tokens to ``expert - 1`` others; with as many experts a token as devices, sending each
token only where it is wanted would not be less, and its sizes would be data.

The rows of a device, a token and one of its own experts each, are sorted by expert for `ragged_products`.
There could be as many as all tokens choose, though on average there is only the device's share. So they are
taken in passes of a little more than that share: mostly there is one, and memory is that of one. How many
there are is data, and a device does not wait within them for another.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from mmrl.kernels.ragged import ragged_products
from mmrl.mesh import ACTIVATIONS, spec
from mmrl.models.config import Experts
from mmrl.types import Params

_SMALL = 8192  # rows: fewer are always one pass
_MARGIN = 9 / 8  # of a pass over the share of a device
_BLOCK = 128  # passes are multiples of it


class RouterStatistics(NamedTuple):
    """Sums over the real tokens of each row; to be summed, or stacked, over rows, layers and batches."""

    tokens: Float[Array, "*b"]
    chosen: Float[Array, "*b e"]  # tokens that chose an expert
    probability: Float[Array, "*b e"]  # of the router, before the choice
    entropy: Float[Array, "*b"]  # of that distribution, in nats


def expert_mlp(
    x: Float[Array, "b n d"],
    weights: Params,
    experts: Experts,
    real: Bool[Array, "b n"],
    axes: tuple[str | None, str | None, str | None],
) -> tuple[Float[Array, "b n d"], RouterStatistics]:
    """Sum of the gated MLPs of each token's experts, weighted by the router.

    Args:
      x: normed states.
      weights: "router" ``[d e]``, "gate_up" ``[e 2 d f]``, "down" ``[e f d]``.
      experts: their sizes.
      real: tokens that are computed and counted; the output of others is zero.
      axes: logical axes of ``x``, and of the output.
    """
    product = {name: weights[name].astype(x.dtype) for name in ("gate_up", "down")}
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        y, sums = _of_device(experts, _Cut(), x, real, weights["router"], product)
        return y, RouterStatistics(*sums)
    sizes = dict(mesh.shape)
    states = spec(axes, x.shape, ACTIVATIONS, sizes)
    inward = spec(("experts", None, None, "mlp"), product["gate_up"].shape, ACTIVATIONS, sizes)
    outward = PartitionSpec(inward[0], inward[3], None)
    cut = _Cut(_names(inward[0]), _names(inward[3]), _names(states[0]), _names(states[1]))
    row, by_expert = PartitionSpec(states[0]), PartitionSpec(states[0], None)
    function = jax.shard_map(
        partial(_of_device, experts, cut),
        in_specs=(
            states,
            PartitionSpec(*states[:2]),
            PartitionSpec(),
            {"gate_up": inward, "down": outward},
        ),
        out_specs=(states, (row, by_expert, by_expert, row)),
        check_vma=False,  # the kernels do not say how their outputs vary
    )
    y, sums = function(x, real, weights["router"], product)
    return y, RouterStatistics(*sums)


class _Cut(NamedTuple):
    """Mesh axes that cut experts, hidden units, rows and the tokens of a row."""

    experts: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()


def _names(part: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (part,) if isinstance(part, str) else tuple(part or ())


def _of_device(
    experts: Experts, cut: _Cut, x: Array, real: Array, router: Array, product: Params
) -> tuple[Array, tuple[Array, ...]]:
    """The part of one device; ``product`` are the weights of its own experts."""
    index, share, statistics = route(x, router, experts, real)
    statistics = jax.tree.map(partial(_sum_over, axes=cut.tokens), statistics)
    # A token without a choice chose an expert that nobody has.
    index = jnp.where(real[..., None], index, experts.count)
    flat = [array.reshape(-1, array.shape[-1]) for array in (x, index, share)]
    summed = cut.experts + cut.units
    exchanged = tuple(axis for axis in summed if axis in cut.rows + cut.tokens)
    if exchanged:
        flat = [jax.lax.all_gather(array, exchanged, tiled=True) for array in flat]
    first = jax.lax.axis_index(cut.experts) * product["down"].shape[0] if cut.experts else 0
    states, index, share = flat
    y = _own_experts(experts, states, index - first, share, product)
    y = _sum_over(y, tuple(axis for axis in summed if axis not in exchanged))
    if exchanged:
        y = jax.lax.psum_scatter(y, exchanged, tiled=True)
    return y.reshape(x.shape), tuple(statistics)


def _sum_over(x: Array, axes: tuple[str, ...]) -> Array:
    return jax.lax.psum(x, axes) if axes else x


def route(
    x: Float[Array, "b n d"], router: Float[Array, "d e"], experts: Experts, real: Bool[Array, "b n"]
) -> tuple[Int[Array, "b n k"], Float[Array, "b n k"], RouterStatistics]:
    """The experts of each token, most probable first, and their weights, which sum to one; in float32."""
    logits = jnp.einsum(
        "bnd,de->bne", x.astype(jnp.float32), router.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
    )
    log_probability = jax.nn.log_softmax(logits)
    probability = jnp.exp(log_probability)
    top, index = jax.lax.top_k(probability, experts.per_token)
    chosen = (index[..., None] == jnp.arange(experts.count)).any(axis=2)
    entropy = -(probability * log_probability).sum(axis=-1)
    statistics = RouterStatistics(
        real.sum(axis=1, dtype=jnp.float32),
        jnp.where(real[..., None], chosen, False).sum(axis=1, dtype=jnp.float32),
        jnp.where(real[..., None], probability, 0).sum(axis=1),
        jnp.where(real, entropy, 0).sum(axis=1),
    )
    return index, top / top.sum(axis=-1, keepdims=True), statistics


def _own_experts(
    experts: Experts,
    x: Float[Array, "t d"],
    index: Int[Array, "t k"],
    share: Float[Array, "t k"],
    product: Params,
) -> Float[Array, "t d"]:
    """What the experts at hand add to each token; those with an ``index`` out of range are elsewhere."""
    here = product["down"].shape[0]
    key = jnp.where((index >= 0) & (index < here), index, here).reshape(-1)
    order = jnp.argsort(key, stable=True)
    sizes = (key[:, None] == jnp.arange(here)).sum(axis=0, dtype=jnp.int32)
    step = _rows_of_pass(key.size, here / experts.count)
    token, share = (
        jnp.pad(rows, (0, -key.size % step)) for rows in (order // index.shape[1], share.reshape(-1)[order])
    )
    return _in_passes(step, token, sizes, x, share, product).astype(x.dtype)


def _rows_of_pass(rows: int, part: float) -> int:
    """Rows of a pass, where the experts at hand are a ``part`` of all."""
    if part == 1 or rows <= _SMALL:
        return rows
    return min(rows, -(-round(rows * part * _MARGIN) // _BLOCK) * _BLOCK)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_passes(
    step: int,
    token: Int[Array, "r"],
    sizes: Int[Array, "e"],
    x: Float[Array, "t d"],
    share: Float[Array, "r"],
    product: Params,
) -> Float[Array, "t d"]:
    """Sum of the experts' rows into their tokens, ``step`` rows in a pass; float32.

    Args:
      step: rows of a pass; static.
      token: of each row, the rows sorted by expert.
      sizes: rows of each expert; rows past the last are not computed.
      x: states of tokens.
      share: weight of each row.
      product: weights of the experts.
    """

    def add(i: Array | int, y: Array) -> Array:
        at, weight, part = _pass(step, token, sizes, share, i)
        return y.at[at].add(_gated_rows(x[at], weight, product, part).astype(y.dtype))

    return _over_passes(step, token, sizes, add, jnp.zeros(x.shape, jnp.float32))


def _forward(step: int, *arrays: Array | Params) -> tuple[Array, tuple]:
    return _in_passes(step, *arrays), arrays


def _backward(step: int, arrays: tuple, slope: Float[Array, "t d"]) -> tuple:
    """Each pass makes its hidden units anew: as rematerialised layers do, and no pass keeps any."""
    token, sizes, x, share, product = arrays

    def add(i: Array | int, total: tuple) -> tuple:
        of_x, of_share, of_product = total
        at, weight, part = _pass(step, token, sizes, share, i)
        _, pull_back = jax.vjp(partial(_gated_rows, sizes=part), x[at], weight, product)
        rows, weight, matrices = pull_back(slope[at].astype(x.dtype))
        return (
            of_x.at[at].add(rows.astype(of_x.dtype)),
            jax.lax.dynamic_update_slice_in_dim(of_share, weight, i * step, 0),
            jax.tree.map(jnp.add, of_product, matrices),
        )

    zeros = (jnp.zeros(x.shape, jnp.float32), *jax.tree.map(jnp.zeros_like, (share, product)))
    of_x, of_share, of_product = _over_passes(step, token, sizes, add, zeros)
    return None, None, of_x.astype(x.dtype), of_share, of_product


_in_passes.defvjp(_forward, _backward)


def _over_passes(step: int, token: Array, sizes: Array, body: Callable, start: Array | tuple) -> Any:
    """``body`` of all passes, the first outside of the loop: what it adds to zeros is not added."""
    first = body(0, start)
    if token.shape[0] == step:
        return first
    with jax.named_scope("further_passes"):
        return jax.lax.fori_loop(1, -(-sizes.sum() // step), body, first)


def _pass(step: int, token: Array, sizes: Array, share: Array, i: Array | int) -> tuple[Array, ...]:
    """Tokens and weights of the rows of pass ``i``, and how many of them each expert has."""
    at, weight = (jax.lax.dynamic_slice_in_dim(rows, i * step, step) for rows in (token, share))
    ends = jnp.clip(jnp.cumsum(sizes) - i * step, 0, step)
    return at, weight, jnp.diff(ends, prepend=0)


def _gated_rows(
    x: Float[Array, "r d"], weight: Float[Array, "r"], product: Params, sizes: Int[Array, "e"]
) -> Float[Array, "r d"]:
    """`mmrl.models.layers.gated_mlp` of the expert of each row, times the row's weight."""
    gate, up = ragged_products(x, product["gate_up"], sizes)
    # The weight goes in before the last product: its gradient then needs nothing that comes after.
    inner = (jax.nn.silu(gate) * up).astype(jnp.float32) * weight[:, None]
    return ragged_products(inner.astype(x.dtype), product["down"][:, None], sizes)[0]


def balance_loss(part: RouterStatistics, batch: RouterStatistics) -> Float[Array, ""]:
    """Load-balancing loss (Switch Transformers, arXiv:2101.03961, equations 4 to 6) of ``part`` of a batch.

    ``experts * sum of (tokens that chose an expert * its mean probability)``, both as shares of all tokens of
    all layers: ``per_token`` where the load is even. Over the parts of a batch, it sums to that of the batch,
    and so does its gradient, because what was chosen is counted in the whole ``batch``.
    """
    probability = part.probability.reshape(-1, part.probability.shape[-1]).sum(axis=0)
    chosen = batch.chosen.reshape(-1, probability.size).sum(axis=0)
    tokens = jnp.maximum(batch.tokens.sum(), 1)
    return probability.size * jnp.sum(jax.lax.stop_gradient(chosen) / tokens * probability / tokens)


def router_metrics(statistics: RouterStatistics) -> dict[str, Float[Array, ""]]:
    """For the log, of statistics ``[l b]`` stacked over layers.

    Returns:
      "router/load_max", tokens of the busiest expert over those of the mean one, averaged over layers;
      "router/entropy", averaged over tokens, in nats; "router/balance", `balance_loss` of all.
    """
    chosen = statistics.chosen.sum(axis=1)
    load = chosen.max(axis=-1) / jnp.maximum(chosen.mean(axis=-1), 1e-9)
    return {
        "router/load_max": load.mean(),
        "router/balance": balance_loss(statistics, statistics),
        "router/entropy": statistics.entropy.sum() / jnp.maximum(statistics.tokens.sum(), 1),
    }
