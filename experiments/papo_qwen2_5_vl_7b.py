"""PAPO-G, Qwen2.5-VL-7B on ViRL39K (arXiv:2507.06448): GRPO with the implicit perception loss.

Source: the paper's 7B run and released script: perception KL 0.02 (k3), both entropies 0.05, reference KL
0.01, group of 5, 60 % of the patches blackened. Differences: those of `mmrl.presets.virl39k` and of the
recipe `papo_g`.

Evaluated by ``mmrl eval --suite=experiments/suites/papers.py:papo --workdir=RUN``. The paper's table 1 has
63.50 / 59.37 / 61.66 for it (avg@8, %: general / vision-dependent / all). Not run here; see
docs/experiments.md.
"""

from ml_collections import ConfigDict

from mmrl.presets import form, virl39k


def get_config(arg: str = "") -> ConfigDict:
    """``arg``: "" or "smoke"."""
    config = virl39k("papo_g", group=5)
    config.algorithm.update({"perception_kl": 0.02, "clean_entropy": 0.05, "corrupted_entropy": 0.05})
    config.corruption.update({"method": "patch_black", "probability": 0.6})
    return form(config, arg)
