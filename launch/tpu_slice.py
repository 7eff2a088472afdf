"""A slice of Cloud TPU VMs as a queued resource: asked for, waited for, reached, deleted."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import gcloud, tpu_types
from launch import shell as shells
from launch.gcloud import Place
from launch.shell import Done, Shell
from mmrl.plan.chips import Topology

LABEL = "mmrl-launch"  # on what the launcher makes, so that it deletes nothing else
_QUEUED = ("compute", "tpus", "queued-resources")
_NODE = ("compute", "tpus", "tpu-vm")
_WORKER = re.compile(r"^mmrl-worker (\S+) (\w+) ?(.*)$", re.MULTILINE)
GONE = ("SUSPENDING", "SUSPENDED", "FAILED", "DELETING")  # states from which a queued resource never returns
GONE_NODES = ("PREEMPTED", "TERMINATED", "DELETING", "STOPPING", "STOPPED", "HIDING", "HIDDEN")


@dataclass(frozen=True)
class Slice:
    """What is asked for; the queued resource and its one node have the same name."""

    name: str
    place: Place
    topology: Topology
    tier: str  # one of `tpu_types.TIERS`
    runtime: str


@dataclass(frozen=True)
class Found:
    """A queued resource that is there."""

    state: str
    ours: bool  # made by this launcher
    accelerator: str  # as Google Cloud names it; "" where it does not
    error: str = ""  # why it failed


@dataclass(frozen=True)
class Report:
    """What one worker said of itself: a word of launch/worker.sh, and the rest of its line."""

    worker: str
    word: str
    rest: str = ""


def describe(shell: Shell, name: str, place: Place, assumed: str = "") -> Found | None:
    """The queued resource of that name; None if there is none.

    Raises:
      ValueError: Google Cloud cannot be asked.
    """
    words = [*_QUEUED, "describe", name, "--format=json"]
    done = gcloud.ask(shell, place, words, assumed=assumed)
    if gcloud.missing(done) or not (done.status or done.out):
        return None
    if done.status:
        raise gcloud.refused(f"cannot look at {name}", shells.last_line(done), place)
    told = json.loads(done.out)
    node = (told.get("tpu", {}).get("nodeSpec") or [{}])[0].get("node", {})
    state = told.get("state", {})
    return Found(
        state.get("state", "UNKNOWN"),
        LABEL in node.get("labels", {}),
        node.get("acceleratorType", ""),
        state.get("failedData", {}).get("error", {}).get("message", ""),
    )


def node_state(shell: Shell, name: str, place: Place) -> tuple[str, int]:
    """The state of the machines ("READY"), and how many there are; "" if there are none."""
    done = gcloud.ask(shell, place, [*_NODE, "describe", name, "--format=json"])
    if done.status or not done.out:
        return "", 0
    told = json.loads(done.out)
    return told.get("state", ""), len(told.get("networkEndpoints", ()))


def create(shell: Shell, wanted: Slice) -> None:
    """Ask for the slice; it comes when there is one.

    Raises:
      ValueError: refused, for lack of quota for instance.
    """
    tier = {"spot": ["--spot"], "reserved": ["--reserved"], "on-demand": []}[wanted.tier]
    words = [*_QUEUED, "create", wanted.name, f"--node-id={wanted.name}"]
    words += [*tpu_types.accelerator_flags(wanted.topology), f"--runtime-version={wanted.runtime}", *tier]
    done = gcloud.ask(shell, wanted.place, [*words, f"--labels={LABEL}={wanted.name}"])
    # "Already there" is the answer to a second try, where the answer to the first was lost on the way.
    if done.status and "ALREADY_EXISTS" not in done.err:
        quota = tpu_types.quota(wanted.topology, wanted.tier)
        raise gcloud.refused(f"no slice {wanted.name}", done.err.strip(), wanted.place, quota)


def wait(shell: Shell, wanted: Slice, poll: float) -> None:
    """Until the slice is there, saying how it stands.

    Raises:
      ValueError: it will not come.
    """
    began, before = shell.clock(), ""
    while True:
        active = json.dumps({"state": {"state": "ACTIVE"}})
        found = describe(shell, wanted.name, wanted.place, assumed=active)
        state = found.state if found else "DELETED"
        if state != before:
            shell.say(f"slice     {wanted.name} {state} after {(shell.clock() - began) / 60:.0f} min")
            before = state
        if found and state == "ACTIVE":
            return
        if found is None or state in GONE:
            why = found.error if found and found.error else f"it became {state} while being waited for"
            quota = tpu_types.quota(wanted.topology, wanted.tier)
            raise gcloud.refused(f"no slice {wanted.name}", why, wanted.place, quota)
        shell.sleep(poll)


def gone(shell: Shell, name: str, place: Place) -> bool:
    """Whether the machines were taken away, by preemption or for maintenance.

    Raises:
      ValueError: Google Cloud cannot be asked.
    """
    found = describe(shell, name, place)
    if found is None or found.state in GONE:
        return True
    # A spot slice is taken away node first; its queued resource follows minutes later.
    state, _ = node_state(shell, name, place)
    return state == "" or state in GONE_NODES


def delete(shell: Shell, name: str, place: Place) -> bool:
    """Delete the slice, machines and all; whether that is done. Says how, if it is not."""
    words = [*_QUEUED, "delete", name, "--force"]
    done = gcloud.ask(shell, place, words, timeout=1800.0)
    if not done.status:
        shell.say(f"slice     {name} deleted")
    if not done.status or gcloud.missing(done):
        return True
    project = f" --project={place.project}" if place.project else ""
    shell.say(
        f"slice     {name} could NOT be deleted and costs as long as it is there: {shells.last_line(done)}; "
        f"try: gcloud {' '.join(words)} --zone={place.zone}{project}"
    )
    return False


def on_workers(
    shell: Shell,
    name: str,
    place: Place,
    words: Sequence[str],
    *,
    worker: str = "all",
    assumed: str = "",
    timeout: float = 600.0,
    retry: shells.Retry = gcloud.SSH,
) -> tuple[Done, list[Report]]:
    """Run a command on workers; what they reported, one report a worker at most (its last)."""
    command = [*_NODE, "ssh", name, f"--worker={worker}", f"--command={shlex.join(words)}"]
    done = gcloud.ask(shell, place, command, assumed=assumed, timeout=timeout, retry=retry)
    reports = {host: Report(host, word, rest) for host, word, rest in _WORKER.findall(done.out)}
    return done, [reports[host] for host in sorted(reports)]


def push(shell: Shell, name: str, place: Place, files: Sequence[Path], folder: str) -> Done:
    """Copy files into a folder below the home of every worker."""
    words = [*_NODE, "scp", *map(str, files), f"{name}:{folder}/", "--worker=all"]
    return gcloud.ask(shell, place, words, retry=gcloud.SSH, timeout=1800.0)


def pull(shell: Shell, name: str, place: Place, folder: str, into: Path) -> Done:
    """Copy a folder below the home of worker 0 into a folder here."""
    words = [*_NODE, "scp", "--recurse", f"{name}:{folder}", str(into), "--worker=0"]
    return gcloud.ask(shell, place, words, retry=gcloud.SSH, timeout=3600.0)
