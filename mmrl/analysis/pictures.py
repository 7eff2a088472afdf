"""Pictures as a model sees them: resized, cut into patches, and corrupted; put together again for people."""

import io

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from mmrl.analysis.keys import corruption_keys
from mmrl.config import Config
from mmrl.data.corruption import corrupt
from mmrl.data.pipeline import encode_sample
from mmrl.models.prompts import Encoded
from mmrl.open import OpenModel, prompt_format
from mmrl.sample import Sample
from mmrl.types import Images


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
    images = Images(
        patches=jnp.asarray(encoded.patches)[None],
        position=jnp.asarray(encoded.patch_position)[None],
        image=jnp.asarray(encoded.patch_image)[None],
    )
    keys = jax.random.wrap_key_data(jnp.asarray(corruption_keys([sample.id], seed)))
    corrupted = corrupt(images, keys, config.corruption.method, config.corruption.probability)
    return _pictures(encoded, encoded.patches), _pictures(encoded, np.asarray(corrupted.patches[0]))


def _pictures(encoded: Encoded, patches: UInt8[np.ndarray, "n c"]) -> list[Image.Image]:
    count = int(encoded.patch_image.max(initial=-1)) + 1
    return [picture_of(patches, encoded.patch_position, encoded.patch_image, k) for k in range(count)]
