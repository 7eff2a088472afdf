"""mmrl beside its peers: the same random model and prompts, on this machine, in turns, in one call.

    python -m experiments.peers.compare --what=generate --size=tiny --batch=8 --new=64
    python -m experiments.peers.compare --what=step --size=mid --peer-python=PATH --json=FILE
    python -m experiments.peers.compare --what=text_step --peer-python=PATH

``generate``: transformers. ``step``: TRL. ``text_step``: Tunix. Each runs in a process of its own under
``--peer-python``, which needs that peer's packages and not mmrl. Run it from a clone of the repository.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax

from experiments.peers.measure import MARK, median
from experiments.peers.models import SIZES, write_model, write_prompts

ROOT = Path(__file__).parents[2]
PEERS = {"generate": "transformers_generate", "step": "trl_step", "text_step": "tunix_step"}
BUSY = 0.25  # processors in the hands of others, from where wall time says little
_PARTS = ("data", "rollout", "processor", "reward", "score", "prepare", "update", "other")
_ROLLOUT = ("prefill", "decode", "host")
_COUNTS = ("images_preprocessed", "vision_patches")


def main() -> None:
    """Compare, print the table, and write the JSON if it is asked for."""
    options = arguments()
    jax.config.update("jax_platforms", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        model, prompts = Path(folder) / options.size, Path(folder) / "prompts"
        write_model(model, options.size)
        write_prompts(prompts)
        common = [f"--model={model}", f"--prompts={prompts}", *shared_flags(options)]
        results: dict[str, list[dict[str, Any]]] = {"mmrl": []}
        reason = ""
        for _ in range(options.rounds):
            ours = "mmrl_rollout" if options.what == "generate" else "mmrl_step"
            extra = ["--text"] if options.what == "text_step" else []
            results["mmrl"].append(run(sys.executable, ours, [*common, *extra], options.timeout))
            if not reason:
                try:
                    theirs = run(options.peer_python, PEERS[options.what], common, options.timeout)
                    results.setdefault(PEERS[options.what], []).append(theirs)
                except RuntimeError as error:
                    reason = str(error)
    report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {"processors": os.cpu_count(), "kind": processor(), "system": platform.platform()},
        "settings": {key: str(value) for key, value in vars(options).items()},
        "results": results,
        "peer_missing": reason,
    }
    print(table(report, options))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    """The command line; ``--quick`` is the least that shows that all works."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--what", choices=PEERS, default="generate")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--batch", type=int, default=8, help="generate: responses to the one prompt")
    parser.add_argument("--prompts-per-step", type=int, help="steps: 4 of tiny, 2 of mid unless given")
    parser.add_argument("--group", type=int, default=8, help="steps: responses a prompt")
    parser.add_argument("--new", type=int, default=64, help="response tokens, forced")
    parser.add_argument("--long-tailed", action="store_true", help="step: of log-normal lengths up to --new")
    parser.add_argument("--runs", type=int, default=3, help="timed a round")
    parser.add_argument("--rounds", type=int, default=2, help="mmrl, peer, mmrl, peer, ...")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a busy machine")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has the peer")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for one process")
    parser.add_argument("--quick", action="store_true", help="tiny, few tokens, one run, one round")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.size, options.new, options.runs, options.rounds = "tiny", 16, 1, 1
        options.batch, options.prompts_per_step, options.group = 2, 2, 4
    if options.prompts_per_step is None:
        options.prompts_per_step = {"tiny": 4, "mid": 2}[options.size]
    if options.clock == "cpu" and options.threads > 1:
        parser.error("--clock=cpu says something of one thread only: add --threads=1")
    return options


def shared_flags(options: argparse.Namespace) -> list[str]:
    """Flags that the scripts of both sides take."""
    flags = [f"--new={options.new}", f"--runs={options.runs}", f"--threads={options.threads}"]
    if options.what == "generate":
        return [*flags, f"--batch={options.batch}"]
    if options.long_tailed and options.what == "step":
        flags.append("--long-tailed")
    return [*flags, f"--prompts-per-step={options.prompts_per_step}", f"--group={options.group}"]


def run(python: str, script: str, flags: list[str], timeout: float) -> dict[str, Any]:
    """One script in a process of its own.

    Raises:
      RuntimeError: it failed; the message is its last line.
    """
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "0"}
    command = [python, "-m", f"experiments.peers.{script}", *flags]
    print(f"peers: {script} ...", file=sys.stderr, flush=True)
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"{script}: {error}") from error
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not lines:
        said = done.stderr.strip().splitlines() or ["no output"]
        raise RuntimeError(f"{script}: {said[-1]}")
    return json.loads(lines[-1].removeprefix(MARK))


def table(report: dict[str, Any], options: argparse.Namespace) -> str:
    """The report as text."""
    machine, results = report["machine"], report["results"]
    settings = f"{options.what}, {options.size}, {options.new} new tokens, float32, {options.clock} seconds"
    lines = [f"{settings}, {options.threads} threads; {machine['kind']}; {report['date'][:10]}"]
    for name, rounds in results.items():
        found = ", ".join(f"{key} {value}" for key, value in rounds[0]["versions"].items())
        lines.append(f"{name}: {found}; peak {max(one['peak_mib'] for one in rounds)} MiB")
    rows = generate_rows if options.what == "generate" else step_rows
    lines += ["", *rows(results, options)]
    readings = [reading for rounds in results.values() for one in rounds for reading in flat(one)]
    others = max((reading["others"] for reading in readings if reading.get("others") is not None), default=0)
    if others > BUSY:
        lines.append(f"other programs used up to {others} processors meanwhile: compare with care")
    if report["peer_missing"]:
        lines.append(f"no peer: {report['peer_missing']}")
    return "\n".join(lines)


def flat(result: dict[str, Any]) -> list[dict[str, Any]]:
    """All clock readings of one process."""
    modes = result.get("modes", {}).values()
    return result.get("steps", []) + [reading for mode in modes for kind in mode.values() for reading in kind]


def generate_rows(results: dict[str, list], options: argparse.Namespace) -> list[str]:
    """One line a mode; its ratio is that of its total to mmrl's."""
    names = [(side, mode) for side, rounds in results.items() for mode in rounds[0]["modes"]]
    lines = [f"{'':32}{'total s':>9}{'first s':>9}{'ms/step':>9}{'tok/s':>9}{'x mmrl':>8}"]
    ours, step = 0.0, 0.0
    for side, mode in names:
        pooled = {
            kind: [reading for one in results[side] for reading in one["modes"][mode][kind]]
            for kind in ("total", "first")
        }
        total, first = (median(pooled[kind], options.clock) for kind in ("total", "first"))
        each = 1e3 * (total - first) / max(options.new - 1, 1)
        ours, step = (total, each) if mode == "mmrl" else (ours, step)
        label = mode if side == mode else f"{side.split('_')[0]} {mode}"
        rate = options.batch * options.new / total
        lines.append(f"{label:32}{total:9.3f}{first:9.3f}{each:9.2f}{rate:9.0f}{total / ours:8.2f}")
    floor = min((one["floor"] for one in results["mmrl"]), key=lambda found: found["milliseconds"])
    lines.append(
        f"floor of mmrl's step {floor['milliseconds']:.2f} ms: {floor['bytes'] / 1e6:.1f} MB at "
        f"{floor['bytes_per_second'] / 1e9:.1f} GB/s, {floor['flops'] / 1e9:.3f} GFLOP at "
        f"{floor['flops_per_second'] / 1e9:.0f} GFLOP/s; reached {floor['milliseconds'] / step:.0%}"
    )
    parts = {name: statistics.median(one["parts"][name] for one in results["mmrl"]) for name in _ROLLOUT}
    chunks = results["mmrl"][0]["chunks"]
    shown = ", ".join(f"{name} {1e3 * seconds:.1f}" for name, seconds in parts.items())
    lines.append(
        f"mmrl's rollout, wall ms: {shown}; {chunks:.0f} chunks, the host's part of a chunk "
        f"{parts['host'] / (parts['host'] + parts['decode']):.1%}"
    )
    return lines


def step_rows(results: dict[str, list], options: argparse.Namespace) -> list[str]:
    """One line a side: the step, and where its time goes (wall seconds)."""
    pooled = {side: [step for one in rounds for step in one["steps"]] for side, rounds in results.items()}
    ours = median(pooled["mmrl"], options.clock)
    lines = []
    for side, steps in pooled.items():
        seconds = median(steps, options.clock)
        rate = results[side][0]["tokens"] / seconds
        lines.append(f"{side:12}{seconds:9.3f} s a step{rate:9.0f} tok/s{seconds / ours:7.2f} x mmrl")
        parts = [f"{name} {median(steps, name):.3f}" for name in _PARTS if name in steps[0]]
        counts = [f"{name} {median(steps, name):.0f}" for name in _COUNTS if name in steps[0]]
        lines.append(f"{'':12} wall seconds: {', '.join(parts)}; {', '.join(counts)}")
    return lines


def processor() -> str:
    """Its name, where the system tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    names = [line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
