"""prepare, loss and keep_groups: properties that hold for every recipe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.algorithms import penalties, recipes, schedules
from mmrl.algorithms.algorithm import Algorithm, keep_groups, loss, mask_targets, prepare
from mmrl.algorithms.passes import ENTROPY, LOGPROB, PERCEPTION

# Each recipe as it comes, and with what it can do beyond that.
VARIANTS = {name: recipe() for name, recipe in recipes.RECIPES.items()} | {
    "papo_g live": recipes.papo_g(corrupted_branch="live", perception_kl_anneal=0.5),
    "papo_g exact": recipes.papo_g(perception_estimator="exact", full_entropy=0.01, imitation=0.01),
    "papo_d exact live": recipes.papo_d(perception_estimator="exact", corrupted_branch="live"),
    "papo_g chosen": recipes.papo_g(
        perception_top_fraction=0.3, perception_limit=0.2, perception_apply_to="weighted", average="sequence"
    ),
    "vppo exact": recipes.vppo(perception_estimator="exact", entropy_keep=0.2, reference_kl=0.01),
    "dapo overlong": recipes.dapo(max_length=9, overlong_cache=4),
    "gspo token": recipes.gspo(token_level=True),
}


def gradient_of(algorithm, arguments, live):
    """((loss, metrics), gradient) of the whole batch."""
    targets = prepare(algorithm, **arguments)
    return jax.value_and_grad(lambda x: loss(algorithm, targets, x), has_aux=True)(live)


def cut(tree, rows):
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def chosen_live(algorithm, live):
    return {name: live[name] for name in {LOGPROB} | algorithm.live}


@pytest.mark.parametrize(
    "name",
    ["vppo", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in VARIANTS if name != "vppo")],
)
def test_slices_of_a_batch_add_up(name, batch):
    algorithm = VARIANTS[name]
    arguments, live = batch[0], chosen_live(algorithm, batch[1])
    (whole, metrics), gradient = gradient_of(algorithm, arguments, live)
    targets = prepare(algorithm, **arguments)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(targets)} == {6}
    value_and_grad = jax.value_and_grad(lambda x, t: loss(algorithm, t, x), has_aux=True)
    for size in (1, 2, 3):
        total, sums, parts = 0.0, dict.fromkeys(metrics, 0.0), []
        for start in range(0, 6, size):
            rows = slice(start, start + size)
            (value, part), slope = value_and_grad(cut(live, rows), cut(targets, rows))
            total += float(value)
            sums = {key: sums[key] + float(part[key]) for key in sums}
            parts.append(slope)
        assert total == pytest.approx(float(whole), rel=1e-6, abs=1e-7)
        for key, value in metrics.items():
            assert sums[key] == pytest.approx(float(value), rel=1e-6, abs=1e-6), key
        for key, value in gradient.items():
            joined = np.concatenate([np.asarray(part[key]) for part in parts])
            np.testing.assert_allclose(joined, value, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", VARIANTS)
def test_halves_of_the_responses_add_up(name, batch):
    """Cut within groups too; what stands for the tokens of the other half does not matter."""
    algorithm = VARIANTS[name]
    arguments, live = batch[0], chosen_live(algorithm, batch[1])
    (whole, metrics), gradient = gradient_of(algorithm, arguments, live)
    targets = prepare(algorithm, **arguments)
    value_and_grad = jax.value_and_grad(lambda x, t: loss(algorithm, t, x), has_aux=True)
    shape = arguments["mask"].shape
    first = np.random.default_rng(0).permutation(shape[0] * shape[1]).reshape(shape[:2]) % 2 == 0
    assert (first.any(axis=1) & ~first.all(axis=1)).any()
    total, sums, slopes = 0.0, dict.fromkeys(metrics, 0.0), dict.fromkeys(gradient, 0.0)
    for half in (first, ~first):
        there = jnp.broadcast_to(half[..., None], shape)
        given = {key: jnp.where(there, value, jnp.inf) for key, value in live.items()}
        (value, part), slope = value_and_grad(given, mask_targets(targets, there))
        total += float(value)
        sums = {key: sums[key] + float(part[key]) for key in sums}
        slopes = {key: slopes[key] + np.asarray(slope[key]) for key in slopes}
        for leaf in slope.values():
            assert np.all(np.asarray(leaf)[~half] == 0.0)
    assert total == pytest.approx(float(whole), rel=1e-6, abs=1e-7)
    for key, value in metrics.items():
        assert sums[key] == pytest.approx(float(value), rel=1e-6, abs=1e-6), key
    for key, value in gradient.items():
        np.testing.assert_allclose(slopes[key], value, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", VARIANTS)
def test_invalid_rows_and_padding_change_nothing(name, batch):
    algorithm = VARIANTS[name]
    arguments, live = batch[0], chosen_live(algorithm, batch[1])
    (value, metrics), gradient = gradient_of(algorithm, arguments, live)
    counted = arguments["mask"] & arguments["valid"][..., None]
    spoiled = dict(
        arguments,
        rewards=jnp.where(arguments["valid"], arguments["rewards"], jnp.nan),
        accuracy=jnp.where(arguments["valid"], arguments["accuracy"], jnp.nan),
        scores={key: jnp.where(counted, score, jnp.nan) for key, score in arguments["scores"].items()},
    )
    noise = {key: jnp.where(counted, score, jnp.inf) for key, score in live.items()}
    (other, other_metrics), other_gradient = gradient_of(algorithm, spoiled, noise)
    assert float(value) == float(other)
    assert np.isfinite(float(value))
    for key in metrics:
        assert float(metrics[key]) == float(other_metrics[key]), key
    for key in gradient:
        np.testing.assert_array_equal(gradient[key], other_gradient[key])
        assert np.all(np.asarray(gradient[key])[~np.asarray(counted)] == 0.0)


@pytest.mark.parametrize("name", VARIANTS)
def test_more_invalid_prompts_change_nothing(name, batch):
    algorithm = VARIANTS[name]
    arguments, live = batch[0], chosen_live(algorithm, batch[1])
    (value, _), gradient = gradient_of(algorithm, arguments, live)

    def padded(leaf):
        return jnp.concatenate([leaf, jnp.zeros((2, *leaf.shape[1:]), leaf.dtype)])

    keys = ("rewards", "accuracy", "mask", "valid", "scores")
    longer = dict(arguments, **jax.tree.map(padded, {key: arguments[key] for key in keys}))
    (other, _), other_gradient = gradient_of(algorithm, longer, jax.tree.map(padded, live))
    assert float(other) == pytest.approx(float(value), rel=1e-6, abs=1e-8)
    for key in gradient:
        np.testing.assert_allclose(other_gradient[key][:6], gradient[key], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_batch_without_valid_rows_is_zero(name, batch):
    algorithm = VARIANTS[name]
    arguments, live = batch[0], chosen_live(algorithm, batch[1])
    nothing = dict(arguments, valid=jnp.zeros_like(arguments["valid"]))
    (value, metrics), gradient = gradient_of(algorithm, nothing, live)
    assert float(value) == 0.0
    assert all(float(metric) == 0.0 for metric in metrics.values())
    assert all(np.all(np.asarray(leaf) == 0.0) for leaf in gradient.values())


FAR = (0.0, -1e-8, -0.5, -19.99, -20.0, -20.01, -88.0, -1e4, -1e30)


@pytest.mark.parametrize("name", VARIANTS)
def test_logprobs_however_far_apart_give_finite_values_and_gradients(name, batch):
    algorithm, rng = VARIANTS[name], np.random.default_rng(0)
    arguments, live = batch

    def far(tree):
        drawn = {key: rng.choice(FAR, value.shape).astype(np.float32) for key, value in tree.items()}
        return {key: jnp.asarray(-value if value_of(key) else value) for key, value in drawn.items()}

    def value_of(key):  # not a logprob but an entropy or a divergence
        return key in (PERCEPTION, ENTROPY)

    for _ in range(3):
        spread = dict(arguments, scores=far(arguments["scores"]))
        (value, metrics), gradient = gradient_of(algorithm, spread, far(chosen_live(algorithm, live)))
        for leaf in jax.tree.leaves((value, metrics, gradient)):
            assert np.all(np.isfinite(leaf))
        assert float(metrics["ratio"]) <= np.exp(20.1)


FEW = {
    "one valid row in each group": lambda valid: np.arange(valid.shape[1]) == np.arange(6)[:, None] % 4,
    "one valid row in the batch": lambda valid: np.arange(valid.size).reshape(valid.shape) == 9,
    "one valid group": lambda valid: np.broadcast_to(np.arange(6)[:, None] == 1, valid.shape),
    "one valid pair": lambda valid: (np.arange(6)[:, None] == 1) & (np.arange(4) < 2),
}


@pytest.mark.parametrize("few", FEW)
@pytest.mark.parametrize("name", VARIANTS)
def test_few_valid_rows(name, few, batch):
    """Finite throughout; a row alone in its group has no advantage, whatever it shares the batch with."""
    algorithm = VARIANTS[name]
    arguments, live = batch[0], chosen_live(algorithm, batch[1])
    valid = FEW[few](arguments["valid"])
    rewards = jnp.asarray(np.random.default_rng(1).permutation(valid.size).reshape(valid.shape), jnp.float32)
    arguments = dict(arguments, valid=jnp.asarray(valid), rewards=rewards)
    targets = prepare(algorithm, **arguments)
    compared = valid.sum(axis=1) > 1
    assert np.all(np.asarray(targets.advantage)[~compared] == 0.0)
    assert np.any(np.asarray(targets.advantage)[compared] != 0.0) == compared.any()
    (value, metrics), gradient = gradient_of(algorithm, arguments, live)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((value, metrics, gradient)))
    for leaf in gradient.values():
        assert np.all(np.asarray(leaf)[~valid] == 0.0)


@pytest.mark.parametrize("name", ["dapo overlong", "papo_g chosen", "vppo exact"])
def test_prepare_can_be_jitted_with_a_traced_step(name, batch):
    algorithm, arguments = VARIANTS[name], batch[0]
    rest = {key: value for key, value in arguments.items() if key not in ("step", "total_steps")}
    jitted = jax.jit(lambda rest, step: prepare(algorithm, **rest, step=step, total_steps=10))
    plain = prepare(algorithm, **arguments)
    for ours, theirs in zip(jax.tree.leaves(jitted(rest, jnp.int32(3))), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_equal_rewards_give_no_policy_gradient(batch):
    arguments, live = batch
    algorithm = recipes.grpo(reference_kl=0.0)
    equal = dict(arguments, rewards=jnp.full_like(arguments["rewards"], 0.1))
    (value, _), gradient = gradient_of(algorithm, equal, {LOGPROB: live[LOGPROB]})
    assert float(value) == 0.0
    assert np.all(np.asarray(gradient[LOGPROB]) == 0.0)


def test_missing_scores_are_named(batch):
    arguments = dict(batch[0], scores={LOGPROB: batch[0]["scores"][LOGPROB]})
    with pytest.raises(ValueError, match=r"lack logprob\(policy/corrupted\), logprob\(reference\), which"):
        prepare(recipes.papo_g(), **arguments)


def test_metrics_name_each_penalty(batch):
    arguments, live = batch
    targets = prepare(recipes.papo_g(), **arguments)
    _, metrics = loss(recipes.papo_g(), targets, {LOGPROB: live[LOGPROB]})
    assert {"policy_loss", "reference_kl", "perception_kl", "sampled_entropy"} <= set(metrics)
    assert {"approx_kl", "ratio", "clip_high", "clip_low", "clip_dual"} <= set(metrics)


def test_a_schedule_moves_the_coefficient_of_the_step(batch):
    arguments, live = batch
    term = penalties.entropy(schedules.linear(1.0, 0.0))
    algorithm = Algorithm(advantage=lambda e: jnp.zeros_like(e.rewards)[..., None], penalties=(term,))
    values = [float(gradient_of(algorithm, dict(arguments, step=step), live)[0][0]) for step in (0, 5, 10)]
    assert values[1] == pytest.approx(values[0] / 2, rel=1e-6)
    assert values[2] == 0.0


def test_dynamic_sampling_keeps_groups_strictly_inside():
    algorithm = recipes.dapo(filter_low=0.25, filter_high=0.75)
    accuracy = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 9], [1, 1, 1, 1]], np.float32)
    valid = np.ones(accuracy.shape, bool)
    valid[3, 2:] = False
    valid[4] = False
    np.testing.assert_array_equal(keep_groups(algorithm, accuracy, valid), [True, False, False, True, False])
    np.testing.assert_array_equal(keep_groups(recipes.grpo(), accuracy, valid), [True] * 4 + [False])


def test_dynamic_sampling_drops_a_group_with_one_valid_row():
    accuracy = np.full((2, 3), 0.5, np.float32)
    valid = np.array([[True, False, False], [True, True, False]])
    np.testing.assert_array_equal(keep_groups(recipes.dapo(), accuracy, valid), [False, True])
    np.testing.assert_array_equal(keep_groups(recipes.grpo(), accuracy, valid), [True, True])


def test_overlong_penalty_reaches_the_reward(batch):
    arguments, _ = batch
    plain, shaped = (
        prepare(recipe, **arguments)
        for recipe in (recipes.dapo(), recipes.dapo(max_length=8, overlong_cache=4))
    )
    length = np.asarray(arguments["mask"]).sum(-1)
    assert np.all(length[3] > 0)  # equal rewards: without the penalty no advantage
    assert np.all(np.asarray(plain.advantage[3]) == 0.0)
    longest = int(length[3].argmax())
    assert float(shaped.advantage[3, longest, 0]) < 0.0
