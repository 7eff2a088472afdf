"""A GKE cluster as XPK made it: whether it is there, what it has free, which folders its pods share."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from launch import gcloud, gke_types
from launch import shell as shells
from launch.gcloud import Place
from launch.shell import Done, Retry, Shell
from mmrl.plan.chips import Topology
from mmrl.suggest import suggest

NAMESPACE = "default"  # where XPK puts its workloads
# What ends by itself: connections, and moments in which the cluster's control plane is being renewed.
_PASSING = re.compile(
    gcloud.API.transient.pattern
    + r"|TLS handshake|i/o timeout|EOF$|connection lost|ServiceUnavailable|InternalError|etcdserver"
    r"|Unable to connect to the server|the server is currently unable|Too Many Requests|no route to host",
    re.IGNORECASE | re.MULTILINE,
)
API = Retry(4, _PASSING)


@dataclass(frozen=True)
class Cluster:
    """Where workloads are sent: ``location`` is the zone or region of the cluster itself."""

    name: str
    place: Place
    location: str


@dataclass(frozen=True)
class Storage:
    """A folder that pods see at ``mount``: a bucket, or a file server."""

    name: str
    kind: str
    mount: str
    always: bool  # in every pod, without being asked for
    read_only: bool


def find(shell: Shell, name: str, place: Place) -> Cluster:
    """The cluster of that name in the zone or its region.

    Raises:
      ValueError: there is none (the nearest is named), or Google Cloud does not say.
    """
    region = place.zone.rpartition("-")[0]
    words = ["container", "clusters", "list", f"--filter=name={name}", "--format=value(location)"]
    done = gcloud.ask(shell, place, words, zonal=False, assumed=region)
    if done.status:
        raise gcloud.refused(f"--cluster={name}", done.err.strip(), place)
    found = done.out.split()
    for location in (place.zone, region):
        if location in found:
            return Cluster(name, place, location)
    if found:
        raise ValueError(f"--cluster={name} is in {', '.join(found)}, and --zone={place.zone} is not there")
    words = ["container", "clusters", "list", "--format=value(name)"]
    names = gcloud.ask(shell, place, words, zonal=False).out.split()
    raise ValueError(
        f"--cluster={name}: project {place.project} has none of that name (xpk cluster create makes one)"
        f"{suggest(name, names)}"
    )


def xpk(
    shell: Shell, cluster: Cluster, *words: str, retry: Retry | None = API, timeout: float = 900.0
) -> Done:
    """One XPK command about the cluster; its failure is in the status."""
    where = [f"--cluster={cluster.name}", f"--zone={cluster.place.zone}"]
    where += [f"--project={cluster.place.project}"]
    return shells.run(shell, ["xpk", *words, *where], retry=retry, timeout=timeout)


def log_in(shell: Shell, cluster: Cluster) -> None:
    """Have kubectl know the cluster, as XPK sets it up.

    Raises:
      ValueError: XPK is not installed, or cannot reach the cluster.
    """
    done = xpk(shell, cluster, "workload", "list")
    if done.status == shells.MISSING:
        raise ValueError(f"{shells.last_line(done)}: pip install xpk")
    if done.status:
        raise ValueError(f"xpk does not reach {cluster.name}: {said(done)}")


def said(done: Done) -> str:
    """What a command complained of, on one line: XPK's last line says only that it ends."""
    lines = [line.strip().removeprefix("[XPK] ") for line in f"{done.out}\n{done.err}".splitlines()]
    telling = [
        line for line in lines if line and not re.match(r"XPK (failed|done)|Exiting XPK|Starting ", line)
    ]
    return " ".join(telling[-3:])[-500:] or shells.last_line(done)


def kubectl(
    shell: Shell, cluster: Cluster, *words: str, assumed: str = "", retry: Retry | None = API
) -> Done:
    """One kubectl command, on this cluster whatever kubectl is used for meanwhile."""
    context = f"--context=gke_{cluster.place.project}_{cluster.location}_{cluster.name}"
    command = ["kubectl", context, f"--namespace={NAMESPACE}", *words]
    return shells.run(shell, command, assumed=assumed, retry=retry, timeout=120.0)


def read(shell: Shell, cluster: Cluster, *words: str, assumed: Any = None) -> Any:
    """What ``kubectl get`` says as JSON; None for what is not there.

    Raises:
      ValueError: the cluster does not answer.
    """
    text = "" if assumed is None else json.dumps(assumed)
    flags = ("--ignore-not-found", "--output=json")
    done = kubectl(shell, cluster, "get", *words, *flags, assumed=text)
    if "doesn't have a resource type" in done.err:
        return None
    if done.status:
        raise ValueError(f"kubectl get {words[0]}: {shells.last_line(done)}")
    return json.loads(done.out) if done.out.strip() else None


def room(shell: Shell, cluster: Cluster, topology: Topology) -> str:
    """One line on whether the cluster has machines for the slices at all, be they taken now or not.

    Raises:
      ValueError: it has fewer than they need.
    """
    told = read(shell, cluster, "configmap", f"{cluster.name}-resources-configmap")
    data = (told or {}).get("data", {})
    kind, needed = gke_types.tpu_type(topology), gke_types.machines(topology)
    if kind in data and data[kind].isdigit():
        if int(data[kind]) < needed:
            raise ValueError(
                f"{cluster.name} has {data[kind]} machines of {kind}, and the slices need {needed}: fewer "
                "--slices, or a larger cluster (xpk cluster create --num-slices)"
            )
        return f"{cluster.name} has {data[kind]} machines of {kind}, {needed} needed"
    have = [one for one in sorted(data) if re.fullmatch(r"(v\d|tpu)\w*-\d+", one)]
    return f"{cluster.name} does not say how many of {kind} it has" + (
        f"; it has {', '.join(have)}" if have else ""
    )


def storages(shell: Shell, cluster: Cluster, assumed: Sequence[Storage] = ()) -> list[Storage]:
    """The folders that are attached to the cluster (``xpk storage attach``)."""
    items = [
        {
            "metadata": {"name": one.name},
            "spec": {"type": one.kind, "mount_point": one.mount, "auto_mount": one.always, "readonly": False},
        }
        for one in assumed
    ]
    told = read(shell, cluster, "storages.xpk.x-k8s.io", assumed={"items": items})
    return [
        Storage(
            item["metadata"]["name"],
            item["spec"]["type"],
            item["spec"]["mount_point"],
            bool(item["spec"]["auto_mount"]),
            bool(item["spec"]["readonly"]),
        )
        for item in (told or {}).get("items", ())
    ]


def shared(found: Sequence[Storage], asked: Sequence[str], workdir: str) -> Storage:
    """The storage, among those that a workload would have, in which its folder lies.

    Raises:
      ValueError: there is no such storage, or the folder is in none and would end with its pod.
    """
    names = [one.name for one in found]
    for name in asked:
        if name not in names:
            raise ValueError(f"--storage={name} is not attached to the cluster{suggest(name, names)}")
    mounted = [one for one in found if one.always or one.name in asked]
    for one in mounted:
        if PurePosixPath(workdir).is_relative_to(one.mount):
            if one.read_only:
                raise ValueError(f"--workdir={workdir}: storage {one.name} is read-only")
            return one
    fitting = [one.name for one in found if PurePosixPath(workdir).is_relative_to(one.mount)]
    if fitting:
        raise ValueError(f"--workdir={workdir} lies in storage {fitting[0]}: say --storage={fitting[0]}")
    places = ", ".join(f"{one.name} at {one.mount}" for one in found) or "none; see xpk storage attach"
    raise ValueError(
        f"--workdir={workdir} is in no storage, so that it would end with its pod: name a folder of one that "
        f"the cluster has ({places})"
    )
