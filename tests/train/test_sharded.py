"""The programs of a run do the same on a mesh of eight devices, however it is cut, as on one device."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import run_on
from tiny import make_prompts, make_responses, read_policy, shallow

from mmrl.algorithms.passes import ENTROPY, LOGPROB, REFERENCE_LOGPROB
from mmrl.algorithms.recipes import RECIPES
from mmrl.config import OptimizerConfig
from mmrl.mesh import AXES, make_mesh, shard_batch, shardings
from mmrl.models.family import param_specs
from mmrl.models.params import initialise
from mmrl.packing import pack_batch
from mmrl.rollout import engine
from mmrl.rollout.generate import generate
from mmrl.rollout.sampling import Policy, Sampling
from mmrl.train import programs
from mmrl.train.optimizer import make_optimizer
from mmrl.train.programs import ImageCorruption, TrainBatch
from mmrl.train.state import initial_state

DEVICES = 8
# replica, data, fsdp, expert, tensor. The model has 4 heads and 2 key/value heads: over 8 they cannot be cut.
MESHES = [(1, 8, 1, 1, 1), (1, 1, 8, 1, 1), (1, 2, 2, 1, 2), (2, 1, 1, 2, 2), (1, 1, 1, 1, 8)]
ALGORITHMS = {
    "grpo": RECIPES["grpo"](),
    "papo_exact": RECIPES["papo_g"](perception_estimator="exact"),
    "vppo": RECIPES["vppo"](),
}
VIEWS = {"corrupted": ImageCorruption("patch_black", 0.5)}
PROMPTS, GROUP, SLOTS = 8, 2, 4
# A large eps keeps the step a smooth function of the gradient; at 1e-8 it is the sign of rounding errors.
OPTIMIZER = OptimizerConfig(learning_rate=0.1, eps=1.0, max_gradient_norm=1e9)


@pytest.mark.slow
def test_on_eight_devices():
    """The count of devices is fixed once jax has run, so a child runs the tests below.

    One method and one mesh, the one that cuts everything, because each compiles for some twenty seconds.
    With XLA_FLAGS=--xla_force_host_platform_device_count=8, pytest on this file runs all of them.
    """
    run_on(DEVICES, __file__, "-k", "qwen2_5_vl and 1x2x2x1x2 and (rollout or grpo)")


@pytest.mark.exhaustive
def test_others_on_eight_devices():
    """Updates of the other methods on that mesh, rollouts on all; one method of the other families."""
    run_on(DEVICES, __file__, "-k", "(qwen2_5_vl and (rollout or 1x2x2x1x2)) or (2x1x1x2x2 and grpo)")


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe"])
def small(request, fixtures_dir):
    """One layer of each tower, random weights, a batch of prompts and responses, on the host."""
    if jax.device_count() < DEVICES:
        pytest.skip(f"needs {DEVICES} devices: runs in the child of test_on_eight_devices")
    policy = read_policy(fixtures_dir / request.param)
    config = shallow(policy.config)
    sizes = [(56, 56), (84, 56), (), (56, 84), (56, 56), (84, 84), (56, 84), (84, 56)]
    rows = [("a" * (k % 3 + 1), [size] if size else []) for k, size in enumerate(sizes)]
    prompts = make_prompts(policy.processor, rows, tokens=48, patches=64)
    lengths = [[4, 1], [2, 4], [1, 1], [3, 4], [4, 4], [1, 2], [2, 3], [4, 2]]
    responses = make_responses(lengths, SLOTS, vocabulary=1800)
    batch = packed_on(make_mesh({}, jax.devices()[:1]), config, prompts, responses)
    static = Policy(config, 1.0, engine.vocabulary_bias(config.vocabulary, 1822, ()))
    return jax.device_get(initialise(param_specs(config), 0)), static, batch


def packed_on(mesh, config, prompts, responses):
    """A batch on a mesh, in rows of 128 tokens."""
    prompts, responses = shard_batch((prompts, responses), mesh)
    packed = pack_batch(prompts, responses, config, mesh, 128)
    return TrainBatch(prompts, responses, packed, jax.random.split(jax.random.key(3), PROMPTS))


@pytest.fixture(scope="module", params=MESHES, ids=lambda shape: "x".join(map(str, shape)))
def cut(request, small):
    """A mesh, and weights and batch of `small` on it."""
    params, policy, batch = small
    mesh = make_mesh(dict(zip(AXES, request.param, strict=True)))
    placed = jax.device_put(params, shardings(param_specs(policy.model), mesh))
    return mesh, placed, packed_on(mesh, policy.model, batch.prompts, batch.responses)


@pytest.fixture(scope="module")
def whole(small):
    """What one device makes of `small`: targets and update by an algorithm's name, and sampled responses."""
    params, policy, batch = small

    @cache
    def update_by(name):
        targets = prepared(ALGORITHMS[name], policy, params, batch)
        return targets, jax.device_get(updated(ALGORITHMS[name], policy, params, batch, targets))

    return update_by, jax.device_get(sampled(policy, params, batch))


def prepared(algorithm, policy, params, batch):
    wanted = algorithm.needs_of("policy") | {ENTROPY, LOGPROB}
    scores = programs.score({"policy": params}, policy, batch, VIEWS, wanted=wanted)
    noise = jax.random.normal(jax.random.key(1), scores[LOGPROB].shape)  # some ratios are clipped
    moved = {LOGPROB: scores[LOGPROB] + 0.3 * noise, REFERENCE_LOGPROB: scores[LOGPROB] - 0.2 * noise}
    rewards = jnp.arange(PROMPTS * GROUP).reshape(PROMPTS, GROUP) % 5 / 4
    responses = batch.responses
    return programs.prepare(
        algorithm,
        rewards,
        (rewards > 0.5).astype(jnp.float32),
        responses.valid,
        responses.mask,
        {**scores, **moved},
        jnp.int32(1),
        10,
    )


def updated(algorithm, policy, params, batch, targets):
    """State after one update, and its metrics."""
    params = jax.tree.map(jnp.copy, params)  # the update gives its input's memory away
    optimizer = make_optimizer(OPTIMIZER, 10)
    state = initial_state(params, optimizer)
    return programs.update(state, policy, batch, targets, VIEWS, algorithm=algorithm, optimizer=optimizer)


def sampled(policy, params, batch):
    weights = jax.jit(engine.decoding_weights, static_argnums=1)(params, policy.model)
    return generate(
        weights,
        policy.model,
        batch.prompts,
        batch.view_keys,
        group=GROUP,
        sampling=Sampling(max_tokens=6, temperature=1.0, top_p=0.9, stop_ids=(5,)),
        bias=policy.bias,
    )


def assert_close(ours, theirs, name=""):
    """Equal within 1e-5 of the largest value of each array."""
    for path, expected in jax.tree_util.tree_leaves_with_path(theirs):
        found = dict(jax.tree_util.tree_leaves_with_path(ours))[path]
        bound = 1e-5 * float(np.abs(expected).max())
        np.testing.assert_allclose(
            found, expected, rtol=0, atol=bound, err_msg=f"{name} {jax.tree_util.keystr(path)}"
        )


@pytest.mark.parametrize("name", ALGORITHMS)
def test_update(name, cut, small, whole):
    """Loss, gradients (the optimizer's first moment is a tenth of them) and weights after a step."""
    (mesh, params, batch), (_, policy, _) = cut, small
    targets, (expected, expected_metrics) = whole[0](name)
    with jax.set_mesh(mesh):
        state, metrics = updated(ALGORITHMS[name], policy, params, batch, shard_batch(targets, mesh))
    assert_close(jax.device_get(metrics), expected_metrics, "metrics")
    assert_close(jax.device_get(state), expected, "state")
    moments = [np.abs(leaf).max() for leaf in jax.tree.leaves(expected.optimizer) if np.ndim(leaf)]
    assert max(moments) > 1e-4
    for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(state.params), strict=True):
        assert after.sharding.is_equivalent_to(before.sharding, before.ndim)


def test_rollout(cut, small, whole):
    """Token for token."""
    (mesh, params, batch), (_, policy, _) = cut, small
    with jax.set_mesh(mesh):
        responses = jax.device_get(sampled(policy, params, batch))
    expected = whole[1]
    for field in ("tokens", "mask", "stop", "valid"):
        np.testing.assert_array_equal(getattr(responses, field), getattr(expected, field), err_msg=field)
    np.testing.assert_allclose(responses.logprob, expected.logprob, atol=1e-5)
    assert len(np.unique(expected.tokens)) > 20
