"""One batch of experience: play the episodes of its prompts, grade what they wrote, and pay the groups."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt32

from mmrl.config import Config
from mmrl.data.pipeline import Batch
from mmrl.grading import SELF_JUDGE, Rules, group_rewards, rollout_facts, rules_of, verifier_input
from mmrl.hosts import say
from mmrl.mesh import local_mesh
from mmrl.open import OpenModel, expand_workdir
from mmrl.rewards.composition import own
from mmrl.rewards.judge_client import JudgePool
from mmrl.rewards.pool import Graded, RewardPool
from mmrl.rollout.generate import gather, member_keys
from mmrl.rollout.sampling import Policy, Sampling
from mmrl.rollout.stats import Stats
from mmrl.rollout.trajectory import Trajectory
from mmrl.train.experience import Experience, Overview, overview
from mmrl.train.metrics import Phases
from mmrl.train.preemption import Notice, interrupt
from mmrl.train.rollouts import observed_slots, play
from mmrl.train.self_judge import self_judged
from mmrl.types import Params
from mmrl.workers.pool import WorkerPool

Seat = tuple[int, int]  # prompt, member of its group
_LOOK_S = 0.2  # between looks whether the run is to stop
_UNJUDGED = "the policy's question about it does not fit config.data.prompt_buckets"


@contextmanager
def reward_pool(config: Config, workdir: Path | None) -> Iterator[RewardPool]:
    """Who grades, as ``config.reward`` has it: processes, and where an endpoint is named the judge's threads.

    Without a ``workdir``, a judge's cache that would lie in it is in memory. Of several processes each has a
    cache of its own, as not all share a disk that locks files, and its part of the budget.

    Raises ValueError for a judge that cannot work.
    """
    reward, judge = config.reward, config.reward.judge
    cache = judge.cache
    if workdir is None and expand_workdir(cache, Path()) != cache:
        cache = ""
    cache, processes = expand_workdir(cache, workdir or Path()), jax.process_count()
    if processes > 1:
        most = judge.max_requests and max(judge.max_requests // processes, 1)
        judge = replace(judge, max_requests=most)
        cache = cache and f"{cache}.{jax.process_index()}"
    judge = replace(judge, cache=cache)
    asked = JudgePool(judge, seed=config.seed, say=say) if judge.endpoint else nullcontext()
    names = tuple(own(asdict(reward)))
    with (
        asked as judges,
        RewardPool(reward.workers, reward.deadline_seconds, judge=judges, own=names) as pool,
    ):
        yield pool


def sample_and_grade(
    params: Params,
    policy: Policy,
    model: OpenModel,
    batch: Batch,
    keys: UInt32[np.ndarray, "b k"],
    *,
    group: int,
    sampling: Sampling,
    config: Config,
    pool: RewardPool,
    tools: WorkerPool | None,
    stats: Stats,
    phases: Phases,
    notice: Notice,
    progress: float,
    heard: Callable[[int], None] = lambda tokens: None,
) -> tuple[Experience, Overview]:
    """Play ``group`` episodes of each prompt of this process, and grade each as it ends.

    ``params`` are laid out for decoding on this process's part of the mesh; ``progress`` is the share of the
    run that is done. A verifier sees the facts of the episode as ``sample.facts["episode"]``, and those of
    the rollout as ``sample.facts["rollout"]``. ``heard`` is told the tokens of each response when it ends.
    Every process of the run must call this.

    Raises:
      Interrupted: one of the processes was asked to stop.
    """
    rules, shape = rules_of(config), (len(batch.samples), group)
    ended: dict[Seat, Trajectory] = {}
    handles: dict[Seat, Future[Graded]] = {}
    with phases("rollout"), jax.set_mesh(local_mesh(model.mesh)):
        for one in play(
            params,
            policy,
            model,
            batch.samples,
            batch.prompts,
            keys,
            group=group,
            sampling=sampling,
            config=config,
            stats=stats,
            tools=tools,
            keep=batch.keep,
            given_up=lambda: notice.given is not None,
        ):
            sample = batch.samples[one.group]
            rollout = rollout_facts(one, sampling.max_tokens, progress)
            sample = verifier_input(sample, rules(sample), rollout, one.facts)
            handles[one.group, one.member] = pool.submit(sample, one.text)
            ended[one.group, one.member] = one
            heard(int(one.written.sum()))
    with phases("rollout"):
        width = batch.prompts.images.patches.shape[-1]
        responses = gather(ended.values(), *shape, sampling.max_tokens, observed_slots(config), width)
    with phases("reward"):
        graded = _results(handles, notice)
    interrupt(notice)
    texts = [[ended[b, g].text if (b, g) in ended else "" for g in range(group)] for b in range(shape[0])]
    if config.reward.self_judge.question:
        with phases("self_judge"):
            verdicts = _verdicts(params, policy, model, batch, texts, graded, keys, config, notice)
            graded = _with_verdicts(graded, verdicts, batch, rules)
        interrupt(notice)
    valid, rewards, components = _paid(batch, graded, ended, rules, group, sampling.max_tokens, progress)
    experience = Experience(
        rows=batch.rows,
        samples=batch.samples,
        prompts=batch.prompts,
        responses=replace(responses, valid=valid),
        texts=texts,
        rewards=rewards,
        components=_table(components, shape),
        facts=_table([ended[seat].facts if seat in ended else {} for seat in np.ndindex(shape)], shape),
        skipped=batch.skipped,
        failures=tuple(row.error for row in graded.values() if row.error is not None),
    )
    with phases("wait"):
        return experience, overview(experience)


def _results(handles: Mapping[Seat, Future[Graded]], notice: Notice) -> dict[Seat, Graded]:
    """The gradings, when all are there; fewer if ``notice`` is given, as a judge may take minutes."""
    left = set(handles.values())
    while left and notice.given is None:
        left = wait(left, timeout=_LOOK_S).not_done
    return {seat: handle.result() for seat, handle in handles.items() if handle.done()}


def _paid(
    batch: Batch,
    graded: Mapping[Seat, Graded],
    ended: Mapping[Seat, Trajectory],
    rules: Rules,
    group: int,
    max_tokens: int,
    progress: float,
) -> tuple[Any, Any, list[dict[str, float]]]:
    """Which responses could be graded, their rewards (both [b g]), and the components of each in turn."""
    shape = (len(batch.samples), group)
    nothing = Graded({}, valid=False)
    rewards: list[list[float]] = []
    components: list[dict[str, float]] = []
    for b, sample in enumerate(batch.samples):
        lengths = [int(ended[b, g].written.sum()) if (b, g) in ended else 0 for g in range(group)]
        of_group = [graded.get((b, g), nothing) for g in range(group)]
        earned, told_apart = group_rewards(rules(sample), of_group, lengths, max_tokens, progress)
        rewards.append(earned)
        components += told_apart
    valid = np.array([graded.get(seat, nothing).valid for seat in np.ndindex(shape)]).reshape(shape)
    return valid, np.array(rewards, np.float32).reshape(shape), components


def _verdicts(
    params: Params,
    policy: Policy,
    model: OpenModel,
    batch: Batch,
    texts: Sequence[Sequence[str]],
    graded: Mapping[Seat, Graded],
    keys: UInt32[np.ndarray, "b k"],
    config: Config,
    notice: Notice,
) -> Any:
    """What the policy says of its responses, Float[b g]; NaN where it was not asked."""
    shape = (len(texts), len(texts[0]))
    keep: Any = np.array([seat in graded and graded[seat].valid for seat in np.ndindex(shape)]).reshape(shape)
    # The key of a member that no group has: no response was sampled with it.
    own_keys = member_keys(keys, shape[1] + 1)[:, -1]
    return self_judged(
        params,
        policy,
        model,
        batch.samples,
        texts,
        keep,
        own_keys,
        config=config,
        question=config.reward.self_judge.question,
        max_tokens=config.reward.self_judge.max_tokens,
        stats=Stats(),  # its tokens are none of the rollout's
        given_up=lambda: notice.given is not None,
    ).values


def _with_verdicts(
    graded: Mapping[Seat, Graded], verdicts: Any, batch: Batch, rules: Rules
) -> dict[Seat, Graded]:
    """Gradings with the component "self_judge"; invalid where it is asked for and there is none."""
    out = {}
    for seat, one in graded.items():
        sample = batch.samples[seat[0]]
        if one.valid and not np.isnan(verdicts[seat]):
            one = replace(one, components={**one.components, SELF_JUDGE: float(verdicts[seat])})
        elif one.valid and SELF_JUDGE in rules(sample).needs:
            one = Graded({}, False, f"sample {sample.id}: {_UNJUDGED}")
        out[seat] = one
    return out


def _table(rows: Sequence[Mapping[str, float]], shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Named values of each response as arrays by name; NaN where a response has none."""
    names = sorted({name for row in rows for name in row})
    return {
        name: np.array([row.get(name, np.nan) for row in rows], np.float32).reshape(shape) for name in names
    }
