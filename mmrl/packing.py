"""Packed rows: which tokens and patches of a batch lie in which slots of rows of a fixed length.

Score, update and the supervised step compute rows, one at a time on each part of a batch (a *shard*). A row
of tokens holds whole groups, a prompt once and then its responses; a row of patches holds whole images.
Groups and images are placed by first-fit decreasing, by their lengths alone. All of this is numpy on the
host; what is computed for a token does not depend on the row it lies in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int

from mmrl import hosts
from mmrl.kernels.packed import (
    BlockPairs,
    Segments,
    Span,
    block_of,
    block_pairs,
    most_pairs,
    row_length,
    segments,
)
from mmrl.mesh import batch_shards, local_parts, sharding
from mmrl.models.config import ModelConfig
from mmrl.models.rows import PatchRows, TokenRows
from mmrl.types import Images, Prompts, Responses

_PATCH_ROWS = 8  # of a shard, were all images as large as they may be: else the last one would be half empty


class Piece(NamedTuple):
    """A group in a row: its prompt, and all of its responses, or some where it is longer than a row."""

    group: int
    members: tuple[int, ...]


@struct.dataclass
class PackedBatch:
    """All rows of a batch, ``m`` on each shard ``d``, of which the first ones are computed."""

    tokens: TokenRows  # leading axes ``m d``
    patches: PatchRows  # leading axes ``m d``, another m
    token_rows: Int[Array, "*"]  # how many
    patch_rows: Int[Array, "*"]


@dataclass(frozen=True)
class RowBudget:
    """Sizes of rows, and the most rows that a batch may take."""

    tokens: int  # of a row
    patches: int  # of a row
    token_rows: int
    patch_rows: int
    token_patches: int  # patches of one image token
    window: int  # patches of a full window of the vision tower; of a row, in one without windows


def balanced_order(costs: Sequence[int], shards: int) -> Int[np.ndarray, "b"]:
    """The order of groups in which equal parts of them, one a shard, have sums of costs that are about equal.

    The dearest are placed first, each where the sum is least (Graham 1969). As they are where the groups
    cannot be cut evenly.
    """
    if len(costs) % shards or shards == 1:
        return np.arange(len(costs))
    each = len(costs) // shards
    chosen: list[list[int]] = [[] for _ in range(shards)]
    for group in sorted(range(len(costs)), key=lambda k: (-costs[k], k)):
        free = [s for s in range(shards) if len(chosen[s]) < each]
        chosen[min(free, key=lambda s: (sum(costs[k] for k in chosen[s]), s))].append(group)
    return np.array(chosen).reshape(-1)


def pack_groups(prompts: Sequence[int], responses: Sequence[Sequence[int]], n: int) -> list[list[Piece]]:
    """Bin packing of groups into rows, by the tokens of each prompt and each of its responses (0: left out).

    A group that is longer than a row is cut between its responses, and its prompt repeated.

    Raises:
      ValueError: a prompt with one response is longer than a row.
    """
    pieces: list[tuple[int, Piece]] = []
    for group, (prompt, lengths) in enumerate(zip(prompts, responses, strict=True)):
        members = [member for member, length in enumerate(lengths) if length]
        longest = max((lengths[member] for member in members), default=0)
        if prompt + longest > n:
            raise ValueError(f"a prompt of {prompt} tokens with a response of {longest} is over a row of {n}")
        if prompt + sum(lengths) > n:
            parts = first_fit([lengths[member] for member in members], n - prompt)
        else:
            parts = [list(range(len(members)))] if members else []
        for part in parts:
            chosen = tuple(sorted(members[k] for k in part))
            pieces.append((prompt + sum(lengths[member] for member in chosen), Piece(group, chosen)))
    rows = first_fit([length for length, _ in pieces], n)
    return [[pieces[k][1] for k in row] for row in rows]


def group_spans(
    row: Sequence[Piece], prompts: Sequence[int], responses: Sequence[Sequence[int]]
) -> list[Span]:
    """The spans of a row of groups: each prompt, and after it its responses, which read it."""
    spans: list[Span] = []
    at = 0
    for group, members in row:
        prompt = len(spans)
        for k, size in enumerate([prompts[group], *(responses[group][member] for member in members)]):
            spans.append(Span(at, at + size, prompt if k else -1))
            at += size
    return spans


def first_fit(sizes: Sequence[int], room: int) -> list[list[int]]:
    """First-fit decreasing (Johnson 1973): bins of ``room``, each a list of the numbers of its items."""
    bins: list[list[int]] = []
    left: list[int] = []
    for item in sorted(range(len(sizes)), key=lambda k: (-sizes[k], k)):
        place = next((k for k, free in enumerate(left) if free >= sizes[item]), len(bins))
        if place == len(bins):
            bins.append([])
            left.append(room)
        bins[place].append(item)
        left[place] -= sizes[item]
    return bins


def row_budget(
    model: ModelConfig, prompts: Prompts, responses: Responses, shards: int, row_tokens: int
) -> RowBudget:
    """The rows of a batch with arrays of these shapes, cut into ``shards``, whatever their masks are.

    Args:
      model: whose patches and image tokens they are.
      prompts, responses: of the batch.
      shards: equal parts of its groups.
      row_tokens: slots of a row, at least; a row is longer where a prompt with a response is.
    """
    (b, prompt), (_, group, longest) = prompts.mask.shape, responses.mask.shape
    each = b // shards
    n = row_length(max(row_tokens, prompt + longest))
    # A group is cut into parts of responses, of which all but one are more than half full.
    parts = 1 if prompt + group * longest <= n else min(group, -(-2 * group * longest // (n - prompt)))
    slots, images = prompts.images.image.shape[1], each * prompts.images.image.shape[1]
    if responses.observed is not None:
        slots = max(slots, seen := responses.observed.images.image.shape[2])
        images += each * group * seen
    patches = patch_row_length(n, slots, images)
    return RowBudget(
        tokens=n,
        patches=patches,
        token_rows=min(most_rows(each * (parts * prompt + group * longest), n), each * parts),
        patch_rows=min(most_rows(images, patches), each * (1 if responses.observed is None else 1 + group)),
        token_patches=model.token_patches,
        window=model.window_slots if model.vision.window_size else patches,
    )


def patch_row_length(n: int, slots: int, images: int) -> int:
    """Slots of a row of patches beside rows of ``n`` tokens.

    ``slots``: of the largest image; ``images``: of all images of a shard, were all as large as they may be.
    """
    return row_length(max(slots, min(n, images // _PATCH_ROWS)))


def most_rows(size: int, n: int) -> int:
    """Rows of ``n`` that hold pieces of ``size`` in all: all bins but one are more than half full."""
    return max(1, -(-2 * size // n))


def pack_shard(prompts: Prompts, responses: Responses, budget: RowBudget) -> PackedBatch:
    """The rows of one shard, with a leading axis ``m`` that is as long as the budget; arrays of the host.

    Responses that are not valid are left out; rows beyond the counts have nothing in them.

    Args:
      prompts, responses: of the shard's groups, padded as they come.
      budget: sizes of rows, and how many.

    Raises:
      ValueError: a prompt with one response, or an image, is over a row, or all together over the rows.
    """
    observed = responses.observed
    real = np.asarray(responses.mask if observed is None else observed.real) & responses.valid[..., None]
    seen = None if observed is None else observed.images
    patch_rows, features = _pack_images(prompts.images, seen, budget)
    layout = _Layout(prompts, responses, np.asarray(prompts.mask).sum(axis=1), real.sum(axis=-1), features)
    packed = pack_groups(layout.prompt_lengths.tolist(), layout.lengths.tolist(), budget.tokens)
    token_rows = [_token_row(layout, row, budget.tokens) for row in packed]
    return _stack_rows(layout, token_rows, patch_rows, budget)


def rows_of_prompts(model: ModelConfig, each: int, length: int, slots: int) -> RowBudget:
    """The rows of ``each`` prompts on a shard, padded to ``length`` tokens and ``slots`` patches.

    As short as the longest prompt allows, since often few prompts are prefilled at once.
    """
    n = row_length(length)
    patches = patch_row_length(n, slots, each * slots)
    return RowBudget(
        tokens=n,
        patches=patches,
        token_rows=min(most_rows(each * length, n), each),
        patch_rows=min(most_rows(each * slots, patches), each),
        token_patches=model.token_patches,
        window=model.window_slots if model.vision.window_size else patches,
    )


def prompt_shards(prompts: int, mesh: Mesh) -> int:
    """The parts that so many prompts are cut into for prefill: those of the mesh, if it divides them."""
    shards = batch_shards(mesh)
    return shards if prompts % shards == 0 else 1


def pack_prompts(
    prompts: Prompts, keep: Bool[np.ndarray, "b"], model: ModelConfig, mesh: Mesh | None
) -> PackedBatch:
    """The rows of prompts alone, for prefill; on the mesh, if there is one.

    The target of a prompt is no token: ``predictor`` is the slot of its last one, and ``place`` its number
    among the prompts of the shard.

    Args:
      prompts: arrays of the host, as many for each shard.
      keep: False for those that are left out.
      model: whose patches and image tokens they are.
      mesh: over which the prompts are spread.
    """
    shards = 1 if mesh is None else prompt_shards(len(keep), mesh)
    each = len(keep) // shards
    budget = rows_of_prompts(model, each, prompts.mask.shape[1], prompts.images.image.shape[1])
    parts = [slice(start, start + each) for start in range(0, len(keep), each)]
    of_shards = [(jax.tree.map(lambda leaf, k=k: leaf[k], prompts), keep[k]) for k in parts]
    packed = stack_shards([_pack_prompts_of_shard(*part, budget) for part in of_shards])
    return packed if mesh is None else _place_rows(packed, mesh, shards)


def zero_rows(budget: RowBudget, shards: int) -> PackedBatch:
    """Arrays of zeros with the shapes that every batch of such a budget has."""

    def of(rows: int) -> Callable[..., Array]:
        return lambda *shape: jnp.zeros((rows, shards, *shape), jnp.int32)

    def lists(make: Callable[..., Array], n: int) -> tuple[Segments, BlockPairs]:
        pairs = make(3, most_pairs(n, block_of(n)))
        return Segments(make(n), make(n), make(n)), BlockPairs(pairs, pairs, make())

    n, p = budget.tokens, budget.patches
    token, patch = of(budget.token_rows), of(budget.patch_rows)
    tokens = TokenRows(
        token(n), token(n, 3), token(n), *lists(token, n), token(n), token(n), token(n), token()
    )
    patches = PatchRows(patch(p), patch(p, 2), *lists(patch, p), *lists(patch, p))
    return PackedBatch(tokens, patches, jnp.int32(0), jnp.int32(0))


def stack_shards(shards: Sequence[PackedBatch]) -> PackedBatch:
    """The batches of several shards side by side, ``m d``; the counts are the largest of them."""
    tokens, patches = (
        jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *parts)
        for parts in ([shard.tokens for shard in shards], [shard.patches for shard in shards])
    )
    counts: Any = np.max([(shard.token_rows, shard.patch_rows) for shard in shards], axis=0)
    return PackedBatch(tokens, patches, counts[0], counts[1])


class _Image(NamedTuple):
    """The patches of one image: where they lie in the shard's patches, and what it belongs to."""

    source: Int[np.ndarray, "n"]  # ascending; flat
    slots: Int[np.ndarray, "n"]  # within the prompt or response
    position: Int[np.ndarray, "n 2"]
    owner: tuple[int, ...]  # (prompt,) or (prompt, member)


@dataclass(frozen=True)
class _Layout:
    """What rows of one shard are made of."""

    prompts: Prompts
    responses: Responses
    prompt_lengths: Int[np.ndarray, "b"]
    lengths: Int[np.ndarray, "b g"]
    features: dict[tuple[int, ...], Int[np.ndarray, "m"]]  # of an owner's image tokens, their places


def _pack_images(
    shown: Images, seen: Images | None, budget: RowBudget
) -> tuple[list[list[_Image]], dict[tuple[int, ...], np.ndarray]]:
    """Rows of images, each prompt's or response's together, and the place of each image token's feature.

    ``shown`` are those of prompts, ``seen`` those of responses.
    """
    merge, images = budget.token_patches, _images_of(shown, 0)
    features: dict[tuple[int, ...], np.ndarray] = {}
    owners: list[Images] = [shown]
    if seen is not None:
        images += _images_of(seen, shown.image.size)
        owners.append(seen)
    for of in owners:
        leading = of.image.shape[:-1]
        features |= {owner: np.full(of.image.shape[-1] // merge, -1) for owner in np.ndindex(leading)}
    together: dict[tuple[int, ...], list[_Image]] = {}
    for image in images:
        together.setdefault(image.owner, []).append(image)
    of_owners = [*together.values()]
    sizes = [sum(len(image.source) for image in one) for one in of_owners]
    if max(sizes, default=0) > budget.patches:
        raise ValueError(f"images of {max(sizes)} patches are over a row of {budget.patches} patches")
    rows = [
        [image for k in row for image in of_owners[k]] for row in first_fit(sizes, max(budget.patches, 1))
    ]
    for number, row in enumerate(rows):
        at = number * budget.patches // merge
        for image in row:
            merged = image.slots[::merge] // merge
            features[image.owner][merged] = at + np.arange(len(merged))
            at += len(merged)
    return rows, features


def _images_of(images: Images, first: int) -> list[_Image]:
    """The images of prompts, or of responses, whose patches begin at ``first`` among the shard's."""
    of_slot = np.asarray(images.image)
    position, width = np.asarray(images.position), of_slot.shape[-1]
    found = []
    for number, owner in enumerate(np.ndindex(of_slot.shape[:-1])):
        for image in range(int(of_slot[owner].max(initial=-1)) + 1):
            slots = np.flatnonzero(of_slot[owner] == image)
            found.append(_Image(first + number * width + slots, slots, position[owner][slots], owner))
    return found


def _token_row(layout: _Layout, row: Sequence[Piece], n: int) -> TokenRows:
    prompts, responses = layout.prompts, layout.responses
    group, slots = responses.mask.shape[1:]
    tokens: Any = np.zeros(n, np.int32)
    position: Any = np.zeros((n, 3), np.int32)
    feature: Any = np.full(n, -1, np.int32)
    targets: list[np.ndarray] = [np.zeros((3, 0), np.int64)]  # predictor, token, place
    spans = group_spans(row, layout.prompt_lengths.tolist(), layout.lengths.tolist())
    following = iter(spans)
    for b, members in row:
        at, end, _ = next(following)
        length = end - at
        tokens[at:end], position[at:end] = prompts.tokens[b, :length], prompts.position[b, :length]
        feature[at:end] = _features(layout.features[(b,)], prompts.image_token[b, :length])
        for g in members:
            at, stop, _ = next(following)
            length, inside = stop - at, slice(at, stop)
            tokens[inside] = responses.tokens[b, g, :length]
            position[inside] = prompts.next_position[b] + np.arange(length)[:, None]
            if responses.observed is not None:
                position[inside] = prompts.next_position[b] + responses.observed.position[b, g, :length]
                image_token = responses.observed.image_token[b, g, :length]
                feature[inside] = _features(layout.features[b, g], image_token)
            (written,) = np.nonzero(responses.mask[b, g, :length])
            predictor = np.where(written > 0, at + written - 1, end - 1)
            place = (b * group + g) * slots + written
            targets.append(np.stack([predictor, responses.tokens[b, g, written], place]))
    found = np.concatenate(targets, axis=1)
    padded: Any = np.zeros((3, n), np.int32)
    padded[2] = responses.mask.size
    padded[:, : found.shape[1]] = found
    count: Any = np.array(found.shape[1], np.int32)
    return TokenRows(
        tokens=tokens,
        position=position,
        feature=feature,
        segments=segments(spans, n),
        pairs=block_pairs(spans, n, block_of(n)),
        predictor=padded[0],
        target=padded[1],
        place=padded[2],
        count=count,
    )


def _pack_prompts_of_shard(prompts: Prompts, keep: Bool[np.ndarray, "b"], budget: RowBudget) -> PackedBatch:
    image: Any = np.where(keep[:, None], prompts.images.image, -1)
    prompts = replace(prompts, images=replace(prompts.images, image=image))
    lengths = np.where(keep, np.asarray(prompts.mask).sum(axis=1), 0)
    none: Any = np.zeros((len(keep), 0, 0), np.int32)
    patch_rows, features = _pack_images(prompts.images, None, budget)
    layout = _Layout(
        prompts, Responses(none, none, none, none, none, none), lengths, none.sum(axis=-1), features
    )
    chosen = np.flatnonzero(lengths).tolist()
    rows = [[chosen[k] for k in row] for row in first_fit(lengths[chosen].tolist(), budget.tokens)]
    token_rows = [_token_row(layout, [Piece(b, ()) for b in row], budget.tokens) for row in rows]
    for k, row in enumerate(rows):
        token_rows[k].predictor[: len(row)] = np.cumsum(lengths[row]) - 1
        token_rows[k].place[: len(row)] = row
        count: Any = np.array(len(row), np.int32)
        token_rows[k] = replace(token_rows[k], count=count)
    return _stack_rows(layout, token_rows, patch_rows, budget)


def _stack_rows(
    layout: _Layout,
    token_rows: Sequence[TokenRows],
    patch_rows: Sequence[Sequence[_Image]],
    budget: RowBudget,
) -> PackedBatch:
    """The batch of a shard, of its rows and as many empty ones as the budget has room for."""
    for kind, rows, most in (
        ("tokens", token_rows, budget.token_rows),
        ("patches", patch_rows, budget.patch_rows),
    ):
        if len(rows) > most:
            raise ValueError(f"{len(rows)} rows of {kind} are over the {most} that a batch may take")
    counts: Any = np.array([len(token_rows), len(patch_rows)], np.int32)
    empty = _token_row(layout, [], budget.tokens)
    token_rows = [*token_rows, *[empty] * (budget.token_rows - len(token_rows))]
    image_rows = [_patch_row(images, budget) for images in patch_rows]
    image_rows += [_patch_row([], budget)] * (budget.patch_rows - len(patch_rows))
    return PackedBatch(
        tokens=jax.tree.map(lambda *rows: np.stack(rows), *token_rows),
        patches=jax.tree.map(lambda *rows: np.stack(rows), *image_rows),
        token_rows=counts[0],
        patch_rows=counts[1],
    )


def _features(places: Int[np.ndarray, "m"], image_token: Any) -> Int[np.ndarray, "p"]:
    return np.where(image_token >= 0, places[np.maximum(image_token, 0)] if len(places) else -1, -1)


def _patch_row(images: Sequence[_Image], budget: RowBudget) -> PatchRows:
    n, window = budget.patches, budget.window
    source: Any = np.zeros(n, np.int32)
    position: Any = np.zeros((n, 2), np.int32)
    of_images: list[Span] = []
    of_windows: list[Span] = []
    at = 0
    for image in images:
        end = at + len(image.source)
        source[at:end], position[at:end] = image.source, image.position
        of_images.append(Span(at, end, len(of_images)))
        edges = np.flatnonzero(np.diff(image.slots // window)) + 1
        for start, stop in zip(np.r_[0, edges], np.r_[edges, end - at], strict=True):
            of_windows.append(Span(at + int(start), at + int(stop), len(of_windows)))
        at = end
    images_read = segments(of_images, n), block_pairs(of_images, n, block_of(n))
    if of_windows == of_images:
        return PatchRows(source, position, *images_read, *images_read)
    windows_read = segments(of_windows, n), block_pairs(of_windows, n, block_of(n))
    return PatchRows(source, position, *images_read, *windows_read)


def real_sizes(
    prompts: Prompts, responses: Responses
) -> tuple[Int[np.ndarray, "b"], Int[np.ndarray, "b"], Int[np.ndarray, "b g"]]:
    """Tokens of prompts, patches of groups and tokens of responses that there are to compute.

    Of responses those that are valid, with what they read and the images they looked at.
    """
    valid = np.asarray(responses.valid)
    read, patches = np.asarray(responses.mask), (np.asarray(prompts.images.image) >= 0).sum(axis=1)
    if (observed := responses.observed) is not None:
        read = np.asarray(observed.real)
        patches = patches + ((np.asarray(observed.images.image) >= 0).sum(axis=2) * valid).sum(axis=1)
    return np.asarray(prompts.mask).sum(axis=1), patches, read.sum(axis=2) * valid


def computed_slots(packed: PackedBatch) -> Int[np.ndarray, "2"]:
    """Slots of tokens and of patches that a pass over a batch computes, on all shards."""
    rows = (packed.token_rows, packed.tokens.tokens.shape), (packed.patch_rows, packed.patches.source.shape)
    return np.array([int(count) * shards * n for count, (_, shards, n) in rows])


def pack_batch(
    prompts: Prompts, responses: Responses, model: ModelConfig, mesh: Mesh, row_tokens: int
) -> PackedBatch:
    """The rows of a batch that lies on the mesh; every process, which packs its own shards, must call this.

    Args:
      prompts, responses, model, row_tokens: as for `row_budget`.
      mesh: over which the batch is spread.
    """
    count = len(prompts.mask)
    parts = count // prompts.mask.sharding.shard_shape(prompts.mask.shape)[0]
    budget = row_budget(model, prompts, responses, parts, row_tokens)

    def without_patches(images: Images) -> Images:  # which stay on the devices
        return replace(images, patches=images.image)

    prompts = replace(prompts, images=without_patches(prompts.images))
    if responses.observed is not None:
        seen = replace(responses.observed, images=without_patches(responses.observed.images))
        responses = replace(responses, observed=seen)
    shards = local_parts((prompts, responses))
    packed = stack_shards([pack_shard(asked, written, budget) for asked, written in shards])
    counts: Any = np.array(hosts.maximum(int(packed.token_rows), int(packed.patch_rows)), np.int32)
    return _place_rows(replace(packed, token_rows=counts[0], patch_rows=counts[1]), mesh, parts)


def _place_rows(packed: PackedBatch, mesh: Mesh, shards: int) -> PackedBatch:
    """Rows of the host on the mesh, which has so many shards; each process gives its own."""

    def place(leaf: np.ndarray) -> jax.Array:
        shape = (leaf.shape[0], shards, *leaf.shape[2:])
        where = sharding(mesh, (None, "batch", *[None] * (leaf.ndim - 2)), shape)
        return jax.make_array_from_process_local_data(where, leaf, shape)

    tokens, patches = (jax.tree.map(place, part) for part in (packed.tokens, packed.patches))
    return replace(packed, tokens=tokens, patches=patches)
