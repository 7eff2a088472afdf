"""Where a checkpoint looks: what a response's tokens lose when one part of the image is blackened.

Occlusion sensitivity (Zeiler and Fergus, arXiv 1311.2901, section 4.2), on the patch grid of the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from PIL import Image

from mmrl.analysis.perception import ids_of, pieces_of
from mmrl.analysis.pictures import picture_of
from mmrl.analysis.scoring import Progress, scored
from mmrl.config import Config
from mmrl.data.pipeline import encode_sample
from mmrl.open import OpenModel, prompt_format
from mmrl.sample import Sample
from mmrl.types import Params

MOST_REGIONS = 64  # of an image, where the caller does not say how large they are


@dataclass(frozen=True)
class Occlusion:
    """An image cut into square regions, and what each is worth to each token of a response."""

    picture: Image.Image  # as the model sees it
    side: int  # of a region, in pixels; those at the right and lower edge may be smaller
    pieces: tuple[str, ...]
    logprob: Float[np.ndarray, "r"]  # with the whole image
    drop: Float[np.ndarray, "rows columns r"]  # nats of logprob lost without the region; below 0 is gained


def where_it_looks(
    params: Params,
    sample: Sample,
    response: str | Sequence[int],
    *,
    model: OpenModel,
    config: Config,
    image: int = 0,
    side: int | None = None,
    progress: Progress | None = None,
) -> Occlusion:
    """Blacken the regions of an image one at a time and score the response again.

    Args:
      params, sample, response, model, config: as for `perceive`.
      image: which of the sample's images.
      side: of a region, in patches; by default whole image tokens, as many as leave at most 64 regions.
      progress: is told (passes done, of how many) after each batch.

    Raises ValueError if the sample has no such image, or as `perceive` does.
    """
    if side is not None and side < 1:
        raise ValueError(f"side={side}: a region has one patch or more to a side")
    encoded = encode_sample(sample, model.processor, prompt_format(config))
    picture = picture_of(encoded.patches, encoded.patch_position, encoded.patch_image, image)
    mine = encoded.patch_image == image
    grid = encoded.patch_position[mine].max(axis=0) + 1
    if side is None:
        merge = model.processor.image.merge  # no region cuts what the language model sees as one token
        side = next(n for n in range(merge, max(grid) + 1, merge) if np.prod(-(-grid // n)) <= MOST_REGIONS)
    rows, columns = -(-grid // side)
    region = encoded.patch_position // side
    variants = [encoded]
    for place in np.ndindex(rows, columns):
        hidden = mine & (region == place).all(axis=1)
        variants.append(
            replace(encoded, patches=np.where(hidden[:, None], 0, encoded.patches).astype(np.uint8))
        )
    ids = ids_of(response, sample, model.processor)
    scores = scored(
        params,
        variants,
        [[ids]] * len(variants),
        [sample.id] * len(variants),
        model=model,
        config=config,
        wanted=frozenset(),
        progress=progress,
    )
    logprobs = np.stack([one["logprob"] for (one,) in scores])
    return Occlusion(
        picture=picture,
        side=side * model.processor.image.patch,
        pieces=pieces_of(ids.tolist(), model.processor),
        logprob=logprobs[0],
        drop=(logprobs[0] - logprobs[1:]).reshape(rows, columns, len(ids)),
    )
