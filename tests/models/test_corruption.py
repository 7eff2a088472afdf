"""Corruption of patches on the device: by prompt, by key, and only where there are patches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from reference_masks import blacken, random_cells

from mmrl.models.corruption import METHODS, corrupt
from mmrl.models.images import ImageSpec, patchify
from mmrl.types import Images


def _images(b, n, used, seed=0):
    rng = np.random.default_rng(seed)
    real = np.broadcast_to(np.arange(n) < used, (b, n))
    patches = rng.integers(1, 255, (b, n, 12), dtype=np.uint8) * real[..., None]
    return Images(
        patches=jnp.asarray(patches.astype(np.uint8)),
        position=jnp.zeros((b, n, 2), jnp.int32),
        image=jnp.asarray(np.where(real, 0, -1).astype(np.int32)),
    )


def _keys(b, seed=0):
    return jax.vmap(lambda k: jax.random.fold_in(jax.random.key(seed), k))(jnp.arange(b))


@pytest.mark.parametrize("method", METHODS)
def test_empty_slots_stay_empty(method):
    out = corrupt(_images(3, 16, 11), _keys(3), method, 0.5)
    assert not np.asarray(out.patches[:, 11:]).any()
    assert out.patches.dtype == jnp.uint8


def test_patches_are_black_or_untouched():
    images = _images(4, 64, 64)
    out = np.asarray(corrupt(images, _keys(4), "patch_black", 0.6).patches)
    black = (out == 0).all(-1)
    np.testing.assert_array_equal(out[~black], np.asarray(images.patches)[~black])
    assert 0 < black.mean() < 1
    assert len(np.unique(black, axis=0)) == 4  # each prompt its own mask


@pytest.mark.parametrize(("probability", "kept"), [(0.0, 1.0), (1.0, 0.0)])
def test_extreme_probabilities(probability, kept):
    images = _images(2, 16, 16)
    out = corrupt(images, _keys(2), "patch_black", probability).patches
    np.testing.assert_array_equal(out, np.asarray(images.patches) * np.uint8(kept))


def test_whole_image_methods():
    images = _images(2, 16, 16)
    assert not np.asarray(corrupt(images, _keys(2), "blank", 0.5).patches).any()
    assert (np.asarray(corrupt(images, _keys(2), "gray", 0.5).patches) == 128).all()


@pytest.mark.parametrize("method", METHODS)
def test_depends_on_the_key_alone(method):
    """A prompt is corrupted alike in another batch, in another place and in a larger bucket."""
    images, keys = _images(3, 16, 16), _keys(3)
    whole = np.asarray(corrupt(images, keys, method, 0.5).patches)
    alone = corrupt(jax.tree.map(lambda x: x[2:], images), keys[2:], method, 0.5).patches
    np.testing.assert_array_equal(alone[0], whole[2])
    pads = {"patches": 0, "position": 0, "image": -1}
    wide = Images(
        **{
            name: jnp.pad(
                getattr(images, name),
                [(0, 0), (0, 16)] + [(0, 0)] * (getattr(images, name).ndim - 2),
                constant_values=fill,
            )
            for name, fill in pads.items()
        }
    )
    np.testing.assert_array_equal(corrupt(wide, keys, method, 0.5).patches[:, :16], whole)


def test_same_under_jit():
    images = _images(2, 16, 12)
    jitted = jax.jit(corrupt, static_argnames=("method", "probability"))
    ours = jitted(images, _keys(2), method="patch_black", probability=0.5)
    np.testing.assert_array_equal(ours.patches, corrupt(images, _keys(2), "patch_black", 0.5).patches)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="method 'blacken' is unknown; it must be one of"):
        corrupt(_images(1, 4, 4), _keys(1), "blacken", 0.5)
    with pytest.raises(ValueError, match=r"probability 1\.5"):
        corrupt(_images(1, 4, 4), _keys(1), "patch_black", 1.5)


def test_equals_vppo_on_a_resized_image():
    """With the same cells, blackening the resized image blackens whole patches and no others."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(1, 256, (56, 84, 3), dtype=np.uint8))
    spec = ImageSpec(28 * 28, 56 * 84, 14, 2, 2, (0, 0, 0), (1, 1, 1))
    cells = random_cells(np.random.RandomState(0), 56, 84, 0.5)
    theirs = patchify(blacken(image, cells), spec, "image")
    blocks = cells.reshape(2, 2, 3, 2).transpose(0, 2, 1, 3).reshape(-1)
    np.testing.assert_array_equal((theirs == 0).all(-1), blocks)
    np.testing.assert_array_equal(theirs[~blocks], patchify(image, spec, "image")[~blocks])
