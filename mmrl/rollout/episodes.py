"""Episodes, turns of writing and reading: an episode is a generator that asks for tokens and gets them.

It yields a `Request` and receives the `Turn` that the policy has written, or yields a `Call` and receives
what the tool answered; it returns facts, which are logged and shown to the reward. The first thing it yields
is a `Request` that continues the sample's own prompt.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmrl.models.processor import Processor
from mmrl.models.prompts import IMAGE, Encoded, OverBudget, chat_messages, encode, encode_turn
from mmrl.rollout.sampling import Sampling
from mmrl.rollout.tools import Answer, ToolCallMatch, closing_tags, find_call
from mmrl.types import StopReason


@dataclass(frozen=True)
class Request:
    """Let the policy write a turn."""

    sampling: Sampling
    observation: Encoded | None = None  # to be read first, in the running context; positions count from 0
    prompt: Encoded | None = None  # begins another context instead


@dataclass(frozen=True)
class Call:
    """Run a tool, in another process and under a deadline, while others decode."""

    tool: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """Text and tokens of one turn of the policy."""

    text: str  # special tokens left out
    tokens: tuple[int, ...]  # with the one that stopped it
    logprobs: tuple[float, ...]
    stop: int  # a `mmrl.types.StopReason`
    left: int  # tokens that the response has room for


Episode = Generator[Request | Call, Any, dict[str, float]]


def single_turn(sampling: Sampling) -> Episode:
    """One response to the prompt."""
    yield Request(sampling)
    return {}


def with_tools(
    processor: Processor,
    images: Sequence[bytes | str],
    sampling: Sampling,
    *,
    tools: Sequence[str] = ("zoom",),
    turns: int = 4,
    most_images: int = 4,
    observation_tokens: int | None = None,
    observation_patches: int | None = None,
    name: str = "observation",
) -> Episode:
    """A response of several turns: one that holds a call is followed by what the tool answered.

    A call that fails is answered by an error, in words, and so is one whose answer the response has no room
    for. The episode ends with a turn that holds no call or ran out of tokens, and with the last of its
    ``turns``, whose call is left without an answer.

    Args:
      processor: encodes the observations.
      images: the sample's, unresized; zoom looks at the first.
      sampling: of each turn; the closing tags of ``tools`` are added to its stop strings.
      tools: names of `mmrl.rollout.tools.TOOLS`.
      turns: most turns that the policy writes.
      most_images: most that it sees by calls; then it is told that there are no more.
      observation_tokens, observation_patches: budget of one observation.
      name: of the sample, in messages.

    Returns:
      Facts: ``turns``, ``tool_calls`` (of calls that were answered), ``tool_errors``, ``images`` (seen).
    """
    asked = replace(sampling, stop_strings=(*sampling.stop_strings, *closing_tags(tools)))
    facts = {"turns": 0.0, "tool_calls": 0.0, "tool_errors": 0.0, "images": 0.0}
    request = Request(asked)
    while True:
        turn = yield request
        facts["turns"] += 1
        found = None if turn.stop == StopReason.LENGTH else find_call(turn.text, tools)
        if found is None or facts["turns"] >= turns:
            return facts
        answer = yield from _answer(found, images if facts["images"] < most_images else None)
        room = turn.left - 1  # so that a token can follow
        tokens = room if observation_tokens is None else min(room, observation_tokens)
        budget = {"token_budget": tokens, "patch_budget": observation_patches}
        observation, failed = _observation(
            processor, answer, {**budget, "name": name, "ended": turn.tokens[-1] == processor.eos}
        )
        facts["tool_calls"] += 1
        facts["tool_errors"] += failed
        facts["images"] += isinstance(answer.value, bytes) and not failed
        if observation is None:
            return facts
        request = Request(asked, observation=observation)


def second_look(
    processor: Processor,
    sampling: Sampling,
    question: str,
    images: Sequence[bytes | str] = (),
    *,
    compare: Callable[[str, str], dict[str, float]],
    prompt_budget: int | None = None,
    patch_budget: int | None = None,
    name: str = "second look",
) -> Episode:
    """A response, and then another by the same policy, about the first, in a context of its own.

    Args:
      processor: encodes the second prompt.
      sampling: of both.
      question: the second prompt. In its text "{response}" becomes the first response, as it stands, and
        each "<image>" one of ``images``: none, those of the sample, or others.
      images: in order of appearance.
      compare: facts, of the first response and the second; {} if there was none.
      prompt_budget, patch_budget: of the second prompt; there is no second look beyond them.
      name: of the sample, in messages.

    Returns:
      Those facts, and ``second_look``, 1 if there was one.
    """
    first = yield Request(sampling)
    (asked,) = chat_messages(question)
    for part in asked["content"]:
        part.update({"text": part["text"].replace("{response}", first.text)} if "text" in part else {})
    try:
        prompt = encode(
            processor, [asked], images, name=name, prompt_budget=prompt_budget, patch_budget=patch_budget
        )
    except OverBudget:
        return {"second_look": 0.0}
    second = yield Request(sampling, prompt=prompt)
    return {"second_look": 1.0, **compare(first.text, second.text)}


def _answer(found: ToolCallMatch, images: Sequence[bytes | str] | None) -> Generator[Call, Any, Answer]:
    """The result of a tool call; ``images`` None: no more may be seen."""
    if found.error is not None:
        return Answer(error=found.error)
    if found.tool != "zoom":
        return (yield Call(found.tool, found.arguments))
    if not images:
        return Answer(error="there is no image" if images is not None else "no more images")
    return (yield Call(found.tool, {"image": images[0], **found.arguments}))


def _observation(
    processor: Processor, answer: Answer, settings: dict[str, Any]
) -> tuple[Encoded | None, bool]:
    """An answer as a turn, and whether it is an error; None if even that is over its budget."""
    error = answer.error
    if error is None:
        seen = isinstance(answer.value, bytes)
        try:
            text, images = (IMAGE, [answer.value]) if seen else (_words(str(answer.value)), [])
            return encode_turn(processor, text, images, **settings), False
        except ValueError:
            error = "the answer cannot be shown"
    try:
        text = f"Error: {_words(error.removeprefix('ValueError: '))}"
        return encode_turn(processor, text, **settings), True
    except OverBudget:
        return None, True


def _words(text: str) -> str:
    """``text`` that shows no image."""
    return text.replace(IMAGE, "[image]")
