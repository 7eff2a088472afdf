"""An episode under way: what its context holds so far, and what it does next."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int, UInt32

from mmrl.models.prompts import Encoded
from mmrl.rollout.engine import RolloutShape
from mmrl.rollout.episodes import Call, Episode, Request, Turn
from mmrl.rollout.sampling import Sampling
from mmrl.rollout.trajectory import Piece, Trajectory, WrittenTurn, assemble
from mmrl.types import Prompts, StopReason

_CONTEXTS = 2**30  # of random keys: beyond the index of any token
_BROKEN = 3  # marks that a character cut in two can become, at either end of a text


@dataclass(eq=False)
class PromptContext:
    """A prompt, and the members that wait to continue it."""

    prompt: Prompts
    waiting: deque["EpisodeState"] = field(default_factory=deque)


@dataclass(eq=False)
class EpisodeState:
    """One episode of a group; ``count`` and ``position`` are those of its running context."""

    group: int
    number: int
    episode: Episode
    key: UInt32[np.ndarray, "k"]
    sampling: Sampling | None = None
    slot: tuple[int, int] | None = None  # prompt slot and slot
    prompt_next: int = 0  # mRoPE position of the first response token
    writing: bool = False
    count: int = 0  # tokens of the response
    position: int = 0  # mRoPE of the next token, from ``prompt_next``
    tokens: list[int] = field(default_factory=list)  # of the turn under way, as the next three
    logprobs: list[float] = field(default_factory=list)
    log_kept: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    stop: int = StopReason.LENGTH
    observation: Encoded | None = None
    future: Future | None = None
    main: Trajectory | None = None  # what is trained on, once another context has begun
    contexts: int = 1

    def assign(self, slot: tuple[int, int], prompt: Prompts) -> None:
        """Begin to write in a slot."""
        self.slot, self.writing = slot, True
        self.prompt_next = int(np.asarray(prompt.next_position)[0])

    def limit(self, most: int) -> int:
        """``count`` at which the coming turn ends; an observation that waits is read before."""
        assert self.sampling is not None
        read = 0 if self.observation is None else len(self.observation.tokens)
        return min(most, self.count + read + self.sampling.max_tokens)

    def write(self, tokens: Any, logprobs: Any, log_kept: Any, entropies: Any) -> None:
        """Take what was sampled."""
        self.tokens += tokens.tolist()
        self.logprobs += logprobs.tolist()
        self.log_kept += log_kept.tolist()
        self.entropies += [] if entropies is None else entropies.tolist()
        self.count += len(tokens)

    def read(self) -> int:
        """Take the observation as read, and write on; its number of tokens."""
        observation, self.observation = self.observation, None
        assert observation is not None
        self.pieces.append(observation)
        self.count += len(observation.tokens)
        self.position += observation.next_position
        self.writing = True
        return len(observation.tokens)

    def begin_context(self) -> None:
        """Leave the context for another; the first one is what is trained on."""
        if self.count and self.main is None:
            self.main = self.trajectory({})
        self.key = np.asarray(_another_key(self.key, self.contexts))
        self.contexts += 1
        self.count = self.position = 0
        self.pieces, self.texts = [], []

    def trajectory(self, facts: dict[str, float]) -> Trajectory:
        """The pieces of the running context."""
        return assemble(
            self.pieces,
            group=self.group,
            member=self.number,
            stop=self.stop,
            text="\n".join(self.texts),
            facts=facts,
        )


@jax.jit
def _another_key(data: UInt32[Array, "k"], number: Int[Array, ""]) -> UInt32[Array, "k"]:
    key = jax.random.fold_in(jax.random.wrap_key_data(data), _CONTEXTS + number)
    return jax.random.key_data(key)


def advance(member: EpisodeState, value: Any) -> Request | Call | Trajectory:
    """Give an episode what it has asked for (None at its beginning): its next action, or its end."""
    try:
        return next(member.episode) if value is None else member.episode.send(value)
    except StopIteration as end:
        return ended(member, end.value or {})


def ended(member: EpisodeState, facts: dict[str, float]) -> Trajectory:
    """The trajectory of an episode that is over."""
    if member.main is None:
        return member.trajectory(facts)
    return replace(member.main, facts=facts)


def truncate_at_stop_string(
    member: EpisodeState, new: int, text: Callable[[Sequence[int]], str]
) -> int | None:
    """Take back what follows the token, of the ``new`` ones, that completes a stop string.

    Looked for in the text of the new tokens and of so many before them as a stop string can begin in: some
    have no text, and some are parts of a character.

    Returns:
      How many tokens were taken back, or None if no stop string was completed.
    """
    assert member.sampling is not None
    strings = member.sampling.stop_strings
    if not strings or not new:
        return None
    back = max(len(string) for string in strings) + 2 * _BROKEN
    before = len(member.tokens) - new
    start = max(0, before - back)
    while start and len(text(member.tokens[start:before])) < back:
        start = max(0, start - back)
    tail = member.tokens[start:]
    if not any(string in text(tail) for string in strings):
        return None
    length = next(n for n in range(1, len(tail) + 1) if any(s in text(tail[:n]) for s in strings))
    surplus = len(tail) - length
    member.count -= surplus
    for row in (member.tokens, member.logprobs, member.log_kept, member.entropies):
        del row[len(row) - min(surplus, len(row)) :]
    return surplus


def end_turn(member: EpisodeState, completed: bool, text: Callable[[Sequence[int]], str], most: int) -> Turn:
    """The turn that has ended; ``completed``: by a stop string."""
    assert member.sampling is not None
    stop = StopReason.STRING if completed else StopReason.LENGTH
    if not completed and member.tokens[-1] in member.sampling.stop_ids:
        stop = StopReason.EOS
    said = text(member.tokens)
    turn = Turn(
        text=said,
        tokens=tuple(member.tokens),
        logprobs=tuple(member.logprobs),
        stop=stop,
        left=most - member.count,
    )
    member.pieces.append(
        WrittenTurn(turn.tokens, turn.logprobs, tuple(member.log_kept), tuple(member.entropies))
    )
    member.texts.append(said)
    member.position += len(turn.tokens)
    member.stop, member.writing = stop, False
    member.tokens, member.logprobs, member.log_kept, member.entropies = [], [], [], []
    return turn


def fits(member: EpisodeState, observation: Encoded, shape: RolloutShape) -> bool:
    """True if an observation and one token after it fit the response.

    Raises:
      ValueError: it is larger than any observation may be.
    """
    tokens, patches = len(observation.tokens), len(observation.patches)
    if tokens > shape.observation or patches > shape.observation_patches:
        raise ValueError(
            f"an observation of {tokens} tokens and {patches} patch slots is over the rollout's budget of "
            f"{shape.observation} and {shape.observation_patches}"
        )
    return member.count + tokens < shape.max_tokens
