"""PAPO-D, Qwen2.5-VL-7B on ViRL39K (arXiv:2507.06448): DAPO with the implicit perception loss.

Source: PAPO's released DAPO script: perception KL 0.01, both entropies 0.03, no reference KL, group of 5,
60 % of the patches blackened. Differences: those of `mmrl.presets.virl39k` and of the recipe `papo_d`.

Evaluated by ``mmrl eval --suite=experiments/suites/papers.py:papo --workdir=RUN``. The paper's table 1 has
65.83 / 59.82 / 63.16 for it (avg@8, %: general / vision-dependent / all). Not run here; see
docs/experiments.md.
"""

from ml_collections import ConfigDict

from mmrl.presets import form, virl39k


def get_config(arg: str = "") -> ConfigDict:
    """``arg``: "" or "smoke"."""
    config = virl39k("papo_d", group=5)
    config.algorithm.update({"perception_kl": 0.01, "clean_entropy": 0.03, "corrupted_entropy": 0.03})
    config.corruption.update({"method": "patch_black", "probability": 0.6})
    return form(config, arg)
