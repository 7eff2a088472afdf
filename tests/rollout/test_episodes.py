"""Episodes, driven by hand: what they ask for, what the policy is told, and when they end."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrl.models.processor import load_processor
from mmrl.models.prompts import chat_messages, encode, encode_turn
from mmrl.rollout.episodes import Call, Request, Turn, second_look, single_turn, with_tools
from mmrl.rollout.sampling import Sampling
from mmrl.rollout.tools import Answer
from mmrl.types import StopReason

FIXTURES = Path(__file__).parent.parent / "data" / "fixtures"
PICTURE = (FIXTURES / "images" / "square224.png").read_bytes()
SAMPLING = Sampling(max_tokens=50, stop_strings=("halt",))


@pytest.fixture(scope="module")
def processor():
    return load_processor(FIXTURES / "qwen2_5_vl")


def turn(processor, text, stop=StopReason.STRING):
    tokens = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    tokens += [processor.eos] * (stop == StopReason.EOS)
    return Turn(text, tuple(tokens), (0.0,) * len(tokens), stop, 100)


def end_of(episode, value):
    with pytest.raises(StopIteration) as end:
        episode.send(value)
    return end.value.value


def same(a, b):
    for name, value in vars(a).items():
        np.testing.assert_array_equal(value, getattr(b, name))


def test_single_turn(processor):
    episode = single_turn(SAMPLING)
    assert next(episode) == Request(SAMPLING)
    assert end_of(episode, turn(processor, "So.", StopReason.EOS)) == {}


@pytest.mark.parametrize("stop", [StopReason.STRING, StopReason.EOS])
def test_a_call_and_what_it_shows(processor, stop):
    episode = with_tools(processor, [PICTURE, b"other"], SAMPLING)
    first = next(episode)
    assert first.sampling.stop_strings == ("halt", "</zoom>")
    assert (first.observation, first.prompt) == (None, None)
    call = episode.send(turn(processor, "Hm. <zoom>0 0 50 50</zoom>", stop))
    assert call == Call("zoom", {"image": PICTURE, "box": [0, 0, 50, 50]})
    request = episode.send(Answer(PICTURE))
    assert request.sampling == first.sampling
    same(request.observation, encode_turn(processor, "<image>", [PICTURE], ended=stop == StopReason.EOS))
    facts = end_of(episode, turn(processor, "\\boxed{2}", StopReason.EOS))
    assert facts == {"turns": 2.0, "tool_calls": 1.0, "tool_errors": 0.0, "images": 1.0}


@pytest.mark.parametrize(
    ("said", "answer", "told"),
    [
        ("<zoom>5 5 5 5</zoom>", None, "Error: zoom needs left before right and top before bottom"),
        ("<zoom>0 0 9 9</zoom>", Answer(error="ValueError: no"), "Error: no"),
        ("<zoom>0 0 9 9</zoom>", Answer(error="<|image_pad|><image>"), "Error: <|image_pad|>[image]"),
        ("<zoom>0 0 9 9</zoom>", Answer(b"no picture"), "Error: the answer cannot be shown"),
        ("<calculate>1+1</calculate>", Answer("2"), "2"),
        ("<calculate>1+1</calculate>", Answer("<image><|im_end|>"), "[image]<|im_end|>"),
    ],
)
def test_what_the_policy_is_told(processor, said, answer, told):
    episode = with_tools(processor, [PICTURE], SAMPLING, tools=("zoom", "calculate"))
    next(episode)
    request = episode.send(turn(processor, said))
    if answer is not None:
        request = episode.send(answer)
    same(request.observation, encode_turn(processor, told, ended=False))
    facts = end_of(episode, turn(processor, "Oh.", StopReason.EOS))
    assert facts["tool_errors"] == told.startswith("Error")
    assert (facts["tool_calls"], facts["images"]) == (1.0, 0.0)


def test_budgets_of_images_and_turns(processor):
    episode = with_tools(processor, [PICTURE], SAMPLING, turns=3, most_images=1)
    next(episode)
    call = turn(processor, "<zoom>0 0 50 50</zoom>")
    episode.send(call)
    episode.send(Answer(PICTURE))
    same(episode.send(call).observation, encode_turn(processor, "Error: no more images", ended=False))
    facts = end_of(episode, call)  # in the last turn
    assert facts == {"turns": 3.0, "tool_calls": 2.0, "tool_errors": 1.0, "images": 1.0}


def test_a_sample_without_an_image(processor):
    episode = with_tools(processor, [], SAMPLING)
    next(episode)
    request = episode.send(turn(processor, "<zoom>0 0 50 50</zoom>"))
    same(request.observation, encode_turn(processor, "Error: there is no image", ended=False))


def test_budget_of_an_observation(processor):
    """An image over it is an error; an error over it ends the episode."""
    small = {"observation_tokens": 60, "observation_patches": 64}
    for tokens in (60, 5):
        episode = with_tools(processor, [PICTURE], SAMPLING, **{**small, "observation_tokens": tokens})
        next(episode)
        episode.send(turn(processor, "<zoom>0 0 50 50</zoom>"))
        if tokens == 60:
            request = episode.send(Answer(PICTURE))
            told = encode_turn(processor, "Error: the answer cannot be shown", ended=False)
            same(request.observation, told)
        else:
            assert end_of(episode, Answer(PICTURE))["tool_errors"] == 1.0


def test_a_turn_cut_by_its_length_calls_nothing(processor):
    episode = with_tools(processor, [PICTURE], SAMPLING)
    next(episode)
    facts = end_of(episode, turn(processor, "<zoom>0 0 50 50</zoom> and", StopReason.LENGTH))
    assert facts == {"turns": 1.0, "tool_calls": 0.0, "tool_errors": 0.0, "images": 0.0}


def test_second_look(processor):
    other = io.BytesIO()
    Image.new("RGB", (40, 60), "red").save(other, "PNG")
    question = "<image>Is this right? {response}"
    episode = second_look(
        processor,
        SAMPLING,
        question,
        [other.getvalue()],
        compare=lambda first, second: {"longer": float(len(second) > len(first))},
    )
    assert next(episode) == Request(SAMPLING)
    request = episode.send(turn(processor, "An <image> {response}", StopReason.EOS))
    asked = chat_messages("<image>Is this right? [..]")
    asked[0]["content"][1]["text"] = "Is this right? An <image> {response}"
    assert request.observation is None
    same(request.prompt, encode(processor, asked, [other.getvalue()]))
    assert end_of(episode, turn(processor, "Yes.")) == {"second_look": 1.0, "longer": 0.0}


def test_no_second_look_at_what_does_not_fit(processor):
    episode = second_look(processor, SAMPLING, "Well: {response}", compare=lambda *_: {}, prompt_budget=80)
    next(episode)
    assert end_of(episode, turn(processor, "word " * 100)) == {"second_look": 0.0}


def test_a_second_look_at_a_control_token_sees_text(processor):
    episode = second_look(processor, SAMPLING, "Well: {response}", compare=lambda *_: {})
    next(episode)
    asked = episode.send(turn(processor, "<|im_end|>\n<|im_start|>assistant\n<|image_pad|>")).prompt
    same(asked, encode(processor, chat_messages("Well: <|im_end|>\n<|im_start|>assistant\n<|image_pad|>")))
    control = set(processor.control.values())
    clean = encode(processor, chat_messages("Well: a"))
    assert sum(one in control for one in asked.tokens.tolist()) == sum(
        one in control for one in clean.tokens.tolist()
    )
