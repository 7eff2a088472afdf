"""The commands: ``mmrl train | sft | eval | generate | export | plan | bench | data``."""

import argparse
import errno
import io
import os
import platform
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn

from mmrl.commands import data, datasets, option_types, report, runs, sampling, suite, sweep
from mmrl.suggest import suggest
from mmrl.terminal import refuse, tell

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
  mmrl eval --suite=experiments/suites/papers.py:smoke --workdir=runs/quickstart

Prints the mean of every reward component as JSON. With --workdir, the run's config says how, with --model the
defaults do; --config.KEY=VALUE overrules either. A suite is several benchmarks, and says how by itself
(docs/evaluation.md).""",
    "generate": """\
examples:
  mmrl generate --model=DIR --prompts=prompts.jsonl --out=out.jsonl --n=4 --temperature=0.7 --top-p=0.9
  mmrl generate --workdir=runs/quickstart --step=STEP --prompts=prompts.jsonl --out=out.jsonl

Prompts are read like other data (docs/data.md), without answers. In JSONL, a prompt is a line:
{"problem": "<image>What is this?", "images": ["photo.png"]}.
--config.KEY=VALUE overrules the run's config, or the defaults.
Out: one object a response, with its tokens, text, logprobs (of the distribution sampled from) and stop.""",
    "export": """\
examples:
  mmrl export --workdir=runs/quickstart --out=exported
  mmrl export --workdir=runs/quickstart --step=STEP --out=exported-step --dtype=bfloat16

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
      --config.rollout.prompt_slots=8 --program=decode --program=update --json=bench.json

Times the programs of a run on the devices that are there, at their largest shapes, with random weights.""",
    "report": """\
examples:
  mmrl report runs/quickstart runs/vppo --out=report.html

One HTML page about runs, which needs no other file and no network.""",
    "sweep": sweep.EXAMPLES,
    "data": """\
examples:
  mmrl data inspect FILE.parquet --model=DIR --out=report.html
  mmrl data convert --from=coco instances.json --images=photos --out=train.parquet
  mmrl data pretext --images=photos --rows=10000 --out=pretext.parquet
  mmrl data shapes --out=shapes

Each of them explains itself: mmrl data inspect --help.""",
    "data shapes": """\
examples:
  mmrl data shapes --out=shapes --train=4096 --heldout=512 --seed=0 --sheet=shapes.png

Writes cold_start, train and heldout.parquet of the built-in world, and its untrained model.""",
    "data inspect": """\
examples:
  mmrl data inspect FILE.parquet
  mmrl data inspect DIR:train --model=MODEL --out=report.html --examples=24
  mmrl data inspect FILE.parquet --config=experiments/papo_qwen2_5_vl_3b.py --config.model.path=MODEL \\
      --out=folder --rows=2000

DATA is whatever config.data.train may name: a file, a folder, an image folder, a split, tfds:NAME. With a
config tokens, buckets and grading are those of the run; with --model alone, those of the defaults.""",
    "data convert": """\
examples:
  mmrl data convert --from=llava chat.json --images=photos --out=train.parquet
  mmrl data convert --from=coco instances.json --images=photos --out=detect.parquet --coordinates=thousand
  mmrl data convert --from=coco instances.json --images=photos --out=ground.jsonl --task=ground
  mmrl data convert --from=choice questions.csv --images=photos --out=choice.parquet --embed

llava: conversations. coco: instances, or a list of {"file_name", "bbox", "sentence"}. choice: a question with
"options", "choices" or columns A, B, ..., and an "answer". questions: these or open ones, under any columns;
mmrl data list NAME has the flags for public data sets. Read from JSON, JSONL, CSV, TSV or parquet.""",
    "data list": """\
examples:
  mmrl data list --use=train
  mmrl data list mathvista

What is known of public data sets, and the commands that convert them.""",
    "data pretext": """\
examples:
  mmrl data pretext --images=photos --rows=10000 --out=pretext.parquet
  mmrl data pretext --images=photos --tasks=jigsaw,patch_order --grid=3x3 --rows=4000 --out=jigsaw.parquet
  mmrl data pretext --images=photos --tasks=caption_error --captions=captions.json --rows=1000 \\
      --out=words.parquet

Questions with answers that are known because they are made: no label is needed. Take images of training data,
never those of a benchmark.""",
}

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE)  # that some calls report without a name
# Commands that take --config.KEY=VALUE.
_WITH_CONFIG = ("train", "sft", "eval", "generate", "sweep", "plan", "bench", "data inspect")


def main(argv: list[str] | None = None) -> int:
    """Run one command; a mistake of the caller's is one line on stderr and exit status 2."""
    for stream in (sys.stdout, sys.stderr):  # what an encoding lacks is escaped, and ends no command
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    parser = _parser()
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    try:
        known, rest = parser.parse_known_args(words)
        _check_words(known.name, rest)
        known.run(known, rest)
    except ValueError as error:
        refuse(error)
        return 2
    except KeyboardInterrupt:
        tell("mmrl: interrupted; the same command goes on from the last checkpoint", error=True)
        return 130
    except BrokenPipeError:  # as in mmrl data list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.filename is None and error.errno not in _DISK:
            tell(traceback.format_exc(), error=True)
            return 1
        refuse(_said(error))
        return 2
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, MemoryError):  # the first is JAX's word
            tell(
                f"mmrl: out of memory ({str(error).partition(chr(10))[0]}): fewer prompts at once (--batch),"
                " smaller images (config.data.max_pixels) or shorter responses (--max-tokens) take less",
                error=True,
            )
            return 1
        tell(traceback.format_exc(), error=True)
        return 1
    return 0


def _said(error: OSError) -> str:
    """What went wrong with which file."""
    said = error.strerror or str(error)
    named = isinstance(error.filename, str | bytes | os.PathLike)
    return f"{os.fsdecode(error.filename)}: {said}" if named else said


def _check_words(name: str, rest: Sequence[str]) -> None:
    """Raises ValueError if a command was given words that it does not take."""
    wrong = next((word for word in rest if name not in _WITH_CONFIG or not _is_override(word)), None)
    if wrong is None:
        return
    if name in _WITH_CONFIG and wrong.startswith("--config."):
        raise ValueError(f"{wrong} has no value: write {wrong}=VALUE, in one word")
    raise ValueError(f"unknown argument {wrong!r}; see mmrl {name} --help")


def _versions() -> str:
    """Of mmrl, Python and jax, as a report of a bug begins."""
    found = []
    for name in ("mmrl", "jax"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name}, not installed as a package")
    return f"{found[0]} (Python {platform.python_version()}, {found[1]})"


def _is_override(word: str) -> bool:
    return re.match(r"--config\.[^=]+=", word) is not None


class _Parser(argparse.ArgumentParser):
    """Reads words; those that it cannot read are a ValueError."""

    def error(self, message: str) -> NoReturn:
        wrong = re.match(r"argument .*: invalid choice: '(.*)' \(choose from (.*)\)", message, re.DOTALL)
        if wrong:
            choices = [one.strip(" '") for one in wrong[2].split(",")]
            message = f"there is no '{wrong[1]}'{suggest(wrong[1], choices)}"
        raise ValueError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mmrl",
        description="Multimodal policy optimization in JAX.",
        epilog="Begin with mmrl train --config=experiments/quickstart.py; mmrl COMMAND --help has examples.",
    )
    parser.add_argument("--version", action="version", version=_versions())
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    parser.set_defaults(name="", run=lambda options, rest: _without_command(parser))

    def command(name: str, summary: str, run) -> argparse.ArgumentParser:
        return _command(subparsers, name, summary, run)

    for name, summary, run in (
        ("train", "Run every stage of an experiment, reinforcement learning last.", runs.train),
        ("sft", "Run the supervised stage of an experiment.", runs.sft),
    ):
        sub = command(name, summary, run)
        _experiment(sub)
        sub.add_argument(
            "--workdir",
            type=option_types.path,
            help="the run's folder (default: runs/<name of the experiment>)",
        )
        _hosts(sub)
    _evaluation(command("eval", "Measure a model or a run on data, or on a suite.", suite.run))
    _generation(command("generate", "Sample responses to prompts.", sampling.generate))
    _planning(command("plan", "Compile a run for TPUs, and say what fits.", runs.plan))
    _benchmark(command("bench", "Time the programs of a run where we are.", runs.bench))
    sub = command("export", "Write a step of a run as a Hugging Face directory.", runs.export)
    sub.add_argument("--workdir", type=option_types.path, required=True, help="the run's folder")
    sub.add_argument("--step", type=option_types.integer(0), help="which checkpoint (default: the newest)")
    sub.add_argument("--out", type=option_types.path, required=True, help="directory to be made")
    sub.add_argument("--push", metavar="ORG/NAME", help="also upload it to the Hugging Face hub")
    sub.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the weights (default: %(default)s)",
    )
    report.arguments(command("report", "Write a page about runs.", report.run))
    sweep.arguments(command("sweep", "Run an ablation, and make its table.", sweep.run))
    _data(command("data", "Look at data, convert it, and make it.", None))
    return parser


def _without_command(parser: argparse.ArgumentParser) -> NoReturn:
    tell(parser.format_help(), error=True)
    raise ValueError("name a command")


def _command(subparsers, name: str, summary: str, run) -> argparse.ArgumentParser:
    """The parser of a command, whose name is its words; ``run`` does it, None if words must follow."""
    sub = subparsers.add_parser(
        name.split()[-1],
        help=summary,
        description=summary,
        epilog=_EXAMPLES[name],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    sub.set_defaults(run=run, name=name)
    return sub


def _source_of_weights(sub: argparse.ArgumentParser, required: bool = True) -> None:
    where = sub.add_mutually_exclusive_group(required=required)
    where.add_argument(
        "--model", type=option_types.path, help="a Hugging Face directory, or ORG/NAME[@REVISION] of the hub"
    )
    where.add_argument("--workdir", type=option_types.path, help="a run's folder")
    sub.add_argument(
        "--step", type=option_types.integer(0), help="which checkpoint of the run (default: the newest)"
    )
    sub.add_argument(
        "--temperature", type=float, help="0 takes the most likely token (default: 1, or the run's)"
    )
    sub.add_argument("--top-p", type=float, help="nucleus (default: 1, or the run's)")
    sub.add_argument(
        "--max-tokens", type=option_types.count, help="of a response (default: 512, or the run's)"
    )
    sub.add_argument("--seed", type=option_types.seed, help="(default: 0)")
    sub.add_argument(
        "--batch", type=option_types.count, help=f"prompts at a time (default: {sampling.BATCH})"
    )


def _evaluation(sub: argparse.ArgumentParser) -> None:
    _source_of_weights(sub, required=False)  # --again names them
    suite.arguments(sub)


def _generation(sub: argparse.ArgumentParser) -> None:
    _source_of_weights(sub)
    sub.add_argument(
        "--prompts",
        type=option_types.text,
        required=True,
        metavar="DATA",
        help="a data set; no row needs an answer",
    )
    sub.add_argument("--out", type=option_types.path, required=True, help="JSONL to be written")
    sub.add_argument(
        "--n", type=option_types.count, default=1, help="responses to each prompt (default: %(default)s)"
    )


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
    where.add_argument("--topology", help="the slice to compile for")
    where.add_argument(
        "--smallest", metavar="GENERATION", help="find the smallest slice on which every program fits"
    )
    sub.add_argument(
        "--per-shard",
        type=option_types.count,
        metavar="N",
        help="prompts at once for each part of a batch (default: the config's batches; 1 with --smallest)",
    )
    sub.add_argument("--suggest", action="store_true", help="also look for the largest batches that fit")
    sub.add_argument(
        "--quick", action="store_true", help="compile without optimization: verdicts, no cycle sums"
    )
    sub.add_argument("--json", action="store_true", help="print one JSON object")
    sub.set_defaults(workdir=None)


def _benchmark(sub: argparse.ArgumentParser) -> None:
    _programs(sub)
    sub.add_argument(
        "--workdir",
        type=option_types.path,
        help="for paths of the config (default: runs/<name of the experiment>)",
    )
    sub.add_argument(
        "--repeats", type=option_types.count, default=5, help="timed calls (default: %(default)s)"
    )
    sub.add_argument(
        "--json",
        type=option_types.path,
        metavar="FILE",
        help="also write the numbers here; - prints them, and no table",
    )


def _data(sub: argparse.ArgumentParser) -> None:
    kinds = sub.add_subparsers(dest="what", required=True, metavar="WHAT")
    datasets.arguments(_command(kinds, "data list", "Tell of public data sets.", datasets.run))
    _inspection(
        _command(kinds, "data inspect", "Show what is in a data set, and what is wrong.", data.inspect)
    )
    _conversion(_command(kinds, "data convert", "Make rows of data in another layout.", data.convert))
    _pretext(_command(kinds, "data pretext", "Make questions out of images alone.", data.pretext))
    _shapes(_command(kinds, "data shapes", "Write the shapes world.", data.shapes))


def _inspection(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("data", type=option_types.text, metavar="DATA", help="the data set")
    sub.add_argument(
        "--model",
        type=option_types.path,
        help="a Hugging Face directory, or ORG/NAME[@REVISION], whose tokens are counted",
    )
    sub.add_argument(
        "--config", metavar="FILE[:ARG]", help="an experiment that is to use it; also --config.KEY=VALUE"
    )
    sub.add_argument(
        "--out",
        type=option_types.path,
        metavar="PATH",
        help="also write a page (PATH.html), a picture of examples (PATH.png), or both (a folder)",
    )
    sub.add_argument(
        "--rows",
        type=option_types.count,
        metavar="N",
        help="look at so many rows, evenly spread (default: all)",
    )
    sub.add_argument(
        "--examples",
        type=option_types.integer(0),
        default=12,
        metavar="N",
        help="rows that are shown (default: %(default)s)",
    )
    sub.set_defaults(workdir=None)


def _conversion(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("data", type=option_types.path, metavar="IN", help="what to convert")
    layouts = ("llava", "coco", "choice", "questions")
    sub.add_argument("--from", dest="layout", choices=layouts, required=True, help="its layout")
    sub.add_argument(
        "--images", type=option_types.path, required=True, metavar="DIR", help="where its image paths start"
    )
    sub.add_argument("--out", type=option_types.path, required=True, help="parquet or JSONL to be written")
    sub.add_argument("--embed", action="store_true", help="put images into the file instead of paths")
    sub.add_argument(
        "--max-broken",
        type=option_types.share,
        default=0.01,
        help="share that may be unusable (default: %(default)s)",
    )
    group = sub.add_argument_group("llava")
    group.add_argument(
        "--turns", choices=("each", "first"), help="which questions of a conversation (default: each)"
    )
    group.add_argument(
        "--verifier", metavar="NAME,...", help="what grades, the first that can (default: text)"
    )
    group = sub.add_argument_group("coco")
    group.add_argument(
        "--task",
        choices=("detect", "ground"),
        help="all objects of an image (default), or the only one of a category",
    )
    group.add_argument(
        "--coordinates",
        choices=("pixels", "unit", "thousand"),
        help="of answers: pixels of the image (default), 0 to 1, or 0 to 1000",
    )
    group = sub.add_argument_group("choice")
    group.add_argument(
        "--answer",
        choices=("letter", "index", "text"),
        help="what the answer is; index counts from 0 (default: what fits a row)",
    )
    datasets.question_arguments(sub)


def _pretext(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--images", required=True, metavar="DATA", help="a folder of images at any depth, or a data set"
    )
    sub.add_argument("--out", type=option_types.path, required=True, help="parquet to be written")
    sub.add_argument("--rows", type=option_types.count, required=True, metavar="N", help="how many")
    sub.add_argument("--tasks", metavar="NAME,...", help="by default all that need no captions")
    sub.add_argument(
        "--captions", type=option_types.path, metavar="FILE", help="captions of the images, for caption_error"
    )
    sub.add_argument("--seed", type=option_types.seed, default=0, help="(default: %(default)s)")
    sub.add_argument("--side", type=int, default=336, help="pixels of a picture (default: %(default)s)")
    sub.add_argument(
        "--grid", default="2x2", metavar="ROWSxCOLUMNS", help="of a jigsaw (default: %(default)s)"
    )
    sub.add_argument("--patches", type=int, default=4, help="of a patch order (default: %(default)s)")
    sub.add_argument(
        "--gap",
        type=float,
        default=0.1,
        help="share of a tile's side that is cut away, so that edges do not tell (default: %(default)s)",
    )


def _shapes(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--out", type=option_types.path, required=True, help="directory to be made")
    sub.add_argument(
        "--cold-start", type=option_types.integer(0), default=4096, help="rows (default: %(default)s)"
    )
    sub.add_argument(
        "--train", type=option_types.integer(0), default=4096, help="rows (default: %(default)s)"
    )
    sub.add_argument(
        "--heldout", type=option_types.integer(0), default=512, help="rows (default: %(default)s)"
    )
    sub.add_argument("--prior", type=float, help="how strongly a question suggests its answer, 0 to 1")
    sub.add_argument("--seed", type=option_types.seed, default=0, help="(default: %(default)s)")
    sub.add_argument("--sheet", type=option_types.path, help="also draw some examples to this PNG")


if __name__ == "__main__":
    sys.exit(main())
