"""``mmrl data list``, and how ``mmrl data convert`` is told of questions under other column names."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from mmrl.terminal import tell


def arguments(sub: argparse.ArgumentParser) -> None:
    """Of ``mmrl data list``."""
    sub.add_argument("dataset", nargs="?", metavar="NAME", help="tell all of this one")
    sub.add_argument("--use", choices=("train", "eval"), help="only those to train on, or to evaluate on")


def run(options: argparse.Namespace, _: Sequence[str]) -> None:
    """``mmrl data list``."""
    from mmrl.tasks.catalogue import describe, entry, read_registry, table

    registry = read_registry()
    if options.dataset:
        tell(describe(options.dataset, entry(registry, options.dataset)))
    else:
        tell(table(registry, options.use or ""))
        tell("\nmmrl data list NAME tells how to convert it. Nothing is downloaded.")


def question_arguments(sub: argparse.ArgumentParser) -> None:
    """Of ``mmrl data convert --from=questions``."""
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
        help="of several answers, take those that N people gave (default: 1), and the commonest",
    )


def question_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, as fields of ``ConvertOptions``.

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
