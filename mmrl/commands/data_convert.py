"""``mmrl data convert``: rows made of data in another layout."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl.commands import options as option
from mmrl.commands.data_inspect import LISTED, own_verifier_check, show_count
from mmrl.commands.options import Command
from mmrl.terminal import command, tell

if TYPE_CHECKING:
    from mmrl.tasks.convert import Converted

_OF_LAYOUT = {
    "llava": ("turns", "verifier"),
    "coco": ("task", "coordinates"),
    "choice": ("answer",),
    "questions": ("verifier", "answer", "columns", "where", "facts", "ask", "say", "agreed"),
}


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    sub.add_argument("data", type=option.path, metavar="IN", help="what to convert")
    layouts = ("llava", "coco", "choice", "questions")
    sub.add_argument("--from", dest="layout", choices=layouts, required=True, help="its layout")
    sub.add_argument(
        "--images", type=option.path, required=True, metavar="DIR", help="where its image paths start"
    )
    sub.add_argument("--out", type=option.path, required=True, help="parquet or JSONL to be written")
    sub.add_argument("--embed", action="store_true", help="put images into the file instead of paths")
    sub.add_argument(
        "--max-broken",
        type=option.share,
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
    group = sub.add_argument_group("questions (--verifier and --answer too)")
    group.add_argument(
        "--columns",
        metavar="ROLE=COLUMN,...",
        help="which column is the question, answer, images, options, hint, where it is called otherwise",
    )
    group.add_argument(
        "--where",
        action="append",
        metavar="COLUMN=VALUE|...",
        help="only rows with one of these values; may be given again",
    )
    group.add_argument("--facts", metavar="JSON", help="what the verifier is told for every row")
    group.add_argument("--ask", metavar="TEXT", help="the question of rows without one")
    group.add_argument("--say", metavar="ANSWER=WORDS,...", help="answers in other words: 0=no,1=yes")
    group.add_argument(
        "--agreed",
        type=int,
        metavar="N",
        help="of several answers, take those that N annotators gave (default: 1), and the commonest",
    )


def run(options: argparse.Namespace, _: Sequence[str]) -> None:
    """Convert, and list what could not be."""
    from mmrl.rewards.verifiers import verifier_names
    from mmrl.tasks.convert import ConvertOptions, convert

    given = {
        name: value
        for name in dict.fromkeys(name for names in _OF_LAYOUT.values() for name in names)
        if (value := getattr(options, name)) is not None
    }
    wrong = [name for name in given if name not in _OF_LAYOUT[options.layout]]
    if wrong:
        raise ValueError(f"--{wrong[0]} says nothing about --from={options.layout}; leave it out")
    choices = ConvertOptions(**question_options(given))
    for verifier in choices.verifier.split(","):
        verifier_names(verifier)
    count = show_count(f"converting {options.data}", "entries")
    made = convert(
        options.layout,
        options.data,
        options.images,
        options.out,
        choices,
        embed=options.embed,
        max_broken=options.max_broken,
        probe=own_verifier_check(),
        progress=count,
    )
    count(made.entries, last=True)
    _print_result(made, options.out)


def _print_result(made: "Converted", out: Path) -> None:
    from mmrl.data.examples import printable

    tell(f"{made.rows} rows of {made.entries} entries in {out}")
    if made.empty:
        tell(f"{made.empty} entries are no question of this kind, and gave no row")
    for name, why in made.broken[:LISTED]:
        tell(f"broken: {printable(name)}: {printable(why, 400)}")
    if len(made.broken) > LISTED:
        tell(f"and {len(made.broken) - LISTED} more broken entries")
    tell("look at it: " + command("mmrl", "data", "inspect", out, "--out=report.html"))


def question_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options that were given, as fields of ``ConvertOptions``.

    Raises ValueError naming what is not of its form.
    """
    from mmrl.data.files import parse_json
    from mmrl.tasks.convert import ROLES

    read = dict(given)
    for name in ("columns", "say"):
        if name in given:
            read[name] = dict(_pair(part, name) for part in given[name].split(","))
    for role in read.get("columns", {}):
        if role not in ROLES:
            raise ValueError(f"--columns: {role!r} is no role; there are {', '.join(ROLES)}")
    if "where" in given:
        pairs = [_pair(text, "where") for text in given["where"]]
        read["where"] = tuple((column, tuple(values.split("|"))) for column, values in pairs)
    if "facts" in given:
        try:
            read["facts"] = parse_json(given["facts"])
        except ValueError as error:
            raise ValueError(f"--facts={given['facts']} is not JSON: {error}") from error
        if not isinstance(read["facts"], dict):
            raise ValueError(f'--facts={given["facts"]}: write an object, as in {{"tolerance": 0.1}}')
    if given.get("agreed", 1) < 1:
        raise ValueError(f"--agreed={given['agreed']}: one person at least")
    return read


def _pair(text: str, flag: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ValueError(f"--{flag}: {text!r} is not NAME=VALUE")
    return name.strip(), value.strip()


_EXAMPLES = """\
examples:
  mmrl data convert --from=llava chat.json --images=photos --out=train.parquet
  mmrl data convert --from=coco instances.json --images=photos --out=detect.parquet --coordinates=thousand
  mmrl data convert --from=coco instances.json --images=photos --out=ground.jsonl --task=ground
  mmrl data convert --from=choice questions.csv --images=photos --out=choice.parquet --embed

llava: conversations. coco: instances, or a list of {"file_name", "bbox", "sentence"}. choice: a question with
"options", "choices" or columns A, B, ..., and an "answer". questions: these or open ones, under any columns;
mmrl data list NAME has the flags for public data sets. Read from JSON, JSONL, CSV, TSV or parquet."""
CONVERT = Command("data convert", "Make rows of data in another layout.", _EXAMPLES, add_arguments, run)
