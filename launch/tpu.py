"""``python -m launch tpu``: a run on a slice of Cloud TPU VMs."""

import argparse
from collections.abc import Sequence

from launch import checks, request
from launch.shell import Shell
from mmrl.plan.chips import parse_topology


def arguments(parser: argparse.ArgumentParser) -> None:
    """The verbs and what they take."""
    verbs = parser.add_subparsers(dest="verb", required=True)
    sub = verbs.add_parser("run", help="start a run and follow it", allow_abbrev=False)
    request.arguments(sub)
    request.remote(sub)
    sub.add_argument("--accelerator", required=True, help="a slice: v5litepod-16, v5e:4x4")
    sub.set_defaults(run=run)


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Check, make a slice, run, take it away again."""
    shell = Shell(dry_run=options.dry_run)
    job, _ = request.job(shell, options, overrides)
    request.afford(shell, options, job, parse_topology(options.accelerator), checks.planner(shell))
    return 0
