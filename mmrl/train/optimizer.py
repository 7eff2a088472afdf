"""AdamW from the config: schedule, clipping and decay."""

import optax

from mmrl.algorithms.schedules import constant_with_warmup, cosine_with_warmup
from mmrl.config import OptimizerConfig


def make_optimizer(config: OptimizerConfig, updates: int) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW (arXiv:1711.05101).

    Args:
      config: hyper-parameters; its frozen weights are none of the optimizer's (`mmrl.train.state`).
      updates: optimizer steps of the whole run, where the schedule ends.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.max_gradient_norm),
        optax.adamw(
            learning_rate(config, updates),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
        ),
    )


def learning_rate(config: OptimizerConfig, updates: int) -> optax.Schedule:
    """Warm-up over ``warmup_updates``, then constant, or a cosine to 0 at ``updates``."""
    if config.schedule == "cosine":
        return cosine_with_warmup(config.learning_rate, config.warmup_updates, updates)
    return constant_with_warmup(config.learning_rate, config.warmup_updates)
