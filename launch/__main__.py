"""``python -m launch WHERE --config=FILE[:ARG] --workdir=DIR [--config.KEY=VALUE ...]``: docs/launch.md."""

import argparse
import re
import sys
from collections.abc import Sequence

from launch import gke, local, tpu
from mmrl.terminal import tell

# Where a run can be started. Each has `arguments(parser)`, which sets ``run`` to what gets the options and
# the --config.KEY=VALUE words, and returns an exit status.
PLACES = {
    "local": (local.arguments, "several processes on this machine, as if each were a host"),
    "gke": (gke.arguments, "slices of a GKE cluster, through XPK"),
    "tpu": (tpu.arguments, "Cloud TPU VMs, through queued resources"),
}
VERBS = ("gke", "tpu")  # places whose first word may be a verb; without one it is "run"


def main(argv: list[str] | None = None) -> int:
    """Do one command; a mistake of the caller's is one line on stderr and exit status 2."""
    options, rest = parse(sys.argv[1:] if argv is None else argv)
    try:
        wrong = [word for word in rest if not re.match(r"--config\.[^=]+=", word)]
        if wrong:
            raise ValueError(f"unknown argument {wrong[0]!r}; see python -m launch {options.place} --help")
        return options.run(options, rest)
    except ValueError as error:
        tell(f"launch: {error}", error=True)
        return 2
    except KeyboardInterrupt:
        tell("launch: interrupted", error=True)
        return 130


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options that the words mean, and the words that are none; the verb ``run`` may be left out."""
    words = list(words)
    if len(words) > 1 and words[0] in VERBS and words[1].startswith("--") and words[1] != "--help":
        words.insert(1, "run")
    return _parser().parse_known_args(words)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m launch", description="Start a run elsewhere.")
    places = parser.add_subparsers(dest="place", required=True)
    for name, (arguments, summary) in PLACES.items():
        arguments(places.add_parser(name, help=summary, description=summary, allow_abbrev=False))
    return parser


if __name__ == "__main__":
    sys.exit(main())
