"""A run as a workload on a cluster, from the request to its end, and what is done after each failure."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from launch import gke_cluster, gke_follow, gke_jobset, gke_types
from launch.gke_cluster import Cluster
from launch.job import Job, train_words
from launch.shell import Done, Shell
from launch.signals import Terminated
from mmrl.plan.chips import Topology

# Seconds that pods have to save the last step before they are killed. Spot machines leave about 25 of them.
GRACE_S = 300
_ROOM = re.compile(r"cluster only contains|supports up to|is not present on the cluster|insufficient", re.I)


@dataclass(frozen=True)
class Task:
    """A job, the slices it is to run on, and how.

    Attributes:
      image: with its tag.
      storages: of the cluster, to be mounted beside those that always are.
      restarts: how often the JobSet may make all pods anew.
      poll: seconds between two looks.
    """

    cluster: Cluster
    job: Job
    topology: Topology
    image: str
    storages: tuple[str, ...] = ()
    priority: str = "medium"
    restarts: int = 10
    poll: float = 10.0


def supervise(shell: Shell, task: Task) -> int:
    """Have the workload run, and follow it to its end; its status.

    Raises:
      ValueError: it cannot be made, or cannot start (what was made is deleted then), or the cluster does not
        answer any more.
    """
    name, cluster = task.job.name, task.cluster
    try:
        made = _get(shell, task)
        return gke_follow.follow(shell, cluster, name, task.poll, from_start=made)
    except KeyboardInterrupt as error:
        if gke_jobset.look(shell, cluster, name):
            shell.say(f"left      {name} goes on; {_verbs(task)}")
        return 143 if isinstance(error, Terminated) else 130
    except gke_follow.Stuck as error:
        what = "is deleted" if delete(shell, cluster, name) else "is still there"
        raise ValueError(f"{error}; {name} would wait for ever, and {what}") from error
    except ValueError as error:
        if "kubectl" in str(error):
            raise ValueError(f"{error}; if {name} is there, it goes on: {_verbs(task)}") from error
        raise


def _verbs(task: Task) -> str:
    place = task.cluster.place
    at = f"--name={task.job.name} --cluster={task.cluster.name} --zone={place.zone} --project={place.project}"
    return f"the same command follows it again, python -m launch gke delete {at} ends it"


def command(task: Task) -> str:
    """What each pod runs, for bash."""
    several = gke_types.machines(task.topology) > 1
    words = train_words(task.job, task.job.workdir, *(["--coordinator=auto"] if several else []))
    # XPK's script sends SIGTERM to the shell that it starts; so mmrl must be that process.
    return f"exec {shlex.join(words)}"


def _get(shell: Shell, task: Task) -> bool:
    """Have the workload there, and whether it was made now: one that runs already is left to.

    Raises:
      ValueError: another one has its name, or it cannot be made.
    """
    name = task.job.name
    state = gke_jobset.look(shell, task.cluster, name)
    if state and state.phase in ("completed", "failed"):
        shell.say(f"workload  {name} of before has {state.phase}")
        delete(shell, task.cluster, name)
    elif state:
        if state.image != task.image or command(task) not in state.command:
            raise ValueError(f"{name} is there and runs something else: take another --name, or delete it")
        shell.say(f"workload  {name} is there, {state.phase}")
        return False
    _create(shell, task)
    return True


def _create(shell: Shell, task: Task) -> None:
    """Raises ValueError if XPK could not make the workload."""
    name = task.job.name
    words = ["workload", "create", f"--workload={name}", f"--tpu-type={gke_types.tpu_type(task.topology)}"]
    words += [f"--num-slices={task.topology.slices}", f"--docker-image={task.image}"]
    words += [f"--storage={one}" for one in task.storages]
    words += [f"--priority={task.priority}", f"--max-restarts={task.restarts}"]
    # A process ends with 75 when another one is gone; XPK counts that as a mistake of the program.
    words += [f"--restart-on-exit-codes={gke_follow.LOST}"]
    words += [f"--termination-grace-period-seconds={GRACE_S}", f"--command={command(task)}"]
    tries = 3
    for left in range(tries - 1, -1, -1):
        done = gke_cluster.xpk(shell, task.cluster, *words, retry=None)
        if not done.status:
            break
        # Not tried again blindly: XPK asks before it makes what is there already.
        if gke_jobset.look(shell, task.cluster, name):
            shell.say(f"workload  made, though xpk then failed: {gke_cluster.said(done)}")
            break
        if not (left and gke_cluster.API.transient.search(done.out + done.err)):
            raise _refused(task, done)
        shell.say(f"{gke_cluster.said(done)}; trying again in {task.poll:g} s ({left} left)")
        shell.sleep(task.poll)
    shell.say(f"workload  {name} on {gke_types.described(task.topology)}")


def _refused(task: Task, done: Done) -> ValueError:
    said = gke_cluster.said(done)
    if "validate your docker image" in said:
        fix = f"--image={task.image} is not there, or the cluster may not read it: --build makes it"
    elif _ROOM.search(said):
        fix = f"{task.cluster.name} has no room for {gke_types.described(task.topology)}"
    elif "invalid choice" in said or "system characteristics" in said:
        fix = f"this xpk does not know {gke_types.tpu_type(task.topology)}: pip install --upgrade xpk"
    else:
        return ValueError(f"xpk workload create: {said}")
    return ValueError(f"{fix} (xpk said: {said})")


def delete(shell: Shell, cluster: Cluster, name: str) -> bool:
    """Delete a workload, its pods having time to save; whether it is gone."""
    done = gke_cluster.xpk(shell, cluster, "workload", "delete", f"--workload={name}", "--force")
    try:
        gone = not done.status and gke_jobset.look(shell, cluster, name) is None
    except ValueError:
        gone = False
    if gone:
        shell.say(f"deleted   {name}")
    else:
        shell.say(
            f"left      {name} could not be deleted, and may go on at its cost: {gke_cluster.said(done)}"
        )
    return gone


def check_mesh(topology: Topology, mesh: Sequence[int]) -> None:
    """That the mesh of the run (replica, data, fsdp, tensor) goes with the slices and their machines.

    Raises:
      ValueError: it does not; the key of the config is named.
    """
    replica, tensor = mesh[0], mesh[3]
    if replica != topology.slices:
        raise ValueError(
            f"config.mesh.replica={replica}, and there {'are' if topology.slices > 1 else 'is'} "
            f"{topology.slices} slice{'s' if topology.slices > 1 else ''}: say "
            f"--config.mesh.replica={topology.slices} (each slice has a copy of everything)"
        )
    here = gke_types.devices_a_machine(topology)
    if gke_types.machines(topology) > 1 and (tensor > here or here % max(tensor, 1)):
        raise ValueError(
            f"config.mesh.tensor={tensor} would reach over machines, which have {here} devices each: "
            f"say --config.mesh.tensor={here} or a divisor of it"
        )
