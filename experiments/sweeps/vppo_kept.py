"""VPPO's share of tokens that carry the policy gradient: 0.2 to 1, on VPPO 7B.

Source: arXiv:2510.09285, section 5.2, figure 6, where the average is highest near 0.4. The paper does not
say whether shaping was on; here it is, as in the released script. The baseline is DAPO: all tokens, no
shaping, no entropy penalty. Differs from the paper: three seeds.
"""

from mmrl.sweep import Sweep, arm, chain, form, param


def get_sweep(arg: str = "") -> Sweep:
    """``arg``: "" or "smoke"."""
    dapo = {"algorithm.token_keep": 1.0, "algorithm.shaping_min": 1.0, "algorithm.entropy_penalty": 0.0}
    sweep = Sweep(
        experiment="experiments/vppo_qwen2_5_vl_7b.py",
        arms=chain(arm(dapo, "dapo"), param("algorithm.token_keep", 0.2, 0.4, 0.6, 0.8, 1.0)),
        seeds=(0, 1, 2),
        baseline="dapo",
    )
    return form(sweep, arg)
