"""A GKE cluster as XPK made it: its machines, shared folders, workloads (JobSets) and their pods."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from launch import gcloud, slices
from launch import shell as shells
from launch.gcloud import Place
from launch.shell import Done, Retry, Shell
from mmrl.plan.chips import Topology
from mmrl.suggest import suggest

NAMESPACE = "default"  # where XPK puts its workloads
CONTAINER = "jax-tpu"  # as XPK calls it
# What ends by itself: connections, and moments in which the cluster's control plane is being renewed.
_PASSING = re.compile(
    gcloud.API.transient.pattern
    + r"|TLS handshake|i/o timeout|EOF$|connection lost|ServiceUnavailable|InternalError|etcdserver"
    r"|Unable to connect to the server|the server is currently unable|Too Many Requests|no route to host",
    re.IGNORECASE | re.MULTILINE,
)
API = Retry(4, _PASSING)
# Why a container does not start, for which waiting does not help; the first two after a while.
IMAGE_FAILURES = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
_STUCK = (*IMAGE_FAILURES, "CreateContainerConfigError", "CreateContainerError")


@dataclass(frozen=True)
class Cluster:
    """The cluster that workloads are sent to: ``location`` is the zone or region of the cluster itself."""

    name: str
    place: Place
    location: str

    @property
    def flags(self) -> list[str]:
        """The cluster as options."""
        return [f"--cluster={self.name}", *self.place.flags]


@dataclass(frozen=True)
class Storage:
    """A folder that pods see at ``mount``: a bucket, or a file server."""

    name: str
    kind: str
    mount: str
    always: bool  # in every pod, without being asked for
    read_only: bool = False


@dataclass(frozen=True)
class JobSetState:
    """A JobSet as it stands: its phase, the reason of its end, image and command of its container."""

    phase: str  # "queued", "active", "completed" or "failed"
    restarts: int = 0  # how often all its jobs were made anew
    reason: str = ""
    message: str = ""
    image: str = ""
    command: str = ""


@dataclass(frozen=True)
class Pod:
    """A machine's part of a workload.

    Attributes:
      number: of slice and machine, (0, 0) for process 0.
      phase: "Pending", "Running", "Succeeded" or "Failed".
      stuck: why its container cannot start; "" if nothing keeps it.
      why: more on that.
      status: of the process, if it has ended; ``ended`` says when.
    """

    name: str
    uid: str
    number: tuple[int, int]
    phase: str
    stuck: str
    why: str
    status: int | None
    ended: str


def log_in(shell: Shell, name: str, place: Place) -> Cluster:
    """The cluster of that name in the zone or its region, which kubectl then knows, as XPK sets it up.

    Raises:
      ValueError: there is none (the nearest is named), Google Cloud does not say, XPK is not installed, or
        does not reach it.
    """
    words = ["container", "clusters", "list", f"--filter=name={name}", "--format=value(location)"]
    done = gcloud.ask(shell, place, words, zonal=False, assumed=place.region)
    if done.status:
        raise gcloud.refusal(f"--cluster={name}", done.err.strip(), place)
    found = done.out.split()
    location = next((there for there in (place.zone, place.region) if there in found), None)
    if location is None and found:
        raise ValueError(f"--cluster={name} is in {', '.join(found)}, and --zone={place.zone} is not there")
    if location is None:
        words = ["container", "clusters", "list", "--format=value(name)"]
        names = gcloud.ask(shell, place, words, zonal=False).out.split()
        raise ValueError(
            f"--cluster={name}: project {place.project} has none of that name (xpk cluster create makes one)"
            f"{suggest(name, names)}"
        )
    cluster = Cluster(name, place, location)
    done = xpk(shell, cluster, "workload", "list")
    if done.status == shells.MISSING:
        raise ValueError(f"{done.last_line}: pip install xpk")
    if done.status:
        raise ValueError(f"xpk does not reach {name}: {complaint(done)}")
    return cluster


def xpk(shell: Shell, cluster: Cluster, *words: str, retry: Retry | None = API) -> Done:
    """One XPK command about the cluster; its failure is in the status."""
    return shells.run(shell, ["xpk", *words, *cluster.flags], retry=retry, timeout=900.0)


def complaint(done: Done) -> str:
    """The complaint of a command, on one line: XPK's last line says only that it ends."""
    lines = [line.strip().removeprefix("[XPK] ") for line in f"{done.out}\n{done.err}".splitlines()]
    idle = re.compile(r"XPK (failed|done)|Exiting XPK|Starting ")
    telling = [line for line in lines if line and not idle.match(line)]
    return " ".join(telling[-3:])[-500:] or done.last_line


def kubectl(shell: Shell, cluster: Cluster, *words: str, assumed: str = "") -> Done:
    """One kubectl command, on this cluster whatever kubectl is used for meanwhile."""
    context = f"--context=gke_{cluster.place.project}_{cluster.location}_{cluster.name}"
    command = ["kubectl", context, f"--namespace={NAMESPACE}", *words]
    return shells.run(shell, command, assumed=assumed, retry=API, timeout=120.0)


def read(shell: Shell, cluster: Cluster, *words: str, assumed: Any = None) -> dict[str, Any]:
    """The answer of ``kubectl get`` as JSON; empty for what is not there.

    Raises:
      ValueError: the cluster does not answer.
    """
    text = "" if assumed is None else json.dumps(assumed)
    flags = ("--ignore-not-found", "--output=json")
    done = kubectl(shell, cluster, "get", *words, *flags, assumed=text)
    if "doesn't have a resource type" in done.err:
        return {}
    if done.status:
        raise ValueError(f"kubectl get {words[0]}: {done.last_line}")
    return json.loads(done.out) if done.out.strip() else {}


def check_room(shell: Shell, cluster: Cluster, topology: Topology) -> str:
    """One line on whether the cluster has machines for the slices at all, be they taken now or not.

    Raises:
      ValueError: it has fewer than they need.
    """
    data = read(shell, cluster, "configmap", f"{cluster.name}-resources-configmap").get("data", {})
    kind, needed = slices.xpk_type(topology), slices.gke_machines(topology)
    if kind in data and data[kind].isdigit():
        if int(data[kind]) < needed:
            raise ValueError(
                f"{cluster.name} has {data[kind]} machines of {kind}, and the slices need {needed}: fewer "
                "--slices, or a larger cluster (xpk cluster create --num-slices)"
            )
        return f"{cluster.name} has {data[kind]} machines of {kind}, {needed} needed"
    have = [other for other in sorted(data) if re.fullmatch(r"(v\d|tpu)\w*-\d+", other)]
    return f"{cluster.name} does not say how many of {kind} it has" + (
        f"; it has {', '.join(have)}" if have else ""
    )


def storages(shell: Shell, cluster: Cluster, asked: Sequence[str], workdir: str) -> list[Storage]:
    """The folders that are attached to the cluster (``xpk storage attach``); a dry run takes it as wanted."""
    mount = str(PurePosixPath(workdir).parent)
    items = [
        {
            "metadata": {"name": name},
            "spec": {"type": "gcsfuse", "mount_point": mount, "auto_mount": True, "readonly": False},
        }
        for name in ("STORAGE", *asked)
    ]
    found = read(shell, cluster, "storages.xpk.x-k8s.io", assumed={"items": items}).get("items", ())
    keys = ("type", "mount_point", "auto_mount", "readonly")
    return [Storage(item["metadata"]["name"], *(item["spec"][key] for key in keys)) for item in found]


def check_storage(found: Sequence[Storage], asked: Sequence[str], workdir: str) -> Storage:
    """The storage, among those that a workload would have, in which its folder lies.

    Raises:
      ValueError: there is no such storage, or the folder is in none and would end with its pod.
    """
    names = [storage.name for storage in found]
    for name in asked:
        if name not in names:
            raise ValueError(f"--storage={name} is not attached to the cluster{suggest(name, names)}")
    holding = [storage for storage in found if PurePosixPath(workdir).is_relative_to(storage.mount)]
    mounted = [storage for storage in holding if storage.always or storage.name in asked]
    if mounted:
        if mounted[0].read_only:
            raise ValueError(f"--workdir={workdir}: storage {mounted[0].name} is read-only")
        return mounted[0]
    if holding:
        raise ValueError(
            f"--workdir={workdir} lies in storage {holding[0].name}: say --storage={holding[0].name}"
        )
    places = ", ".join(f"{storage.name} at {storage.mount}" for storage in found)
    raise ValueError(
        f"--workdir={workdir} is in no storage, so that it would end with its pod: name a folder of one that "
        f"the cluster has ({places or 'none; see xpk storage attach'})"
    )


def jobset(shell: Shell, cluster: Cluster, name: str) -> JobSetState | None:
    """The workload as it stands; None if there is none. Raises ValueError if the cluster does not answer."""
    found = read(shell, cluster, "jobset", name)
    return _jobset_state(found) if found else None


def _jobset_state(found: Mapping[str, Any]) -> JobSetState:
    spec, status = found["spec"], found.get("status") or {}
    true = {each["type"]: each for each in status.get("conditions") or () if each.get("status") == "True"}
    end = true.get("Completed") or true.get("Failed") or {}
    phase = "completed" if "Completed" in true else "failed" if "Failed" in true else "active"
    if phase == "active" and (spec.get("suspend") or "Suspended" in true):
        phase = "queued"
    jobs = spec.get("replicatedJobs") or [{}]
    pod = jobs[0].get("template", {}).get("spec", {}).get("template", {}).get("spec", {})
    container = (pod.get("containers") or [{}])[0]
    return JobSetState(
        phase,
        int(status.get("restarts") or 0),
        end.get("reason", ""),
        end.get("message", ""),
        container.get("image", ""),
        " ".join(container.get("command") or ()),
    )


def queue_reason(shell: Shell, cluster: Cluster, name: str) -> str:
    """Why Kueue has the workload wait, in its words; "" if it does not say."""
    for item in read(shell, cluster, "workloads.kueue.x-k8s.io").get("items", ()):
        owners = item["metadata"].get("ownerReferences") or ()
        if any(owner.get("kind") == "JobSet" and owner.get("name") == name for owner in owners):
            conditions = (item.get("status") or {}).get("conditions") or ()
            waiting = (("Evicted", "True"), ("QuotaReserved", "False"))
            return "; ".join(
                each.get("message", "") for each in conditions if (each["type"], each["status"]) in waiting
            )
    return ""


def pods(shell: Shell, cluster: Cluster, name: str) -> list[Pod]:
    """The pods of the workload that are there now, process 0 first."""
    selector = f"--selector=jobset.sigs.k8s.io/jobset-name={name}"
    found = read(shell, cluster, "pods", selector).get("items", ())
    return sorted(map(_pod, found), key=lambda pod: pod.number)


def _pod(item: Mapping[str, Any]) -> Pod:
    labels, status = item["metadata"].get("labels") or {}, item.get("status") or {}
    containers = [each for each in status.get("containerStatuses") or () if each["name"] == CONTAINER]
    state = containers[0].get("state", {}) if containers else {}
    waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
    reason = waiting.get("reason", "")
    return Pod(
        item["metadata"]["name"],
        item["metadata"]["uid"],
        (
            int(labels.get("jobset.sigs.k8s.io/job-index", "0")),
            int(labels.get("batch.kubernetes.io/job-completion-index", "0")),
        ),
        status.get("phase", "Pending"),
        reason if reason in _STUCK else "",
        waiting.get("message", ""),
        ended.get("exitCode"),
        ended.get("finishedAt", ""),
    )


def first_failure(found: Sequence[Pod], others: Sequence[int]) -> Pod | None:
    """The pod whose process ended first with a failure of its own, rather than one of ``others``, if any."""
    failed = sorted((pod for pod in found if pod.status), key=lambda pod: pod.ended)
    return next((pod for pod in failed if pod.status not in others), failed[0] if failed else None)
