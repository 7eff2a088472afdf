"""The number of slots to decode in, for responses of known lengths: by the time that decoding would take.

A step reads all weights, in however many slots; each slot reads its cache, and is computed whether it runs or
waits for the longest response. Which of the two is more depends on the model, the lengths and the machine.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from flax import traverse_util
from jaxtyping import Int

from mmrl.models.config import ModelConfig
from mmrl.models.family import param_specs
from mmrl.rollout.engine import RolloutShape, cache_bytes

_ALIKE = 1.2  # times that differ by less are not told apart: slots that wait less need less memory, too
_SAVES = 0.9  # most time, of that without compaction, at which its two programs are worth compiling
Grid = tuple[int, int]  # numbers of prompt slots, and of response slots in each


@dataclass(frozen=True)
class DecodeCount:
    """Steps of decoding a batch, by the grid they are taken in."""

    steps_in: dict[Grid, int]

    @property
    def steps(self) -> int:
        """All of them."""
        return sum(self.steps_in.values())

    @property
    def token_capacity(self) -> int:
        """Slots times steps: tokens that could have been written."""
        return sum(steps * math.prod(grid) for grid, steps in self.steps_in.items())


@dataclass
class _Slot:
    """A prompt slot: its prompt, and tokens that its responses have still to write."""

    prompt: int | None = None
    left: list[int] = field(default_factory=list)


def choose_slots(
    lengths: Int[np.ndarray, "b g"],
    shapes: Sequence[RolloutShape],
    shards: int,
    model: ModelConfig,
    flops_per_byte: float,
) -> RolloutShape:
    """The shape that decodes responses of these lengths in the least time, by arithmetic.

    Of those that take about as long, that whose slots are busiest. It compacts if that saves time.

    Args:
      lengths: tokens of the responses to each prompt.
      shapes: to choose from; they differ in their slots.
      shards: parts of the mesh over which prompt slots are divided.
      model: its sizes.
      flops_per_byte: operations that a device does while it reads a byte.
    """
    weights, limit = weight_bytes(model), shapes[0].max_tokens
    longest = next(size for size in shapes[0].cache_sizes if size >= min(lengths.max(), limit))

    def cost(count: DecodeCount) -> float:
        """Bytes that could be read in the time of all steps."""
        total = 0.0
        for (prompt_slots, size), steps in count.steps_in.items():
            grid = replace(shapes[0], prompt_slots=prompt_slots, slots_per_prompt=size, max_tokens=longest)
            # A weight is a product and a sum in each slot.
            computed = prompt_slots * size * 2 * weights / np.dtype(model.dtype).itemsize / flops_per_byte
            total += steps * (shards * weights + computed + cache_bytes(model, grid))
        return total

    found: list[tuple[float, int, RolloutShape]] = []
    for shape in shapes:
        slots = shape.prompt_slots, shape.slots_per_prompt
        least = min((time for time, *_ in found), default=math.inf)
        if cost(DecodeCount({slots: int(lengths.sum()) // math.prod(slots)})) > _ALIKE * least:
            continue  # even if no slot waited
        counted = [
            (count_steps(lengths, one, shards), one)
            for one in (replace(shape, compacts=False), replace(shape, compacts=True))
        ]
        saves = cost(counted[1][0]) <= _SAVES * cost(counted[0][0])
        count, made = counted[saves]
        found.append((cost(count), count.token_capacity, made))
    least = min(time for time, *_ in found)
    return min((one for one in found if one[0] <= _ALIKE * least), key=lambda one: one[1])[2]


def weight_bytes(model: ModelConfig) -> int:
    """Bytes of the weights that a step of decoding reads."""
    specs = traverse_util.flatten_dict({k: v for k, v in param_specs(model).items() if k != "vision"})
    return np.dtype(model.dtype).itemsize * sum(math.prod(spec.shape) for spec in specs.values())


def smaller_shapes(
    most: RolloutShape, shards: int, *, fewer_prompts: bool = True, fewer_responses: bool = True
) -> list[RolloutShape]:
    """The shape, and those with a half, a quarter, ... of its prompt slots and of the responses of each."""
    parts = halves(max(most.prompt_slots // shards, 1))
    rows = [min(shards * part, most.prompt_slots) for part in parts] if fewer_prompts else [most.prompt_slots]
    sizes = halves(most.slots_per_prompt) if fewer_responses else [most.slots_per_prompt]
    return [replace(most, prompt_slots=row, slots_per_prompt=size) for row in rows for size in sizes]


def halves(size: int) -> list[int]:
    """The size, its half, rounded up, and so on down to 1."""
    return [size, *halves(-(-size // 2))] if size > 1 else [1]


def count_steps(lengths: Int[np.ndarray, "b g"], shape: RolloutShape, shards: int = 1) -> DecodeCount:
    """Decoding as `mmrl.rollout.scheduler.roll_out` does it, for responses of one turn of these lengths."""
    waiting = [list(map(int, row)) for row in lengths]
    prompts = iter(range(len(waiting)))
    grids = [(shape.prompt_slots, shape.slots_per_prompt), *shape.compact_grids(shards)]
    slots = [_Slot() for _ in range(shape.prompt_slots)]
    steps_in: dict[Grid, int] = {}
    while True:
        _fill(slots, waiting, prompts, grids[0][1])
        busy = [slot for slot in slots if slot.left]
        if not busy:
            return DecodeCount(steps_in)
        if not any(waiting):
            grids, slots = _compact(busy, grids)
        taken = min(shape.chunk, max(max(slot.left) for slot in busy))
        steps_in[grids[0]] = steps_in.get(grids[0], 0) + taken
        for slot in slots:
            slot.left = [left - taken for left in slot.left if left > taken]


def _fill(slots: list[_Slot], waiting: list[list[int]], prompts: Iterator[int], size: int) -> None:
    """Begin what waits: in slots of the same prompt, then of new prompts, then of copies of prompts."""
    for slot in slots:
        if slot.prompt is not None and waiting[slot.prompt]:
            _begin(slot, slot.prompt, waiting, size)
    for slot in slots:
        if not slot.left and (prompt := next(prompts, None)) is not None:
            _begin(slot, prompt, waiting, size)
    for slot in slots if any(waiting) else ():
        if not slot.left:
            begun = [other.prompt for other in slots if other.left and other.prompt is not None]
            _begin(slot, max(begun, key=lambda prompt: len(waiting[prompt])), waiting, size)


def _begin(slot: _Slot, prompt: int, waiting: list[list[int]], size: int) -> None:
    slot.prompt, free = prompt, size - len(slot.left)
    slot.left += waiting[prompt][:free]
    del waiting[prompt][:free]


def _compact(slots: list[_Slot], grids: list[Grid]) -> tuple[list[Grid], list[_Slot]]:
    """The responses in the smallest grid that holds them, which is the first of those that are left."""
    running: dict[int | None, list[int]] = {}
    for slot in slots:
        running.setdefault(slot.prompt, []).extend(slot.left)
    kept = smallest_grid([len(left) for left in running.values()], grids)
    if not kept:
        return grids, slots
    size = grids[kept][1]
    moved = [
        _Slot(prompt, left[start : start + size])
        for prompt, left in running.items()
        for start in range(0, len(left), size)
    ]
    return grids[kept:], moved


def smallest_grid(counts: Iterable[int], grids: Sequence[Grid]) -> int:
    """Which of ``grids`` is the last that holds ``counts`` responses to each of some prompts; 0 if none does.

    A grid has a number of prompt slots and of response slots in each; a prompt may take several.
    """
    counts = list(counts)
    fits = [sum(-(-count // size) for count in counts) <= prompt_slots for prompt_slots, size in grids]
    return max((k for k, holds in enumerate(fits) if holds), default=0)
