"""Trajectories of episodes: the tokens of a context in order, some written by the policy, some read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from mmrl.models.prompts import Encoded


@dataclass(frozen=True)
class WrittenTurn:
    """A turn of the policy; all but the tokens is empty where nothing was sampled."""

    tokens: Sequence[int]
    logprobs: Sequence[float] = ()
    log_kept: Sequence[float] = ()
    entropies: Sequence[float] = ()


Piece = WrittenTurn | Encoded  # what was read has positions counted from 0


@dataclass(frozen=True)
class Trajectory:
    """A response, on the host. Tokens that the policy read stand in it, with ``written`` False.

    ``read`` holds the observations, one after another; their images are numbered on, and ``image_token``
    points into the merged patches of all of them.
    """

    group: int  # which prompt
    member: int  # which of its responses
    tokens: Int[np.ndarray, "r"]
    written: Bool[np.ndarray, "r"]
    logprob: Float[np.ndarray, "r"]  # as in `mmrl.types.Responses`; 0 where read
    log_kept: Float[np.ndarray, "r"]  # likewise
    entropy: Float[np.ndarray, "r"] | None  # nats, of the distribution sampled from
    stop: int  # a StopReason
    text: str  # what the policy wrote, special tokens left out
    facts: Mapping[str, float] = field(default_factory=dict)
    position: Int[np.ndarray, "r 3"] | None = None  # mRoPE from the prompt's next; None: nothing was read
    image_token: Int[np.ndarray, "r"] | None = None  # -1 for text
    patches: Any = None  # UInt8[n c], as those of `Encoded`; so the next two
    patch_position: Any = None
    patch_image: Any = None


def observed(pieces: Sequence[Piece]) -> dict[str, Any]:
    """The fields of a `Trajectory` that say what was read: positions, image tokens and images of all pieces.

    Empty if nothing was read.
    """
    if all(isinstance(piece, WrittenTurn) for piece in pieces):
        return {}
    positions, image_tokens, patches, patch_positions, patch_images = [], [], [], [], []
    offset, features, images = 0, 0, 0
    for piece in pieces:
        if isinstance(piece, WrittenTurn):
            count = len(piece.tokens)
            positions.append(np.broadcast_to(offset + np.arange(count)[:, None], (count, 3)))
            image_tokens.append(np.full(count, -1))
            offset += count
            continue
        positions.append(piece.position + offset)
        image_tokens.append(np.where(piece.image_token >= 0, piece.image_token + features, -1))
        patches.append(piece.patches)
        patch_positions.append(piece.patch_position)
        patch_images.append(np.where(piece.patch_image >= 0, piece.patch_image + images, -1))
        offset += piece.next_position
        features += piece.image_tokens
        images += int(piece.patch_image.max(initial=-1)) + 1
    return {
        "position": np.concatenate(positions).astype(np.int32),
        "image_token": np.concatenate(image_tokens).astype(np.int32),
        "patches": np.concatenate(patches),
        "patch_position": np.concatenate(patch_positions),
        "patch_image": np.concatenate(patch_images).astype(np.int32),
    }


def assemble(
    pieces: Sequence[Piece],
    *,
    group: int,
    member: int,
    stop: int,
    text: str,
    facts: Mapping[str, float],
) -> Trajectory:
    """The trajectory that consists of ``pieces``."""

    def joined(parts: Sequence[Any], dtype: Any) -> np.ndarray:
        return np.concatenate([np.asarray(part, dtype) for part in parts] or [np.zeros(0, dtype)])

    def values(name: str) -> np.ndarray:
        zeros = [np.zeros(len(piece.tokens)) for piece in pieces]
        given = [getattr(piece, name, ()) for piece in pieces]
        return joined([own if len(own) else none for own, none in zip(given, zeros, strict=True)], np.float32)

    entropy = values("entropies") if any(getattr(piece, "entropies", ()) for piece in pieces) else None
    written = [np.full(len(piece.tokens), isinstance(piece, WrittenTurn)) for piece in pieces]
    return Trajectory(
        group=group,
        member=member,
        tokens=joined([np.asarray(piece.tokens) for piece in pieces], np.int32),
        written=joined(written, bool),
        logprob=values("logprobs"),
        log_kept=values("log_kept"),
        entropy=entropy,
        stop=stop,
        text=text,
        facts=facts,
        **observed(pieces),
    )
