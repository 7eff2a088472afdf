"""Names of TPU slices at Google Cloud and XPK, their machines, images and quotas."""

import math
from dataclasses import replace

from mmrl.plan.chips import TPUS, Topology, parse_topology, slice_shapes

# Of each generation: the beginning of accelerator types, the image for JAX (Google's page "TPU software
# versions"), and the quotas of on-demand and spot slices. TPU7x is to be had through GKE only.
_NAMES = {"v4": "v4", "v5e": "v5litepod", "v5p": "v5p", "v6e": "v6e", "tpu7x": "tpu7x"}
RUNTIMES = {
    "v4": "tpu-ubuntu2204-base",
    "v5e": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
_QUOTAS = {"v4": "TPUV4s{}Pod", "v5e": "TPUV5s{}Litepod", "v5p": "TPUV5P{}", "v6e": "TPUV6E{}"}
_ANY_SHAPE = ("v4",)  # generations for which gcloud takes --type and --topology
_LEAST_ON_GKE = {"v5e": 8}  # chips of the smallest slice of XPK, where that is not the smallest there is
_ONE_HOST = 8  # chips of the largest v5e and v6e TPU VM; all other machines have four
_CHIPS_A_MACHINE = 4


def tpu_slice(text: str) -> Topology:
    """The slice of Cloud TPU VMs that ``--accelerator`` names: "v5litepod-16", "v5e:4x4", "v5p-128".

    Raises:
      ValueError: no such slice, or one that Cloud TPU VMs do not have.
    """
    topology = parse_topology(text)
    generation = topology.generation
    if generation not in RUNTIMES:
        raise ValueError(f"--accelerator={text}: {generation} is to be had through GKE: python -m launch gke")
    if topology.slices > 1:
        raise ValueError(f"--accelerator={text}: several slices are for GKE: python -m launch gke")
    if accelerator_type(topology) is None and generation not in _ANY_SHAPE:
        usual = next(dims for dims in slice_shapes(generation) if math.prod(dims) == topology.chips)
        raise ValueError(
            f"--accelerator={text}: Cloud TPU VMs of {generation} come in one shape a size: take "
            f"{Topology(generation, usual)}, or python -m launch gke"
        )
    return topology


def gke_slices(text: str, slices: int | None) -> Topology:
    """The slices of a GKE cluster that ``--accelerator`` and ``--slices`` name together.

    Raises:
      ValueError: no such slice (the nearest are named), one that XPK does not have, or two numbers of slices.
    """
    topology = parse_topology(text)
    if slices is not None and slices < 1:
        raise ValueError(f"--slices={slices}: at least one")
    if slices is not None and topology.slices not in (1, slices):
        raise ValueError(f"--accelerator={text} and --slices={slices}: which number of slices?")
    least = _LEAST_ON_GKE.get(topology.generation, 1)
    if math.prod(topology.dims) < least:
        dims = next(dims for dims in slice_shapes(topology.generation) if math.prod(dims) >= least)
        smallest = Topology(topology.generation, dims)
        raise ValueError(f"--accelerator={text}: the smallest such slice on GKE is {smallest}")
    return replace(topology, slices=slices or topology.slices)


def accelerator_type(topology: Topology) -> str | None:
    """One slice as Google Cloud names it: "v5litepod-16"; None for a shape that its number does not mean."""
    one = replace(topology, slices=1)
    for counted in (1, 2):  # chips or, of some generations, TensorCores
        name = f"{_NAMES[topology.generation]}-{one.chips * counted}"
        try:
            if parse_topology(name) == one:
                return name
        except ValueError:
            continue
    return None


def accelerator_flags(topology: Topology) -> list[str]:
    """The slice as flags of ``gcloud compute tpus queued-resources create``."""
    name = accelerator_type(topology)
    if name:
        return [f"--accelerator-type={name}"]
    return [f"--type={_NAMES[topology.generation]}", f"--topology={'x'.join(map(str, topology.dims))}"]


def xpk_type(topology: Topology) -> str:
    """One slice as ``xpk --tpu-type`` takes it: "v5litepod-16", or "v5p-4x4x16" if a number means another."""
    return accelerator_type(topology) or (
        f"{_NAMES[topology.generation]}-{'x'.join(map(str, topology.dims))}"
    )


def same_generation(accelerator: str, topology: Topology) -> bool:
    """True if an accelerator type is of the generation of a slice."""
    return accelerator.startswith(f"{_NAMES[topology.generation]}-")


def tpu_hosts(topology: Topology) -> int:
    """Machines of a slice of Cloud TPU VMs, each of which runs one process."""
    if len(topology.dims) == 2 and topology.chips <= _ONE_HOST:
        return 1
    return gke_machines(topology)


def gke_machines(topology: Topology) -> int:
    """Machines of all slices of a cluster together, each of which runs one process."""
    return max(1, math.prod(topology.dims) // _CHIPS_A_MACHINE) * topology.slices


def gke_machine_devices(topology: Topology) -> int:
    """JAX devices of a process on a cluster."""
    return topology.chips // gke_machines(topology) * TPUS[topology.generation].devices_per_chip


def quota_name(topology: Topology, tier: str) -> str | None:
    """The quota that a slice counts against in its zone; None for reserved ones: the reservation says.

    Small v5e slices count against a quota of their own, called serving.
    """
    if tier == "reserved":
        return None
    family = _QUOTAS[topology.generation].format("Preemptible" if tier == "spot" else "")
    serving = "Serving" if topology.generation == "v5e" and topology.chips <= _ONE_HOST else ""
    return f"{family}{serving}PerProjectPerZoneForTPUAPI"


def machines_text(count: int) -> str:
    """A number of machines in words."""
    return f"{count} machine{'s' if count > 1 else ''}"
