"""Weights of a model as its sizes say: shape, sharding axes, initialisation, place in the checkpoint."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from mmrl.models.config import ModelConfig, VisionConfig
from mmrl.models.params import Param


def _frozen(**names: str) -> Callable[[], Mapping[str, str]]:
    return lambda: MappingProxyType(names)


@dataclass(frozen=True)
class CheckpointNames:
    """Beginnings and middles of the names of tensors in a family's files; those of layers hold ``{}``."""

    text: str = "model"
    vision: str = "visual"
    head: str = "lm_head.weight"
    patch_embedding: str = "patch_embed.proj"
    block: str = "blocks.{}"
    vision_norms: tuple[str, str] = ("norm1", "norm2")  # before attention, before the MLP
    vision_attention: Mapping[str, str] = field(
        default_factory=_frozen(qkv="attn.qkv", out="attn.proj")
    )  # or, of three tensors: ``query``, ``key``, ``value``, and ``query_norm`` and ``key_norm``
    vision_mlp: Mapping[str, str] = field(
        default_factory=_frozen(gate="mlp.gate_proj", up="mlp.up_proj", down="mlp.down_proj")
    )
    connector: str = "visual.merger"
    merger: Mapping[str, str] = field(default_factory=_frozen(norm="ln_q", **{"in": "mlp.0", "out": "mlp.2"}))
    tap_merger: str = "deepstack_merger_list.{}"


def describe(config: ModelConfig, names: CheckpointNames) -> dict:
    """The weights of the model: a nested dict of `Param`."""
    table = (config.vocabulary, config.width), ("vocab", "embed")
    tree: dict = {
        "embedding": Param(*table, f"{names.text}.embed_tokens.weight", "v d -> v d", "embedding"),
        "layers": _text_layers(config, f"{names.text}.layers.{{}}"),
        "final_norm": Param((config.width,), (None,), f"{names.text}.norm.weight", "d -> d", "ones"),
    }
    if config.vision.layers:
        tree["vision"] = _vision(config, names)
    if not config.tied:
        tree["lm_head"] = Param(*table, names.head, "v d -> v d", "embedding")
    return tree


def _text_layers(config: ModelConfig, prefix: str) -> dict:
    layers, d = config.layers, config.width
    h, k = config.kv_heads, config.head_dim
    q = config.query_heads // h

    def weight(shape: tuple, axes: tuple, name: str, layout: str, init: str = "fan_in") -> Param:
        return Param((layers, *shape), ("layers", *axes), f"{prefix}.{name}", layout, init)

    def norm(name: str, width: int = d) -> Param:
        return weight((width,), (None,), f"{name}.weight", "d -> d", "ones")

    attention: dict[str, Param] = {
        "norm": norm("input_layernorm"),
        "query": weight(
            (d, h, q, k), ("embed", "heads", None, None), "self_attn.q_proj.weight", "(h q k) d -> d h q k"
        ),
        "out": weight(
            (h, q, k, d), ("heads", None, None, "embed"), "self_attn.o_proj.weight", "d (h q k) -> h q k d"
        ),
    }
    for ours, theirs in (("key", "k_proj"), ("value", "v_proj")):
        attention[ours] = weight(
            (d, h, k), ("embed", "heads", None), f"self_attn.{theirs}.weight", "(h k) d -> d h k"
        )
        if config.qkv_bias:
            attention[f"{ours}_bias"] = weight(
                (h, k), ("heads", None), f"self_attn.{theirs}.bias", "(h k) -> h k", "zeros"
            )
    if config.qkv_bias:
        attention["query_bias"] = weight(
            (h, q, k), ("heads", None, None), "self_attn.q_proj.bias", "(h q k) -> h q k", "zeros"
        )
    if config.qk_norm:
        attention |= {"query_norm": norm("self_attn.q_norm", k), "key_norm": norm("self_attn.k_norm", k)}
    tree: dict = {"attention": attention, "mlp_norm": norm("post_attention_layernorm")}
    dense = tuple(layer for layer in range(layers) if layer not in config.expert_layers)
    if dense:
        tree["mlp"] = _gated_mlp(config, prefix, dense)
    if config.expert_layers:
        tree["experts"] = _experts(config, prefix)
    return tree


def _gated_mlp(config: ModelConfig, prefix: str, layers: tuple[int, ...]) -> dict[str, Param]:
    d, f = config.width, config.mlp_width

    def weight(shape: tuple, axes: tuple, name: str, layout: str) -> Param:
        return Param(
            (len(layers), *shape), ("layers", *axes), f"{prefix}.mlp.{name}.weight", layout, layers=layers
        )

    return {
        "gate": weight((d, f), ("embed", "mlp"), "gate_proj", "f d -> d f"),
        "up": weight((d, f), ("embed", "mlp"), "up_proj", "f d -> d f"),
        "down": weight((f, d), ("mlp", "embed"), "down_proj", "d f -> f d"),
    }


def _experts(config: ModelConfig, prefix: str) -> dict[str, Param]:
    assert config.experts is not None
    layers, d, e, f = config.expert_layers, config.width, config.experts.count, config.experts.width

    def weight(shape: tuple, axes: tuple, name: str, layout: str, **more: Any) -> Param:
        shape, axes = (len(layers), *shape), ("layers", *axes)
        return Param(shape, axes, f"{prefix}.mlp.{name}", layout, layers=layers, **more)

    matrices: dict[str, Any] = {"init": "expert_fan_in", "either_way": True}
    return {
        "router": weight((d, e), ("embed", None), "gate.weight", "e d -> d e"),
        "gate_up": weight(
            (e, 2, d, f),
            ("experts", None, "expert_embed", "mlp"),
            "experts.gate_up_proj",
            "e d (two f) -> e two d f",
            **matrices,
        ),
        "down": weight(
            (e, f, d), ("experts", "mlp", "expert_embed"), "experts.down_proj", "e f d -> e f d", **matrices
        ),
    }


def _vision(config: ModelConfig, names: CheckpointNames) -> dict:
    vision, d = config.vision, config.vision.width
    size, merged = vision.patch_size, vision.merge**2 * d
    frames, t = ((vision.frames,), "t ") if vision.frames > 1 else ((), "")
    shape, patch = (*frames, 3, size, size, d), f"{names.vision}.{names.patch_embedding}"
    tree = {
        "patch_embedding": Param(
            shape,
            (*[None] * (len(shape) - 1), "embed"),
            f"{patch}.weight",
            f"d channel {t}row column -> {t}channel row column d",
        ),
        "layers": _vision_layers(vision, names),
        "merger": _merger(
            config, names.connector, names.merger, normed=d if vision.connector == "merger" else merged
        ),
    }
    if vision.patch_bias:
        tree["patch_embedding_bias"] = Param((d,), (None,), f"{patch}.bias", "d -> d", "zeros")
    if vision.position_table:
        side = vision.position_table
        tree["position_table"] = Param(
            (side, side, d),
            (None, None, "embed"),
            f"{names.vision}.pos_embed.weight",
            "(row column) d -> row column d",
            "embedding",
        )
    if vision.class_token:
        for ours, theirs, count in (
            ("class_token", "cls_token", 1),
            ("tile_positions", "position_embeddings", 1 + config.window_slots),
        ):
            tree[ours] = Param(
                (1, count, d),
                (None, None, "embed"),
                f"{names.vision}.embeddings.{theirs}",
                "one n d -> one n d",
                "embedding",
            )
    if vision.taps:
        prefix = f"{names.vision}.{names.tap_merger}"
        tree["tap_mergers"] = _merger(config, prefix, names.merger, normed=merged, stack=(len(vision.taps),))
    return tree


def _vision_layers(vision: VisionConfig, names: CheckpointNames) -> dict:
    d, f = vision.width, vision.mlp_width

    def weight(shape: tuple, axes: tuple, name: str, layout: str, init: str = "fan_in") -> Param:
        full = f"{names.vision}.{names.block}.{name}"
        return Param((vision.layers, *shape), ("layers", *axes), full, layout, init)

    def norm(name: str, theirs: str) -> dict[str, Param]:
        made = {name: weight((d,), (None,), f"{theirs}.weight", "d -> d", "ones")}
        if vision.norm == "layer":
            made[f"{name}_bias"] = weight((d,), (None,), f"{theirs}.bias", "d -> d", "zeros")
        return made

    mlp = {}
    for ours in ("gate", "up", "down") if vision.activation == "silu" else ("up", "down"):
        axes, (i, o) = (("mlp", "embed"), (f, d)) if ours == "down" else (("embed", "mlp"), (d, f))
        theirs = names.vision_mlp[ours]
        mlp[ours] = weight((i, o), axes, f"{theirs}.weight", "o i -> i o")
        mlp[f"{ours}_bias"] = weight((o,), (axes[1],), f"{theirs}.bias", "o -> o", "zeros")
    tree = {
        **norm("attention_norm", names.vision_norms[0]),
        **_vision_attention(vision, names.vision_attention, weight),
        **norm("mlp_norm", names.vision_norms[1]),
        "mlp": mlp,
    }
    if vision.layer_scale:
        for ours, theirs in (("attention_scale", "lambda_1"), ("mlp_scale", "lambda_2")):
            tree[ours] = weight((d,), (None,), theirs, "d -> d", "ones")
    return tree


def _vision_attention(
    vision: VisionConfig, names: Mapping[str, str], weight: Callable[..., Param]
) -> dict[str, Param]:
    """``weight`` makes one of shape, axes, the end of its name, and layout, stacked over the layers."""
    d, h, k = vision.width, vision.heads, vision.head_dim
    out = names["out"]
    tree = {
        "out": weight((h, k, d), ("heads", None, "embed"), f"{out}.weight", "d (h k) -> h k d"),
        "out_bias": weight((d,), (None,), f"{out}.bias", "d -> d", "zeros"),
    }
    if "qkv" in names:
        theirs = names["qkv"]
        tree["qkv"] = weight(
            (d, 3, h, k), ("embed", None, "heads", None), f"{theirs}.weight", "(x h k) d -> d x h k"
        )
        tree["qkv_bias"] = weight(
            (3, h, k), (None, "heads", None), f"{theirs}.bias", "(x h k) -> x h k", "zeros"
        )
    else:
        for ours in ("query", "key", "value"):
            theirs = names[ours]
            tree[ours] = weight((d, h, k), ("embed", "heads", None), f"{theirs}.weight", "(h k) d -> d h k")
            if vision.qkv_bias:
                bias = weight((h, k), ("heads", None), f"{theirs}.bias", "(h k) -> h k", "zeros")
                tree[f"{ours}_bias"] = bias
    for ours in ("query", "key") if vision.qk_norm else ():
        theirs = names[f"{ours}_norm"]
        tree[f"{ours}_norm"] = weight((d,), (None,), f"{theirs}.weight", "d -> d", "ones")
    return tree


def _merger(
    config: ModelConfig, prefix: str, names: Mapping[str, str], normed: int, stack: tuple[int, ...] = ()
) -> dict[str, Param]:
    """A merger, or a ``stack`` of them; ``normed`` is the width of its norm."""
    merged, layers = config.vision.merge**2 * config.vision.width, ("layers",) * len(stack)
    inner = merged if config.vision.connector == "merger" else config.width

    def weight(shape: tuple, axes: tuple, name: str, layout: str, init: str = "fan_in") -> Param:
        return Param((*stack, *shape), (*layers, *axes), f"{prefix}.{name}", layout, init)

    tree = {
        "norm": weight((normed,), (None,), f"{names['norm']}.weight", "d -> d", "ones"),
        "in": weight((merged, inner), ("embed", "mlp"), f"{names['in']}.weight", "o i -> i o"),
        "in_bias": weight((inner,), ("mlp",), f"{names['in']}.bias", "o -> o", "zeros"),
        "out": weight((inner, config.width), ("mlp", "embed"), f"{names['out']}.weight", "o i -> i o"),
        "out_bias": weight((config.width,), (None,), f"{names['out']}.bias", "o -> o", "zeros"),
    }
    if config.vision.norm == "layer" or config.vision.connector == "projector":
        tree["norm_bias"] = weight((normed,), (None,), f"{names['norm']}.bias", "d -> d", "zeros")
    return tree
