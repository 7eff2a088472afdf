"""VPPO, Qwen2.5-VL-7B on ViRL39K (arXiv:2510.09285): token perception shapes the policy gradient.

Source: the released 7B script: DAPO's clip and filter, no KL, group of 8, reward is accuracy alone, 40 % of
the tokens kept, shaping from 0.9, entropy penalty 0.06, 50 % of the patches blackened. Differences: those
of `mmrl.presets.virl39k` and of the recipe `vppo`; one corrupted image a prompt, where the script draws one
for every response.

Evaluated by ``mmrl eval --suite=experiments/suites/papers.py:vppo --workdir=RUN``. The paper's table 1 has
a mean of 57.5 over its eight benchmarks (avg@8, %). Not run here; see docs/experiments.md.
"""

from ml_collections import ConfigDict

from mmrl.presets import form, virl39k
from mmrl.rewards.reward import VPPO_WEIGHTS, Reward


def get_config(arg: str = "") -> ConfigDict:
    """``arg``: "" or "smoke"."""
    config = virl39k("vppo", group=8)
    config.reward = Reward(weights=VPPO_WEIGHTS)
    config.corruption.update({"method": "patch_black", "probability": 0.5})
    return form(config, arg)
