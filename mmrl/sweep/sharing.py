"""Stages that runs of a sweep have in common, made once: the built-in world and the cold start."""

import dataclasses
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from mmrl.atomic import atomic_folder
from mmrl.config import Config
from mmrl.run_folder import flat, read_config
from mmrl.sweep.plan import Member

# What neither the world nor the cold start looks at. All other keys must agree, whether or not they matter.
_LATER = (
    "algorithm.",
    "corruption.",
    "data.curriculum.",
    "data.heldout",
    "data.stages",
    "data.temperature",
    "data.train",
    "evaluation.",
    "optimizer.learning_rate",
    "optimizer.schedule",
    "optimizer.warmup_updates",
    "reward.",
    "rollout.",
    "train.",
)
_EARLIER = ("train.max_skipped",)  # among these, what the cold start does look at


def stages(config: Config) -> tuple[str, ...]:
    """Folders of the stages before reinforcement learning, in a run's folder."""
    return (("world",) if config.world.train else ()) + (("cold_start",) if config.cold_start.steps else ())


def made(one: Member) -> bool:
    """Whether all these stages are finished in the run's folder. The file looked for is their last."""
    return all((one.workdir / stage / "model" / "config.json").is_file() for stage in stages(one.config))


def early(config: Config) -> dict[str, object]:
    """The keys of a config that these stages depend on, the seed among them, with their values."""
    return {
        key: value
        for key, value in flat(dataclasses.asdict(config)).items()
        if key in _EARLIER
        or not any(key == name or (name[-1] == "." and key.startswith(name)) for name in _LATER)
    }


def share(one: Member, members: Iterable[Member]) -> Member | None:
    """Put the stages that another run has finished into the folder of ``one``, if they would come out alike.

    A stage that is begun there is left alone. Files are hard links where the disk has them: stages that are
    finished are only read.

    Returns: whose stages they are; None if there were none to share.
    """
    if made(one):
        return None
    wanted = [stage for stage in stages(one.config) if not (one.workdir / stage).exists()]
    donor = next((other for other in members if wanted and _gives(other, one)), None)
    if donor is None:
        return None
    for stage in wanted:
        with atomic_folder(one.workdir / stage) as part:
            shutil.copytree(donor.workdir / stage, part, copy_function=_link, dirs_exist_ok=True)
    return donor


def _gives(other: Member, one: Member) -> bool:
    """Whether the stages of ``other`` are there, and made by a config that agrees with that of ``one``."""
    if other.name == one.name or not (other.workdir / "config.json").is_file() or not made(other):
        return False
    return early(read_config(other.workdir)) == early(one.config)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, Path(target))
