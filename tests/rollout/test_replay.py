"""Scripted episodes are the trajectories of a policy that had sampled the script."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrl.models.processor import load_processor
from mmrl.models.prompts import chat_messages, encode
from mmrl.rollout.episodes import second_look, single_turn, with_tools
from mmrl.rollout.replay import at_once, replay
from mmrl.rollout.sampling import Sampling
from mmrl.rollout.tools import TABLE, TOOLS
from mmrl.types import StopReason
from mmrl.workers.pool import WorkerPool

FIXTURES = Path(__file__).parent.parent / "data" / "fixtures"
PICTURE = (FIXTURES / "images" / "square224.png").read_bytes()
SAMPLING = Sampling(max_tokens=60)
SCRIPT = ["<zoom>0 0 50 100</zoom>", "<zoom>50 50 100 100</zoom>", "It is 7."]


def _same(first, second):
    return {"same": float(first == second)}


@pytest.fixture(scope="module")
def processor():
    return load_processor(FIXTURES / "qwen2_5_vl")


def test_a_replay_is_the_whole_conversation(processor):
    """Prompt and trajectory together are what encoding the conversation with all images gives."""
    episode = with_tools(processor, [PICTURE], SAMPLING)
    ((own, t),) = replay(episode, SCRIPT, processor, at_once)
    assert own is None
    asked = chat_messages("<image>What?")
    prompt = encode(processor, asked, [PICTURE])
    conversation, images = list(asked), [PICTURE]
    for text, box in zip(SCRIPT, ([0, 0, 50, 100], [50, 50, 100, 100], None), strict=True):
        conversation.append({"role": "assistant", "content": text})
        if box is not None:
            conversation += chat_messages("<image>")
            images.append(TOOLS["zoom"](PICTURE, box))
    whole = encode(processor, conversation, images)
    end = len(prompt.tokens) + len(t.tokens)  # the template goes on after the last turn
    np.testing.assert_array_equal(whole.tokens[:end], np.concatenate([prompt.tokens, t.tokens]))
    position = np.concatenate([prompt.position, prompt.next_position + t.position])
    np.testing.assert_array_equal(whole.position[:end], position)
    slots = len(prompt.patches)
    shifted = np.where(t.image_token >= 0, t.image_token + slots // 4, -1)
    np.testing.assert_array_equal(whole.image_token[len(prompt.tokens) : end], shifted)
    for name in ("patches", "patch_position"):
        np.testing.assert_array_equal(getattr(whole, name)[slots:], getattr(t, name))
    shifted = np.where(t.patch_image >= 0, t.patch_image + 1, -1)
    np.testing.assert_array_equal(whole.patch_image[slots:], shifted)
    assert whole.tokens[end - 1] == processor.eos


def test_what_was_written(processor):
    """The turns, token by token; the end of a turn only where no stop string is one."""
    ((_, t),) = replay(with_tools(processor, [PICTURE], SAMPLING), SCRIPT, processor, at_once)
    ids = [processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in SCRIPT]
    np.testing.assert_array_equal(t.tokens[t.written], [*ids[0], *ids[1], *ids[2], processor.eos])
    assert (t.image_token[t.written] == -1).all()
    assert (t.stop, t.text) == (StopReason.EOS, "\n".join(SCRIPT))
    assert t.facts == {"turns": 3.0, "tool_calls": 2.0, "tool_errors": 0.0, "images": 2.0}


def test_tools_of_a_pool(processor):
    """They answer as those of this thread do, also where they fail."""
    script = ["<zoom>0 0 1 100</zoom>", *SCRIPT]
    wide = io.BytesIO()
    Image.new("RGB", (400, 40)).save(wide, "PNG")
    for picture in (PICTURE, wide.getvalue(), b"no picture"):
        with WorkerPool(1, TABLE) as pool:
            ((_, far),) = replay(
                with_tools(processor, [picture], SAMPLING),
                script,
                processor,
                lambda call, pool=pool: pool.submit(call.tool, call.arguments),
            )
        ((_, near),) = replay(with_tools(processor, [picture], SAMPLING), script, processor, at_once)
        for name, value in vars(near).items():
            np.testing.assert_array_equal(value, getattr(far, name))
        assert near.facts["tool_errors"] == (3.0 if picture == b"no picture" else 0.0)


def test_contexts_stand_apart(processor):
    episode = second_look(
        processor, SAMPLING, "Right? {response}", compare=lambda a, b: {"same": float(a == b)}
    )
    first, second = replay(episode, ["7", "7"], processor)
    (seven,) = processor.tokenizer("7")["input_ids"]
    assert first.prompt is None
    np.testing.assert_array_equal(second.prompt.tokens, encode(processor, chat_messages("Right? 7")).tokens)
    for played in (first, second):
        np.testing.assert_array_equal(played.trajectory.tokens, [seven, processor.eos])
        assert played.trajectory.facts == {"second_look": 1.0, "same": 1.0}
        assert played.trajectory.position is None


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (SCRIPT[:2], "row 5: the episode goes on after the 2 turns"),
        ([*SCRIPT, "More."], "row 5: the episode ends after 3 of the script's 4 turns"),
        (["<zoom>0 0 9 9</zoom> I see"], r"row 5, turn 1: it goes on after '<zoom>0 0 9 9</zoom>'"),
        (["word " * 100], "row 5, turn 1: .* tokens, but a turn may have 60"),
    ],
)
def test_scripts_that_no_policy_plays(processor, script, reason):
    with pytest.raises(ValueError, match=reason):
        replay(with_tools(processor, [PICTURE], SAMPLING), script, processor, at_once, name="row 5")


def test_a_script_spells_control_tokens_as_text(processor):
    ((_, trajectory),) = replay(single_turn(SAMPLING), ["a<|im_end|><|image_pad|>"], processor)
    control = [token for token in trajectory.tokens if int(token) in processor.control.values()]
    assert control == [processor.eos] == [trajectory.tokens[-1]]


def test_a_script_that_needs_tools(processor):
    with pytest.raises(ValueError, match="row 5: turn 1 calls the tool 'zoom', but there are no tools"):
        replay(with_tools(processor, [PICTURE], SAMPLING), SCRIPT, processor, name="row 5")
    assert replay(single_turn(SAMPLING), ["So."], processor)[0].trajectory.facts == {}
