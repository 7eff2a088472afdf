"""A GKE cluster as tests see it: the folder of the stand-ins, and what was asked of them."""

import argparse
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from launch import gke
from launch.request import name_of
from launch.shell import Shell

WORKDIR = "/gcs/runs/papo"
NAME = name_of(WORKDIR)
IMAGE = "us-docker.pkg.dev/my-project/team/mmrl:tag"
PLACE = ("--cluster=my-cluster", "--zone=us-west4-a", "--project=my-project")
TWO_SLICES = ("--accelerator=v5e:4x4", "--slices=2", "--config.mesh.replica=2")
PLAN = {
    "model": "a model",
    "plan": {"programs": [{"program": "update", "fit": "fits", "needed_bytes": 8e9, "limit_bytes": 16e9}]},
}
FOLLOWING = ("get pods", "get workloads.kueue.x-k8s.io")
CHECKS = ["gcloud container clusters", "xpk workload list", "get configmap", "get storages.xpk.x-k8s.io"]


@dataclass
class Workloads:
    """The stand-ins' folder, and what the launcher said."""

    state: Path
    root: Path
    said: list[str] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)
    interrupt_at: int = 0  # the wait in which Ctrl-C comes
    plans: list[str] = field(default_factory=list)  # topologies that mmrl plan was asked about

    def set(self, **scenario) -> None:
        (self.state / "scenario.json").write_text(json.dumps(scenario))

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if len(self.slept) == self.interrupt_at:
            raise KeyboardInterrupt
        if len(self.slept) > 50:
            raise AssertionError("waits for ever")

    def plan(self, job, topology, size) -> str:
        self.plans.append(f"{topology.generation} {topology.dims} {topology.slices}")
        return json.dumps(PLAN)

    def launch(self, *words: str, workdir: str = WORKDIR, image: str = IMAGE) -> int:
        line = ["run", "--config=experiments/tiny.py", f"--workdir={workdir}", f"--image={image}", *PLACE]
        options, rest = self.parsed([*line, *(words or TWO_SLICES)])
        shell = Shell(say=self.said.append, sleep=self.sleep)
        return gke.run(options, rest, shell=shell, plan=self.plan, root=self.root)

    def verb(self, *words: str) -> int:
        options, rest = self.parsed([*words, *PLACE])
        return options.run(options, rest)

    def parsed(self, words):
        parser = argparse.ArgumentParser()
        gke.arguments(parser)
        return parser.parse_known_args(words)

    def words(self) -> list[list[str]]:
        path = self.state / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def calls(self) -> list[str]:
        """What was asked, in order, but for pods and logs; what is asked several times in a row once."""
        found: list[str] = []
        for program, *words in self.words():
            plain = [word for word in words if not word.startswith("--")]
            call = " ".join(plain[:2] if program == "kubectl" else [program, *plain[:2]])
            call = re.sub(f" (/|us-docker|my-cluster-|{NAME}).*", "", call)
            if call not in (*found[-1:], *FOLLOWING) and not call.startswith("logs"):
                found.append(call)
        return found

    def created(self) -> list[list[str]]:
        return [words[1:] for words in self.words() if words[:3] == ["xpk", "workload", "create"]]

    def there(self) -> bool:
        return (self.state / "jobset.json").exists()

    def heard(self, text: str) -> bool:
        return any(text in line for line in self.said)
