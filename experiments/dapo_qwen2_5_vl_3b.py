"""DAPO (arXiv:2503.14476), Qwen2.5-VL-3B on ViRL39K: the baseline of PAPO-D, and with three changes of VPPO.

Source: PAPO's released DAPO script: clip 0.2 / 0.28, dual clip 3, no KL, mean over tokens, groups with mean
accuracy outside (0.01, 0.99) sampled again, group of 5, reward 0.9 accuracy + 0.1 format. VPPO's baseline
(7B) has groups of 8 and rewards accuracy alone: ``--config.rollout.group=8
--config.reward.weights.accuracy=1 --config.reward.weights.format=0``. Differences: those of
`mmrl.presets.virl39k`.

Evaluated by ``mmrl eval --suite=experiments/suites/papers.py:papo --workdir=RUN``. The paper's table 1 has
55.02 / 49.11 / 52.40 for it (avg@8, %: general / vision-dependent / all). Not run here; see
docs/experiments.md.
"""

from ml_collections import ConfigDict

from mmrl.presets import form, virl39k


def get_config(arg: str = "") -> ConfigDict:
    """``arg``: "" or "smoke"."""
    config = virl39k("dapo", group=5)
    config.algorithm.update({"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 3.0})
    return form(config, arg)
