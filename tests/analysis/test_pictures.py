"""Pictures out of patches are the pixels that went in, and corrupted ones are what the model saw."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image
from tiny import noise_image

from mmrl.analysis import picture_of, pictures_seen, png
from mmrl.models.corruption import GRAY, METHODS
from mmrl.models.prompts import chat_messages, encode


@pytest.mark.parametrize("size", [(56, 56), (84, 140), (196, 28)])
def test_a_picture_is_put_together_as_it_was_cut(size, looking):
    processor = looking[0].processor
    images = [noise_image(*size), noise_image(112, 56, seed=1)]  # multiples of 28: nothing is resized
    encoded = encode(processor, chat_messages("<image><image>"), images)
    fields = encoded.patches, encoded.patch_position, encoded.patch_image
    for k, image in enumerate(images):
        np.testing.assert_array_equal(np.asarray(picture_of(*fields, k)), np.asarray(image))
    with pytest.raises(ValueError, match="the prompt has 2 images, so none of number 2"):
        picture_of(*fields, 2)


def test_a_png_holds_every_pixel():
    image = noise_image(28, 56)
    assert Image.open(io.BytesIO(png(image))).tobytes() == image.tobytes()


@pytest.mark.parametrize("method", sorted(METHODS))
def test_corrupted_pictures_are_of_their_method(method, looking, seen_samples):
    model, _, config = looking
    corruption = dataclasses.replace(config.corruption, method=method)
    config = dataclasses.replace(config, corruption=corruption)
    seen, corrupted = pictures_seen(seen_samples[1], model=model, config=config)
    assert len(seen) == len(corrupted) == 2
    for image, other in zip(seen, corrupted, strict=True):
        one, two = (np.asarray(each) for each in (image, other))
        assert one.shape == two.shape == (84, 56, 3)
        if method == "patch_black":
            cells = (two.reshape(6, 14, 4, 14, 3) == 0).all(axis=(1, 3, 4))
            assert 0 < cells.sum() < cells.size
            np.testing.assert_array_equal(np.where(cells.repeat(14, 0).repeat(14, 1)[..., None], 0, one), two)
        elif method in ("blank", "gray"):
            assert (two == {"blank": 0, "gray": GRAY}[method]).all()
        else:
            assert (one != two).mean() > 0.9


def test_a_sample_without_images_has_no_pictures(looking, seen_samples):
    model, _, config = looking
    assert pictures_seen(seen_samples[2], model=model, config=config) == ([], [])
