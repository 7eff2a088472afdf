"""GRPO, Qwen2.5-VL-7B on ViRL39K: the baseline of the PAPO paper (arXiv:2507.06448, section 4 and appendix).

Source: PAPO's released GRPO script and config: group of 5, clip 0.2 / 0.3, dual clip 3, reference KL (k3)
0.01, mean over tokens, reward 0.9 accuracy + 0.1 format. Differences: those of `mmrl.presets.virl39k`;
means over the global batch; the paper writes a mean for each response.

Evaluated by ``mmrl eval --suite=experiments/suites/papers.py:papo --workdir=RUN``. The paper's table 1 has
62.51 / 54.11 / 58.78 for it (avg@8, %: general / vision-dependent / all). Not run here; see
docs/experiments.md.
"""

from ml_collections import ConfigDict

from mmrl.presets import form, virl39k


def get_config(arg: str = "") -> ConfigDict:
    """``arg``: "" or "smoke"."""
    config = virl39k("grpo", group=5)
    config.algorithm.update({"clip_low": 0.2, "clip_high": 0.3, "dual_clip": 3.0, "reference_kl": 0.01})
    config.algorithm.average = "token"
    return form(config, arg)
