"""Several processes on this machine train together: the same run as of one, and one of them killed.

    python -m experiments.faults.hosts --processes=2,4 --kills=2 --workdir=DIR

Undisturbed, so many processes must come to the metrics of one within 1e-5, by the same responses. With one
of them killed in the middle of a step, the others must end with a word and a status, and the same commands
must go on; to the same bits with as many processes, and within 1e-5 with another number of them.
"""

import argparse
import json
import random
import shutil
import signal
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from experiments.faults import command
from experiments.faults.compare import TIMES, differences, metric_rows, saved_arrays, steps_saved
from experiments.faults.reference import TIMEOUT_S, WHOLE, reference, say

END_S = 60.0  # the others have ended by then
RELATIVE, ABSOLUTE = 1e-5, 1e-8
# Differences of nearly equal numbers: rounding is all there is to compare, and no more than this.
ROUNDING, ROUNDING_ABSOLUTE = ("sampler/", "perception/", "loss/approx_kl", "policy/reference_kl"), 1e-6


@dataclass(frozen=True)
class Loss:
    """One process of several killed."""

    processes: int
    victim: int
    step: int  # the last that had been logged
    seconds: float  # until the last of the others had ended
    statuses: tuple[int, ...]  # of the others; -9: it had to be killed
    words: str  # the last line of one of them
    again: int  # processes that went on
    faults: tuple[str, ...]


def main() -> int:
    """Print what was found; status 0 if it is as it should be."""
    options = arguments()
    reference(options.workdir)
    counts = [int(word) for word in options.processes.split(",")]
    lines, losses, bad = [], [], []
    for count in counts:
        found = undisturbed(options.workdir, count)
        largest = most_apart(options.workdir / WHOLE, options.workdir / folder_of(count))
        lines.append(
            f"{count} processes: weights at most {largest:.1e} from those of one, {len(found)} faults"
        )
        bad += [f"{count} processes: {line}" for line in found]
        say(lines[-1])
    rng = random.Random(options.seed)
    for number in range(options.kills):
        count = counts[number % len(counts)]
        again = count if number % (2 * len(counts)) < len(counts) else rng.choice([1, *counts])
        losses.append(lose_one(options.workdir, count, again, rng))
        bad += losses[-1].faults
        say(f"{losses[-1]}")
    print("\n".join([*lines, *table(losses), *(f"fault: {line}" for line in bad[:20])]))
    print("verdict: " + ("BAD" if bad else "good"))
    if options.json:
        report = {"undisturbed": lines, "losses": [asdict(loss) for loss in losses], "faults": bad}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return int(bool(bad))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="for all runs, and what they share")
    parser.add_argument("--processes", default="2,4", help="how many, with commas (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=4, help="first with as many again, then with others")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write what was found here")
    return parser.parse_args()


def start(workdir: Path, name: str, count: int) -> list[command.Run]:
    """The processes of the run ``workdir / name``; one alone is started as a person would."""
    folder, env = workdir / name, command.environment(workdir / "cache")
    together = [f"--coordinator=localhost:{free_port()}", f"--processes={count}"] if count > 1 else []
    runs = []
    for index in range(count):
        own = [f"--process={index}"] if together else []
        log = workdir / "logs" / f"{name}.{index}.log"
        runs.append(command.start([*command.command(folder), *together, *own], folder, log, env))
    return runs


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def finish(runs: list[command.Run]) -> list[str]:
    """Wait for all; what went wrong."""
    end = time.monotonic() + TIMEOUT_S
    statuses = [command.finish(run, max(1.0, end - time.monotonic())) for run in runs]
    return [
        f"process {index} of {len(runs)} ended with status {status}: {command.tail(run.log, 3)}"
        for index, (run, status) in enumerate(zip(runs, statuses, strict=True))
        if status != 0
    ]


def folder_of(count: int) -> str:
    """The folder of the undisturbed run of so many processes."""
    return WHOLE if count == 1 else f"hosts_{count}"


def undisturbed(workdir: Path, count: int) -> list[str]:
    """A run of so many processes, unless it is there; what is not as in a run of one."""
    folder, mark = workdir / folder_of(count), workdir / f"hosts_{count}.done"
    if not mark.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        begin = time.monotonic()
        found = finish(start(workdir, folder_of(count), count))
        if found:
            return found
        say(f"{count} processes in {time.monotonic() - begin:.0f} s")
        mark.write_text("")
    return apart(workdir / WHOLE, folder)


def apart(left: Path, right: Path) -> list[str]:
    """Differences that are more than rounding: metrics, and the texts of responses."""
    found = []
    for stage in (".", "cold_start"):
        ours, theirs = metric_rows(left / stage), metric_rows(right / stage)
        if not ours or [row["step"] for row in ours] != [row["step"] for row in theirs]:
            found.append(f"{stage}: steps {[row['step'] for row in theirs]}")
            continue
        for row, other in zip(ours, theirs, strict=True):
            if row.keys() != other.keys():
                found.append(f"{stage}, step {row['step']}: only in one: {sorted(row.keys() ^ other.keys())}")
            if row.get("rollout/digest") != other.get("rollout/digest"):
                found.append(f"{stage}, step {row['step']}: other rows or other tokens")
            for name in sorted(row.keys() & other.keys()):
                absolute = ROUNDING_ABSOLUTE if name.startswith(ROUNDING) else ABSOLUTE
                if not name.startswith(TIMES) and not np.isclose(other[name], row[name], RELATIVE, absolute):
                    found.append(f"{stage}, step {row['step']}: {name} {row[name]} and {other[name]}")
    for name in ("responses_before.jsonl", "responses_after.jsonl"):
        if (left / name).read_bytes() != (right / name).read_bytes():
            found.append(f"{name} differs")
    return found


def most_apart(left: Path, right: Path) -> float:
    """The largest difference of any weight after the last step; infinite if one of them is missing."""
    saved = [steps_saved(folder)[-1:] for folder in (left, right)]
    if not saved[0] or saved[0] != saved[1]:
        return float("inf")
    ours, theirs = (saved_arrays(folder / "checkpoints" / str(saved[0][0])) for folder in (left, right))
    names = [name for name in ours if name.startswith("params")]
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in names)


def lose_one(workdir: Path, count: int, again: int, rng: random.Random) -> Loss:
    """Kill one in the middle of a step, see the others end, and go on with ``again`` processes."""
    folder = workdir / "hosts_killed"
    shutil.rmtree(folder, ignore_errors=True)
    runs = start(workdir, "hosts_killed", count)
    victim, step, wait_s = rng.randrange(count), rng.randint(0, 8), rng.uniform(0, 1)
    begun = command.reached(runs[0], lambda: len(metric_rows_so_far(folder)) > step, TIMEOUT_S)
    time.sleep(wait_s)
    logged = len(metric_rows_so_far(folder)) - 1
    command.kill_all(runs[victim])
    begin = time.monotonic()
    others = [run for index, run in enumerate(runs) if index != victim]
    faults = [] if begun else ["ended before one could be killed"]
    statuses = []
    for run in others:
        status = command.finish(run, max(0.1, begin + END_S - time.monotonic()))
        statuses.append(-signal.SIGKILL if status is None else status)
        if status is None or status <= 0:
            faults.append(f"after process {victim} of {count} was killed, another ended with {statuses[-1]}")
        if "mmrl: " not in command.tail(run.log):
            faults.append(f"nothing was said of process {victim} of {count}: {command.tail(run.log, 3)}")
    seconds = time.monotonic() - begin
    left = [run for run in runs if command.gone(run.mark, END_S) is None]
    faults += [f"workers of {len(left)} processes are left"] if left else []
    words = next((line for line in command.tail(others[0].log).splitlines() if "mmrl: " in line), "")
    faults += finish(start(workdir, "hosts_killed", again))
    if again == count:
        faults += differences(workdir / folder_of(count), folder)
    else:
        faults += apart(workdir / WHOLE, folder)
    return Loss(count, victim, logged, round(seconds, 1), tuple(statuses), words, again, tuple(faults))


def metric_rows_so_far(folder: Path) -> list[str]:
    """Lines of ``metrics.jsonl`` that are whole."""
    path = folder / "metrics.jsonl"
    return path.read_text().split("\n")[:-1] if path.is_file() else []


def table(losses: list[Loss]) -> list[str]:
    """One line a process killed."""
    lines = [f"{len(losses)} times one process killed"] if losses else []
    for loss in losses:
        statuses = ", ".join(map(str, loss.statuses))
        lines.append(
            f"{loss.victim} of {loss.processes} after step {loss.step}: the others ended in "
            f"{loss.seconds:.1f} s with status {statuses}; {loss.again} went on; {len(loss.faults)} faults"
        )
    lines += [f"such as: {loss.words}" for loss in losses[:1]]
    return lines


if __name__ == "__main__":
    with command.none_left():
        sys.exit(main())
