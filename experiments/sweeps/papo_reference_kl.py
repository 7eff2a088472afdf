"""PAPO with and without the KL to the reference policy, on PAPO-G 3B.

Source: arXiv:2507.06448, table 8 (GRPO and PAPO-G with reference KL 0.01 and without it; PAPO-G then has
coefficient 0.01 and both entropies 0.03) and figure 10 (without it, coefficients 0.01 and 0.02, with and
without double entropy, of which 0.01 with double entropy alone is stable). Increasing the reference KL is
one of the paper's remedies (table 5); its value is not stated, 0.02 and 0.04 are ours. Differs from the
paper: three seeds.
"""

from mmrl.sweep import Sweep, arm, chain, form, param, product

DOUBLE_ENTROPY = chain(
    arm({"algorithm.clean_entropy": 0.0, "algorithm.corrupted_entropy": 0.0}, "no_entropy"),
    arm({"algorithm.clean_entropy": 0.03, "algorithm.corrupted_entropy": 0.03}, "entropy"),
)


def get_sweep(arg: str = "") -> Sweep:
    """``arg``: "" or "smoke"."""
    sweep = Sweep(
        experiment="experiments/papo_qwen2_5_vl_3b.py",
        arms=chain(
            arm({"algorithm.perception_kl": 0.0}, "grpo"),
            arm({"algorithm.perception_kl": 0.0, "algorithm.reference_kl": 0.0}, "grpo,no_reference"),
            product(arm({}, "papo_g"), param("algorithm.reference_kl", 0.01, 0.02, 0.04)),
            product(
                arm({"algorithm.reference_kl": 0.0}, "papo_g,no_reference"),
                param("algorithm.perception_kl", 0.01, 0.02),
                DOUBLE_ENTROPY,
            ),
        ),
        seeds=(0, 1, 2),
        baseline="grpo",
    )
    return form(sweep, arg)
