"""PAPO's coefficient of the perception KL: 0.005 to 0.04, on PAPO-G 3B.

Source: arXiv:2507.06448, section 5.2, table 4, where 0.02 is best and 0.04 collapses. A coefficient of 0 is
the paper's GRPO, as the other settings are its own. Differs from the paper: three seeds, where it has one
run.
"""

from mmrl.sweep import Sweep, arm, chain, form, param


def get_sweep(arg: str = "") -> Sweep:
    """``arg``: "" or "smoke"."""
    sweep = Sweep(
        experiment="experiments/papo_qwen2_5_vl_3b.py",
        arms=chain(
            arm({"algorithm.perception_kl": 0.0}, "grpo"),
            param("algorithm.perception_kl", 0.005, 0.01, 0.02, 0.04),
        ),
        seeds=(0, 1, 2),
        baseline="grpo",
    )
    return form(sweep, arg)
