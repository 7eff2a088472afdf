"""``python -m launch gke``: a run on slices of a GKE cluster, through XPK and JobSet."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from launch import checks, gke_cluster, gke_follow, gke_image, gke_jobset, gke_run, gke_types, request
from launch.gcloud import Place
from launch.gke_cluster import Cluster, Storage
from launch.gke_run import Task
from launch.job import check_name, name_of
from launch.shell import Shell
from launch.signals import with_signals
from mmrl.terminal import tell

PRIORITIES = ("very-low", "low", "medium", "high", "very-high")


def arguments(parser: argparse.ArgumentParser) -> None:
    """The verbs and what they take."""
    verbs = parser.add_subparsers(dest="verb", required=True)
    sub = verbs.add_parser("run", help="start a run as a workload, and follow it", allow_abbrev=False)
    request.arguments(sub)
    request.remote(sub)
    _place(sub)
    sub.add_argument(
        "--accelerator", required=True, metavar="SLICE", help="v5e:4x4, v5litepod-16, v6e:16x16*2, ..."
    )
    sub.add_argument("--slices", type=int, metavar="N", help="so many of them (default: 1)")
    sub.add_argument("--image", required=True, help="REGISTRY/NAME[:TAG]; without a tag, that of this commit")
    sub.add_argument("--build", action="store_true", help="build the image from launch/Dockerfile; push it")
    sub.add_argument(
        "--storage",
        action="append",
        default=[],
        metavar="NAME",
        help="of the cluster, to be mounted; may be given again",
    )
    sub.add_argument("--priority", choices=PRIORITIES, default="medium", help="(default: %(default)s)")
    sub.add_argument(
        "--restarts", type=int, default=10, metavar="N", help="after lost machines (default: %(default)s)"
    )
    sub.set_defaults(run=run)
    for verb, summary, act in (
        ("follow", "show the log of a run until it ends", show),
        ("status", "say how a workload and its pods stand", status),
        ("delete", "delete a workload", delete),
    ):
        sub = verbs.add_parser(verb, help=summary, allow_abbrev=False)
        _place(sub)
        sub.add_argument("--workdir", metavar="DIR", help="the run's folder")
        sub.add_argument("--name", help="of the workload (default: made of --workdir)")
        sub.add_argument("--dry-run", action="store_true", help="print every command, run none")
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
    plan: checks.Planner | None = None,
    root: Path = checks.ROOT,
) -> int:
    """Check, build the image if asked to, start the workload, follow it to its end; the run's status."""
    shell = replace(shell or Shell(), dry_run=options.dry_run)
    topology = gke_types.slices_of(options.accelerator, options.slices)
    _check(options)
    job, files = request.job(shell, options, overrides, root)
    gke_run.check_mesh(topology, _mesh(options.config, overrides))
    image, says_commit = gke_image.named(options.image, files.tree)
    request.afford(shell, options, job, topology, plan or checks.planner(shell))
    shell.say(f"slices    {job.name}: {gke_types.described(topology)}")
    shell.say(
        f"image     {image}" + ("" if says_commit or options.build else " (of which commit, is not known)")
    )
    if shell.dry_run:
        shell.say("commands  in their order, where nothing goes wrong; none is run")
        shell = replace(shell, say=lambda line: None)
    cluster = _cluster(shell, options)
    shell.say(f"room      {gke_cluster.room(shell, cluster, topology)}")
    mount = Storage("STORAGE", "gcsfuse", str(PurePosixPath(options.workdir).parent), True, False)
    found = gke_cluster.storages(
        shell, cluster, [mount, *(replace(mount, name=one) for one in options.storage)]
    )
    holder = gke_cluster.shared(found, options.storage, options.workdir)
    shell.say(f"storage   {holder.name} ({holder.kind}) at {holder.mount}")
    if options.build:
        shell.say("building  the image, which takes minutes")
        gke_image.build(shell, image, files.tree, root)
    task = Task(cluster, job, topology, image, tuple(options.storage), options.priority, options.restarts)
    with_signals()
    ended = gke_run.supervise(shell, task)
    if ended == 0:
        shell.say(f"results   in {options.workdir}, of storage {holder.name}")
    return ended


def _mesh(config: str, overrides: Sequence[str]) -> tuple[int, int, int, int]:
    from mmrl.config import resolve
    from mmrl.experiment import load

    mesh = resolve(load(config, overrides)).mesh
    return mesh.replica, mesh.data, mesh.fsdp, mesh.tensor


def _check(options: argparse.Namespace) -> None:
    """Raises ValueError where the words alone say that it cannot go well."""
    if options.restarts < 0:
        raise ValueError(f"--restarts={options.restarts}: 0 or more")
    if options.workdir.startswith("gs://"):
        raise ValueError(
            f"--workdir={options.workdir}: name the folder as pods see it, where the bucket is mounted "
            "(xpk storage attach --mount-point=...)"
        )
    path = PurePosixPath(options.workdir)
    if not path.is_absolute() or ".." in path.parts:
        raise ValueError(f"--workdir={options.workdir}: the whole path, as pods see it: /gcs/runs/papo")


def _cluster(shell: Shell, options: argparse.Namespace) -> Cluster:
    """The cluster, which kubectl then knows."""
    cluster = gke_cluster.find(shell, options.cluster, Place(options.zone, options.project))
    gke_cluster.log_in(shell, cluster)
    return cluster


def _named(options: argparse.Namespace) -> tuple[Shell, Cluster, str]:
    if not options.name and not options.workdir:
        raise ValueError("which workload? --name, or the --workdir of its run")
    name = check_name(options.name) if options.name else name_of(options.workdir)
    shell = Shell(dry_run=options.dry_run)
    return shell, _cluster(shell, options), name


def _there(shell: Shell, cluster: Cluster, name: str) -> gke_jobset.State:
    state = gke_jobset.look(shell, cluster, name)
    if shell.dry_run:
        return gke_jobset.State("active", 0, "", "", "", "")
    if state is None:
        raise ValueError(f"there is no workload {name} on {cluster.name}")
    return state


def show(options: argparse.Namespace, _: Sequence[str]) -> int:
    """``gke follow``: the log until the run ends; its status."""
    shell, cluster, name = _named(options)
    _there(shell, cluster, name)
    return gke_follow.follow(shell, cluster, name, Task.poll, from_start=False)


def status(options: argparse.Namespace, _: Sequence[str]) -> int:
    """``gke status``: one line on the workload, one on each pod."""
    shell, cluster, name = _named(options)
    state = _there(shell, cluster, name)
    waits = gke_jobset.queue(shell, cluster, name) if state.phase == "queued" else state.message
    tell(f"{name}: {state.phase}, {state.restarts} restarts {waits}".rstrip())
    for pod in gke_jobset.pods(shell, cluster, name):
        ended = "" if pod.status is None else f" with status {pod.status}"
        tell(f"{pod.name}: {pod.phase}{ended} {pod.stuck}".rstrip())
    return 0


def delete(options: argparse.Namespace, _: Sequence[str]) -> int:
    """``gke delete``: the workload; its run saves its last step first."""
    shell, cluster, name = _named(options)
    _there(shell, cluster, name)
    return 0 if gke_run.delete(shell, cluster, name) else 1
