"""What Google Cloud calls slices of Cloud TPU VMs: accelerator types, hosts, images and quotas."""

import math

from mmrl.plan.chips import Topology, parse_topology, slice_shapes

# Of each generation: how accelerator types begin, the image for JAX (Google's page "TPU software versions"),
# and the quotas of on-demand and spot slices. TPU7x is to be had through GKE only.
_API_NAMES = {"v4": "v4", "v5e": "v5litepod", "v5p": "v5p", "v6e": "v6e"}
_RUNTIMES = {
    "v4": "tpu-ubuntu2204-base",
    "v5e": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
_QUOTAS = {"v4": "TPUV4s{}Pod", "v5e": "TPUV5s{}Litepod", "v5p": "TPUV5P{}", "v6e": "TPUV6E{}"}
_ANY_SHAPE = ("v4",)  # what gcloud takes with --type and --topology, beside older generations
_ONE_HOST = 8  # chips of the largest v5e and v6e machine; beyond it all machines have four
_CHIPS_A_HOST = 4
TIERS = ("on-demand", "spot", "reserved")


def slice_of(text: str) -> Topology:
    """The slice that ``--accelerator`` names: "v5litepod-16", "v5e:4x4", "v5p-128".

    Raises:
      ValueError: no such slice, or one that this launcher cannot make.
    """
    topology = parse_topology(text)
    if topology.generation not in _API_NAMES:
        raise ValueError(
            f"--accelerator={text}: {topology.generation} is to be had through GKE: python -m launch gke"
        )
    if topology.slices > 1:
        raise ValueError(f"--accelerator={text}: several slices are for GKE: python -m launch gke")
    if accelerator_type(topology) is None and topology.generation not in _ANY_SHAPE:
        usual = next(dims for dims in slice_shapes(topology.generation) if math.prod(dims) == topology.chips)
        raise ValueError(
            f"--accelerator={text}: Cloud TPU VMs of {topology.generation} come in one shape a size: take "
            f"{Topology(topology.generation, usual)}, or python -m launch gke"
        )
    return topology


def accelerator_type(topology: Topology) -> str | None:
    """What Google Cloud calls the slice: "v5litepod-16"; None for a shape that its number does not mean."""
    for cores in (1, 2):
        said = f"{_API_NAMES[topology.generation]}-{topology.chips * cores}"
        try:
            meant = parse_topology(said)
        except ValueError:
            continue
        if meant == topology:
            return said
    return None


def accelerator_flags(topology: Topology) -> list[str]:
    """The slice as flags of ``gcloud compute tpus queued-resources create``."""
    said = accelerator_type(topology)
    if said:
        return [f"--accelerator-type={said}"]
    return [f"--type={_API_NAMES[topology.generation]}", f"--topology={'x'.join(map(str, topology.dims))}"]


def belongs(accelerator: str, topology: Topology) -> bool:
    """Whether an accelerator type is of the generation of a slice."""
    return accelerator.startswith(f"{_API_NAMES[topology.generation]}-")


def host_count(topology: Topology) -> int:
    """Machines of the slice, each of which runs one process."""
    chips = topology.chips
    if len(topology.dims) == 2 and chips <= _ONE_HOST:
        return 1
    return max(1, chips // _CHIPS_A_HOST)


def runtime(topology: Topology) -> str:
    """The image of the machines."""
    return _RUNTIMES[topology.generation]


def quota(topology: Topology, tier: str) -> str | None:
    """The quota that the slice counts against in its zone; None for reserved ones: the reservation says.

    Small v5e slices count against a quota of their own, called serving.
    """
    if tier == "reserved":
        return None
    family = _QUOTAS[topology.generation].format("Preemptible" if tier == "spot" else "")
    serving = "Serving" if topology.generation == "v5e" and topology.chips <= _ONE_HOST else ""
    return f"{family}{serving}PerProjectPerZoneForTPUAPI"


def described(topology: Topology, tier: str) -> str:
    """The slice on one line."""
    hosts = host_count(topology)
    machines = "1 machine" if hosts == 1 else f"{hosts} machines"
    return f"{accelerator_type(topology) or str(topology)}, {tier}: {machines}"
