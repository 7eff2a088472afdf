"""The methods that look at perception, PAPO and VPPO; see ``recipes`` for the names of hyper-parameters."""

from mmrl.algorithms import advantages, objectives, penalties, schedules, weights
from mmrl.algorithms.algorithm import Algorithm
from mmrl.algorithms.passes import CORRUPTED_LOGPROB, PERCEPTION, Score
from mmrl.algorithms.penalties import Penalty
from mmrl.algorithms.recipe_parts import average_of, filter_between, per_response, reference_kl_penalty, term
from mmrl.algorithms.schedules import Schedule
from mmrl.algorithms.weights import Weight


def papo_g(
    clip_low: float = 0.2,
    clip_high: float = 0.3,
    dual_clip: float = 3.0,
    reference_kl: float = 0.01,
    std_eps: float = 1e-6,
    average: str = "token",
    perception_kl: float = 0.02,
    perception_kl_end: float = 0.0,
    perception_kl_anneal: float = 0.0,
    perception_estimator: str = "k3",
    perception_apply_to: str = "all",
    perception_incorrect_weight: float = 0.1,
    perception_top_fraction: float = 0.0,
    perception_limit: float = 0.0,
    clean_entropy: float = 0.05,
    corrupted_entropy: float = 0.05,
    corrupted_branch: str = "constant",
    full_entropy: float = 0.0,
    imitation: float = 0.0,
) -> Algorithm:
    """PAPO-G: Wang et al. 2025 ("Perception-Aware Policy Optimization"), equations 4 to 6, on GRPO.

    GRPO's loss - perception_kl * KL(image present || image corrupted) + entropy penalties of both branches.
    Defaults are those of the 7B run (3B: both entropies 0; without reference KL: 0.01, 0.03 and 0.03). The
    paper corrupts by blackening 60 % of the 14-pixel patches. With ``perception_kl_anneal`` > 0 the
    coefficient moves linearly to ``perception_kl_end`` over that share of the run, the entropies with it.
    Differs from the paper: "k3" is the released estimate on sampled tokens, with the ratio
    pi(corrupted) / pi(clean) (the paper's figure has the inverse), limited to 10; entropies are lowered, as
    the text says; "constant" holds the corrupted branch at the old policy, so that its entropy has no
    gradient ("live" is the paper's); a dual clip. "exact" is the paper's expectation over the vocabulary.
    Differs from the code: means are over the global batch, where the code weighs micro-batches equally
    whatever their tokens; the same for a single micro-batch.
    """
    return Algorithm(
        advantage=per_response(lambda r, v: advantages.normalised(r, v, std_eps)),
        reduction=average_of("papo_g", average),
        objective=objectives.clipped(clip_low, clip_high, dual_clip),
        penalties=reference_kl_penalty("papo_g", reference_kl)
        + perception_terms(
            "papo_g",
            coefficient=perception_kl,
            end=perception_kl_end,
            anneal=perception_kl_anneal,
            estimator=perception_estimator,
            apply_to=perception_apply_to,
            incorrect_weight=perception_incorrect_weight,
            top_fraction=perception_top_fraction,
            limit=perception_limit,
            clean_entropy=clean_entropy,
            corrupted_entropy=corrupted_entropy,
            corrupted_branch=corrupted_branch,
            full_entropy=full_entropy,
            imitation=imitation,
        ),
    )


def papo_d(
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float = 3.0,
    reference_kl: float = 0.0,
    std_eps: float = 1e-6,
    filter_low: float = 0.01,
    filter_high: float = 0.99,
    perception_kl: float = 0.01,
    perception_kl_end: float = 0.0,
    perception_kl_anneal: float = 0.0,
    perception_estimator: str = "k3",
    perception_apply_to: str = "all",
    perception_incorrect_weight: float = 0.1,
    perception_top_fraction: float = 0.0,
    perception_limit: float = 0.0,
    clean_entropy: float = 0.03,
    corrupted_entropy: float = 0.03,
    corrupted_branch: str = "constant",
    full_entropy: float = 0.0,
    imitation: float = 0.0,
) -> Algorithm:
    """PAPO-D: Wang et al. 2025 ("Perception-Aware Policy Optimization"), equation 7, on DAPO.

    ``papo_g``'s perception and entropy terms on DAPO: clip-higher, the mean over tokens, dynamic sampling, no
    reference KL. Defaults are those of the 7B run. Differences from paper and code are those of ``papo_g``;
    the paper's DAPO also has an overlong penalty, which the released scripts do not use.
    """
    return Algorithm(
        advantage=per_response(lambda r, v: advantages.normalised(r, v, std_eps)),
        objective=objectives.clipped(clip_low, clip_high, dual_clip),
        penalties=reference_kl_penalty("papo_d", reference_kl)
        + perception_terms(
            "papo_d",
            coefficient=perception_kl,
            end=perception_kl_end,
            anneal=perception_kl_anneal,
            estimator=perception_estimator,
            apply_to=perception_apply_to,
            incorrect_weight=perception_incorrect_weight,
            top_fraction=perception_top_fraction,
            limit=perception_limit,
            clean_entropy=clean_entropy,
            corrupted_entropy=corrupted_entropy,
            corrupted_branch=corrupted_branch,
            full_entropy=full_entropy,
            imitation=imitation,
        ),
        group_filter=filter_between("papo_d", filter_low, filter_high),
    )


def vppo(
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float = 3.0,
    reference_kl: float = 0.0,
    std_eps: float = 1e-6,
    average: str = "token",
    filter_low: float = 0.01,
    filter_high: float = 0.99,
    perception_estimator: str = "k3",
    token_keep: float = 0.4,
    entropy_keep: float = 0.0,
    shaping_min: float = 0.9,
    entropy_penalty: float = 0.06,
    full_entropy: float = 0.0,
) -> Algorithm:
    """VPPO: Huang et al. 2025 ("Spotlight on Token Perception"), equations 2 to 7, on DAPO.

    Of each response only the ``token_keep`` share of tokens that depend most on the image carry the policy
    gradient; ``entropy_keep`` adds those of highest entropy; token_keep 1 keeps all, 0 leaves them to
    ``entropy_keep``. The advantage of a response is scaled from ``shaping_min`` up by its mean dependency (1
    turns that off). ``entropy_penalty`` lowers the sampled entropy. Defaults are those of the 7B run (8B:
    entropy_penalty 0.12). The paper corrupts by blackening 50 % of the 14-pixel patches.
    Differs from the paper: "k3" is the released one-sample estimate of dependency in [0, 10]; "exact" is the
    paper's KL over the vocabulary; the filtered loss is averaged over all tokens, as in the code.
    Differs from the code: range and mean of the dependency are over the global batch, where the code takes
    the range per device and the mean per micro-batch; the same for one device and a single micro-batch.
    """
    dependency, needs = dependency_of("vppo", perception_estimator)
    if not 0.0 <= token_keep <= 1.0 or not 0.0 <= entropy_keep <= 1.0 or token_keep + entropy_keep == 0.0:
        raise ValueError("vppo: token_keep and entropy_keep must lie in [0, 1] and not both be 0")
    if not 0.0 <= shaping_min <= 1.0:
        raise ValueError(f"vppo: shaping_min must lie in [0, 1] (1 turns shaping off), got {shaping_min}")
    chosen: tuple[Weight, ...] = ()
    if token_keep < 1.0:
        score = dependency if token_keep else None
        chosen += (
            weights.token_filter(score, token_keep, entropy_keep, needs if token_keep else frozenset()),
        )
    if shaping_min < 1.0:
        chosen += (weights.trajectory_shaping(dependency, shaping_min, needs),)
    return Algorithm(
        advantage=per_response(lambda r, v: advantages.normalised(r, v, std_eps)),
        weights=chosen,
        reduction=average_of("vppo", average),
        objective=objectives.clipped(clip_low, clip_high, dual_clip),
        penalties=reference_kl_penalty("vppo", reference_kl)
        + term("vppo", "entropy_penalty", entropy_penalty, penalties.sampled_entropy)
        + term("vppo", "full_entropy", full_entropy, penalties.entropy),
        group_filter=filter_between("vppo", filter_low, filter_high),
    )


def dependency_of(recipe: str, estimator: str) -> tuple[weights.TokenScore, frozenset[Score]]:
    if estimator == "k3":
        return weights.dependency_k3, frozenset({CORRUPTED_LOGPROB})
    if estimator == "exact":
        return weights.dependency_exact, frozenset({PERCEPTION})
    raise ValueError(f"{recipe}: perception_estimator must be k3 or exact, got {estimator!r}")


def perception_terms(
    recipe: str,
    *,
    coefficient: float,
    end: float,
    anneal: float,
    estimator: str,
    apply_to: str,
    incorrect_weight: float,
    top_fraction: float,
    limit: float,
    clean_entropy: float,
    corrupted_entropy: float,
    corrupted_branch: str,
    full_entropy: float,
    imitation: float,
) -> tuple[Penalty, ...]:
    """PAPO's terms, shared by its two recipes. Those with a coefficient of 0 are left out."""
    if corrupted_branch not in ("constant", "live"):
        raise ValueError(f"{recipe}: corrupted_branch must be constant or live, got {corrupted_branch!r}")
    if estimator not in ("k3", "exact"):
        raise ValueError(f"{recipe}: perception_estimator must be k3 or exact, got {estimator!r}")
    if not 0.0 <= top_fraction <= 1.0 or limit < 0.0:
        raise ValueError(f"{recipe}: perception_top_fraction must lie in [0, 1], perception_limit be >= 0")
    if anneal and not coefficient:
        raise ValueError(f"{recipe}: perception_kl_anneal needs a perception_kl to start from")

    def perception(schedule: Schedule) -> Penalty:
        return penalties.perception_kl(
            schedule, estimator, corrupted_branch, apply_to, incorrect_weight, top_fraction, limit
        )

    def corrupted(schedule: Schedule) -> Penalty:
        # The exact KL has the corrupted branch in the update anyway: no pass before it, for a mere number.
        frozen = estimator == "exact" and corrupted_branch == "constant"
        return penalties.corrupted_sampled_entropy(schedule, "frozen" if frozen else corrupted_branch)

    terms: tuple[Penalty, ...] = ()
    for name, value, make in (
        ("perception_kl", coefficient, perception),
        ("clean_entropy", clean_entropy, penalties.sampled_entropy),
        ("corrupted_entropy", corrupted_entropy, corrupted),
    ):
        for fixed in term(recipe, name, value, make):
            # The released code discounts both entropies by (coefficient now) / (coefficient at the start).
            moving = schedules.linear(value, value * end / coefficient, anneal) if anneal else None
            terms += (make(moving) if moving else fixed,)
    return (
        terms
        + term(recipe, "full_entropy", full_entropy, penalties.entropy)
        + term(recipe, "imitation", imitation, penalties.imitation)
    )
