"""Loading an experiment: ``FILE[:ARG]`` and overrides ``--config.KEY=VALUE``."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags


def load(config: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Run ``get_config(ARG)`` of an experiment file and apply overrides.

    Raises:
      ValueError: no such file or form, an unknown key (the nearest is named), or a value of the wrong type.
    """
    path = config.partition(":")[0]
    if not Path(path).is_file():
        raise ValueError(f"--config={config}: the file {path} does not exist")
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    try:
        values(["mmrl", f"--config={config}"])
    except (flags.IllegalFlagValueError, AttributeError) as error:
        raise ValueError(f"--config={config}: {error}") from error
    known = [f"config.{key}" for key in _keys(values["config"].value)]
    for override in overrides:
        key = override.removeprefix("--").partition("=")[0]
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise ValueError(f"{key} is not a key of the config; did you mean {close[0]}?")
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    try:
        values(["mmrl", f"--config={config}", *overrides])
    except (flags.IllegalFlagValueError, TypeError) as error:
        raise ValueError(str(error)) from error
    return values["config"].value


def _keys(config: ConfigDict, prefix: str = "") -> list[str]:
    out = []
    for key in config:
        value = config[key]
        out += _keys(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else [prefix + key]
    return out
