"""Answers with a structure: JSON that follows a schema, and lists of ``function(object, value)``."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from mmrl.rewards.answers import answer_of
from mmrl.rewards.text import MAX_ANSWER, nesting
from mmrl.sample import Sample

MAX_NESTING = 64  # of JSON that is read
MAX_DIGITS = 400  # of one number in it

TYPES: Mapping[str, tuple[type, ...]] = MappingProxyType(
    {
        "object": (dict,),
        "array": (list,),
        "string": (str,),
        "number": (int, float),
        "integer": (int, float),
        "boolean": (bool,),
        "null": (type(None),),
    }
)
# What of JSON Schema is obeyed, and of which type each keyword's value is.
KEYWORDS: Mapping[str, tuple[type, ...]] = MappingProxyType(
    {
        "type": (str, list),
        "enum": (list,),
        "minimum": (int, float),
        "maximum": (int, float),
        "properties": (dict,),
        "required": (list,),
        "additionalProperties": (bool,),
        "items": (dict,),
    }
)
NOTES = ("$schema", "title", "description", "examples", "default")  # these demand nothing

_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_TRIPLE = re.compile(r"(?<!\w)(\w{1,80})\(\s*(\w{1,80})\s*,\s*['\"]?(\w{1,80})['\"]?\s*\)")
_CREDIT = {(True, True): 1.0, (True, False): 0.5, (False, True): 0.5, (False, False): 0.25}


def json_answer(sample: Sample, response: str) -> dict[str, float]:
    """The answer as JSON, bare or in one fence, against ``sample.answer`` and ``facts["schema"]``.

    Returns:
      ``json``: the answer is JSON and follows the schema (any JSON does, without one).
      ``accuracy``: it is equal to the truth: numbers by value, objects in any order of keys.
      ``fields``: F1 of its leaves against those of the truth, where a leaf is a path and its value.

    A key given twice, NaN and Infinity are no JSON. Of JSON Schema the ``KEYWORDS`` are known. Raises
    ValueError for another keyword, and if ``sample.answer`` is not JSON that follows the schema.
    """
    schema = sample.facts.get("schema", {})
    _check_schema(sample, schema)
    try:
        truth = read_json(sample.answer)
    except ValueError as error:
        raise ValueError(f"sample {sample.id}: the answer is no JSON ({error}); fix it") from error
    if not follows(truth, schema):
        raise ValueError(f'sample {sample.id}: the answer does not follow facts["schema"]; fix one of them')
    try:
        given = read_json(_without_fence(answer_of(sample, response) or ""))
    except ValueError:
        return {"accuracy": 0.0, "json": 0.0, "fields": 0.0}
    wanted, found = Counter(_leaves(truth)), Counter(_leaves(given))
    return {
        "accuracy": float(wanted == found),
        "json": float(follows(given, schema)),
        "fields": 2.0 * (wanted & found).total() / (wanted.total() + found.total()),
    }


def read_json(text: str) -> Any:
    """The value that ``text`` writes. Raises ValueError if it is not JSON, or too large or deep to be one."""
    if len(text) > MAX_ANSWER or nesting(text) > MAX_NESTING:
        raise ValueError("too large")
    return json.loads(
        text,
        object_pairs_hook=_object,
        parse_int=_number(int),
        parse_float=_number(float),
        parse_constant=_none,
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _number(kind: type) -> Any:
    def read(digits: str) -> float:
        if len(digits) > MAX_DIGITS or math.isinf(float(digits)):
            raise ValueError("too large a number")
        return kind(digits)

    return read


def _none(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _without_fence(answer: str) -> str:
    fenced = _FENCE.findall(answer)
    return fenced[0] if len(fenced) == 1 else answer


def _same(a: Any, b: Any) -> bool:
    return Counter(_leaves(a)) == Counter(_leaves(b))


def _leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths and values of what holds nothing else; the kind tells true from 1."""
    if isinstance(value, dict | list) and value:
        for name, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(child, (*path, name))
    elif isinstance(value, dict | list):
        yield (path, type(value).__name__)
    else:
        yield (path, isinstance(value, bool), value)


def follows(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether ``value`` is what a checked schema describes."""
    if not any(_is(value, kind) for kind in _kinds(schema)):
        return False
    if "enum" in schema and not any(_same(value, one) for one in schema["enum"]):
        return False
    if _is(value, "number") and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        return False
    if isinstance(value, list):
        return all(follows(item, schema.get("items", {})) for item in value)
    if not isinstance(value, dict):
        return True
    known = schema.get("properties", {})
    closed = schema.get("additionalProperties", True) is False
    if not set(schema.get("required", ())) <= value.keys() or (closed and not value.keys() <= known.keys()):
        return False
    return all(follows(child, known.get(name, {})) for name, child in value.items())


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):  # 1.0 is one, as JSON Schema has it
        return value.is_integer()
    return isinstance(value, TYPES[kind])


def _check_schema(sample: Sample, schema: Any) -> None:
    """Raises ValueError unless `follows` obeys every keyword of ``schema``."""
    where = f'sample {sample.id}: facts["schema"]'
    if not isinstance(schema, Mapping):
        raise ValueError(f"{where}: {schema!r:.80} is no schema; give an object")
    for name, value in schema.items():
        if name in NOTES:
            continue
        if name not in KEYWORDS:
            raise ValueError(f"{where}: the keyword {name!r} is unknown; there are {', '.join(KEYWORDS)}")
        if not isinstance(value, KEYWORDS[name]):
            kinds = " or ".join(kind.__name__ for kind in KEYWORDS[name])
            raise ValueError(f"{where}: {name!r} is {value!r:.80}, but should be {kinds}")
    for kind in _kinds(schema):
        if not isinstance(kind, str) or kind not in TYPES:
            raise ValueError(f"{where}: the type {kind!r:.80} is unknown; there are {', '.join(TYPES)}")
    for child in (*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])):
        _check_schema(sample, child)


def _kinds(schema: Mapping[str, Any]) -> list[Any]:
    kinds = schema.get("type", list(TYPES))
    return [kinds] if isinstance(kinds, str) else kinds


def triples(sample: Sample, response: str) -> dict[str, float]:
    """Lists of ``function(object, value)``, such as ``change_color(0, 'red')``.

    Returns:
      ``triples``: each triple of the answer is matched with one of the truth and earns 1 if all is right, 0.5
      with the function and one of the others, 0.25 with the function alone; the sum is divided by the
      longer list's length, and multiplied by the share of the answer's triples that are not repeated.
      ``accuracy``: the answer's triples are those of the truth, none repeated (0 or 1).

    Source: ``func_accuracy_reward`` of Reason-RFT, Tan et al. 2025, whose greedy matching depends on the
    order of a set; here the matching is the best there is. Raises ValueError if ``sample.answer`` has no
    triple.
    """
    wanted = sorted(set(_TRIPLE.findall(sample.answer)))
    if not wanted:
        raise ValueError(
            f"sample {sample.id}: answer {sample.answer[:80]!r} should be triples: function(object, value)"
        )
    written = _TRIPLE.findall(answer_of(sample, response) or "")
    given = sorted(set(written))
    if not given:
        return {"accuracy": 0.0, "triples": 0.0}
    share = _matched(given, wanted) / max(len(given), len(wanted)) * len(given) / len(written)
    return {"accuracy": float(len(written) == len(wanted) and given == wanted), "triples": share}


def _matched(given: list[tuple[str, str, str]], wanted: list[tuple[str, str, str]]) -> float:
    """The greatest sum of credits of pairs."""
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    def credit(a: tuple[str, str, str], b: tuple[str, str, str]) -> float:
        return _CREDIT[a[1] == b[1], a[2] == b[2]] if a[0] == b[0] else 0.0

    credits = np.array([[credit(a, b) for b in wanted] for a in given])
    rows, columns = linear_sum_assignment(credits, maximize=True)
    return float(credits[rows, columns].sum())
