"""Batches of graded responses: dynamic sampling, metrics, failing verifiers cost their rows, no more."""

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
from mmrl.data.pipeline import Batch, Skipped
from mmrl.mesh import make_mesh
from mmrl.models.family import param_specs as describe_weights
from mmrl.open import OpenModel
from mmrl.rewards.judge_client import Judge
from mmrl.rewards.pool import RewardPool
from mmrl.rollout.sampling import Sampling
from mmrl.rollout.trajectory import Trajectory
from mmrl.sample import Sample
from mmrl.train import rollout_batch
from mmrl.train.rollout_batch import (
    collect,
    concatenate,
    make_rollout_batch,
    put_on_mesh,
    rollout_metrics,
    take_rows,
)
from mmrl.train.rollouts import RolloutContext, prompt_keys, reward_pool
from mmrl.types import Images, Observed, Prompts, Responses, StopReason

ROWS = 3


def prompts_of(number: int, tokens: int) -> Prompts:
    """Three prompts; every array says which batch and row it belongs to. Row 2 has no image."""
    tag = number * 10 + np.arange(ROWS)
    return Prompts(
        tokens=np.broadcast_to(tag[:, None], (ROWS, tokens)),
        mask=np.ones((ROWS, tokens), bool),
        position=np.zeros((ROWS, tokens, 3), np.int32),
        next_position=tag,
        image_token=np.full((ROWS, tokens), -1, np.int32),
        images=Images(
            patches=np.zeros((ROWS, 4, 12), np.uint8),
            position=np.zeros((ROWS, 4, 2), np.int32),
            image=np.broadcast_to(np.array([0, 0, -1])[:, None], (ROWS, 4)),
        ),
    )


def graded(
    number: int = 0, width: int = 4, *, rewards=None, accuracy=None, samples=None, skipped=(), **fields
):
    """Three groups of two; ``fields`` are of the responses."""
    tag = number * 10 + np.arange(ROWS)
    responses = Responses(
        tokens=np.broadcast_to(tag[:, None, None], (ROWS, 2, 5)),
        mask=np.ones((ROWS, 2, 5), bool),
        logprob=np.zeros((ROWS, 2, 5), np.float32),
        log_kept=np.zeros((ROWS, 2, 5), np.float32),
        stop=np.ones((ROWS, 2), np.int32),
        valid=np.ones((ROWS, 2), bool),
    )
    samples = samples or [Sample(id=f"{number}:{row}", problem="", answer="") for row in range(ROWS)]
    accuracy = np.zeros((ROWS, 2)) if accuracy is None else accuracy
    return make_rollout_batch(
        Batch(np.arange(ROWS), samples, prompts_of(number, width), np.ones(ROWS, bool), skipped),
        replace(responses, **fields),
        [[f"{number}:{row}"] * 2 for row in range(ROWS)],
        np.broadcast_to(tag[:, None], (ROWS, 2)).astype(np.float32) if rewards is None else rewards,
        [{"accuracy": float(value)} for value in np.ravel(accuracy)],
        [{}] * 2 * ROWS,
    )


def kept_rows(*rows):
    return lambda stats: np.isin([int(name[-1]) for name in stats.ids], rows)


def placed(seen, chosen, tokens=4, slots=4):
    return put_on_mesh(seen, chosen, make_mesh({"fsdp": 1}, jax.devices()[:1]), tokens, slots)


def test_one_batch_stays_as_it_is():
    seen, chosen, stats, metrics = collect(graded, kept_rows(0, 2), prompts=ROWS, max_batches=1)
    assert stats.ids.tolist() == ["0:0", "0:1", "0:2"]
    prompts, _ = placed(seen, chosen)
    np.testing.assert_array_equal(prompts.next_position, [0, 1, 2])
    assert metrics == {"rollout/batches": 1.0, "rollout/kept_groups": 2 / 3}


def test_groups_are_put_on_the_mesh_in_the_order_asked_for():
    prompts, responses = placed([graded()], [2, 0, 1])
    np.testing.assert_array_equal(prompts.next_position, [2, 0, 1])
    np.testing.assert_array_equal(responses.tokens[:, 1, 4], [2, 0, 1])


def test_draws_until_full():
    seen, chosen, stats, metrics = collect(graded, kept_rows(1), prompts=ROWS, max_batches=10)
    assert stats.ids.tolist() == ["0:1", "1:1", "2:1"]
    np.testing.assert_array_equal(stats.rewards[:, 0], [1, 11, 21])
    prompts, responses = placed(seen, chosen)
    np.testing.assert_array_equal(responses.tokens[:, 0, 0], [1, 11, 21])
    np.testing.assert_array_equal(prompts.next_position, [1, 11, 21])
    assert metrics["rollout/batches"] == 3


def test_stops_at_the_bound_and_fills_up():
    _, _, stats, metrics = collect(graded, kept_rows(), prompts=ROWS, max_batches=2)
    assert metrics == {"rollout/batches": 2.0, "rollout/kept_groups": 0.0}
    assert stats.ids.tolist() == ["0:0", "0:1", "0:2"]


def test_buckets_of_different_batches_are_joined():
    seen, chosen, _, _ = collect(lambda n: graded(n, 4 + 2 * n), kept_rows(0), prompts=2, max_batches=2)
    prompts, _ = placed(seen, chosen, tokens=8, slots=6)
    assert prompts.tokens.shape == (2, 8)
    np.testing.assert_array_equal(prompts.mask.sum(axis=1), [4, 6])
    assert (np.asarray(prompts.image_token) == -1).all()
    assert prompts.images.patches.shape == (2, 6, 12)
    np.testing.assert_array_equal(prompts.images.image, [[0, 0, 0, 0, -1, -1]] * 2)


def test_tables_of_different_batches_are_joined():
    """A component of one batch alone is NaN in the rows of the other."""
    first, second = graded(0).stats, graded(1).stats
    second = replace(second, components={"format": np.ones((ROWS, 2), np.float32)})
    joined = concatenate([first, second])
    assert [*joined.components] == ["accuracy", "format"]
    np.testing.assert_array_equal(np.isnan(joined.components["format"][:, 0]), [True] * 3 + [False] * 3)
    chosen = take_rows(joined, [4, 0])
    assert chosen.ids.tolist() == ["1:1", "0:0"]
    np.testing.assert_array_equal(chosen.components["accuracy"][:, 0], [np.nan, 0.0])


def test_metrics_leave_out_invalid_rows():
    valid = np.array([[True, False], [True, True], [True, True]])
    rewards = np.array([[1.0, 9.0], [0.0, 1.0], [0.5, 0.5]], np.float32)
    values = rollout_metrics(graded(rewards=rewards, valid=valid).stats)
    assert values["reward/mean"] == pytest.approx(3 / 5)
    assert values["reward/invalid"] == pytest.approx(1 / 6)
    assert values["reward/equal_groups"] == pytest.approx(2 / 3)
    assert not any(name.startswith("source/") for name in values)


def test_what_there_is_to_compute_is_counted():
    """The prompt once, and what is read of the valid responses, with what they have looked at."""
    valid = np.array([[True, False], [True, True], [False, False]])
    plain = graded(valid=valid)
    assert plain.stats.tokens.tolist() == [4 + 5, 4 + 10, 4]
    assert plain.stats.patches.tolist() == [4, 4, 0]
    shape = (ROWS, 2, 5)
    observed = Observed(
        real=np.broadcast_to(np.arange(5) < 3, shape),
        position=np.zeros((*shape, 3), np.int32),
        image_token=np.full(shape, -1, np.int32),
        images=Images(
            patches=np.zeros((ROWS, 2, 8, 12), np.uint8),
            position=np.zeros((ROWS, 2, 8, 2), np.int32),
            image=np.broadcast_to(np.array([0] * 6 + [-1] * 2), (ROWS, 2, 8)),
        ),
    )
    looking = graded(valid=valid, observed=observed)
    assert looking.stats.prompt_tokens.tolist() == [4, 4, 4]
    assert looking.stats.read.tolist() == [[3, 0], [3, 3], [0, 0]]
    assert looking.stats.patches.tolist() == [4 + 6, 4 + 12, 0]


def test_empty_slots_are_no_responses():
    mask = np.ones((ROWS, 2, 5), bool)
    mask[1] = False
    valid = np.array([[True, True], [False, False], [True, True]])
    made = graded(
        mask=mask, valid=valid, stop=np.zeros((ROWS, 2), np.int32), skipped=(Skipped("0:1", "bad"),)
    )
    values = rollout_metrics(made.stats)
    assert made.skipped == (Skipped("0:1", "bad"),)
    assert values["reward/invalid"] == 0
    assert values["response/length"] == 5
    assert values["response/truncated"] == 1


def test_figures_of_each_source():
    samples = [Sample(f"0:{row}", "", "", source=name) for row, name in enumerate(("a", "b", "a"))]
    values = rollout_metrics(graded(samples=samples, accuracy=np.array([[1, 0], [1, 1], [0, 0.0]])).stats)
    assert values["source/a/share"] == pytest.approx(2 / 3)
    assert values["source/a/accuracy"] == pytest.approx(1 / 4)
    assert values["source/b/accuracy"] == 1
    assert values["source/a/reward"] == pytest.approx(1.0)
    assert values["source/b/length"] == 5


def test_digest_tells_order_and_tokens():
    def digest(made):
        return rollout_metrics(made.stats)["rollout/digest"]

    made = graded()
    tokens = made.responses.tokens.copy()
    tokens[1, 1, 2] += 1
    others = [graded(tokens=tokens), graded(samples=[made.samples[k] for k in (1, 0, 2)])]
    assert digest(made) == digest(graded())
    assert len({digest(one) for one in (made, *others)}) == 3


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

    def played(context, params, batch, keys, **_):
        for row in range(len(batch.samples)):
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

    monkeypatch.setattr(rollout_batch, "play", played)

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
            return rollout_batch.sample_and_grade(
                RolloutContext(config, model, model.policy(1.0), rewards=graders),
                {},
                batch,
                prompt_keys(0, 0, 1, count),
                group=GROUP,
                sampling=Sampling(max_tokens=TOKENS),
                progress=0.0,
            )

    return run


def test_rows_of_failing_verifiers_are_invalid_and_counted_and_the_others_are_graded(step):
    bad = ["sleep", "exits", "eats_memory", "raises", "too_large", "not_finite", "unheard_of"]
    start = time.monotonic()
    made = step(["accurate", *bad, "accurate"])
    assert time.monotonic() - start < 60.0  # two rows run into the deadline
    good = np.array([True, *[False] * len(bad), True])
    np.testing.assert_array_equal(made.responses.valid, np.broadcast_to(good[:, None], (9, GROUP)))
    np.testing.assert_array_equal(made.stats.rewards[good], [[1.0, 0.0]] * 2)
    values = rollout_metrics(made.stats)
    assert values["reward/invalid"] == pytest.approx(7 / 9)
    assert values["reward/mean"] == 0.5  # and not 1/9: an invalid row is no reward of 0
    assert values["reward/accuracy"] == 0.5
    targets = advantage_targets(RECIPES["grpo"](reference_kl=0.0), made)
    np.testing.assert_array_equal(np.asarray(targets.advantage)[~good], 0.0)
    assert (np.asarray(targets.advantage)[good] != 0.0).all()


def test_a_batch_of_invalid_rows_alone_is_survived(step):
    """A step with nothing to learn from; dynamic sampling draws again, up to its bound."""
    algorithm = RECIPES["dapo"]()
    drawn = []

    def draw(_):
        drawn.append(step(["raises", "exits"]))
        return drawn[-1]

    def keep(stats):
        return keep_groups(algorithm, stats.accuracy, stats.valid)

    _, _, stats, counts = collect(draw, keep, 2, 2)
    assert counts == {"rollout/batches": 2.0, "rollout/kept_groups": 0.0}
    values = rollout_metrics(stats)
    assert values["reward/invalid"] == 1.0
    assert all(np.isfinite(value) for value in values.values())
    targets = advantage_targets(algorithm, drawn[0])
    assert not np.any(targets.mask)
    for leaf in (targets.advantage, targets.coefficient):
        np.testing.assert_array_equal(leaf, 0.0)


def test_a_judge_over_the_network_grades_too(step, tmp_path):
    from judge_stub import Stub

    weights = {"accuracy": 1.0, "judge": 0.5}
    with Stub() as stub:
        judge = Judge(f"http://127.0.0.1:{stub.server.server_port}/v1", "stub", retries=0)
        options, pool = {"answer_in": "all"}, partial(reward_pool, workdir=tmp_path)
        made = step(["exact+judge"] * 2, pool, weights=weights, judge=judge, options=options)
    np.testing.assert_array_equal(made.stats.rewards, [[1.5, 0.0]] * 2)
    assert rollout_metrics(made.stats)["reward/judge"] == 0.5
    assert (tmp_path / "judge.sqlite3").is_file()
    assert len(stub.seen) == 2  # the rows are alike, and nothing is asked twice


def test_the_policys_own_verdict_is_a_component(step, monkeypatch):
    verdicts = np.array([[1.0, 0.0], [np.nan, 1.0]], np.float32)

    def judged(context, params, samples, texts, keep, keys):
        assert texts == [["right", "wrong"]] * 2
        assert keep.tolist() == [[True, True]] * 2
        return verdicts

    monkeypatch.setattr(rollout_batch, "judge_responses", judged)
    asked = SelfJudgeConfig(question="Right?")
    made = step(["accurate"] * 2, self_judge=asked)
    np.testing.assert_array_equal(made.stats.components["self_judge"], verdicts)
    assert made.responses.valid.all()
    weights = {"accuracy": 1.0, "self_judge": 0.5}
    made = step(["accurate"] * 2, self_judge=asked, weights=weights)
    np.testing.assert_array_equal(made.responses.valid, [[True, True], [False, True]])
    np.testing.assert_array_equal(made.stats.rewards, [[1.5, 0.0], [0.0, 0.5]])
    assert "does not fit config.data.prompt_buckets" in made.failures[0]


def advantage_targets(algorithm, made):
    return prepare(
        algorithm,
        rewards=jnp.asarray(made.stats.rewards),
        accuracy=jnp.asarray(made.stats.accuracy.astype(np.float32)),
        mask=jnp.asarray(made.responses.mask),
        valid=jnp.asarray(made.stats.valid),
        scores={},
        step=0,
        total_steps=1,
    )
