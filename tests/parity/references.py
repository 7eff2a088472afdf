"""What the stored cases of a model directory hold, of every family alike."""

import re

import numpy as np


def conversations(case, processor):
    """Each row's conversation and the names of its images.

    Where the case has the text of its prompts alone, that is one turn of a user: images, then a question.
    """
    if "conversations" in case:
        for turns in case["conversations"]:
            parts = [p for turn in turns if not isinstance(turn["content"], str) for p in turn["content"]]
            yield turns, [part["image"] for part in parts if part["type"] == "image"]
        return
    pad = processor.tokenizer.convert_ids_to_tokens(processor.image_pad)
    names = iter(case["images"])
    for text in case["texts"]:
        count = text.count(pad)
        start = f"(?:{re.escape(pad)}\\s*){{{count}}}" if count else r"user\s|User: "
        question = re.split(start, text, maxsplit=1)[1]
        end = processor.tokenizer.convert_ids_to_tokens(processor.eos)
        content = [{"type": "image"}] * count + [{"type": "text", "text": question.partition(end)[0]}]
        yield [{"role": "user", "content": content}], [next(names) for _ in range(count)]


def stored_pixels(reference, spec):
    """The stored pixels as rows of patches, in the order of `mmrl.models.images.patchify`."""
    pixels = reference["pixel_values"]
    if pixels.ndim == 2:
        return pixels
    p, m = spec.patch, spec.merge
    tiles, _, height, width = pixels.shape
    blocks = pixels.reshape(tiles, 3, height // p // m, m, p, width // p // m, m, p)
    return np.ascontiguousarray(blocks.transpose(0, 2, 5, 3, 6, 1, 4, 7)).reshape(-1, 3 * p * p)
