"""Reward computation for finished responses: what verifiers get, what rows must have, how groups are paid."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import PurePath
from typing import Any

import numpy as np

from mmrl.config import Config
from mmrl.rewards.composition import Rule, own, pay, rule, weighted, weights_of
from mmrl.rewards.facts import Rollout
from mmrl.rewards.group import Group
from mmrl.rewards.judge import JUDGED
from mmrl.rewards.pool import Graded
from mmrl.rewards.verifier import names_of, reports
from mmrl.rollout.trajectory import Trajectory
from mmrl.sample import Sample
from mmrl.types import StopReason

SELF_JUDGE = "self_judge"  # the component that the policy's second pass gives

Rules = Callable[[Sample], Rule]


def rules_of(config: Config) -> Rules:
    """The rule for each sample, by its data set and its own ``facts["weights"]``.

    The result raises ValueError naming the sample if its weights are none.
    """
    reward = dataclasses.asdict(config.reward)
    of_source = cache(lambda source: rule(reward, source))

    def of_sample(sample: Sample) -> Rule:
        found = of_source(sample.source)
        own = sample.facts.get("weights")
        if own is None:
            return found
        weights = weights_of(own, f'{sample.id}: facts["weights"]')
        gates, bonuses = weighted(found.gates, weights), weighted(found.bonuses, weights)
        return replace(found, weights=weights, gates=gates, bonuses=bonuses)

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


def verifier_input(sample: Sample, found: Rule, rollout: Rollout, episode: Mapping[str, float]) -> Sample:
    """The sample as verifiers see it: the config's options below its own facts, the rollout's above them."""
    facts: dict[str, Any] = {**(found.options or {}), **sample.facts, "rollout": dataclasses.asdict(rollout)}
    if episode:
        facts["episode"] = dict(episode)
    return replace(sample, verifier=found.verifiers(sample.verifier), facts=facts)


def rollout_facts(response: Trajectory, max_tokens: int, progress: float) -> Rollout:
    """What verifiers are told of a response."""
    return Rollout(progress, int(response.written.sum()), max_tokens, response.stop == StopReason.LENGTH)


def row_check(config: Config) -> Callable[[Sample], None]:
    """What raises ValueError if responses to a row could not be graded and paid as the config says."""
    rules = rules_of(config)
    verifiers = own(dataclasses.asdict(config.reward))

    def look(sample: Sample) -> None:
        found = rules(sample)
        sample = verifier_input(sample, found, Rollout(), {})
        there = reports(sample, verifiers)
        if config.reward.self_judge.question:
            there |= {SELF_JUDGE}
        judged = any(name in JUDGED for name in names_of(sample.verifier, verifiers))
        if judged and not config.reward.judge.endpoint:
            raise ValueError(
                f"the verifier {sample.verifier!r} asks a text model; name one: config.reward.judge.endpoint"
            )
        missing = sorted(found.needs - there)
        if missing:
            raise ValueError(
                f"config.reward asks for {', '.join(map(repr, missing))}, which the verifier "
                f"{sample.verifier!r} does not report; it reports {', '.join(sorted(there))}"
            )

    return look


def group_rewards(
    found: Rule,
    graded: Sequence[Graded],
    lengths: Sequence[int],
    max_tokens: int,
    progress: float,
) -> tuple[list[float], list[dict[str, float]]]:
    """Rewards of the responses of a group, and their components with bonuses; 0 and {} where not valid."""
    valid = [k for k, one in enumerate(graded) if one.valid]
    group = Group(np.array([lengths[k] for k in valid], np.int64), max_tokens)
    rewards, components = pay(found, [graded[k].components for k in valid], group, progress)
    by_seat = dict(zip(valid, zip(rewards, components, strict=True), strict=True))
    pairs = [by_seat.get(k, (0.0, {})) for k in range(len(graded))]
    return [reward for reward, _ in pairs], [one for _, one in pairs]
