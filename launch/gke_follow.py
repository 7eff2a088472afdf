"""Following a workload on a cluster: the log of process 0 as it grows, what it waits for, how it ends."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from launch import gke_cluster, gke_jobset
from launch.gke_cluster import Cluster
from launch.gke_jobset import CONTAINER, IMAGE_FAILURES, Pod, State
from launch.job import OTHERS
from launch.shell import Shell, clean
from mmrl.terminal import tell

LOST = 75  # status: the same command may go on
STOPPED = 143
_STUCK_LOOKS = 3  # a pull of an image may fail once or twice
_TAIL = 30  # lines of the log of a run that began before
_STAMP = re.compile(r"(\S+?)(?:\.(\d+))?Z ?(.*)")


class Stuck(ValueError):
    """The pods cannot start and would wait for ever, at their cost."""


@dataclass(frozen=True)
class _Seen:
    """What has been said already: of the state, and of which pod's log up to when."""

    story: str = ""
    pod: str = ""
    until: tuple[str, str] = ("", "")
    restarts: int = 0
    stuck: int = 0


def follow(shell: Shell, cluster: Cluster, name: str, poll: float, *, from_start: bool) -> int:
    """Print the log of process 0 until the workload has ended; its status.

    Raises:
      Stuck: its pods cannot start.
      ValueError: the cluster does not answer.
    """
    if shell.dry_run:
        gke_jobset.look(shell, cluster, name)
        gke_jobset.pods(shell, cluster, name)
        gke_cluster.kubectl(shell, cluster, *_log_words(f"{name}-slice-job-0-0-POD"))
        return 0
    seen = _Seen()
    while True:
        state = gke_jobset.look(shell, cluster, name)
        if state is None:
            shell.say(f"deleted   {name} is not there any more; the same command goes on with the run")
            return STOPPED
        pods = gke_jobset.pods(shell, cluster, name)
        if state.restarts > seen.restarts:
            shell.say(f"restarted {state.restarts} times; the run goes on from its last checkpoint")
        seen = replace(seen, restarts=state.restarts)
        seen = _log(shell, cluster, pods, seen, from_start=from_start)
        if state.phase == "completed":
            return 0
        if state.phase == "failed":
            return _failed(shell, cluster, pods, state)
        seen = _wait(shell, cluster, name, state.phase, pods, seen)
        shell.sleep(poll)


def _wait(shell: Shell, cluster: Cluster, name: str, phase: str, pods: Sequence[Pod], seen: _Seen) -> _Seen:
    """Say what the workload does or waits for, once."""
    stuck = next((pod for pod in pods if pod.stuck), None)
    if stuck and seen.stuck + 1 >= _STUCK_LOOKS:
        what = "its image" if stuck.stuck in IMAGE_FAILURES else "its container"
        raise Stuck(f"{stuck.name} cannot start with {what}: {stuck.stuck} {stuck.why}".strip())
    running = sum(pod.phase == "Running" for pod in pods)
    if phase == "queued":
        story = f"queued    {gke_jobset.queue(shell, cluster, name)}".rstrip()
    elif running < len(pods) or not pods:
        story = f"starting  {running} of {len(pods)} pods run"
    else:
        story = f"running   {running} pods"
    if story != seen.story:
        shell.say(story)
    return replace(seen, story=story, stuck=seen.stuck + 1 if stuck else 0)


def _log(shell: Shell, cluster: Cluster, pods: Sequence[Pod], seen: _Seen, *, from_start: bool) -> _Seen:
    """Print what process 0 has written since the last look."""
    first = next((pod for pod in pods if pod.number == "0-0" and pod.phase != "Pending"), None)
    if first is None:
        return seen
    if first.uid != seen.pod:
        known = seen.pod != ""
        seen = replace(seen, pod=first.uid, until=("", ""))
        part = [] if from_start or known else [f"--tail={_TAIL}"]
    else:
        # Whole seconds, so that some lines come again.
        part = [f"--since-time={seen.until[0]}Z"] if seen.until[0] else []
    done = gke_cluster.kubectl(shell, cluster, *_log_words(first.name), *part)
    until = seen.until
    for line in done.out.splitlines() if not done.status else ():
        match = _STAMP.fullmatch(line)
        if match is None:
            continue
        stamp = (match[1], (match[2] or "").ljust(9, "0"))
        if stamp > seen.until:
            tell(clean(match[3]))
            until = max(until, stamp)
    return replace(seen, until=until)


def _log_words(pod: str) -> list[str]:
    return ["logs", pod, f"--container={CONTAINER}", "--timestamps"]


def _failed(shell: Shell, cluster: Cluster, pods: Sequence[Pod], state: State) -> int:
    """Show the end of the log of the process that failed first; the status of the run."""
    shell.say(f"failed    {state.reason} {state.message}".rstrip())
    pod = gke_jobset.culprit(pods, OTHERS)
    if pod is None or pod.status is None:
        return LOST if state.reason == "ReachedMaxRestarts" else 1
    done = gke_cluster.kubectl(shell, cluster, "logs", pod.name, f"--container={CONTAINER}", "--tail=30")
    shell.say(f"the log of {pod.name} (status {pod.status}) ends:")
    for line in done.out.splitlines():
        shell.say(f"  | {clean(line)}")
    # 128 and more: killed, as when machines go; what restarts there were are used up.
    return LOST if pod.status in OTHERS or pod.status > 128 else pod.status
