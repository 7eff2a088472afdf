"""Choice of what a config leaves to data and memory, and refusal of a run that has no room."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Int

from mmrl.config import Config
from mmrl.kernels.packed import row_length
from mmrl.mesh import batch_shards
from mmrl.models.config import ModelConfig
from mmrl.models.prompts import TOKEN_STEP, bucket
from mmrl.rollout.slots import halves
from mmrl.train.memory import (
    GIB,
    ROOM,
    Estimate,
    Widths,
    estimate,
    free_bytes,
    on_cpu,
    out_of_memory,
    sampling,
)

_OPEN = (  # keys that may be left open
    "data.prompt_buckets",
    "data.patch_buckets",
    "rollout.prompt_slots",
    "rollout.slots_per_prompt",
    "train.row_tokens",
)
_SLOTS, _ROW = 256, 16384  # more prompt slots, or tokens of a row, are not chosen: nothing gets faster
_ROWS = 16  # of a device, were all responses as long as they may be: else the last one would be half empty
_SHORT = 512  # tokens of a row below which nothing gets faster
_SAVES = 0.85  # of the next larger bucket: one that is smaller is worth a program of its own


def buckets_of(lengths: Int[np.ndarray, "n"], batch: int, step: int) -> tuple[int, ...]:
    """Buckets for prompts of these lengths: multiples of ``step``, the largest as large as it must be.

    The longest of a batch decides on its bucket, so there is a smaller one where half of the batches of
    ``batch`` prompts drawn at random would fit it, and it saves something; and 0 if a prompt needs nothing.
    """
    half = np.quantile(lengths, 0.5 ** (1 / batch), method="higher")
    sizes = sorted({-(-int(size) // step) * step for size in (half, lengths.max())})
    smaller = [size for size in sizes[:-1] if size <= _SAVES * sizes[-1]]
    return tuple(sorted({*([0] if lengths.min() == 0 else []), *smaller, sizes[-1]}))


@dataclass(frozen=True)
class Fitted:
    """A run with what its config leaves to data and memory."""

    config: Config
    chosen: dict[str, Any]  # values of the keys that were left open, as JSON
    model: ModelConfig
    mesh: Mesh
    widths: Widths
    limit: int | None

    def estimate(self) -> Estimate:
        """Of its memory."""
        return estimate(self.config, self.model, self.mesh, self.widths, cpu=on_cpu(self.mesh))

    def stated(self) -> str:
        """One line that says what was chosen and the memory it takes."""
        keys = ", ".join(f"config.{key}={_shown(value)}" for key, value in self.chosen.items())
        there = "" if self.limit is None else f" of {self.limit / GIB:.2f} that are free"
        return (
            f"memory: up to {self.estimate().peak / GIB:.2f} GiB of a device{there}, for prompts of up to"
            f" {self.widths.prompt} tokens and {self.widths.patches} patch slots"
            + (f"; chosen: {keys}" if keys else "")
        )

    @contextmanager
    def explained(self) -> Iterator[None]:
        """A block whose lack of memory is a ValueError that shows the estimate."""
        try:
            yield
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            limit = self.limit or self.estimate().peak
            why = f"out of memory, which was not foreseen: {str(error).splitlines()[0][:300]}"
            # More was needed than was estimated: what is proposed must take clearly less.
            text = refusal(self.config, self.model, self.mesh, self.widths, limit, why, room=ROOM / 2)
            raise ValueError(text) from error


def fit(
    config: Config,
    model: ModelConfig,
    mesh: Mesh,
    lengths: Int[np.ndarray, "n 2"],
    limit: int | None,
    before: Mapping[str, Any],
) -> Fitted:
    """Choose what the config leaves open: buckets by the data; slots and rows by the memory.

    Args:
      config, model, mesh: the run.
      lengths: tokens and patch slots of every prompt.
      limit: bytes that a device may hold (`device_bytes`); None refuses nothing.
      before: what was chosen when the run was started before: that stays, if there is room for it.

    Raises:
      ValueError: there is no room; with a table of bytes, and keys that make room if there are any.
    """
    made = _with(config, _buckets(config, model, lengths, before))
    longest = lengths.max(axis=0).tolist()
    widths = Widths(bucket(longest[0], made.data.prompt_buckets), bucket(longest[1], made.data.patch_buckets))

    def fits(config: Config, room: float = ROOM) -> bool:
        found = estimate(config, model, mesh, widths, cpu=on_cpu(mesh))
        return limit is None or found.peak <= room * limit

    keys = [
        key
        for key in ("rollout.slots_per_prompt", "rollout.prompt_slots", "train.row_tokens")
        if not _get(made, key)
    ]
    shards = batch_shards(mesh)
    made = _with(made, {key: _choices(key, made, shards, widths)[-1] for key in keys})
    again = _with(made, {key: before[key] for key in keys if key in before})
    if again != made and fits(again):
        made, keys = again, []
    for key in keys:
        larger = (_with(made, {key: value}) for value in _choices(key, made, shards, widths))
        made = next((config for config in larger if fits(config)), made)
    if limit is not None and not fits(made, room=1.0):
        raise ValueError(refusal(made, model, mesh, widths, limit))
    chosen = {key: _get(made, key) for key in _OPEN if not _get(config, key)}
    return Fitted(made, chosen, model, mesh, widths, limit)


def max_prompt_slots(config: Config, model: ModelConfig, mesh: Mesh, widths: Widths, prompts: int) -> int:
    """Prompts to decode at once, of so many: what the memory that is free now has room for, at least one."""
    free, shards = free_bytes(mesh), batch_shards(mesh)
    rollout = replace(
        config.rollout,
        prompts=prompts,
        slots_per_prompt=config.rollout.slots_per_prompt or config.rollout.group,
    )
    config = replace(config, rollout=rollout)
    choices = _choices("rollout.prompt_slots", config, shards, widths)
    for prompt_slots in choices if free else choices[:1]:
        parts = sampling(
            _with(config, {"rollout.prompt_slots": prompt_slots}), model, mesh, widths, on_cpu(mesh)
        )
        if not free or sum(parts.values()) <= ROOM * free:
            return prompt_slots
    return choices[-1]


def _buckets(
    config: Config, model: ModelConfig, lengths: Int[np.ndarray, "n 2"], before: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
    """The buckets that the config leaves open."""
    made: dict[str, tuple[int, ...]] = {}
    for column, (key, step) in enumerate(zip(_OPEN[:2], (TOKEN_STEP, model.window_slots), strict=True)):
        if not _get(config, key):
            found = buckets_of(lengths[:, column], config.rollout.prompts, step)
            made[key] = tuple(before.get(key, found))
    question = config.reward.self_judge.question
    if question and _OPEN[0] in made and _OPEN[0] not in before:
        # A question about a response holds both prompt and response.
        most = made[_OPEN[0]][-1] + config.rollout.max_tokens + len(question) + 256
        made[_OPEN[0]] += (bucket(most, (), TOKEN_STEP),)
    return made


def _choices(key: str, config: Config, shards: int, widths: Widths) -> list[int]:
    """Values of a key that bounds memory, the largest first."""
    rollout = config.rollout
    if key == "rollout.slots_per_prompt":
        return halves(rollout.group)
    if key == "rollout.prompt_slots":
        return [shards * size for size in halves(max(1, min(_SLOTS, rollout.prompts) // shards))]
    return row_choices(config, shards, widths.prompt)


def row_choices(config: Config, shards: int, prompt: int) -> list[int]:
    """Values of ``train.row_tokens``, the largest first, for prompts of up to ``prompt`` tokens."""
    rollout = config.rollout
    least = row_length(prompt + rollout.max_tokens)
    all_tokens = -(-config.train.update_prompts // shards) * (prompt + rollout.group * rollout.max_tokens)
    largest = row_length(max(least, min(_ROW, max(all_tokens // _ROWS, min(_SHORT, all_tokens)))))
    return sorted({least, *(row_length(size) for size in halves(largest) if size > least)}, reverse=True)


def refusal(
    config: Config,
    model: ModelConfig,
    mesh: Mesh,
    widths: Widths,
    limit: int,
    why: str = "",
    room: float = ROOM,
) -> str:
    """The message that refuses a run without room: the keys, the bytes of each part, and the fix.

    ``room``: the share of ``limit`` that what would do may take.
    """
    found, most = estimate(config, model, mesh, widths, cpu=on_cpu(mesh)), int(room * limit)
    keys = (*_OPEN, "rollout.prompts", "rollout.group", "rollout.max_tokens", "model.dtype", "model.remat")
    lines = [
        why or f"the run needs {found.peak / GIB:.1f} GiB of each device, and {limit / GIB:.1f} are free",
        " ".join(f"config.{key}={_shown(_get(config, key))}" for key in keys),
        f"{mesh.size} x {mesh.devices.flat[0].device_kind}; the largest prompt is padded to {widths.prompt}"
        f" tokens and {widths.patches} patch slots",
        found.table(limit),
    ]
    changes = _smaller(config, model, mesh, widths, most)
    if changes is not None:
        pasted = " ".join(f"--config.{key}={_shown(value)}" for key, value in changes.items())
        return "\n".join([*lines, f"by the same estimate there is room with {pasted}"])
    axes = _larger(config, model, mesh, widths, most)
    if axes is None:
        return "\n".join([*lines, "no key makes room, nor do more such devices: take a smaller model"])
    named = " ".join(f"--config.mesh.{axis}={axes[axis]}" for axis in ("fsdp", "tensor"))
    return "\n".join(
        [
            *lines,
            f"no key makes room on {mesh.size}; {math.prod(axes.values())} such devices would have it, with"
            f" {named}; or take a smaller model",
        ]
    )


def _larger(
    config: Config, model: ModelConfig, mesh: Mesh, widths: Widths, most: int
) -> dict[str, int] | None:
    """The axes of the smallest larger mesh whose devices each need at most so many bytes; None: none does."""
    cuts = [(2**k, tensor) for k in range(13) for tensor in {mesh.shape["tensor"], model.kv_heads}]
    for fsdp, tensor in sorted(cuts, key=lambda cut: (cut[0] * cut[1], cut[1])):
        axes = {**mesh.shape, "fsdp": fsdp, "tensor": tensor}
        larger = AbstractMesh(tuple(axes.values()), mesh.axis_names)
        shards = batch_shards(larger)
        least = _with(config, {key: _choices(key, config, shards, widths)[-1] for key in _OPEN[2:]})
        if larger.size > mesh.size and estimate(least, model, larger, widths, cpu=on_cpu(mesh)).peak <= most:
            return axes
    return None


def _smaller(
    config: Config, model: ModelConfig, mesh: Mesh, widths: Widths, most: int
) -> dict[str, Any] | None:
    """Values of few keys by which a run takes at most so many bytes; None if there are none."""

    def peak(changes: Mapping[str, Any]) -> int:
        made = _with(config, changes)
        sizes = replace(model, remat=made.model.remat, dtype=jnp.dtype(made.model.dtype))
        # Within smaller buckets, images are made smaller.
        within = Widths(
            *changes.get("data.prompt_buckets", (widths.prompt,)),
            *changes.get("data.patch_buckets", (widths.patches,)),
        )
        return estimate(made, sizes, mesh, within, cpu=on_cpu(mesh)).peak

    changes: dict[str, Any] = {}
    for more in _reductions(config, model, widths, batch_shards(mesh)):
        if peak(changes) <= most:
            break
        if peak({**changes, **more}) < peak(changes):
            changes |= more
    if peak(changes) > most:
        return None
    for key in [key for key in changes if not key.startswith("data.")]:  # some turned out not to be needed
        less = {name: value for name, value in changes.items() if name != key}
        changes = less if peak(less) <= most else changes
    return changes


def _reductions(config: Config, model: ModelConfig, widths: Widths, shards: int) -> Iterator[dict[str, Any]]:
    """Changes that take less memory: first those that leave the result as it is."""
    for key in ("train.row_tokens", "rollout.prompt_slots", "rollout.slots_per_prompt"):
        yield {key: _choices(key, config, shards, widths)[-1]}
    yield {"model.remat": "full"}
    yield {"model.dtype": "bfloat16"}
    prompt, patches, tokens, step = (
        widths.prompt,
        widths.patches,
        config.rollout.max_tokens,
        model.window_slots,
    )
    while tokens > 128 or patches > 4 * step:
        tokens = max(tokens // 2, min(tokens, 128))
        yield {"rollout.max_tokens": tokens}
        fewer = max(-(-patches // (2 * step)) * step, min(patches, 4 * step))
        prompt -= (patches - fewer) // model.token_patches // TOKEN_STEP * TOKEN_STEP
        prompt, patches = max(prompt, TOKEN_STEP), fewer
        yield {
            "data.prompt_buckets": (prompt,),
            "data.patch_buckets": (patches,),
            "data.overlong": "resize",
        }


def _get(config: Config, key: str) -> Any:
    part, name = key.split(".")
    return getattr(getattr(config, part), name)


def _with(config: Config, changes: Mapping[str, Any]) -> Config:
    """The config with values for keys like "rollout.prompt_slots"."""
    for key, value in changes.items():
        part, name = key.split(".")
        value = tuple(value) if isinstance(value, list) else value
        config = replace(config, **{part: replace(getattr(config, part), **{name: value})})
    return config


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
