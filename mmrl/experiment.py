"""Loading an experiment: ``FILE[:ARG]`` and overrides ``--config.KEY=VALUE``."""

import ast
import difflib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from mmrl.python_file import defined

# Parts of a config that have whatever keys are given.
FREE = ("reward.weights", "reward.gates", "reward.options")


def load(config: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Run ``get_config(ARG)`` of an experiment file and apply overrides.

    Raises:
      ValueError: no such file or form, an unknown key (the nearest is named), or a value of the wrong type.
    """
    values = call(config, "get_config", f"--config={config}")
    for override in overrides:
        key, _, text = override.removeprefix("--config.").partition("=")
        _override(values, key, text)
    return values


def call(text: str, function: str, what: str) -> Any:
    """What ``function(ARG)`` of the Python file FILE[:ARG] returns.

    Args:
      text: FILE[:ARG]; without ARG the function is given "".
      function: what the file should define.
      what: begins every message.

    Raises:
      ValueError: no such file, or it does not define the function, or that raises one.
    """
    path, _, arg = text.partition(":")
    called = defined(what, path, function)
    try:
        return called(arg)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _override(config: ConfigDict, key: str, text: str) -> None:
    parents_path, _, name = key.rpartition(".")
    if parents_path in FREE:
        with config.unlocked(), config.ignore_type():
            config[parents_path][name] = _literal(text)
        return
    known = _keys(config)
    if parents_path == "algorithm" and key not in known and ":" in config.algorithm.name:
        with config.unlocked():  # a recipe of one's own has hyper-parameters of its own
            config.algorithm[name] = _literal(text)
        return
    if key not in known:
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
        raise ValueError(f"config.{key} is not a key of the config; did you mean config.{close[0]}?")
    *parents, name = key.split(".")
    for parent in parents:
        config = config[parent]
    kind = config.get_type(name)
    try:
        config[name] = _parse(text, kind)
    except (ValueError, SyntaxError, TypeError) as error:
        raise ValueError(f"config.{key}={text} should be of type {kind.__name__}") from error


def _literal(text: str) -> Any:
    """A number, a tuple or a truth value as Python writes it; anything else is text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _parse(text: str, kind: type) -> Any:
    if kind is str:
        return text
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise TypeError
        return text.lower() == "true"
    value = ast.literal_eval(text)
    if kind is int and type(value) is not int:
        raise TypeError
    return (value,) if kind is tuple and not isinstance(value, tuple | list) else value


def _keys(config: ConfigDict, prefix: str = "") -> list[str]:
    out: list[str] = []
    for key in config:
        value = config[key]
        out += _keys(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else [prefix + key]
    return out
