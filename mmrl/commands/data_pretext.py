"""``mmrl data pretext``: questions made of images alone."""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mmrl.commands import options as option
from mmrl.commands.data_inspect import LISTED, show_progress
from mmrl.commands.options import Command
from mmrl.terminal import command, tell

if TYPE_CHECKING:
    from mmrl.tasks.pretext import Material


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    sub.add_argument(
        "--images", required=True, metavar="DATA", help="a folder of images at any depth, or a data set"
    )
    sub.add_argument("--out", type=option.path, required=True, help="parquet to be written")
    sub.add_argument("--rows", type=option.count, required=True, metavar="N", help="how many")
    sub.add_argument("--tasks", metavar="NAME,...", help="by default all that need no captions")
    sub.add_argument(
        "--captions", type=option.path, metavar="FILE", help="captions of the images, for caption_error"
    )
    sub.add_argument("--seed", type=option.seed, default=0, help="(default: %(default)s)")
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


def run(options: argparse.Namespace, _: Sequence[str]) -> None:
    """Make the rows, and list the images that were passed over."""
    from mmrl.data.writing import write_rows
    from mmrl.tasks.pretext import rows

    if options.out.suffix != ".parquet":
        raise ValueError(f"--out={options.out}: pictures are written into a .parquet file")
    material = _material(options)
    reasons: dict[str, str] = {}
    made: Counter[str] = Counter()

    def count_rows() -> Iterator[dict[str, Any]]:
        progress = show_progress("making rows", "rows")
        for row in rows(
            material, options.seed, options.rows, passed_over=reasons.setdefault, progress=progress
        ):
            made[row["kind"]] += 1
            yield row

    written = write_rows(options.out, count_rows())
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
        captioned=captioned_pictures(options.images, [caption.image for caption in captions])
        if captions
        else None,
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


_EXAMPLES = """\
examples:
  mmrl data pretext --images=photos --rows=10000 --out=pretext.parquet
  mmrl data pretext --images=photos --tasks=jigsaw,patch_order --grid=3x3 --rows=4000 --out=jigsaw.parquet
  mmrl data pretext --images=photos --tasks=caption_error --captions=captions.json --rows=1000 \\
      --out=words.parquet

Questions with answers that are known because they are made: no label is needed. Take images of training data,
never those of a benchmark."""
PRETEXT = Command("data pretext", "Make questions out of images alone.", _EXAMPLES, add_arguments, run)
