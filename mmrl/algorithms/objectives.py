"""Per-token policy losses from logprobs and advantages. Lower is better; nothing here averages."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrl.algorithms.experience import response_mean

LOG_RATIO_LIMIT = 20.0  # exp(20) is far beyond any clip range, and exp(88) overflows float32

Tokens = Float[Array, "b g r"]
Metrics = dict[str, Float[Array, "b g r"]]
# (logprob, old logprob, advantage, mask) -> loss and per-token quantities worth a mean in the log
TokenLoss = Callable[[Tokens, Tokens, Tokens, Bool[Array, "b g r"]], tuple[Tokens, Metrics]]


@dataclass(frozen=True)
class Objective:
    """A per-token policy loss. Sequence-level objectives couple the tokens of one response only.

    Positions outside the mask hold zero logprobs and zero advantages; their losses are not counted.
    """

    name: str
    token_loss: TokenLoss


def token_log_ratio(logprob: Tokens, old: Tokens) -> Tokens:
    """log(pi / pi_old) of each token, limited to +-20 (no gradient beyond), as in EasyR1, PAPO and VPPO."""
    return jnp.clip(logprob - old, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def sequence_log_ratio(logprob: Tokens, old: Tokens, mask: Bool[Array, "b g r"]) -> Tokens:
    """The mean of the token log-ratios of each response, on each of its tokens (GSPO, equation 7)."""
    mean = response_mean(logprob - old, mask)[..., None]
    return jnp.broadcast_to(jnp.clip(mean, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT), logprob.shape)


def sequence_log_ratio_per_token(logprob: Tokens, old: Tokens, mask: Bool[Array, "b g r"]) -> Tokens:
    """The value of ``sequence_log_ratio`` with the gradient of each token's own logprob (GSPO-token)."""
    sequence = jax.lax.stop_gradient(response_mean(logprob - old, mask))[..., None]
    own = logprob - jax.lax.stop_gradient(logprob)
    return jnp.clip(sequence + own, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def surrogate(
    log_ratio: Tokens, advantage: Tokens, clip_low: float, clip_high: float, dual_clip: float
) -> tuple[Tokens, Metrics]:
    """PPO's clipped loss of each token: the larger of -A * ratio and -A * clip(ratio, 1 - low, 1 + high).

    ``dual_clip`` c > 1 caps the loss of tokens with A < 0 at -c * A (Ye et al. 2020); 0 turns it off.
    """
    ratio = jnp.exp(log_ratio)
    clipped_ratio = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    loss = jnp.maximum(-advantage * ratio, -advantage * clipped_ratio)
    metrics = {
        "ratio": ratio,
        "clip_high": ((advantage > 0) & (ratio > 1.0 + clip_high)).astype(jnp.float32),
        "clip_low": ((advantage < 0) & (ratio < 1.0 - clip_low)).astype(jnp.float32),
    }
    if dual_clip:
        cap = -advantage * dual_clip
        metrics["clip_dual"] = ((advantage < 0) & (loss > cap)).astype(jnp.float32)
        loss = jnp.where(advantage < 0, jnp.minimum(loss, cap), loss)
    return loss, metrics


def clipped(clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float = 0.0) -> Objective:
    """PPO's clipped surrogate with a ratio for each token (Schulman et al. 2017, equation 7).

    ``clip_high`` above ``clip_low`` is DAPO's clip-higher. Raises ValueError for an impossible clip range.
    """
    check_clip("clipped", clip_low, clip_high, dual_clip)

    def token_loss(logprob, old, advantage, mask):
        del mask
        return surrogate(token_log_ratio(logprob, old), advantage, clip_low, clip_high, dual_clip)

    return Objective("clipped", token_loss)


def sequence_clipped(
    clip_low: float = 3e-4, clip_high: float = 4e-4, dual_clip: float = 0.0, token_level: bool = False
) -> Objective:
    """The clipped surrogate with one ratio for each response (GSPO, Zheng et al. 2025, equations 5 and 7).

    ``token_level`` gives each token the gradient of its own logprob instead (GSPO-token, equation 13): the
    same value, and the same gradient too when a response has one advantage and one weight.
    """
    check_clip("sequence_clipped", clip_low, clip_high, dual_clip)
    log_ratio = sequence_log_ratio_per_token if token_level else sequence_log_ratio

    def token_loss(logprob, old, advantage, mask):
        return surrogate(log_ratio(logprob, old, mask), advantage, clip_low, clip_high, dual_clip)

    return Objective("sequence_clipped", token_loss)


def clipped_weight(clip_low: float = 1.0, clip_high: float = 4.0) -> Objective:
    """REINFORCE weighted by the clipped ratio, which carries no gradient (CISPO, MiniMax-M1, equation 4)."""
    check_clip("clipped_weight", clip_low, clip_high, 0.0)

    def token_loss(logprob, old, advantage, mask):
        del mask
        ratio = jnp.exp(token_log_ratio(logprob, old))
        weight = jax.lax.stop_gradient(jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high))
        metrics = {
            "ratio": ratio,
            "clip_high": (ratio > 1.0 + clip_high).astype(jnp.float32),
            "clip_low": (ratio < 1.0 - clip_low).astype(jnp.float32),
        }
        return -weight * advantage * logprob, metrics

    return Objective("clipped_weight", token_loss)


def soft_gate(temperature_positive: float = 1.0, temperature_negative: float = 1.05) -> Objective:
    """The ratio passed through a sigmoid gate instead of a clip (SAPO, Gao et al. 2025, equation 5).

    The loss is -A * (4 / t) * sigmoid(t * (ratio - 1)), with one temperature t for A >= 0 and one for A < 0.
    """
    if min(temperature_positive, temperature_negative) <= 0:
        raise ValueError("objectives.soft_gate: temperatures must be positive")

    def token_loss(logprob, old, advantage, mask):
        del mask
        ratio = jnp.exp(token_log_ratio(logprob, old))
        temperature = jnp.where(advantage >= 0, temperature_positive, temperature_negative)
        gate = 4.0 / temperature * jax.nn.sigmoid(temperature * (ratio - 1.0))
        return -advantage * gate, {"ratio": ratio}

    return Objective("soft_gate", token_loss)


def check_clip(name: str, clip_low: float, clip_high: float, dual_clip: float) -> None:
    """Raises ValueError, naming the objective, for a clip range that cannot be meant."""
    if not 0.0 <= clip_low <= 1.0:
        raise ValueError(f"{name}: clip_low must lie in [0, 1] (the ratio is kept above 1 - clip_low)")
    if clip_high < 0.0:
        raise ValueError(f"{name}: clip_high must not be negative (the ratio is kept below 1 + clip_high)")
    if dual_clip and dual_clip <= 1.0:
        raise ValueError(f"{name}: dual_clip must be 0 (off) or greater than 1, got {dual_clip}")
