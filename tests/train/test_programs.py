"""Score and update over packed rows equal the padded form; a non-finite update changes nothing."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import padded
import pytest
from tiny import make_prompts, make_responses, noise_image, read_policy, shallow

from mmrl.algorithms import algorithm as algorithms
from mmrl.algorithms.algorithm import loss as algorithm_loss
from mmrl.algorithms.passes import CORRUPTED_LOGPROB, ENTROPY, LOGPROB, PERCEPTION, REFERENCE_LOGPROB
from mmrl.algorithms.recipes import RECIPES
from mmrl.mesh import make_mesh, shard_batch
from mmrl.models.family import param_specs
from mmrl.models.params import Param, initialise
from mmrl.models.prompts import encode_turn
from mmrl.packing import pack_batch
from mmrl.rollout.engine import vocabulary_bias
from mmrl.rollout.generate import to_responses
from mmrl.rollout.sampling import Policy
from mmrl.rollout.trajectory import WrittenTurn, assemble
from mmrl.train import programs
from mmrl.train.programs import ImageCorruption, TrainBatch
from mmrl.train.state import initial_state

VIEWS = {"corrupted": ImageCorruption("patch_black", 0.5)}
PROMPTS, GROUP, SLOTS = 4, 3, 5
TAIL = 30  # tokens that a response writes after a look
OPTIMIZER = optax.sgd(1e4)  # so that the change is not lost in the rounding of the weights


@pytest.fixture(scope="module")
def small(policy):
    return small_batch(policy)


def small_batch(policy):
    """One layer of each tower, random weights, and a batch of prompts with sampled-like responses."""
    config = shallow(policy.config)
    params = initialise(param_specs(config), 0)
    rows = [("a", [(56, 56)]), ("bb", [(84, 56)]), ("c", []), ("dd", [(56, 84)])]
    prompts = make_prompts(policy.processor, rows, tokens=48, patches=64)
    lengths = [[5, 1, 3], [2, 0, 4], [1, 1, 5], [4, 3, 2]]
    responses = make_responses(lengths, SLOTS, vocabulary=1800)
    keys = jax.random.split(jax.random.key(3), PROMPTS)
    static = Policy(model=config, temperature=1.0, bias=vocabulary_bias(config.vocabulary, 1822, ()))
    return params, static, packed_batch(config, prompts, responses, keys)


def packed_batch(config, prompts, responses, keys, row_tokens=128):
    """A batch in rows of so many tokens, on one device."""
    mesh = make_mesh({}, jax.devices()[:1])
    prompts, responses = shard_batch((prompts, responses), mesh)
    return TrainBatch(prompts, responses, pack_batch(prompts, responses, config, mesh, row_tokens), keys)


def repacked(small, row_tokens=128, order=range(PROMPTS)):
    """`small` with its groups in another order, and rows of another length."""
    params, policy, batch = small
    order = np.array(order)
    rows = jax.tree.map(lambda leaf: leaf[order], (batch.prompts, batch.responses, batch.view_keys))
    return params, policy, packed_batch(policy.model, *rows, row_tokens)


@pytest.fixture(scope="module")
def looking(policy, small):
    return looking_batch(policy, small)


def looking_batch(policy, small):
    """The batch once more, with responses that look at pictures on their way; one of each group does not."""
    params, static, batch = small
    rng = np.random.default_rng(0)
    made = []
    for row in range(PROMPTS):
        for member in range(GROUP):
            pieces = [WrittenTurn(rng.integers(0, 1800, 2).tolist())]
            if (row + member) % GROUP:
                pictures = [noise_image(56, 56, seed=10 * row + member)]
                pieces.append(encode_turn(policy.processor, "<image>", pictures, ended=False))
                pieces.append(WrittenTurn(rng.integers(0, 1800, TAIL).tolist()))
            made.append(assemble(pieces, group=row, member=member, stop=1, text="", facts={}))
    length = max(len(one.tokens) for one in made)
    width = batch.prompts.images.patches.shape[-1]
    responses = to_responses(made, PROMPTS, GROUP, length, observation_patches=16, patch_width=width)
    return params, static, packed_batch(static.model, batch.prompts, responses, batch.view_keys)


def prepared(algorithm, small):
    params, policy, batch = small
    wanted = algorithm.needs_of("policy") | {ENTROPY, LOGPROB}
    scores = programs.score({"policy": params}, policy, batch, VIEWS, wanted=wanted)
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


# Of each kind of statistic one: of tokens, of sequences, of corrupted images in the loss (exact, with
# gradients through both distributions), in the weights.
KINDS = {
    "grpo": RECIPES["grpo"](),
    "gspo": RECIPES["gspo"](),
    "papo_exact": RECIPES["papo_g"](perception_estimator="exact", corrupted_branch="live"),
    "vppo": RECIPES["vppo"](),
}
OTHERS = [
    pytest.param(name, marks=pytest.mark.exhaustive)
    for name in ["papo_exact", "vppo", "grpo", *sorted(RECIPES.keys() - KINDS.keys())]
]
PLAIN = RECIPES["grpo"](reference_kl=0.0)
ORDERS = [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2), (2, 0, 3, 1), (0, 2, 1, 3)]


def change(small, algorithm, targets):
    """The weights' change by an update, and its metrics."""
    params, policy, batch = small
    after, metrics = programs.update(
        initial_state(jax.tree.map(jnp.copy, params), OPTIMIZER),
        policy,
        batch,
        targets,
        VIEWS,
        algorithm=algorithm,
        optimizer=OPTIMIZER,
    )
    assert int(after.updates) == 1
    return jax.tree.map(jnp.subtract, after.params, params), metrics


def padded_change(small, algorithm, targets):
    """`change` by the padded form."""
    params, policy, batch = small

    @jax.jit
    def gradient(params):
        def loss(params):
            wanted = algorithm.live | {LOGPROB}
            models = {"policy": params}
            live = padded.scores(models, policy, batch, VIEWS, wanted, algorithm.differentiated)
            there = batch.responses.mask & batch.responses.valid[..., None]
            return algorithm_loss(algorithm, algorithms.mask_targets(targets, there), live)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (value, metrics), found = gradient(params)
    metrics = {**metrics, "loss": value, "gradient_norm": optax.global_norm(found), "skipped": 0.0}
    return jax.tree.map(lambda leaf: -1e4 * leaf, found), metrics


def assert_same(ours, theirs):
    """Changes equal to 1e-5 of the largest, metrics to 1e-5 of themselves."""
    assert_same_change(ours[0], theirs[0])
    assert theirs[1].keys() <= ours[1].keys()
    for key, value in theirs[1].items():
        np.testing.assert_allclose(ours[1][key], value, atol=1e-5 * max(1.0, abs(float(value))), err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gspo", *OTHERS])
def test_update_equals_the_padded_form(name, small):
    """The gradient of every weight, loss and metrics; groups in five orders, which compile nothing."""
    algorithm = KINDS.get(name) or RECIPES[name]()
    targets = prepared(algorithm, small)
    expected = padded_change(small, algorithm, targets)
    compiled = None
    for order in map(np.array, ORDERS):
        of_order = jax.tree.map(lambda leaf, order=order: leaf[order], targets)
        assert_same(change(repacked(small, order=order), algorithm, of_order), expected)
        assert compiled in (None, programs.update._cache_size())
        compiled = programs.update._cache_size()


@pytest.fixture(scope="module")
def looked(looking):
    """PAPO's targets for `looking`, and the change by the padded form."""
    targets = prepared(KINDS["papo_exact"], looking)
    return targets, padded_change(looking, KINDS["papo_exact"], targets)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row_tokens", "least", "most"),
    [
        (128, PROMPTS + 1, 2 * PROMPTS),  # groups are split
        pytest.param(256, 2, PROMPTS, marks=pytest.mark.exhaustive),
        pytest.param(640, 1, 1, marks=pytest.mark.exhaustive),
    ],
)
def test_update_equals_the_padded_form_where_responses_look(row_tokens, least, most, looking, looked):
    """By PAPO, its exact divergence included."""
    packed, (targets, expected) = repacked(looking, row_tokens), looked
    assert least <= packed[2].packed.token_rows <= most
    ours = change(packed, KINDS["papo_exact"], targets)
    assert float(ours[1]["perception_kl"]) > 1e-4
    assert_same(ours, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    [
        "qwen3_vl_moe",
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("qwen2_vl", "qwen3_vl", "internvl")),
    ],
)
def test_update_of_other_families_equals_the_padded_form(family, fixtures_dir):
    """Where responses look, and groups are split: so do added features (deepstack) and experts."""
    policy = read_policy(fixtures_dir / family)
    looking = looking_batch(policy, small_batch(policy))
    targets = prepared(KINDS["papo_exact"], looking)
    ours = change(repacked(looking), KINDS["papo_exact"], targets)
    assert float(ours[1]["perception_kl"]) > 1e-4
    assert_same(ours, padded_change(looking, KINDS["papo_exact"], targets))


def test_frozen_weights_stay_and_count_in_no_norm(small):
    """The others change as if nothing were frozen, and the norm is theirs."""
    params, policy, batch = small
    targets = prepared(PLAIN, small)
    changes, norms = [], []
    for freeze in ((), ("vision",)):
        after, metrics = programs.update(
            initial_state(jax.tree.map(jnp.copy, params), OPTIMIZER, freeze),
            policy,
            batch,
            targets,
            VIEWS,
            algorithm=PLAIN,
            optimizer=OPTIMIZER,
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
    scored = programs.score({"policy": params}, policy, batch, VIEWS, wanted=frozenset({LOGPROB}))
    rewards = jnp.arange(PROMPTS * GROUP, dtype=jnp.float32).reshape(PROMPTS, GROUP) % 2
    changes, made = [], []
    for scores in (scored, {}):
        targets = programs.prepare(
            PLAIN,
            rewards,
            rewards,
            batch.responses.valid,
            batch.responses.mask,
            scores,
            jnp.int32(0),
            10,
        )
        moved, metrics = change(small, PLAIN, targets)
        changes.append(moved)
        made.append(metrics)
    np.testing.assert_allclose(made[1].pop("logprob"), scored[LOGPROB], atol=2e-5)
    assert "logprob" not in made[0]
    assert_same_change(changes[1], changes[0])
    for key, value in made[0].items():
        np.testing.assert_allclose(made[1][key], value, atol=1e-5, err_msg=key)


@pytest.mark.exhaustive
def test_score_equals_the_padded_form(small):
    params, policy, batch = small
    wanted = frozenset({LOGPROB, ENTROPY, CORRUPTED_LOGPROB, PERCEPTION})
    expected = jax.jit(partial(padded.scores, wanted=wanted))({"policy": params}, policy, batch, VIEWS)
    assert wanted == expected.keys()
    for row_tokens in (128, 256):
        packed = repacked(small, row_tokens)[2]
        found = programs.score({"policy": params}, policy, packed, VIEWS, wanted=wanted)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, atol=2e-5, err_msg=str(name))
    perception = np.asarray(found[PERCEPTION])
    assert perception.min() > -1e-5
    assert perception[2].max() < 1e-5  # the row without an image does not depend on one
    assert perception[[0, 1, 3]].max() > 1e-3


@pytest.mark.exhaustive
def test_score_where_responses_look(looking):
    """Of a prompt without an image, what was written after the look, and nothing else, owes to a picture."""
    params, policy, batch = looking
    wanted = frozenset({PERCEPTION, CORRUPTED_LOGPROB})
    whole = programs.score({"policy": params}, policy, batch, VIEWS, wanted=wanted)
    expected = jax.jit(partial(padded.scores, wanted=wanted))({"policy": params}, policy, batch, VIEWS)
    for name, value in expected.items():
        np.testing.assert_allclose(whole[name], value, atol=2e-5, err_msg=str(name))
        assert (np.asarray(whole[name])[~batch.responses.mask] == 0).all()
    perception, mask = np.asarray(whole[PERCEPTION])[2], np.asarray(batch.responses.mask)[2]
    for member in range(GROUP):
        values = perception[member][mask[member]]
        assert np.abs(values[:2]).max() < 1e-5
        assert len(values) == (2 + TAIL if (2 + member) % GROUP else 2)
        assert len(values) == 2 or values[2:].min() > 1e-4


def test_a_batch_without_a_slot_for_images(small, policy):
    """The vision tower is left out of it, and its weights get no gradient."""
    params, static, batch = small
    prompts = make_prompts(policy.processor, [(text, []) for text in ("a", "bb", "c", "dd")], 48, patches=0)
    packed = packed_batch(static.model, prompts, batch.responses, batch.view_keys)
    assert packed.packed.patch_rows == 0
    wanted = frozenset({LOGPROB})
    expected = jax.jit(partial(padded.scores, wanted=wanted))({"policy": params}, static, packed, VIEWS)
    found = programs.score({"policy": params}, static, packed, VIEWS, wanted=wanted)
    np.testing.assert_allclose(found[LOGPROB], expected[LOGPROB], atol=2e-5)
    state = initial_state(jax.tree.map(jnp.copy, params), OPTIMIZER)
    after, metrics = programs.imitate(state, static, packed, optimizer=OPTIMIZER)
    there = batch.responses.mask
    assert metrics["loss"] == pytest.approx(-float(expected[LOGPROB].sum() / there.sum()), rel=1e-5)
    change = jax.tree.map(lambda new, old: bool(jnp.any(new != old)), after.params, params)
    assert not any(jax.tree.leaves(change["vision"]))
    assert all(jax.tree.leaves(change["layers"]))


def test_invalid_responses_are_in_no_row(small):
    """They have no score, and what they hold changes nothing."""
    params, policy, batch = small
    valid = batch.responses.valid.at[1, 2].set(False).at[3].set(False)
    made = []
    for tokens in (batch.responses.tokens, jnp.where(valid[..., None], batch.responses.tokens, 7)):
        responses = replace(batch.responses, valid=valid, tokens=tokens)
        packed = packed_batch(policy.model, batch.prompts, responses, batch.view_keys)
        made.append(programs.score({"policy": params}, policy, packed, VIEWS, wanted=frozenset({LOGPROB})))
    np.testing.assert_array_equal(made[0][LOGPROB], made[1][LOGPROB])
    assert not np.any(np.asarray(made[0][LOGPROB])[~np.asarray(valid)])
    assert np.any(np.asarray(made[0][LOGPROB])[1])


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
