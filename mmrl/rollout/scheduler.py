"""Scheduler of a rollout: prompts wait for a prompt slot, responses for a response slot, episodes for tools.

The host's part of a rollout. It never changes what is sampled, only when (see `mmrl.rollout.engine.decode`).
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, UInt32

from mmrl.mesh import batch_shards, shard_batch
from mmrl.models.config import ModelConfig
from mmrl.models.prompts import Encoded
from mmrl.packing import computed_slots, pack_prompts
from mmrl.rollout import engine
from mmrl.rollout.engine import RolloutShape, SlotCommands
from mmrl.rollout.episode_state import (
    EpisodeState,
    PromptContext,
    advance,
    end_turn,
    ended,
    fits,
    truncate_at_stop_string,
)
from mmrl.rollout.episodes import Call, Episode, Request
from mmrl.rollout.sampling import Sampling, SamplingArrays, sampling_arrays
from mmrl.rollout.slots import smallest_grid
from mmrl.rollout.trajectory import Trajectory
from mmrl.types import Images, Params, Prompts, StopReason

MAX_STOP_IDS = 8  # stop ids that a request may have
_IDLE = Sampling(max_tokens=1)
_PATIENCE = 4  # chunks for which observations wait for others to be read with them


@dataclass
class Stats:
    """Counts and times of a rollout."""

    prompt_tokens: int = 0
    computed_prompt_tokens: int = 0  # slots of the rows that prefill computed
    read_tokens: int = 0  # of observations
    sampled_tokens: int = 0
    steps: int = 0  # of decoding
    token_capacity: int = 0  # slots times steps: tokens that decoding could have sampled
    chunks: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # prefill, decode, append, tools, host, consumer

    def metrics(self) -> dict[str, float]:
        """By the names they are logged under."""
        prefill, decode = (max(self.seconds.get(name, 0.0), 1e-9) for name in ("prefill", "decode"))
        return {
            "rollout/occupancy": self.sampled_tokens / max(self.token_capacity, 1),
            "speed/prefill_tokens_per_second": self.prompt_tokens / prefill,
            "speed/decode_tokens_per_second": self.sampled_tokens / decode,
            "padding/prefill": self.computed_prompt_tokens / max(self.prompt_tokens, 1),
            "padding/decode": self.token_capacity / max(self.sampled_tokens, 1),
            "rollout/steps": float(self.steps),
            **{f"speed/rollout_{name}_seconds": seconds for name, seconds in self.seconds.items()},
        }


def merged(parts: Sequence[Mapping[str, Any]]) -> Stats:
    """The `Stats` of one rollout that several processes shared, each given as a dict.

    Counts add up; steps and seconds, which pass in all of them at once, are averaged.
    """
    total = Stats()
    for part in parts:
        for name, value in part.items():
            if name == "seconds":
                for phase, seconds in value.items():
                    total.seconds[phase] = total.seconds.get(phase, 0.0) + seconds / len(parts)
            else:
                setattr(total, name, getattr(total, name) + value)
    total.steps = round(total.steps / len(parts))
    return total


@dataclass(frozen=True)
class PromptGroup:
    """A prompt, and the episodes that begin with it."""

    prompt: Prompts  # a batch of one, on the host, padded to the shape of the prompt slots
    keys: UInt32[np.ndarray, "g k"]  # data of the random key of each episode
    episodes: Sequence[Episode]


@dataclass(eq=False)
class _PromptSlot:
    slots: list[EpisodeState | None]
    context: PromptContext | None = None

    def free(self) -> bool:
        """No active sequence, and none queued for its prompt."""
        return all(slot is None for slot in self.slots) and not (self.context and self.context.waiting)


@dataclass
class _Rollout:
    params: Params
    config: ModelConfig
    bias: Float[Array, "v"]
    shape: RolloutShape
    groups: Iterator[PromptGroup]
    text: Callable[[Sequence[int]], str]
    collate: Callable[[Encoded], Prompts]
    tools: Callable[[Call], Future] | None
    entropy: bool
    stats: Stats
    mesh: Any
    state: engine.DecodeState
    prompt_slots: list[_PromptSlot]
    grids: list[tuple[int, int]]  # those that responses are compacted into, after the one that there is
    cache_size: int
    queue: deque[PromptContext] = field(default_factory=deque)
    reading: list[EpisodeState] = field(default_factory=list)  # have an observation to read
    calling: list[EpisodeState] = field(default_factory=list)  # wait for a tool
    halted: list[tuple[int, int]] = field(default_factory=list)  # slots to be stopped on the device
    done: list[Trajectory] = field(default_factory=list)
    patience: int = _PATIENCE
    pulled: int = 0
    mark: float = 0.0

    def members(self) -> Iterator[EpisodeState]:
        return (slot for prompt_slot in self.prompt_slots for slot in prompt_slot.slots if slot is not None)

    def lap(self, name: str) -> None:
        """Book the time since the last call under ``name``."""
        now = time.perf_counter()
        self.stats.seconds[name] = self.stats.seconds.get(name, 0.0) + now - self.mark
        self.mark = now


def roll_out(
    params: Params,
    config: ModelConfig,
    bias: Float[Array, "v"],
    groups: Iterable[PromptGroup],
    shape: RolloutShape,
    *,
    text: Callable[[Sequence[int]], str],
    collate: Callable[[Encoded], Prompts],
    stats: Stats,
    tools: Callable[[Call], Future] | None = None,
    entropy: bool = False,
    should_stop: Callable[[], bool] = bool,
) -> Iterator[Trajectory]:
    """Play all episodes of ``groups``; each trajectory is given out when it ends, while others decode.

    Args:
      params: weights of the policy, as `engine.decoding_weights` lays them out.
      config: its sizes.
      bias: 0, or `mmrl.kernels.vocab.BANNED` for ids that must never be sampled.
      groups: drawn from as prompt slots get free.
      shape: how much is decoded at once.
      text: of token ids; special tokens left out.
      collate: a batch of one, like the prompts of ``groups``, of a prompt that an episode asks for.
      stats: added to.
      tools: starts a tool; its result is what the episode gets.
      entropy: record that of each draw.
      should_stop: asked between chunks; once it is true, nothing more is decoded and the rest is lost.

    Raises ValueError for an episode that asks for what there is no room for.
    """
    mesh = jax.sharding.get_mesh()
    shards = 1 if mesh.empty else batch_shards(mesh)
    if len(shape.cache_sizes) > 1 or shape.compacts:
        _compile_sizes(params, config, bias, shape, shards, entropy)
    run = _Rollout(
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
        prompt_slots=[_PromptSlot([None] * shape.slots_per_prompt) for _ in range(shape.prompt_slots)],
        grids=[(shape.prompt_slots, shape.slots_per_prompt), *shape.compact_grids(shards)],
        cache_size=shape.cache_sizes[0],
        mark=time.perf_counter(),
    )
    while not should_stop():
        _fill_slots(run)
        _compact(run)
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
        _poll_tools(run)


def _idle(config: ModelConfig, shape: RolloutShape) -> engine.DecodeState:
    return engine.init_decode_state(
        config,
        prompt_slots=shape.prompt_slots,
        slots_per_prompt=shape.slots_per_prompt,
        prompt=shape.prompt,
        cache_size=shape.cache_sizes[0],
        max_stop_ids=MAX_STOP_IDS,
    )


def _compile_sizes(
    params: Params,
    config: ModelConfig,
    bias: Float[Array, "v"],
    shape: RolloutShape,
    shards: int,
    entropy: bool,
) -> None:
    """Call the decoding of each size of the cache and of each grid on idle slots, which takes no step.

    So a response that is longer than all before, late in a run, meets a program that is there.
    """
    state = _idle(config, shape)
    for size in shape.cache_sizes[1:]:
        state = engine.grow_cache(state, size)
        state, _ = engine.decode(params, config, state, bias, steps=shape.chunk, entropy=entropy)
    for grid in shape.compact_grids(shards):
        nothing = np.zeros((*grid, 2), np.int32), np.zeros(grid, bool)
        state = engine.compact(state, *nothing, shape.max_tokens)
        shape = replace(shape, prompt_slots=grid[0], slots_per_prompt=grid[1])
        state = engine.apply_commands(state, make_commands(shape, [], []))
        state, _ = engine.decode(params, config, state, bias, steps=shape.chunk, entropy=entropy)


def _next_context(run: _Rollout) -> PromptContext | None:
    """The next prompt that waits for a prompt slot."""
    while not run.queue:
        group = next(run.groups, None)
        if group is None:
            return None
        context = PromptContext(group.prompt)
        for number, episode in enumerate(group.episodes):
            member = EpisodeState(run.pulled, number, episode, group.keys[number])
            _dispatch(run, member, advance(member, None), context)
        run.pulled += 1
        if context.waiting:
            run.queue.appendleft(context)
    return run.queue.popleft()


def _fill_slots(run: _Rollout) -> None:
    """Fill free slots: with episodes of the same prompt, then new prompts, then copies of prompts."""
    begins: list[EpisodeState] = []
    for prompt_slot in run.prompt_slots:
        begins += _assign(run, prompt_slot)
    free = [prompt_slot for prompt_slot in run.prompt_slots if prompt_slot.free()]
    new: list[tuple[int, PromptContext]] = []
    for prompt_slot in list(free):
        context = _next_context(run)
        if context is None:
            break
        free.remove(prompt_slot)
        prompt_slot.context = context
        new.append((run.prompt_slots.index(prompt_slot), context))
        begins += _assign(run, prompt_slot)
    run.lap("host")
    if new:
        for prompts, prompt_slots in prefill_batches(
            [(prompt_slot, one.prompt) for prompt_slot, one in new], run.shape
        ):
            keep = prompt_slots < run.shape.prompt_slots
            packed = pack_prompts(prompts, keep, run.config, run.mesh)
            run.stats.computed_prompt_tokens += int(computed_slots(packed)[0])
            given = _put(run, prompts), packed, prompt_slots
            run.state = engine.admit(run.params, run.config, run.state, *given)
        jax.block_until_ready(run.state.prompt_hidden)
        run.stats.prompt_tokens += sum(int(one.prompt.mask.sum()) for _, one in new)
        run.lap("prefill")
    begins += _replicate_prompts(run, free)
    if begins or run.halted:
        run.state = engine.apply_commands(run.state, make_commands(run.shape, begins, run.halted))
        run.halted = []


def _assign(run: _Rollout, prompt_slot: _PromptSlot) -> list[EpisodeState]:
    """Put waiting members of the prompt slot's prompt into its free slots."""
    assigned: list[EpisodeState] = []
    for slot, member in enumerate(prompt_slot.slots):
        if member is None and prompt_slot.context and prompt_slot.context.waiting:
            new = prompt_slot.context.waiting.popleft()
            new.assign((run.prompt_slots.index(prompt_slot), slot), prompt_slot.context.prompt)
            prompt_slot.slots[slot] = new
            assigned.append(new)
    return assigned


def _replicate_prompts(run: _Rollout, free: list[_PromptSlot]) -> list[EpisodeState]:
    """Let free prompt slots help with prompts whose members still wait."""
    source, target, begins = [], [], []
    have = [
        prompt_slot for prompt_slot in run.prompt_slots if prompt_slot not in free
    ]  # what they hold is on the device
    for prompt_slot in free:
        crowded = [slot for slot in have if slot.context and slot.context.waiting]
        if not crowded:
            break
        helped = max(crowded, key=lambda one: len(one.context.waiting) if one.context else 0)
        prompt_slot.context = helped.context
        source.append(run.prompt_slots.index(helped))
        target.append(run.prompt_slots.index(prompt_slot))
        begins += _assign(run, prompt_slot)
    if source:
        fill = run.shape.prompt_slots - len(source)
        pairs = np.array([source + [0] * fill, target + [run.shape.prompt_slots] * fill], np.int32)
        run.state = engine.copy_prompts(run.state, pairs[0], pairs[1])
    return begins


def _compact(run: _Rollout) -> None:
    """Move what runs into fewer slots, if they are enough and nothing waits for a slot.

    All of it then has caches of the largest size, so that each grid has one program.
    """
    contexts = {id(slot.context): slot.context for slot in run.prompt_slots if slot.context}
    running: dict[int, list[EpisodeState]] = {}
    for member in run.members():
        assert member.slot is not None
        running.setdefault(id(run.prompt_slots[member.slot[0]].context), []).append(member)
    kept = smallest_grid([len(members) for members in running.values()], run.grids)
    if not (kept and running) or any(context.waiting for context in contexts.values()):
        return
    if (waits := _next_context(run)) is not None:
        run.queue.appendleft(waits)
        return
    run.grids = run.grids[kept:]
    count, size = run.grids[0]
    source, runs = np.zeros((count, size, 2), np.int32), np.zeros((count, size), bool)
    prompt_slots = [_PromptSlot([None] * size) for _ in range(count)]
    rows = iter(enumerate(prompt_slots))
    for key, members in running.items():
        for column, member in enumerate(members):
            if column % size == 0:
                at, prompt_slot = next(rows)
                prompt_slot.context = contexts[key]
            cell = at, column % size
            assert member.slot is not None
            source[cell], runs[cell] = member.slot, True
            member.slot, prompt_slot.slots[cell[1]] = cell, member
    run.prompt_slots, run.cache_size = prompt_slots, run.shape.max_tokens
    run.state = engine.compact(run.state, source, runs, run.cache_size)
    run.shape = replace(run.shape, prompt_slots=count, slots_per_prompt=size)


def _read(run: _Rollout) -> None:
    """Have observations read, once enough wait, or long enough, or nothing else can be done."""
    busy = any(member.writing for member in run.members())
    while run.reading:
        one_a_prompt = {member.slot[0]: member for member in reversed(run.reading) if member.slot}
        if busy and 4 * len(one_a_prompt) < run.shape.prompt_slots and run.patience:
            run.patience -= 1
            return
        run.patience = _PATIENCE
        batch = list(one_a_prompt.values())
        arguments = observation_batch(run.shape, batch, run.config.patch_bytes)
        _grow_cache(run, max(one.count + len(one.observation.tokens) for one in batch if one.observation))
        run.lap("host")
        prompts, *rest = arguments
        run.state = engine.prefill_observation(run.params, run.config, run.state, _put(run, prompts), *rest)
        jax.block_until_ready(run.state.running)
        run.lap("append")
        for member in batch:
            run.reading.remove(member)
            run.stats.read_tokens += member.read()
        busy = True


def _decode(run: _Rollout) -> engine.DecodedTokens | None:
    """Start the next decode steps; None if no slot is writing."""
    writing = [member for member in run.members() if member.writing]
    if not writing:
        return None
    _grow_cache(run, min(max(member.count for member in writing) + run.shape.chunk, run.shape.max_tokens))
    run.state, drawn = engine.decode(
        run.params, run.config, run.state, run.bias, steps=run.shape.chunk, entropy=run.entropy
    )
    return drawn


def _grow_cache(run: _Rollout, tokens: int) -> None:
    """Let responses have so many tokens; what is written past the end of a cache would be lost."""
    if tokens > run.cache_size:
        run.cache_size = next(size for size in run.shape.cache_sizes if size >= tokens)
        run.state = engine.grow_cache(run.state, run.cache_size)


def _collect(run: _Rollout, drawn: engine.DecodedTokens) -> None:
    """Give each member what it has written; whose turn has ended, its episode goes on."""
    run.lap("decode")
    steps = int(drawn.steps)
    run.stats.chunks += 1
    run.stats.steps += steps
    run.stats.token_capacity += steps * run.shape.prompt_slots * run.shape.slots_per_prompt
    for member in list(run.members()):
        if not member.writing or member.slot is None:
            continue
        prompt_slot, slot = member.slot
        count = int(drawn.drawn[prompt_slot, slot])
        running = bool(drawn.running[prompt_slot, slot])
        here = (prompt_slot, slot, slice(count))
        entropy = None if drawn.entropy is None else drawn.entropy[here]
        member.write(drawn.tokens[here], drawn.logprob[here], drawn.log_kept[here], entropy)
        surplus = truncate_at_stop_string(member, count, run.text)
        run.stats.sampled_tokens += count - (surplus or 0)
        if surplus is not None and running:
            run.halted.append(member.slot)
        if surplus is not None or not running:
            turn = end_turn(member, surplus is not None, run.text, run.shape.max_tokens)
            _dispatch(run, member, advance(member, turn), None)


def _poll_tools(run: _Rollout) -> None:
    """Let episodes go on whose tool has answered."""
    for member in list(run.calling):
        if member.future is not None and member.future.done():
            run.calling.remove(member)
            answer, member.future = member.future.result(), None
            _dispatch(run, member, advance(member, answer), None)
    run.lap("host")


def _dispatch(run: _Rollout, member: EpisodeState, action: Any, context: PromptContext | None) -> None:
    """Do what an episode asks for; ``context``: the group's prompt, while its episodes begin."""
    if isinstance(action, Call):
        if run.tools is None:
            raise ValueError(f"an episode calls the tool {action.tool!r}, but the rollout was given none")
        member.future = run.tools(action)
        run.calling.append(member)
        return
    if isinstance(action, Request):
        member.sampling = action.sampling
        if action.prompt is not None:
            _release(run, member)
            member.begin_context()
            run.queue.append(PromptContext(run.collate(action.prompt), deque([member])))
        elif context is not None:
            context.waiting.append(member)
        elif action.observation is None:
            raise ValueError("a Request that continues a context needs an observation to read first")
        elif fits(member, action.observation, run.shape):
            member.observation = action.observation
            run.reading.append(member)
        else:
            member.episode.close()
            member.stop = StopReason.LENGTH
            _finish(run, member, ended(member, {}))
        return
    _finish(run, member, action)


def _finish(run: _Rollout, member: EpisodeState, trajectory: Trajectory) -> None:
    _release(run, member)
    run.done.append(trajectory)


def _release(run: _Rollout, member: EpisodeState) -> None:
    """Free the member's slot."""
    if member.slot is not None:
        prompt_slot, slot = member.slot
        run.prompt_slots[prompt_slot].slots[slot] = None
        member.slot = None


def _put(run: _Rollout, tree: Any) -> Any:
    return tree if run.mesh is None else shard_batch(tree, run.mesh)


def prefill_batches(
    rows: Sequence[tuple[int, Prompts]], shape: RolloutShape
) -> Iterator[tuple[Prompts, np.ndarray]]:
    """Batches of prompts with the prompt slot of each; rows that fill a batch up go to no prompt slot."""
    small, large = shape.prefill_sizes
    rest = list(rows)
    while rest:
        size = large if 2 * len(rest) > large else small
        part, rest = rest[:size], rest[size:]
        filled = [part[k % len(part)][1] for k in range(size)]
        prompt_slots = [prompt_slot for prompt_slot, _ in part] + [shape.prompt_slots] * (size - len(part))
        yield jax.tree.map(lambda *leaves: np.concatenate(leaves), *filled), np.array(prompt_slots, np.int32)


def make_commands(
    shape: RolloutShape, begins: Sequence[EpisodeState], halts: Sequence[tuple[int, int]]
) -> SlotCommands:
    """Members begin in their slots, slots of ``halts`` stop."""
    grid = (shape.prompt_slots, shape.slots_per_prompt)

    def blank(*width: int, dtype: Any) -> Any:
        return np.zeros((*grid, *width), dtype)

    begin, halt, limit = blank(dtype=bool), blank(dtype=bool), blank(dtype=np.int32)
    width = len(begins[0].key) if begins else 2
    key = blank(width, dtype=np.uint32)
    samplings = np.full(grid, _IDLE, object)
    for slot in halts:
        halt[slot] = True
    for member in begins:
        assert member.slot is not None
        begin[member.slot] = True
        halt[member.slot] = False
        limit[member.slot] = member.limit(shape.max_tokens)
        key[member.slot] = member.key
        samplings[member.slot] = member.sampling
    options = sampling_arrays(samplings.reshape(-1).tolist(), MAX_STOP_IDS)
    options = jax.tree.map(lambda leaf: leaf.reshape(*grid, *leaf.shape[1:]), options)
    return SlotCommands(begin, halt, limit, key, options)


def observation_batch(
    shape: RolloutShape, members: Sequence[EpisodeState], patch_width: int
) -> tuple[Prompts, np.ndarray, np.ndarray, np.ndarray, SamplingArrays]:
    """Arguments of `engine.prefill_observation`, one episode a prompt slot; text alone has no patch slots."""
    prompt_slots, length = shape.prompt_slots, shape.observation + 1
    with_images = any(len(member.observation.patches) for member in members if member.observation)
    slots = shape.observation_patches if with_images else 0

    def blank(*width: int, dtype: Any = np.int32, fill: int = 0) -> Any:
        return np.full((prompt_slots, *width), fill, dtype)

    tokens, mask = blank(length), blank(length, dtype=bool)
    position, following, image_token = blank(length, 3), blank(), blank(length, fill=-1)
    patches = blank(slots, patch_width, dtype=np.uint8)
    patch_position, patch_image = blank(slots, 2), blank(slots, fill=-1)
    slot, kept, limit = blank(), blank(), blank()
    samplings = [_IDLE] * prompt_slots
    for member in members:
        seen = member.observation
        assert member.slot is not None
        assert seen is not None
        assert member.sampling is not None
        prompt_slot, slot[member.slot[0]] = member.slot
        count, slots_used, start = len(seen.tokens), len(seen.patches), member.prompt_next + member.position
        tokens[prompt_slot, : count + 1] = [member.pieces[-1].tokens[-1], *seen.tokens]
        mask[prompt_slot, : count + 1] = True
        position[prompt_slot, 0] = start - 1
        position[prompt_slot, 1 : count + 1] = start + seen.position
        following[prompt_slot] = start + seen.next_position
        image_token[prompt_slot, 1 : count + 1] = seen.image_token
        patches[prompt_slot, :slots_used] = seen.patches
        patch_position[prompt_slot, :slots_used] = seen.patch_position
        patch_image[prompt_slot, :slots_used] = seen.patch_image
        kept[prompt_slot] = member.count - 1
        limit[prompt_slot] = member.limit(shape.max_tokens)
        samplings[prompt_slot] = member.sampling
    images = Images(patches=patches, position=patch_position, image=patch_image)
    prompts = Prompts(tokens, mask, position, following, image_token, images)
    return prompts, slot, kept, limit, sampling_arrays(samplings, MAX_STOP_IDS)
