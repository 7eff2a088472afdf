"""Policy losses and reductions against the references: values, gradients and clip fractions."""

import json
from dataclasses import replace

import numpy as np
import pytest
from evaluate import (
    AVERAGES,
    assert_close,
    assert_gradient,
    fixed_weight,
    run,
    verl_objective,
    with_advantages,
)
from exclusions import included
from vectors import Case

from mmrl.algorithms import divergences, objectives, penalties, reductions, schedules
from mmrl.algorithms.algorithm import Algorithm
from mmrl.algorithms.passes import ENTROPY, LOGPROB, REFERENCE_LOGPROB


def check(case: Case, algorithm: Algorithm, *, scale: float = 1.0, valid=None, scores=None, live=None):
    """mmrl's loss times ``scale`` and its gradient against the reference's; returns mmrl's metrics."""
    inputs = case.inputs
    advantages = inputs["advantages"] if "advantages" in inputs else inputs["adv"]
    old = inputs.get("old_log_probs", inputs["log_probs"])
    value, gradient, metrics = run(
        with_advantages(algorithm, advantages),
        mask=inputs["response_mask"],
        scores={LOGPROB: old} | (scores or {}),
        live={LOGPROB: inputs["log_probs"]} | (live or {}),
        valid=valid,
    )
    assert_close(scale * value, case.outputs["loss_f64"], "loss")
    assert_gradient(scale * gradient[LOGPROB], case.outputs["grad_log_probs_f64"])
    return metrics


def easyr1(case: Case) -> None:
    """EasyR1's loss, and PAPO's and VPPO's, which are earlier copies of it."""
    weights = (fixed_weight(case.inputs["loss_token_mask"]),) if "loss_token_mask" in case.inputs else ()
    algorithm = Algorithm(
        advantage=lambda e: e.rewards[..., None],
        weights=weights,
        reduction=AVERAGES[case.hparams["loss_avg_mode"]],
        objective=verl_objective(case.hparams),
    )
    metrics = check(case, algorithm)
    if case.hparams.get("loss_type", "default") == "default" and not weights:
        reference = json.loads(str(case.outputs["metrics_json"]))
        if np.abs(case.inputs["log_probs"] - case.inputs["old_log_probs"]).max() <= 20.0:
            assert_close(metrics["approx_kl"], reference["ppo_kl"], "approx_kl")
        assert_close(metrics["clip_dual"], reference["pg_clipfrac_lower"], "clip_dual")


VERL_MEANS = {
    "token-mean": reductions.token_mean,
    "seq-mean-token-mean": reductions.sequence_mean,
    "seq-mean-token-sum": reductions.sequence_sum,
    "seq-mean-token-sum-norm": reductions.sequence_sum,
}


def verl(case: Case) -> None:
    hparams, mask = case.hparams, case.inputs["response_mask"]
    low, high, dual = hparams["clip_ratio_low"], hparams["clip_ratio_high"], hparams["clip_ratio_c"]
    objective = {
        "vanilla": lambda: objectives.clipped(low, high, dual),
        "gspo": lambda: objectives.sequence_clipped(low, high, token_level=True),
        "cispo": lambda: objectives.clipped_weight(low, high),
        "sapo": lambda: objectives.soft_gate(hparams["tau_pos"], hparams["tau_neg"]),
    }[kind(case)]()
    mean = "seq-mean-token-mean" if kind(case) in ("gspo", "sapo") else hparams["loss_agg_mode"]
    weights = (
        (fixed_weight(case.inputs["rollout_is_weights"]),) if "rollout_is_weights" in case.inputs else ()
    )
    check(
        case,
        Algorithm(
            advantage=lambda e: e.rewards[..., None],
            weights=weights,
            reduction=VERL_MEANS[mean],
            objective=objective,
        ),
        scale=verl_scale(case, mean),
        valid=mask.any(axis=1),  # verl leaves responses without tokens out of its sequence means
    )


def kind(case: Case) -> str:
    return case.function.removeprefix("compute_policy_loss_").split(" ")[0]


def verl_scale(case: Case, mean: str) -> float:
    """What verl divides by beyond this batch: the global batch's counts, times the data-parallel size."""
    hparams, mask = case.hparams, case.inputs["response_mask"]
    rows, tokens = int(mask.any(axis=1).sum()), int(mask.sum())
    if mean == "seq-mean-token-sum-norm":  # divides the sum by a length and by nothing else
        return rows / (hparams.get("loss_scale_factor") or mask.shape[1])
    parallel = hparams.get("dp_size", 1)
    if mean == "token-mean":
        return parallel * tokens / (hparams.get("batch_num_tokens") or tokens or 1)
    return parallel * rows / (hparams.get("global_batch_size") or rows or 1)


def trl(case: Case) -> None:
    hparams, mask = case.hparams, case.inputs["response_mask"]
    low, high = hparams["epsilon_low"], hparams["epsilon_high"]
    loss_type, tokens = hparams["loss_type"], int(mask.sum())
    if loss_type == "cispo":
        objective = objectives.clipped_weight(1.0, high - 1.0)  # TRL's bound is on the ratio itself
    elif loss_type == "sapo":
        objective = objectives.soft_gate(hparams["sapo_temperature_pos"], hparams["sapo_temperature_neg"])
    elif hparams["importance_sampling_level"] == "sequence":
        objective = objectives.sequence_clipped(low, high)
    else:
        objective = objectives.clipped(low, high)
    reduction, scale = {
        "grpo": (reductions.sequence_mean, 1.0),
        "sapo": (reductions.sequence_mean, 1.0),
        "bnpo": (reductions.token_mean, 1.0),
        "dr_grpo": (reductions.constant_length(hparams["max_completion_length"]), 1.0),
        "dapo": (reductions.token_mean, trl_token_scale(hparams, tokens)),
        "cispo": (reductions.token_mean, trl_token_scale(hparams, tokens)),
    }[loss_type]
    if loss_type not in ("dapo", "cispo"):
        scale /= hparams["current_gradient_accumulation_steps"]
    terms, scores, live = (), {}, {}
    if hparams["beta"]:
        terms += (unlimited_reference_kl(hparams["beta"]),)
        scores[REFERENCE_LOGPROB] = case.inputs["ref_log_probs"]
    if hparams.get("entropy_coef"):
        raised = schedules.constant(hparams["entropy_coef"])
        terms += (replace(penalties.entropy(raised), maximise=True),)
        live[ENTROPY] = case.inputs["entropies"]
    algorithm = Algorithm(
        advantage=lambda e: e.rewards[..., None], reduction=reduction, objective=objective, penalties=terms
    )
    check(case, algorithm, scale=scale, scores=scores, live=live)


def trl_token_scale(hparams, tokens: int) -> float:
    counted = hparams["num_items_in_batch"]
    counted = tokens if isinstance(counted, str) else counted
    return tokens * hparams["num_processes"] / max(counted, 1)


def unlimited_reference_kl(coefficient: float) -> penalties.Penalty:
    """TRL's k3 has no limits."""

    def token(live, scores, row_weight, mask):
        return divergences.k3(live[LOGPROB], scores[REFERENCE_LOGPROB], float("inf"), float("inf"))

    return penalties.Penalty("reference_kl", schedules.constant(coefficient), token)


CHECKS = {"PAPO": easyr1, "VPPO-RL": easyr1, "EasyR1": easyr1, "verl": verl, "trl": trl}


@pytest.mark.parametrize("case", included("02"))
def test_policy_loss_matches_the_reference(case):
    CHECKS[case.project](case)
