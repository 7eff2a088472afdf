"""PAPO's actor loss end to end: ``papo_g`` with the reference's hyper-parameters, values and gradients."""

from dataclasses import replace

import jax
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
    with_advantages,
)
from exclusions import included
from vectors import Case

from mmrl.algorithms import divergences, penalties, schedules
from mmrl.algorithms.algorithm import Algorithm
from mmrl.algorithms.passes import CORRUPTED_LOGPROB, LOGPROB, REFERENCE_LOGPROB
from mmrl.algorithms.perception_recipes import papo_g

SCORES = {"old_log_probs": LOGPROB, "ref_log_probs": REFERENCE_LOGPROB, "aug_log_probs": CORRUPTED_LOGPROB}
APPLY_TO = {"all": "all", "correct_only": "correct", "acc_weighted": "weighted"}


def recipe(hparams: dict) -> Algorithm:
    """``papo_g`` as the case has it."""
    uses = lambda name, value: value if hparams[name] else 0.0  # noqa: E731
    algorithm = papo_g(
        clip_low=hparams["clip_ratio_low"],
        clip_high=hparams["clip_ratio_high"],
        dual_clip=hparams["clip_ratio_dual"],
        reference_kl=uses("use_kl_loss", hparams["kl_coef"]),
        average={"token": "token", "seq": "sequence"}[hparams["loss_avg_mode"]],
        perception_kl=uses("use_kl_prcp", hparams["kl_prcp_coef"]),
        perception_apply_to=APPLY_TO[hparams["kl_prcp_apply_mode"]],
        perception_incorrect_weight=hparams["incorrect_weighting"],
        perception_top_fraction=uses(
            "use_kl_prcp_token_level_mask", hparams["kl_prcp_token_level_mask_top_p"]
        ),
        perception_limit=uses("use_kl_prcp_clipping", hparams["kl_prcp_clipping"]),
        clean_entropy=uses("use_ori_entropy_loss", hparams["ori_entropy_loss_coef"]),
        corrupted_entropy=uses("use_aug_entropy_loss", hparams["aug_entropy_loss_coef"]),
        corrupted_branch="live" if hparams["recompute_aug_log_probs"] else "constant",
        imitation=uses("use_sft_loss", hparams["sft_loss_coef"]),
    )
    return replace(algorithm, penalties=tuple(adapted(term, hparams) for term in algorithm.penalties))


def adapted(term: penalties.Penalty, hparams: dict) -> penalties.Penalty:
    """The term with the coefficient of this step, and with estimators that the recipe does not offer."""
    now = hparams["kl_prcp_coef_current"] / hparams["kl_prcp_coef"] if hparams["kl_prcp_coef"] else 1.0
    if term.name in ("perception_kl", "sampled_entropy", "corrupted_sampled_entropy"):
        term = replace(term, coefficient=schedules.scaled(term.coefficient, now))
    if term.name == "perception_kl" and hparams["kl_prcp_penalty"] != "low_var_kl":
        other = penalties.perception_kl(
            term.coefficient,
            ESTIMATORS[hparams["kl_prcp_penalty"]],
            "live" if hparams["recompute_aug_log_probs"] else "constant",
            APPLY_TO[hparams["kl_prcp_apply_mode"]],
            hparams["incorrect_weighting"],
            hparams["kl_prcp_token_level_mask_top_p"] if hparams["use_kl_prcp_token_level_mask"] else 0.0,
            hparams["kl_prcp_clipping"] if hparams["use_kl_prcp_clipping"] else 0.0,
        )
        return other
    if term.name == "reference_kl" and hparams["kl_penalty"] != "low_var_kl":
        return penalties.reference_kl(term.coefficient, ESTIMATORS[hparams["kl_penalty"]])
    return term


def actor_loss(case: Case) -> None:
    """mmrl on each of the reference's micro-batches, which the reference weighs equally.

    With a single micro-batch that is mmrl's loss of the batch; with several mmrl by design weighs tokens
    equally instead, and agreement is shown piece by piece.
    """
    hparams, inputs = case.hparams, case.inputs
    algorithm = recipe(hparams)
    losses, gradients = [], []
    rows = inputs["rows"] if "rows" in inputs else np.arange(len(inputs["response_mask"]))
    mini = hparams["global_batch_size"]
    micro = hparams["micro_batch_size"]
    for part in micro_batches(rows, mini, micro):
        live = {LOGPROB: inputs["log_probs"][part]}
        if CORRUPTED_LOGPROB in algorithm.live:
            live[CORRUPTED_LOGPROB] = inputs["aug_log_probs"][part]
        value, gradient, _ = run(
            with_advantages(algorithm, inputs["advantages"][part]),
            mask=inputs["response_mask"][part],
            scores={ours: inputs[theirs][part] for theirs, ours in SCORES.items() if theirs in inputs},
            live=live,
            accuracy=inputs["accuracy"][part],
        )
        losses.append(value / (mini // micro))
        gradients.append({name: g / (mini // micro) for name, g in gradient.items()})
    assert_close(losses, np.atleast_1d(case.outputs["loss_f64"]), "loss of each micro-batch")
    names = {LOGPROB: "grad_log_probs_f64", CORRUPTED_LOGPROB: "grad_aug_log_probs_f64"}
    for ours in gradients[0]:
        actual = np.concatenate([gradient[ours] for gradient in gradients])
        assert_gradient(actual, rows_of(case.outputs[names[ours]], rows, rows), names[ours])
    if "prcp_kld_final" in case.outputs:
        per_token(case, algorithm)


def per_token(case: Case, algorithm: Algorithm) -> None:
    """The perception term of each token, after weights, top-p and limit."""
    inputs = case.inputs
    (term,) = (term for term in algorithm.penalties if term.name == "perception_kl")
    mask = jnp.asarray(inputs["response_mask"] != 0)[:, None]
    policy, corrupted = (float32(inputs[name])[:, None] for name in ("log_probs", "aug_log_probs"))
    value = term.token(
        {LOGPROB: policy, CORRUPTED_LOGPROB: corrupted},
        {CORRUPTED_LOGPROB: corrupted},
        float32(inputs["kl_prcp_weighting"])[:, None],
        mask,
    )
    kept = inputs["response_mask"] != 0
    assert_close(np.asarray(value[:, 0])[kept], case.outputs["prcp_kld_final"][kept], "per token")


def quantiles(case: Case) -> None:
    """The tokens kept are those at or above torch.nanquantile of |aug - log_probs| of the row."""
    mask = case.inputs["response_mask"] != 0
    value = divergences.absolute(float32(case.inputs["log_probs"]), float32(case.inputs["aug_log_probs"]))
    for name, threshold in case.outputs.items():
        level = float(name.removeprefix("nanquantile_"))
        kept = penalties.top_quantile(value, jnp.asarray(mask), level)
        expected = mask & (np.asarray(value) >= threshold[:, None] - 1e-6)
        np.testing.assert_array_equal(np.asarray(kept), expected, err_msg=name)


CHECKS = {
    "DataParallelPPOActor.update_policy": actor_loss,
    "torch.nanquantile": quantiles,
}


@pytest.mark.parametrize("case", included("04"))
def test_papo_matches_the_reference(case):
    CHECKS[case.function](case)


def test_live_branch_changes_the_gradient_only():
    """The premise of the recomputed cases: with and without gradient the loss is the same number."""
    shape = (2, 1, 5)
    key = jax.random.split(jax.random.key(0), 3)
    policy, corrupted = -jax.random.uniform(key[0], shape), -jax.random.uniform(key[1], shape)
    constant, live = (
        penalties.perception_kl(schedules.constant(1.0), corrupted_branch=branch)
        for branch in ("constant", "live")
    )
    weight, mask = jnp.ones(shape[:2]), jnp.ones(shape, bool)

    def total(term, corrupted_now):
        return term.token(
            {LOGPROB: policy, CORRUPTED_LOGPROB: corrupted_now}, {CORRUPTED_LOGPROB: corrupted}, weight, mask
        ).sum()

    assert total(constant, corrupted) == total(live, corrupted)
    assert np.all(np.asarray(jax.grad(lambda c: total(constant, c))(corrupted)) == 0.0)
    assert np.all(np.asarray(jax.grad(lambda c: total(live, c))(corrupted)) != 0.0)
