"""Conversations to padded prompts: placeholders, slots, budgets."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrl.models.processor import load_processor
from mmrl.models.prompts import OverBudget, bucket, chat_messages, collate, encode, encode_turn, measure

FIXTURES = Path(__file__).parent.parent / "data" / "fixtures"


@pytest.fixture(scope="module")
def processor():
    return load_processor(FIXTURES / "qwen2_5_vl")


def _picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(1, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_messages():
    assert chat_messages("Look: <image>\nand <image>?", suffix=" Box it.") == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Look: "},
                {"type": "image"},
                {"type": "text", "text": "\nand "},
                {"type": "image"},
                {"type": "text", "text": "? Box it."},
            ],
        }
    ]
    assert chat_messages("Hi", system="Be brief.")[0] == {
        "role": "system",
        "content": [{"type": "text", "text": "Be brief."}],
    }


def test_system_message_replaces_the_default(processor):
    texts = [
        processor.tokenizer.decode(encode(processor, chat_messages("Hi", system)).tokens)
        for system in (None, "Be brief.")
    ]
    assert "You are a helpful assistant." in texts[0]
    assert texts[1] == texts[0].replace("You are a helpful assistant.", "Be brief.")
    assert texts[0].endswith("<|im_start|>assistant\n")


def test_one_token_pads_are_the_images(processor):
    e = encode(processor, chat_messages("a <image> b <image> c"), [_picture(100, 60), _picture(60, 140, 1)])
    np.testing.assert_array_equal(e.image_token >= 0, e.tokens == processor.image_pad)
    merged = e.image_token[e.image_token >= 0]
    assert len(set(merged.tolist())) == len(merged)
    # image_token in prompt order walks each image's blocks row by row
    corner = e.patch_position.reshape(-1, 4, 2)[merged][:, 0] // 2
    image = e.patch_image.reshape(-1, 4)[merged]
    assert (image == image[:, :1]).all()
    columns = [int(corner[image[:, 0] == k, 1].max()) + 1 for k in (0, 1)]
    index = [corner[image[:, 0] == k] @ (columns[k], 1) for k in (0, 1)]
    for k in (0, 1):
        np.testing.assert_array_equal(index[k], np.arange(len(index[k])))
    assert (np.diff(image[:, 0]) >= 0).all()


def test_slots(processor):
    """A window holds patches of one image and one square of the grid; empty slots are last, and zero."""
    e = encode(processor, chat_messages("<image><image>"), [_picture(140, 84), _picture(90, 200, 1)])
    assert len(e.patches) % processor.slots == 0
    side = processor.window * processor.image.merge
    for first in range(0, len(e.patches), processor.slots):
        window = slice(first, first + processor.slots)
        used = e.patch_image[window] >= 0
        count = used.sum()
        assert count
        assert used[:count].all()
        assert len(set(e.patch_image[window][used])) == 1
        assert len(np.unique(e.patch_position[window][used] // side, axis=0)) == 1
        assert not e.patches[window][~used].any()
        assert e.patches[window][used].any(axis=1).all()


def test_measure_agrees_with_encode(processor):
    conversation = chat_messages("Is <image> larger than <image>?")
    images = [_picture(33, 207), _picture(151, 64)]
    need = measure(processor, conversation, [(image.height, image.width) for image in images])
    encoded = encode(processor, conversation, images)
    assert need == (len(encoded.tokens), len(encoded.patches))


@pytest.mark.parametrize(("problem", "images"), [("<image>", 0), ("none", 1), ("<image><image>", 1)])
def test_counts_must_match(processor, problem, images):
    with pytest.raises(ValueError, match=rf"row 5: {images} images but \d placeholders"):
        encode(processor, chat_messages(problem), [_picture(30, 30)] * images, name="row 5")
    with pytest.raises(ValueError, match=rf"row 5: {images} images but \d placeholders"):
        measure(processor, chat_messages(problem), [(30, 30)] * images, "row 5")


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|vision_start|>", "<|video_pad|>", "<|vision_pad|>"])
def test_vision_tokens_in_text(processor, token):
    """They are text: "<image>" alone marks an image."""
    plain = encode(processor, chat_messages("<image>?", system="S"), [_picture(30, 30)])
    e = encode(processor, chat_messages(f"<image>What is {token}?", system=token), [_picture(30, 30)])
    (number,) = processor.tokenizer.convert_tokens_to_ids([token])
    assert (e.tokens == number).sum() == (plain.tokens == number).sum()
    assert (e.image_token >= 0).sum() == (plain.image_token >= 0).sum()
    with pytest.raises(ValueError, match="row 5: 1 images but 0 placeholders"):
        encode(processor, chat_messages(f"What is {token}?"), [_picture(30, 30)], name="row 5")


def test_sliver_is_named(processor):
    with pytest.raises(ValueError, match="row 5: an image of 500x2 pixels: one side is over 200 times"):
        encode(processor, chat_messages("<image>"), [_picture(500, 2)], name="row 5")


def test_over_budget_before_pixels(processor):
    """The image's data are cut off: the budget is checked on the header alone."""
    data = (FIXTURES / "images" / "square224.png").read_bytes()[:100]
    with pytest.raises(OverBudget, match=r"row 5: the prompt has 94 tokens and 256 patch slots"):
        encode(processor, chat_messages("<image>?"), [data], name="row 5", prompt_budget=50)
    with pytest.raises(OverBudget, match="256 patch slots"):
        encode(processor, chat_messages("<image>?"), [data], name="row 5", patch_budget=240)


@pytest.mark.parametrize(("prompt_budget", "patch_budget"), [(60, None), (None, 96), (50, 64), (45, 4096)])
def test_resize_to_fit(processor, prompt_budget, patch_budget):
    images = [_picture(224, 224), _picture(300, 100), _picture(60, 60)]
    conversation = chat_messages("<image><image><image>?")
    limits = {"prompt_budget": prompt_budget, "patch_budget": patch_budget}
    with pytest.raises(OverBudget):
        encode(processor, conversation, images, **limits)
    e = encode(processor, conversation, images, **limits, overlong="resize")
    assert prompt_budget is None or len(e.tokens) <= prompt_budget
    assert patch_budget is None or len(e.patches) <= patch_budget
    assert set(e.patch_image.tolist()) >= {0, 1, 2}
    text = "".join(processor.tokenizer.convert_ids_to_tokens(e.tokens.tolist()))
    assert text.count("<|vision_start|>") == 3


def test_resize_leaves_what_fits(processor):
    image = _picture(100, 120)
    plain = encode(processor, chat_messages("<image>?"), [image])
    resized = encode(processor, chat_messages("<image>?"), [image], prompt_budget=100, overlong="resize")
    np.testing.assert_array_equal(plain.patches, resized.patches)


def test_resize_is_no_help_to_text(processor):
    with pytest.raises(OverBudget):
        encode(processor, chat_messages("<image>?"), [_picture(99, 99)], prompt_budget=20, overlong="resize")
    with pytest.raises(OverBudget):
        encode(processor, chat_messages("word " * 50), prompt_budget=20, overlong="resize")
    with pytest.raises(ValueError, match="overlong is 'cut'"):
        encode(processor, chat_messages("word"), overlong="cut")


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize(("text", "sizes"), [("Go on.", []), ("Here: <image>.", [(130, 60)])])
def test_a_turn_is_a_slice_of_the_conversation(processor, text, sizes, ended):
    """The first prompt has an image of its own, so patches, positions and image tokens are all shifted."""
    answer = "<zoom>1 2 3 4</zoom>"
    first, images = chat_messages("<image>What is it?"), [_picture(90, 140)]
    seen = [_picture(width, height, 1) for width, height in sizes]
    start = encode(processor, first, images)
    said = processor.tokenizer(answer, add_special_tokens=False)["input_ids"] + [processor.eos] * ended
    whole = encode(
        processor, [*first, {"role": "assistant", "content": answer}, *chat_messages(text)], images + seen
    )
    turn = encode_turn(processor, text, seen, ended=ended)
    at, after = len(start.tokens) + len(said), start.next_position + len(said)
    np.testing.assert_array_equal(whole.tokens, [*start.tokens, *said, *turn.tokens])
    np.testing.assert_array_equal(whole.position[at:], turn.position + after)
    assert whole.next_position == after + turn.next_position
    slots = len(start.patches)
    shifted = np.where(turn.image_token >= 0, turn.image_token + slots // 4, -1)
    np.testing.assert_array_equal(whole.image_token[at:], shifted)
    np.testing.assert_array_equal(whole.patches[slots:], turn.patches)
    np.testing.assert_array_equal(whole.patch_position[slots:], turn.patch_position)
    shifted = np.where(turn.patch_image >= 0, turn.patch_image + 1, -1)
    np.testing.assert_array_equal(whole.patch_image[slots:], shifted)


def test_a_turn_follows_its_template(processor):
    """Another template of the family: thoughts are dropped and stripped, and the next turn opens with one."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content.strip() }}"
        "{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    other = copy.deepcopy(processor.tokenizer)
    other.chat_template = template
    turn = encode_turn(replace(processor, tokenizer=other), "Go on.", ended=True)
    text = "\n<|im_start|>user\nGo on.<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert processor.tokenizer.decode(turn.tokens) == text
    for silent in (template.replace("m.content.strip()", "'?'"), template.replace("<|im_end|>", " end")):
        other.chat_template = silent
        with pytest.raises(ValueError, match="zoom 3: the chat template does not show"):
            encode_turn(replace(processor, tokenizer=other), "Go on.", ended=True, name="zoom 3")


def test_a_turn_is_checked_as_a_prompt_is(processor):
    data = (FIXTURES / "images" / "square224.png").read_bytes()[:100]
    for limits in ({"token_budget": 50}, {"patch_budget": 240}):
        with pytest.raises(OverBudget, match="zoom 3"):
            encode_turn(processor, "<image>", [data], ended=True, name="zoom 3", **limits)
    with pytest.raises(ValueError, match=r"zoom 3: 0 images but \d placeholders"):
        encode_turn(processor, "<image>", ended=True, name="zoom 3")


def test_bucket():
    assert [bucket(n, (512, 64, 128)) for n in (0, 64, 65, 512)] == [64, 64, 128, 512]
    with pytest.raises(OverBudget, match="513 does not fit"):
        bucket(513, (512, 64))


def test_without_buckets_lengths_are_rounded_to_few():
    lengths = [bucket(n, (), 32) for n in range(20_000)]
    assert [bucket(n, (), 32) for n in (0, 1, 256, 257, 1040, 4096)] == [0, 32, 256, 320, 1280, 4096]
    assert len(set(lengths)) < 40
    assert all(n <= length <= 1.25 * n + 32 for n, length in enumerate(lengths))


def test_collate(processor):
    rows = [
        encode(processor, chat_messages("Hello")),
        encode(processor, chat_messages("<image>"), [_picture(80, 80)]),
    ]
    batch = collate(rows, processor, 96, 64)
    assert batch.tokens.shape == batch.mask.shape == batch.image_token.shape == (2, 96)
    assert batch.position.shape == (2, 96, 3)
    assert batch.images.patches.shape == (2, 64, 588)
    assert batch.images.patches.dtype == np.uint8
    for b, row in enumerate(rows):
        size = len(row.tokens)
        np.testing.assert_array_equal(
            batch.tokens[b], np.pad(row.tokens, (0, 96 - size), constant_values=1800)
        )
        np.testing.assert_array_equal(batch.mask[b], np.arange(96) < size)
        np.testing.assert_array_equal(batch.position[b, :size], row.position)
        assert batch.next_position[b] == row.next_position
    assert (batch.images.image[0] == -1).all()
    assert (batch.image_token[0] == -1).all()


def test_collate_refuses(processor):
    rows = [encode(processor, chat_messages("<image>"), [_picture(80, 80)])]
    with pytest.raises(ValueError, match="patch bucket 40 is not a multiple of 16"):
        collate(rows, processor, 96, 40)
    with pytest.raises(OverBudget):
        collate(rows, processor, 8, 64)
    with pytest.raises(OverBudget):
        collate(rows, processor, 96, 16)
