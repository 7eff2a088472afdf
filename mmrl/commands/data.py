"""``mmrl data``: public data sets listed, the shapes world written, and parts of their own."""

import argparse
from collections.abc import Sequence

from mmrl.commands import options as option
from mmrl.commands.data_convert import CONVERT
from mmrl.commands.data_inspect import INSPECT
from mmrl.commands.data_pretext import PRETEXT
from mmrl.commands.options import Command
from mmrl.terminal import tell


def add_list_arguments(sub: argparse.ArgumentParser) -> None:
    """Arguments of ``mmrl data list``."""
    sub.add_argument("dataset", nargs="?", metavar="NAME", help="tell all of this one")
    sub.add_argument("--use", choices=("train", "eval"), help="only those to train on, or to evaluate on")


def list_datasets(options: argparse.Namespace, _: Sequence[str]) -> None:
    """``mmrl data list``."""
    from mmrl.tasks.catalogue import describe, entry, read_registry, table

    registry = read_registry()
    if options.dataset:
        tell(describe(options.dataset, entry(registry, options.dataset)))
    else:
        tell(table(registry, options.use or ""))
        tell("\nmmrl data list NAME tells how to convert it. Nothing is downloaded.")


def add_shapes_arguments(sub: argparse.ArgumentParser) -> None:
    """Arguments of ``mmrl data shapes``."""
    sub.add_argument("--out", type=option.path, required=True, help="directory to be made")
    sub.add_argument("--cold-start", type=option.integer(0), default=4096, help="rows (default: %(default)s)")
    sub.add_argument("--train", type=option.integer(0), default=4096, help="rows (default: %(default)s)")
    sub.add_argument("--heldout", type=option.integer(0), default=512, help="rows (default: %(default)s)")
    sub.add_argument("--prior", type=float, help="how strongly a question suggests its answer, 0 to 1")
    sub.add_argument("--seed", type=option.seed, default=0, help="(default: %(default)s)")
    sub.add_argument("--sheet", type=option.path, help="also draw some examples to this PNG")


def write_shapes(options: argparse.Namespace, _: Sequence[str]) -> None:
    """``mmrl data shapes``."""
    from mmrl.data.examples import example, write_contact_sheet
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
        write_contact_sheet(options.sheet, [example(source[k]) for k in range(min(24, len(source)))])
        tell(f"{'sheet':<12}{options.sheet}")


_LIST_EXAMPLES = """\
examples:
  mmrl data list --use=train
  mmrl data list mathvista

What is known of public data sets, and the commands that convert them."""
LIST = Command("data list", "Tell of public data sets.", _LIST_EXAMPLES, add_list_arguments, list_datasets)
_SHAPES_EXAMPLES = """\
examples:
  mmrl data shapes --out=shapes --train=4096 --heldout=512 --seed=0 --sheet=shapes.png

Writes cold_start, train and heldout.parquet of the built-in world, and its untrained model."""
SHAPES = Command(
    "data shapes", "Write the shapes world.", _SHAPES_EXAMPLES, add_shapes_arguments, write_shapes
)
_DATA_EXAMPLES = """\
examples:
  mmrl data inspect FILE.parquet --model=DIR --out=report.html
  mmrl data convert --from=coco instances.json --images=photos --out=train.parquet
  mmrl data pretext --images=photos --rows=10000 --out=pretext.parquet
  mmrl data shapes --out=shapes

Each of them explains itself: mmrl data inspect --help."""
DATA = Command(
    "data",
    "Look at data, convert it, and make it.",
    _DATA_EXAMPLES,
    parts=(LIST, INSPECT, CONVERT, PRETEXT, SHAPES),
)
