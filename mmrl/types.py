"""The types that cross rooms: pytrees of arrays, batch axis first everywhere.

Letters used in every shape: ``b`` prompts, ``g`` responses in a group, ``p`` prompt tokens, ``r`` response
tokens, ``n`` image patches, ``m`` image tokens after merging, ``d`` width, ``v`` vocabulary, ``c`` channels
of a patch. Batch comes first so that cutting a batch into micro-batches, or spreading it over a mesh, is one
rule for every field. A row of a dataset, ``Sample``, stands in ``mmrl.sample``, which imports no jax.
"""

from __future__ import annotations

from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt8

Params = dict


@struct.dataclass
class Images:
    """The patches of all images of each prompt, in *window slots*.

    The vision tower attends in windows of a fixed number of patches ``s``. Patches lie so that slots
    ``[k*s, (k+1)*s)`` hold one window; a window cut by the image's edge leaves slots empty. Windowed
    attention is then a reshape, and four consecutive slots are always one merge block (2 x 2 patches). ``n``
    comes from a short list of buckets; a prompt without images has ``n`` empty slots.
    """

    patches: UInt8[Array, "*b n c"]  # raw bytes; order (channel, row, column) within a patch; 0 if empty
    position: Int[Array, "*b n 2"]  # (row, column) of the patch in its image's grid of patches
    image: Int[Array, "*b n"]  # index of the image within the prompt, -1 if the slot is empty


@struct.dataclass
class Prompts:
    """Tokenised prompts, padded on the right.

    ``image_token[b, p]`` is the merged image token (an index into ``m = n // 4``) whose features stand at
    this prompt position, or -1 for text: features are placed by span, never by searching for token ids.
    """

    tokens: Int[Array, "b p"]
    mask: Bool[Array, "b p"]  # True on real tokens
    position: Int[Array, "b p 3"]  # mRoPE (temporal, row, column)
    next_position: Int[Array, "b"]  # mRoPE position of the first response token, equal on all three axes
    image_token: Int[Array, "b p"]
    images: Images


@struct.dataclass
class Observed:
    """Answers of tools within responses: tokens that the policy read there and did not write."""

    real: Bool[Array, "b g r"]  # True on all tokens of the response, written or read
    position: Int[Array, "b g r 3"]  # mRoPE, counted from the prompt's ``next_position``
    image_token: Int[Array, "b g r"]  # as in `Prompts`, into the response's own images; -1 elsewhere
    images: Images  # leading axes ``b g``


@struct.dataclass
class Responses:
    """Sampled responses, padded on the right.

    ``logprob`` is the behaviour policy's: temperature applied, and renormalised over the kept support when
    top-k / top-p / min-p truncated the distribution actually sampled from; ``logprob + log_kept`` is that of
    the tempered distribution before it was truncated. Float32.
    """

    tokens: Int[Array, "b g r"]
    mask: Bool[Array, "b g r"]  # True on tokens the policy wrote (the stop token included): the loss mask
    logprob: Float[Array, "b g r"]
    log_kept: Float[Array, "b g r"]  # log of the mass that was kept; 0 where nothing was cut
    stop: Int[Array, "b g"]  # a StopReason
    valid: Bool[Array, "b g"]  # False: excluded from statistics and from the loss
    observed: Observed | None = None  # None: every token is the policy's


class StopReason:
    """Why a response ended."""

    LENGTH = 0  # the token budget ran out
    EOS = 1  # a stop token id was sampled
    STRING = 2  # a stop string was completed
