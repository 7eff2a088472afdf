"""The shapes world from nothing: write data and a tiny model, cold start, then PAPO.

``quickstart.py`` takes a few minutes on two cores; ``quickstart.py:smoke`` takes seconds and learns nothing.
"""

from ml_collections import ConfigDict

from mmrl.config import template
from mmrl.presets import form
from mmrl.rewards.reward import Reward


def get_config(arg: str = "") -> ConfigDict:
    """``arg``: "" or "smoke"."""
    config = template("papo_g")
    config.model.update({"path": "{workdir}/world/model", "unroll": 4})
    config.world.update({"train": 2048, "heldout": 256, "cold_start": 6144, "levels": (1,), "prior": 0.1})
    config.world.kinds = ("count", "compare", "locate", "missing")
    config.data.update(
        {
            "train": "{workdir}/world/train.parquet",
            "heldout": "{workdir}/world/heldout.parquet",
            "prompt_buckets": (22,),
            "patch_buckets": (16,),
        }
    )
    config.cold_start.update(
        {
            "steps": 330,
            "data": "{workdir}/world/cold_start.parquet",
            "batch": 32,
            "max_tokens": 10,
            "temperature": 0.45,
            "learning_rate": 3e-3,
            "warmup": 20,
            "checkpoint_every": 200,
        }
    )
    config.rollout.update({"prompts": 32, "group": 8, "max_tokens": 10, "top_p": 0.9})
    config.optimizer.update({"learning_rate": 5e-4, "b2": 0.95, "warmup_updates": 5})
    # A right answer from wrong facts was luck: it earns no more than its format.
    config.reward = Reward(weights={"accuracy": 0.9, "format": 0.1, "unfaithful": -0.9})
    config.train.update({"steps": 60, "update_prompts": 32, "evaluate_every": 15, "checkpoint_every": 10})
    config.evaluation.update({"prompts": 32, "samples": 8, "top_p": 0.9})
    return form(config, arg)
