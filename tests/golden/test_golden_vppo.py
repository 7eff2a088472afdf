"""VPPO's actor loss end to end: ``vppo`` with the reference's hyper-parameters, values and gradients."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from evaluate import (
    ESTIMATORS,
    assert_close,
    assert_gradient,
    float32,
    micro_batches,
    rows_of,
    run,
    verl_objective,
    with_advantages,
)
from exclusions import included
from vectors import Case

from mmrl.algorithms import divergences, penalties, weights
from mmrl.algorithms.algorithm import Algorithm
from mmrl.algorithms.experience import Experience, response_mean
from mmrl.algorithms.passes import CORRUPTED_LOGPROB, ENTROPY, LOGPROB, REFERENCE_LOGPROB
from mmrl.algorithms.perception_recipes import vppo

SCORES = {
    "old_log_probs": LOGPROB,
    "ref_log_probs": REFERENCE_LOGPROB,
    "aug_log_probs": CORRUPTED_LOGPROB,
    "entropies": ENTROPY,
}


def recipe(hparams: dict) -> Algorithm:
    """``vppo`` as the case has it."""
    perception, entropy = hparams["use_vppo_on_perception"], hparams["use_vppo_on_entropy"]
    without_perception = 0.0 if entropy else 1.0
    algorithm = vppo(
        clip_low=hparams["clip_ratio_low"],
        clip_high=hparams["clip_ratio_high"],
        dual_clip=hparams["clip_ratio_dual"],
        reference_kl=hparams["kl_coef"] if hparams["use_kl_loss"] else 0.0,
        average={"token": "token", "seq": "sequence"}[hparams["loss_avg_mode"]],
        token_keep=hparams["top_p_perception_tokens"] if perception else without_perception,
        entropy_keep=hparams["top_p_entropy_tokens"] if entropy else 0.0,
        # The code shapes only where it has measured the dependency.
        shaping_min=hparams["advantage_scaling_min"]
        if hparams["use_advantage_shaping"] and perception
        else 1.0,
        entropy_penalty=hparams["entropy_penalty_coef"] if hparams["use_entropy_penalty"] else 0.0,
    )
    terms = tuple(
        penalties.reference_kl(term.coefficient, ESTIMATORS[hparams["kl_penalty"]])
        if term.name == "reference_kl"
        else term
        for term in algorithm.penalties
    )
    return replace(algorithm, objective=verl_objective(hparams), penalties=terms)


def with_range_of(algorithm: Algorithm, case: Case, rows: np.ndarray) -> Algorithm:
    """The algorithm on one micro-batch, its shaping with the range of the whole mini-batch ``rows``.

    That is how the released code mixes the two; mmrl's own weight takes both over the global batch.
    """
    if not any(weight.name == "trajectory_shaping" for weight in algorithm.weights):
        return algorithm
    mask = jnp.asarray(case.inputs["response_mask"][rows] != 0)
    dependency = divergences.k3(
        float32(case.inputs["old_log_probs"][rows]), float32(case.inputs["aug_log_probs"][rows])
    )
    lowest, highest = weights.score_range(response_mean(dependency, mask), jnp.any(mask, axis=-1))

    def value(experience: Experience):
        scores = response_mean(weights.dependency_k3(experience), experience.mask)
        factors = weights.shaping_factors(
            scores,
            jnp.any(experience.mask, axis=-1),
            lowest,
            highest,
            case.hparams["advantage_scaling_min"],
        )
        return factors[..., None]

    mixed = tuple(
        weights.Weight(weight.name, value) if weight.name == "trajectory_shaping" else weight
        for weight in algorithm.weights
    )
    return replace(algorithm, weights=mixed)


def actor_loss(case: Case) -> None:
    """mmrl on each of the reference's micro-batches, weighed by tokens as the reference does.

    With a single micro-batch that is mmrl's loss of the batch, by the recipe alone; with several, agreement
    is shown piece by piece, with the statistics the reference mixes.
    """
    if "k3_f64" in case.outputs:
        return token_dependency(case)
    hparams, inputs = case.hparams, case.inputs
    every = inputs["rows"] if "rows" in inputs else np.arange(len(inputs["response_mask"]))
    micro, mini = hparams["micro_batch_size"], hparams["global_batch_size"]
    losses, gradients = [], []
    for rows in micro_batches(every, mini, mini):
        algorithm = recipe(hparams)
        if micro < len(rows):
            algorithm = with_range_of(algorithm, case, rows)
        tokens = inputs["response_mask"][rows].sum()
        for part in micro_batches(rows, mini, micro):
            scale = inputs["response_mask"][part].sum() * hparams["world_size"] / tokens
            value, gradient, _ = run(
                with_advantages(algorithm, inputs["advantages"][part]),
                mask=inputs["response_mask"][part],
                scores=scores(case, part),
                live={LOGPROB: inputs["log_probs"][part]},
            )
            losses.append(scale * value)
            gradients.append(scale * gradient[LOGPROB])
            check_weights(case, algorithm, part, every)
    assert_close(losses, np.atleast_1d(case.outputs["loss_f64"]), "loss of each micro-batch")
    expected = rows_of(case.outputs["grad_log_probs_f64"], every, every)
    assert_gradient(np.concatenate(gradients), expected)
    return None


def scores(case: Case, part: np.ndarray) -> dict[str, np.ndarray]:
    return {ours: case.inputs[theirs][part] for theirs, ours in SCORES.items() if theirs in case.inputs}


def check_weights(case: Case, algorithm: Algorithm, part: np.ndarray, rows: np.ndarray) -> None:
    """The tokens kept and the shaped advantages of one micro-batch."""
    mask = case.inputs["response_mask"][part] != 0
    experience = Experience(
        rewards=jnp.zeros((len(part), 1)),
        accuracy=jnp.zeros((len(part), 1)),
        mask=jnp.asarray(mask)[:, None],
        valid=jnp.ones((len(part), 1), bool),
        scores={name: float32(score)[:, None] for name, score in scores(case, part).items()},
        step=jnp.int32(0),
        total_steps=1,
    )
    chosen = {weight.name: weight.value(experience)[:, 0] for weight in algorithm.weights}
    if "loss_token_mask" in case.outputs and "token_filter" in chosen:
        expected = rows_of(case.outputs["loss_token_mask"], part, rows)
        np.testing.assert_array_equal(np.asarray(chosen["token_filter"]) * mask, expected * mask)
    if "advantages_shaped_f64" in case.outputs:
        shaped = case.inputs["advantages"][part] * np.asarray(chosen.get("trajectory_shaping", 1.0))
        expected = rows_of(case.outputs["advantages_shaped_f64"], part, rows)
        assert_close(shaped[mask], expected[mask], "shaped advantages")


def token_dependency(case: Case) -> None:
    actual = divergences.k3(float32(case.inputs["old_log_probs"]), float32(case.inputs["aug_log_probs"]))
    assert_close(actual, case.outputs["k3_f64"], "dependency")


def table_of_k(case: Case) -> None:
    """How many tokens are kept of n, for every n of the table."""
    k = case.outputs["k"]
    kept = weights.kept_count(jnp.arange(len(k)), case.hparams["top_p"])
    np.testing.assert_array_equal(np.asarray(kept), k)


CHECKS = {
    "DataParallelPPOActor.update_policy": actor_loss,
    "k = torch.ceil(num_valid_tokens * top_p).int()": table_of_k,
}


@pytest.mark.parametrize("case", included("05"))
def test_vppo_matches_the_reference(case):
    CHECKS[case.function](case)
