"""Verifiers by name, and how their components become one reward.

A verifier is a pure function ``(sample, response) -> {component: value}``. Components are reported apart and
weighed by the config: PAPO and EasyR1 use ``PAPO_WEIGHTS``, VPPO accuracy alone.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from types import MappingProxyType

from mmrl.rewards.boxes import load as load_matching
from mmrl.rewards.choice import choice
from mmrl.rewards.detection import boxes
from mmrl.rewards.format import form, stages, thought
from mmrl.rewards.grounding import box, point
from mmrl.rewards.gui import gui, gui_candidates
from mmrl.rewards.intervals import interval
from mmrl.rewards.judge import JUDGED
from mmrl.rewards.language import language
from mmrl.rewards.length import length_target, overlong
from mmrl.rewards.lists import list_, order, rank, set_
from mmrl.rewards.math import load as load_math
from mmrl.rewards.math import math
from mmrl.rewards.numeric import count, number
from mmrl.rewards.reflection import consistency, reflection
from mmrl.rewards.repetition import repetition
from mmrl.rewards.shapes import shapes
from mmrl.rewards.structure import json_answer, triples
from mmrl.rewards.words import anls, edit, exact, text, yes_no
from mmrl.sample import Sample
from mmrl.suggest import suggest
from mmrl.user_code import load_function

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
        # the answer is right
        "math": together(math, form),
        "choice": together(choice, form),
        "number": together(number, form),
        "count": together(count, form),
        "yes_no": together(yes_no, form),
        "exact": together(exact, form),
        "text": together(text, form),
        "anls": together(anls, form),
        "edit": together(edit, form),
        "list": together(list_, form),
        "set": together(set_, form),
        "order": together(order, form),
        "rank": together(rank, form),
        "json": together(json_answer, form),
        "triples": together(triples, form),
        "box": together(box, form),
        "point": together(point, form),
        "boxes": together(boxes, form),
        "interval": together(interval, form),
        "gui": together(gui, form),
        "gui_candidates": together(gui_candidates, form),
        "reflection": reflection,
        # the built-in world
        "shapes": shapes,
        # how the response is written; report no accuracy
        "format": form,
        "thought": thought,
        "stages": stages,
        "overlong": overlong,
        "length_target": length_target,
        "repetition": repetition,
        "language": language,
        "consistency": consistency,
    }
)

# What a worker does before its first sample of a verifier, outside that sample's deadline.
LOADERS: Mapping[str, Callable[[], None]] = MappingProxyType(
    {"math": load_math, "reflection": load_math, "boxes": load_matching, "point": load_matching}
)


def own_names(verifier: str) -> tuple[str, ...]:
    """Of verifiers joined by "+", those of one's own: ``"FILE.py:function"``."""
    return tuple(name.strip() for name in verifier.split("+") if ":" in name)


def own_verifiers(names: Collection[str]) -> dict[str, Verifier]:
    """Verifiers of one's own by name. Their files are run, so names come from a config, never from data.

    Raises ValueError if a file does not exist or does not define the function.
    """
    return {name: load_function(f"verifier {name!r}", name) for name in names}


def names_of(verifier: str, own: Collection[str] = ()) -> tuple[str, ...]:
    """The verifiers that a sample names, joined by "+": ``"box+repetition"``. ``own`` are known besides.

    Raises ValueError for an unknown name or one that stands twice.
    """
    names = tuple(name.strip() for name in verifier.split("+"))
    for name in names:
        known = [*VERIFIERS, *JUDGED, *own]
        if name not in known and ":" in name:
            raise ValueError(f"verifier {name!r}: rows cannot name a file; name it in config.reward.verifier")
        if name not in known:
            raise ValueError(f"verifier {name!r} is unknown{suggest(name, known)}")
    if len(set(names)) < len(names):
        raise ValueError(f"verifier {verifier!r} names one twice")
    return names


def reports(sample: Sample, own: Mapping[str, Verifier] = MappingProxyType({})) -> frozenset[str]:
    """The components that responses to ``sample`` will have. ``own``: verifiers of one's own, by name.

    Raises ValueError if a verifier is unknown, cannot use this sample, or reports what another does.
    """
    found: set[str] = set()
    for name in names_of(sample.verifier, own):
        components = _reports(own, name, replace(sample, verifier=name))
        twice = found & components
        if twice:
            raise ValueError(f"verifier {sample.verifier!r}: two of these report {min(twice)!r}")
        found |= components
    return frozenset(found)


def _reports(own: Mapping[str, Verifier], name: str, sample: Sample) -> set[str]:
    if name in JUDGED:
        JUDGED[name].request(sample, "")
        return set(JUDGED[name].components)
    return set((own.get(name) or VERIFIERS[name])(sample, ""))


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
