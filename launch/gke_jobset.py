"""A workload on a cluster, which is a JobSet: how it stands, and its pods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launch import gke_cluster
from launch.gke_cluster import Cluster
from launch.shell import Shell

CONTAINER = "jax-tpu"  # as XPK calls it
_OF = "jobset.sigs.k8s.io/jobset-name"
# Why a container does not start, for which waiting does not help; the first two after a while.
IMAGE_FAILURES = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
_STUCK = (*IMAGE_FAILURES, "CreateContainerConfigError", "CreateContainerError")


@dataclass(frozen=True)
class State:
    """How a JobSet stands.

    Attributes:
      phase: "queued", "active", "completed" or "failed".
      restarts: how often all its jobs were made anew.
      reason, message: of its end.
      image, command: of its container.
    """

    phase: str
    restarts: int
    reason: str
    message: str
    image: str
    command: str


@dataclass(frozen=True)
class Pod:
    """A machine's part of a workload.

    Attributes:
      number: "SLICE-MACHINE", "0-0" for process 0.
      phase: "Pending", "Running", "Succeeded" or "Failed".
      stuck: why its container cannot start; "" if nothing keeps it.
      why: more on that.
      status: of the process, if it has ended; ``ended`` says when.
    """

    name: str
    uid: str
    number: str
    phase: str
    stuck: str
    why: str
    status: int | None
    ended: str


def look(shell: Shell, cluster: Cluster, name: str) -> State | None:
    """How the workload stands; None if there is none. Raises ValueError if the cluster does not answer."""
    told = gke_cluster.read(shell, cluster, "jobset", name)
    return None if told is None else state(told)


def state(told: Mapping[str, Any]) -> State:
    """The state that a JobSet, as kubectl prints it, is in."""
    status = told.get("status") or {}
    true = {one["type"]: one for one in status.get("conditions") or () if one.get("status") == "True"}
    end = true.get("Completed") or true.get("Failed") or {}
    phase = "completed" if "Completed" in true else "failed" if "Failed" in true else "active"
    if phase == "active" and (told["spec"].get("suspend") or "Suspended" in true):
        phase = "queued"
    jobs = told["spec"].get("replicatedJobs") or [{}]
    pod = jobs[0].get("template", {}).get("spec", {}).get("template", {}).get("spec", {})
    container = (pod.get("containers") or [{}])[0]
    return State(
        phase,
        int(status.get("restarts") or 0),
        end.get("reason", ""),
        end.get("message", ""),
        container.get("image", ""),
        " ".join(container.get("command") or ()),
    )


def queue(shell: Shell, cluster: Cluster, name: str) -> str:
    """Why Kueue has the workload wait, in its words; "" if it does not say."""
    told = gke_cluster.read(shell, cluster, "workloads.kueue.x-k8s.io") or {}
    for item in told.get("items", ()):
        owners = item["metadata"].get("ownerReferences") or ()
        if any(owner.get("kind") == "JobSet" and owner.get("name") == name for owner in owners):
            conditions = (item.get("status") or {}).get("conditions") or ()
            told_by = (("Evicted", "True"), ("QuotaReserved", "False"))
            return "; ".join(
                one.get("message", "") for one in conditions if (one["type"], one["status"]) in told_by
            )
    return ""


def pods(shell: Shell, cluster: Cluster, name: str) -> list[Pod]:
    """The pods of the workload that are there now, process 0 first."""
    told = gke_cluster.read(shell, cluster, "pods", f"--selector={_OF}={name}") or {}
    return sorted((_pod(item) for item in told.get("items", ())), key=lambda pod: _order(pod.number))


def _order(number: str) -> list[int]:
    return [int(part) for part in number.split("-") if part.isdigit()]


def _pod(item: Mapping[str, Any]) -> Pod:
    labels = item["metadata"].get("labels") or {}
    slice_number = labels.get("jobset.sigs.k8s.io/job-index", "0")
    machine = labels.get("batch.kubernetes.io/job-completion-index", "0")
    status = item.get("status") or {}
    containers = [one for one in status.get("containerStatuses") or () if one["name"] == CONTAINER]
    stand = containers[0].get("state", {}) if containers else {}
    waiting, ended = stand.get("waiting") or {}, stand.get("terminated") or {}
    reason = waiting.get("reason", "")
    return Pod(
        item["metadata"]["name"],
        item["metadata"]["uid"],
        f"{slice_number}-{machine}",
        status.get("phase", "Pending"),
        reason if reason in _STUCK else "",
        waiting.get("message", ""),
        ended.get("exitCode"),
        ended.get("finishedAt", ""),
    )


def culprit(found: Sequence[Pod], lost: Sequence[int]) -> Pod | None:
    """The pod whose process ended first with a failure of its own, rather than one of ``lost``, if any."""
    failed = sorted((pod for pod in found if pod.status), key=lambda pod: pod.ended)
    return next((pod for pod in failed if pod.status not in lost), failed[0] if failed else None)
