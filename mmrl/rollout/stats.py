"""What a rollout did, counted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Stats:
    """What a rollout did, and where its time went."""

    prompt_tokens: int = 0
    prompt_slots: int = 0  # tokens that prefill computed, padding included
    read_tokens: int = 0  # of observations
    sampled_tokens: int = 0
    steps: int = 0  # of decoding
    slots: int = 0  # columns times steps: tokens that decoding could have sampled
    chunks: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # prefill, decode, append, tools, host, consumer

    def metrics(self) -> dict[str, float]:
        """By the names they are logged under."""
        prefill, decode = (max(self.seconds.get(name, 0.0), 1e-9) for name in ("prefill", "decode"))
        return {
            "rollout/occupancy": self.sampled_tokens / max(self.slots, 1),
            "speed/prefill_tokens_per_second": self.prompt_tokens / prefill,
            "speed/decode_tokens_per_second": self.sampled_tokens / decode,
            "rollout/prefill_padding": 1 - self.prompt_tokens / max(self.prompt_slots, 1),
            "rollout/steps": float(self.steps),
            **{f"speed/rollout_{name}_seconds": seconds for name, seconds in self.seconds.items()},
        }


def merged(parts: Sequence[Mapping[str, Any]]) -> Stats:
    """The `Stats` of one rollout that several processes shared, each given as a dict.

    Counts add up; steps and seconds, which pass in all of them at once, are averaged.
    """
    total = Stats()
    for part in parts:
        for name, value in part.items():
            if name == "seconds":
                for phase, seconds in value.items():
                    total.seconds[phase] = total.seconds.get(phase, 0.0) + seconds / len(parts)
            else:
                setattr(total, name, getattr(total, name) + value)
    total.steps = round(total.steps / len(parts))
    return total
