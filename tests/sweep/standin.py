"""Stands in for ``mmrl train``: does what ``told.json`` in the folder $STANDIN says of a run, in moments.

Adds a line to ``events`` there for whatever it does.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

HERE = Path(os.environ["STANDIN"])


def event(*words: str) -> None:
    with (HERE / "events").open("a") as file:
        file.write(" ".join(words) + "\n")


def wait_for_others(together: int, runs: int) -> None:
    """Until so many run at once, or all have been started; not for ever."""
    start = time.monotonic()
    while time.monotonic() - start < 20:
        seen = [line.split()[0] for line in (HERE / "events").read_text().splitlines()]
        if seen.count("start") == runs or seen.count("start") - seen.count("end") >= together:
            return
        time.sleep(0.02)


def main() -> None:
    workdir = Path(
        next(word for word in sys.argv if word.startswith("--workdir=")).removeprefix("--workdir=")
    )
    name = f"{workdir.parent.name}/{workdir.name}"
    runs = json.loads((HERE / "told.json").read_text())
    told = runs[name]

    def stop(number: int, _: object) -> None:
        event("signal", name, str(number))
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    event("start", name)
    (workdir / "config.json").write_text(json.dumps(told["config"]))
    for stage in ("world", "cold_start"):
        if not (workdir / stage / "model").is_dir():
            event("make", name, stage)
            time.sleep(told["stage_seconds"])
            (workdir / stage / "model").mkdir(parents=True)
            (workdir / stage / "model" / "weights").write_text(f"of {name}")
            (workdir / stage / "model" / "config.json").write_text("{}")
    wait_for_others(told["together"], len(runs))
    time.sleep(told["seconds"])
    if told["fails"]:
        print("step 1\nout of memory \x1b[31m<b>")
        sys.exit(3)
    with (workdir / "metrics.jsonl").open("w") as file:
        for step, height in enumerate(told["heights"]):
            file.write(json.dumps({"step": step, "heldout/accuracy": height}) + "\n")
    (workdir / "summary.json").write_text("{}")
    event("end", name)


main()
