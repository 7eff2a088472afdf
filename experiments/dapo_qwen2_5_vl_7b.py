"""DAPO (arXiv:2503.14476), Qwen2.5-VL-7B on ViRL39K: the baseline of PAPO-D and VPPO.

Source: the released scripts of PAPO and VPPO: clip 0.2 / 0.28, no KL, mean over tokens, groups with mean
accuracy outside (0.01, 0.99) sampled again, group of 8. Differences: those of `mmrl.presets.virl39k`.
"""

from ml_collections import ConfigDict

from mmrl.presets import form, virl39k


def get_config(arg: str = "") -> ConfigDict:
    """``arg``: "" or "smoke"."""
    config = virl39k("dapo", group=8)
    config.algorithm.update({"clip_low": 0.2, "clip_high": 0.28})
    return form(config, arg)
