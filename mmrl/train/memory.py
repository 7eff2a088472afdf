"""Estimate of the bytes of a device that a run takes, before it takes any.

`estimate` counts the arrays that a run holds, by what they are. How many temporary ones of a kind a program
holds at once is the compiler's choice: the factors are those of XLA on the CPU, rounded up.
"""

import math
import re
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import AbstractMesh, Mesh

from mmrl import hosts
from mmrl.config import Config, algorithm
from mmrl.kernels.packed import block_of, row_length
from mmrl.kernels.vocab import CHUNK
from mmrl.mesh import DECODING, WEIGHTS, Rules, batch_shards, sharding
from mmrl.models.config import ModelConfig
from mmrl.models.family import param_specs
from mmrl.packing import patch_row_length, rows_of_prompts
from mmrl.rollout.engine import RolloutShape, cache_bytes
from mmrl.train.state import is_under

GIB = 2**30
ROOM = 0.9  # of the memory: the rest is for what is not counted
# Arrays of the size of attention scores held at once, of text and of images: in a forward pass, whose
# scores are a layer's, and in a backward one over packed rows, whose scores are those of a pair of blocks.
_FORWARD, _BACKWARD = (2.1, 2.1), (3.6, 5.4)
_LOGITS = 6  # arrays of the logits that are held at once


Parts = dict[str, int]  # bytes of a device, by what they hold


@dataclass(frozen=True)
class Widths:
    """Size of the largest prompt of the data, padded."""

    prompt: int  # tokens
    patches: int  # patch slots


@dataclass(frozen=True)
class Estimate:
    """Bytes of one device: always held, and in each of the stages that take turns."""

    always: Parts
    stages: dict[str, Parts]

    @property
    def peak(self) -> int:
        """Bytes at the worst moment."""
        return sum(self.always.values()) + max(sum(parts.values()) for parts in self.stages.values())

    def table(self, limit: int) -> str:
        """All parts and their sums in GiB, as a table; ``limit``, bytes that there are."""
        always = sum(self.always.values())
        lines = ["", "GiB of one device"]
        for stage, parts in (("always", self.always), *self.stages.items()):
            lines += [f"{size / GIB:12.3f}  {stage}: {name}" for name, size in parts.items() if size]
            total = sum(parts.values()) + (0 if stage == "always" else always)
            lines.append(
                f"{total / GIB:12.3f}  {stage}, together{'' if stage == 'always' else ' with always'}"
            )
        return "\n".join([*lines, f"{limit / GIB:12.3f}  there are, of which {ROOM:.0%} are given out"])


def estimate(
    config: Config, model: ModelConfig, mesh: Mesh | AbstractMesh, widths: Widths, *, cpu: bool
) -> Estimate:
    """The bytes of a run whose numbers of slots and ``train.row_tokens`` are set.

    ``cpu``: the devices are the host's, where XLA computes in 32 bits and batches of the host count too.
    """
    made, narrow = algorithm(config), np.dtype(model.dtype).itemsize
    reference = _weights(model, mesh, WEIGHTS, narrow) if "reference" in made.models else 0
    return Estimate(
        always={
            "weights": _weights(model, mesh, WEIGHTS, 4),
            "optimizer": 2 * _weights(model, mesh, WEIGHTS, 4, config.optimizer.freeze),
            "reference policy": reference,
        },
        stages={
            "sampling": {
                "weights laid out for it": _copies(model, cpu) * _weights(model, mesh, DECODING, narrow),
                **sampling(config, model, mesh, widths, cpu),
            },
            "update": _update(config, model, mesh, widths, cpu, 1 + len(made.differentiated)),
        },
    )


def sampling(
    config: Config, model: ModelConfig, mesh: Mesh | AbstractMesh, widths: Widths, cpu: bool
) -> Parts:
    """Bytes that prefill and decoding hold beside the weights."""
    rollout, tensor, shards = config.rollout, mesh.shape["tensor"], batch_shards(mesh)
    prompt_slots = -(-rollout.prompt_slots // shards)
    cache = cache_bytes(
        model, RolloutShape(prompt_slots, rollout.slots_per_prompt, widths.prompt, rollout.max_tokens)
    )
    budget = rows_of_prompts(model, prompt_slots, widths.prompt, widths.patches)
    prefix = cache_bytes(model, RolloutShape(prompt_slots, 0, widths.prompt, 0))
    prefill = _Pass(
        model,
        tensor,
        mesh.shape["expert"],
        _wide(model, cpu),
        budget.tokens,
        budget.patches,
        (block_of(budget.tokens) ** 2, block_of(budget.patches) ** 2),
    )
    return {
        "keys and values": _copies(model, cpu) * cache // _cut_heads(model, tensor),
        "keys and values of new prompts": prefix // _cut_heads(model, tensor),
        "features of images": _wide(model, cpu) * _features(model, tensor, prompt_slots * widths.patches),
        **prefill.parts(_FORWARD, 0.3),  # of what a layer computes so much is held at once
        "logits": _LOGITS * 4 * prompt_slots * rollout.slots_per_prompt * model.vocabulary // tensor,
        "images of the batch": (3 if cpu else 1) * _images(config, model, shards, widths),
    }


def _update(
    config: Config,
    model: ModelConfig,
    mesh: Mesh | AbstractMesh,
    widths: Widths,
    cpu: bool,
    branches: int,
) -> Parts:
    """Bytes that the update holds beside weights and optimizer; ``branches`` have gradients."""
    rollout, train, limits = config.rollout, config.train, config.episode
    tensor, shards, wide = mesh.shape["tensor"], batch_shards(mesh), _wide(model, cpu)
    read = limits.images * limits.observation_patches if limits.tools else 0
    tokens = row_length(max(train.row_tokens, widths.prompt + rollout.max_tokens))
    groups = -(-train.update_prompts // shards)
    slots = groups * (widths.patches + rollout.group * read)
    patches = patch_row_length(tokens, max(widths.patches, read), slots)
    blocks = block_of(tokens) ** 2, block_of(patches) ** 2
    learn = _Pass(model, tensor, mesh.shape["expert"], wide, tokens, patches, blocks)
    # On a CPU as much again in the type of the model: what is computed, and what it is computed from.
    layer = learn.parts(_BACKWARD, 2 * np.dtype(model.dtype).itemsize // wide if cpu else 1)
    logits = _LOGITS * 4 * min(CHUNK, tokens) * model.vocabulary // tensor
    copies = 3 if cpu else 1  # of the images of the batch, which the host has read
    share = 2 * train.update_prompts / rollout.prompts  # those of an update, and the same as rows take them
    images = _images(config, model, shards, widths)
    features = _features(model, tensor, slots)
    gradient = _weights(model, mesh, WEIGHTS, 4, config.optimizer.freeze)
    rows = {
        "kept for the backward pass": branches * learn.kept(),
        # They, and their gradient.
        "features of images": 2 * branches * wide * features,
        # Logits and layers take turns.
        **(layer if sum(layer.values()) > logits else {"logits": logits}),
        "table of the vocabulary": (2 * wide + 4) * model.vocabulary * model.width // tensor,
    }
    return {
        # The sum over rows, what the next one adds, and on a TPU their new sum.
        "gradient": (2 if cpu else 3) * gradient,
        # Rows and the optimizer take turns, whose step holds about one more.
        **(rows if sum(rows.values()) > gradient else {"step of the optimizer": gradient}),
        "images of the batch": copies * images,
        "images of the update": int(share * images),
    }


def _features(model: ModelConfig, tensor: int, patches: int) -> int:
    """Numbers in a device's part of the features of so many patches."""
    return (
        patches
        // model.token_patches
        * model.feature_width
        // (1 if model.feature_width % tensor else tensor)
    )


def _wide(model: ModelConfig, cpu: bool) -> int:
    """Bytes of a number in products."""
    return 4 if cpu else np.dtype(model.dtype).itemsize


def _copies(model: ModelConfig, cpu: bool) -> int:
    """The number of copies of an array that products read: one, or also for the same in 32 bits."""
    return 3 if _wide(model, cpu) > np.dtype(model.dtype).itemsize else 1


def _cut_heads(model: ModelConfig, tensor: int) -> int:
    return tensor if model.kv_heads % tensor == 0 else 1


def _images(config: Config, model: ModelConfig, shards: int, widths: Widths) -> int:
    return -(-config.rollout.prompts // shards) * widths.patches * model.patch_bytes


@dataclass(frozen=True)
class _Pass:
    """A device's part of a pass through the model, of text and of images, which take turns.

    ``wide``: bytes of a number in products; ``tokens``, ``patches``: slots; ``pairs``: scores of a head that
    are held at once, of text and of images.
    """

    model: ModelConfig
    tensor: int
    expert: int
    wide: int
    tokens: int
    patches: int
    pairs: tuple[int, int]

    def _text(self) -> tuple[int, int]:
        """Bytes of a layer's attention scores, and of its other activations."""
        m = self.model
        scores = 4 * m.query_heads // _cut_heads(m, self.tensor) * self.pairs[0]
        inside = (3 * m.query_heads + 4 * m.kv_heads) * m.head_dim + 6 * m.active_mlp_width
        others = self.tokens * self.wide * (6 * m.width + inside // self.tensor)
        return scores if m.attention == "plain" else 0, others

    def _images(self) -> tuple[int, int]:
        m = self.model
        pairs = self.pairs[1] if m.attention == "plain" else self.patches * m.window_slots
        inside = 9 * m.vision.width + 6 * m.vision.mlp_width
        others = self.patches * self.wide * (6 * m.vision.width + inside // self.tensor)
        return 4 * -(-m.vision.heads // self.tensor) * pairs, others

    def parts(self, scores: tuple[float, float], others: float) -> Parts:
        """Bytes of the layer that is computed, text and images taking turns."""
        worst, held, rest = max(
            (
                ("text", scores[0] * self._text()[0], others * self._text()[1]),
                ("images", scores[1] * self._images()[0], others * self._images()[1]),
            ),
            key=lambda one: one[1] + one[2],
        )
        m = self.model
        stacks = traverse_util.flatten_dict(param_specs(m)["layers"]).values()
        layer = sum(
            math.prod(stack.shape[1:]) // (self.expert if "experts" in stack.axes else 1) for stack in stacks
        )
        return {
            f"attention scores of {worst}": int(held),
            f"a layer's activations, {worst}": int(rest),
            "a layer's weights": int(others * layer) // self.tensor * (4 + self.wide),
        }

    def kept(self) -> int:
        """Bytes that all layers keep of the forward pass for the backward pass, by ``model.remat``."""
        # Between layers, tensor cuts the tokens.
        m = self.model
        if m.remat == "none":  # and a layer's own, before they are put with those of the others
            of_text, of_images = self._text()[1], self._images()[1]
            return max((m.layers + 1) * of_text, (m.vision.layers + 1) * of_images)
        text, vision = m.width // self.tensor, m.vision.width // self.tensor
        if m.remat == "dots":
            inside = (m.query_heads + 2 * m.kv_heads) * m.head_dim + 2 * m.active_mlp_width
            text = (3 * m.width + inside) // self.tensor
            vision = (6 * m.vision.width + 2 * m.vision.mlp_width) // self.tensor
        return np.dtype(m.dtype).itemsize * max(
            m.layers * self.tokens * text, m.vision.layers * self.patches * vision
        )


def _weights(
    model: ModelConfig, mesh: Mesh | AbstractMesh, rules: Rules, size: int, without: Sequence[str] = ()
) -> int:
    """Bytes of a device's part of the weights, of ``size`` bytes each, laid out by ``rules``."""
    flat = traverse_util.flatten_dict(param_specs(model), sep="/")
    counted = [one for path, one in flat.items() if not any(is_under(path, prefix) for prefix in without)]
    return size * sum(math.prod(sharding(mesh, x.axes, x.shape, rules).shard_shape(x.shape)) for x in counted)


def device_bytes(mesh: Mesh) -> int | None:
    """Bytes that a device may hold, the least of all of them; None where none tells. Every process must ask.

    Devices of the CPU share what the machine, or a control group, has free when this is called.
    """
    machine = socket.gethostname()
    sharing = hosts.gather(machine).count(machine) if on_cpu(mesh) else 1
    found = hosts.gather((free_bytes(mesh, used=0) or 0) // sharing)
    return min((size for size in found if size), default=None)


def free_bytes(mesh: Mesh, used: int | None = None) -> int | None:
    """Bytes that are free on each of this process's devices; None where none tells.

    ``used``: of an accelerator's, instead of those that are.
    """
    mine = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    if on_cpu(mesh):
        free = _free_on_host()
        return None if free is None else free // len(mine)
    stats = [device.memory_stats() or {} for device in mine]
    free_of = [
        one["bytes_limit"] - (one.get("bytes_in_use", 0) if used is None else used)
        for one in stats
        if one.get("bytes_limit")
    ]
    return min(free_of, default=None)


def _free_on_host(root: Path = Path("/")) -> int | None:
    """Memory that Linux can give without swapping, within the limits of control groups; None elsewhere."""
    try:
        available = re.search(r"MemAvailable: *(\d+)", (root / "proc/meminfo").read_text())
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    free = 1024 * int(available[1]) if available else sys.maxsize
    for line in groups:
        _, controllers, path = line.split(":", 2)
        first = "memory" in controllers.split(",")  # the first version of control groups
        top = root / "sys/fs/cgroup" / ("memory" if first else "")
        names = ("limit_in_bytes", "usage_in_bytes") if first else ("max", "current")
        inside = Path(path.lstrip("/"))
        for folder in (top, *(top / part for part in (inside, *inside.parents))):
            try:
                limit, used = ((folder / f"memory.{name}").read_text().strip() for name in names)
            except OSError:
                continue
            stat = folder / "memory.stat"
            text = stat.read_text() if stat.is_file() else ""
            cached = re.search(r"^(?:total_)?inactive_file (\d+)", text, re.MULTILINE)
            if limit.isdigit():
                free = min(free, int(limit) - int(used) + (int(cached[1]) if cached else 0))
    return max(free, 1)


def on_cpu(mesh: Mesh) -> bool:
    """True if the devices are the host's own."""
    return mesh.devices.flat[0].platform == "cpu"


def out_of_memory(error: BaseException) -> bool:
    """True if an error says that memory does not suffice."""
    return isinstance(error, MemoryError) or bool(re.search("RESOURCE_EXHAUSTED|Out of memory", str(error)))
