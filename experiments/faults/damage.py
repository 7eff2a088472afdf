"""Damage what a run needs, start it: it goes on to the same end, or refuses with one clear line.

    python -m experiments.faults.damage --workdir=DIR
    python -m experiments.faults.damage --what=checkpoint --cases=12 --workdir=DIR

``checkpoint``: every file of the newest one, truncated, with one bit flipped, deleted. ``disk``: a disk that
is full, read-only, or has a file where the folder should be (in a mount namespace of its own; not tried where
the system allows none). ``clock``: jumps of the wall clock. ``twice``: a second run in the folder of one that
goes on.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from experiments.faults import command
from experiments.faults.compare import differences, steps_saved
from experiments.faults.reference import TIMEOUT_S, WHOLE, reference, say, start

CLOCK = Path(__file__).parent / "clock"  # has a sitecustomize.py
SAME, ASIDE, REFUSED = "same end", "older one used, same end", "refused"
FULL_MIB = 3  # left on a disk before it is full: less than a checkpoint, more than all else of some steps


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run: `SAME`, `ASIDE`, `REFUSED`, or what is never good."""

    kind: str
    note: str = ""


@dataclass(frozen=True)
class Case:
    """A fault: how to make it and try the run, and which outcomes are good."""

    name: str
    attempt: Callable[[], Outcome]
    good: tuple[str, ...]


def main() -> int:
    """Print what became of every case; status 0 if all are good."""
    options = arguments()
    reference(options.workdir)
    cases = [case for what in options.what or CASES for case in CASES[what](options.workdir)]
    if options.cases:
        cases = random.Random(options.seed).sample(cases, min(options.cases, len(cases)))
    rows = []
    for case in cases:
        outcome = case.attempt()
        good = outcome.kind in case.good or outcome.kind.startswith("not tried")
        rows.append({"case": case.name, "good": good, **asdict(outcome)})
        say(f"{len(rows)}/{len(cases)} {'' if good else 'BAD '}{case.name}: {outcome.kind}; {outcome.note}")
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return int(not all(row["good"] for row in rows))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="for all runs, and what they share")
    parser.add_argument("--what", action="append", choices=CASES, help="may be given again (default: all)")
    parser.add_argument("--cases", type=int, default=0, help="so many of them, drawn (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the outcomes here")
    return parser.parse_args()


def judged(workdir: Path, name: str, run: command.Run, newest: int = 0) -> Outcome:
    """Wait for the run; what it said, and whether it ended as the undisturbed one did.

    ``newest``: the checkpoint that it should go on from, unless it says something; 0: the undisturbed one's.
    """
    status = command.finish(run, TIMEOUT_S)
    lines = command.tail(run.log, 1000).splitlines()
    if status is None:
        return Outcome("HANGS", command.tail(run.log, 1))
    if status != 0:
        # The last word counts: libraries may have logged their own errors before.
        if status == 2 and lines and lines[-1].startswith("mmrl: "):
            return Outcome(REFUSED, lines[-1].removeprefix("mmrl: "))
        return Outcome("CRASHES", f"status {status}: {command.tail(run.log, 1)}")
    found = differences(workdir / WHOLE, workdir / name)
    if found:
        return Outcome("WRONG", "; ".join(found[:3]))
    newest = newest or steps_saved(workdir / WHOLE)[-1]
    resumed = re.findall(r"resuming after step (\d+)", "\n".join(lines))
    if resumed and int(resumed[-1]) < newest:
        warnings = [line for line in lines if "damaged" in line]
        return Outcome(ASIDE, warnings[0]) if warnings else Outcome("OLDER ONE USED WITHOUT A WORD")
    return Outcome(SAME, f"from step {resumed[-1] if resumed else 0}")


def copy(workdir: Path, name: str) -> Path:
    """A copy of the finished run, to be damaged."""
    folder = workdir / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(workdir / WHOLE, folder)
    return folder


def checkpoint_cases(workdir: Path) -> Iterator[Case]:
    """Every file of the newest checkpoint, in turn; then all checkpoints at once."""
    newest = workdir / WHOLE / "checkpoints" / str(steps_saved(workdir / WHOLE)[-1])
    for path in sorted(path for path in newest.rglob("*") if path.is_file()):
        name = path.relative_to(workdir / WHOLE)
        size = path.stat().st_size
        for how, change in (("truncated", truncate), ("bit flipped", flip), ("deleted", Path.unlink)):
            label = f"{name.relative_to('checkpoints')} ({size} bytes) {how}"
            yield Case(label, partial(try_damaged, workdir, [name], change), (SAME, ASIDE))
    every = [
        path.relative_to(workdir / WHOLE)
        for path in (workdir / WHOLE / "checkpoints").rglob("*")
        if path.is_file() and "params" in path.parts
    ]
    yield Case(
        "weights of every checkpoint truncated", partial(try_damaged, workdir, every, truncate), (REFUSED,)
    )


def try_damaged(workdir: Path, names: list[Path], change: Callable[[Path], None]) -> Outcome:
    """Change those files of a finished run, and start it again."""
    folder = copy(workdir, "damaged")
    for name in names:
        change(folder / name)
    return judged(workdir, "damaged", start(workdir, "damaged"))


def truncate(path: Path) -> None:
    """Leave the first half."""
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    """Turn one bit in the middle."""
    content = bytearray(path.read_bytes())
    if content:
        content[len(content) // 2] ^= 16
        path.write_bytes(content)


def disk_cases(workdir: Path) -> Iterator[Case]:
    """Disks that cannot be written."""
    yield Case("disk full while a checkpoint is written", partial(try_full, workdir), (REFUSED,))
    yield Case("disk read-only, going on", partial(try_read_only, workdir, True), (REFUSED,))
    yield Case("disk read-only, beginning", partial(try_read_only, workdir, False), (REFUSED,))
    yield Case("a file in the place of the folder", partial(try_file, workdir), (REFUSED,))


def try_full(workdir: Path) -> Outcome:
    """On a small disk in memory, from the checkpoint before the newest; then again on a large one."""
    if not may_mount():
        return Outcome("not tried: no mount namespace here")
    folder = copy(workdir, "full")
    shutil.rmtree(folder / "checkpoints" / str(steps_saved(folder)[-1]))
    size = sum(path.stat().st_size + 4096 for path in folder.rglob("*")) // 2**20 + FULL_MIB
    kept = workdir / "kept"
    shutil.rmtree(kept, ignore_errors=True)
    script = (
        f'cp -a "{folder}" "{kept}" && mount -t tmpfs -o size={size}m none "{folder}" && '
        f'cp -a "{kept}/." "{folder}" && rm -r "{kept}" && "$@"; '
        f'status=$?; cp -a "{folder}" "{kept}"; exit $status'
    )
    outcome = judged(workdir, "full", start(workdir, "full", mounted(script)))
    if outcome.kind != REFUSED:
        return outcome
    shutil.rmtree(folder)
    kept.rename(folder)
    return tried_again(workdir, "full", outcome)


def tried_again(workdir: Path, name: str, outcome: Outcome) -> Outcome:
    """A refused run without the fault must come to the same end."""
    newest = (steps_saved(workdir / name) or [0])[-1]
    again = judged(workdir, name, start(workdir, name), newest)
    return Outcome(REFUSED, f"{outcome.note}; then: {again.kind}") if again.kind == SAME else again


def try_read_only(workdir: Path, begun: bool) -> Outcome:
    """The folder mounted read-only, of a finished run or empty."""
    if not may_mount():
        return Outcome("not tried: no mount namespace here")
    folder = copy(workdir, "read_only")
    if not begun:
        shutil.rmtree(folder)
        folder.mkdir()
    script = f'mount --bind "{folder}" "{folder}" && mount -o remount,bind,ro "{folder}" && exec "$@"'
    return judged(workdir, "read_only", start(workdir, "read_only", mounted(script)))


def try_file(workdir: Path) -> Outcome:
    """The folder is a file."""
    folder = workdir / "file"
    folder.write_text("not a folder\n")
    return judged(workdir, "file", start(workdir, "file"))


def mounted(script: str) -> list[str]:
    """The front of a command that runs in a mount namespace that the script prepares."""
    return ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]


def may_mount() -> bool:
    """True if the system allows a mount namespace."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*mounted('"$@"'), "true"], capture_output=True).returncode == 0


def clock_cases(workdir: Path) -> Iterator[Case]:
    """A run whose `time.time` jumps ten seconds after the start, and one where it does so every second."""
    for label, jump_s, every_s, good in (
        ("an hour back", -3600, 0, (SAME,)),
        ("ten years on", 10 * 365 * 86400, 0, (SAME,)),
        # Orbax measures how long it has waited by this clock, and may give up.
        ("to and fro by a day every second", 86400, 1, (SAME, REFUSED)),
    ):
        yield Case(f"clock jumps {label}", partial(try_clock, workdir, jump_s, every_s), good)


def try_clock(workdir: Path, jump_s: int, every_s: int) -> Outcome:
    """A whole run under that clock; if it is refused, once more under a good one."""
    shutil.rmtree(workdir / "clock", ignore_errors=True)
    paths = os.pathsep.join([str(CLOCK), str(command.ROOT), os.environ.get("PYTHONPATH", "")])
    more = {"PYTHONPATH": paths, "CLOCK_JUMP_S": str(jump_s), "CLOCK_EVERY_S": str(every_s)}
    outcome = judged(workdir, "clock", start(workdir, "clock", **more))
    return tried_again(workdir, "clock", outcome) if outcome.kind == REFUSED else outcome


def twice_cases(workdir: Path) -> Iterator[Case]:
    """A second run in the folder of one that goes."""
    yield Case("a second run in the folder of one that goes", partial(try_twice, workdir), (REFUSED,))


def try_twice(workdir: Path) -> Outcome:
    """The second is refused, and the first ends as if it had been alone."""
    shutil.rmtree(workdir / "twice", ignore_errors=True)
    first = start(workdir, "twice")
    command.reached(first, lambda: "\nsft " in command.tail(first.log, 1000), TIMEOUT_S)
    log = workdir / "logs" / "second.log"
    words = command.command(workdir / "twice")
    second = command.start(words, workdir / "twice", log, command.environment(workdir / "cache"))
    refused, ended = judged(workdir, "twice", second), judged(workdir, "twice", first)
    if refused.kind != REFUSED or ended.kind != SAME:
        return Outcome("BOTH RUN", f"second: {refused}; first: {ended}")
    return refused


def table(rows: list[dict]) -> str:
    """Counts of outcomes, what was said, and what is not as it should be."""
    lines = [f"{len(rows)} cases"]
    lines += [f"{count:6} {kind}" for kind, count in Counter(row["kind"] for row in rows).most_common()]
    said = {row["kind"]: row for row in rows if row["note"]}
    lines += [f"such as: {row['case']}: {row['note'][:300]}" for row in said.values()]
    lines += [f"BAD: {row['case']}: {row['kind']}; {row['note'][:300]}" for row in rows if not row["good"]]
    lines.append("verdict: " + ("good" if all(row["good"] for row in rows) else "BAD"))
    return "\n".join(lines)


CASES = {
    "checkpoint": checkpoint_cases,
    "disk": disk_cases,
    "clock": clock_cases,
    "twice": twice_cases,
}

if __name__ == "__main__":
    with command.none_left():
        sys.exit(main())
