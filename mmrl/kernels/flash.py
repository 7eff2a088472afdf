"""Attention that never holds the scores: the TPU forms of `mmrl.kernels.attention`, by JAX's splash kernels.

Functions of the arrays of one device, to be called inside `jax.shard_map`. The kernels do not state over
which mesh axes their outputs vary, so it must be given ``check_vma=False``. ``interpret`` runs the kernels as
plain JAX, for machines without a TPU. Letters as in `mmrl.kernels.attention`; ``n`` image patches.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Bool, Float, Int

_LANES = 128  # blocks and head widths are multiples of it
_BLOCK = 1024  # the largest: tiles of scores of this side, in float32, still fit the vector memory of a v5e


def flash_causal(
    query: Float[Array, "b g s h q k"],
    key: Float[Array, "b g s h k"],
    value: Float[Array, "b g s h k"],
    mask: Bool[Array, "b g s"],
    prefix_key: Float[Array, "b p h k"] | None = None,
    prefix_value: Float[Array, "b p h k"] | None = None,
    prefix_mask: Bool[Array, "b p"] | None = None,
    *,
    interpret: bool = False,
) -> Float[Array, "b g s h q k"]:
    """Teacher-forced attention: each token reads its group's prefix and the own tokens up to itself.

    Equals `two_source_attention` under a causal mask where ``mask`` is True; elsewhere the output is finite
    and means nothing. The prefix is repeated for each member, so that its gradient is the sum over the group.
    """
    b, g, s, h, q, k = query.shape
    block_q, padded = _blocks(s)
    pad = padded - s
    own = [_pad(a, pad, 2) for a in (key, value, mask)]
    length, block_kv = padded, block_q
    if prefix_key is not None:
        assert prefix_value is not None
        assert prefix_mask is not None
        # All the padding between prefix and own tokens, so that every query may read at least itself.
        block_kv, length = _blocks(prefix_key.shape[1] + padded)
        prefix = [_pad(a, length - padded - a.shape[1], 1) for a in (prefix_key, prefix_value, prefix_mask)]
        own = [
            jnp.concatenate([jnp.broadcast_to(a[:, None], (b, g, *a.shape[1:])), o], axis=2)
            for a, o in zip(prefix, own, strict=True)
        ]
    causal = masks.CausalMask((padded, length), offset=length - padded)
    query = jnp.einsum("bgshqk->bghqsk", _pad(query, pad, 2) * k**-0.5)
    key, value = (jnp.einsum("bgthk->bghtk", a).reshape(b * g, h, length, k) for a in own[:2])
    out = _attend(
        query.reshape(b * g, h * q, padded, k),
        key,
        value,
        splash.SegmentIds(
            _pad(mask, pad, 2).reshape(b * g, padded).astype(jnp.int32),
            own[2].reshape(b * g, length).astype(jnp.int32),
        ),
        causal,
        (block_q, block_kv),
        interpret,
    )
    return jnp.einsum("bghqsk->bgshqk", out.reshape(b, g, h, q, padded, k))[:, :, :s]


def flash_images(
    query: Float[Array, "b n h k"],
    key: Float[Array, "b n h k"],
    value: Float[Array, "b n h k"],
    image: Int[Array, "b n"],
    *,
    interpret: bool = False,
) -> Float[Array, "b n h k"]:
    """Full attention of the vision tower: each patch reads all patches of its image.

    ``image`` is -1 for empty slots, whose output is finite and means nothing.
    """
    n = query.shape[1]
    block, padded = _blocks(n)
    ids = _pad(image, padded - n, 1, -1).astype(jnp.int32)
    query, key, value = (
        jnp.einsum("bnhk->bhnk", _pad(a, padded - n, 1))
        for a in (query * query.shape[-1] ** -0.5, key, value)
    )
    full = masks.FullMask((padded, padded))
    out = _attend(query, key, value, splash.SegmentIds(ids, ids), full, (block, block), interpret)
    return jnp.einsum("bhnk->bnhk", out)[:, :n]


def _attend(
    query: Float[Array, "b a s k"],
    key: Float[Array, "b h t k"],
    value: Float[Array, "b h t k"],
    segments: splash.SegmentIds,
    mask: masks.Mask,
    blocks: tuple[int, int],
    interpret: bool,
) -> Float[Array, "b a s k"]:
    """Attention of ``a`` query heads, ``a / h`` to a key/value head, within equal ids and under ``mask``.

    The query is scaled already. The backward kernel keeps a partial gradient of the query for each block of
    keys, ``t / 1024`` times the query's size, and saves thereby two of seven matrix products.
    """
    block_q, block_kv = blocks
    width = query.shape[-1]
    query, key, value = (_pad(a, -width % _LANES, -1) for a in (query, key, value))
    kernel = splash.make_splash_mha_single_device(
        masks.MultiHeadMask([mask] * query.shape[1]),
        block_sizes=splash.BlockSizes(
            block_q=block_q,
            block_kv=block_kv,
            block_q_dkv=block_q,
            block_kv_dkv=block_kv,
            use_fused_bwd_kernel=True,
        ),
        interpret=interpret,
    )
    return jax.vmap(kernel)(query, key, value, segments)[..., :width]


def _blocks(length: int) -> tuple[int, int]:
    """The block that covers ``length`` in the fewest blocks with the least padding, and the padded length."""
    count = -(-length // _BLOCK)
    block = -(-length // (count * _LANES)) * _LANES
    return block, count * block


def _pad(x: Array, amount: int, axis: int, value: int = 0) -> Array:
    """``amount`` further slots of ``value`` at the end of ``axis``."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, amount)
    return jnp.pad(x, widths, constant_values=value)
