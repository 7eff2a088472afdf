"""What runs in which lane: prompts wait for a free lane, responses for a free column, episodes for tools.

The host's part of a rollout. It never changes what is sampled, only when (see `mmrl.rollout.engine.decode`).
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, UInt32

from mmrl.mesh import put
from mmrl.models.prompts import Encoded
from mmrl.models.qwen2_5_vl_config import Config
from mmrl.rollout import engine
from mmrl.rollout.episodes import Call, Episode, Request
from mmrl.rollout.members import Context, Member, advance, cut_at_stop_string, end_turn, ended, fits
from mmrl.rollout.orders import STOP_SLOTS, admission, observations, orders
from mmrl.rollout.shape import Shape
from mmrl.rollout.stats import Stats
from mmrl.rollout.trajectory import Trajectory
from mmrl.types import Params, Prompts, StopReason

_PATIENCE = 4  # chunks for which observations wait for others to be read with them


@dataclass(frozen=True)
class Group:
    """A prompt, and the episodes that begin with it."""

    prompt: Prompts  # a batch of one, on the host, padded to the shape of the lanes
    keys: UInt32[np.ndarray, "g k"]  # data of the random key of each episode
    episodes: Sequence[Episode]


@dataclass(eq=False)
class _Lane:
    columns: list[Member | None]
    context: Context | None = None

    def free(self) -> bool:
        """Nobody is in it, and nobody who could come shares its prompt."""
        return all(one is None for one in self.columns) and not (self.context and self.context.waiting)


@dataclass
class _Run:
    params: Params
    config: Config
    bias: Float[Array, "v"]
    shape: Shape
    groups: Iterator[Group]
    text: Callable[[Sequence[int]], str]
    collate: Callable[[Encoded], Prompts]
    tools: Callable[[Call], Future] | None
    entropy: bool
    stats: Stats
    mesh: Any
    state: engine.Lanes
    lanes: list[_Lane]
    slots: int
    queue: deque[Context] = field(default_factory=deque)
    reading: list[Member] = field(default_factory=list)  # have an observation to read
    calling: list[Member] = field(default_factory=list)  # wait for a tool
    halted: list[tuple[int, int]] = field(default_factory=list)  # columns to be stopped on the device
    done: list[Trajectory] = field(default_factory=list)
    patience: int = _PATIENCE
    pulled: int = 0
    mark: float = 0.0

    def members(self) -> Iterator[Member]:
        return (one for lane in self.lanes for one in lane.columns if one is not None)

    def lap(self, name: str) -> None:
        """Book the time since the last call under ``name``."""
        now = time.perf_counter()
        self.stats.seconds[name] = self.stats.seconds.get(name, 0.0) + now - self.mark
        self.mark = now


def roll_out(
    params: Params,
    config: Config,
    bias: Float[Array, "v"],
    groups: Iterable[Group],
    shape: Shape,
    *,
    text: Callable[[Sequence[int]], str],
    collate: Callable[[Encoded], Prompts],
    stats: Stats,
    tools: Callable[[Call], Future] | None = None,
    entropy: bool = False,
    given_up: Callable[[], bool] = bool,
) -> Iterator[Trajectory]:
    """Play all episodes of ``groups``; each trajectory is given out when it ends, while others decode.

    Args:
      params: weights of the policy, as `engine.decoding_weights` lays them out.
      config: its sizes.
      bias: 0, or `mmrl.kernels.vocab.BANNED` for ids that must never be sampled.
      groups: drawn from as lanes get free.
      shape: how much is decoded at once.
      text: of token ids; special tokens left out.
      collate: a batch of one, like the prompts of ``groups``, of a prompt that an episode asks for.
      stats: added to.
      tools: starts a tool; its result is what the episode gets.
      entropy: record that of each draw.
      given_up: asked between chunks; once it is true, nothing more is decoded and the rest is lost.

    Raises ValueError for an episode that asks for what there is no room for.
    """
    mesh = jax.sharding.get_mesh()
    if len(shape.slots) > 1:
        _compile_sizes(params, config, bias, shape, entropy)
    run = _Run(
        params=params,
        config=config,
        bias=bias,
        shape=shape,
        groups=iter(groups),
        text=text,
        collate=collate,
        tools=tools,
        entropy=entropy,
        stats=stats,
        mesh=None if mesh.empty else mesh,
        state=_idle(config, shape),
        lanes=[_Lane([None] * shape.columns) for _ in range(shape.lanes)],
        slots=shape.slots[0],
        mark=time.perf_counter(),
    )
    while not given_up():
        _place(run)
        _read(run)
        drawn = _decode(run)
        ready, run.done = run.done, []
        run.lap("host")
        yield from ready
        run.lap("consumer")
        if drawn is not None:
            _collect(run, jax.device_get(drawn))
        elif run.calling:
            wait([member.future for member in run.calling if member.future], return_when=FIRST_COMPLETED)
            run.lap("tools")
        elif not run.reading and not run.done:
            return
        _hear(run)


def _idle(config: Config, shape: Shape) -> engine.Lanes:
    return engine.empty_lanes(
        config,
        lanes=shape.lanes,
        columns=shape.columns,
        prompt=shape.prompt,
        slots=shape.slots[0],
        stop_slots=STOP_SLOTS,
    )


def _compile_sizes(
    params: Params, config: Config, bias: Float[Array, "v"], shape: Shape, entropy: bool
) -> None:
    """Call the decoding of each size of the cache on idle lanes, which takes no step.

    So a response that is longer than all before, late in a run, meets a program that is there.
    """
    state = _idle(config, shape)
    for slots in shape.slots[1:]:
        state = engine.grow(state, slots)
        state, _ = engine.decode(params, config, state, bias, steps=shape.chunk, entropy=entropy)


def _next_context(run: _Run) -> Context | None:
    """The next prompt that waits for a lane."""
    while not run.queue:
        group = next(run.groups, None)
        if group is None:
            return None
        context = Context(group.prompt)
        for number, episode in enumerate(group.episodes):
            member = Member(run.pulled, number, episode, group.keys[number])
            _act(run, member, advance(member, None), context)
        run.pulled += 1
        if context.waiting:
            run.queue.appendleft(context)
    return run.queue.popleft()


def _place(run: _Run) -> None:
    """Fill free columns: members of the lane's prompt first, then new prompts, then copies of prompts."""
    begins: list[Member] = []
    for lane in run.lanes:
        begins += _seat(run, lane)
    free = [lane for lane in run.lanes if lane.free()]
    new: list[tuple[int, Context]] = []
    for lane in list(free):
        context = _next_context(run)
        if context is None:
            break
        free.remove(lane)
        lane.context = context
        new.append((run.lanes.index(lane), context))
        begins += _seat(run, lane)
    run.lap("host")
    if new:
        for prompts, lanes in admission([(lane, one.prompt) for lane, one in new], run.shape):
            run.stats.prompt_slots += prompts.mask.size
            run.state = engine.admit(run.params, run.config, run.state, _put(run, prompts), lanes)
        jax.block_until_ready(run.state.prompt_hidden)
        run.stats.prompt_tokens += sum(int(one.prompt.mask.sum()) for _, one in new)
        run.lap("prefill")
    begins += _spread(run, free)
    if begins or run.halted:
        run.state = engine.direct(run.state, orders(run.shape, begins, run.halted))
        run.halted = []


def _seat(run: _Run, lane: _Lane) -> list[Member]:
    """Put waiting members of the lane's prompt into its free columns."""
    seated: list[Member] = []
    for column, member in enumerate(lane.columns):
        if member is None and lane.context and lane.context.waiting:
            new = lane.context.waiting.popleft()
            new.sit((run.lanes.index(lane), column), lane.context.prompt)
            lane.columns[column] = new
            seated.append(new)
    return seated


def _spread(run: _Run, free: list[_Lane]) -> list[Member]:
    """Let free lanes help with prompts whose members still wait."""
    source, target, begins = [], [], []
    have = [lane for lane in run.lanes if lane not in free]  # what they hold is on the device
    for lane in free:
        crowded = [one for one in have if one.context and one.context.waiting]
        if not crowded:
            break
        helped = max(crowded, key=lambda one: len(one.context.waiting) if one.context else 0)
        lane.context = helped.context
        source.append(run.lanes.index(helped))
        target.append(run.lanes.index(lane))
        begins += _seat(run, lane)
    if source:
        fill = run.shape.lanes - len(source)
        pairs = np.array([source + [0] * fill, target + [run.shape.lanes] * fill], np.int32)
        run.state = engine.share(run.state, pairs[0], pairs[1])
    return begins


def _read(run: _Run) -> None:
    """Have observations read, once enough wait, or long enough, or nothing else can be done."""
    busy = any(member.writing for member in run.members())
    while run.reading:
        one_a_lane = {member.seat[0]: member for member in reversed(run.reading) if member.seat}
        if busy and 4 * len(one_a_lane) < run.shape.lanes and run.patience:
            run.patience -= 1
            return
        run.patience = _PATIENCE
        batch = list(one_a_lane.values())
        arguments = observations(run.shape, batch, 3 * run.config.patch_size**2)
        _make_room(run, max(one.count + len(one.observation.tokens) for one in batch if one.observation))
        run.lap("host")
        prompts, *rest = arguments
        run.state = engine.append(run.params, run.config, run.state, _put(run, prompts), *rest)
        jax.block_until_ready(run.state.running)
        run.lap("append")
        for member in batch:
            run.reading.remove(member)
            run.stats.read_tokens += member.read()
        busy = True


def _decode(run: _Run) -> engine.Drawn | None:
    """Start the next steps of those that write; None if nobody does."""
    writing = [member for member in run.members() if member.writing]
    if not writing:
        return None
    _make_room(run, min(max(member.count for member in writing) + run.shape.chunk, run.shape.max_tokens))
    run.state, drawn = engine.decode(
        run.params, run.config, run.state, run.bias, steps=run.shape.chunk, entropy=run.entropy
    )
    return drawn


def _make_room(run: _Run, tokens: int) -> None:
    """Let responses have so many tokens; what is written past the end of a cache would be lost."""
    if tokens > run.slots:
        run.slots = next(slots for slots in run.shape.slots if slots >= tokens)
        run.state = engine.grow(run.state, run.slots)


def _collect(run: _Run, drawn: engine.Drawn) -> None:
    """Give each member what it has written; whose turn has ended, its episode goes on."""
    run.lap("decode")
    steps = int(drawn.steps)
    run.stats.chunks += 1
    run.stats.steps += steps
    run.stats.slots += steps * run.shape.lanes * run.shape.columns
    for member in list(run.members()):
        if not member.writing or member.seat is None:
            continue
        lane, column = member.seat
        count = int(drawn.drawn[lane, column])
        running = bool(drawn.running[lane, column])
        here = (lane, column, slice(count))
        entropy = None if drawn.entropy is None else drawn.entropy[here]
        member.write(drawn.tokens[here], drawn.logprob[here], drawn.log_kept[here], entropy)
        surplus = cut_at_stop_string(member, count, run.text)
        run.stats.sampled_tokens += count - (surplus or 0)
        if surplus is not None and running:
            run.halted.append(member.seat)
        if surplus is not None or not running:
            turn = end_turn(member, surplus is not None, run.text, run.shape.max_tokens)
            _act(run, member, advance(member, turn), None)


def _hear(run: _Run) -> None:
    """Let episodes go on whose tool has answered."""
    for member in list(run.calling):
        if member.future is not None and member.future.done():
            run.calling.remove(member)
            answer, member.future = member.future.result(), None
            _act(run, member, advance(member, answer), None)
    run.lap("host")


def _act(run: _Run, member: Member, wish: Any, context: Context | None) -> None:
    """Do what an episode asks for; ``context``: the group's prompt, while its episodes begin."""
    if isinstance(wish, Call):
        if run.tools is None:
            raise ValueError(f"an episode calls the tool {wish.tool!r}, but the rollout was given none")
        member.future = run.tools(wish)
        run.calling.append(member)
        return
    if isinstance(wish, Request):
        member.sampling = wish.sampling
        if wish.prompt is not None:
            _leave(run, member)
            member.start_over()
            run.queue.append(Context(run.collate(wish.prompt), deque([member])))
        elif context is not None:
            context.waiting.append(member)
        elif wish.observation is None:
            raise ValueError("a Request that continues a context needs an observation to read first")
        elif fits(member, wish.observation, run.shape):
            member.observation = wish.observation
            run.reading.append(member)
        else:
            member.episode.close()
            member.stop = StopReason.LENGTH
            _finish(run, member, ended(member, {}))
        return
    _finish(run, member, wish)


def _finish(run: _Run, member: Member, trajectory: Trajectory) -> None:
    _leave(run, member)
    run.done.append(trajectory)


def _leave(run: _Run, member: Member) -> None:
    """Free the member's column."""
    if member.seat is not None:
        lane, column = member.seat
        run.lanes[lane].columns[column] = None
        member.seat = None


def _put(run: _Run, tree: Any) -> Any:
    return tree if run.mesh is None else put(tree, run.mesh)
