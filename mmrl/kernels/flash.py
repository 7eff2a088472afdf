"""Attention of images that never holds the scores: `self_attention` on TPU, by JAX's splash kernels.

Functions of the arrays of one device, to be called inside `jax.shard_map`. The kernels do not state over
which mesh axes their outputs vary, so it must be given ``check_vma=False``. ``interpret`` runs the kernels as
plain JAX, for machines without a TPU. ``b`` prompts, ``n`` image patches, ``h`` heads, ``k`` head width.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float, Int

_LANES = 128  # blocks and head widths are multiples of it
_BLOCK = 1024  # the largest: tiles of scores of this side, in float32, still fit the vector memory of a v5e


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
    (n, width), scale = (query.shape[1], query.shape[-1]), query.shape[-1] ** -0.5
    block, padded = _blocks(n)
    ids = _pad(image, padded - n, 1, -1).astype(jnp.int32)
    query, key, value = (
        jnp.einsum("bnhk->bhnk", _pad(_pad(a, padded - n, 1), -width % _LANES, -1))
        for a in (query * scale, key, value)
    )
    kernel = splash.make_splash_mha_single_device(
        masks.MultiHeadMask([masks.FullMask((padded, padded))] * query.shape[1]),
        # The backward kernel keeps a partial gradient of the query for each block of keys, and saves thereby
        # two of seven matrix products.
        block_sizes=splash.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            use_fused_bwd_kernel=True,
        ),
        interpret=interpret,
    )
    out = jax.vmap(kernel)(query, key, value, splash.SegmentIds(ids, ids))
    return jnp.einsum("bhnk->bnhk", out)[:, :n, :, :width]


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
