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
