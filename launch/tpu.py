"""``python -m launch tpu``: a run on a slice of Cloud TPU VMs."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from launch import checks, request, tpu_checks, tpu_run, tpu_slice, tpu_types
from launch.gcloud import Place
from launch.job import Job, check_name, name_of
from launch.shell import Shell
from launch.signals import with_signals
from launch.tpu_follow import LOOK, Lost, follow
from launch.tpu_run import Task
from launch.tpu_slice import Slice
from mmrl.plan.chips import parse_topology
from mmrl.terminal import tell


def arguments(parser: argparse.ArgumentParser) -> None:
    """The verbs and what they take."""
    verbs = parser.add_subparsers(dest="verb", required=True)
    sub = verbs.add_parser(
        "run", help="make a slice, run on it, bring the results home, delete it", allow_abbrev=False
    )
    request.arguments(sub)
    request.remote(sub)
    _place(sub)
    sub.add_argument(
        "--accelerator", required=True, metavar="SLICE", help="v5litepod-16, v5e:4x4, v5p-128, ..."
    )
    sub.add_argument("--runtime", metavar="IMAGE", help="of the machines (default: by generation)")
    tier = sub.add_mutually_exclusive_group()
    tier.add_argument("--spot", action="store_true", help="cheap machines that may be taken away any time")
    tier.add_argument("--reserved", action="store_true", help="machines of the project's reservation")
    sub.add_argument(
        "--bucket", default="", metavar="gs://...", help="where workdirs lie; needed by several hosts"
    )
    sub.add_argument(
        "--restarts", type=int, default=10, metavar="N", help="after lost machines (default: %(default)s)"
    )
    sub.add_argument("--keep", action="store_true", help="never delete the slice")
    sub.set_defaults(run=run)
    for verb, summary, act in (
        ("follow", "show the log of a run until it ends", show),
        ("status", "say how a slice and the run on it stand", state),
        ("fetch", "copy a run's folder here", fetch),
        ("delete", "delete a slice", delete),
    ):
        sub = verbs.add_parser(verb, help=summary, allow_abbrev=False)
        _place(sub)
        sub.add_argument("--workdir", required=verb == "fetch", metavar="DIR", help="the run's folder")
        sub.add_argument("--name", help="of the slice (default: made of --workdir)")
        if verb == "fetch":
            sub.add_argument(
                "--bucket", default="", metavar="gs://...", help="where the run was told to write"
            )
        sub.add_argument("--dry-run", action="store_true", help="print every command, run none")
        sub.set_defaults(run=act)


def _place(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--zone", required=True, help="of Google Cloud: us-west4-a, ...")
    sub.add_argument("--project", help="of Google Cloud (default: gcloud's)")


def run(
    options: argparse.Namespace,
    overrides: Sequence[str],
    *,
    shell: Shell | None = None,
    plan: checks.Planner | None = None,
    root: Path = checks.ROOT,
) -> int:
    """Check, make a slice, run, bring the results home, delete the slice; the run's status."""
    shell = replace(shell or Shell(), dry_run=options.dry_run)
    topology = tpu_types.slice_of(options.accelerator)
    tier = "spot" if options.spot else "reserved" if options.reserved else "on-demand"
    runtime = options.runtime or tpu_types.runtime(topology)
    _check(options, tpu_types.host_count(topology))
    job, files = request.job(shell, options, overrides, root)
    request.afford(shell, options, job, topology, plan or checks.planner(shell))
    shell.say(f"slice     {job.name}: {tpu_types.described(topology, tier)}, {runtime}")
    if shell.dry_run:
        shell.say("commands  in their order, where nothing goes wrong; none is run")
        shell = replace(shell, say=lambda line: None)
    place = tpu_checks.project(shell, Place(options.zone, options.project))
    wanted = Slice(job.name, place, topology, tier, runtime)
    shell.say(f"zone      {tpu_checks.offered(shell, wanted)}")
    shell.say(f"quota     {tpu_checks.quota(shell, wanted)}")
    if options.bucket:
        shell.say(f"bucket    {tpu_checks.bucket(shell, place, options.bucket)}")
    task = Task(wanted, job, files.tree, root, options.bucket, options.restarts, options.keep)
    with_signals()
    return tpu_run.supervise(shell, task)


def _check(options: argparse.Namespace, hosts: int) -> None:
    """Raises ValueError where the words alone say that it cannot go well."""
    if options.restarts < 0:
        raise ValueError(f"--restarts={options.restarts}: 0 or more")
    if options.workdir.startswith("gs://"):
        raise ValueError(
            f"--workdir={options.workdir}: name the bucket with --bucket, and a folder in it here"
        )
    path = PurePosixPath(options.workdir)
    if options.bucket and (path.is_absolute() or ".." in path.parts):
        raise ValueError(f"--workdir={options.workdir}: with --bucket, a folder below it, such as runs/papo")
    if hosts > 1 and not options.bucket:
        raise ValueError(
            f"--accelerator={options.accelerator} has {hosts} machines, whose processes write checkpoints "
            "into one folder: name a bucket that all of them mount with --bucket=gs://NAME"
        )
    if options.spot and not options.bucket:
        raise ValueError(
            "--spot machines are taken away with their disks: name a bucket for the run with --bucket=gs://NAME"
        )


def _named(options: argparse.Namespace) -> tuple[Shell, str, Place]:
    if not options.name and not options.workdir:
        raise ValueError("which slice? --name, or the --workdir of its run")
    name = check_name(options.name) if options.name else name_of(options.workdir)
    return Shell(dry_run=options.dry_run), name, Place(options.zone, options.project)


def _there(shell: Shell, name: str, place: Place) -> tpu_slice.Found:
    assumed = (
        '{"state": {"state": "ACTIVE"}, "tpu": {"nodeSpec": [{"node": {"acceleratorType": "v5litepod-8"}}]}}'
    )
    found = tpu_slice.describe(shell, name, place, assumed)
    if found is None:
        raise ValueError(f"there is no slice {name} in {place.zone}")
    return found


def show(options: argparse.Namespace, _: Sequence[str]) -> int:
    """``tpu follow``: the log until the run ends; its status."""
    shell, name, place = _named(options)
    found = _there(shell, name, place)
    if found.state != "ACTIVE" or not found.accelerator:
        raise ValueError(f"{name} is {found.state}: nothing runs on it")
    wanted = Slice(name, place, parse_topology(found.accelerator), "on-demand", "")
    try:
        return follow(shell, wanted, Task.poll)
    except Lost as loss:
        raise ValueError(f"{loss}; the command that started it goes on with it") from loss


def state(options: argparse.Namespace, _: Sequence[str]) -> int:
    """``tpu status``: one line on the slice, one on each worker."""
    shell, name, place = _named(options)
    found = _there(shell, name, place)
    tell(f"{name}: {found.state}, {found.accelerator or 'of a type of its own'} {found.error}".rstrip())
    if found.state == "ACTIVE":
        machines, count = tpu_slice.node_state(shell, name, place)
        tell(f"machines: {count}, {machines or 'gone'}")
        for report in tpu_slice.on_workers(shell, name, place, LOOK)[1]:
            tell(f"{report.worker}: {report.word} {report.rest}".rstrip())
    return 0


def fetch(options: argparse.Namespace, _: Sequence[str]) -> int:
    """``tpu fetch``: the run's folder, from the bucket or from the machine."""
    shell, name, place = _named(options)
    job = Job(name, "", options.workdir, (), "")
    wanted = Slice(name, place, parse_topology("v5e-8"), "on-demand", "")
    return 0 if tpu_run.bring_home(shell, Task(wanted, job, "", checks.ROOT, options.bucket)) else 1


def delete(options: argparse.Namespace, _: Sequence[str]) -> int:
    """``tpu delete``: the slice, machines and all."""
    shell, name, place = _named(options)
    return 0 if tpu_slice.delete(shell, name, place) else 1
