"""Verifiers by name."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from types import MappingProxyType

from mmrl.rewards.boxes import box, boxes, load_scipy, point
from mmrl.rewards.choice import choice
from mmrl.rewards.gui import gui, gui_candidates
from mmrl.rewards.judge import JUDGED, checklist, judge  # noqa: F401 (experiments find all verifiers here)
from mmrl.rewards.lists import list_, order, rank, set_
from mmrl.rewards.math import load_math_verify, math
from mmrl.rewards.number import count, interval, number
from mmrl.rewards.shapes import shapes
from mmrl.rewards.structure import json_answer, load_jsonschema, triples
from mmrl.rewards.style import (
    consistency,
    language,
    length_target,
    overlong,
    reflection,
    repetition,
    response_format,
    stages,
    thought,
)
from mmrl.rewards.verifier import Grade, combine
from mmrl.rewards.words import anls, edit, exact, text, yes_no
from mmrl.sample import Sample
from mmrl.suggest import suggest
from mmrl.user_code import load_function

_ANSWERS: dict[str, Grade] = {  # whether the answer is right
    **{"math": math, "choice": choice, "number": number, "count": count, "yes_no": yes_no, "exact": exact},
    **{"text": text, "anls": anls, "edit": edit, "list": list_, "set": set_, "order": order, "rank": rank},
    **{"json": json_answer, "triples": triples, "box": box, "point": point, "boxes": boxes},
    **{"interval": interval, "gui": gui, "gui_candidates": gui_candidates},
}
VERIFIERS: Mapping[str, Grade] = MappingProxyType(
    {
        **{name: combine(verifier, response_format) for name, verifier in _ANSWERS.items()},
        **{"reflection": reflection, "shapes": shapes},
        # how the response is written; report no accuracy
        **{"format": response_format, "thought": thought, "stages": stages, "overlong": overlong},
        **{"length_target": length_target, "repetition": repetition, "language": language},
        "consistency": consistency,
    }
)

# What a worker does before its first sample of a verifier, outside that sample's deadline.
LOADERS: Mapping[str, Callable[[], None]] = MappingProxyType(
    {
        **dict.fromkeys(("math", "reflection"), load_math_verify),
        **dict.fromkeys(("boxes", "point", "triples"), load_scipy),
        "json": load_jsonschema,
    }
)


def user_names(verifier: str) -> tuple[str, ...]:
    """The user-defined ones, ``"FILE.py:function"``, of verifiers joined by "+"."""
    return tuple(name.strip() for name in verifier.split("+") if ":" in name)


def load_verifiers(names: Collection[str]) -> dict[str, Grade]:
    """User-defined verifiers by name. Their files are run, so names come from a config, never from data.

    Raises ValueError if a file does not exist or does not define the function.
    """
    return {name: load_function(f"verifier {name!r}", name) for name in names}


def verifier_names(verifier: str, user_defined: Collection[str] = ()) -> tuple[str, ...]:
    """The verifiers that a sample names, joined by "+": ``"box+repetition"``.

    Raises ValueError for a name that is unknown or stands twice.
    """
    names = tuple(name.strip() for name in verifier.split("+"))
    for name in names:
        known = [*VERIFIERS, *JUDGED, *user_defined]
        if name not in known and ":" in name:
            raise ValueError(f"verifier {name!r}: rows cannot name a file; name it in config.reward.verifier")
        if name not in known:
            raise ValueError(f"verifier {name!r} is unknown{suggest(name, known)}")
    if len(set(names)) < len(names):
        raise ValueError(f"verifier {verifier!r} names one twice")
    return names


def reported_components(
    sample: Sample, user_defined: Mapping[str, Grade] = MappingProxyType({})
) -> frozenset[str]:
    """The components that responses to ``sample`` will have.

    Raises ValueError if a verifier is unknown, cannot use this sample, or reports what another does.
    """
    components: set[str] = set()
    for name in verifier_names(sample.verifier, user_defined):
        row = replace(sample, verifier=name)
        if name in JUDGED:
            JUDGED[name].request(row, "")
            reported = set(JUDGED[name].components)
        else:
            reported = set((user_defined.get(name) or VERIFIERS[name])(row, ""))
        if components & reported:
            raise ValueError(
                f"verifier {sample.verifier!r}: two of these report {min(components & reported)!r}"
            )
        components |= reported
    return frozenset(components)
