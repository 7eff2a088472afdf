"""Accelerators and TPU slices: rates and memory of a device, slices that exist, devices to compile for."""

import importlib.util
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmrl.suggest import suggest

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One JAX device of an accelerator: a whole chip, but for ``tpu7x`` one of the two that share a chip.

    Attributes:
      name: generation as in topology names, or the name of a GPU.
      device_kind: as in `jax.Device.device_kind`.
      hbm_bytes: that one program may hold on a device; for TPUs the limit the compiler enforces.
      peak_flops: dense bfloat16 FLOP/s of a device.
      hbm_bandwidth: bytes/s of a device.
      link_bandwidth: bytes/s a chip can send over all its links to other chips together (and receive as much
        at the same time); half the "bidirectional" figure of data sheets. Shared by the chip's devices.
      clock: Hz; not published. Chosen so that matrix units × clock give the peak. None where the compiler
        estimates no cycles.
      devices_per_chip: JAX devices that share one chip.
      dims: of the torus that chips form; 0 for none.
    """

    name: str
    device_kind: str
    hbm_bytes: int
    peak_flops: float
    hbm_bandwidth: float
    link_bandwidth: float
    clock: float | None
    devices_per_chip: int
    dims: int


# Peaks and bandwidths: Google Cloud's pages "TPU v4", "v5e", "v5p", "v6e" and "TPU7x", per chip (halved for
# tpu7x); v4's links: 6 x 50 GB/s, arXiv:2304.01433.
# Memory limits: from the compiler's own refusals (libtpu 0.0.42).
TPUS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("v4", "TPU v4", int(30.75 * GIB), 275e12, 1200e9, 300e9, 1.05e9, 1, 3),  # as "megacore"
        Chip("v5e", "TPU v5 lite", int(15.75 * GIB), 197e12, 819e9, 200e9, 1.5e9, 1, 2),
        Chip("v5p", "TPU v5", int(95.73 * GIB), 459e12, 2765e9, 600e9, 1.75e9, 1, 3),
        Chip("v6e", "TPU v6 lite", int(31.24 * GIB), 918e12, 1638e9, 400e9, 1.75e9, 1, 2),
        Chip("tpu7x", "TPU7x", int(94.74 * GIB), 1153.5e12, 3690e9, 600e9, 2.2e9, 2, 3),
    )
}

# NVIDIA's data sheets of the SXM boards: bf16 without sparsity; links are NVLink 4, one way. Memory as the
# driver reports it; what a program may take of it is less, and for JAX's allocator to say.
GPUS: tuple[Chip, ...] = (
    Chip("h100", "NVIDIA H100 80GB HBM3", 81559 * 2**20, 989.4e12, 3350e9, 450e9, None, 1, 0),
    Chip("h200", "NVIDIA H200", 143771 * 2**20, 989.4e12, 4800e9, 450e9, None, 1, 0),
)

_KINDS = {chip.device_kind: chip for chip in (*TPUS.values(), *GPUS)}
_KINDS |= {f"TPU {name}": TPUS[name] for name in ("v5e", "v5p", "v6e")}


def chip_of(device_kind: str) -> Chip | None:
    """The accelerator that `jax.Device.device_kind` names; None for one that is not known here."""
    return _KINDS.get(device_kind)


@dataclass(frozen=True)
class Topology:
    """Equal slices of a TPU generation, each a block of ``dims`` chips; slices meet over the network.

    Its text is what `parse_topology` reads: ``"v6e:16x16*4"``.
    """

    generation: str
    dims: tuple[int, ...]
    slices: int = 1

    def __str__(self) -> str:
        text = f"{self.generation}:{'x'.join(map(str, self.dims))}"
        return text if self.slices == 1 else f"{text}*{self.slices}"

    @property
    def chips(self) -> int:
        """Chips of all slices together."""
        return math.prod(self.dims) * self.slices

    @property
    def devices(self) -> int:
        """JAX devices of all slices together."""
        return self.chips * TPUS[self.generation].devices_per_chip

    @property
    def wrap(self) -> tuple[bool, bool, bool]:
        """Dimensions of a slice that are rings; told of none, the compiler can double the traffic.

        Three dimensions: all, in slices made of whole 4x4x4 cubes. Two: those that span the pod's 16 chips,
        as in MaxText's table of accelerators.
        """
        if TPUS[self.generation].dims == 3:
            ring = all(size % 4 == 0 for size in self.dims)
            return (ring, ring, ring)
        return (self.dims[0] == 16, self.dims[1] == 16, False)


_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_SMALL_CUBOIDS = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
_LARGEST = {"v4": 3072, "v5p": 6144, "tpu7x": 9216}  # chips of one slice
_ALIASES = {"v5litepod": "v5e"}


def slice_shapes(generation: str) -> tuple[tuple[int, ...], ...]:
    """Slices of a generation that are products, in ascending number of chips, the most cubic first.

    v5e and v6e: the shapes Google Cloud lists. The others: the sizes below a cube, and beyond them its
    rule for GKE: A x B x C, each a multiple of 4, A <= B <= C.
    """
    if TPUS[generation].dims == 2:
        return _FLAT
    largest = _LARGEST[generation]
    found: list[tuple[int, ...]] = [(1, 1, 1)] if generation == "tpu7x" else []
    found += _SMALL_CUBOIDS
    for a in range(4, round(largest ** (1 / 3)) + 1, 4):
        for b in range(a, math.isqrt(largest // a) + 1, 4):
            found += [(a, b, c) for c in range(b, min(largest // (a * b), 256) + 1, 4)]
    return tuple(sorted(found, key=lambda dims: (math.prod(dims), sum(dims))))


def slices_to_try(generation: str) -> tuple[Topology, ...]:
    """One slice for each power of two of chips, ascending: where to look for the smallest that will do.

    Raises:
      ValueError: the generation is not known.
    """
    _check_generation(generation, generation)
    chosen: dict[int, tuple[int, ...]] = {}
    for dims in slice_shapes(generation):
        if math.prod(dims).bit_count() == 1:
            chosen.setdefault(math.prod(dims), dims)
    return tuple(Topology(generation, dims) for dims in chosen.values())


def parse_topology(text: str) -> Topology:
    """The slices that a name means: ``"v5p:4x4x4"`` (chips) or ``"v5p-128"``; ``"v6e:16x16*2"`` is two.

    The number of ``v5e-16`` and ``v6e-16`` counts chips; that of ``v4-``, ``v5p-`` and ``tpu7x-128`` counts
    TensorCores, of which a chip has two, as everywhere on Google Cloud: ``v5p-128`` is ``v5p:4x4x4``. Of
    several shapes with as many chips it means the most cubic.

    Raises:
      ValueError: not such a name, or a slice that is not a product (the nearest ones are named).
    """
    match = re.fullmatch(r"([a-z0-9]+)(?::(\d+(?:x\d+)+)|-(\d+))(?:\*(\d+))?", text.strip().lower())
    if not match:
        raise ValueError(
            f"topology {text!r}: write a generation and its chips, as in 'v5p:4x4x4', or a size as "
            "Google Cloud names it, as in 'v5p-128'; '*2' behind it means two slices"
        )
    generation, slices = _ALIASES.get(match[1], match[1]), int(match[4] or 1)
    _check_generation(text, generation)
    if slices < 1:
        raise ValueError(f"topology {text!r}: there must be at least one slice")
    shapes = slice_shapes(generation)
    if match[2]:
        asked = math.prod(dims := tuple(int(size) for size in match[2].split("x")))
        found, said = (dims if dims in shapes else None), "no such slice"
    else:
        cores = 2 if TPUS[generation].dims == 3 else 1
        asked = int(match[3]) // cores
        found = next((dims for dims in shapes if math.prod(dims) * cores == int(match[3])), None)
        said = f"no slice has {match[3]} {'TensorCores, two a chip' if cores == 2 else 'chips'}"
    if found:
        return Topology(generation, found, slices)
    by_ratio = sorted(shapes, key=lambda dims: abs(math.log(math.prod(dims) / max(asked, 0.5))))[:3]
    nearest = ", ".join(str(Topology(generation, dims)) for dims in sorted(by_ratio, key=math.prod))
    raise ValueError(f"topology {text!r}: {said}; nearest are {nearest}")


def _check_generation(text: str, generation: str) -> None:
    if generation not in TPUS:
        raise ValueError(f"topology {text!r}: unknown generation{suggest(generation, TPUS)}")


def devices(topology: Topology) -> Sequence[Any]:
    """Devices of the slices, for meshes and ahead-of-time compilation; nothing can run on them.

    Raises:
      ValueError: libtpu, which has the compiler, is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError('compiling for TPUs needs libtpu: pip install "mmrl[tpu]"')
    from jax.experimental import topologies

    options: dict[str, Any] = {"wrap": list(topology.wrap), "num_slices": topology.slices}
    if topology.generation == "v4":
        options["chip_config_name"] = "megacore"  # one device a chip, as Google Cloud sets it up
    if math.prod(topology.dims) == 1:
        options["chips_per_host_bounds"] = [1, 1, 1]  # the usual host has 2x2
    one_slice = str(replace(topology, slices=1))
    return topologies.get_topology_desc(platform="tpu", topology_name=one_slice, **options).devices
