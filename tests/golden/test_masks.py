"""Masks and sizes against the released code of PAPO and VPPO (family 06)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vectors
from exclusions import exclusion
from PIL import Image
from reference_masks import blacken, fill, random_cells, resized

from mmrl.models import corruption
from mmrl.types import Images

CASES = [case for case in vectors.cases("06") if not exclusion(case)]


def _image(pixels, mode):
    """The PIL image whose stored values are ``pixels``."""
    if mode == "1":
        return Image.fromarray(pixels.astype(bool))
    return Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes())


def _on_device(pixels, method, probability=1.0, seed=0):
    """Corrupt an array [n, c] as one prompt's patches."""
    n = len(pixels)
    images = Images(
        patches=jnp.asarray(pixels)[None], position=jnp.zeros((1, n, 2), int), image=jnp.zeros((1, n), int)
    )
    keys = jax.random.split(jax.random.key(seed), 1)
    return np.asarray(corruption.corrupt(images, keys, method, probability).patches[0])


def _given_cells(case):
    image = _image(case.inputs["image"], case.hparams["pil_mode_in"])
    out = blacken(image, case.inputs["patch_mask"], case.hparams["patch_size"])
    assert out.mode == case.hparams["pil_mode_out"]
    np.testing.assert_array_equal(np.array(out), case.outputs["image"])


def _drawn_cells(case):
    hp = case.hparams
    drawn = [
        random_cells(
            np.random.RandomState(seed), hp["height"], hp["width"], hp["black_prob"], hp["patch_size"]
        )
        for seed in hp["seeds"]
    ]
    np.testing.assert_array_equal(drawn, case.outputs["masks"])
    np.testing.assert_array_equal([cells.mean() for cells in drawn], case.outputs["fraction"])
    mean, std = case.outputs["binomial_mean_std"]
    patches = np.full((drawn[0].size, 3), 255, np.uint8)
    for seed in hp["seeds"]:
        ours = _on_device(patches, "patch_black", hp["black_prob"], seed)
        assert set(np.unique(ours)) == {0, 255}
        assert abs((ours[:, 0] == 0).mean() - mean) < 4 * std


def _complete(case):
    value, pixels = case.hparams["mask_value"], case.inputs["image"]
    out = fill(Image.fromarray(pixels), tuple(value) if isinstance(value, list) else value)
    np.testing.assert_array_equal(np.array(out), case.outputs["image"])
    if value == corruption.GRAY:
        flat = pixels.reshape(len(pixels), -1)
        np.testing.assert_array_equal(
            _on_device(flat, "gray"), case.outputs["image"].reshape(len(pixels), -1)
        )


def _noise(case):
    """Two samples of the same clipped normal agree within four deviations of their difference."""
    hp = case.hparams
    assert (hp["mean"], hp["std"]) == (0, corruption.NOISE)
    ours = _on_device(np.full((hp["height"], hp["width"] * 3), hp["input_value"], np.uint8), "noise")
    reference = {name: float(value) for name, value in case.outputs.items()}
    found = {"mean": ours.mean(), "frac0": (ours == 0).mean(), "frac255": (ours == 255).mean()}
    assert found.keys() == reference.keys()
    count = hp["height"] * hp["width"] * 3
    for name, value in found.items():
        variance = ours.var() if name == "mean" else value * (1 - value)
        assert abs(value - reference[name]) < 4 * np.sqrt(2 * variance / count), name


def _sizes(case):
    ours = [resized((int(w), int(h)), int(low), int(high)) for w, h, low, high in case.inputs["rows"]]
    np.testing.assert_array_equal(ours, case.outputs["size"])


CHECKS = {
    "complete_masking": _complete,
    "add_gaussian_noise": _noise,
    "process_image": _sizes,
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_equal_to_the_reference(case, record_property):
    if case.function == "random_patch_blackening":
        check = _given_cells if "patch_mask" in case.inputs else _drawn_cells
    else:
        check = CHECKS[case.function]
    check(case)
    record_property("golden", (case.family, case.id))
