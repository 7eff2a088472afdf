"""Coefficients of KL terms and learning rates over a run, against the references."""

import jax.numpy as jnp
import numpy as np
import pytest
from evaluate import assert_close
from exclusions import included
from vectors import Case

from mmrl.algorithms import schedules


def adaptive(case: Case) -> None:
    hparams = case.hparams
    coefficient, actual = hparams["init_kl_coef"], [hparams["init_kl_coef"]]
    for measured, samples in zip(case.inputs["current_kl"], case.inputs["n_steps"], strict=True):
        coefficient = schedules.adaptive_coefficient(
            coefficient,
            float(measured),
            target=hparams["target_kl"],
            horizon=hparams["horizon"],
            samples=int(samples),
        )
        actual.append(coefficient)
    np.testing.assert_allclose(actual, case.outputs["coef"], rtol=1e-12)


def fixed(case: Case) -> None:
    schedule = schedules.constant(case.hparams["init_kl_coef"])
    expected = case.outputs["coef"]
    assert_relative([schedule(jnp.int32(step), len(expected)) for step in range(len(expected))], expected)


def annealing(case: Case) -> None:
    hparams = case.hparams
    schedule = schedules.linear(hparams["start_value"], hparams["end_value"], hparams["annealing_ratio"])
    expected = case.outputs["coef"]
    total = hparams["training_steps"]
    assert_relative([schedule(jnp.int32(step), total) for step in range(len(expected))], expected)


def constant_rate(case: Case) -> None:
    # PAPO's has no guard for 0 warmup steps: its first step runs at rate 0, as if there were one.
    warmup = case.hparams["num_warmup_steps"]
    warmup = max(warmup, 1) if case.project == "PAPO" else warmup
    schedule = schedules.constant_with_warmup(1.0, warmup)
    assert_rates(schedule, case.outputs["lr"])


def cosine_rate(case: Case) -> None:
    hparams, expected = case.hparams, case.outputs["lr"]
    total = hparams["num_training_steps"]
    schedule = schedules.cosine_with_warmup(
        1.0, hparams["num_warmup_steps"], total, hparams["min_lr_ratio"] or 0.0, hparams["num_cycles"]
    )
    # The references go on along the cosine beyond the end of the run; mmrl stays where it is.
    steps = np.minimum(np.arange(len(expected)), total)
    assert_rates(schedule, expected[steps])


def assert_rates(schedule, expected) -> None:
    assert_close([float(schedule(step)) for step in range(len(expected))], expected, "rate", 1e-6)


def assert_relative(actual, expected) -> None:
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=1e-6, atol=1e-9)


CHECKS = {
    "AdaptiveKLController": adaptive,
    "FixedKLController": fixed,
    "AnnealingKLController": annealing,
    "get_constant_schedule_with_warmup": constant_rate,
    "get_cosine_schedule_with_warmup": cosine_rate,
}


@pytest.mark.parametrize("case", included("08"))
def test_schedule_matches_the_reference(case):
    CHECKS[case.function](case)
