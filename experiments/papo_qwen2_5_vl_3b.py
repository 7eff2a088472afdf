"""PAPO-G, Qwen2.5-VL-3B on ViRL39K (arXiv:2507.06448): GRPO with the implicit perception loss.

Source: the paper's 3B run and released script: perception KL 0.02 (k3), no entropy terms, reference KL
0.01, group of 5, 60 % of the patches blackened. Differences: those of `mmrl.presets.virl39k` and of the
recipe `papo_g`.

Evaluated by ``mmrl eval --suite=experiments/suites/papers.py:papo --workdir=RUN``. The paper's table 1 has
53.39 / 45.57 / 49.92 for it (avg@8, %: general / vision-dependent / all). Not run here; see
docs/experiments.md.
"""

from ml_collections import ConfigDict

from mmrl.presets import form, virl39k


def get_config(arg: str = "") -> ConfigDict:
    """``arg``: "" or "smoke"."""
    config = virl39k("papo_g", group=5)
    config.algorithm.update({"perception_kl": 0.02, "clean_entropy": 0.0, "corrupted_entropy": 0.0})
    config.corruption.update({"method": "patch_black", "probability": 0.6})
    return form(config, arg)
