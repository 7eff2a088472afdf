"""``python -m launch gke``: a run on slices of a GKE cluster, through XPK and JobSet."""

import argparse
import re
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launch import gke_cluster, request, slices
from launch import shell as shells
from launch.gcloud import Place
from launch.gke_cluster import CONTAINER, IMAGE_FAILURES, Cluster, JobSetState, Pod
from launch.request import LOST, OTHERS, LaunchJob
from launch.shell import Done, Retry, Shell, Terminated, clean, handle_sigterm
from mmrl.plan.chips import Topology
from mmrl.terminal import tell

PRIORITIES = ("very-low", "low", "medium", "high", "very-high")
# Seconds that pods have to save the last step before they are killed. Spot machines leave about 25 of them.
GRACE_S = 300
BUILD_S = 5400.0
POLL_S = 10.0  # between two looks
STUCK_LOOKS = 3  # a pull of an image may fail once or twice
TAIL = 30  # lines of the log of a run that began before
_PUSH = Retry(2, re.compile(r"timeout|EOF|connection reset|50\d|unexpected status", re.IGNORECASE))
_STAMP = re.compile(r"(\S+?)(?:\.(\d+))?Z ?(.*)")
_NO_ROOM = r"cluster only contains|supports up to|is not present on the cluster|insufficient"


class Stuck(ValueError):
    """The pods cannot start and would wait for ever, at their cost."""


@dataclass(frozen=True)
class GkeTask:
    """A job, the slices it is to run on, and how.

    Attributes:
      image: with its tag.
      storages: of the cluster, to be mounted beside those that always are.
      restarts: how often the JobSet may make all pods anew.
    """

    cluster: Cluster
    job: LaunchJob
    topology: Topology
    image: str
    storages: tuple[str, ...]
    priority: str
    restarts: int

    @property
    def command(self) -> str:
        """The command of each pod, for bash."""
        machines = slices.gke_machines(self.topology)
        # XPK's script sends SIGTERM to the shell that it starts; so mmrl must be that process.
        return f"exec {shlex.join(request.train_words(self.job, self.job.workdir, machines))}"


def arguments(parser: argparse.ArgumentParser) -> None:
    """The verbs and their options."""
    verbs = parser.add_subparsers(dest="verb", required=True)
    sub = verbs.add_parser("run", help="start a run as a workload, and follow it", allow_abbrev=False)
    request.remote_arguments(sub, "v5e:4x4, v5litepod-16, v6e:16x16*2, ...")
    sub.add_argument("--slices", type=int, metavar="N", help="so many of them (default: 1)")
    sub.add_argument("--image", required=True, help="REGISTRY/NAME[:TAG]; without a tag, that of this commit")
    sub.add_argument("--build", action="store_true", help="build the image from launch/Dockerfile; push it")
    storage = "of the cluster, to be mounted; may be given again"
    sub.add_argument("--storage", action="append", default=[], metavar="NAME", help=storage)
    sub.add_argument("--priority", choices=PRIORITIES, default="medium", help="(default: %(default)s)")
    _place(sub)
    sub.set_defaults(run=run)
    for verb, summary, act in (
        ("follow", "show the log of a run until it ends", show),
        ("status", "say how a workload and its pods stand", status),
        ("delete", "delete a workload", delete),
    ):
        sub = verbs.add_parser(verb, help=summary, allow_abbrev=False)
        request.verb_arguments(sub, "workload")
        _place(sub)
        sub.set_defaults(run=act)


def _place(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--cluster", required=True, metavar="NAME", help="made by xpk cluster create")
    sub.add_argument("--zone", required=True, help="of Google Cloud: us-west4-a, ...")
    sub.add_argument("--project", required=True, help="of Google Cloud")


def run(
    options: argparse.Namespace,
    overrides: Sequence[str],
    *,
    shell: Shell | None = None,
    plan: request.Planner | None = None,
    root: Path = request.ROOT,
) -> int:
    """Check, build the image if asked to, start the workload, follow it to its end; the run's status."""
    shell = replace(shell or Shell(), dry_run=options.dry_run)
    topology = slices.gke_slices(options.accelerator, options.slices)
    where_mounted = "where the bucket is mounted (xpk storage attach --mount-point=...)"
    path = request.check_words(options, in_bucket=f"name the folder as pods see it, {where_mounted}")
    if not path.is_absolute() or ".." in path.parts:
        raise ValueError(f"--workdir={options.workdir}: the whole path, as pods see it: /gcs/runs/papo")
    job = request.job(shell, options, overrides, root)
    check_mesh(topology, dict(job.mesh))
    image, of_commit = image_name(options.image, job.tree)
    request.say_fit_and_cost(shell, options, job, topology, plan)
    shell.say(f"slices    {job.name}: {_slices_text(topology)}")
    shell.say(
        f"image     {image}" + ("" if of_commit or options.build else " (of which commit, is not known)")
    )
    shell = shell.say_commands_only()
    cluster = gke_cluster.log_in(shell, options.cluster, Place(options.zone, options.project))
    shell.say(f"room      {gke_cluster.check_room(shell, cluster, topology)}")
    storages = gke_cluster.storages(shell, cluster, options.storage, options.workdir)
    holder = gke_cluster.check_storage(storages, options.storage, options.workdir)
    shell.say(f"storage   {holder.name} ({holder.kind}) at {holder.mount}")
    if options.build:
        shell.say("building  the image, which takes minutes")
        build_image(shell, image, job.tree, root)
    handle_sigterm()
    mounted = tuple(options.storage)
    ended = supervise(
        shell, GkeTask(cluster, job, topology, image, mounted, options.priority, options.restarts)
    )
    if ended == 0:
        shell.say(f"results   in {options.workdir}, of storage {holder.name}")
    return ended


def check_mesh(topology: Topology, mesh: dict[str, int]) -> None:
    """That the mesh of the run goes with the slices and their machines.

    Raises:
      ValueError: it does not; the key of the config is named.
    """
    count, here = topology.slices, slices.gke_machine_devices(topology)
    whole = mesh["expert"] * mesh["tensor"]
    if mesh["replica"] != count:
        there = f"there is {count} slice" if count == 1 else f"there are {count} slices"
        raise ValueError(
            f"config.mesh.replica={mesh['replica']}, and {there}: say "
            f"--config.mesh.replica={count} (each slice has a copy of everything)"
        )
    if slices.gke_machines(topology) > 1 and (whole > here or here % max(whole, 1)):
        of_experts = f" (times config.mesh.expert={mesh['expert']})" if mesh["expert"] > 1 else ""
        raise ValueError(
            f"config.mesh.tensor={mesh['tensor']}{of_experts} would reach over machines, which have {here} "
            f"devices each: say --config.mesh.tensor={max(here // mesh['expert'], 1)} or a divisor of it"
        )


def _slices_text(topology: Topology) -> str:
    count = f"{topology.slices} slices of " if topology.slices > 1 else ""
    machines = slices.machines_text(slices.gke_machines(topology))
    return f"{count}{slices.xpk_type(topology)}: {machines}"


def show(options: argparse.Namespace, _: Sequence[str]) -> int:
    """``gke follow``: the log until the run ends; its status."""
    shell, cluster, name, _state = _existing(options)
    return follow(shell, cluster, name, from_start=False)


def status(options: argparse.Namespace, _: Sequence[str]) -> int:
    """``gke status``: one line on the workload, one on each pod."""
    shell, cluster, name, state = _existing(options)
    waits = gke_cluster.queue_reason(shell, cluster, name) if state.phase == "queued" else state.message
    tell(f"{name}: {state.phase}, {state.restarts} restarts {waits}".rstrip())
    for pod in gke_cluster.pods(shell, cluster, name):
        ended = "" if pod.status is None else f" with status {pod.status}"
        tell(f"{pod.name}: {pod.phase}{ended} {pod.stuck}".rstrip())
    return 0


def delete(options: argparse.Namespace, _: Sequence[str]) -> int:
    """``gke delete``: the workload; its run saves its last step first."""
    shell, cluster, name, _state = _existing(options)
    return 0 if delete_workload(shell, cluster, name) else 1


def _existing(options: argparse.Namespace) -> tuple[Shell, Cluster, str, JobSetState]:
    name, shell = request.job_name(options, "workload"), Shell(dry_run=options.dry_run)
    cluster = gke_cluster.log_in(shell, options.cluster, Place(options.zone, options.project))
    state = gke_cluster.jobset(shell, cluster, name)
    if shell.dry_run:
        state = JobSetState("active")
    if state is None:
        raise ValueError(f"there is no workload {name} on {cluster.name}")
    return shell, cluster, name, state


def image_name(image: str, tree: str) -> tuple[str, bool]:
    """The image with its tag, and whether the tag says the commit: an image without one gets it of ``tree``.

    Raises:
      ValueError: no image name.
    """
    last = image.rpartition("/")[2]
    if not re.fullmatch(r"[a-z0-9][\w.:/@-]*", image) or not last:
        raise ValueError(f"--image={image}: write it as in us-docker.pkg.dev/PROJECT/REPOSITORY/mmrl")
    tagged = ":" in last or "@" in last
    return (image, False) if tagged else (f"{image}:{tree[:12]}", True)


def build_image(shell: Shell, image: str, tree: str, root: Path) -> None:
    """Build the image from the files of a commit alone, and push it; ValueError if docker cannot."""
    with tempfile.TemporaryDirectory(prefix="launch-") as temporary:
        folder = Path("/tmp/launch" if shell.dry_run else temporary)
        packed, files = folder / "files.tar", folder / "files"
        if not shell.dry_run:
            files.mkdir()
        _build(shell, ["git", "-C", str(root), "archive", f"--output={packed}", tree])
        _build(shell, ["tar", "-xf", str(packed), "-C", str(files)])
        # TPU machines have x86 processors, whatever this one has.
        words = ["docker", "build", "--platform=linux/amd64", f"--file={files / 'launch' / 'Dockerfile'}"]
        _build(shell, [*words, f"--label=mmrl.commit={tree}", f"--tag={image}", str(files)])
        _build(shell, ["docker", "push", image], retry=_PUSH)


def _build(shell: Shell, words: list[str], retry: Retry | None = None) -> None:
    done = shells.run(shell, words, retry=retry, timeout=BUILD_S)
    if not done.status:
        return
    if words[0] == "docker":
        shell.say_lines(done.out + done.err, 20)
    fix = ""
    if re.search(r"denied|unauthorized|Unauthenticated", done.err):
        fix = f" (gcloud auth configure-docker {words[-1].partition('/')[0]}, or the repository is not there)"
    raise ValueError(f"{' '.join(words[:2])}: {done.last_line}{fix}")


def supervise(shell: Shell, task: GkeTask) -> int:
    """Have the workload run, and follow it to its end; its status.

    Raises:
      ValueError: it cannot be made, or cannot start (what was made is deleted then), or the cluster does not
        answer any more.
    """
    name, cluster = task.job.name, task.cluster
    delete_command = f"python -m launch gke delete {' '.join([f'--name={name}', *cluster.flags])}"
    verbs = f"the same command follows it again, {delete_command} ends it"
    try:
        made = _get(shell, task)
        return follow(shell, cluster, name, from_start=made)
    except KeyboardInterrupt as error:
        if gke_cluster.jobset(shell, cluster, name):
            shell.say(f"left      {name} goes on; {verbs}")
        return 143 if isinstance(error, Terminated) else 130
    except Stuck as error:
        left = "is deleted" if delete_workload(shell, cluster, name) else "is still there"
        raise ValueError(f"{error}; {name} would wait for ever, and {left}") from error
    except ValueError as error:
        if "kubectl" in str(error):
            raise ValueError(f"{error}; if {name} is there, it goes on: {verbs}") from error
        raise


def _get(shell: Shell, task: GkeTask) -> bool:
    """Have the workload there, and whether it was made now: one that runs already is left to.

    Raises:
      ValueError: another one has its name, or it cannot be made.
    """
    name = task.job.name
    state = gke_cluster.jobset(shell, task.cluster, name)
    if state and state.phase in ("completed", "failed"):
        shell.say(f"workload  {name} of before has {state.phase}")
        delete_workload(shell, task.cluster, name)
    elif state:
        if state.image != task.image or task.command not in state.command:
            raise ValueError(f"{name} is there and runs something else: take another --name, or delete it")
        shell.say(f"workload  {name} is there, {state.phase}")
        return False
    _create(shell, task)
    return True


def _create(shell: Shell, task: GkeTask) -> None:
    """Raises ValueError if XPK could not make the workload."""
    name = task.job.name
    words = ["workload", "create", f"--workload={name}", f"--tpu-type={slices.xpk_type(task.topology)}"]
    words += [f"--num-slices={task.topology.slices}", f"--docker-image={task.image}"]
    words += [f"--storage={storage}" for storage in task.storages]
    words += [f"--priority={task.priority}", f"--max-restarts={task.restarts}"]
    # A process ends with 75 when another one is gone; XPK counts that as a mistake of the program.
    words += [f"--restart-on-exit-codes={LOST}"]
    words += [f"--termination-grace-period-seconds={GRACE_S}", f"--command={task.command}"]
    for left in (2, 1, 0):
        done = gke_cluster.xpk(shell, task.cluster, *words, retry=None)
        if not done.status:
            break
        said = gke_cluster.complaint(done)
        # Not tried again blindly: XPK asks before it makes what is there already.
        if gke_cluster.jobset(shell, task.cluster, name):
            shell.say(f"workload  made, though xpk then failed: {said}")
            break
        if not (left and gke_cluster.API.transient.search(done.out + done.err)):
            raise _refusal(task, done)
        shell.say(f"{said}; trying again in {POLL_S:g} s ({left} left)")
        shell.sleep(POLL_S)
    shell.say(f"workload  {name} on {_slices_text(task.topology)}")


def _refusal(task: GkeTask, done: Done) -> ValueError:
    said = gke_cluster.complaint(done)
    if "validate your docker image" in said:
        fix = f"--image={task.image} is not there, or the cluster may not read it: --build makes it"
    elif re.search(_NO_ROOM, said, re.IGNORECASE):
        fix = f"{task.cluster.name} has no room for {_slices_text(task.topology)}"
    elif "invalid choice" in said or "system characteristics" in said:
        fix = f"this xpk does not know {slices.xpk_type(task.topology)}: pip install --upgrade xpk"
    else:
        return ValueError(f"xpk workload create: {said}")
    return ValueError(f"{fix} (xpk said: {said})")


def delete_workload(shell: Shell, cluster: Cluster, name: str) -> bool:
    """Delete a workload, its pods having time to save; whether it is gone."""
    done = gke_cluster.xpk(shell, cluster, "workload", "delete", f"--workload={name}", "--force")
    try:
        gone = not done.status and gke_cluster.jobset(shell, cluster, name) is None
    except ValueError:
        gone = False
    if gone:
        shell.say(f"deleted   {name}")
    else:
        said = gke_cluster.complaint(done)
        shell.say(f"left      {name} could not be deleted, and may go on at its cost: {said}")
    return gone


@dataclass
class Progress:
    """Progress of following a workload: what has been said, and the log up to which line of which pod."""

    from_start: bool
    story: str = ""
    pod: str = ""
    until: tuple[str, str] = ("", "")
    restarts: int = 0
    stuck: int = 0


def follow(shell: Shell, cluster: Cluster, name: str, *, from_start: bool) -> int:
    """Print the log of process 0 until the workload has ended; its status.

    Raises:
      Stuck: its pods cannot start.
      ValueError: the cluster does not answer.
    """
    seen = Progress(from_start)
    while True:
        state = gke_cluster.jobset(shell, cluster, name)
        if state is None and not shell.dry_run:
            shell.say(f"deleted   {name} is not there any more; the same command goes on with the run")
            return 143
        pods = gke_cluster.pods(shell, cluster, name)
        if state is None:
            _read_log(shell, cluster, f"{name}-slice-job-0-0-POD")
            return 0
        if state.restarts > seen.restarts:
            seen.restarts = state.restarts
            shell.say(f"restarted {state.restarts} times; the run goes on from its last checkpoint")
        _print_log(shell, cluster, pods, seen)
        if state.phase == "completed":
            return 0
        if state.phase == "failed":
            return _failed(shell, cluster, pods, state)
        _say_story(shell, cluster, name, state.phase, pods, seen)
        shell.sleep(POLL_S)


def _say_story(
    shell: Shell, cluster: Cluster, name: str, phase: str, pods: Sequence[Pod], seen: Progress
) -> None:
    """Say what the workload does or waits for, once; raises `Stuck` if it waits in vain."""
    stuck = next((pod for pod in pods if pod.stuck), None)
    seen.stuck = seen.stuck + 1 if stuck else 0
    if stuck and seen.stuck >= STUCK_LOOKS:
        part = "its image" if stuck.stuck in IMAGE_FAILURES else "its container"
        raise Stuck(f"{stuck.name} cannot start with {part}: {stuck.stuck} {stuck.why}".strip())
    running = sum(pod.phase == "Running" for pod in pods)
    if phase == "queued":
        story = f"queued    {gke_cluster.queue_reason(shell, cluster, name)}".rstrip()
    elif running < len(pods) or not pods:
        story = f"starting  {running} of {len(pods)} pods run"
    else:
        story = f"running   {running} pods"
    if story != seen.story:
        shell.say(story)
    seen.story = story


def _print_log(shell: Shell, cluster: Cluster, pods: Sequence[Pod], seen: Progress) -> None:
    """Print the lines that process 0 has written since the last look."""
    first = next((pod for pod in pods if pod.number == (0, 0) and pod.phase != "Pending"), None)
    if first is None:
        return
    if first.uid != seen.pod:
        part = [] if seen.from_start or seen.pod else [f"--tail={TAIL}"]
        seen.pod, seen.until = first.uid, ("", "")
    else:
        # Whole seconds, so that some lines come again.
        part = [f"--since-time={seen.until[0]}Z"] if seen.until[0] else []
    done = _read_log(shell, cluster, first.name, *part)
    before = seen.until
    for line in done.out.splitlines() if not done.status else ():
        match = _STAMP.fullmatch(line)
        stamp = (match[1], (match[2] or "").ljust(9, "0")) if match else before
        if match and stamp > before:
            tell(clean(match[3]))
            seen.until = max(seen.until, stamp)


def _read_log(shell: Shell, cluster: Cluster, pod: str, *part: str) -> Done:
    words = ("logs", pod, f"--container={CONTAINER}", "--timestamps", *part)
    return gke_cluster.kubectl(shell, cluster, *words)


def _failed(shell: Shell, cluster: Cluster, pods: Sequence[Pod], state: JobSetState) -> int:
    """Show the end of the log of the process that failed first; the status of the run."""
    shell.say(f"failed    {state.reason} {state.message}".rstrip())
    pod = gke_cluster.first_failure(pods, OTHERS)
    if pod is None or pod.status is None:
        return LOST if state.reason == "ReachedMaxRestarts" else 1
    words = ("logs", pod.name, f"--container={CONTAINER}", f"--tail={TAIL}")
    done = gke_cluster.kubectl(shell, cluster, *words)
    shell.say(f"the log of {pod.name} (status {pod.status}) ends:")
    shell.say_lines(done.out, TAIL)
    # 128 and more: killed, as when machines go; what restarts there were are used up.
    return LOST if pod.status in OTHERS or pod.status > 128 else pod.status
