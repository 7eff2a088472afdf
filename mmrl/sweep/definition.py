"""What a sweep is, and how a sweep file says so."""

from dataclasses import dataclass, replace
from pathlib import Path

from mmrl.experiment import call
from mmrl.suggest import suggest
from mmrl.sweep.arms import Arms, labels

AREA = "area:"  # before the name of a metric


@dataclass(frozen=True)
class Sweep:
    """An ablation: every arm with every seed, and what is reported of the runs."""

    experiment: str  # FILE[:ARG], as ``mmrl train --config`` takes it
    arms: Arms
    seeds: tuple[int, ...] = (0,)
    baseline: str = ""  # label of the arm that the others are compared with; "" compares none
    # Names in metrics.jsonl, of which the last value is taken; "area:NAME" is the mean height of the curve,
    # which is higher the earlier a run learns.
    metrics: tuple[str, ...] = ("heldout/accuracy", "area:reward/accuracy")


def form(sweep: Sweep, arg: str) -> Sweep:
    """The sweep as it is (``arg`` ""), or its ``smoke`` form: the experiment's, with the first seed alone.

    Raises ValueError if there is no such form.
    """
    if arg == "":
        return sweep
    if arg == "smoke":
        return replace(sweep, experiment=f"{sweep.experiment}:smoke", seeds=sweep.seeds[:1])
    raise ValueError(f"there is no form {arg!r}; leave it out, or write ':smoke'")


def open_sweep(file: str) -> Sweep:
    """What ``get_sweep(ARG)`` of FILE[:ARG] returns, checked.

    Raises:
      ValueError: no such file or form, or a sweep that cannot be run; no config is looked at yet.
    """
    sweep = call(file, "get_sweep", f"sweep {file}")
    if not isinstance(sweep, Sweep):
        raise ValueError(f"sweep {file}: get_sweep returned {type(sweep).__name__}, and no mmrl.sweep.Sweep")
    try:
        _check(sweep)
    except ValueError as error:
        raise ValueError(f"sweep {file}: {error}") from error
    return sweep


def name_of(file: str) -> str:
    """What to call the sweep of FILE[:ARG]."""
    return Path(file.partition(":")[0]).stem


def _check(sweep: Sweep) -> None:
    known = labels(sweep.arms)
    if not known:
        raise ValueError("there are no arms")
    if not sweep.seeds or len(set(sweep.seeds)) < len(sweep.seeds):
        raise ValueError(f"seeds={sweep.seeds} should be some numbers, each once")
    if any(type(seed) is not int or seed < 0 for seed in sweep.seeds):
        raise ValueError(f"seeds={sweep.seeds} should be whole numbers from 0")
    if sweep.baseline and sweep.baseline not in known:
        raise ValueError(f"baseline={sweep.baseline!r} is no arm{suggest(sweep.baseline, known)}")
    if not sweep.metrics or not all(isinstance(name, str) and name for name in sweep.metrics):
        raise ValueError(f"metrics={sweep.metrics!r} should be a tuple of names")
    for one in sweep.arms:
        if "seed" in one.changes:
            raise ValueError("an arm changes 'seed': name them in seeds, which all arms are run with")
