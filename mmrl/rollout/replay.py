"""Episodes played from a script, without a model: what there is to imitate of them."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from mmrl.models.processor import Processor
from mmrl.models.prompts import Encoded, OverBudget, text_ids
from mmrl.rollout.episodes import Call, Episode, Turn
from mmrl.rollout.sampling import Sampling
from mmrl.rollout.tools import TOOLS, Answer
from mmrl.rollout.trajectory import Piece, Trajectory, WrittenTurn, assemble
from mmrl.types import StopReason

_ROOM = 1 << 30  # tokens: a script is not cut short


class ReplayedContext(NamedTuple):
    """One context of an episode: the prompt that it begins with (None: the sample's own), what follows it."""

    prompt: Encoded | None
    trajectory: Trajectory


def replay(
    episode: Episode,
    turns: Sequence[str],
    processor: Processor,
    tools: Callable[[Call], Future[Answer]] | None = None,
    name: str = "script",
) -> list[ReplayedContext]:
    """Play an episode in which the policy writes ``turns``; tools run as they would.

    A turn is tokenised, and the id that ends a turn is appended unless one of the request's stop strings
    ends it. So the trajectories, one a context, are those of a policy that had sampled these turns.

    Raises ValueError, naming the row, if the episode asks for more turns than there are or for fewer, calls a
    tool and there are none, or if a turn could not have been sampled: it is longer than the request
    allows (`OverBudget`), or goes on after a stop string.
    """
    prompts: list[Encoded | None] = [None]
    contexts: list[list[Piece]] = [[]]
    said: list[list[Turn]] = [[]]
    used, action = 0, next(episode)
    while True:
        value: Any
        if isinstance(action, Call):
            if tools is None:
                raise ValueError(
                    f"{name}: turn {used} calls the tool {action.tool!r}, but there are no tools"
                )
            value = tools(action).result()
        else:
            if used == len(turns):
                raise ValueError(f"{name}: the episode goes on after the {used} turns of the script")
            value = _turn(turns[used], action.sampling, processor, f"{name}, turn {used + 1}")
            used += 1
            if action.prompt is not None:
                prompts.append(action.prompt)
                contexts.append([])
                said.append([])
            elif action.observation is not None:
                contexts[-1].append(action.observation)
            contexts[-1].append(WrittenTurn(value.tokens, value.logprobs))
            said[-1].append(value)
        try:
            action = episode.send(value)
        except StopIteration as end:
            facts = end.value or {}
            break
    if used != len(turns):
        raise ValueError(f"{name}: the episode ends after {used} of the script's {len(turns)} turns")
    return [
        ReplayedContext(prompt, _trajectory(pieces, own, facts))
        for prompt, pieces, own in zip(prompts, contexts, said, strict=True)
    ]


def at_once(call: Call) -> Future[Answer]:
    """Run a tool in this thread: for scripts, which are as trusted as the data they stand in."""
    future: Future[Answer] = Future()
    try:
        future.set_result(Answer(TOOLS[call.tool](**call.arguments)))
    except Exception as error:  # what a tool raises is its answer
        future.set_result(Answer(error=f"{type(error).__name__}: {error}"))
    return future


def _trajectory(pieces: Sequence[Piece], said: Sequence[Turn], facts: dict[str, float]) -> Trajectory:
    text = "\n".join(turn.text for turn in said)
    return assemble(pieces, group=0, member=0, stop=said[-1].stop, text=text, facts=facts)


def _turn(text: str, sampling: Sampling, processor: Processor, name: str) -> Turn:
    """The turn in which a policy writes ``text``."""
    tokens = text_ids(processor, text, name)
    ends = [text.find(string) + len(string) for string in sampling.stop_strings if string in text]
    if ends and min(ends) < len(text):
        raise ValueError(f"{name}: it goes on after {text[: min(ends)]!r}, where a sampled turn ends")
    tokens = tokens if ends else [*tokens, processor.eos]
    if len(tokens) > sampling.max_tokens:
        raise OverBudget(f"{name}: {len(tokens)} tokens, but a turn may have {sampling.max_tokens}")
    stop = StopReason.STRING if ends else StopReason.EOS
    return Turn(text, tuple(tokens), (0.0,) * len(tokens), stop, _ROOM)
