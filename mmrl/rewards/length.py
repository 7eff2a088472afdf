"""How long a response is, in tokens of the rollout. Both functions judge its length alone, not its answer."""

import math

from mmrl.rewards.facts import number_fact, rollout
from mmrl.sample import Sample


def overlong(sample: Sample, response: str) -> dict[str, float]:
    """``{"overlong": x}``: 0 up to ``max_tokens - facts["overlong_buffer"]`` tokens, then falling linearly to
    -1 at ``max_tokens``, -1 beyond.

    Source: DAPO, Yu et al. 2025, equation 13; with a buffer of 0 only what is longer than ``max_tokens`` is
    punished, as in EasyR1's and TRL's ``soft_overlong_punishment``. Raises ValueError if the sample has no
    facts of a rollout, or the buffer is not from 0 to ``max_tokens``.
    """
    facts = rollout(sample)
    # Before a run, when rows are only looked at, the budget is not known yet.
    buffer = number_fact(sample, "overlong_buffer", least=0, most=facts.max_tokens or math.inf)
    over = facts.tokens - max(0.0, facts.max_tokens - buffer)
    return {"overlong": 0.0 if over <= 0 else -1.0 if over >= buffer else -over / buffer}


def length_target(sample: Sample, response: str) -> dict[str, float]:
    """``{"length_target": x}``: 1 at ``facts["target_tokens"]`` tokens, falling linearly to 0 at none and at
    twice as many, 0 beyond.

    Raises ValueError if the sample has no facts of a rollout, or no target of at least one token.
    """
    target = number_fact(sample, "target_tokens", least=1)
    return {"length_target": max(0.0, 1.0 - abs(rollout(sample).tokens - target) / target)}
