"""PAPO's double entropy: which branch is held down and how strongly, on PAPO-G 7B with coefficient 0.02.

Source: arXiv:2507.06448, table 11 (both at 0.01, 0.03, 0.05), table 5 and figure 5 (none, the clean branch
alone, the corrupted branch alone, both). There none and the corrupted branch alone collapse, 0.01 late, and
0.05 is best. The single branches are at 0.05, which the paper does not state. Differs from the paper: the
corrupted branch of the released code is that of the old policy and has no gradient, so that its entropy is
a mere number; "live" is the paper's formula. Three seeds.
"""

from mmrl.sweep import Sweep, arm, chain, form, product


def entropies(clean: float, corrupted: float) -> dict[str, float]:
    """Coefficients of the two entropies."""
    return {"algorithm.clean_entropy": clean, "algorithm.corrupted_entropy": corrupted}


def get_sweep(arg: str = "") -> Sweep:
    """``arg``: "" or "smoke"."""
    sweep = Sweep(
        experiment="experiments/papo_qwen2_5_vl_7b.py",
        arms=chain(
            arm({"algorithm.perception_kl": 0.0, **entropies(0.0, 0.0)}, "grpo"),
            arm(entropies(0.0, 0.0), "none"),
            arm(entropies(0.05, 0.0), "clean"),
            arm(entropies(0.0, 0.05), "corrupted"),
            *(arm(entropies(value, value), f"double={value}") for value in (0.01, 0.03, 0.05)),
            product(
                arm({"algorithm.corrupted_branch": "live"}, "live"),
                chain(arm(entropies(0.0, 0.05), "corrupted"), arm(entropies(0.05, 0.05), "double=0.05")),
            ),
        ),
        seeds=(0, 1, 2),
        baseline="grpo",
    )
    return form(sweep, arg)
