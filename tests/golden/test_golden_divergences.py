"""KL estimators, and logprob and entropy from logits, against the references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluate import ESTIMATORS, assert_close, assert_gradient, float32
from exclusions import included
from vectors import Case

from mmrl.algorithms import divergences
from mmrl.kernels import vocab


def estimate(case: Case) -> None:
    name = case.hparams["kl_penalty"]
    function = divergences.full if name == "full" else divergences.ESTIMATORS[ESTIMATORS[name]]
    compare(case, function, ("kl", "dkl_dlog_probs", "dkl_dref_log_probs"))


def compare(case: Case, function, names) -> None:
    policy, reference = float32(case.inputs["log_probs"]), float32(case.inputs["ref_log_probs"])
    assert_close(function(policy, reference), case.outputs[f"{names[0]}_f64"], "value")
    gradients = jax.grad(lambda p, q: function(p, q).sum(), argnums=(0, 1))(policy, reference)
    for gradient, name in zip(gradients, names[1:], strict=True):
        assert_gradient(gradient, case.outputs[f"{name}_f64"], name)


def unlimited(case: Case) -> None:
    """TRL's k3 has no limits; stored is its mean over the batch."""
    mask = jnp.asarray(case.inputs["response_mask"] != 0)
    reference = float32(case.inputs["ref_log_probs"])

    def mean(policy):
        value = divergences.k3(policy, reference, float("inf"), float("inf"))
        return jnp.where(mask, value, 0.0).sum() / mask.sum()

    value, gradient = jax.value_and_grad(mean)(float32(case.inputs["log_probs"]))
    assert_close(case.hparams["beta"] * value, case.outputs["mean_kl_f64"], "value")
    assert_gradient(case.hparams["beta"] * gradient, case.outputs["dmean_kl_dlog_probs_f64"])


def from_logits(case: Case) -> None:
    """Logprob and entropy as the vocabulary kernel gives them, with the logits as its hidden states."""
    logits, labels = float32(case.inputs["logits"]), jnp.asarray(case.inputs["labels"])
    size = logits.shape[-1]

    def statistics(logits, name):
        out = vocab.token_statistics(
            logits.reshape(-1, size),
            jnp.eye(size),
            labels.reshape(-1),
            jnp.zeros(size),
            temperature=case.hparams["temperature"],
            entropy=True,
        )
        return out[name].reshape(labels.shape)

    for ours, value, gradient in (
        ("logprob", "log_probs", "dlogp_dlogits"),
        ("entropy", "entropy", "dentropy_dlogits"),
    ):
        assert_close(statistics(logits, ours), case.outputs[f"{value}_f64"], value)
        actual = jax.grad(lambda x, ours=ours: statistics(x, ours).sum())(logits)
        assert_gradient(actual, case.outputs[f"{gradient}_f64"], gradient)


CHECKS = {
    "log_probs_from_logits": from_logits,
    "compute_kl": estimate,
    "kl_penalty": estimate,
    "GRPOTrainer._compute_loss": unlimited,
}


@pytest.mark.parametrize("case", included("03"))
def test_divergence_matches_the_reference(case):
    CHECKS[case.function](case)


def test_k3_keeps_the_digits_of_close_policies():
    difference = np.float32(1e-4)
    value = float(divergences.k3(jnp.zeros(1), jnp.full(1, difference))[0])
    assert value == pytest.approx(np.expm1(np.float64(difference)) - np.float64(difference), rel=1e-2)
