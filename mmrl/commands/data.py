"""What ``mmrl data`` does: make, convert and look at data sets."""

import argparse
import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl.commands.datasets import question_options
from mmrl.commands.runs import experiment
from mmrl.terminal import command, rewrite, tell

if TYPE_CHECKING:
    from mmrl.config import Config
    from mmrl.data.inspection import Findings
    from mmrl.data.pipeline import PromptFormat
    from mmrl.data.sources import Source
    from mmrl.models.processor import Processor
    from mmrl.sample import Sample
    from mmrl.tasks.convert import Converted
    from mmrl.tasks.pretext import Material

PATIENCE_S = 2.0  # after which a command shows its progress
LISTED = 20  # broken entries


def shapes(options: argparse.Namespace, _: Sequence[str]) -> None:
    """``mmrl data shapes``."""
    from mmrl.atomic import atomic_file
    from mmrl.data.examples import contact_sheet, example
    from mmrl.data.sources import read
    from mmrl.tasks.shapes_world import PRIOR, write_data, write_model

    prior = PRIOR if options.prior is None else options.prior
    paths = write_data(
        options.out,
        options.seed,
        cold_start=options.cold_start,
        train=options.train,
        heldout=options.heldout,
        prior=prior,
    )
    write_model(options.out / "model", options.seed)
    for name, path in paths.items():
        tell(f"{name:<12}{path}")
    tell(f"{'model':<12}{options.out / 'model'}")
    if options.sheet:
        source = read(paths["train"])
        with atomic_file(options.sheet) as part:
            contact_sheet([example(source[k]) for k in range(min(24, len(source)))]).save(part, format="png")
        tell(f"{'sheet':<12}{options.sheet}")


def inspect(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """``mmrl data inspect``."""
    import numpy as np

    from mmrl.config import Config
    from mmrl.data.inspection import as_text, inspect_rows
    from mmrl.data.sources import read

    if overrides and not options.config:
        raise ValueError(f"{overrides[0]} overrules a config: name one with --config=FILE")
    config, workdir = experiment(options, overrides) if options.config else (Config(), Path())
    whole = read(options.data, image_root=config.data.image_root or None)
    source = whole
    if options.rows is not None and options.rows < len(whole):
        source = whole.choose(np.linspace(0, len(whole) - 1, options.rows).astype(int))
    found = inspect_rows(
        source,
        _prompt(options, config, workdir),
        probe=_probe(config if options.config else None),
        progress=_progress(f"looking through {whole.name}", "rows"),
        of=len(whole),
    )
    tell(as_text(found))
    if options.out:
        _write_report(options.out, source, found, options.examples)


def _prompt(
    options: argparse.Namespace, config: "Config", workdir: Path
) -> "tuple[Processor, PromptFormat] | None":
    """How prompts are made; None if nothing names a model, or the config's is not there (which is said)."""
    if not options.model and not options.config:
        return None
    from mmrl import hub
    from mmrl.open import model_directory, open_processor, prompt_format

    if options.model:
        directory = hub.local(str(options.model), "model", weights=False)
    else:
        directory = model_directory(config, workdir, weights=False)
    if not options.model and not Path(directory or "none").is_dir():
        tell(f"config.model.path={directory!r} is no directory: name one with --model=DIR", error=True)
        return None
    return open_processor(config, directory), prompt_format(config)


def _probe(config: "Config | None") -> "Callable[[Sample], Any]":
    """What raises ValueError if a row cannot be graded: as the config says, or by its own verifier."""
    if config is not None:
        from mmrl.grading import row_check

        return row_check(config)
    from mmrl.rewards.verifier import RolloutInfo
    from mmrl.rewards.verifiers import reported_components

    rollout = dataclasses.asdict(RolloutInfo())
    return lambda sample: reported_components(
        dataclasses.replace(sample, facts={**sample.facts, "rollout": rollout})
    )


def _write_report(out: Path, source: "Source", found: "Findings", count: int) -> None:
    from mmrl.atomic import atomic_file, atomic_write
    from mmrl.data.examples import contact_sheet
    from mmrl.data.inspection import choose_examples, page

    chosen = choose_examples(source, found, count)
    files = [out] if out.suffix in (".html", ".png") else [out / "report.html", out / "sheet.png"]
    files[0].parent.mkdir(parents=True, exist_ok=True)
    tell()
    for file in files:
        if file.suffix == ".html":
            atomic_write(file, page(found, chosen))
        else:
            with atomic_file(file) as part:
                contact_sheet(chosen).save(part, format="png")
        tell(f"{'report' if file.suffix == '.html' else 'sheet':<12}{file}")


def convert(options: argparse.Namespace, _: Sequence[str]) -> None:
    """``mmrl data convert``."""
    from mmrl.rewards.verifiers import verifier_names
    from mmrl.tasks.convert import ConvertOptions
    from mmrl.tasks.convert import convert as run

    of_layout = {
        "llava": ("turns", "verifier"),
        "coco": ("task", "coordinates"),
        "choice": ("answer",),
        "questions": ("verifier", "answer", "columns", "where", "facts", "ask", "say", "agreed"),
    }
    given = {
        name: value
        for name in dict.fromkeys(name for names in of_layout.values() for name in names)
        if (value := getattr(options, name)) is not None
    }
    wrong = [name for name in given if name not in of_layout[options.layout]]
    if wrong:
        raise ValueError(f"--{wrong[0]} says nothing about --from={options.layout}; leave it out")
    choices = ConvertOptions(**question_options(given))
    for verifier in choices.verifier.split(","):
        verifier_names(verifier)
    count = _counter(f"converting {options.data}", "entries")
    made = run(
        options.layout,
        options.data,
        options.images,
        options.out,
        choices,
        embed=options.embed,
        max_broken=options.max_broken,
        probe=_probe(None),
        progress=count,
    )
    count(made.entries, last=True)
    _say_converted(made, options.out)


def _say_converted(made: "Converted", out: Path) -> None:
    from mmrl.data.examples import printable

    tell(f"{made.rows} rows of {made.entries} entries in {out}")
    if made.empty:
        tell(f"{made.empty} entries are no question of this kind, and gave no row")
    for name, why in made.broken[:LISTED]:
        tell(f"broken: {printable(name)}: {printable(why, 400)}")
    if len(made.broken) > LISTED:
        tell(f"and {len(made.broken) - LISTED} more broken entries")
    tell("look at it: " + command("mmrl", "data", "inspect", out, "--out=report.html"))


def pretext(options: argparse.Namespace, _: Sequence[str]) -> None:
    """``mmrl data pretext``."""
    from mmrl.data.writing import write_rows
    from mmrl.tasks.pretext import rows

    if options.out.suffix != ".parquet":
        raise ValueError(f"--out={options.out}: pictures are written into a .parquet file")
    material = _material(options)
    reasons: dict[str, str] = {}
    made: Counter[str] = Counter()

    def counted() -> Iterator[dict[str, Any]]:
        progress = _progress("making rows", "rows")
        for row in rows(
            material, options.seed, options.rows, passed_over=reasons.setdefault, progress=progress
        ):
            made[row["kind"]] += 1
            yield row

    written = write_rows(options.out, counted())
    tell(f"{written} rows in {options.out}: " + ", ".join(f"{n} {task}" for task, n in made.items()))
    _say_passed_over(reasons)
    tell("look at it: " + command("mmrl", "data", "inspect", options.out, "--out=report.html"))


def _material(options: argparse.Namespace) -> "Material":
    from mmrl.tasks.captions import read_captions
    from mmrl.tasks.pretext import CAPTION_ERROR, TASKS, Material, Options, captioned_pictures, find_pictures

    tasks = tuple(options.tasks.split(",")) if options.tasks else tuple(TASKS)
    if bool(options.captions) != (CAPTION_ERROR in tasks):
        raise ValueError(f"--captions=FILE and {CAPTION_ERROR} among --tasks go together")
    choices = Options(options.side, _grid(options.grid), options.patches, options.gap)
    captions = read_captions(options.captions) if options.captions else []
    return Material(
        pictures=find_pictures(options.images),
        tasks=tasks,
        options=choices,
        captioned=captioned_pictures(options.images, [one.image for one in captions]) if captions else None,
        captions=captions,
    )


def _grid(text: str) -> tuple[int, int]:
    rows, _, columns = text.partition("x")
    if not (rows.isdecimal() and columns.isdecimal()):
        raise ValueError(f"--grid={text}: write ROWSxCOLUMNS, as in 2x3")
    return int(rows), int(columns)


def _say_passed_over(reasons: dict[str, str]) -> None:
    from mmrl.data.examples import printable

    if reasons:
        tell(f"{len(reasons)} images were passed over at least once:")
    for name, why in list(reasons.items())[:LISTED]:
        tell(f"  {printable(name)}: {printable(why, 400)}")
    if len(reasons) > LISTED:
        tell(f"  and {len(reasons) - LISTED} more")


def _progress(what: str, unit: str) -> Callable[[int, int], None]:
    """Says how far work is, only where it takes long enough to wonder."""
    count = _counter(what, unit)

    def show(done: int, total: int) -> None:
        count(done, f" of {total}", done == total)

    return show


def _counter(what: str, unit: str) -> Callable[..., None]:
    start = time.monotonic()

    def show(done: int, of: str = "", last: bool = False) -> None:
        if time.monotonic() - start > PATIENCE_S:
            rewrite(f"{what}: {done}{of} {unit}", last=last, error=True)

    return show
