"""Our questions about PAPO's terms: k3 or exact KL, constant or live corrupted branch, on PAPO-G 3B.

k3 is the released estimate on the sampled token, exact the KL over the whole vocabulary, which is what the
paper writes. The corrupted branch is the old policy's without a gradient ("constant", as released) or the
current policy's with one ("live", the paper's formula). Both with and without double entropy (0.03), whose
second half has a gradient in the live branch alone.
"""

from mmrl.sweep import Sweep, arm, chain, form, product


def get_sweep(arg: str = "") -> Sweep:
    """``arg``: "" or "smoke"."""
    grid = product(
        chain(
            arm({"algorithm.perception_estimator": "k3"}, "k3"),
            arm({"algorithm.perception_estimator": "exact"}, "exact"),
        ),
        chain(
            arm({"algorithm.corrupted_branch": "constant"}, "constant"),
            arm({"algorithm.corrupted_branch": "live"}, "live"),
        ),
        chain(
            arm({"algorithm.clean_entropy": 0.0, "algorithm.corrupted_entropy": 0.0}, "no_entropy"),
            arm({"algorithm.clean_entropy": 0.03, "algorithm.corrupted_entropy": 0.03}, "entropy"),
        ),
    )
    sweep = Sweep(
        experiment="experiments/papo_qwen2_5_vl_3b.py",
        arms=chain(arm({"algorithm.perception_kl": 0.0}, "grpo"), grid),
        seeds=(0, 1, 2),
        baseline="k3,constant,no_entropy",
    )
    return form(sweep, arg)
