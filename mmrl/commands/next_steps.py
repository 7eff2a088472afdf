"""What a run may be followed by, as commands to be pasted."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrl.terminal import command


def after_training(config: str, overrides: Sequence[str], workdir: Path, name: str) -> str:
    """What to do after ``mmrl train``, as text.

    Args:
      config: the run's experiment, FILE[:ARG].
      overrides: its words ``--config.KEY=VALUE``.
      workdir: its folder.
      name: its method.
    """
    other = "vppo" if name != "vppo" else "papo_g"
    beside = workdir.parent / other
    if beside.exists():
        beside = workdir.parent / f"{workdir.name}-{other}"
    train = ["mmrl", "train", f"--config={config}", *with_method(config, overrides, other)]
    steps = {
        "a page about it": command("mmrl", "report", workdir, "--out=report.html"),
        "another method": command(*train, f"--workdir={beside}"),
        "for transformers": command("mmrl", "export", f"--workdir={workdir}", "--out=policy"),
        "every metric": command("tensorboard", f"--logdir={workdir}") + "  (after pip install tensorboard)",
        "your own data": "see the README",
    }
    first = "next: "
    return "\n".join(f"{'' if k else first:<6}{what:<18}{how}" for k, (what, how) in enumerate(steps.items()))


def with_method(config: str, overrides: Sequence[str], name: str) -> list[str]:
    """The overrides for the same run with the recipe ``name``, without hyper-parameters that it lacks."""
    from mmrl.algorithms.recipes import RECIPES
    from mmrl.experiment import load

    accepted = inspect.signature(RECIPES[name]).parameters
    own: Mapping[str, Any] = load(config).algorithm
    kept = [one for one in overrides if _hyper_parameter(one) in (None, *accepted)]
    unset = [key for key, value in own.items() if key not in ("name", *accepted) and value is not None]
    return [*kept, f"--config.algorithm.name={name}", *(f"--config.algorithm.{key}=None" for key in unset)]


def _hyper_parameter(override: str) -> str | None:
    """The hyper-parameter, or "name", that a word --config.algorithm.KEY=VALUE sets; None for other words."""
    key = override.partition("=")[0].removeprefix("--config.algorithm.")
    return None if key.startswith("--") else key
