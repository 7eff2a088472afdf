"""A slice of Cloud TPU VMs as a queued resource: checked, asked for, waited for, reached, deleted."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launch import gcloud, slices
from launch import shell as shells
from launch.gcloud import Place
from launch.shell import Done, Shell
from mmrl.plan.chips import Topology
from mmrl.suggest import suggest

LABEL = "mmrl-launch"  # on what the launcher makes, so that it deletes nothing else
_QUEUED = ("compute", "tpus", "queued-resources")
_NODE = ("compute", "tpus", "tpu-vm")
_REPORT = re.compile(r"^mmrl-worker (\S+) (\w+) ?(.*)$", re.MULTILINE)
GONE = ("SUSPENDING", "SUSPENDED", "FAILED", "DELETING")  # states from which a queued resource never returns
_GONE_NODES = ("PREEMPTED", "TERMINATED", "DELETING", "STOPPING", "STOPPED", "HIDING", "HIDDEN")

_ANY = Topology("v5e", (1, 1))  # of a slice that is only named


@dataclass(frozen=True)
class Slice:
    """A slice that is asked for; the queued resource and its one node have the same name."""

    name: str
    place: Place
    topology: Topology = _ANY
    tier: str = "on-demand"  # or "spot", "reserved"
    runtime: str = ""

    @property
    def hosts(self) -> int:
        """Its machines."""
        return slices.tpu_hosts(self.topology)

    @property
    def flags(self) -> str:
        """The options that name it."""
        return " ".join([f"--name={self.name}", *self.place.flags])


@dataclass(frozen=True)
class Found:
    """A queued resource that is there."""

    state: str
    ours: bool  # made by this launcher
    accelerator: str  # as Google Cloud names it; "" where it does not
    error: str = ""  # why it failed


@dataclass(frozen=True)
class WorkerReport:
    """The last line of one worker on itself: a word of launch/worker.sh, and the rest of its line."""

    worker: str
    word: str
    rest: str = ""


def with_project(shell: Shell, place: Place) -> Place:
    """The place with its project named, as gcloud is set up; ValueError if gcloud is not."""
    if place.project:
        return place
    done = shells.run(shell, ["gcloud", "config", "get-value", "project", "--quiet"], assumed="PROJECT")
    if done.status:
        install = "https://cloud.google.com/sdk/docs/install"
        raise ValueError(f"no Google Cloud: {done.last_line} ({install})")
    found = done.out.strip()
    if not found or found == "(unset)":
        raise ValueError("gcloud has no project: name one with --project")
    return replace(place, project=found)


def check_offered(shell: Shell, wanted: Slice) -> str:
    """One line: the zone has slices of this type; ValueError if it has not, or is none."""
    place, kind = wanted.place, slices.accelerator_type(wanted.topology)
    words = ["compute", "tpus", "accelerator-types", "list", "--format=value(type)"]
    done = gcloud.ask(shell, place, words, assumed=kind or "")
    there = [] if done.status else done.out.split()
    if kind in there or (there and kind is None):
        return f"{place.zone} offers {kind or wanted.topology}"
    words = ["compute", "tpus", "locations", "list", "--format=value(locationId)"]
    zones = gcloud.ask(shell, place, words, zonal=False).out.split()
    if zones and place.zone not in zones:
        raise ValueError(f"--zone={place.zone} has no TPUs{suggest(place.zone, zones)}")
    if done.status:
        raise gcloud.refusal(f"--zone={place.zone}", done.err.strip(), place)
    alike = [other for other in there if slices.same_generation(other, wanted.topology)]
    if alike:
        raise ValueError(f"{place.zone} has no {kind}: it has {', '.join(alike)}")
    raise ValueError(f"{place.zone} has no {kind}, nor others like it; zones with TPUs: {', '.join(zones)}")


def check_quota(shell: Shell, wanted: Slice) -> str:
    """One line on the project's quota for the slice; ValueError if it is smaller than the slice.

    What cannot be known is said, and left to the service.
    """
    named, zone = slices.quota_name(wanted.topology, wanted.tier), wanted.place.zone
    if named is None:
        return "of the reservation (not checked)"
    words = ["beta", "quotas", "info", "describe", named, "--service=tpu.googleapis.com", "--format=json"]
    done = gcloud.ask(shell, wanted.place, words, zonal=False, assumed="{}")
    if done.status:
        return f"{named} (not known: {done.last_line})"
    for info in json.loads(done.out).get("dimensionsInfos", ()):
        value = info.get("details", {}).get("value")
        here = zone in info.get("applicableLocations", ()) or info.get("dimensions", {}).get("zone") == zone
        if not here or value is None:
            continue
        # Some quotas count chips and some TensorCores; what is too small for chips is too small for either.
        if 0 <= int(value) < wanted.topology.chips:
            other = "--zone" if wanted.tier == "spot" else "--zone, or --spot"
            raise ValueError(
                f"quota {named} is {value} in {zone}, and the slice has "
                f"{wanted.topology.chips} chips: ask for more, or take another {other}"
            )
        return f"{named}: {'unlimited' if int(value) < 0 else value} in {zone}"
    return f"{named} (not stated for {zone})"


def check_bucket(shell: Shell, place: Place, url: str) -> str:
    """One line on the bucket that holds the run.

    Raises:
      ValueError: it is not there, or cannot rename folders, which checkpoints need to be whole or not there.
    """
    if not re.fullmatch(r"gs://[a-z0-9][-a-z0-9_.]{1,61}[a-z0-9](/[^\s/]+)*/?", url):
        raise ValueError(f"--bucket={url}: write gs://NAME or gs://NAME/FOLDER")
    root = "/".join(url.split("/")[:3])
    words = ["storage", "buckets", "describe", root, "--raw", "--format=json"]
    assumed = json.dumps({"hierarchicalNamespace": {"enabled": True}, "location": place.region})
    done = gcloud.ask(shell, place, words, zonal=False, assumed=assumed)
    make = (
        f"gcloud storage buckets create {root} --location={place.region} --uniform-bucket-level-access "
        "--enable-hierarchical-namespace"
    )
    if gcloud.missing(done):
        raise ValueError(f"--bucket={url}: there is no {root}; make one with: {make}")
    if done.status:
        raise gcloud.refusal(f"--bucket={url}", done.err.strip(), place)
    found = json.loads(done.out)
    if not (found.get("hierarchicalNamespace") or {}).get("enabled"):
        raise ValueError(
            f"--bucket={url}: {root} has no hierarchical namespace, so that folders cannot be renamed in one "
            f"step as checkpoints need; make another bucket, as in: {make}"
        )
    location = found.get("location", "").lower()
    near = location == place.region
    return url if near else f"{url} (in {location}, away from {place.region}: slower, and traffic costs)"


def describe(shell: Shell, wanted: Slice, assumed: str = "") -> Found | None:
    """The queued resource of that name; None if there is none, ValueError if Google Cloud does not say."""
    words = [*_QUEUED, "describe", wanted.name, "--format=json"]
    done = gcloud.ask(shell, wanted.place, words, assumed=assumed)
    if gcloud.missing(done) or not (done.status or done.out):
        return None
    if done.status:
        raise gcloud.refusal(f"cannot look at {wanted.name}", done.last_line, wanted.place)
    found = json.loads(done.out)
    node = (found.get("tpu", {}).get("nodeSpec") or [{}])[0].get("node", {})
    state = found.get("state", {})
    return Found(
        state.get("state", "UNKNOWN"),
        LABEL in node.get("labels", {}),
        node.get("acceleratorType", ""),
        state.get("failedData", {}).get("error", {}).get("message", ""),
    )


def node_state(shell: Shell, wanted: Slice) -> tuple[str, int]:
    """The state of the machines ("READY"), and how many there are; "" if there are none."""
    done = gcloud.ask(shell, wanted.place, [*_NODE, "describe", wanted.name, "--format=json"])
    if done.status or not done.out:
        return "", 0
    found = json.loads(done.out)
    return found.get("state", ""), len(found.get("networkEndpoints", ()))


def create(shell: Shell, wanted: Slice) -> None:
    """Ask for the slice; it comes when there is one. ValueError if refused, for instance for its quota."""
    tier = [] if wanted.tier == "on-demand" else [f"--{wanted.tier}"]
    words = [*_QUEUED, "create", wanted.name, f"--node-id={wanted.name}"]
    words += [*slices.accelerator_flags(wanted.topology), f"--runtime-version={wanted.runtime}", *tier]
    done = gcloud.ask(shell, wanted.place, [*words, f"--labels={LABEL}={wanted.name}"])
    # "Already there" is the answer to a second try, where the answer to the first was lost on the way.
    if done.status and "ALREADY_EXISTS" not in done.err:
        raise _no_slice(wanted, done.err.strip())


def wait(shell: Shell, wanted: Slice, poll: float) -> None:
    """Until the slice is there, saying how it stands; ValueError if it will not come."""
    began, before = shell.clock(), ""
    while True:
        found = describe(shell, wanted, assumed='{"state": {"state": "ACTIVE"}}')
        state = found.state if found else "DELETED"
        if state != before:
            shell.say(f"slice     {wanted.name} {state} after {(shell.clock() - began) / 60:.0f} min")
            before = state
        if state == "ACTIVE":
            return
        if found is None or state in GONE:
            raise _no_slice(wanted, (found and found.error) or f"it became {state} while being waited for")
        shell.sleep(poll)


def _no_slice(wanted: Slice, why: str) -> ValueError:
    quota = slices.quota_name(wanted.topology, wanted.tier)
    return gcloud.refusal(f"no slice {wanted.name}", why, wanted.place, quota)


def gone(shell: Shell, wanted: Slice) -> bool:
    """True if the machines were taken away, by preemption or for maintenance.

    Raises:
      ValueError: Google Cloud cannot be asked.
    """
    found = describe(shell, wanted)
    if found is None or found.state in GONE:
        return True
    # A spot slice is taken away node first; its queued resource follows minutes later.
    state, _ = node_state(shell, wanted)
    return state == "" or state in _GONE_NODES


def delete(shell: Shell, wanted: Slice) -> bool:
    """Delete the slice, machines and all; whether that is done. Says how, if it is not."""
    words = [*_QUEUED, "delete", wanted.name, "--force"]
    done = gcloud.ask(shell, wanted.place, words, timeout=1800.0)
    if not done.status:
        shell.say(f"slice     {wanted.name} deleted")
    if not done.status or gcloud.missing(done):
        return True
    shell.say(
        f"slice     {wanted.name} could NOT be deleted and costs as long as it is there: {done.last_line}; "
        f"try: gcloud {' '.join([*words, *wanted.place.flags])}"
    )
    return False


def on_workers(
    shell: Shell,
    wanted: Slice,
    words: Sequence[str],
    *,
    worker: str = "all",
    assumed: str = "",
    timeout: float = 600.0,
    retry: shells.Retry = gcloud.SSH,
) -> tuple[Done, list[WorkerReport]]:
    """Run a command on workers; their reports, one a worker at most (its last)."""
    command = [*_NODE, "ssh", wanted.name, f"--worker={worker}", f"--command={shlex.join(words)}"]
    done = gcloud.ask(shell, wanted.place, command, assumed=assumed, timeout=timeout, retry=retry)
    reports = {host: WorkerReport(host, word, rest) for host, word, rest in _REPORT.findall(done.out)}
    return done, [reports[host] for host in sorted(reports)]


def push(shell: Shell, wanted: Slice, files: Sequence[Path], folder: str) -> Done:
    """Copy files into a folder below the home of every worker."""
    words = [*_NODE, "scp", *map(str, files), f"{wanted.name}:{folder}/", "--worker=all"]
    return gcloud.ask(shell, wanted.place, words, retry=gcloud.SSH, timeout=1800.0)


def pull(shell: Shell, wanted: Slice, folder: str, into: Path) -> Done:
    """Copy a folder below the home of worker 0 into a folder here."""
    words = [*_NODE, "scp", "--recurse", f"{wanted.name}:{folder}", str(into), "--worker=0"]
    return gcloud.ask(shell, wanted.place, words, retry=gcloud.SSH, timeout=3600.0)
