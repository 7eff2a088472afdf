"""Learning to look closer: the zoom world from nothing, a cold start of which few rows zoom, then GRPO.

In the zoom world nobody can see the answer without calling ``zoom``, so accuracy above one in four is the
accuracy of using it. The cold start zooms in a quarter of its rows and guesses in the others; nothing but the
reward for right answers tells the policy which is better. ``zoom.py:smoke`` takes seconds and learns nothing.
"""

from ml_collections import ConfigDict

from mmrl.config import template
from mmrl.presets import form
from mmrl.rewards.reward import Reward


def get_config(arg: str = "") -> ConfigDict:
    """``arg``: "" or "smoke"."""
    config = template("grpo")
    config.model.update({"path": "{workdir}/world/model", "unroll": 4})
    config.world.update({"name": "zoom", "train": 1024, "heldout": 128, "cold_start": 3072, "zooming": 0.25})
    config.data.update(
        {
            "train": "{workdir}/world/train.parquet",
            "heldout": "{workdir}/world/heldout.parquet",
            "prompt_buckets": (20,),
            "patch_buckets": (16,),
        }
    )
    config.cold_start.update(
        {
            "steps": 100,
            "data": "{workdir}/world/cold_start.parquet",
            "batch": 32,
            "learning_rate": 3e-3,
            "warmup": 20,
            "checkpoint_every": 200,
        }
    )
    config.rollout.update({"prompts": 16, "group": 8})
    config.reward = Reward(weights={"accuracy": 1.0})
    config.optimizer.update({"learning_rate": 3e-4, "b2": 0.95, "warmup_updates": 5})
    config.train.update({"steps": 30, "update_prompts": 16, "evaluate_every": 5, "checkpoint_every": 10})
    config.evaluation.update({"prompts": 32, "samples": 4})
    config = form(config, arg)
    # A call has 6 tokens, what it shows 15, an error up to 30, an answer 4: room for one call.
    config.episode.update({"tools": ("zoom",), "turns": 2, "images": 1})
    config.episode.update({"observation_tokens": 32, "observation_patches": 16})
    config.rollout.max_tokens, config.cold_start.max_tokens = 44, 26
    return config
