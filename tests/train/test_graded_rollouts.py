"""Who grades in a step; verifiers that hang, die, eat memory or cannot be loaded cost their rows, no more."""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import make_prompts

from mmrl.algorithms.algorithm import keep_groups, prepare
from mmrl.algorithms.recipes import RECIPES
from mmrl.config import SelfJudgeConfig
from mmrl.data.pipeline import Batch
from mmrl.mesh import make_mesh
from mmrl.models.qwen2_5_vl_config import describe as describe_weights
from mmrl.open import OpenModel
from mmrl.rewards.judge_client import Judge
from mmrl.rewards.pool import RewardPool
from mmrl.rollout.sampling import Sampling
from mmrl.rollout.stats import Stats
from mmrl.rollout.trajectory import Trajectory
from mmrl.sample import Sample
from mmrl.train import graded_rollouts, rollouts
from mmrl.train.experience import collect, describe
from mmrl.train.graded_rollouts import reward_pool
from mmrl.train.metrics import Phases
from mmrl.train.preemption import Notice
from mmrl.train.self_judge import SelfJudged
from mmrl.types import StopReason

GROUP, TOKENS, DEADLINE_S = 2, 3, 1.0


@pytest.fixture
def step(policy, smoke_config, monkeypatch):
    """A function of verifiers: samples and grades a batch of one prompt each, without a model to sample with.

    The first response of each prompt is the answer, the second is not.
    """
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "rewards"))
    mesh = make_mesh({"replica": 1, "data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    weights = describe_weights(policy.config)
    model = OpenModel(policy.directory, policy.processor, policy.config, weights, mesh)
    alone = {"weights": {"accuracy": 1.0}, "verifier": ""}

    def played(params, policy, model, samples, *_, **__):
        for row in range(len(samples)):
            for member, text in enumerate(("right", "wrong")):
                yield Trajectory(
                    group=row,
                    member=member,
                    tokens=np.arange(TOKENS),
                    written=np.ones(TOKENS, bool),
                    logprob=np.full(TOKENS, -1.0, np.float32),
                    log_kept=np.zeros(TOKENS, np.float32),
                    entropy=None,
                    stop=StopReason.EOS,
                    text=text,
                )

    monkeypatch.setattr(graded_rollouts, "play", played)

    def run(verifiers, pool=None, **reward):
        count = len(verifiers)
        config = replace(smoke_config, reward=replace(smoke_config.reward, **(alone | reward)))
        prompts = make_prompts(policy.processor, [("a", [])] * count, tokens=32, patches=16)
        batch = Batch(
            rows=np.arange(count),
            samples=[Sample(f"test:{row}", "a", "right", verifier=v) for row, v in enumerate(verifiers)],
            prompts=jax.tree.map(np.asarray, prompts),
            keep=np.ones(count, bool),
            skipped=(),
        )
        with pool(config) if pool else RewardPool(1, DEADLINE_S, table="hostile_table") as graders:
            return graded_rollouts.sample_and_grade(
                {},
                model.policy(1.0),
                model,
                batch,
                rollouts.prompt_keys(0, 0, 1, count),
                group=GROUP,
                sampling=Sampling(max_tokens=TOKENS),
                config=config,
                pool=graders,
                tools=None,
                stats=Stats(),
                phases=Phases(),
                notice=Notice(),
                progress=0.0,
            )

    return run


def test_rows_of_failing_verifiers_are_invalid_and_counted_and_the_others_are_graded(step):
    bad = ["sleep", "exits", "eats_memory", "raises", "too_large", "not_finite", "unheard_of"]
    start = time.monotonic()
    experience, whole = step(["accurate", *bad, "accurate"])
    assert time.monotonic() - start < 60.0  # two rows run into the deadline
    good = np.array([True, *[False] * len(bad), True])
    np.testing.assert_array_equal(experience.responses.valid, np.broadcast_to(good[:, None], (9, GROUP)))
    np.testing.assert_array_equal(experience.rewards[good], [[1.0, 0.0]] * 2)
    values = describe(whole)
    assert values["reward/invalid"] == pytest.approx(7 / 9)
    assert values["reward/mean"] == 0.5  # and not 1/9: an invalid row is no reward of 0
    assert values["reward/accuracy"] == 0.5
    targets = advantage_targets(RECIPES["grpo"](reference_kl=0.0), whole, experience)
    np.testing.assert_array_equal(np.asarray(targets.advantage)[~good], 0.0)
    assert (np.asarray(targets.advantage)[good] != 0.0).all()


def test_a_batch_of_invalid_rows_alone_is_survived(step):
    """A step with nothing to learn from; dynamic sampling draws again, up to its bound."""
    algorithm = RECIPES["dapo"]()
    drawn = []

    def draw(_):
        drawn.append(step(["raises", "exits"]))
        return drawn[-1]

    def keep(whole):
        return keep_groups(algorithm, whole.accuracy, whole.valid)

    _, _, whole, counts = collect(draw, keep, 2, 2)
    assert counts == {"rollout/batches": 2.0, "rollout/kept_groups": 0.0}
    values = describe(whole)
    assert values["reward/invalid"] == 1.0
    assert all(np.isfinite(value) for value in values.values())
    targets = advantage_targets(algorithm, whole, drawn[0][0])
    assert not np.any(targets.mask)
    for leaf in (targets.advantage, targets.coefficient):
        np.testing.assert_array_equal(leaf, 0.0)


def test_a_judge_over_the_network_grades_too(step, tmp_path):
    from judge_stub import Stub

    weights = {"accuracy": 1.0, "judge": 0.5}
    with Stub() as stub:
        judge = Judge(f"http://127.0.0.1:{stub.server.server_port}/v1", "stub", retries=0)
        options, pool = {"answer_in": "all"}, partial(reward_pool, workdir=tmp_path)
        experience, whole = step(["exact+judge"] * 2, pool, weights=weights, judge=judge, options=options)
    np.testing.assert_array_equal(experience.rewards, [[1.5, 0.0]] * 2)
    assert describe(whole)["reward/judge"] == 0.5
    assert (tmp_path / "judge.sqlite3").is_file()
    assert len(stub.seen) == 2  # the rows are alike, and nothing is asked twice


def test_the_policys_own_verdict_is_a_component(step, monkeypatch):
    verdicts = np.array([[1.0, 0.0], [np.nan, 1.0]], np.float32)

    def judged(params, policy, model, samples, texts, keep, *_, question, **__):
        assert (texts, question) == ([["right", "wrong"]] * 2, "Right?")
        assert keep.tolist() == [[True, True]] * 2
        return SelfJudged(verdicts, 0, 1)

    monkeypatch.setattr(graded_rollouts, "self_judged", judged)
    asked = SelfJudgeConfig(question="Right?")
    experience, _ = step(["accurate"] * 2, self_judge=asked)
    np.testing.assert_array_equal(experience.components["self_judge"], verdicts)
    assert experience.responses.valid.all()
    weights = {"accuracy": 1.0, "self_judge": 0.5}
    experience, _ = step(["accurate"] * 2, self_judge=asked, weights=weights)
    np.testing.assert_array_equal(experience.responses.valid, [[True, True], [False, True]])
    np.testing.assert_array_equal(experience.rewards, [[1.5, 0.0], [0.0, 0.5]])
    assert "does not fit config.data.prompt_buckets" in experience.failures[0]


def advantage_targets(algorithm, whole, experience):
    return prepare(
        algorithm,
        rewards=jnp.asarray(whole.rewards),
        accuracy=jnp.asarray(whole.accuracy.astype(np.float32)),
        mask=jnp.asarray(experience.responses.mask),
        valid=jnp.asarray(whole.valid),
        scores={},
        step=0,
        total_steps=1,
    )
