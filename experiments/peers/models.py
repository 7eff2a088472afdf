"""Two random models and a set of prompts, written for both sides of a comparison; needs no torch.

``tiny`` has 1.4M parameters, ``mid`` 126M. The tokenizer is that of the tests' fixture model, so a clone of
the repository is needed. A prompt is 105 tokens: 64 of one 224 x 224 picture of rectangles and 41 of text,
or text alone.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmrl.models import checkpoint
from mmrl.models.family import param_specs, read_config
from mmrl.models.params import initialise

FIXTURE = Path(__file__).parents[2] / "tests" / "data" / "fixtures" / "qwen2_5_vl"
ROWS = 16  # prompts written; a step takes as many of them as it needs
QUESTIONS = (
    "How many red squares are there in the image?",
    "Find the value of x in the figure.",
)
_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "preprocessor_config.json",
    "generation_config.json",
)
_MID: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 2304,
    "num_hidden_layers": 14,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "vocab_size": 32_000,
    "tie_word_embeddings": True,
    "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
}
_MID_VISION = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_heads": 4,
    "out_hidden_size": 768,
    "window_size": 112,
}
SIZES = ("tiny", "mid")


def write_model(directory: Path, size: str) -> None:
    """Write the model ``size`` as a Hugging Face directory, unless it is there.

    Raises:
      ValueError: no such size, or the fixture it takes its tokenizer from is not in this clone.
    """
    if size not in SIZES:
        raise ValueError(f"there is no model {size!r}; it must be one of {', '.join(SIZES)}")
    if not FIXTURE.is_dir():
        raise ValueError(f"{FIXTURE} does not exist: the peer benchmarks run from a clone of the repository")
    if (directory / "config.json").is_file():
        return
    config = json.loads((FIXTURE / "config.json").read_text())
    config["torch_dtype"] = "float32"
    if size == "mid":
        config |= _MID
        config["vision_config"] |= _MID_VISION
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        for name in _COPIED:
            (base / name).write_bytes((FIXTURE / name).read_bytes())
        (base / "config.json").write_text(json.dumps(config, indent=1))
        description = param_specs(read_config(base))
        checkpoint.save(initialise(description, seed=0), description, directory, base)


def picture(index: int, side: int = 224) -> Image.Image:
    """Five random rectangles on one colour, by number."""
    rng = np.random.default_rng([7, index])
    pixels = np.empty((side, side, 3), np.uint8)
    pixels[:] = rng.integers(100, 256, 3)
    for _ in range(5):
        top, left = rng.integers(0, side - 60, 2)
        height, width = rng.integers(20, 60, 2)
        pixels[top : top + height, left : left + width] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels)


def write_prompts(directory: Path) -> None:
    """Write ``images.jsonl`` and ``text.jsonl``, `ROWS` prompts each, and the pictures of the first."""
    directory.mkdir(parents=True, exist_ok=True)
    with_images, text_only = [], []
    for index in range(ROWS):
        question = QUESTIONS[index % len(QUESTIONS)]
        name = f"{index}.png"
        picture(index).save(directory / name)
        shared = {"answer": str(index), "verifier": "format"}
        with_images.append({"problem": f"<image>{question}", "images": [name], **shared})
        text_only.append({"problem": f"{question}{' word' * 33}", **shared})
    for file, rows in (("images.jsonl", with_images), ("text.jsonl", text_only)):
        (directory / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
