"""Kill a run at random moments, start it again each time: is the end the same, to the last bit?

    python -m experiments.faults.kill --kills=20 --workdir=DIR
    python -m experiments.faults.kill --signal=TERM --kills=8 --workdir=DIR

A run that has ended is compared with one that nobody disturbed, and the next begins from nothing, until so
many kills were made. SIGKILL comes to all processes of the run and to the main one alone in turns: then its
workers must end by themselves. SIGTERM (a machine that is taken away) and SIGINT (Ctrl-C) must leave a
checkpoint of the last whole step.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path

from experiments.faults import command
from experiments.faults.compare import differences, metric_rows, steps_saved
from experiments.faults.reference import TIMEOUT_S, WHOLE, reference, say, start

# What a kill is aimed at, over and over: "any" is a moment drawn from the length of a whole run.
AIMS = "any,checkpoint,any,workers,any,reward,checkpoint,any"
END_S = 60.0  # a run that is asked to end, and workers whose parent is gone, have ended by then
# What a run is at, once it has said a line that begins so.
PHASES = {
    "rl ": "reinforcement",
    "before:": "reinforcement",
    "resuming after": "reinforcement",
    "sft ": "cold start",
    "resuming the supervised": "cold start",
    "rollout:": "opening, evaluating",
}
CHECKPOINT_S = 0.3  # about what writing a checkpoint takes
WORKERS_S = 1.0  # about what starting a worker takes


@dataclass(frozen=True)
class Kill:
    """One of them: what it was aimed at and what the run was at, as seen from outside."""

    aim: str
    phase: str
    to: str  # which processes got the signal: "all", "main", or the "group" of a terminal
    status: int  # that the main process ended with; negative: the signal that ended it
    seconds: float  # until every process was gone
    faults: tuple[str, ...]  # what should not be


def main() -> int:
    """Print the counts; status 0 if every run ended the same."""
    options = arguments()
    whole_s = reference(options.workdir)
    kills: list[Kill] = []
    rounds: list[list[str]] = []
    for found in disturbed(options, whole_s, kills):
        rounds.append(found)
        say(f"run {len(rounds)} with {len(kills)} kills so far: {'; '.join(found[:3]) or 'identical'}")
        if found and options.stop:
            break
    print(table(options, kills, rounds))
    if options.json:
        report = {"kills": [asdict(kill) for kill in kills], "differences": rounds}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return int(any(rounds) or any(kill.faults for kill in kills))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="for all runs, and what they share")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--signal", choices=("KILL", "TERM", "INT"), default="KILL")
    parser.add_argument("--aims", default=AIMS, help="in turns, with commas (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop", action="store_true", help="at the first run that ended otherwise")
    parser.add_argument("--json", type=Path, help="also write what was found here")
    return parser.parse_args()


def disturbed(options: argparse.Namespace, whole_s: float, kills: list[Kill]) -> Iterator[list[str]]:
    """Runs that are killed and started again; what differs in each, once it has ended. Fills ``kills``."""
    rng = random.Random(options.seed)
    aims = cycle(options.aims.split(","))
    number = signal.Signals[f"SIG{options.signal}"]
    folder = options.workdir / "killed"
    while len(kills) < options.kills:
        shutil.rmtree(folder, ignore_errors=True)
        while True:
            run = start(options.workdir, "killed")
            aim = next(aims) if len(kills) < options.kills else ""
            if aim and command.reached(run, moment(aim, run, rng, whole_s), TIMEOUT_S):
                kills.append(kill(run, aim, number, receivers(number, len(kills))))
                say(f"kill {len(kills)}: {kills[-1]}")
                continue
            status = command.finish(run, TIMEOUT_S)
            left = command.gone(run.mark, END_S)
            if status != 0:
                yield [f"ended with status {status}: {command.tail(run.log)}"]
            elif left is None:
                yield ["processes are left after the run has ended"]
            else:
                yield differences(options.workdir / WHOLE, folder)
            break


def receivers(number: signal.Signals, count: int) -> str:
    """The processes that get the signal: of Ctrl-C the group; else all, or the main process, in turns."""
    if number == signal.SIGINT:
        return "group"
    return ("all", "main")[count % 2]


def moment(aim: str, run: command.Run, rng: random.Random, whole_s: float) -> Callable[[], bool]:
    """True once it has come; the function is asked again and again while the run goes."""
    if aim == "any":
        return elapsed(rng.uniform(0, whole_s))
    if aim == "checkpoint":
        return after(lambda: command.saving(run), rng.uniform(0, CHECKPOINT_S))
    if aim == "workers":
        return after(lambda: bool(command.children(run)), rng.uniform(0, WORKERS_S))
    return at_work(run)


def elapsed(seconds: float) -> Callable[[], bool]:
    """So many seconds from now."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def after(sign: Callable[[], bool], seconds: float) -> Callable[[], bool]:
    """So many seconds after the sign was first seen."""
    end: list[float] = []

    def come() -> bool:
        if not end and sign():
            end.append(time.monotonic() + seconds)
        return bool(end) and time.monotonic() >= end[0]

    return come


def at_work(run: command.Run, quiet_s: float = 0.2) -> Callable[[], bool]:
    """A worker that had waited for something to do has just read what it is to do."""
    seen: dict[int, tuple[int, float]] = {}  # bytes read, and when that was last more than before

    def come() -> bool:
        now, found = time.monotonic(), False
        for pid in command.children(run):
            count, since = command.characters_read(pid), seen.get(pid, (0, now))
            if count != since[0]:
                found |= pid in seen and now - since[1] > quiet_s
                seen[pid] = (count, now)
        return found

    return come


def kill(run: command.Run, aim: str, number: signal.Signals, to: str) -> Kill:
    """Send the signal, and see that all processes end."""
    phase = phase_of(run)
    begin = time.monotonic()
    command.send(run, number, to)
    faults = []
    status = command.finish(run, END_S)
    if status is None:
        faults.append(f"still there {END_S:.0f} s after the signal")
    elif command.gone(run.mark, END_S) is None:
        faults.append("workers outlive the run")
        for pid in command.members(run.mark):
            os.kill(pid, signal.SIGKILL)
    elif number != signal.SIGKILL:
        faults += lost(run)
        # 0: it came after the last step. A shell tells of a signal by the same number.
        if status not in (-number, 128 + number, 0):
            faults.append(f"ended with status {status}: {command.tail(run.log, 3)}")
    seconds = round(time.monotonic() - begin, 2)
    return Kill(aim, phase, to, -signal.SIGKILL if status is None else status, seconds, tuple(faults))


def phase_of(run: command.Run) -> str:
    """The phase of the run, by what it has said and written."""
    if command.saving(run):
        return "checkpoint"
    for line in reversed(command.tail(run.log, 1000).splitlines()):
        for words, phase in PHASES.items():
            if line.startswith(words):
                return phase
    return "start"


def lost(run: command.Run) -> list[str]:
    """Steps that were made, and are not in a checkpoint, of a run that was asked to end."""
    found = []
    # The cold start's end is a model, and no checkpoint.
    done = (run.workdir / "cold_start" / "model" / "config.json").is_file()
    for stage in (".",) if done else (".", "cold_start"):
        rows = metric_rows(run.workdir / stage)
        made = rows[-1]["step"] if rows else 0
        saved = (steps_saved(run.workdir / stage) or [0])[-1]
        # A step whose evaluation was cut short is saved, and logged by the next start.
        if saved not in (made, made + 1):
            found.append(f"{stage}: step {made} was made, {saved} is saved")
    return found


def table(options: argparse.Namespace, kills: list[Kill], rounds: list[list[str]]) -> str:
    """The report as text."""
    lines = [f"SIG{options.signal}, seed {options.seed}: {len(kills)} kills, {len(kills)} restarts", ""]
    aims = sorted({kill.aim for kill in kills})
    lines.append(f"{'killed while at':24}" + "".join(f"{aim:>12}" for aim in aims) + f"{'all':>12}")
    for phase in sorted({kill.phase for kill in kills}):
        counts = Counter(kill.aim for kill in kills if kill.phase == phase)
        lines.append(
            f"{phase:24}" + "".join(f"{counts[aim]:12}" for aim in aims) + f"{sum(counts.values()):12}"
        )
    for to, label in (
        ("all", "all processes"),
        ("main", "the main process"),
        ("group", "a terminal's group"),
    ):
        seconds = [kill.seconds for kill in kills if kill.to == to]
        if seconds:
            lines.append(f"to {label}: {len(seconds)}; nothing left after {max(seconds):.1f} s at most")
    statuses = Counter(kill.status for kill in kills)
    lines.append("exit status: " + ", ".join(f"{status} ({count})" for status, count in statuses.items()))
    lines += [f"fault: {fault}" for kill in kills for fault in kill.faults]
    lines += [f"difference: {line}" for found in rounds for line in found[:10]]
    good = sum(not found for found in rounds)
    lines.append(f"runs that went on to their end: {len(rounds)}, of which identical: {good}")
    return "\n".join(lines)


if __name__ == "__main__":
    with command.none_left():
        sys.exit(main())
