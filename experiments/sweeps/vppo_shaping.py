"""VPPO's least factor of an advantage, with shaping alone, on VPPO 7B.

Source: arXiv:2510.09285, section 5.2, table 3: 0.8 and 0.9 with an upper end that follows the batch; 0.9 is
best. Its result at 0.9 is that of shaping alone in table 2, so that all tokens are kept here. The paper's
fixed upper ends (1.1 and 1.2) are not in mmrl; 0.5 is ours. Differs from the paper: three seeds.
"""

from mmrl.sweep import Sweep, arm, chain, form, param, product


def get_sweep(arg: str = "") -> Sweep:
    """``arg``: "" or "smoke"."""
    dapo = {"algorithm.token_keep": 1.0, "algorithm.shaping_min": 1.0, "algorithm.entropy_penalty": 0.0}
    sweep = Sweep(
        experiment="experiments/vppo_qwen2_5_vl_7b.py",
        arms=chain(
            arm(dapo, "dapo"),
            product(
                arm({"algorithm.token_keep": 1.0}, "shaping"), param("algorithm.shaping_min", 0.5, 0.8, 0.9)
            ),
        ),
        seeds=(0, 1, 2),
        baseline="dapo",
    )
    return form(sweep, arg)
