"""Nested dataclasses out of nested dicts, every key and type checked."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from mmrl.suggest import suggest

LARGEST = 10**300  # whole number that is taken for a float


def dataclass_from_dict(kind: type, values: Any, path: str) -> Any:
    """The dataclass ``kind`` with ``values``, a nested dict; what it leaves out has its default.

    ``path`` names the whole in messages. Lists become tuples, whole numbers floats where these are wanted.
    Raises ValueError for a key that ``kind`` does not have (naming the nearest) or a value of another type.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{path}={values!r} should be an object")
    fields = {item.name: item for item in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    arguments = {}
    for key, value in values.items():
        if key not in fields:
            shown = key if isinstance(key, str) and key.isprintable() else repr(key)
            raise ValueError(f"{path}.{shown} is not a key of the config{suggest(str(key), fields)}")
        hint = hints[key]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            arguments[key] = dataclass_from_dict(hint, value, f"{path}.{key}")
        else:
            arguments[key] = of_type(value, hint, f"{path}.{key}")
    return kind(**arguments)


def of_type(value: Any, hint: Any, path: str) -> Any:
    """A value, changed likewise, as the type ``hint`` has it. Raises ValueError naming ``path`` if it is of
    another."""
    origin = typing.get_origin(hint) or hint
    if origin is float and type(value) is int and abs(value) < LARGEST:
        return float(value)
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            raise ValueError(f"{path}={value!r} should be a tuple")
        kinds = typing.get_args(hint)
        if kinds[1:] == (...,):
            kinds = kinds[:1] * len(value)
        if len(kinds) != len(value):
            raise ValueError(f"{path}={value!r} should have {len(kinds)} values")
        return tuple(
            of_type(one, kind, f"{path}[{k}]") for k, (one, kind) in enumerate(zip(value, kinds, strict=True))
        )
    if not isinstance(value, origin) or (origin is int and isinstance(value, bool)):
        raise ValueError(f"{path}={value!r} should be of type {origin.__name__}")
    return _unchanging(value) if origin is dict else value


def _unchanging(value: Any) -> Any:
    """A tree of dicts with tuples for lists, so that what comes back from JSON is what went there."""
    if isinstance(value, dict):
        return {key: _unchanging(part) for key, part in value.items()}
    return tuple(map(_unchanging, value)) if isinstance(value, list | tuple) else value
