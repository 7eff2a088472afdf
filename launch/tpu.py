"""``python -m launch tpu``: a run on a slice of Cloud TPU VMs."""

import argparse
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launch import gcloud, request, slices, tpu_vm
from launch import shell as shells
from launch.gcloud import Place
from launch.request import OTHERS, STOPPED, LaunchJob
from launch.shell import Shell, Terminated, clean, handle_sigterm
from launch.tpu_vm import Found, Slice, WorkerReport
from mmrl.plan.chips import parse_topology
from mmrl.terminal import command, tell

WORKER = Path(__file__).with_name("worker.sh")
FOLDER = "mmrl-job"  # below the home of a worker: what the launcher keeps there
BUCKET_AT = "/mnt/bucket"  # where workers see the bucket
INSTALL_S = 1800.0
STOP_S = 90  # for the last step to be saved
POLL_S = 30.0  # between two looks
SILENCES = 10  # looks in a row without an answer of all workers, before the run is given up
STRAGGLERS = 6  # looks at which some workers may still run after others have failed
PART = 65536  # bytes of a log that launch/worker.sh sends at once
GRACE = 4  # looks for the notice that a stopped run was taken away


class Lost(Exception):
    """The run ended for want of machines: it may be started again. ``disk``: the slice is gone as well."""

    def __init__(self, message: str, *, disk: bool) -> None:
        super().__init__(message)
        self.disk = disk


@dataclass(frozen=True)
class TpuTask:
    """A job, the slice it is to run on, and how.

    Attributes:
      root: of the clone whose files are packed.
      bucket: "gs://NAME/FOLDER", below which workdirs lie; "" for the disk of the one machine.
      restarts: how often the run is started again after its machines were lost.
      keep: never delete the slice.
    """

    wanted: Slice
    job: LaunchJob
    root: Path
    bucket: str = ""
    restarts: int = 10
    keep: bool = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """The verbs and their options."""
    verbs = parser.add_subparsers(dest="verb", required=True)
    sub = verbs.add_parser(
        "run", help="make a slice, run on it, bring the results home, delete it", allow_abbrev=False
    )
    request.remote_arguments(sub, "v5litepod-16, v5e:4x4, v5p-128, ...")
    sub.add_argument("--runtime", metavar="IMAGE", help="of the machines (default: by generation)")
    tier = sub.add_mutually_exclusive_group()
    tier.add_argument("--spot", action="store_true", help="cheap machines that may be taken away any time")
    tier.add_argument("--reserved", action="store_true", help="machines of the project's reservation")
    bucket = "where workdirs lie; needed by several hosts"
    sub.add_argument("--bucket", default="", metavar="gs://...", help=bucket)
    sub.add_argument("--keep", action="store_true", help="never delete the slice")
    _place(sub)
    sub.set_defaults(run=run)
    for verb, summary, act in (
        ("follow", "show the log of a run until it ends", show),
        ("status", "say how a slice and the run on it stand", status),
        ("fetch", "copy a run's folder here", fetch),
        ("delete", "delete a slice", delete),
    ):
        sub = verbs.add_parser(verb, help=summary, allow_abbrev=False)
        request.verb_arguments(sub, "slice", workdir=verb == "fetch")
        if verb == "fetch":
            written = "where the run was told to write"
            sub.add_argument("--bucket", default="", metavar="gs://...", help=written)
        _place(sub)
        sub.set_defaults(run=act)


def _place(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--zone", required=True, help="of Google Cloud: us-west4-a, ...")
    sub.add_argument("--project", help="of Google Cloud (default: gcloud's)")


def run(
    options: argparse.Namespace,
    overrides: Sequence[str],
    *,
    shell: Shell | None = None,
    plan: request.Planner | None = None,
    root: Path = request.ROOT,
) -> int:
    """Check, make a slice, run, bring the results home, delete the slice; the run's status."""
    shell = replace(shell or Shell(), dry_run=options.dry_run)
    topology = slices.tpu_slice(options.accelerator)
    tier = "spot" if options.spot else "reserved" if options.reserved else "on-demand"
    runtime = options.runtime or slices.RUNTIMES[topology.generation]
    hosts = slices.tpu_hosts(topology)
    _check(options, hosts)
    job = request.job(shell, options, overrides, root)
    request.say_fit_and_cost(shell, options, job, topology, plan)
    kind = slices.accelerator_type(topology) or topology
    shell.say(f"slice     {job.name}: {kind}, {tier}: {slices.machines_text(hosts)}, {runtime}")
    shell = shell.say_commands_only()
    place = tpu_vm.with_project(shell, Place(options.zone, options.project))
    wanted = Slice(job.name, place, topology, tier, runtime)
    shell.say(f"zone      {tpu_vm.check_offered(shell, wanted)}")
    shell.say(f"quota     {tpu_vm.check_quota(shell, wanted)}")
    if options.bucket:
        shell.say(f"bucket    {tpu_vm.check_bucket(shell, place, options.bucket)}")
    handle_sigterm()
    return supervise(shell, TpuTask(wanted, job, root, options.bucket, options.restarts, options.keep))


def _check(options: argparse.Namespace, hosts: int) -> None:
    """Raises ValueError where the words alone say that it cannot go well."""
    path = request.check_words(options, in_bucket="name the bucket with --bucket, and a folder in it here")
    if options.bucket and (path.is_absolute() or ".." in path.parts):
        raise ValueError(f"--workdir={options.workdir}: with --bucket, a folder below it, such as runs/papo")
    if hosts > 1 and not options.bucket:
        raise ValueError(
            f"--accelerator={options.accelerator} has {hosts} machines, whose processes write checkpoints "
            "into one folder: name a bucket that all of them mount with --bucket=gs://NAME"
        )
    if options.spot and not options.bucket:
        raise ValueError(
            "--spot machines are taken away with their disks: name a bucket for the run with "
            "--bucket=gs://NAME"
        )


def show(options: argparse.Namespace, _: Sequence[str]) -> int:
    """``tpu follow``: the log until the run ends; its status."""
    shell, wanted, found = _existing(options)
    if found.state != "ACTIVE" or not found.accelerator:
        raise ValueError(f"{wanted.name} is {found.state}: nothing runs on it")
    try:
        return follow(shell, replace(wanted, topology=parse_topology(found.accelerator)))
    except Lost as loss:
        raise ValueError(f"{loss}; the command that started it goes on with it") from loss


def status(options: argparse.Namespace, _: Sequence[str]) -> int:
    """``tpu status``: one line on the slice, one on each worker."""
    shell, wanted, found = _existing(options)
    tell(
        f"{wanted.name}: {found.state}, {found.accelerator or 'of a type of its own'} {found.error}".rstrip()
    )
    if found.state == "ACTIVE":
        machines, count = tpu_vm.node_state(shell, wanted)
        tell(f"machines: {count}, {machines or 'gone'}")
        for report in _on_all(shell, wanted, "look"):
            tell(f"{report.worker}: {report.word} {report.rest}".rstrip())
    return 0


def fetch(options: argparse.Namespace, _: Sequence[str]) -> int:
    """``tpu fetch``: the run's folder, from the bucket or from the machine."""
    shell, wanted = _named(options)
    task = TpuTask(wanted, LaunchJob(wanted.name, "", options.workdir), request.ROOT, options.bucket)
    return 0 if bring_home(shell, task) else 1


def delete(options: argparse.Namespace, _: Sequence[str]) -> int:
    """``tpu delete``: the slice, machines and all."""
    return 0 if tpu_vm.delete(*_named(options)) else 1


def _named(options: argparse.Namespace) -> tuple[Shell, Slice]:
    name = request.job_name(options, "slice")
    return Shell(dry_run=options.dry_run), Slice(name, Place(options.zone, options.project))


def _existing(options: argparse.Namespace) -> tuple[Shell, Slice, Found]:
    shell, wanted = _named(options)
    assumed = (
        '{"state": {"state": "ACTIVE"}, "tpu": {"nodeSpec": [{"node": {"acceleratorType": "v5litepod-8"}}]}}'
    )
    found = tpu_vm.describe(shell, wanted, assumed)
    if found is None:
        raise ValueError(f"there is no slice {wanted.name} in {wanted.place.zone}")
    return shell, wanted, found


def supervise(shell: Shell, task: TpuTask) -> int:
    """Run the job to its end and clean up; its status.

    Raises:
      ValueError: it could not be run; what was made is deleted.
    """
    found = tpu_vm.describe(shell, task.wanted)
    kind = slices.accelerator_type(task.wanted.topology)
    if found and found.accelerator and kind and found.accelerator != kind:
        raise ValueError(
            f"{task.wanted.name} is there, and is a {found.accelerator}, not a {kind}: "
            "take another --name, or delete it"
        )
    ours = found is None or found.ours
    try:
        ended = _until_end(shell, task, found, ours)
        home = bring_home(shell, task)
        if ended:
            shell.say(f"ended     with status {ended}")
    except KeyboardInterrupt as error:
        _interrupted(shell, task, made=found is None)
        return 143 if isinstance(error, Terminated) else 130
    except ValueError:
        _leave(shell, task, ours=ours, home=True)
        raise
    _leave(shell, task, ours=ours, home=home)
    return ended


def _until_end(shell: Shell, task: TpuTask, found: Found | None, ours: bool) -> int:
    """Get the slice, start, follow; again after each loss while restarts are left. The run's status."""
    for left in range(task.restarts, -1, -1):
        try:
            _get(shell, task.wanted, found)
            if not (found and _runs_already(shell, task)):
                install(shell, task)
            start(shell, task)
            return follow(shell, task.wanted)
        except Lost as loss:
            shell.say(f"lost      {loss}")
            if loss.disk and not task.bucket:
                raise ValueError(f"{loss}, and the run with its disk: with --bucket it goes on") from loss
            if not left:
                times = task.restarts + 1
                raise ValueError(f"the run was lost {times} times: --restarts allows more") from loss
            shell.say(f"again     the same command, from the last checkpoint ({left - 1} restarts left)")
            found = _make_way(shell, task.wanted, loss, ours)
    raise AssertionError("a run without restarts left has ended")


def _make_way(shell: Shell, wanted: Slice, loss: Lost, ours: bool) -> Found | None:
    """Stop or delete what is left of an attempt; the slice that is there then, if any."""
    if not loss.disk:
        _on_all(shell, wanted, "stop", str(STOP_S))
        return tpu_vm.describe(shell, wanted)
    if not ours:
        raise ValueError(f"{wanted.name} was taken away; it was not made here, so that it is left as it is")
    if not tpu_vm.delete(shell, wanted):
        raise ValueError(f"{wanted.name} was taken away, and what is left of it cannot be deleted")
    return None


def _get(shell: Shell, wanted: Slice, found: Found | None) -> None:
    """Have the slice there: asked for if it is not, deleted and asked for again if it is spent."""
    spent = found is not None and found.state in tpu_vm.GONE
    if found and spent:
        if not found.ours:
            raise ValueError(f"{wanted.name} is {found.state}, and was not made here: take another --name")
        shell.say(f"slice     {wanted.name} is {found.state} from before")
        if not tpu_vm.delete(shell, wanted):
            raise ValueError(f"{wanted.name} is {found.state} and cannot be deleted: take another --name")
    if found and not spent:
        shell.say(f"slice     {wanted.name} is there: {found.state}")
    else:
        tpu_vm.create(shell, wanted)
    tpu_vm.wait(shell, wanted, POLL_S)


def _runs_already(shell: Shell, task: TpuTask) -> bool:
    """True if a slice that was there runs this commit already; ValueError if it runs another."""
    running = [report for report in _on_all(shell, task.wanted, "look") if report.word == "running"]
    if any(report.rest != task.job.tree for report in running):
        raise ValueError(f"{task.wanted.name} runs another commit: take another --name, or delete it")
    return len(running) == task.wanted.hosts


def install(shell: Shell, task: TpuTask) -> None:
    """Copy the commit to every worker, install it, mount the bucket.

    Raises:
      ValueError: a worker could not.
      Lost: the machines are gone.
    """
    wanted, tree = task.wanted, task.job.tree
    hello = f'mkdir -p {FOLDER} && echo "mmrl-worker $(hostname) here"'
    _expect(shell, wanted, ["bash", "-c", hello], "here")
    with tempfile.TemporaryDirectory(prefix="launch-") as temporary:
        packed = Path("/tmp/launch" if shell.dry_run else temporary) / f"{tree}.tar.gz"
        archive = ["git", "archive", "--format=tar.gz", f"--output={packed}", tree]
        done = shells.run(shell, archive, folder=task.root)
        if done.status:
            raise ValueError(f"git archive: {done.last_line}")
        done = tpu_vm.push(shell, wanted, [packed, WORKER], FOLDER)
    if done.status:
        _raise_if_gone(shell, wanted)
        raise ValueError(f"copying to {wanted.name}: {done.last_line}")
    _expect(shell, wanted, _worker("install", tree), "installed")
    if task.bucket:
        _expect(shell, wanted, _worker("mount", task.bucket.split("/")[2], BUCKET_AT), "mounted")


def start(shell: Shell, task: TpuTask) -> None:
    """Start the run on every worker, to go on without this connection.

    Raises:
      ValueError: a worker could not, or runs something else.
      Lost: the machines are gone.
    """
    workdir = f"../mmrl-runs/{task.job.name}"  # from the root of the code
    if task.bucket:
        prefix = "/".join(task.bucket.rstrip("/").split("/")[3:])
        workdir = "/".join(part for part in (BUCKET_AT, prefix, task.job.workdir) if part)
    words = request.train_words(task.job, workdir, task.wanted.hosts)
    _expect(shell, task.wanted, _worker("start", *words), "started")
    shell.say(f"running   {command(*words)}")


def _worker(*words: str) -> list[str]:
    return ["bash", f"{FOLDER}/worker.sh", *words]


def _on_all(shell: Shell, wanted: Slice, *words: str) -> list[WorkerReport]:
    return tpu_vm.on_workers(shell, wanted, _worker(*words))[1]


def _expect(shell: Shell, wanted: Slice, words: list[str], want: str) -> None:
    """Run a command on every worker; each must report ``want``."""
    assumed = "".join(f"mmrl-worker w-{k} {want}\n" for k in range(wanted.hosts))
    done, reports = tpu_vm.on_workers(shell, wanted, words, assumed=assumed, timeout=INSTALL_S)
    bad = [report for report in reports if report.word != want]
    if len(reports) - len(bad) == wanted.hosts:
        return
    _raise_if_gone(shell, wanted)
    if bad and bad[0].word == "busy":
        raise ValueError(
            f"{wanted.name} runs something else ({bad[0].rest}): take another --name, or delete it"
        )
    shell.say_lines(done.out + done.err, 20)
    if bad:
        raise ValueError(f"{bad[0].word} on {bad[0].worker} ({bad[0].rest}): see its last lines above")
    raise ValueError(
        f"{len(reports)} of {wanted.hosts} workers of {wanted.name} answered: {done.last_line} "
        "(gcloud reaches several workers at once only with its key in an agent: "
        "ssh-add ~/.ssh/google_compute_engine)"
    )


def _raise_if_gone(shell: Shell, wanted: Slice) -> None:
    if tpu_vm.gone(shell, wanted):
        raise Lost(f"{wanted.name} was taken away", disk=True)


def follow(shell: Shell, wanted: Slice) -> int:
    """Print the log of worker 0 until the run has ended on all workers; its status.

    Raises:
      Lost: the machines are gone, or one of them failed.
      ValueError: the workers do not answer.
    """
    hosts = wanted.hosts
    assumed = "".join(f"mmrl-worker w-{k} ended 0\n" for k in range(hosts))
    offset = silences = stragglers = 0
    while True:
        _, reports = tpu_vm.on_workers(shell, wanted, _worker("look"), assumed=assumed)
        if len(reports) < hosts:
            silences += 1
            _raise_if_gone(shell, wanted)
            if silences == SILENCES:
                quiet = hosts - len(reports)
                raise ValueError(
                    f"{quiet} of {hosts} workers of {wanted.name} have not answered {SILENCES} times"
                )
            shell.say(f"waiting   {len(reports)} of {hosts} workers answer")
        else:
            silences = 0
            offset = _print_log(shell, wanted, offset)
            stragglers += any(_failed(report) for report in reports)
            if stragglers > STRAGGLERS or all(report.word != "running" for report in reports):
                return _status(shell, wanted, reports)
        shell.sleep(POLL_S)


def _print_log(shell: Shell, wanted: Slice, offset: int) -> int:
    """Print what worker 0 has logged from byte ``offset`` on; where it ends."""
    while True:
        words = _worker("log", str(offset))
        done, _ = tpu_vm.on_workers(shell, wanted, words, worker="0")
        text, _, last = done.out.rstrip("\n").rpartition("\n")
        match = re.fullmatch(r"mmrl-worker \S+ log (\d+)", last)
        if match is None:
            return offset
        for line in text.splitlines():
            tell(clean(line))
        before, offset = offset, int(match[1])
        if offset - before < PART:
            return offset


def _failed(report: WorkerReport) -> bool:
    return report.word in ("gone", "idle") or (report.word == "ended" and report.rest != "0")


def _status(shell: Shell, wanted: Slice, reports: Sequence[WorkerReport]) -> int:
    """The run's status, from how its workers ended."""
    failed = [report for report in reports if _failed(report)]
    if not failed:
        return 0
    _raise_if_gone(shell, wanted)
    own = [report for report in failed if report.word == "ended" and int(report.rest) not in OTHERS]
    if not own:
        workers = ", ".join(report.worker for report in failed)
        raise Lost(f"a process of the run is gone (ended: {workers})", disk=False)
    first = next((report for report in own if int(report.rest) not in STOPPED), None)
    if first is None:
        # Before a spot slice is taken away its processes are asked to end; that it is gone is told later.
        for _ in range(GRACE if wanted.tier == "spot" else 0):
            shell.sleep(POLL_S)
            _raise_if_gone(shell, wanted)
        return int(own[0].rest)
    match = re.search(r"-w-(\d+)$", first.worker)
    words, worker = ("tail", "-n", "30", f"{FOLDER}/log"), match[1] if match else "0"
    done, _ = tpu_vm.on_workers(shell, wanted, words, worker=worker)
    shell.say(f"the log of {first.worker} ends:")
    shell.say_lines(done.out, 30)
    return int(first.rest)


def bring_home(shell: Shell, task: TpuTask) -> bool:
    """Copy the run's folder to where --workdir says here; whether nothing is on the slice alone now.

    From a bucket, all but checkpoints: those stay there.
    """
    workdir, wanted = Path(task.job.workdir), task.wanted
    if task.bucket:
        url = f"{task.bucket.rstrip('/')}/{task.job.workdir}"
        words = ["storage", "rsync", url, str(workdir), "--recursive", "--exclude=(.*/)?checkpoints/.*"]
        if not shell.dry_run:
            workdir.mkdir(parents=True, exist_ok=True)
        done = gcloud.ask(shell, wanted.place, words, zonal=False, timeout=3600.0)
        if done.status:
            shell.say(f"results   in {url}, not copied here: {done.last_line}")
        else:
            shell.say(f"results   in {workdir}; checkpoints stay in {url}")
        return True
    with tempfile.TemporaryDirectory(prefix="launch-") as temporary:
        into = Path("/tmp/launch" if shell.dry_run else temporary)
        done = tpu_vm.pull(shell, wanted, f"mmrl-runs/{task.job.name}", into)
        if done.status:
            shell.say(f"results   not fetched: {done.last_line}")
            return False
        if not shell.dry_run:
            shutil.copytree(into / task.job.name, workdir, dirs_exist_ok=True)
    shell.say(f"results   in {workdir}")
    return True


def _interrupted(shell: Shell, task: TpuTask, *, made: bool) -> None:
    """Ctrl-C: delete what this command made, after the run has saved its last step; say what is left."""
    wanted = task.wanted
    if not made or task.keep:
        _leave(shell, task, ours=False, home=True)
        return
    shell.say(f"interrupted: deleting {wanted.name}; once more leaves it as it is, at its cost")
    home = True
    found = tpu_vm.describe(shell, wanted)
    if found and found.state == "ACTIVE":
        once = shells.Retry(0, gcloud.API.transient)
        _, reports = tpu_vm.on_workers(shell, wanted, _worker("stop", str(STOP_S)), retry=once)
        began = any(report.word in ("running", "ended", "gone") for report in reports)
        if began and not task.bucket:
            home = bring_home(shell, task)
    if found:
        _leave(shell, task, ours=True, home=home)


def _leave(shell: Shell, task: TpuTask, *, ours: bool, home: bool) -> None:
    """Delete the slice, unless it is to be kept, is somebody else's, or has the only copy of the results."""
    wanted = task.wanted
    if not task.keep and ours and home:
        tpu_vm.delete(shell, wanted)
        return
    if not home:
        shell.say("the results are on the slice alone, so that it is not deleted")
    shell.say(
        f"left      {wanted.name}, at its cost; a run on it goes on. python -m launch tpu follow "
        f"{wanted.flags} shows it, and python -m launch tpu delete {wanted.flags} ends it"
    )
