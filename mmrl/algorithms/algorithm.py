"""An algorithm as a value, and the three functions that run it: prepare, loss, keep_groups."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from mmrl.algorithms.experience import Experience, token_counts
from mmrl.algorithms.objectives import Objective, clipped
from mmrl.algorithms.passes import LOGPROB, Pass, Score, passes_of
from mmrl.algorithms.penalties import Penalty
from mmrl.algorithms.reductions import Reduction, token_mean
from mmrl.algorithms.weights import Weight

# (experience) -> advantage of each response [b g 1], or of each token [b g r]
Advantage = Callable[[Experience], Float[Array, "b g _"]]
# (response lengths, in tokens) -> what is added to the reward
RewardShaping = Callable[[Int[Array, "b g"]], Float[Array, "b g"]]


@dataclass(frozen=True)
class Algorithm:
    """A policy-optimisation method, put together from pure functions. Made by a recipe."""

    advantage: Advantage
    weights: tuple[Weight, ...] = ()
    reduction: Reduction = token_mean
    objective: Objective = field(default_factory=clipped)
    penalties: tuple[Penalty, ...] = ()
    reward_shaping: RewardShaping | None = None
    group_filter: tuple[float, float] | None = None  # keep groups whose mean lies strictly between

    @property
    def needs(self) -> frozenset[Score]:
        """Scores that are wanted before the update, beyond the logprob of the old policy."""
        of_weights = (weight.needs for weight in self.weights)
        return frozenset().union(*of_weights, *(penalty.needs for penalty in self.penalties))

    @property
    def live(self) -> frozenset[Score]:
        """Scores that the update must return, beyond the logprob of the current policy."""
        return frozenset().union(*(penalty.live for penalty in self.penalties))

    @property
    def differentiated(self) -> frozenset[Pass]:
        """Passes that the update must differentiate, beyond that of the policy with clean images."""
        return frozenset().union(*(penalty.differentiated for penalty in self.penalties))

    @property
    def models(self) -> frozenset[str]:
        """Names of the models whose passes are read, that of the policy included."""
        return frozenset(measured.model for measured in passes_of({LOGPROB} | self.needs | self.live))

    def needs_of(self, model: str) -> frozenset[Score]:
        """Those of the scores before the update that are measured in passes of this model."""
        return frozenset(score for score in self.needs if score.passes[0].model == model)


@struct.dataclass
class PenaltyTargets:
    """Inputs of one penalty in the update."""

    strength: Float[Array, "b"]  # the coefficient of this step, negative for a maximised term
    coefficient: Float[Array, "b g r"]  # weight of each token in the term's mean
    row_weight: Float[Array, "b g"]


@struct.dataclass
class Targets:
    """Inputs of the loss in the update. Every leaf has leading axis b."""

    mask: Bool[Array, "b g r"]
    advantage: Float[Array, "b g r"]  # weights included
    coefficient: Float[Array, "b g r"]  # policy loss = sum(coefficient * loss of the token)
    token_share: Float[Array, "b"]  # 1 / tokens of the global batch, for means in the log
    scores: dict[Score, Float[Array, "b g r"]]
    penalties: dict[str, PenaltyTargets]


def prepare(
    algorithm: Algorithm,
    *,
    rewards: Float[Array, "b g"],
    accuracy: Float[Array, "b g"],
    mask: Bool[Array, "b g r"],
    valid: Bool[Array, "b g"],
    scores: dict[Score, Float[Array, "b g r"]],
    step: Int[Array, ""] | int,
    total_steps: int,
) -> Targets:
    """Turns rewards and scores of the whole global batch into what the update needs. Can be jitted.

    Rows that are not valid are left out of every statistic and have no part in the loss; what their rewards
    and scores hold, NaN included, does not matter. A group with one valid row has advantage 0, so that only
    penalties act on its tokens; a batch without any has no coefficient but 0. ``scores`` has what
    ``algorithm.needs`` names, and `LOGPROB` of the old policy, unless the update is the first since sampling:
    then the two policies are one.
    ``step`` counts the updates made; ``total_steps`` those of the run.
    Raises ValueError if a score is missing.
    """
    missing = algorithm.needs - set(scores)
    if missing:
        raise ValueError(
            f"prepare: scores lack {', '.join(map(str, sorted(missing)))}, which the algorithm needs"
        )
    mask = mask & valid[..., None]
    rewards = jnp.where(valid, rewards, 0.0)
    if algorithm.reward_shaping:
        rewards = rewards + jnp.where(valid, algorithm.reward_shaping(token_counts(mask)), 0.0)
    experience = Experience(
        rewards=rewards,
        accuracy=jnp.where(valid, accuracy, 0.0),
        mask=mask,
        valid=valid,
        scores={name: jnp.where(mask, score, 0.0) for name, score in scores.items()},
        step=jnp.asarray(step, jnp.int32),
        total_steps=total_steps,
    )
    advantage = jnp.where(mask, algorithm.advantage(experience), 0.0)
    for weight in algorithm.weights:
        advantage = advantage * weight.value(experience)
    prompts = mask.shape[0]
    token_share = 1.0 / jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1.0)
    return Targets(
        mask=mask,
        advantage=jax.lax.stop_gradient(advantage),
        coefficient=algorithm.reduction(mask, valid),
        token_share=jnp.broadcast_to(token_share, (prompts,)),
        scores=experience.scores,
        penalties={p.name: _penalty_targets(algorithm, p, experience) for p in algorithm.penalties},
    )


def _penalty_targets(algorithm: Algorithm, penalty: Penalty, experience: Experience) -> PenaltyTargets:
    reduction = penalty.reduction or algorithm.reduction
    mask, valid = experience.mask, experience.valid
    if penalty.counted:
        valid = valid & penalty.counted(experience)
    strength = penalty.coefficient(experience.step, experience.total_steps)
    row_weight = penalty.row_weight(experience) if penalty.row_weight else jnp.ones(valid.shape, jnp.float32)
    return PenaltyTargets(
        strength=jnp.broadcast_to(-strength if penalty.maximise else strength, mask.shape[:1]),
        coefficient=reduction(mask & valid[..., None], valid),
        row_weight=row_weight,
    )


def loss(
    algorithm: Algorithm, targets: Targets, live: dict[Score, Float[Array, "b g r"]]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss of a batch, or of a slice of it along b, and its metrics.

    A plain sum over tokens: values, gradients and metrics of the slices of a batch add up to the batch's.
    ``live`` has `LOGPROB` and what ``algorithm.live`` names, of the current policy, which stands for the old
    one where the scores of ``targets`` lack its logprob. Positions outside the mask may hold anything.
    Ratios of policies are bounded: finite logprobs, however far apart, give finite values and gradients. A
    batch without a valid row has loss, metrics and gradient 0: it is no fault, and its update counts.
    Metrics: ``policy_loss``; the mean of each penalty by its name (before its coefficient); ``approx_kl``
    (old policy, k1 of the sampled tokens); means per token of what the objective reports, such as ``ratio``,
    ``clip_high``, ``clip_low``, ``clip_dual``.
    """
    mask = targets.mask
    live = {name: jnp.where(mask, value, 0.0) for name, value in live.items()}
    old = targets.scores.get(LOGPROB, jax.lax.stop_gradient(live[LOGPROB]))
    token_loss, reported = algorithm.objective.token_loss(live[LOGPROB], old, targets.advantage, mask)
    policy_loss = _weighted_sum(targets.coefficient, token_loss)
    total, metrics = policy_loss, {"policy_loss": policy_loss}
    for penalty in algorithm.penalties:
        data = targets.penalties[penalty.name]
        value = penalty.token(live, targets.scores, data.row_weight, mask)
        metrics[penalty.name] = _weighted_sum(data.coefficient, value)
        total = total + _weighted_sum(data.strength[:, None, None] * data.coefficient, value)
    share = mask * targets.token_share[:, None, None]
    metrics["approx_kl"] = _weighted_sum(share, old - live[LOGPROB])
    for name, value in reported.items():
        metrics[name] = _weighted_sum(share, value)
    return total, jax.lax.stop_gradient(metrics)


def _weighted_sum(coefficient: Float[Array, "b g r"], values: Float[Array, "b g r"]) -> Float[Array, ""]:
    return jnp.sum(coefficient * values)


def mask_targets(targets: Targets, there: Bool[Array, "b g r"]) -> Targets:
    """Targets masked to some tokens: the losses of two halves of a batch's tokens add up to the batch's.

    A response is in one of them as a whole, as objectives may read all of its tokens.
    """

    def keep(x: Float[Array, "b g r"]) -> Float[Array, "b g r"]:
        return jnp.where(there, x, 0.0)

    return replace(
        targets,
        mask=targets.mask & there,
        coefficient=keep(targets.coefficient),
        penalties={
            name: replace(penalty, coefficient=keep(penalty.coefficient))
            for name, penalty in targets.penalties.items()
        },
    )


def keep_groups(
    algorithm: Algorithm,
    values: Float[Array | np.ndarray, "b g"],
    valid: Bool[Array | np.ndarray, "b g"],
) -> Bool[np.ndarray, "b"]:
    """Dynamic sampling (DAPO, section 3.2): which groups to train on. Runs on the host, in float64.

    A group is kept if the mean of ``values`` (accuracy, say) over its valid rows lies strictly inside
    ``algorithm.group_filter``, and it has at least two of them: one alone has nothing to be compared with.
    Without a filter, all with a valid row are.
    """
    valid = np.asarray(valid)
    rows = valid.sum(axis=1)
    mean = np.where(valid, np.asarray(values, np.float64), 0.0).sum(axis=1) / np.maximum(rows, 1)
    if algorithm.group_filter is None:
        return rows > 0
    low, high = algorithm.group_filter
    return (rows > 1) & (mean > low) & (mean < high)
