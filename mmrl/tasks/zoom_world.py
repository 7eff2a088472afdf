"""The zoom world: pictures whose content nobody can see without looking closer.

A picture is a 2 x 2 grid of cells named a1, b1, a2, b2, each filled with a fine texture. The model's view of
the whole picture is half its size, and there all pictures are one and the same grey, byte for byte: without
``<zoom>`` (``mmrl.rollout.tools``) an answer is a guess. Zoomed at, a cell keeps its pixels, and its texture
is plain. So accuracy above chance is the accuracy of using the tool.

A world is a pure function, as in ``mmrl.tasks.shapes_world``: ``example(seed, split, index)``.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, UInt8
from PIL import Image

from mmrl.config import WorldConfig
from mmrl.models import tiny_model
from mmrl.models.tiny_model import CELL, WORDS, ModelSpec
from mmrl.tasks.shapes_world import BACKGROUND, SCHEMA, SPLITS, cell_name, indexed_png, pick, write_splits

SIDE = 2 * CELL  # pixels of a cell: four image tokens, as many as the whole picture gets
GREY = BACKGROUND[1]
CONTRAST = (60, 100)  # how far the strongest pixel of a texture lies from grey
FADE = 12  # pixels over which a texture fades in from the cell's edge
ZOOMING = 0.5

# Where each cell lies, as a call of zoom names it.
BOXES = {
    cell_name(row, column): (50 * column, 50 * row, 50 * column + 50, 50 * row + 50)
    for row in range(2)
    for column in range(2)
}
PATTERNS = ("rows", "columns", "checks", "dots")

# What tools say when a call fails, so that it is a few tokens; a test compares them with the tools'.
ERRORS = (
    "Error: zoom needs four whole numbers from 0 to 100: left top right bottom",
    "Error: zoom needs left before right and top before bottom",
    "Error: zoom needs a wider part",
    "Error: zoom is not closed",
    "Error: zoom takes at most 200 characters",
    "Error: no more images",
    "Error: there is no image",
    "Error: the answer cannot be shown",
)


def example(seed: int, split: str, index: int, *, zooming: float = ZOOMING) -> dict[str, Any]:
    """The row at a position in a split, as in ``shapes_world``, and its ``turns``.

    These are of an episode that zooms and is right or, in the cold start but for a share of ``zooming``, the
    guess that is the ``solution``. ``facts`` are the ``options``, the ``cell`` asked for, the ``patterns`` by
    cell. Raises ValueError for an unknown split, or a share outside [0, 1].
    """
    if split not in SPLITS:
        raise ValueError(f"zoom world: unknown split {split!r}; give one of {', '.join(SPLITS)}")
    if not 0 <= zooming <= 1:
        raise ValueError(f"zoom world: zooming is {zooming}, but a share lies in [0, 1]")
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    patterns = {cell: pick(rng, PATTERNS) for cell in BOXES}
    contrasts = {cell: int(rng.integers(CONTRAST[0], CONTRAST[1] + 1)) for cell in BOXES}
    asked = pick(rng, list(BOXES))
    guess = conclude(pick(rng, PATTERNS))
    demonstrates = split != "cold_start" or rng.random() < zooming
    facts = {"options": list(PATTERNS), "cell": asked, "patterns": patterns}
    return {
        "problem": f"<image>{question(asked)}",
        "answer": patterns[asked],
        "images": [{"bytes": render(patterns, contrasts), "path": f"{split}_{index}.png"}],
        "verifier": "choice",
        "solution": guess,
        "facts": json.dumps(facts),
        "kind": "zoom",
        "difficulty": 1,
        "turns": [zoom_call(asked), conclude(patterns[asked])] if demonstrates else [guess],
    }


def question(cell: str) -> str:
    """The text of the question about a cell."""
    return f"What pattern is in {cell}?"


def conclude(pattern: str) -> str:
    """A response that answers so."""
    return f"\\boxed{{{pattern}}}"


def zoom_call(cell: str) -> str:
    """The call that shows a cell, no less and no more."""
    return f"<zoom>{' '.join(map(str, BOXES[cell]))}</zoom>"


def texture(pattern: str) -> Float[np.ndarray, "s s"]:
    """A cell of a pattern: values up to 1 around a mean of 0, fading in from the edges.

    Every pattern repeats after two pixels, which a filter that halves the size removes but at edges: hence
    the fading.
    """
    line = np.arange(SIDE)
    stripe = 1.0 - 2.0 * (line % 2)
    down, right = stripe[:, None], stripe[None, :]
    dots = (down + right + down * right) / 3  # one pixel of four is bright
    whole = {"rows": down, "columns": right, "checks": down * right, "dots": dots}[pattern]
    edge = np.minimum(line, SIDE - 1 - line) + 0.5
    window = np.sin(np.pi / 2 * np.clip(edge / FADE, 0, 1)) ** 2
    return np.broadcast_to(whole, (SIDE, SIDE)) * window[:, None] * window[None, :]


def render(patterns: dict[str, str], contrasts: dict[str, int]) -> bytes:
    """PNG bytes of the picture with these patterns, and contrasts in grey levels, by cell."""
    grey = np.full((2 * SIDE, 2 * SIDE), GREY)
    for cell, (left, top, _, _) in BOXES.items():
        row, column = (SIDE * edge // 50 for edge in (top, left))
        grey[row : row + SIDE, column : column + SIDE] += np.rint(
            contrasts[cell] * texture(patterns[cell])
        ).astype(grey.dtype)
    red, _, blue = (channel - GREY for channel in BACKGROUND)
    palette = tuple((min(255, k + red), k, max(0, k + blue)) for k in range(256))
    return indexed_png(_hidden(grey.astype(np.uint8)), palette)


def _hidden(pixels: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """The picture changed by a level or two where needed for its half-sized view to be one grey.

    What is left there of the textures is the rounding of both passes of the filter, at most one level.
    """
    for _ in range(64):
        image = Image.fromarray(pixels)
        view = image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)
        left = np.sign(np.asarray(view).astype(int) - GREY)
        if not left.any():
            return pixels
        pixels = pixels.copy()
        pixels[::2, ::2] = pixels[::2, ::2] - left
    raise ValueError(
        "zoom world: the textures show at half size with this version of Pillow; install another"
    )


def model_spec() -> ModelSpec:
    """The words and picture sizes of this world.

    The largest view is that of a cell at its own size; the whole picture is halved to it.
    """
    numbers = [f"<zoom>{a} {a} {a} {a}</zoom>" for a in (0, 25, 50, 75, 100)]
    questions = [question(cell) for cell in BOXES]
    answers = [conclude(pattern) for pattern in PATTERNS]
    texts = ("user\n", "assistant\n", "system\n", *numbers, *questions, *answers, *ERRORS)
    words = r"</?zoom>| ?\p{N}+|" + WORDS
    return ModelSpec(texts, words, (CELL**2, SIDE**2))


def write_model(directory: Path, seed: int, family: str = "", **overrides: Any) -> None:
    """Write the tiny model of this world; see `mmrl.models.tiny_model.write_model`."""
    tiny_model.write_model(directory, seed, model_spec(), family, **overrides)


def write_data(
    directory: Path, seed: int, *, cold_start: int, train: int, heldout: int, zooming: float = ZOOMING
) -> dict[str, Path]:
    """`write_splits` of this world, each of so many examples. Raises ValueError as `example` does."""
    sizes = dict(zip(SPLITS, (cold_start, train, heldout), strict=True))
    schema = SCHEMA.append(pa.field("turns", pa.list_(pa.string())))
    return write_splits(directory, sizes, partial(example, seed, zooming=zooming), schema, "zoom world")


def write(directory: Path, seed: int, world: WorldConfig) -> None:
    """Write data, and the tiny model to ``directory / "model"``."""
    write_data(directory, seed, zooming=world.zooming, **{split: getattr(world, split) for split in SPLITS})
    write_model(directory / "model", seed, world.family)
