"""Cloud TPU VMs as tests see them: the folder of the stand-in of gcloud, and what was asked of it."""

import argparse
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from launch import tpu
from launch.request import name_of
from launch.shell import Shell

STANDINS = Path(__file__).parent / "standins"
FOUR_HOSTS = ("--accelerator=v5litepod-16", "--bucket=gs://my-bucket", "--spot")
TWO_HOSTS = ("--accelerator=v5p-16", "--bucket=gs://my-bucket/team")
SPOT = ("--accelerator=v5e:2x4", "--bucket=gs://my-bucket", "--spot")
ONE_HOST = ("--accelerator=v5e:2x4",)
NAME = name_of("runs/papo")
TRAIN = "mmrl train --config=experiments/tiny.py --workdir=/mnt/bucket/runs/papo --config.seed=3"
PLAN = {
    "model": "a model",
    "plan": {"programs": [{"program": "update", "fit": "fits", "needed_bytes": 8e9, "limit_bytes": 16e9}]},
}


CHECKS = [
    "accelerator-types list",
    "beta quotas info describe",
    "storage buckets describe",
    "describe",
]
UP = ["create", "describe", "-c", "scp", "install", "mount", "start", "look"]


@dataclass
class Cloud:
    """The stand-in's folder, and what the launcher said."""

    state: Path
    root: Path
    said: list[str] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)
    interrupt_at: int = 0  # the wait in which Ctrl-C comes

    def set(self, **scenario) -> None:
        (self.state / "scenario.json").write_text(json.dumps(scenario))

    def endings(self, *lines: str) -> None:
        """How mmrl ends: "SLICE.START WORKER STATUS"; with 0 where nothing is said."""
        (self.state / "endings").write_text("".join(f"{line}\n" for line in lines))

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if len(self.slept) == self.interrupt_at:
            raise KeyboardInterrupt
        if len(self.slept) > 200:
            raise AssertionError("waits for ever")

    def launch(self, *words: str, plan=lambda *_: json.dumps(PLAN), project="--project=my-project") -> int:
        parser = argparse.ArgumentParser()
        tpu.arguments(parser)
        line = ["run", "--config=experiments/tiny.py", "--workdir=runs/papo", "--zone=us-west4-a", *words]
        line += [project] if project else []
        options, rest = parser.parse_known_args(line)
        shell = Shell(say=self.said.append, sleep=self.sleep)
        return tpu.run(options, [*rest, "--config.seed=3"], shell=shell, plan=plan, root=self.root)

    def calls(self) -> list[str]:
        """What was asked of gcloud, in order: its verb, or the verb of worker.sh; repeated ones once."""
        path, found = self.state / "calls.jsonl", []
        for line in path.read_text().splitlines() if path.exists() else ():
            words = json.loads(line)
            run = [word.removeprefix("--command=") for word in words if word.startswith("--command=")]
            if run:
                said = re.sub("bash (mmrl-job/worker.sh )?", "", run[0]).split()[0]
            else:
                said = " ".join(word for word in words[:4] if not re.search("--|papo|gs://", word))
                said = re.sub("compute tpus |queued-resources |tpu-vm ", "", said)
            if said not in (*found[-1:], "log"):
                found.append(said)
        return [call for call in found if call != "log"]

    def since_checks(self) -> list[str]:
        """The same, after what is asked before anything is made."""
        calls = self.calls()
        return calls[calls.index("describe") + 1 :]

    def trained(self) -> list[str]:
        """Each start of mmrl, by slice and worker: "SLICE WORKER words"."""
        return sorted((self.state / "trained").read_text().splitlines())

    def have(self, *states: str, ours: bool = True, accelerator: str = "v5litepod-8") -> None:
        """Have a slice of the run's name there already."""
        told = {"accelerator": accelerator, "hosts": 1, "labels": {"mmrl-launch": "x"} if ours else {}}
        told |= {"states": list(states), "looks": 0, "born": 0}
        (self.state / "slices" / f"{NAME}.json").write_text(json.dumps(told))

    def slices(self) -> list[str]:
        return [path.stem for path in (self.state / "slices").glob("*.json")]

    def heard(self, text: str) -> bool:
        return any(text in line for line in self.said)
