"""What XPK calls the slices of a GKE cluster, and how many machines they have there."""

from dataclasses import replace

from mmrl.plan.chips import TPUS, Topology, parse_topology, slice_shapes

_XPK_NAMES = {"v4": "v4", "v5e": "v5litepod", "v5p": "v5p", "v6e": "v6e", "tpu7x": "tpu7x"}
_LEAST = {"v5e": 8}  # chips of the smallest slice that XPK has, where that is not the smallest there is
_CHIPS_A_MACHINE = 4  # of every slice that has so many


def slices_of(text: str, slices: int | None) -> Topology:
    """The slices that ``--accelerator`` and ``--slices`` name together.

    Raises:
      ValueError: no such slice (the nearest are named), one that XPK does not have, or two numbers of slices.
    """
    topology = parse_topology(text)
    if slices is not None and slices < 1:
        raise ValueError(f"--slices={slices}: at least one")
    if slices is not None and topology.slices not in (1, slices):
        raise ValueError(f"--accelerator={text} and --slices={slices}: which number of slices?")
    least = _LEAST.get(topology.generation, 1)
    if one_of(topology).chips < least:
        smallest = next(dims for dims in slice_shapes(topology.generation) if dims[0] * dims[1] >= least)
        smallest_name = str(Topology(topology.generation, smallest))
        raise ValueError(f"--accelerator={text}: the smallest such slice on GKE is {smallest_name}")
    return replace(topology, slices=slices or topology.slices)


def one_of(topology: Topology) -> Topology:
    """A single one of the slices."""
    return replace(topology, slices=1)


def tpu_type(topology: Topology) -> str:
    """One slice as ``xpk --tpu-type`` takes it: "v5litepod-16", or "v5p-4x4x16" if a number means another."""
    prefix = _XPK_NAMES[topology.generation]
    for counted in (1, 2):  # chips or, of some generations, TensorCores
        said = f"{prefix}-{one_of(topology).chips * counted}"
        try:
            meant = parse_topology(said)
        except ValueError:
            continue
        if meant == one_of(topology):
            return said
    return f"{prefix}-{'x'.join(map(str, topology.dims))}"


def machines(topology: Topology) -> int:
    """Machines of all slices together, each of which runs one process."""
    return max(1, one_of(topology).chips // _CHIPS_A_MACHINE) * topology.slices


def devices_a_machine(topology: Topology) -> int:
    """JAX devices of a process."""
    chips = topology.chips // machines(topology)
    return chips * TPUS[topology.generation].devices_per_chip


def described(topology: Topology) -> str:
    """The slices on one line."""
    count = machines(topology)
    slices = f"{topology.slices} slices of " if topology.slices > 1 else ""
    return f"{slices}{tpu_type(topology)}: {count} machine{'s' if count > 1 else ''}"
