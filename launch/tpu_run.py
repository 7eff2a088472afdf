"""A run on a slice, from the request to the clean-up: what is done in which order, after which failure."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from launch import gcloud, tpu_slice, tpu_types
from launch import shell as shells
from launch.job import Job, train_words
from launch.shell import Shell
from launch.signals import Terminated
from launch.tpu_follow import Lost, follow
from launch.tpu_slice import Found, Report, Slice

WORKER = Path(__file__).with_name("worker.sh")
FOLDER = "mmrl-job"  # below the home of a worker: what the launcher keeps there
BUCKET_AT = "/mnt/bucket"  # where workers see the bucket
INSTALL_S = 1800.0
STOP_S = 90  # for the last step to be saved


@dataclass(frozen=True)
class Task:
    """A job, the slice it is to run on, and how.

    Attributes:
      tree: what ``git archive`` packs, of the clone in ``root``.
      bucket: "gs://NAME/FOLDER", below which workdirs lie; "" for the disk of the one machine.
      restarts: how often the run is started again after its machines were lost.
      keep: never delete the slice.
      poll: seconds between two looks.
    """

    wanted: Slice
    job: Job
    tree: str
    root: Path
    bucket: str = ""
    restarts: int = 10
    keep: bool = False
    poll: float = 30.0


def supervise(shell: Shell, task: Task) -> int:
    """Run the job to its end and clean up; its status.

    Raises:
      ValueError: it could not be run; what was made is deleted.
    """
    name, place = task.wanted.name, task.wanted.place
    found = tpu_slice.describe(shell, name, place)
    if found:
        _check_same(task, found)
    ours = found is None or found.ours
    try:
        status = _until_end(shell, task, found)
        home = bring_home(shell, task)
        if status:
            shell.say(f"ended     with status {status}")
    except KeyboardInterrupt as error:
        _interrupted(shell, task, made=found is None)
        return 143 if isinstance(error, Terminated) else 130
    except ValueError:
        _leave(shell, task, ours=ours, home=True)
        raise
    _leave(shell, task, ours=ours, home=home)
    return status


def _check_same(task: Task, found: Found) -> None:
    """Raises ValueError if the slice that is there is of another type."""
    wanted = tpu_types.accelerator_type(task.wanted.topology)
    if found.accelerator and wanted and found.accelerator != wanted:
        raise ValueError(
            f"{task.wanted.name} is there, and is a {found.accelerator}, not a {wanted}: "
            "take another --name, or delete it"
        )


def _until_end(shell: Shell, task: Task, found: Found | None) -> int:
    """Get the slice, start, follow; again after each loss while restarts are left. The run's status."""
    left, ours = task.restarts, found is None or found.ours
    while True:
        try:
            _get(shell, task, found)
            if not _runs_already(shell, task, found):
                install(shell, task)
            start(shell, task)
            return follow(shell, task.wanted, task.poll)
        except Lost as loss:
            shell.say(f"lost      {loss}")
            if loss.disk and not task.bucket:
                raise ValueError(f"{loss}, and the run with its disk: with --bucket it goes on") from loss
            if not left:
                times = task.restarts + 1
                raise ValueError(f"the run was lost {times} times: --restarts allows more") from loss
            left -= 1
            shell.say(f"again     the same command, from the last checkpoint ({left} restarts left)")
            found = _after(shell, task, loss, ours)


def _after(shell: Shell, task: Task, loss: Lost, ours: bool) -> Found | None:
    """Make way for the next attempt; the slice that is there then, if any."""
    name, place = task.wanted.name, task.wanted.place
    if not loss.disk:
        words = ["bash", f"{FOLDER}/worker.sh", "stop", str(STOP_S)]
        tpu_slice.on_workers(shell, name, place, words)
        return tpu_slice.describe(shell, name, place)
    if not ours:
        raise ValueError(f"{name} was taken away; it was not made here, so that it is left as it is")
    if not tpu_slice.delete(shell, name, place):
        raise ValueError(f"{name} was taken away, and what is left of it cannot be deleted")
    return None


def _get(shell: Shell, task: Task, found: Found | None) -> None:
    """Have the slice there: asked for if it is not, deleted and asked for again if it is spent."""
    name, place = task.wanted.name, task.wanted.place
    if found and found.state in tpu_slice.GONE:
        if not found.ours:
            raise ValueError(f"{name} is {found.state}, and was not made here: take another --name")
        shell.say(f"slice     {name} is {found.state} from before")
        if not tpu_slice.delete(shell, name, place):
            raise ValueError(f"{name} is {found.state} and cannot be deleted: take another --name")
        found = None
    if found:
        shell.say(f"slice     {name} is there: {found.state}")
    else:
        tpu_slice.create(shell, task.wanted)
    tpu_slice.wait(shell, task.wanted, task.poll)


def _runs_already(shell: Shell, task: Task, found: Found | None) -> bool:
    """Whether a slice that was there runs this commit already, started by an earlier command.

    Raises:
      ValueError: it runs something else.
    """
    if found is None:
        return False
    words = ["bash", f"{FOLDER}/worker.sh", "look"]
    _, reports = tpu_slice.on_workers(shell, task.wanted.name, task.wanted.place, words)
    running = [report for report in reports if report.word == "running"]
    if any(report.rest != task.tree for report in running):
        raise ValueError(f"{task.wanted.name} runs another commit: take another --name, or delete it")
    return len(running) == tpu_types.host_count(task.wanted.topology)


def install(shell: Shell, task: Task) -> None:
    """Copy the commit to every worker, install it, mount the bucket.

    Raises:
      ValueError: a worker could not.
      Lost: the machines are gone.
    """
    hello = f'mkdir -p {FOLDER} && echo "mmrl-worker $(hostname) here"'
    _all(shell, task, ["bash", "-c", hello], "here")
    with tempfile.TemporaryDirectory(prefix="launch-") as temporary:
        packed = Path("/tmp/launch" if shell.dry_run else temporary) / f"{task.tree}.tar.gz"
        archive = ["git", "archive", "--format=tar.gz", f"--output={packed}", task.tree]
        done = shells.run(shell, archive, folder=task.root)
        if done.status:
            raise ValueError(f"git archive: {shells.last_line(done)}")
        place = task.wanted.place
        done = tpu_slice.push(shell, task.wanted.name, place, [packed, WORKER], FOLDER)
    if done.status:
        _raise_if_gone(shell, task)
        raise ValueError(f"copying to {task.wanted.name}: {shells.last_line(done)}")
    _all(shell, task, ["bash", f"{FOLDER}/worker.sh", "install", task.tree], "installed")
    if task.bucket:
        bucket = task.bucket.split("/")[2]
        _all(shell, task, ["bash", f"{FOLDER}/worker.sh", "mount", bucket, BUCKET_AT], "mounted")


def start(shell: Shell, task: Task) -> None:
    """Start the run on every worker, to go on without this connection.

    Raises:
      ValueError: a worker could not, or runs something else.
      Lost: the machines are gone.
    """
    several = tpu_types.host_count(task.wanted.topology) > 1
    words = train_words(task.job, workdir_there(task), *(["--coordinator=auto"] if several else []))
    _all(shell, task, ["bash", f"{FOLDER}/worker.sh", "start", *words], "started")
    shell.say(f"running   {shells.shown(words)}")


def _all(shell: Shell, task: Task, words: list[str], want: str) -> None:
    """Run a command on every worker; each must report ``want``."""
    hosts = tpu_types.host_count(task.wanted.topology)
    assumed = "".join(f"mmrl-worker w-{k} {want}\n" for k in range(hosts))
    name, place = task.wanted.name, task.wanted.place
    done, reports = tpu_slice.on_workers(shell, name, place, words, assumed=assumed, timeout=INSTALL_S)
    if sum(report.word == want for report in reports) == hosts:
        return
    _raise_if_gone(shell, task)
    bad = [report for report in reports if report.word != want]
    if bad and bad[0].word == "busy":
        raise ValueError(f"{name} runs something else ({bad[0].rest}): take another --name, or delete it")
    _say_output(shell, done.out + done.err)
    if bad:
        raise ValueError(f"{bad[0].word} on {bad[0].worker} ({bad[0].rest}): see its last lines above")
    raise ValueError(
        f"{len(reports)} of {hosts} workers of {name} answered: {shells.last_line(done)} "
        "(gcloud reaches several workers at once only with its key in an agent: "
        "ssh-add ~/.ssh/google_compute_engine)"
    )


def _say_output(shell: Shell, text: str) -> None:
    for line in shells.tail(text, 20).splitlines():
        shell.say(f"  | {line}")


def _raise_if_gone(shell: Shell, task: Task) -> None:
    if tpu_slice.gone(shell, task.wanted.name, task.wanted.place):
        raise Lost(f"{task.wanted.name} was taken away", disk=True)


def workdir_there(task: Task) -> str:
    """The run's folder as a worker sees it, from the root of the code."""
    if not task.bucket:
        return f"../mmrl-runs/{task.job.name}"
    prefix = "/".join(task.bucket.rstrip("/").split("/")[3:])
    return "/".join(part for part in (BUCKET_AT, prefix, task.job.workdir) if part)


def bring_home(shell: Shell, task: Task) -> bool:
    """Copy the run's folder to where --workdir says here; whether nothing is on the slice alone now.

    From a bucket, all but checkpoints: those stay there.
    """
    workdir = Path(task.job.workdir)
    if task.bucket:
        url = f"{task.bucket.rstrip('/')}/{task.job.workdir}"
        words = ["storage", "rsync", url, str(workdir), "--recursive", "--exclude=(.*/)?checkpoints/.*"]
        if not shell.dry_run:
            workdir.mkdir(parents=True, exist_ok=True)
        done = gcloud.ask(shell, task.wanted.place, words, zonal=False, timeout=3600.0)
        if done.status:
            shell.say(f"results   in {url}, not copied here: {shells.last_line(done)}")
        else:
            shell.say(f"results   in {workdir}; checkpoints stay in {url}")
        return True
    with tempfile.TemporaryDirectory(prefix="launch-") as temporary:
        into = Path("/tmp/launch" if shell.dry_run else temporary)
        folder = f"mmrl-runs/{task.job.name}"
        done = tpu_slice.pull(shell, task.wanted.name, task.wanted.place, folder, into)
        if done.status:
            shell.say(f"results   not fetched: {shells.last_line(done)}")
            return False
        if not shell.dry_run:
            shutil.copytree(into / task.job.name, workdir, dirs_exist_ok=True)
    shell.say(f"results   in {workdir}")
    return True


def _interrupted(shell: Shell, task: Task, *, made: bool) -> None:
    """Ctrl-C: delete what this command made, after the run has saved its last step; say what is left."""
    name, place = task.wanted.name, task.wanted.place
    if not made or task.keep:
        _left(shell, task)
        return
    shell.say(f"interrupted: deleting {name}; once more leaves it as it is, at its cost")
    home = True
    found = tpu_slice.describe(shell, name, place)
    if found and found.state == "ACTIVE":
        once = shells.Retry(0, gcloud.API.transient)
        words = ["bash", f"{FOLDER}/worker.sh", "stop", str(STOP_S)]
        _, reports = tpu_slice.on_workers(shell, name, place, words, retry=once)
        if _began(reports) and not task.bucket:
            home = bring_home(shell, task)
    if found:
        _leave(shell, task, ours=True, home=home)


def _began(reports: list[Report]) -> bool:
    return any(report.word in ("running", "ended", "gone") for report in reports)


def _leave(shell: Shell, task: Task, *, ours: bool, home: bool) -> None:
    """Delete the slice, unless it is to be kept, is somebody else's, or has the only copy of the results."""
    if not task.keep and ours and home:
        tpu_slice.delete(shell, task.wanted.name, task.wanted.place)
        return
    if not home:
        shell.say("the results are on the slice alone, so that it is not deleted")
    _left(shell, task)


def _left(shell: Shell, task: Task) -> None:
    name, place = task.wanted.name, task.wanted.place
    project = f" --project={place.project}" if place.project else ""
    at = f"--name={name} --zone={place.zone}{project}"
    shell.say(
        f"left      {name}, at its cost; a run on it goes on. python -m launch tpu follow {at} shows it, "
        f"and python -m launch tpu delete {at} ends it"
    )
