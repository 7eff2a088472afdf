"""Sweeps: an experiment with some of its keys varied, over seeds, and one table of what came of it."""

from mmrl.sweep.arms import Arm, Arms, arm, chain, param, product, zipped
from mmrl.sweep.definition import Sweep, form, open_sweep
from mmrl.sweep.results import Results, Row, load_runs, load_sweep, table, workdir_of

__all__ = [
    "Arm",
    "Arms",
    "Results",
    "Row",
    "Sweep",
    "arm",
    "chain",
    "form",
    "load_runs",
    "load_sweep",
    "open_sweep",
    "param",
    "product",
    "table",
    "workdir_of",
    "zipped",
]
