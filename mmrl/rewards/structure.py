"""Verifiers of structured answers: JSON of a schema, and lists of ``function(object, value)``."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mmrl.rewards.boxes import best_matching
from mmrl.rewards.text import MAX_ANSWER, nesting
from mmrl.rewards.verifier import AnswerIn, Components, Verifier, answer_of, wrong_answer
from mmrl.sample import Sample

MAX_NESTING = 64  # of JSON that is read
MAX_DIGITS = 400  # of one number in it

_TYPE = {"enum": ["object", "array", "string", "number", "integer", "boolean", "null"]}
# Keywords of JSON Schema that a row's schema may have: another makes the row a broken one.
META_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        **dict.fromkeys(("$schema", "title", "description", "examples", "default"), True),  # demand nothing
        "type": {"anyOf": [_TYPE, {"type": "array", "items": _TYPE}]},
        "enum": {"type": "array"},
        "minimum": {"type": "number"},
        "maximum": {"type": "number"},
        "properties": {"type": "object", "additionalProperties": {"$ref": "#"}},
        "required": {"type": "array"},
        "additionalProperties": {"type": "boolean"},
        "items": {"$ref": "#"},
    },
    "additionalProperties": False,
}

_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_TRIPLE = re.compile(r"(?<!\w)(\w{1,80})\(\s*(\w{1,80})\s*,\s*['\"]?(\w{1,80})['\"]?\s*\)")
_CREDIT = {(True, True): 1.0, (True, False): 0.5, (False, True): 0.5, (False, False): 0.25}


def load_jsonschema() -> None:
    """Imports jsonschema ahead of the first answer."""
    import jsonschema  # noqa: F401


def _json(sample: Sample, response: str, *, schema: Any = None, answer_in: AnswerIn = "box") -> Components:
    """The answer as JSON, bare or in one fence, against ``sample.answer`` and ``schema``.

    ``json``: the answer is JSON and follows the schema (any JSON does, without one). ``accuracy``: it is
    equal to the truth: numbers by value, objects in any order of keys. ``fields``: F1 of its leaves against
    those of the truth, where a leaf is a path and its value. A key given twice, NaN and Infinity are no JSON.
    Raises ValueError if the schema has keywords beyond `META_SCHEMA`, or the row's answer does not follow it.
    """
    schema = {} if schema is None else schema
    _check_schema(sample, schema)
    try:
        truth = read_json(sample.answer)
    except ValueError as error:
        raise ValueError(f"sample {sample.id}: the answer is no JSON ({error}); fix it") from error
    if not follows(truth, schema):
        raise ValueError(f'sample {sample.id}: the answer does not follow facts["schema"]; fix one of them')
    answer = answer_of(response, answer_in)
    fenced = _FENCE.findall(answer)
    try:
        given = read_json(fenced[0] if len(fenced) == 1 else answer)
    except ValueError:
        return {"accuracy": 0.0, "json": 0.0, "fields": 0.0}
    true_leaves, leaves = Counter(_leaves(truth)), Counter(_leaves(given))
    return {
        "accuracy": float(true_leaves == leaves),
        "json": float(follows(given, schema)),
        "fields": 2.0 * (true_leaves & leaves).total() / (true_leaves.total() + leaves.total()),
    }


json_answer = Verifier(_json, name="json")


def read_json(text: str) -> Any:
    """The value that ``text`` writes. Raises ValueError if it is not JSON, or too large or deep to be one."""
    if len(text) > MAX_ANSWER or nesting(text) > MAX_NESTING:
        raise ValueError("too large")
    return json.loads(
        text,
        object_pairs_hook=_object,
        parse_int=lambda digits: int(_bounded(digits)),
        parse_float=lambda digits: float(_bounded(digits)),
        parse_constant=_refuse,
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _bounded(digits: str) -> str:
    if len(digits) > MAX_DIGITS or math.isinf(float(digits)):
        raise ValueError("too large a number")
    return digits


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


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
    """True if ``value`` is valid under a checked schema."""
    from jsonschema import Draft202012Validator

    return bool(Draft202012Validator(schema).is_valid(value))


def _check_schema(sample: Sample, schema: Any) -> None:
    """Raises ValueError for a schema that is not one of `META_SCHEMA`."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    error = best_match(Draft202012Validator(META_SCHEMA).iter_errors(schema))
    if error is not None:
        at = "".join(f"[{name!r}]" for name in ("schema", *error.absolute_path))
        known = ", ".join(META_SCHEMA["properties"])
        raise ValueError(f"sample {sample.id}: facts{at}: {error.message[:200]}; known keywords are {known}")


@Verifier
def triples(sample: Sample, response: str, *, answer_in: AnswerIn = "box") -> Components:
    """Lists of ``function(object, value)``, such as ``change_color(0, 'red')``.

    ``triples``: each triple of the answer is matched with one of the truth and earns 1 if all is right, 0.5
    with the function and one of the others, 0.25 with the function alone; the sum is divided by the longer
    list's length, and multiplied by the share of the answer's triples that are not repeated. ``accuracy``:
    the answer's triples are those of the truth, none repeated. Source: ``func_accuracy_reward`` of
    Reason-RFT, Tan et al. 2025, with the best matching instead of a greedy one. ValueError if the truth has
    no triple.
    """
    wanted = sorted(set(_TRIPLE.findall(sample.answer)))
    if not wanted:
        raise wrong_answer(sample, "should be triples: function(object, value)")
    written = _TRIPLE.findall(answer_of(response, answer_in))
    given = sorted(set(written))
    if not given:
        return {"accuracy": 0.0, "triples": 0.0}
    credit = np.array(
        [[_CREDIT[a[1] == b[1], a[2] == b[2]] if a[0] == b[0] else 0.0 for b in wanted] for a in given]
    )
    pairs = best_matching(credit)
    share = credit[pairs[:, 0], pairs[:, 1]].sum() / max(len(given), len(wanted)) * len(given) / len(written)
    return {"accuracy": float(len(written) == len(wanted) and given == wanted), "triples": float(share)}
