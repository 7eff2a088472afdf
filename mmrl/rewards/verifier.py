"""Verifiers by name, and how their components become one reward.

A verifier is a pure function ``(sample, response) -> {component: value}``. Components are reported apart and
weighed by the config: PAPO and EasyR1 use ``PAPO_WEIGHTS``, VPPO accuracy alone.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from mmrl.rewards.choice import choice
from mmrl.rewards.format import think_answer, think_boxed
from mmrl.rewards.math import load as load_math
from mmrl.rewards.math import math, math_in_line, math_in_tag
from mmrl.rewards.number import number
from mmrl.rewards.shapes import shapes
from mmrl.sample import Sample

Verifier = Callable[[Sample, str], dict[str, float]]

PAPO_WEIGHTS: Mapping[str, float] = MappingProxyType({"accuracy": 0.9, "format": 0.1})
VPPO_WEIGHTS: Mapping[str, float] = MappingProxyType({"accuracy": 1.0})


def together(*verifiers: Verifier) -> Verifier:
    """The verifier that reports the components of all ``verifiers``.

    The result raises ValueError if two of them report the same component.
    """

    def verifier(sample: Sample, response: str) -> dict[str, float]:
        components: dict[str, float] = {}
        for part in verifiers:
            for name, value in part(sample, response).items():
                if name in components:
                    raise ValueError(f"two verifiers report the component {name!r}; join only distinct ones")
                components[name] = value
        return components

    return verifier


VERIFIERS: Mapping[str, Verifier] = MappingProxyType(
    {
        "math": together(math, think_boxed),
        "math_in_tag": together(math_in_tag, think_answer),
        "math_in_line": math_in_line,
        "choice": together(choice, think_boxed),
        "number": together(number, think_boxed),
        "format": think_boxed,
        "shapes": shapes,
    }
)

# What a worker does before its first sample of a verifier, outside that sample's deadline.
LOADERS: Mapping[str, Callable[[], None]] = MappingProxyType(
    {name: load_math for name in ("math", "math_in_tag", "math_in_line")}
)


def score(components: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The reward: the sum of ``weights[name] * components[name]``; components without a weight count 0.

    ValueError if a weighted component is missing.
    """
    missing = sorted(weights.keys() - components.keys())
    if missing:
        raise ValueError(
            f"reward weights name {missing}, which the verifier does not report; "
            f"it reports {sorted(components)}"
        )
    return sum(weight * components[name] for name, weight in weights.items())
