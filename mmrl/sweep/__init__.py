"""Sweeps: an experiment with some of its keys varied, over seeds, and one table of the results."""

from mmrl.sweep.definition import (
    Arm,
    Arms,
    Sweep,
    arm,
    chain,
    form,
    labels,
    open_sweep,
    param,
    product,
    zipped,
)
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
    "labels",
    "load_runs",
    "load_sweep",
    "open_sweep",
    "param",
    "product",
    "table",
    "workdir_of",
    "zipped",
]
