"""Asking Google Cloud through its command: which failures pass by themselves, and what the others mean."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from launch import shell as shells
from launch.shell import Done, Retry, Shell

# Failures of the way to Google Cloud, or of a moment; a quota that is used up is not among them.
_PASSING = re.compile(
    r"UNAVAILABLE|DEADLINE_EXCEEDED|\bINTERNAL\b|HTTPError 50\d|per minute|Connection (reset|refused|aborted)"
    r"|timed out|Temporary failure|Broken pipe|Max retries exceeded",
    re.IGNORECASE,
)
# A machine that has just started knows no key yet; one that is busy drops connections.
_PASSING_SSH = re.compile(
    _PASSING.pattern + r"|return code \[255\]|Permission denied \(publickey|Connection (closed|lost)"
    r"|kex_exchange_identification|No route to host",
    re.IGNORECASE,
)
API = Retry(4, _PASSING)
SSH = Retry(3, _PASSING_SSH, first_wait=10.0)  # of what gcloud has tried ten times itself

_NOT_FOUND = re.compile(r"NOT_FOUND|was not found|could not be found", re.IGNORECASE)
_QUOTA = re.compile(r"quota", re.IGNORECASE)
_STOCKOUT = re.compile(r"no more capacity|insufficient.*capacity|RESOURCE_POOL_EXHAUSTED|stockout", re.I)
_ZONE = re.compile(
    r"(zone|location)\b.*(not found|invalid|unknown|does not exist)|Permission denied on 'loc", re.I
)
_LOGIN = re.compile(r"do not currently have an active account|gcloud auth login|Reauthentication", re.I)
_DENIED = re.compile(r"PERMISSION_DENIED|SERVICE_DISABLED|has not been used in project", re.I)


@dataclass(frozen=True)
class Place:
    """Where Google Cloud is asked to act; without a project, gcloud's own setting holds."""

    zone: str
    project: str | None = None


def ask(
    shell: Shell,
    place: Place,
    words: Sequence[str],
    *,
    zonal: bool = True,
    assumed: str = "",
    retry: Retry = API,
    timeout: float = 600.0,
) -> Done:
    """Run one gcloud command, which never asks back; its failure is in the status."""
    where = [f"--zone={place.zone}"] if zonal else []
    where += [f"--project={place.project}"] if place.project else []
    return shells.run(
        shell, ["gcloud", *words, *where, "--quiet"], assumed=assumed, retry=retry, timeout=timeout
    )


def missing(done: Done) -> bool:
    """Whether a command failed because what it names is not there."""
    return bool(done.status and _NOT_FOUND.search(done.err))


def refused(what: str, message: str, place: Place, quota: str | None = None) -> ValueError:
    """One line on why ``what`` could not be had, with the fix, from what Google Cloud said."""
    said = " ".join(re.sub(r"ERROR: \([\w.-]+\) ", "", message).split())[-400:]
    if _LOGIN.search(message):
        fix = "log in with: gcloud auth login"
    elif _STOCKOUT.search(message):
        fix = f"{place.zone} has no free machines of this kind now: try later, another --zone, or --spot"
    elif _QUOTA.search(message):
        named = f" ({quota})" if quota else ""
        fix = f"the project's quota{named} is too small or used up: ask for more, or delete what holds it"
    elif _ZONE.search(message):
        fix = f"is --zone={place.zone} a zone with TPUs? gcloud compute tpus locations list names them"
    elif _DENIED.search(message):
        fix = "the project, its TPU API or your rights in it: see --project"
    else:
        return ValueError(f"{what}: {said}")
    return ValueError(f"{what}: {fix} (Google Cloud said: {said})")
