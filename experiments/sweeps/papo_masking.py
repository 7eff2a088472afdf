"""PAPO's masking ratio and strategy, on PAPO-G 3B.

Source: arXiv:2507.06448, section 5.2, table 3: random masking of 0.4 to 1.0 of the patches; the result at
0.6 is that of coefficient 0.01 in table 4, which is hence the coefficient of all. There 0.6 to 0.8 is best,
and all black worst. Differs from the paper: its other strategy, masking what DINOv2 attends to, is not in
mmrl; in its place are two that leave no patch as it was, gray and noise (those of VPPO's released code);
three seeds.
"""

from mmrl.sweep import Sweep, arm, chain, form, param, product

PERCEPTION_KL = {"algorithm.perception_kl": 0.01}


def get_sweep(arg: str = "") -> Sweep:
    """``arg``: "" or "smoke"."""
    sweep = Sweep(
        experiment="experiments/papo_qwen2_5_vl_3b.py",
        arms=chain(
            arm({"algorithm.perception_kl": 0.0}, "grpo"),
            product(
                arm({**PERCEPTION_KL, "corruption.method": "patch_black"}, "random"),
                param("corruption.probability", 0.4, 0.6, 0.8, 1.0),
            ),
            arm({**PERCEPTION_KL, "corruption.method": "gray"}, "gray"),
            arm({**PERCEPTION_KL, "corruption.method": "noise"}, "noise"),
        ),
        seeds=(0, 1, 2),
        baseline="grpo",
    )
    return form(sweep, arg)
