"""``mmrl generate``: responses to prompts."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mmrl.commands import options as option
from mmrl.commands import weights
from mmrl.commands.options import Command
from mmrl.terminal import tell

if TYPE_CHECKING:
    from mmrl.data.sources import Source
    from mmrl.sample import Sample

_SILENT = (*weights.TRAINING, "episode", "evaluation", "reward")
_ELSEWHERE = {
    "evaluation.temperature": "--temperature",
    "evaluation.top_p": "--top-p",
    "evaluation.samples": "--n",
    "rollout.group": "--n",
}


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    weights.add_arguments(sub)
    sub.add_argument(
        "--prompts",
        type=option.text,
        required=True,
        metavar="DATA",
        help="a data set; no row needs an answer",
    )
    sub.add_argument("--out", type=option.path, required=True, help="JSONL to be written")
    sub.add_argument(
        "--n", type=option.count, default=1, help="responses to each prompt (default: %(default)s)"
    )


def run(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Sample, and write a line a response."""
    settings = weights.overrides_of(
        options,
        overrides,
        {"rollout.prompt_slots": weights.BATCH},
        weights.OPTIONS | {"batch": ("rollout.prompt_slots",)},
        _SILENT,
        weights.ELSEWHERE | _ELSEWHERE,
    )
    config, model, load = weights.open_weights(options, settings)
    from mmrl.atomic import as_json, atomic_file
    from mmrl.data.sources import read
    from mmrl.train.completions import choose_buckets, complete

    source = read(options.prompts, image_root=config.data.image_root or None, answered=False)
    weights.check_out(options.out, "--prompts", source.table.files)
    samples = list(read_prompts(source))
    buckets = choose_buckets(samples, config, model)
    total = len(samples) * options.n
    with atomic_file(options.out) as part, part.open("w", encoding="utf-8") as file:
        _, params = load()
        with weights.show_progress(total) as show:
            for row in complete(samples, buckets, config, model, params, n=options.n, on_response=show):
                file.write(as_json(row) + "\n")
                file.flush()
    tell(f"{total} responses to {len(samples)} prompts in {options.out}")


def read_prompts(source: "Source") -> Iterator["Sample"]:
    """The rows of a prompt file, called by file and line. Raises ValueError naming the first bad one."""
    from mmrl.data.validation import reason

    for index in range(len(source)):
        place = source.place(index)
        try:
            yield replace(source[index], id=place)
        except ValueError as error:
            raise ValueError(f"{place}: {reason(error, source.id(index))}") from error


_EXAMPLES = """\
examples:
  mmrl generate --model=DIR --prompts=prompts.jsonl --out=out.jsonl --n=4 --temperature=0.7 --top-p=0.9
  mmrl generate --workdir=runs/quickstart --step=STEP --prompts=prompts.jsonl --out=out.jsonl

Prompts are read like other data (docs/data.md), without answers. In JSONL, a prompt is a line:
{"problem": "<image>What is this?", "images": ["photo.png"]}.
--config.KEY=VALUE overrules the run's config, or the defaults.
Out: one object a response, with its tokens, text, logprobs (of the distribution sampled from) and stop."""
GENERATE = Command(
    "generate", "Sample responses to prompts.", _EXAMPLES, add_arguments, run, takes_config=True
)
