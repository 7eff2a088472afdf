"""Learning rates over a run, made of optax's schedules."""

import optax


def constant_with_warmup(peak: float, warmup_steps: int) -> optax.Schedule:
    """From 0 at step 0 linearly to ``peak`` at ``warmup_steps``, then constant; 0 steps start at the peak."""
    return _after_warmup(peak, warmup_steps, optax.constant_schedule(peak))


def cosine_with_warmup(
    peak: float, warmup_steps: int, total_steps: int, final_fraction: float = 0.0
) -> optax.Schedule:
    """Warmup, then half a cosine from ``peak`` to ``final_fraction * peak`` at ``total_steps``, then that.

    Raises ValueError unless there are steps after the warmup. EasyR1's and verl's rise again beyond the end.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"cosine_with_warmup: {warmup_steps} warmup steps leave none of {total_steps}")
    decay = optax.cosine_decay_schedule(peak, total_steps - warmup_steps, alpha=final_fraction)
    return _after_warmup(peak, warmup_steps, decay)


def _after_warmup(peak: float, warmup_steps: int, schedule: optax.Schedule) -> optax.Schedule:
    if warmup_steps < 0:
        raise ValueError(f"learning rate: warmup_steps must not be negative, got {warmup_steps}")
    if warmup_steps == 0:
        return schedule
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), schedule], [warmup_steps])
