"""Loading an experiment: ``FILE[:ARG]`` and overrides ``--config.KEY=VALUE``."""

import ast
import difflib
import json
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ml_collections import ConfigDict

from mmrl.suggest import renamed
from mmrl.user_code import load_name, run_user_code

# Parts of a config that have whatever keys are given.
FREE = ("reward.weights", "reward.gates", "reward.options")
# Of those that one data set has for itself: a name, which may have dots in it, then keys of `reward`.
_SOURCES = "reward.sources"
_SOURCE_KEY = re.compile(
    r"(.+?)\.(?:(weights|gates|options)\.(.+)|(weights|gates|options|bonuses|verifier|also))"
)
_EXPECTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    tuple: "values with commas between them, as in 64,256 or zoom,calculate",
    dict: 'an object, as in {"accuracy": 0.9}',
}


def load(config: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Run ``get_config(ARG)`` of an experiment file and apply overrides.

    Raises:
      ValueError: no such file or form, an unknown key (the nearest is named), or a value of the wrong type.
    """
    values = call(config, "get_config", f"--config={config}")
    if not isinstance(values, ConfigDict):
        raise ValueError(f"--config={config}: get_config returned {type(values).__name__}, no ConfigDict")
    overrule(values, overrides)
    return values


def overrule(values: ConfigDict, overrides: Sequence[str]) -> None:
    """Set the keys of ``--config.KEY=VALUE``. Raises ValueError as `load` does."""
    pairs = [override.removeprefix("--config.").partition("=") for override in overrides]
    # The name of the algorithm says which hyper-parameters there are.
    for key, _, text in sorted(pairs, key=lambda pair: pair[0] != "algorithm.name"):
        _override(values, key, text)


def call(text: str, function: str, what: str) -> Any:
    """The value that ``function(ARG)`` of the Python file FILE[:ARG] returns.

    Args:
      text: FILE[:ARG]; without ARG the function is given "".
      function: what the file should define.
      what: begins every message.

    Raises:
      ValueError: no such file, it does not define the function, or that raises an error.
    """
    path, _, arg = text.partition(":")
    called = load_name(what, path, function)
    with run_user_code(what, path):
        return called(arg)


def _override(config: ConfigDict, key: str, text: str) -> None:
    parent, _, name = key.rpartition(".")
    if key in (*FREE, _SOURCES):
        _set(config, key, _free(_object(key, text)))
    elif parent in FREE and name:
        _set(config, key, _literal(text))
    elif key.startswith(f"{_SOURCES}."):
        _override_source(config, key, text)
    elif parent == "algorithm" and name != "name" and text == "None" and name in config.algorithm:
        _set(config, key, None)  # the recipe's default
    elif parent == "algorithm" and name not in config.algorithm and ":" in config.algorithm.name:
        _set(config, key, _literal(text))  # a recipe of one's own has hyper-parameters of its own
    else:
        _set(config, key, _parse(key, text, _kind(config, key)))


def _override_source(config: ConfigDict, key: str, text: str) -> None:
    """One of the keys that a data set has for itself, ``reward.sources.NAME.KEY[.PART]``."""
    match = _SOURCE_KEY.fullmatch(key.removeprefix(f"{_SOURCES}."))
    if match is None:
        raise ValueError(
            f"config.{key}: write config.{_SOURCES}.NAME.KEY=VALUE; KEY is one of weights.COMPONENT,"
            " gates.COMPONENT, options.FACT, bonuses, verifier, also"
        )
    source, free, part, whole = match.groups()
    sources = config.reward.sources.to_dict()
    own = sources.setdefault(source, {})
    if free:
        own[free] = {**own.get(free, {}), part: _literal(text)}
    elif whole == "verifier":
        own[whole] = text
    elif whole in ("bonuses", "also"):
        own[whole] = _parse(key, text, tuple)
    else:
        own[whole] = _object(key, text)
    _set(config, _SOURCES, _free(sources))


def _free(values: dict[str, Any]) -> ConfigDict:
    """A part of a config that may be given any keys, names of files among them."""
    return ConfigDict(values, type_safe=False, allow_dotted_keys=True)


def _set(config: ConfigDict, key: str, value: Any) -> None:
    *parents, name = key.split(".", 2) if key.startswith(FREE) else key.split(".")
    for parent in parents:
        config = config[parent]
    with config.unlocked(), config.ignore_type():
        try:
            config[name] = _free(value) if isinstance(value, dict) else value
        except (ValueError, TypeError, KeyError) as error:  # a key that is no name
            raise ValueError(f"config.{key}={value!r}: {error}") from error


def _kind(config: ConfigDict, key: str) -> type:
    """The type of a key. Raises ValueError, naming the nearest, if there is none."""
    known = _keys(config)
    if key not in known:
        inside = [name for name in known if name.startswith(f"{key}.")]
        if inside:
            raise ValueError(
                f"config.{key} holds keys and no value: {', '.join(f'config.{k}' for k in inside)}"
            )
        if now := renamed(key, known):
            raise ValueError(f"config.{key} is called config.{now} now")
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
        raise ValueError(f"config.{key} is not a key of the config; did you mean config.{close[0]}?")
    *parents, name = key.split(".")
    for parent in parents:
        config = config[parent]
    return config.get_type(name)


def _literal(text: str) -> Any:
    """A number, a tuple, a truth value or a dict as Python or JSON write it; anything else is text."""
    for read in (
        (ast.literal_eval, json.loads) if text.strip().startswith(("{", "[")) else (ast.literal_eval,)
    ):
        with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return read(text.strip())
    return text


def _object(key: str, text: str) -> dict[str, Any]:
    """A dict, as Python or JSON writes it. Raises ValueError for anything else."""
    value = _literal(text)
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"config.{key}={text} should be {_EXPECTED[dict]}")
    return value


def _parse(key: str, text: str, kind: type) -> Any:
    """The value of that type that a command line writes as ``text``. Raises ValueError."""
    if kind is str:
        return text
    value: Any = _literal(text)
    if kind is tuple:
        value = _tuple(text, value)
    elif kind is bool:
        value = {"true": True, "false": False}.get(text.strip().lower())
    elif kind is float and type(value) is int and abs(value) < 2**1000:
        value = float(value)
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"config.{key}={text} should be {_EXPECTED.get(kind, f'of type {kind.__name__}')}")
    return value


def _tuple(text: str, value: Any) -> tuple[Any, ...] | None:
    """``64,256``, ``zoom,calculate``, ``zoom`` or nothing, and what is one in Python; None for no such."""
    if isinstance(value, tuple | list):
        return tuple(value)
    if value != text:
        return (value,)
    words = [word.strip() for word in text.split(",")]
    if words[-1] == "":  # of nothing, or behind the last comma
        words.pop()
    if not all(words) or text.strip().startswith(("(", "[", "{")):
        return None
    return tuple(map(_literal, words))


def _keys(config: ConfigDict, prefix: str = "") -> list[str]:
    out: list[str] = []
    for key in config:
        value = config[key]
        out += _keys(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else [prefix + key]
    return out
