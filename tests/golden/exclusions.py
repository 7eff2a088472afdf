"""What mmrl leaves out of the golden vectors, in one table: which cases, and why.

``docs/algorithms.md`` shows the same table to readers; a test holds the two together.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from vectors import Case, cases


@dataclass(frozen=True)
class Exclusion:
    """Cases of a family for which ``applies`` holds are not reproduced, for ``reason``."""

    what: str
    reason: str
    applies: Callable[[Case], bool]


EXCLUSIONS: tuple[Exclusion, ...] = (
    Exclusion(
        "cases tagged `reference_bug`",
        "they record a defect of the reference",
        lambda case: "reference_bug" in case.tags,
    ),
    Exclusion(
        "verl: OPO, GPG and optimal-token-baseline advantages",
        "no recipe uses these estimators",
        lambda case: called(case, "compute_opo_", "compute_gpg_", "compute_optimal_token_baseline_"),
    ),
    Exclusion(
        "verl: GPG, geometric-mean, clip-cov and kl-cov losses",
        "no recipe uses these objectives",
        lambda case: called(
            case,
            "compute_policy_loss_gpg",
            "compute_policy_loss_geo_mean",
            "compute_policy_loss_clip_cov",
            "compute_policy_loss_kl_cov",
        ),
    ),
    Exclusion(
        "verl: importance weights and rejection masks between sampler and trainer, bypass mode",
        "mmrl measures that difference instead: sampler and trainer run the same forward in one program",
        lambda case: called(
            case,
            "compute_rollout_correction_weights",
            "compute_rollout_rejection_mask",
            "compute_policy_loss_bypass_mode",
        ),
    ),
    Exclusion(
        "TRL: truncated importance sampling and the off-policy sequence mask",
        "mmrl measures that difference instead: sampler and trainer run the same forward in one program",
        lambda case: "tis_mode" in case.hparams or case.hparams.get("off_policy_mask_threshold") is not None,
    ),
    Exclusion(
        "TRL: loss types luspo and vespo",
        "no recipe uses these objectives",
        lambda case: is_trl_loss(case) and case.hparams.get("loss_type") in ("luspo", "vespo"),
    ),
    Exclusion(
        "TRL: two-sided clipping (`delta`), KL times the ratio (`use_bias_correction_kl`)",
        "no recipe uses them; dual_clip bounds the loss of negative advantages instead of `delta`",
        lambda case: (
            is_trl_loss(case)
            and (case.hparams.get("delta") is not None or bool(case.hparams.get("use_bias_correction_kl")))
        ),
    ),
    Exclusion(
        "TRL: high-entropy tokens by one quantile over the batch (`top_entropy_quantile` below 1)",
        "mmrl has VPPO's rule, a share of each response's tokens",
        lambda case: is_trl_loss(case) and case.hparams.get("top_entropy_quantile", 1.0) < 1.0,
    ),
    Exclusion(
        "verl: warmup-stable-decay rates",
        "mmrl has a constant rate and a cosine, each after a warmup",
        lambda case: called(case, "get_wsd_schedule"),
    ),
    Exclusion(
        "TRL and verl's GSPO with log-ratios beyond mmrl's limit",
        "mmrl holds log-ratios within +-20 (as PAPO, VPPO, EasyR1 do), TRL nowhere, verl's GSPO below 10",
        lambda case: passes_log_ratio_limit(case),
    ),
    Exclusion(
        "VLM-R1: format of boxes (`format_rec`)",
        "`box` is 0 for an answer without a box, and the format asks for the tags alone",
        lambda case: case.project == "VLM-R1" and case.id.startswith("box_") and "format_rec" in case.id,
    ),
    Exclusion(
        "VLM-R1: rewards of text",
        "no recipe uses them; they credit small edit distances and answers outside any box",
        lambda case: case.project == "VLM-R1" and case.id.startswith("text_"),
    ),
    Exclusion(
        "TRL and math-verify: rewards of text",
        "they take an answer from anywhere in the response, or an earlier box if the last is unclosed; "
        "their format has no box",
        lambda case: case.family.startswith("07") and case.id.startswith(("text_trl_", "text_math_verify_")),
    ),
)


def called(case: Case, *beginnings: str) -> bool:
    """Whether the case is verl's and its function's name begins so."""
    return case.project == "verl" and case.function.startswith(beginnings)


def is_trl_loss(case: Case) -> bool:
    return case.project == "trl" and case.function == "GRPOTrainer._compute_loss"


def passes_log_ratio_limit(case: Case) -> bool:
    """Whether a log-ratio (TRL: of a token, GSPO: of a response) lies beyond one of the two limits."""
    gspo = called(case, "compute_policy_loss_gspo")
    if not (gspo or is_trl_loss(case)) or "old_log_probs" not in case.inputs:
        return False
    mask = case.inputs["response_mask"] != 0
    difference = np.where(mask, case.inputs["log_probs"] - case.inputs["old_log_probs"], 0.0)
    if gspo:
        return bool(np.any(difference.sum(axis=1) / np.maximum(mask.sum(axis=1), 1) > 10.0))
    return bool(np.any(np.abs(difference) > 20.0))


def exclusion(case: Case) -> Exclusion | None:
    """The first row of the table that leaves ``case`` out, if any."""
    return next((row for row in EXCLUSIONS if row.applies(case)), None)


def included(number: str) -> list:
    """The cases of a family that mmrl reproduces, as pytest parameters named by their ids."""
    return [pytest.param(case, id=case.id) for case in cases(number) if exclusion(case) is None]
