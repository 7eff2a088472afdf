"""Some hundred steps of a tiny run: does it grow, slow down, or leave something behind?

    python -m experiments.faults.soak --steps=300 --workdir=DIR

Looks at the run from outside, once a second: memory, processor time, processes, threads and open files of
the main process and of its children. The first tenth of the steps, in which programs are compiled and caches
fill, counts for nothing. Threads and files come and go with every checkpoint, so that their least number
counts. Processor seconds judge a step's time, since wall time is also that of whatever else the machine does.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.faults import command
from experiments.faults.compare import metric_rows

TIMEOUT_S = 3600.0
LOOK_S = 1.0
PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")  # of processor time in a second
# Of the last third over the first, as a factor; of what is not named here, none at all.
MOST_GROWTH = {"memory, MiB": 1.05, "workers' memory, MiB": 1.05, "processor s a step": 1.15}
# Not "flat": so few steps do not tell a slow leak from memory in pieces; the slope is printed for that.
BOUNDS = ", ".join(f"{name} x {factor}" for name, factor in MOST_GROWTH.items())


@dataclass(frozen=True)
class Look:
    """The run at one moment."""

    step: int
    processor: float  # seconds so far, all threads of the main process
    memory: int  # bytes resident, main process
    workers_memory: int  # bytes resident, its children together
    processes: int
    threads: int  # of the main process
    files: int  # open in the main process
    workers_files: int


def main() -> int:
    """Print the table and a verdict; status 0 if all is well."""
    options = arguments()
    folder = options.workdir / "soak"
    shutil.rmtree(folder, ignore_errors=True)
    flags = (f"--config.train.steps={options.steps}", "--config.train.evaluate_every=30")
    log, env = options.workdir / "logs" / "soak.log", command.environment(options.workdir / "cache")
    run = command.start(command.command(folder, flags), folder, log, env)
    looks = watch(run)
    status = command.finish(run, TIMEOUT_S)
    if status != 0:
        print(f"the run failed with status {status}:\n{command.tail(run.log)}")
        return 1
    left = command.members(run.mark)
    seconds = [row["time/step"] for row in metric_rows(folder) if "time/step" in row]
    found = faults(looks, left)
    print(table(looks, seconds, left))
    print("\n".join(f"fault: {line}" for line in found) or f"verdict: within bounds {BOUNDS}")
    if options.json:
        report = {"looks": [asdict(look) for look in looks], "seconds": seconds, "faults": found}
        options.json.write_text(json.dumps(report) + "\n")
    return int(bool(found))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="for the run, and compiled programs")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", type=Path, help="also write every look here")
    return parser.parse_args()


def watch(run: command.Run) -> list[Look]:
    """A look a second, from the first step on, until the run ends."""
    looks: list[Look] = []
    end = time.monotonic() + TIMEOUT_S
    while run.process.poll() is None and time.monotonic() < end:
        look = look_at(run)
        if look is not None:
            looks.append(look)
        time.sleep(LOOK_S)
    return looks


def look_at(run: command.Run) -> Look | None:
    """None before the first step, and while the run ends."""
    main, others = run.process.pid, command.children(run)
    try:
        step = (run.workdir / "metrics.jsonl").read_text().count("\n") - 1
        if step < 1:
            return None
        return Look(
            step=step,
            processor=processor_seconds(main),
            memory=resident(main),
            workers_memory=sum(map(resident, others)),
            processes=1 + len(others),
            threads=len(os.listdir(f"/proc/{main}/task")),
            files=len(os.listdir(f"/proc/{main}/fd")),
            workers_files=sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in others),
        )
    except OSError:
        return None


def resident(pid: int) -> int:
    """Bytes of memory that a process has in use."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def processor_seconds(pid: int) -> float:
    """Of all its threads, in user and system mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def thirds(values: list) -> tuple[list, list]:
    """The first and the last."""
    size = max(1, len(values) // 3)
    return values[:size], values[-size:]


def settled(looks: list[Look]) -> list[Look]:
    """Those after the first tenth of the steps, and before the last, in which a run lets go of all."""
    last = looks[-1].step
    return [look for look in looks if last / 10 < look.step < last]


def faults(looks: list[Look], left: list[int]) -> list[str]:
    """Faults, a line each: what grows or is left."""
    early, late = (summary(part) for part in thirds(settled(looks)))
    found = [f"{len(left)} processes are left"] if left else []
    for name, before in early.items():
        if late[name] > before * MOST_GROWTH.get(name, 1):
            found.append(f"{name}: {before:.4g}, in the end {late[name]:.4g}")
    return found


def summary(looks: list[Look]) -> dict[str, float]:
    """Of some looks in a row."""
    first, last = looks[0], looks[-1]
    return {
        "memory, MiB": statistics.median(look.memory for look in looks) / 2**20,
        "workers' memory, MiB": statistics.median(look.workers_memory for look in looks) / 2**20,
        "processes": min(look.processes for look in looks),
        "threads": min(look.threads for look in looks),
        "open files": min(look.files for look in looks),
        "workers' open files": min(look.workers_files for look in looks),
        "processor s a step": (last.processor - first.processor) / max(1, last.step - first.step),
    }


def table(looks: list[Look], seconds: list[float], left: list[int]) -> str:
    """A table of the first and last third; ``seconds``: wall time of every step."""
    kept = settled(looks)
    early, late = (summary(part) for part in thirds(kept))
    lines = [f"{len(seconds)} steps, {len(looks)} looks", f"{'third':24}{'first':>12}{'last':>12}"]
    lines += [f"{name:24}{before:12.4g}{late[name]:12.4g}" for name, before in early.items()]
    first, last = (statistics.median(part) for part in thirds(seconds[len(seconds) // 10 :]))
    lines.append(f"{'wall s a step':24}{first:12.4g}{last:12.4g}")
    lines.append(f"memory a step in the last two thirds: {slope(kept[len(kept) // 3 :]) / 2**10:.1f} KiB")
    lines.append(f"processes left after the end: {len(left)}")
    return "\n".join(lines)


def slope(looks: list[Look]) -> float:
    """Bytes of memory that a step adds, by least squares."""
    if len({look.step for look in looks}) < 2:
        return 0.0
    return statistics.linear_regression(
        [look.step for look in looks], [float(look.memory) for look in looks]
    ).slope


if __name__ == "__main__":
    with command.none_left():
        sys.exit(main())
