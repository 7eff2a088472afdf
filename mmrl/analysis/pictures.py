"""Pictures as a model sees them, held-out rollouts with theirs, and where in them a model looks."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from mmrl.algorithms.passes import LOGPROB
from mmrl.analysis.perception import (
    ProgressCallback,
    TokenPerception,
    corruption_keys,
    ids_of,
    perceive,
    pieces_of,
    score_responses,
)
from mmrl.analysis.runs import (
    Row,
    Run,
    choose_evenly,
    error_kind,
    load_params,
    responses_of,
    samples_of,
    tokens_of,
)
from mmrl.config import Config
from mmrl.data.pipeline import encode_sample
from mmrl.models.corruption import corrupt
from mmrl.open import OpenModel, prompt_format
from mmrl.sample import Sample
from mmrl.types import Images, Params

MOST_REGIONS = 64  # of an image, where the caller does not say how large they are


@dataclass(frozen=True)
class RolloutView:
    """A held-out response to look at. Its texts are data, never markup: a model wrote them."""

    sample: Sample
    row: Row  # of the run's file: "id", "problem", "answer", "response", "reward", each component
    kind: str  # one of `mmrl.analysis.runs.KINDS`
    perception: TokenPerception  # by the weights that were loaded; its ``pieces`` are the response's text
    images: tuple[bytes, ...]  # PNG files: what the model saw
    corrupted: tuple[bytes, ...]  # and what it saw with the image corrupted


@dataclass(frozen=True)
class Occlusion:
    """An image cut into square regions, and what each is worth to each token of a response."""

    picture: Image.Image  # as the model sees it
    side: int  # of a region, in pixels; those at the right and lower edge may be smaller
    pieces: tuple[str, ...]
    logprob: Float[np.ndarray, "r"]  # with the whole image
    drop: Float[np.ndarray, "rows columns r"]  # nats of logprob lost without the region; below 0 is gained


def picture_of(
    patches: UInt8[np.ndarray, "n c"],
    position: Int[np.ndarray, "n 2"],
    image: Int[np.ndarray, "n"],
    index: int = 0,
) -> Image.Image:
    """Image ``index`` of a prompt out of its patches: undoes `mmrl.models.images.patchify` and window slots.

    Takes the fields of `mmrl.types.Images` of one prompt. Raises ValueError if it has no such image.
    """
    mine = image == index
    if not mine.any():
        raise ValueError(f"the prompt has {image.max(initial=-1) + 1} images, so none of number {index}")
    side = round((patches.shape[1] / 3) ** 0.5)
    rows, columns = position[mine].max(axis=0) + 1
    cells = np.zeros((rows, columns, side, side, 3), np.uint8)
    # Bytes of a patch are in order (channel, row, column).
    cells[tuple(position[mine].T)] = patches[mine].reshape(-1, 3, side, side).transpose(0, 2, 3, 1)
    return Image.fromarray(cells.swapaxes(1, 2).reshape(rows * side, columns * side, 3))


def png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def pictures_seen(
    sample: Sample, *, model: OpenModel, config: Config, seed: int = 0
) -> tuple[list[Image.Image], list[Image.Image]]:
    """The images of a sample as the model sees them, and corrupted as `perceive` has them with this ``seed``.

    Raises ValueError naming the row if its prompt cannot be made.
    """
    encoded = encode_sample(sample, model.processor, prompt_format(config))
    fields = (encoded.patches, encoded.patch_position, encoded.patch_image)
    keys = jax.random.wrap_key_data(jnp.asarray(corruption_keys([sample.id], seed)))
    images = Images(*(jnp.asarray(field)[None] for field in fields))
    corrupted = corrupt(images, keys, config.corruption.method, config.corruption.probability)
    both = encoded.patches, np.asarray(corrupted.patches[0])
    count = int(encoded.patch_image.max(initial=-1)) + 1
    clean, other = ([picture_of(patches, *fields[1:], k) for k in range(count)] for patches in both)
    return clean, other


def rollout_sample(
    run: Run,
    count: int,
    *,
    when: str = "after",
    step: int | None = None,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> list[RolloutView]:
    """Some held-out responses of a run: as evenly as there are of each kind, of different questions first.

    Args:
      run: of `load_run`.
      count: how many, at most.
      when: responses "before" the first step, or "after" the last.
      step: of the weights that look at them; by default those that wrote them: 0 before, the newest after.
      seed: of the corruption.
      progress: as for `perceive`.

    Raises ValueError if responses, data or weights are not there, or the run is one with tools.
    """
    if count < 1:
        raise ValueError(f"count={count}: show at least one response")
    rows = choose_evenly(responses_of(run, when), count)
    tokens, samples = tokens_of(run, rows), samples_of(run, rows)
    model, params = load_params(run, 0 if step is None and when == "before" else step)
    config = run.config
    measured = perceive(params, samples, tokens, model=model, config=config, seed=seed, progress=progress)
    shown = []
    for row, sample, perception in zip(rows, samples, measured, strict=True):
        images, corrupted = pictures_seen(sample, model=model, config=config, seed=seed)
        files = tuple(map(png, images)), tuple(map(png, corrupted))
        shown.append(RolloutView(sample, row, error_kind(row), perception, *files))
    return shown


def where_it_looks(
    params: Params,
    sample: Sample,
    response: str | Sequence[int],
    *,
    model: OpenModel,
    config: Config,
    image: int = 0,
    side: int | None = None,
    progress: ProgressCallback | None = None,
) -> Occlusion:
    """Blacken the regions of an image one at a time and score the response again.

    Occlusion sensitivity (Zeiler and Fergus, arXiv 1311.2901, section 4.2), on the patch grid of the model.

    Args:
      params, sample, response, model, config: as for `perceive`.
      image: which of the sample's images.
      side: of a region, in patches; by default whole image tokens, as many as leave at most 64 regions.
      progress: called with (passes done, of how many) after each batch.

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
        blackened = mine & (region == place).all(axis=1)
        patches = np.where(blackened[:, None], 0, encoded.patches).astype(np.uint8)
        variants.append(replace(encoded, patches=patches))
    ids = ids_of(response, sample, model.processor)
    scores = score_responses(
        params,
        variants,
        [[ids]] * len(variants),
        [sample.id] * len(variants),
        model=model,
        config=config,
        wanted=frozenset({LOGPROB}),
        progress=progress,
    )
    logprobs = np.stack([group[0][LOGPROB] for group in scores])
    return Occlusion(
        picture=picture,
        side=side * model.processor.image.patch,
        pieces=pieces_of(ids.tolist(), model.processor),
        logprob=logprobs[0],
        drop=(logprobs[0] - logprobs[1:]).reshape(rows, columns, len(ids)),
    )
