"""Runs mmrl's prepare and loss on arrays of a golden case, and compares results."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmrl.algorithms import objectives, reductions
from mmrl.algorithms.algorithm import Algorithm, loss, prepare
from mmrl.algorithms.weights import Weight


def float32(values) -> jax.Array:
    return jnp.asarray(np.asarray(values, np.float32))


def per_response(values) -> jax.Array:
    """Rows [n r] as groups of one [n 1 r]."""
    return float32(values)[:, None]


def with_advantages(algorithm: Algorithm, advantages: np.ndarray) -> Algorithm:
    """The algorithm with given advantages, [n] or [n r]."""
    given = float32(advantages).reshape(len(advantages), 1, -1)
    return replace(algorithm, advantage=lambda experience: given)


def fixed_weight(values: np.ndarray) -> Weight:
    return Weight("given", lambda experience: per_response(values))


def run(
    algorithm: Algorithm,
    *,
    mask: np.ndarray,
    scores: dict[str, np.ndarray],
    live: dict[str, np.ndarray],
    accuracy: np.ndarray | None = None,
    valid: np.ndarray | None = None,
) -> tuple[float, dict[str, np.ndarray], dict[str, float]]:
    """Loss, its gradient with respect to each of ``live`` [n r], and the metrics."""
    rows = len(mask)
    targets = prepare(
        algorithm,
        rewards=jnp.zeros((rows, 1)),
        accuracy=float32(np.zeros(rows) if accuracy is None else accuracy)[:, None],
        mask=jnp.asarray(mask != 0)[:, None],
        valid=jnp.asarray(np.ones(rows, bool) if valid is None else valid)[:, None],
        scores={name: per_response(score) for name, score in scores.items()},
        step=0,
        total_steps=1,
    )
    current = {name: per_response(value) for name, value in live.items()}
    (value, metrics), gradient = jax.value_and_grad(lambda x: loss(algorithm, targets, x), has_aux=True)(
        current
    )
    return (
        float(value),
        {name: np.asarray(g)[:, 0] for name, g in gradient.items()},
        {name: float(m) for name, m in metrics.items()},
    )


def assert_close(actual, expected, what: str = "", tolerance: float = 1e-5) -> None:
    """Agreement to ``tolerance`` of the largest entry (of 1, if none is larger)."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    scale = max(1.0, np.abs(expected).max(initial=0.0))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale, err_msg=what)


def assert_gradient(actual, expected, what: str = "gradient", tolerance: float = 1e-5) -> None:
    """Agreement to ``tolerance`` of the largest entry, however small that is (down to 1e-4)."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    scale = max(1e-4, np.abs(expected).max(initial=0.0))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale, err_msg=what)


def verl_objective(hparams: dict[str, Any]) -> objectives.Objective:
    """The objective that ``loss_type`` names in EasyR1 and VPPO (PAPO has the first alone)."""
    low, high, dual = (hparams[f"clip_ratio_{name}"] for name in ("low", "high", "dual"))
    makers: dict[str, Callable[[], objectives.Objective]] = {
        "default": lambda: objectives.clipped(low, high, dual),
        "gspo": lambda: objectives.sequence_clipped(low, high, dual),
        "gspo_token": lambda: objectives.sequence_clipped(low, high, dual, token_level=True),
        "cispo": lambda: objectives.clipped_weight(low, high),
        "sapo": lambda: objectives.soft_gate(hparams["tau_positive"], hparams["tau_negative"]),
    }
    return makers[hparams.get("loss_type", "default")]()


AVERAGES = {"token": reductions.token_mean, "seq": reductions.sequence_mean}
ESTIMATORS = {"kl": "k1", "abs": "abs", "mse": "k2", "low_var_kl": "k3"}


def micro_batches(rows: np.ndarray, mini: int, micro: int) -> list[np.ndarray]:
    """The rows of each micro-batch: mini-batches in order, each cut in order."""
    minis = [rows[start : start + mini] for start in range(0, len(rows), mini)]
    return [part[start : start + micro] for part in minis for start in range(0, len(part), micro)]


def rows_of(array: np.ndarray, part: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """``array`` at the rows ``part`` of the batch, where it holds either the whole batch or only ``rows``."""
    return array[np.searchsorted(rows, part)] if len(array) == len(rows) else array[part]
