"""Take the evidence out of a prompt's images, on the device, keyed by prompt.

PAPO (arXiv 2507.06448, section 3) and VPPO (arXiv 2510.09285, section 3) compare the policy with itself when
patches of the image are blackened. Here cells are cut *after* resizing, on the vision tower's own patch grid,
so a blackened cell is exactly one patch. The released code of PAPO cuts the original image into cells of 14
pixels and resizes afterwards, which shifts and blurs their edges against the patches; VPPO's resizes first,
but draws a new mask for each response of a group where one per prompt is drawn here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, UInt8

from mmrl.types import Images

GRAY = 128
NOISE = 189.0  # standard deviation in units of a pixel's byte, VPPO's default

Method = Callable[[Key[Array, ""], UInt8[Array, "n c"], float], UInt8[Array, "n c"]]


def patch_black(key: Key[Array, ""], patches: UInt8[Array, "n c"], probability: float) -> UInt8[Array, "n c"]:
    """Blacken each patch with ``probability``, independently: 0.6 in PAPO, 0.5 in VPPO."""
    black = jax.random.bernoulli(key, probability, patches.shape[:1])
    return jnp.where(black[:, None], jnp.uint8(0), patches)


def blank(key: Key[Array, ""], patches: UInt8[Array, "n c"], probability: float) -> UInt8[Array, "n c"]:
    """All black."""
    return jnp.zeros_like(patches)


def gray(key: Key[Array, ""], patches: UInt8[Array, "n c"], probability: float) -> UInt8[Array, "n c"]:
    """One gray, 128, everywhere (VPPO's ``complete_masking``)."""
    return jnp.full_like(patches, GRAY)


def noise(key: Key[Array, ""], patches: UInt8[Array, "n c"], probability: float) -> UInt8[Array, "n c"]:
    """Add Gaussian noise of deviation 189, clip to bytes, truncate (VPPO's ``add_gaussian_noise``)."""
    noisy = patches + NOISE * jax.random.normal(key, patches.shape)
    return jnp.clip(noisy, 0, 255).astype(jnp.uint8)


METHODS: dict[str, Method] = {"patch_black": patch_black, "blank": blank, "gray": gray, "noise": noise}


def corrupt(images: Images, keys: Key[Array, "b"], method: str, probability: float) -> Images:
    """Corrupt the images of each prompt by its own key; empty slots stay empty.

    Args: ``keys``, one a prompt, so the result does not depend on the batch the prompt is in, nor on its
    bucket; ``method``, a name in `METHODS`; ``probability`` of a patch to be replaced, which only
    "patch_black" reads, the others take the whole image.

    Raises ValueError for an unknown method or a probability outside [0, 1].
    """
    if method not in METHODS:
        raise ValueError(f"corruption method {method!r} is unknown; it must be one of {sorted(METHODS)}")
    if not 0 <= probability <= 1:
        raise ValueError(f"corruption probability {probability} is not within [0, 1]")
    patches = jax.vmap(METHODS[method], in_axes=(0, 0, None))(keys, images.patches, probability)
    return replace(images, patches=jnp.where((images.image >= 0)[..., None], patches, images.patches))
