"""``mmrl data inspect``: contents of a data set, and what is wrong with it."""

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl.commands import options as option
from mmrl.commands.options import Command, open_experiment
from mmrl.terminal import rewrite, tell

if TYPE_CHECKING:
    from mmrl.config import Config
    from mmrl.data.inspection import Findings
    from mmrl.data.pipeline import PromptFormat
    from mmrl.data.sources import Source
    from mmrl.models.processor import Processor
    from mmrl.sample import Sample

PATIENCE_S = 2.0  # after which a command shows its progress
LISTED = 20  # broken entries


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    sub.add_argument("data", type=option.text, metavar="DATA", help="the data set")
    sub.add_argument(
        "--model",
        type=option.path,
        help="a Hugging Face directory, or ORG/NAME[@REVISION], whose tokens are counted",
    )
    sub.add_argument(
        "--config", metavar="FILE[:ARG]", help="an experiment that is to use it; also --config.KEY=VALUE"
    )
    sub.add_argument(
        "--out",
        type=option.path,
        metavar="PATH",
        help="also write a page (PATH.html), a picture of examples (PATH.png), or both (a folder)",
    )
    sub.add_argument(
        "--rows",
        type=option.count,
        metavar="N",
        help="look at so many rows, evenly spread (default: all)",
    )
    sub.add_argument(
        "--examples",
        type=option.integer(0),
        default=12,
        metavar="N",
        help="rows that are shown (default: %(default)s)",
    )
    sub.set_defaults(workdir=None)


def run(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Print what is in the data, and write the pages that are asked for."""
    import numpy as np

    from mmrl.config import Config
    from mmrl.data.inspection import as_text, inspect_rows
    from mmrl.data.sources import read
    from mmrl.grading import row_check

    if overrides and not options.config:
        raise ValueError(f"{overrides[0]} overrules a config: name one with --config=FILE")
    config, workdir = open_experiment(options, overrides) if options.config else (Config(), Path())
    whole = read(options.data, image_root=config.data.image_root or None)
    source = whole
    if options.rows is not None and options.rows < len(whole):
        source = whole.choose(np.linspace(0, len(whole) - 1, options.rows).astype(int))
    found = inspect_rows(
        source,
        _prompt(options, config, workdir),
        probe=row_check(config) if options.config else own_verifier_check(),
        progress=show_progress(f"looking through {whole.name}", "rows"),
        of=len(whole),
    )
    tell(as_text(found))
    if options.out:
        _write_report(options.out, source, found, options.examples)


def _prompt(
    options: argparse.Namespace, config: "Config", workdir: Path
) -> "tuple[Processor, PromptFormat] | None":
    """Processor and format of prompts; None if nothing names a model, or the config's is not there."""
    if not options.model and not options.config:
        return None
    from mmrl import hub
    from mmrl.open import open_processor, prompt_format, resolve_model_path

    if options.model:
        directory = hub.local(str(options.model), "model", weights=False)
    else:
        directory = resolve_model_path(config, workdir, weights=False)
    if not options.model and not Path(directory or "none").is_dir():
        tell(f"config.model.path={directory!r} is no directory: name one with --model=DIR", error=True)
        return None
    return open_processor(config, directory), prompt_format(config)


def own_verifier_check() -> "Callable[[Sample], Any]":
    """A function that raises ValueError if a row cannot be graded by its own verifier."""
    from mmrl.rewards.verifier import RolloutInfo
    from mmrl.rewards.verifiers import reported_components

    rollout = dataclasses.asdict(RolloutInfo())
    return lambda sample: reported_components(
        dataclasses.replace(sample, facts={**sample.facts, "rollout": rollout})
    )


def _write_report(out: Path, source: "Source", found: "Findings", count: int) -> None:
    from mmrl.atomic import atomic_write
    from mmrl.data.examples import write_contact_sheet
    from mmrl.data.inspection import choose_examples, page

    chosen = choose_examples(source, found, count)
    files = [out] if out.suffix in (".html", ".png") else [out / "report.html", out / "sheet.png"]
    files[0].parent.mkdir(parents=True, exist_ok=True)
    tell()
    for file in files:
        if file.suffix == ".html":
            atomic_write(file, page(found, chosen))
        else:
            write_contact_sheet(file, chosen)
        tell(f"{'report' if file.suffix == '.html' else 'sheet':<12}{file}")


def show_progress(what: str, unit: str) -> Callable[[int, int], None]:
    """A function to call with (done, of how many); it prints them where work takes long enough to wonder."""
    count = show_count(what, unit)

    def show(done: int, total: int) -> None:
        count(done, f" of {total}", done == total)

    return show


def show_count(what: str, unit: str) -> Callable[..., None]:
    """A function to call with how much is done, as `show_progress`."""
    start = time.monotonic()

    def show(done: int, of: str = "", last: bool = False) -> None:
        if time.monotonic() - start > PATIENCE_S:
            rewrite(f"{what}: {done}{of} {unit}", last=last, error=True)

    return show


_EXAMPLES = """\
examples:
  mmrl data inspect FILE.parquet
  mmrl data inspect DIR:train --model=MODEL --out=report.html --examples=24
  mmrl data inspect FILE.parquet --config=experiments/papo_qwen2_5_vl_3b.py --config.model.path=MODEL \\
      --out=folder --rows=2000

DATA is whatever config.data.train may name: a file, a folder, an image folder, a split, tfds:NAME. With a
config tokens, buckets and grading are those of the run; with --model alone, those of the defaults."""
INSPECT = Command(
    "data inspect",
    "Show what is in a data set, and what is wrong.",
    _EXAMPLES,
    add_arguments,
    run,
    takes_config=True,
)
