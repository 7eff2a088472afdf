"""Google Cloud's command: which failures pass by themselves, and what the others mean."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from launch import shell as shells
from launch.shell import Done, Retry, Shell

# Failures of the way to Google Cloud, or of a moment; a quota that is used up is not among them.
_PASSING = (
    r"UNAVAILABLE|DEADLINE_EXCEEDED|\bINTERNAL\b|HTTPError 50\d|per minute|Connection (reset|refused|aborted)"
    r"|timed out|Temporary failure|Broken pipe|Max retries exceeded"
)
# A machine that has just started knows no key yet; one that is busy drops connections.
_PASSING_SSH = (
    r"return code \[255\]|Permission denied \(publickey|Connection (closed|lost)"
    r"|kex_exchange_identification|No route to host"
)
API = Retry(4, re.compile(_PASSING, re.IGNORECASE))
SSH = Retry(3, re.compile(f"{_PASSING}|{_PASSING_SSH}", re.IGNORECASE), first_wait=10.0)
NOT_FOUND = re.compile(r"NOT_FOUND|was not found|could not be found", re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """A zone of Google Cloud; without a project, gcloud's own setting holds."""

    zone: str
    project: str | None = None

    @property
    def region(self) -> str:
        """The region of the zone."""
        return self.zone.rpartition("-")[0]

    @property
    def flags(self) -> list[str]:
        """The place as options."""
        return [f"--zone={self.zone}", *([f"--project={self.project}"] if self.project else [])]


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
    where = place.flags if zonal else place.flags[1:]
    return shells.run(
        shell, ["gcloud", *words, *where, "--quiet"], assumed=assumed, retry=retry, timeout=timeout
    )


def missing(done: Done) -> bool:
    """True if a command failed because what it names is not there."""
    return bool(done.status and NOT_FOUND.search(done.err))


def refusal(what: str, message: str, place: Place, quota: str | None = None) -> ValueError:
    """One line on why ``what`` could not be had, with the fix, from what Google Cloud said."""
    said = " ".join(re.sub(r"ERROR: \([\w.-]+\) ", "", message).split())[-400:]
    named = f" ({quota})" if quota else ""
    fixes = {
        r"do not currently have an active account|gcloud auth login|Reauthentication": (
            "log in with: gcloud auth login"
        ),
        r"no more capacity|insufficient.*capacity|RESOURCE_POOL_EXHAUSTED|stockout": (
            f"{place.zone} has no free machines of this kind now: try later, another --zone, or --spot"
        ),
        "quota": f"the project's quota{named} is too small or used up: ask for more, or delete what holds it",
        r"(zone|location)\b.*(not found|invalid|unknown|does not exist)|Permission denied on 'loc": (
            f"is --zone={place.zone} a zone with TPUs? gcloud compute tpus locations list names them"
        ),
        "PERMISSION_DENIED|SERVICE_DISABLED|has not been used in project": (
            "the project, its TPU API or your rights in it: see --project"
        ),
    }
    for pattern, fix in fixes.items():
        if re.search(pattern, message, re.IGNORECASE):
            return ValueError(f"{what}: {fix} (Google Cloud said: {said})")
    return ValueError(f"{what}: {said}")
