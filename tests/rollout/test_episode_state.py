"""An episode under way, without a model: where a stop string ends a turn, however its tokens come in."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.models.processor import load_processor
from mmrl.rollout.episode_state import EpisodeState, end_turn, truncate_at_stop_string
from mmrl.rollout.episodes import single_turn
from mmrl.rollout.sampling import Sampling
from mmrl.types import StopReason

PROCESSOR = load_processor(Path(__file__).parent.parent / "data" / "fixtures" / "qwen2_5_vl")
TOKENIZER = PROCESSOR.tokenizer
SILENT = TOKENIZER.convert_tokens_to_ids("<|box_start|>")  # has no text
PIECES = sorted({*TOKENIZER("abé\n学 th", add_special_tokens=False)["input_ids"], SILENT, PROCESSOR.eos})


def text(tokens):
    return TOKENIZER.decode(tokens, skip_special_tokens=True)


def ids(words):
    return TOKENIZER(words, add_special_tokens=False)["input_ids"]


def write(tokens, strings, cuts, stop_ids=()):
    """A member that receives ``tokens`` in chunks, until a stop string ends its turn, or they end."""
    member = EpisodeState(0, 0, single_turn(Sampling(1)), np.zeros(2, np.uint32))
    member.sampling = Sampling(len(tokens), stop_strings=strings, stop_ids=stop_ids)
    for chunk in np.split(np.array(tokens), cuts):
        member.write(chunk, chunk / 100, -chunk / 10, None)
        if truncate_at_stop_string(member, len(chunk), text) is not None:
            return end_turn(member, True, text, 1000), member
    return end_turn(member, False, text, 1000), member


@settings(deadline=None)
@given(data=st.data())
def test_chunks_change_nothing(data):
    """The turn ends with the first token after which the whole text holds a stop string."""
    tokens = data.draw(st.lists(st.sampled_from(PIECES), min_size=1, max_size=40))
    strings = data.draw(st.lists(st.text("abé\n学", min_size=1, max_size=3), min_size=1, max_size=3))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(tokens)))))
    ends = [n for n in range(1, len(tokens) + 1) if any(one in text(tokens[:n]) for one in strings)]
    turn, member = write(tokens, tuple(strings), cuts)
    assert list(turn.tokens) == tokens[: ends[0] if ends else None]
    assert turn.stop == (StopReason.STRING if ends else StopReason.LENGTH)
    assert turn.text == text(turn.tokens)
    assert turn.logprobs == tuple(token / 100 for token in turn.tokens)
    assert member.pieces[-1].log_kept == tuple(-token / 10 for token in turn.tokens)
    assert (turn.left, member.position) == (1000 - len(turn.tokens), len(turn.tokens))


@pytest.mark.parametrize("cuts", [[], [1], [5], range(1, 9)])
def test_tokens_without_text_stand_inside_a_stop_string(cuts):
    tokens = [*ids("a"), *[SILENT] * 6, *ids("b"), *ids("a")]
    turn, _ = write(tokens, ("ab",), list(cuts))
    assert list(turn.tokens) == tokens[:-1]
    assert (turn.text, turn.stop) == ("ab", StopReason.STRING)


def test_a_character_in_two_tokens():
    (tokens,) = [ids("学") + ids("a")]
    assert len(tokens) > 2
    turn, _ = write(tokens, ("学",), range(1, len(tokens)))
    assert list(turn.tokens) == tokens[:-1]


def test_a_string_goes_before_an_id():
    """A token may complete a string and be a stop id: the string is the reason. An id alone is one too."""
    tokens = ids("a") + ids("b")
    assert write(tokens, ("b",), [], stop_ids=(tokens[-1],))[0].stop == StopReason.STRING
    assert write(tokens, ("c",), [], stop_ids=(tokens[-1],))[0].stop == StopReason.EOS
    assert write(tokens, ("c",), [], stop_ids=(tokens[0],))[0].stop == StopReason.LENGTH
