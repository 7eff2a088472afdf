"""The model as transformers runs it, for the scripts of the peers."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image


class Processor(transformers.Qwen2_5_VLProcessor):
    """The family's processor without its part for videos, which would need torchvision."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **_):
        super().__init__(image_processor, tokenizer, chat_template=chat_template)


def load(directory: Path) -> tuple[Any, Processor]:
    """Model (float32) and processor of a model directory."""
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
    ids = json.loads((directory / "generation_config.json").read_text())
    # The directory's own asks for greedy decoding.
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=ids["eos_token_id"], pad_token_id=ids["pad_token_id"]
    )
    images = transformers.AutoImageProcessor.from_pretrained(directory, backend="pil")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    template = json.loads((directory / "chat_template.json").read_text())["chat_template"]
    tokenizer.chat_template = template
    return model, Processor(image_processor=images, tokenizer=tokenizer, chat_template=template)


def conversation(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A prompt of `measure.prompt_rows` as transformers wants it."""
    text = row["problem"].replace("<image>", "")
    images = [{"type": "image"} for _ in row["images"]]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


def pictures(row: dict[str, Any]) -> list[Image.Image]:
    """The pictures of a prompt, decoded."""
    return [Image.open(path).convert("RGB") for path in row["images"]]


def inputs(processor: Processor, row: dict[str, Any], copies: int) -> Any:
    """The arguments of ``model`` for ``copies`` of a prompt."""
    text = processor.tokenizer.apply_chat_template(
        conversation(row), add_generation_prompt=True, tokenize=False
    )
    return processor(
        text=[text] * copies,
        images=pictures(row) * copies,
        return_tensors="pt",
        # Without these the model would take positions of plain text, without a word.
        return_mm_token_type_ids=True,
    )
