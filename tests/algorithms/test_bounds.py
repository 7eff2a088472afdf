"""Any finite logprobs, however far apart, give finite losses, penalties and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mmrl.algorithms import objectives, penalties, schedules
from mmrl.algorithms.divergences import ESTIMATORS
from mmrl.algorithms.passes import CORRUPTED_LOGPROB, LOGPROB, REFERENCE_LOGPROB

SHAPE = (1, 2, 3)
EDGES = [0.0, -1e-30, -20.0, np.nextafter(np.float32(-20), -21), -88.5, -104.0, -1e4, -1e15]
LOGPROBS = arrays(np.float32, SHAPE, elements=st.sampled_from(EDGES) | st.floats(-1e4, 0.0, width=32))
ADVANTAGES = arrays(
    np.float32, SHAPE, elements=st.sampled_from([0.0, 1e3, -1e3]) | st.floats(-9, 9, width=32)
)
MASKS = arrays(bool, SHAPE)

OBJECTIVES = {
    "clipped": objectives.clipped(),
    "dual clip": objectives.clipped(0.2, 0.28, 3.0),
    "sequence": objectives.sequence_clipped(),
    "sequence, token level": objectives.sequence_clipped(token_level=True, dual_clip=3.0),
    "clipped weight": objectives.clipped_weight(),
    "gate": objectives.soft_gate(),
}
ONE = schedules.constant(1.0)
PENALTIES = {f"reference {name}": penalties.reference_kl(ONE, name) for name in ESTIMATORS} | {
    "perception live": penalties.perception_kl(ONE, corrupted_branch="live", top_fraction=0.5, limit=5.0),
    "perception constant": penalties.perception_kl(ONE, apply_to="weighted"),
    "entropies": penalties.corrupted_sampled_entropy(ONE, "live"),
    "imitation": penalties.imitation(ONE),
}


def graded(objective):
    def total(logprob, old, advantage, mask):
        loss, metrics = objective.token_loss(logprob, old, advantage, mask)
        return loss.sum(), metrics

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def penalised(penalty):
    def total(live, scores, mask):
        value = penalty.token(live, scores, jnp.ones(SHAPE[:2]), mask)
        return value.sum(), value

    return jax.jit(jax.value_and_grad(total, has_aux=True))


GRADED = {name: graded(objective) for name, objective in OBJECTIVES.items()}
PENALISED = {name: penalised(penalty) for name, penalty in PENALTIES.items()}


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=40, deadline=None)
@given(LOGPROBS, LOGPROBS, ADVANTAGES, MASKS)
def test_objectives(name, logprob, old, advantage, mask):
    logprob, old, advantage = (np.where(mask, values, 0.0) for values in (logprob, old, advantage))
    (value, metrics), gradient = GRADED[name](logprob, old, advantage, mask)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))
    ratio = np.asarray(metrics["ratio"])
    assert np.all((ratio >= np.exp(-20.1)) & (ratio <= np.exp(20.1)))


@pytest.mark.parametrize("name", PENALTIES)
@settings(max_examples=40, deadline=None)
@given(LOGPROBS, LOGPROBS, LOGPROBS, MASKS)
def test_penalties(name, logprob, live_corrupted, before, mask):
    live = {LOGPROB: logprob, CORRUPTED_LOGPROB: live_corrupted}
    scores = {REFERENCE_LOGPROB: before, CORRUPTED_LOGPROB: before}
    (_, values), gradient = PENALISED[name](live, scores, mask)
    assert np.all(np.isfinite(values))
    assert all(np.all(np.isfinite(leaf)) for leaf in gradient.values())
    if "k3" in name or "constant" in name:
        assert np.all((np.asarray(values) >= 0.0) & (np.asarray(values) <= 10.0))
