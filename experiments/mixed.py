"""Four tasks in one batch, from nothing: counts, boxes, choices and jigsaws of the mixed world, then GRPO.

Each task has a data set and a verifier of its own (`mmrl.tasks.mixed_world`). ``mixed.py`` takes about ten
minutes on two cores; ``mixed.py:smoke`` takes seconds and learns nothing.
"""

from ml_collections import ConfigDict

from mmrl.config import template
from mmrl.presets import form

TASKS = ("count", "box", "choice", "jigsaw")


def get_config(arg: str = "") -> ConfigDict:
    """``arg``: "" or "smoke"."""
    config = template("grpo")
    config.model.update({"path": "{workdir}/world/model", "unroll": 4})
    config.world.update({"name": "mixed", "train": 512, "heldout": 128, "cold_start": 16384})
    config.cold_start.update(
        {
            "steps": 2000,
            "batch": 32,
            "temperature": 0.4,
            "learning_rate": 3e-3,
            "warmup": 20,
            "checkpoint_every": 500,
        }
    )
    config.rollout.update({"prompts": 64, "group": 8, "top_p": 0.9})
    config.optimizer.update({"learning_rate": 4e-4, "b2": 0.95, "warmup_updates": 5})
    config.train.update({"steps": 50, "update_prompts": 64, "evaluate_every": 10, "checkpoint_every": 10})
    config.evaluation.update({"prompts": 64, "samples": 4, "top_p": 0.9})
    config = form(config, arg)
    config.data.update(
        {
            "train": ",".join(f"{{workdir}}/world/train/{task}@1" for task in TASKS),
            "heldout": ",".join(f"{{workdir}}/world/heldout/{task}" for task in TASKS),
            "prompt_buckets": (30,),
            "patch_buckets": (16,),
        }
    )
    config.cold_start.update({"data": "{workdir}/world/cold_start", "max_tokens": 14})
    config.rollout.max_tokens = 14
    return config
