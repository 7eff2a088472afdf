"""Grading as a config says: input of verifiers, checks of rows before a run, rewards of groups."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import PurePath
from typing import Any

import numpy as np

from mmrl.config import Config
from mmrl.rewards.judge import JUDGED
from mmrl.rewards.reward import GradedGroup, Reward, compute_rewards, reward_of, user_verifiers
from mmrl.rewards.verifier import Graded, RolloutInfo
from mmrl.rewards.verifiers import reported_components, verifier_names
from mmrl.rollout.trajectory import Trajectory
from mmrl.sample import Sample
from mmrl.types import StopReason

SELF_JUDGE = "self_judge"  # the component that the policy's second pass gives

Rewards = Callable[[Sample], Reward]


def rewards_of(config: Config) -> Rewards:
    """The reward of each sample, by its data set and its own ``facts["weights"]``.

    The result raises ValueError naming the sample if its weights are none.
    """
    reward = dataclasses.asdict(config.reward)
    of_source = cache(lambda source: reward_of(reward, source))

    def of_sample(sample: Sample) -> Reward:
        weights = sample.facts.get("weights")
        if weights is None:
            return of_source(sample.source)
        try:
            return Reward(weights=weights).over(of_source(sample.source))
        except ValueError as error:
            raise ValueError(f'{sample.id}: facts["weights"]{str(error).removeprefix("weights")}') from error

    return of_sample


def check_sources(config: Config, names: Collection[str]) -> None:
    """Raises ValueError if ``config.reward.sources`` has a key for none of the data sets ``names``."""
    known = {*names, *(PurePath(name).stem for name in names)}
    for source in config.reward.sources:
        if source not in known:
            raise ValueError(
                f"config.reward.sources[{source!r}]: no data set of this run is called so; there are "
                f"{', '.join(sorted(names))}"
            )


def verifier_input(sample: Sample, reward: Reward, info: RolloutInfo, episode: Mapping[str, float]) -> Sample:
    """The sample as verifiers see it: the config's options below its own facts, the rollout's above them."""
    facts: dict[str, Any] = {**reward.options, **sample.facts, "rollout": dataclasses.asdict(info)}
    if episode:
        facts["episode"] = dict(episode)
    return replace(sample, verifier=reward.verifiers(sample.verifier), facts=facts)


def response_info(response: Trajectory, max_tokens: int, progress: float) -> RolloutInfo:
    """Rollout information of a response, for its verifiers."""
    return RolloutInfo(progress, int(response.written.sum()), max_tokens, response.stop == StopReason.LENGTH)


def row_check(config: Config) -> Callable[[Sample], None]:
    """A check of rows that raises ValueError if responses to one could not be graded as the config says."""
    rewards, verifiers = rewards_of(config), user_verifiers(dataclasses.asdict(config.reward))

    def check(sample: Sample) -> None:
        reward = rewards(sample)
        sample = verifier_input(sample, reward, RolloutInfo(), {})
        reported = reported_components(sample, verifiers)
        if config.reward.self_judge.question:
            reported |= {SELF_JUDGE}
        judged = any(name in JUDGED for name in verifier_names(sample.verifier, verifiers))
        if judged and not config.reward.judge.endpoint:
            raise ValueError(
                f"the verifier {sample.verifier!r} asks a text model; name one: config.reward.judge.endpoint"
            )
        missing = sorted(reward.needs - reported)
        if missing:
            raise ValueError(
                f"config.reward asks for {', '.join(map(repr, missing))}, which the verifier "
                f"{sample.verifier!r} does not report; it reports {', '.join(sorted(reported))}"
            )

    return check


def group_rewards(
    reward: Reward, graded: Sequence[Graded], lengths: Sequence[int], max_tokens: int, progress: float
) -> tuple[list[float], list[dict[str, float]]]:
    """Rewards of the responses of a group, and their components with bonuses; 0 and {} where not valid."""
    valid = [k for k, response in enumerate(graded) if response.valid]
    group = GradedGroup(np.array([lengths[k] for k in valid], np.int64), max_tokens)
    of_valid = compute_rewards(reward, [graded[k].components for k in valid], group, progress)
    rewards: list[float] = [0.0] * len(graded)
    components: list[dict[str, float]] = [{} for _ in graded]
    for k, value, row in zip(valid, *of_valid, strict=True):
        rewards[k], components[k] = value, row
    return rewards, components
