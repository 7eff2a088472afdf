"""VPPO's mechanisms, each alone and together, and tokens chosen by entropy instead, on VPPO 7B.

Source: arXiv:2510.09285, section 5.2, table 2 (shaping alone, token filter alone, both, neither) and table
4 (filter by entropy, 0.2 to 0.8 of the tokens). The entropy penalty of the released script is a third
mechanism, on which the paper has no row: "dapo" is without it, as there, and "dapo,penalty" says what it
does alone. Not in mmrl: the random filter, the soft mask. Differs from the paper: three seeds.
"""

from mmrl.sweep import Sweep, arm, chain, form, param, product

KEEP, ENTROPY_KEEP = "algorithm.token_keep", "algorithm.entropy_keep"
SHAPING, PENALTY = "algorithm.shaping_min", "algorithm.entropy_penalty"


def get_sweep(arg: str = "") -> Sweep:
    """``arg``: "" or "smoke"."""
    sweep = Sweep(
        experiment="experiments/vppo_qwen2_5_vl_7b.py",
        arms=chain(
            arm({KEEP: 1.0, SHAPING: 1.0, PENALTY: 0.0}, "dapo"),
            arm({KEEP: 1.0, SHAPING: 1.0}, "dapo,penalty"),
            arm({KEEP: 1.0}, "shaping"),
            arm({SHAPING: 1.0}, "filter"),
            arm({}, "both"),
            product(arm({KEEP: 0.0, SHAPING: 1.0}, "filter"), param(ENTROPY_KEEP, 0.2, 0.4, 0.6, 0.8)),
        ),
        seeds=(0, 1, 2),
        baseline="dapo",
    )
    return form(sweep, arg)
