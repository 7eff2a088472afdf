"""Advantage estimators, the dynamic-sampling filter and the KL in the reward, against the references."""

import jax.numpy as jnp
import numpy as np
import pytest
from evaluate import ESTIMATORS, assert_close, float32
from exclusions import included
from vectors import Case

from mmrl.algorithms import advantages, divergences, schedules, token_advantages
from mmrl.algorithms.algorithm import Algorithm, keep_groups


def grouped(values: np.ndarray, index: np.ndarray):
    """Rows as groups [b g], padded with invalid rows; also where each row went."""
    ids, group = np.unique(index, return_inverse=True)
    place = np.array([np.sum(group[:i] == g) for i, g in enumerate(group)])
    table = np.full((len(ids), place.max() + 1), np.nan, np.float32)
    table[group, place] = values
    valid = np.zeros(table.shape, bool)
    valid[group, place] = True
    return jnp.asarray(table), jnp.asarray(valid), group, place


def check_outcome(case: Case, estimate, scores: np.ndarray | None = None) -> None:
    """Compares an estimator of [b g] with advantages [n r] that are constant along a response.

    A group of one gets 0 by design; verl keeps its raw score, the others raise.
    """
    if scores is None:
        scores = case.inputs["token_level_rewards"].sum(axis=1)
    mask = case.inputs["response_mask"]
    rewards, valid, group, place = grouped(scores, case.inputs["index"])
    actual = np.asarray(estimate(rewards, valid))[group, place]
    expected = case.outputs["advantages_f64"]
    alone = np.bincount(group)[group] == 1
    assert np.all(actual[alone] == 0.0)
    equal = ~alone & np.array([np.all(scores[group == g] == s) for g, s in zip(group, scores, strict=True)])
    # A group of equal rewards is exactly 0 here; the references divide a rounding error by (std + eps).
    assert np.all(actual[equal] == 0.0)
    assert np.all(np.abs(expected[equal]) < 1e-2)
    rest = ~alone & ~equal
    assert_close((actual[:, None] * mask)[rest], expected[rest], case.id)


def normalised(case: Case) -> None:
    eps = case.hparams.get("eps", case.hparams.get("epsilon"))
    if case.hparams.get("norm_adv_by_std_in_grpo", True):
        if "vectorized" in case.function:
            return check_outcome(case, lambda r, v: floored_variance(r, v, eps))
        return check_outcome(case, lambda r, v: advantages.normalised(r, v, eps))
    return check_outcome(case, advantages.centred)


def floored_variance(rewards, valid, eps):
    """verl's vectorised GRPO floors the variance at eps: the same as mmrl's where the variance is larger."""
    spread = advantages.group_std(rewards, valid)
    exact = advantages.normalised(rewards, valid, eps)
    floored = advantages.centred(rewards, valid) / (jnp.sqrt(eps) + eps)
    return jnp.where(jnp.square(spread) > eps, exact, floored)


def two_rewards(case: Case) -> None:
    """PAPO's PRPO: a second reward, weighed, added before the normalisation."""
    scores = case.inputs["token_level_rewards"].sum(axis=1)
    scores = scores + case.hparams["stage2_alpha"] * case.inputs["stage2_rewards"].sum(axis=1)
    check_outcome(case, lambda r, v: advantages.normalised(r, v, case.hparams["eps"]), scores)


def leave_one_out(case: Case) -> None:
    check_outcome(case, advantages.leave_one_out)


def pass_at_k(case: Case) -> None:
    eps = case.hparams.get("eps", case.hparams.get("epsilon"))
    divide = case.hparams.get("norm_adv_by_std_in_grpo", True)
    check_outcome(
        case,
        (lambda r, v: advantages.best_of_group(r, v, eps)) if divide else advantages.lead_of_best,
    )


def check_tokens(case: Case, actual, name: str = "advantages_f64") -> None:
    """mmrl gives 0 on padding; PAPO and EasyR1 leave other values there, which no loss reads."""
    mask = case.inputs["response_mask"] != 0
    actual = np.asarray(actual)
    assert np.all(actual[~mask] == 0.0)
    assert_close(actual[mask], case.outputs[name][mask], case.id)


def token_inputs(case: Case):
    return float32(case.inputs["token_level_rewards"]), jnp.asarray(case.inputs["response_mask"] != 0)


def reinforce_plus_plus(case: Case) -> None:
    rewards, mask = token_inputs(case)
    check_tokens(case, token_advantages.reinforce_plus_plus(rewards, mask, case.hparams["gamma"]))


def reinforce_plus_plus_baseline(case: Case) -> None:
    scores = case.inputs["token_level_rewards"].sum(axis=1)
    rewards, valid, group, place = grouped(scores, case.inputs["index"])
    # The reference takes a group of one as centred already; mmrl's centred gives it 0.
    rows = np.asarray(advantages.centred(rewards, valid))[group, place]
    rows = np.where(np.bincount(group)[group] == 1, scores, rows)
    mask = jnp.asarray(case.inputs["response_mask"] != 0)
    spread = jnp.broadcast_to(float32(rows)[:, None], mask.shape)
    check_tokens(case, token_advantages.whiten(spread, mask))


def gae(case: Case) -> None:
    rewards, mask = token_inputs(case)
    values = float32(case.inputs["values"])
    # PAPO's recursion does not look at the mask, the others step over what is masked.
    stepped = jnp.ones_like(mask) if case.project == "PAPO" else mask
    raw = token_advantages.generalised_advantages(
        rewards, values, stepped, case.hparams["gamma"], case.hparams["lam"]
    )
    kept = np.asarray(mask)
    assert_close(np.asarray(raw + values)[kept], case.outputs["returns_f64"][kept], "returns")
    check_tokens(case, token_advantages.whiten(raw, mask))


def remax(case: Case) -> None:
    rewards, mask = token_inputs(case)
    baseline = float32(case.inputs["reward_baselines"])
    if case.project == "verl":  # reward to go, which is the whole reward when that sits on the last token
        to_go = token_advantages.discounted_returns(rewards * mask, jnp.ones_like(mask))
        return check_tokens(case, jnp.where(mask, to_go - baseline[:, None], 0.0))
    return check_tokens(case, token_advantages.greedy_baseline(rewards, baseline, mask))


def whiten(case: Case) -> None:
    mask = case.inputs["mask"] != 0
    actual = np.asarray(token_advantages.whiten(float32(case.inputs["values"]), jnp.asarray(mask)))
    assert_close(actual[mask], case.outputs["whiten_f64"][mask], case.id)


def dynamic_sampling(case: Case) -> None:
    low, high = case.hparams["filter_low"], case.hparams["filter_high"]
    values = case.inputs[case.hparams["filter_key"]]
    algorithm = Algorithm(advantage=lambda e: e.rewards[..., None], group_filter=(low, high))
    kept = keep_groups(algorithm, values, np.ones(values.shape, bool))
    rows = np.flatnonzero(np.repeat(kept, values.shape[1]))
    if not kept.any():  # PAPO then keeps everything, EasyR1 and VPPO raise; mmrl says so and decides nothing
        rows = np.arange(values.size) if case.project == "PAPO" else rows
        assert case.project == "PAPO" or str(case.outputs["error"])
    np.testing.assert_array_equal(rows, case.outputs["kept_rows"])


def trl_scaling(case: Case) -> None:
    per_function = case.inputs["rewards_per_func"]
    weights, size = case.inputs["reward_weights"], case.hparams["num_generations"]
    eps, scale = case.hparams["eps"], case.hparams["scale_rewards"]
    scored = ~np.all(np.isnan(per_function), axis=1)
    valid = jnp.asarray(scored.reshape(-1, size))
    as_groups = lambda column: float32(column).reshape(-1, size)  # noqa: E731
    if case.hparams["multi_objective_aggregation"] == "normalize_then_sum":
        parts = [
            advantages.normalised(as_groups(column), jnp.asarray(~np.isnan(column).reshape(-1, size)), eps)
            for column in per_function.T
        ]
        total = sum(weight * part for weight, part in zip(weights, parts, strict=True))
        spread = advantages.group_std(total.reshape(1, -1), valid.reshape(1, -1))
        mean = advantages.group_mean(total.reshape(1, -1), valid.reshape(1, -1))
        actual = jnp.where(valid, (total - mean) / (spread + eps), 0.0)
    else:
        total = as_groups(np.nansum(per_function * weights, axis=1))
        estimate = {
            "group": lambda r, v: advantages.normalised(r, v, eps),
            "batch": lambda r, v: advantages.batch_scaled(r, v, eps),
            "none": advantages.centred,
        }[scale]
        actual = estimate(total, valid)
    assert_close(np.asarray(actual).reshape(-1), case.outputs["advantages_f64"], case.id)


def kl_in_reward(case: Case) -> None:
    mask = jnp.asarray(case.inputs["response_mask"] != 0)
    estimate = divergences.ESTIMATORS[ESTIMATORS[case.hparams["kl_penalty"]]]
    kl = estimate(float32(case.inputs["old_log_probs"]), float32(case.inputs["ref_log_probs"]))
    actual = token_advantages.rewards_less_kl(
        float32(case.inputs["token_level_scores"]), kl, mask, case.hparams["kl_coef"]
    )
    assert_close(actual, case.outputs["token_level_rewards_f64"], "rewards")
    lengths = np.maximum(np.asarray(mask).sum(axis=1), 1e-8)
    measured = float((np.asarray(kl * mask).sum(axis=1) / lengths).mean())
    after = schedules.adaptive_coefficient(
        case.hparams["kl_coef"],
        measured,
        target=case.hparams["kl_target"],
        horizon=case.hparams["kl_horizon"],
        samples=len(lengths),
    )
    assert_close(measured, case.outputs["current_kl_f64"], "measured KL")
    assert_close(after, case.outputs["kl_coef_after_f64"], "next coefficient")


CHECKS = {
    "compute_grpo_outcome_advantage": normalised,
    "compute_dapo_outcome_advantage": normalised,
    "compute_grpo_vectorized_outcome_advantage": normalised,
    "compute_prpo_outcome_advantage": two_rewards,
    "compute_rloo_outcome_advantage": leave_one_out,
    "compute_rloo_vectorized_outcome_advantage": leave_one_out,
    "compute_grpo_passk_outcome_advantage": pass_at_k,
    "compute_reinforce_plus_plus_outcome_advantage": reinforce_plus_plus,
    "compute_reinforce_plus_plus_baseline_outcome_advantage": reinforce_plus_plus_baseline,
    "compute_gae_advantage_return": gae,
    "compute_remax_outcome_advantage": remax,
    "masked_mean/masked_var/masked_whiten": whiten,
    "masked_whiten": whiten,
    "RayPPOTrainer._make_batch_data": dynamic_sampling,
    "GRPOTrainer._generate_and_score_completions (advantage block)": trl_scaling,
    "apply_kl_penalty": kl_in_reward,
}


@pytest.mark.parametrize("case", included("01"))
def test_advantages_match_the_reference(case):
    CHECKS[case.function](case)
