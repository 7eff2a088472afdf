"""Published methods: each a function of its hyper-parameters that returns an ``Algorithm``.

Hyper-parameters mean the same in every recipe:

- ``clip_low``, ``clip_high``: the ratio is kept within [1 - clip_low, 1 + clip_high].
- ``dual_clip``: the loss of a token with negative advantage is capped at dual_clip * |A|; 0 turns it off.
- ``reference_kl``: coefficient of the k3 KL to the reference policy; 0 leaves the term (and the pass) out.
- ``perception_kl``, ``perception_estimator``: PAPO's term; "k3" (sampled token) or "exact" (vocabulary).
- ``clean_entropy``, ``corrupted_entropy``: coefficients of PAPO's double entropy loss.
- ``full_entropy``: coefficient of the entropy of the whole distribution, lowered; the others are sampled.
- ``corrupted_branch``: "constant" (old policy's, no gradient) or "live" (current policy's, with gradient).
- ``filter_low``, ``filter_high``: dynamic sampling keeps groups whose mean lies strictly between.
- ``max_length``, ``overlong_cache``: soft overlong penalty in tokens; overlong_cache 0 turns it off.

All statistics are over the global batch, whatever the micro-batches, devices and hosts.
"""

from collections.abc import Callable

from mmrl.algorithms import advantages, objectives, reductions
from mmrl.algorithms.algorithm import Algorithm
from mmrl.algorithms.perception_recipes import papo_d, papo_g, vppo
from mmrl.algorithms.recipe_parts import average_of, filter_between, per_response, reference_kl_penalty
from mmrl.algorithms.reward_shaping import soft_overlong


def grpo(
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float = 0.0,
    reference_kl: float = 0.04,
    std_eps: float = 1e-6,
    average: str = "sequence",
) -> Algorithm:
    """GRPO: Shao et al. 2024 (DeepSeekMath), equations 3 and 4, section 4.1.2.

    The reward is normalised by its group's mean and standard deviation; PPO's clipped loss; a k3 KL to the
    reference in the loss. ``average`` is "sequence" (the paper's 1/G sum 1/|o|) or "token" (EasyR1's).
    Differs from the paper: the standard deviation is unbiased with ``std_eps`` added; k3 is limited to 10.
    Differs from EasyR1: averages are over the global batch, not per micro-batch; ``dual_clip`` is off.
    """
    return Algorithm(
        advantage=per_response(lambda r, v: advantages.normalised(r, v, std_eps)),
        reduction=average_of("grpo", average),
        objective=objectives.clipped(clip_low, clip_high, dual_clip),
        penalties=reference_kl_penalty("grpo", reference_kl),
    )


def grpo_no_std(
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float = 0.0,
    reference_kl: float = 0.04,
    average: str = "sequence",
) -> Algorithm:
    """GRPO without division by the group's standard deviation, everything else as ``grpo``.

    Source: Liu et al. 2025 (Dr. GRPO), section 3.2. Differs from the paper: only the first of its two
    corrections; ``dr_grpo`` has both.
    """
    return Algorithm(
        advantage=per_response(advantages.centred),
        reduction=average_of("grpo_no_std", average),
        objective=objectives.clipped(clip_low, clip_high, dual_clip),
        penalties=reference_kl_penalty("grpo_no_std", reference_kl),
    )


def dr_grpo(
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float = 0.0,
    reference_kl: float = 0.0,
    max_length: int = 3000,
) -> Algorithm:
    """Dr. GRPO: Liu et al. 2025 ("Understanding R1-Zero-Like Training"), section 3.2.

    The reward less its group's mean; per-token losses are summed and divided by a constant, ``max_length``
    (the generation budget in tokens), so that length has no part in the weights; no KL.
    Differs from TRL (``dr_grpo``): the mean over responses is over the global batch, valid rows only.
    """
    return Algorithm(
        advantage=per_response(advantages.centred),
        reduction=reductions.constant_length(max_length),
        objective=objectives.clipped(clip_low, clip_high, dual_clip),
        penalties=reference_kl_penalty("dr_grpo", reference_kl),
    )


def rloo(
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float = 0.0,
    reference_kl: float = 0.0,
    average: str = "token",
) -> Algorithm:
    """RLOO: Ahmadian et al. 2024 ("Back to Basics"), equation 8.

    The reward less the mean reward of the other responses of its group.
    Differs from the paper: PPO's clipped loss instead of plain REINFORCE (equal to it in gradient while the
    policy has not moved), and a KL, if any, in the loss instead of in the reward. ``average`` "sum" is the
    paper's (the response is one action); "token" is that of PAPO, EasyR1 and verl; "sequence" is GRPO's.
    """
    return Algorithm(
        advantage=per_response(advantages.leave_one_out),
        reduction=average_of("rloo", average),
        objective=objectives.clipped(clip_low, clip_high, dual_clip),
        penalties=reference_kl_penalty("rloo", reference_kl),
    )


def dapo(
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float = 0.0,
    reference_kl: float = 0.0,
    std_eps: float = 1e-6,
    filter_low: float = 0.01,
    filter_high: float = 0.99,
    max_length: int = 20480,
    overlong_cache: int = 0,
) -> Algorithm:
    """DAPO: Yu et al. 2025, equations 8 to 13.

    GRPO with clip-higher, the mean over all tokens, no KL, dynamic sampling (the trainer draws again, a
    bounded number of times, for groups outside the filter) and the soft overlong penalty.
    Differs from the paper: the filter is on the mean accuracy, strictly between 0.01 and 0.99 as in EasyR1
    and PAPO, where the paper says "not all right and not all wrong"; the overlong penalty is off until
    ``overlong_cache`` is set (the paper's 4096 of ``max_length`` 20480).
    """
    return Algorithm(
        advantage=per_response(lambda r, v: advantages.normalised(r, v, std_eps)),
        objective=objectives.clipped(clip_low, clip_high, dual_clip),
        penalties=reference_kl_penalty("dapo", reference_kl),
        reward_shaping=soft_overlong(max_length, overlong_cache) if overlong_cache else None,
        group_filter=filter_between("dapo", filter_low, filter_high),
    )


def gspo(
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    dual_clip: float = 0.0,
    reference_kl: float = 0.0,
    std_eps: float = 1e-6,
    token_level: bool = False,
) -> Algorithm:
    """GSPO: Zheng et al. 2025, equations 5 to 7; ``token_level`` is GSPO-token, equation 13.

    One ratio for each response, the geometric mean of its tokens' ratios; mean over responses.
    Differs from EasyR1: no dual clip by default. Differs from verl: its log-ratio is limited to 10 from
    above only, ours to +-20.
    """
    return Algorithm(
        advantage=per_response(lambda r, v: advantages.normalised(r, v, std_eps)),
        reduction=reductions.sequence_mean,
        objective=objectives.sequence_clipped(clip_low, clip_high, dual_clip, token_level),
        penalties=reference_kl_penalty("gspo", reference_kl),
    )


def cispo(
    clip_low: float = 1.0,
    clip_high: float = 4.0,
    reference_kl: float = 0.0,
    std_eps: float = 1e-6,
) -> Algorithm:
    """CISPO: MiniMax 2025 (MiniMax-M1), equations 4 and 5.

    REINFORCE on every token, weighted by the clipped ratio without gradient; mean over all tokens.
    The paper leaves the ratio unbounded below (``clip_low`` 1 does that) and does not publish the upper
    bound; ``clip_high`` 4 bounds the weight at 5, the value ScaleRL found good. Differs from
    EasyR1 and verl: they use the PPO range here, 0.2 and 0.28.
    """
    return Algorithm(
        advantage=per_response(lambda r, v: advantages.normalised(r, v, std_eps)),
        objective=objectives.clipped_weight(clip_low, clip_high),
        penalties=reference_kl_penalty("cispo", reference_kl),
    )


RECIPES: dict[str, Callable[..., Algorithm]] = {
    recipe.__name__: recipe
    for recipe in (grpo, grpo_no_std, dr_grpo, rloo, dapo, gspo, cispo, papo_g, papo_d, vppo)
}
