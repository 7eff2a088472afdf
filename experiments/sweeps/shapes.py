"""The methods in the shapes world: k3 against exact KL, with and without entropy penalties, five seeds.

On the quickstart, a few minutes a run on two cores. Coefficients are among those of the papers (PAPO,
arXiv:2507.06448: 0.02, and 0.03 for both entropies; VPPO, arXiv:2510.09285: entropy penalty 0.06); "strong"
is a coefficient far above, to see whether PAPO collapses there, and whether double entropy prevents it.
``shapes.py:smoke`` takes the quickstart's smoke form and one seed.
"""

from mmrl.sweep import Arms, Sweep, arm, chain, form, product

STRONG = 1.0  # fifty times the paper's

ESTIMATOR = chain(
    arm({"algorithm.perception_estimator": "k3"}, "k3"),
    arm({"algorithm.perception_estimator": "exact"}, "exact"),
)
DOUBLE_ENTROPY = chain(
    arm({"algorithm.clean_entropy": 0.0, "algorithm.corrupted_entropy": 0.0}, "no_entropy"),
    arm({"algorithm.clean_entropy": 0.03, "algorithm.corrupted_entropy": 0.03}, "entropy"),
)
ENTROPY = chain(
    arm({"algorithm.entropy_penalty": 0.0}, "no_entropy"),
    arm({"algorithm.entropy_penalty": 0.06}, "entropy"),
)


def papo(name: str, perception_kl: float, label: str) -> Arms:
    """PAPO with a coefficient, k3 and exact, with and without double entropy."""
    chosen = arm({"algorithm.name": name, "algorithm.perception_kl": perception_kl}, label)
    return product(chosen, ESTIMATOR, DOUBLE_ENTROPY)


def get_sweep(arg: str = "") -> Sweep:
    """``arg``: "" or "smoke"."""
    sweep = Sweep(
        experiment="experiments/quickstart.py",
        arms=chain(
            arm({"algorithm.name": "grpo"}, "grpo"),
            arm({"algorithm.name": "dapo"}, "dapo"),
            papo("papo_g", 0.02, "papo_g"),
            papo("papo_d", 0.02, "papo_d"),
            product(arm({"algorithm.name": "vppo"}, "vppo"), ESTIMATOR, ENTROPY),
            papo("papo_g", STRONG, "papo_g,strong"),
        ),
        seeds=(0, 1, 2, 3, 4),
        baseline="grpo",
        metrics=("heldout/accuracy", "heldout/perception_error", "area:heldout/accuracy"),
    )
    return form(sweep, arg)
