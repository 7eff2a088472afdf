"""The update: its value does not depend on how the batch is cut, and a non-finite one changes nothing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import make_prompts, make_responses, noise_image

from mmrl.algorithms.algorithm import loss as algorithm_loss
from mmrl.algorithms.passes import CORRUPTED_LOGPROB, ENTROPY, LOGPROB, PERCEPTION, REFERENCE_LOGPROB
from mmrl.algorithms.recipes import RECIPES
from mmrl.models.family import param_specs
from mmrl.models.params import Param, initialise
from mmrl.models.prompts import encode_turn
from mmrl.rollout.engine import vocabulary_bias
from mmrl.rollout.generate import to_responses
from mmrl.rollout.sampling import Policy
from mmrl.rollout.trajectory import WrittenTurn, assemble
from mmrl.train import programs
from mmrl.train.programs import ImageCorruption, TrainBatch
from mmrl.train.state import initial_state

VIEWS = {"corrupted": ImageCorruption("patch_black", 0.5)}
PROMPTS, GROUP, SLOTS = 4, 3, 5


@pytest.fixture(scope="module")
def small(policy):
    """One layer of each tower, random weights, and a batch of prompts with sampled-like responses."""
    from dataclasses import replace

    config = replace(policy.config, layers=1, vision_layers=1, full_attention_layers=(0,))
    params = initialise(param_specs(config), 0)
    rows = [("a", [(56, 56)]), ("bb", [(84, 56)]), ("c", []), ("dd", [(56, 84)])]
    prompts = make_prompts(policy.processor, rows, tokens=48, patches=64)
    lengths = [[5, 1, 3], [2, 5, 4], [1, 1, 5], [4, 3, 2]]
    responses = make_responses(lengths, SLOTS, vocabulary=1800)
    keys = jax.random.split(jax.random.key(3), PROMPTS)
    static = Policy(model=config, temperature=1.0, bias=vocabulary_bias(config.vocabulary, 1822, ()))
    return params, static, TrainBatch(prompts, responses, keys)


@pytest.fixture(scope="module")
def looking(policy, small):
    """The batch once more, with responses that look at pictures on their way; one of each group does not."""
    from dataclasses import replace

    params, static, batch = small
    rng = np.random.default_rng(0)
    made = []
    for row in range(PROMPTS):
        for member in range(GROUP):
            pieces = [WrittenTurn(rng.integers(0, 1800, 2).tolist())]
            if (row + member) % GROUP:
                pictures = [noise_image(56, 56, seed=10 * row + member)]
                pieces.append(encode_turn(policy.processor, "<image>", pictures, ended=False))
                pieces.append(WrittenTurn(rng.integers(0, 1800, 3).tolist()))
            made.append(assemble(pieces, group=row, member=member, stop=1, text="", facts={}))
    length = max(len(one.tokens) for one in made)
    width = batch.prompts.images.patches.shape[-1]
    responses = to_responses(made, PROMPTS, GROUP, length, observation_patches=16, patch_width=width)
    return params, static, replace(batch, responses=jax.tree.map(jnp.asarray, responses))


def prepared(algorithm, small):
    params, policy, batch = small
    wanted = algorithm.needs_of("policy") | {ENTROPY, LOGPROB}
    scores = programs.score({"policy": params}, policy, batch, VIEWS, wanted=wanted, micro_batches=1)
    # The policy has moved on from the one that sampled: ratios differ from 1, some are clipped.
    noise = jax.random.normal(jax.random.key(1), scores[LOGPROB].shape)
    scores = {
        **scores,
        LOGPROB: scores[LOGPROB] + 0.3 * noise,
        REFERENCE_LOGPROB: scores[LOGPROB] - 0.2 * noise,
    }
    rewards = jnp.array([[1.0, 0.0, 0.1], [0.0, 1.0, 1.0], [0.0, 0.1, 0.0], [0.9, 0.0, 0.0]])
    return programs.prepare(
        algorithm,
        rewards,
        (rewards > 0.5).astype(jnp.float32),
        batch.responses.valid,
        batch.responses.mask,
        scores,
        jnp.int32(1),
        10,
    )


# Of each kind of statistic one: of tokens, of sequences, of corrupted images in the loss, in the weights.
KINDS = ("grpo", "gspo", "papo_g", "vppo")
OTHERS = [pytest.param(name, marks=pytest.mark.exhaustive) for name in sorted(RECIPES.keys() - set(KINDS))]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*KINDS, *OTHERS])
def test_micro_batches_change_nothing(name, small):
    """Loss, metrics and the gradient of every weight, over three sizes of micro-batch."""
    params, policy, batch = small
    algorithm = RECIPES[name]()
    targets = prepared(algorithm, small)

    def loss(params, micro):
        inputs, goals = micro
        live = programs.token_scores(
            {"policy": params}, policy, inputs, VIEWS, algorithm.live | {LOGPROB}, algorithm.differentiated
        )
        value, metrics = algorithm_loss(algorithm, goals, live)
        return value, (metrics, {})

    def total(count):
        return jax.jit(partial(programs.accumulate, loss))(params, programs.split((batch, targets), count))

    whole, metrics, _ = total(1)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(whole))
    assert scale > 1e-4
    for count in (2, 4):
        gradient, again, _ = total(count)
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(gradient), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * scale)
        for key, value in metrics.items():
            np.testing.assert_allclose(
                again[key], value, atol=1e-5 * max(1.0, abs(float(value))), err_msg=key
            )


def change(small, algorithm, targets, count):
    """What an update in ``count`` micro-batches does to the weights, and its metrics."""
    params, policy, batch = small
    optimizer = optax.sgd(1e4)  # so that the change is not lost in the rounding of the weights
    after, metrics = programs.update(
        initial_state(jax.tree.map(jnp.copy, params), optimizer),
        policy,
        batch,
        targets,
        VIEWS,
        algorithm=algorithm,
        optimizer=optimizer,
        micro_batches=count,
    )
    assert int(after.updates) == 1
    return jax.tree.map(jnp.subtract, after.params, params), metrics


def test_frozen_weights_stay_and_count_in_no_norm(small):
    """The others change as if nothing were frozen, and the norm is theirs."""
    params, policy, batch = small
    algorithm = RECIPES["grpo"]()
    targets = prepared(algorithm, small)
    changes, norms = [], []
    for freeze in ((), ("vision",)):
        optimizer = optax.sgd(1e4)
        after, metrics = programs.update(
            initial_state(jax.tree.map(jnp.copy, params), optimizer, freeze),
            policy,
            batch,
            targets,
            VIEWS,
            algorithm=algorithm,
            optimizer=optimizer,
            micro_batches=2,
        )
        changes.append(jax.tree.map(jnp.subtract, after.params, params))
        norms.append(float(metrics["gradient_norm"]))
    whole, frozen = changes
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(frozen.pop("vision")))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(whole.pop("vision")))
    assert_same_change(frozen, whole)
    assert norms[1] == pytest.approx(float(optax.global_norm(whole)) / 1e4, rel=1e-3)
    assert norms[1] < norms[0]


def assert_same_change(ours, theirs):
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(theirs))
    assert scale > 1
    for a, b in zip(jax.tree.leaves(theirs), jax.tree.leaves(ours), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * scale)


def test_an_update_finds_the_logprob_it_is_not_given(small):
    """The first update on a batch: scored before, or scored on its way, it is the same."""
    params, policy, batch = small
    algorithm = RECIPES["grpo"](reference_kl=0.0)
    scored = programs.score(
        {"policy": params}, policy, batch, VIEWS, wanted=frozenset({LOGPROB}), micro_batches=1
    )
    rewards = jnp.arange(PROMPTS * GROUP, dtype=jnp.float32).reshape(PROMPTS, GROUP) % 2
    changes, made = [], []
    for scores in (scored, {}):
        targets = programs.prepare(
            algorithm,
            rewards,
            rewards,
            batch.responses.valid,
            batch.responses.mask,
            scores,
            jnp.int32(0),
            10,
        )
        moved, metrics = change(small, algorithm, targets, 2)
        changes.append(moved)
        made.append(metrics)
    np.testing.assert_allclose(made[1].pop("logprob"), scored[LOGPROB], atol=2e-5)
    assert "logprob" not in made[0]
    assert_same_change(changes[1], changes[0])
    for key, value in made[0].items():
        np.testing.assert_allclose(made[1][key], value, atol=1e-5, err_msg=key)


def test_score_does_not_depend_on_micro_batches(small):
    params, policy, batch = small
    wanted = frozenset({LOGPROB, ENTROPY, CORRUPTED_LOGPROB, PERCEPTION})
    whole = programs.score({"policy": params}, policy, batch, VIEWS, wanted=wanted, micro_batches=1)
    cut = programs.score({"policy": params}, policy, batch, VIEWS, wanted=wanted, micro_batches=4)
    assert whole.keys() == cut.keys() == wanted
    for name, value in whole.items():
        np.testing.assert_allclose(cut[name], value, atol=2e-5, err_msg=name)
    perception = np.asarray(whole[PERCEPTION])
    assert perception.min() > -1e-5
    assert perception[2].max() < 1e-5  # the row without an image does not depend on one
    assert perception[[0, 1, 3]].max() > 1e-3


def test_score_where_responses_look(looking):
    """Of a prompt without an image, what was written after the look, and nothing else, owes to a picture."""
    params, policy, batch = looking
    wanted = frozenset({PERCEPTION, CORRUPTED_LOGPROB})
    whole = programs.score({"policy": params}, policy, batch, VIEWS, wanted=wanted, micro_batches=1)
    cut = programs.score({"policy": params}, policy, batch, VIEWS, wanted=wanted, micro_batches=4)
    for name, value in whole.items():
        np.testing.assert_allclose(cut[name], value, atol=2e-5, err_msg=name)
        assert (np.asarray(value)[~batch.responses.mask] == 0).all()
    perception, mask = np.asarray(whole[PERCEPTION])[2], np.asarray(batch.responses.mask)[2]
    for member in range(GROUP):
        values = perception[member][mask[member]]
        assert np.abs(values[:2]).max() < 1e-5
        assert len(values) == (5 if (2 + member) % GROUP else 2)
        assert len(values) == 2 or values[2:].min() > 1e-4


@pytest.mark.slow
def test_micro_batches_change_nothing_where_responses_look(looking):
    """An update by PAPO, its terms of perception included."""
    algorithm = RECIPES["papo_g"]()
    targets = prepared(algorithm, looking)
    (whole, metrics), (cut, again) = (change(looking, algorithm, targets, count) for count in (1, 4))
    assert float(metrics["perception_kl"]) > 1e-4
    assert_same_change(cut, whole)
    for key, value in metrics.items():
        np.testing.assert_allclose(again[key], value, atol=1e-5 * max(1.0, abs(float(value))), err_msg=key)


def test_split_and_join():
    tree = {"x": jnp.arange(12).reshape(6, 2)}
    cut = programs.split(tree, 3)
    np.testing.assert_array_equal(cut["x"][0], tree["x"][jnp.array([0, 3])])
    np.testing.assert_array_equal(programs.join(cut)["x"], tree["x"])


@pytest.mark.parametrize("poison", [jnp.nan, jnp.inf])
def test_a_non_finite_update_changes_nothing(poison):
    optimizer = optax.adam(0.1)
    described = {"w": Param((3,), (None,), "w", "d -> d")}
    state = initial_state({"w": jnp.ones(3)}, optimizer)
    good, metrics = programs.apply(state, {"w": jnp.ones(3)}, {"loss": jnp.float32(1)}, optimizer, described)
    assert metrics["skipped"] == 0
    assert int(good.updates) == 1
    assert not np.array_equal(good.params["w"], state.params["w"])
    for gradient, loss in ((jnp.array([1.0, poison, 1.0]), 1.0), (jnp.ones(3), poison)):
        kept, metrics = programs.apply(
            good, {"w": gradient}, {"loss": jnp.float32(loss)}, optimizer, described
        )
        assert metrics["skipped"] == 1
        for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(good), strict=True):
            np.testing.assert_array_equal(a, b)
