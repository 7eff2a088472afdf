"""JSON files of a Hugging Face model directory, and values out of them that are what they should be."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmrl.terminal import one_line

_LFS_POINTER = b"version https://git-lfs"
MOST_JSON_BYTES = 64 << 20  # the largest tokenizer's vocabulary is a few MB


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object that a file of a model directory holds. Raises ValueError naming the file."""
    path = folder / name
    text = read_bytes(path, f"{folder} has no {name}. Is it a Hugging Face model directory?")
    try:
        value = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object")
    return value


def read_bytes(path: Path, absent: str) -> bytes:
    """The object in a JSON file. Raises ValueError: ``absent`` if it is not there, else one that names it."""
    check_whole(path)
    try:
        if path.stat().st_size > MOST_JSON_BYTES:
            raise ValueError(f"{path} has {path.stat().st_size} bytes, which no such file needs")
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError(absent) from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def check_whole(path: Path) -> None:
    """Raises ValueError for a file that was never fetched: a dangling link, or what stands for it."""
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{path} is a link to a file that is not there; fetch the model again")
    if path.is_file() and path.stat().st_size < 1000 and path.read_bytes().startswith(_LFS_POINTER):
        raise ValueError(f"{path} is a Git LFS pointer, not the file itself; run: git lfs pull")


def image_settings(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file that says how images are prepared, and what it says.

    As in transformers 5, the entry "image_processor" of processor_config.json comes before
    preprocessor_config.json. Raises ValueError naming the file if it is missing or not what it should be.
    """
    if (folder / "processor_config.json").is_file():
        inner = read_json(folder, "processor_config.json").get("image_processor")
        if inner is not None:
            return folder / "processor_config.json", section(inner, "image_processor", folder)
    return folder / "preprocessor_config.json", read_json(folder, "preprocessor_config.json")


def section(value: Any, key: str, name: object) -> dict[str, Any]:
    """The object under ``key`` of the file ``name``. Raises ValueError if it is none."""
    if not isinstance(value, dict):
        raise ValueError(f"{name}: {key} is {short_repr(value)}, not an object")
    return value


def require_integer(values: Mapping[str, Any], key: str, name: object, most: int, least: int = 1) -> int:
    """The whole number under ``key``. Raises ValueError naming file and key: missing, out of range."""
    value = _there(values, key, name)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name}: {key} is {short_repr(value)}, not a whole number from {least} to {most}")
    return value


def positive(values: Mapping[str, Any], key: str, name: object) -> float:
    """The positive finite number under ``key``. Raises ValueError naming file and key."""
    value = _there(values, key, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise ValueError(f"{name}: {key} is {short_repr(value)}, not a positive number")
    return float(value)


def triple(values: Mapping[str, Any], key: str, name: object, positive: bool) -> tuple[float, float, float]:
    """Three finite numbers under ``key``, one a colour. Raises ValueError naming file and key."""
    value = _there(values, key, name)
    numbers = value if isinstance(value, list | tuple) and len(value) == 3 else ()
    fit = [x for x in numbers if isinstance(x, int | float) and not isinstance(x, bool)]
    if len(fit) != 3 or not all(abs(x) < 1e30 and (x > 0 or not positive) for x in fit):
        raise ValueError(
            f"{name}: {key} is {short_repr(value)}, not three {'positive ' if positive else ''}numbers"
        )
    return float(fit[0]), float(fit[1]), float(fit[2])


def _there(values: Mapping[str, Any], key: str, name: object) -> Any:
    if key not in values:
        raise ValueError(f"{name}: the key {key!r} is missing")
    return values[key]


def short_repr(value: Any, most: int = 60) -> str:
    """A value of a file, short enough for a message."""
    if isinstance(value, int) and abs(value) > 10**18:
        return f"a number of {math.floor(math.log10(abs(value))) + 1} digits"
    text = (
        repr(value)
        if not isinstance(value, dict | list) or len(value) < 100
        else f"a long {type(value).__name__}"
    )
    return text if len(text) <= most else text[: most - 3] + "..."
