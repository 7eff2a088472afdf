"""Attention over packed rows on the mesh: each device takes its rows and its heads."""

from functools import partial

from jaxtyping import Array, Float

from mmrl.kernels.packed import BlockPairs, Segments, block_of, packed_attention
from mmrl.kernels.packed_tpu import packed_attention_tpu
from mmrl.mesh import shard_map_kernel


def attend_packed(
    attention: str,
    query: Float[Array, "b n h q k"],
    key: Float[Array, "b n h k"],
    value: Float[Array, "b n h k"],
    segments: Segments,
    pairs: BlockPairs,
) -> Float[Array, "b n h q k"]:
    """`packed_attention` in the form that ``config.attention`` names."""
    block = block_of(query.shape[1])
    form = packed_attention
    if attention != "plain" and block >= 128:  # the kernels take no smaller ones
        form = partial(packed_attention_tpu, interpret=attention == "interpreted")

    def of_device(query: Array, key: Array, value: Array, *ids: Array) -> Array:
        return form(query, key, value, Segments(*ids[:3]), BlockPairs(*ids[3:]), block=block)

    heads, row = ("batch", None, "heads", None), ("batch", None)
    lists = ("batch", None, None)
    axes = [(*heads, None), heads, heads, row, row, row, lists, lists, ("batch",)]
    arrays = (segments.span, segments.reads, segments.context, pairs.by_query, pairs.by_key, pairs.count)
    return shard_map_kernel(of_device, axes, like=0, checked=False)(query, key, value, *arrays)
