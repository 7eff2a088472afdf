"""What is to run: one run of ``mmrl train``, told apart from where it runs."""

import hashlib
import re
import shlex
from dataclasses import dataclass

OTHERS = (75, 134)  # statuses of a process of a run that ended because another one did
NAME_LENGTH = 40  # of a job; Google Cloud allows 63, and launchers append to it


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
      name: of what is made for it: lower-case letters, digits and hyphens.
      config: an experiment, FILE[:ARG], relative to the root of the clone.
      workdir: the run's folder, as the user says it.
      overrides: ``--config.KEY=VALUE`` words.
      commit: the commit whose files run, 40 hexadecimal digits.
      dirty: changes that are not committed run too.
    """

    name: str
    config: str
    workdir: str
    overrides: tuple[str, ...]
    commit: str
    dirty: bool = False


def train_words(job: Job, workdir: str, *more: str) -> list[str]:
    """The command that every process of the run starts, its folder being ``workdir`` there."""
    return ["mmrl", "train", f"--config={job.config}", f"--workdir={workdir}", *job.overrides, *more]


def name_of(workdir: str) -> str:
    """A job's name made of its folder: the same folder has the same name, another has another.

    "runs/papo_g/seed1" gives "papo-g-seed1-" and six digits that stand for the whole path.
    """
    path = workdir.rstrip("/")
    readable = re.sub("[^a-z0-9]+", "-", "-".join(path.lower().split("/")[-2:])).strip("-")
    readable = re.sub("^(?![a-z])", "r-", readable.removeprefix("runs-"))
    digest = hashlib.sha256(path.encode()).hexdigest()[:6]
    return f"{readable[: NAME_LENGTH - 7].rstrip('-')}-{digest}"


def check_name(name: str) -> str:
    """The name as it is.

    Raises:
      ValueError: Google Cloud and Kubernetes would not take it.
    """
    if not re.fullmatch(f"[a-z]([-a-z0-9]{{0,{NAME_LENGTH - 2}}}[a-z0-9])?", name):
        raise ValueError(
            f"--name={name}: at most {NAME_LENGTH} lower-case letters, digits and hyphens, a letter first"
        )
    return name


def text(job: Job) -> str:
    """The job on one line, as a person would type it."""
    return shlex.join(train_words(job, job.workdir))
