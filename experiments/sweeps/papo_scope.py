"""Our question of which responses and tokens PAPO's perception KL should be on, on PAPO-G 3B.

Source of the switches: PAPO's released code. "correct" leaves incorrect responses out, "weighted" counts
them a tenth; "top" keeps of each response the fifth of its tokens that depend most on the image. The paper
has all tokens of all responses, and names a finer choice as future work.
"""

from mmrl.sweep import Sweep, arm, chain, form, product


def get_sweep(arg: str = "") -> Sweep:
    """``arg``: "" or "smoke"."""
    grid = product(
        chain(
            *(arm({"algorithm.perception_apply_to": name}, name) for name in ("all", "correct", "weighted"))
        ),
        chain(
            arm({"algorithm.perception_top_fraction": 0.0}, "every"),
            arm({"algorithm.perception_top_fraction": 0.2}, "top"),
        ),
    )
    sweep = Sweep(
        experiment="experiments/papo_qwen2_5_vl_3b.py",
        arms=chain(arm({"algorithm.perception_kl": 0.0}, "grpo"), grid),
        seeds=(0, 1, 2),
        baseline="all,every",
    )
    return form(sweep, arg)
