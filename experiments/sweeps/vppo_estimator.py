"""Our question of how VPPO should measure a token's dependency on the image, on VPPO 7B.

k3 of the sampled token is the released estimate, exact the KL over the whole vocabulary, the paper's
equation 2. Each for the whole method and for the token filter alone.
"""

from mmrl.sweep import Sweep, arm, chain, form, product


def get_sweep(arg: str = "") -> Sweep:
    """``arg``: "" or "smoke"."""
    grid = product(
        chain(
            arm({"algorithm.perception_estimator": "k3"}, "k3"),
            arm({"algorithm.perception_estimator": "exact"}, "exact"),
        ),
        chain(arm({"algorithm.shaping_min": 0.9}, "both"), arm({"algorithm.shaping_min": 1.0}, "filter")),
    )
    sweep = Sweep(
        experiment="experiments/vppo_qwen2_5_vl_7b.py", arms=grid, seeds=(0, 1, 2), baseline="k3,both"
    )
    return form(sweep, arg)
