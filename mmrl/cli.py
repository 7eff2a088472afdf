"""The commands: ``mmrl train | sft | eval | generate | export | plan | bench | data``."""

import argparse
import re
import sys
from pathlib import Path

from mmrl.commands import data, runs

_EXAMPLES = {
    "train": """\
examples:
  mmrl train --config=experiments/quickstart.py
  mmrl train --config=experiments/quickstart.py:smoke --config.algorithm.name=vppo --workdir=runs/vppo
  mmrl train --config=experiments/papo_qwen2_5_vl_3b.py --config.model.path=DIR \\
      --config.data.train=FILE.parquet

An interrupted run goes on from its last checkpoint when called again with the same --workdir.
On several hosts, start the same command on each, with --coordinator=auto on Cloud TPU.""",
    "sft": """\
examples:
  mmrl sft --config=experiments/quickstart.py --workdir=runs/cold

Runs the supervised stage of a config (config.cold_start) and writes a Hugging Face directory to
WORKDIR/cold_start/model.""",
    "eval": """\
examples:
  mmrl eval --workdir=runs/quickstart --data=heldout.parquet --samples=8
  mmrl eval --model=DIR --data=FILE.parquet --max-tokens=2048 --out=responses.jsonl

Prints the mean of every reward component as JSON. With --workdir, the run's config says how.""",
    "generate": """\
examples:
  mmrl generate --model=DIR --prompts=prompts.jsonl --out=out.jsonl --n=4 --temperature=0.7 --top-p=0.9
  mmrl generate --workdir=runs/quickstart --step=STEP --prompts=prompts.jsonl --out=out.jsonl

A prompt is a JSON object a line: {"problem": "<image>What is this?", "images": ["photo.png"]}.
Out: one object a response, with its tokens, text, logprobs (of the distribution sampled from) and stop.""",
    "export": """\
examples:
  mmrl export --workdir=runs/quickstart --out=policy
  mmrl export --workdir=runs/quickstart --step=STEP --out=policy-step --dtype=bfloat16

Writes a Hugging Face directory that transformers loads.""",
    "plan": """\
examples:
  mmrl plan --config=experiments/papo_qwen2_5_vl_7b.py --model-size=7b --topology=v5p:4x4x4 --per-shard=1
  mmrl plan --config=experiments/papo_qwen2_5_vl_7b.py --config.model.path=DIR --config.mesh.tensor=4 \\
      --topology=v5e:4x4 --per-shard=1 --program=update --quick
  mmrl plan --config=experiments/papo_qwen2_5_vl_3b.py --model-size=3b --smallest=v5e --quick

Compiles the programs of a run for TPUs that need not be there, and says what they need of a device. No
weights are read. A topology is a slice by its chips (v6e:8x8) or its Google Cloud name (v5p-128), "*2" behind
it two slices. Needs libtpu: pip install "mmrl[tpu]".""",
    "bench": """\
examples:
  mmrl bench --config=experiments/quickstart.py
  mmrl bench --config=experiments/papo_qwen2_5_vl_3b.py --model-size=3b --config.train.update_prompts=8 \\
      --config.rollout.lanes=8 --program=decode --program=update --json=bench.json

Times the programs of a run on the devices that are there, at their largest shapes, with random weights.""",
    "data": """\
examples:
  mmrl data shapes --out=shapes --train=4096 --heldout=512 --seed=0 --sheet=shapes.png

Writes cold_start, train and heldout.parquet of the built-in world, and its untrained model.""",
}

_WITH_CONFIG = ("train", "sft", "plan", "bench")  # commands that take --config.KEY=VALUE


def main(argv: list[str] | None = None) -> int:
    """Run one command; a mistake of the caller's is one line on stderr and exit status 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    known, rest = parser.parse_known_args(arguments)
    try:
        wrong = [word for word in rest if known.command not in _WITH_CONFIG or not _is_override(word)]
        if wrong:
            raise ValueError(f"unknown argument {wrong[0]!r}; see mmrl {known.command} --help")
        known.run(known, rest)
    except ValueError as error:
        print(f"mmrl: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mmrl: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _is_override(word: str) -> bool:
    return re.match(r"--config\.[\w.]+=", word) is not None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mmrl", description="Multimodal policy optimization in JAX.")
    subparsers = parser.add_subparsers(dest="command", required=True)

    def command(name: str, summary: str, run) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=_EXAMPLES[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        sub.set_defaults(run=run)
        return sub

    for name, summary, run in (
        ("train", "Run every stage of an experiment, reinforcement learning last.", runs.train),
        ("sft", "Run the supervised stage of an experiment.", runs.sft),
    ):
        sub = command(name, summary, run)
        _experiment(sub)
        sub.add_argument(
            "--workdir", type=Path, help="the run's folder (default: runs/<name of the experiment>)"
        )
        _hosts(sub)
    _evaluation(command("eval", "Measure a model or a run on a data file.", runs.evaluate))
    _generation(command("generate", "Sample responses to prompts.", runs.generate))
    _planning(command("plan", "Compile a run for TPUs, and say what fits.", runs.plan))
    _benchmark(command("bench", "Time the programs of a run where we are.", runs.bench))
    sub = command("export", "Write a step of a run as a Hugging Face directory.", runs.export)
    sub.add_argument("--workdir", type=Path, required=True, help="the run's folder")
    sub.add_argument("--step", type=int, help="which checkpoint (default: the newest)")
    sub.add_argument("--out", type=Path, required=True, help="directory to be made")
    sub.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the weights (default: %(default)s)",
    )
    _data(command("data", "Make data.", data.shapes))
    return parser


def _source_of_weights(sub: argparse.ArgumentParser) -> None:
    where = sub.add_mutually_exclusive_group(required=True)
    where.add_argument("--model", type=Path, help="a Hugging Face directory")
    where.add_argument("--workdir", type=Path, help="a run's folder")
    sub.add_argument("--step", type=int, help="which checkpoint of the run (default: the newest)")
    sub.add_argument(
        "--temperature", type=float, help="0 takes the most likely token (default: 1, or the run's)"
    )
    sub.add_argument("--top-p", type=float, help="nucleus (default: 1, or the run's)")
    sub.add_argument("--max-tokens", type=int, help="of a response (default: 512, or the run's)")
    sub.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    sub.add_argument("--batch", type=int, default=32, help="prompts at a time (default: %(default)s)")


def _evaluation(sub: argparse.ArgumentParser) -> None:
    _source_of_weights(sub)
    sub.add_argument("--data", required=True, help="a data set, or several with commas between")
    sub.add_argument("--samples", type=int, default=1, help="responses to each prompt (default: %(default)s)")
    sub.add_argument(
        "--out", type=Path, help="also write every response, with its grades, to this JSONL file"
    )


def _generation(sub: argparse.ArgumentParser) -> None:
    _source_of_weights(sub)
    sub.add_argument("--prompts", type=Path, required=True, help="JSONL")
    sub.add_argument("--out", type=Path, required=True, help="JSONL to be written")
    sub.add_argument("--n", type=int, default=1, help="responses to each prompt (default: %(default)s)")


def _experiment(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--config",
        required=True,
        metavar="FILE[:ARG]",
        help="an experiment; its keys are overruled by --config.KEY=VALUE",
    )


def _hosts(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("several processes, started with the same command each")
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="where process 0 listens, or auto on machines that know it (Cloud TPU, Slurm)",
    )
    group.add_argument("--processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")


def _programs(sub: argparse.ArgumentParser) -> None:
    _experiment(sub)
    sub.add_argument(
        "--model-size",
        metavar="SIZE",
        help="a published model: 3b, 7b, 32b or 72b (default: what config.model.path holds)",
    )
    sub.add_argument(
        "--program",
        action="append",
        choices=("prefill", "decode", "score", "update"),
        help="only this one; may be given again (default: all)",
    )


def _planning(sub: argparse.ArgumentParser) -> None:
    _programs(sub)
    where = sub.add_mutually_exclusive_group(required=True)
    where.add_argument("--topology", help="what to compile for")
    where.add_argument(
        "--smallest", metavar="GENERATION", help="find the smallest slice on which every program fits"
    )
    sub.add_argument(
        "--per-shard",
        type=int,
        metavar="N",
        help="prompts at once for each part of a batch (default: the config's batches; 1 with --smallest)",
    )
    sub.add_argument("--suggest", action="store_true", help="also look for the largest batches that fit")
    sub.add_argument("--quick", action="store_true", help="compile in haste: verdicts, no cycle sums")
    sub.add_argument("--json", action="store_true", help="print one JSON object")
    sub.set_defaults(workdir=None)


def _benchmark(sub: argparse.ArgumentParser) -> None:
    _programs(sub)
    sub.add_argument(
        "--workdir", type=Path, help="for paths of the config (default: runs/<name of the experiment>)"
    )
    sub.add_argument("--repeats", type=int, default=5, help="timed calls (default: %(default)s)")
    sub.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the numbers here; - prints them, and no table"
    )


def _data(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("world", choices=("shapes",), help="which data")
    sub.add_argument("--out", type=Path, required=True, help="directory to be made")
    sub.add_argument("--cold-start", type=int, default=4096, help="rows (default: %(default)s)")
    sub.add_argument("--train", type=int, default=4096, help="rows (default: %(default)s)")
    sub.add_argument("--heldout", type=int, default=512, help="rows (default: %(default)s)")
    sub.add_argument("--prior", type=float, help="how strongly a question suggests its answer, 0 to 1")
    sub.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    sub.add_argument("--sheet", type=Path, help="also draw some examples to this PNG")


if __name__ == "__main__":
    sys.exit(main())
