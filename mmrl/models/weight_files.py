"""The weight files of a Hugging Face directory, and what their headers say.

The same file wins as in transformers: model.safetensors, then model.safetensors.index.json with all that its
shards hold. What transformers would read otherwise, or what it would have to guess, is refused.
"""

import fnmatch
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from mmrl.models.model_files import check_whole, read_json, short_repr
from mmrl.terminal import one_line

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Some files nest the two parts, others do not, of one family too; they are known by the shorter names.
_RENAME = (
    ("model.language_model.", "model."),
    ("model.visual.", "visual."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)
_READ = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Without their sign, the bits of values from here on are infinite or NaN, once rounded to bfloat16.
_NOT_FINITE = {
    "bfloat16": (np.uint16, np.uint16(0x7FFF), 0x7F80),
    "float16": (np.uint16, np.uint16(0x7FFF), 0x7C00),
    "float32": (np.uint32, np.uint32(0x7FFFFFFF), 0x7F7F8000),
}
_NAMES = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F4": "float4_e2m1fn", "BOOL": "bool"}
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
# What else a directory may hold instead, and what to do about it.
_OTHERS = (
    (_ADAPTER, "an adapter without its model: merge it into the base model (merge_and_unload of peft)"),
    (("*.gguf",), "weights in llama.cpp's format, which mmrl does not read; take the safetensors files"),
    (
        ("pytorch_model*.bin", "*.bin", "*.pt", "*.pth"),
        "PyTorch weights, which mmrl does not read; write them anew with save_pretrained of transformers",
    ),
    (
        ("tf_model*.h5", "flax_model*.msgpack", "*.ckpt*"),
        "weights of another library; write them anew with save_pretrained of transformers",
    ),
    (("model-*-of-*.safetensors",), f"shards without {INDEX}, which says what they are; fetch it too"),
    (("*.safetensors",), f"a name that transformers does not look for; rename it to {SINGLE}"),
)


class TensorHeader(NamedTuple):
    """A tensor of a file, by what the file's header says."""

    path: Path
    key: str  # its name in the file
    shape: tuple[int, ...]
    dtype: str


def locate(directory: Path) -> dict[str, TensorHeader]:
    """The file of each tensor, by its `short_name`; no tensor is read.

    Raises ValueError naming the file: no weights that mmrl reads, a damaged file, a shard that is missing, an
    index that does not say what its shards hold, a tensor that is there twice.
    """
    single, index = directory / SINGLE, directory / INDEX
    for path in (single, index, directory / _ADAPTER[0]):
        check_whole(path)
    if not (single.is_file() or index.is_file()):
        raise ValueError(f"{directory}: no weights (neither {SINGLE} nor {INDEX}){_found(directory)}")
    if (directory / _ADAPTER[0]).is_file():
        weights = SINGLE if single.is_file() else INDEX
        raise ValueError(
            f"{directory} holds {weights} and {_ADAPTER[0]}: transformers puts the adapter on top of the"
            " weights, mmrl does not; merge it (merge_and_unload of peft), or remove it"
        )
    if single.is_file():
        return _unique(header(single), directory)
    listed = _read_index(directory)
    names = sorted(set(listed.values()))
    for file in names:
        check_whole(directory / file)
        if Path(file).name != file or not (directory / file).is_file():
            raise ValueError(f"{directory}: the shard {one_line(file)} named by {INDEX} is missing")
    stored = [tensor for file in names for tensor in header(directory / file)]
    where = _unique(stored, directory)
    _check_index(listed, stored)
    return where


def header(path: Path) -> Iterator[TensorHeader]:
    """The tensors of a safetensors file. Raises ValueError if it is damaged."""
    file = open_weights(path)
    for key in file.keys():  # noqa: SIM118 (not a dict)
        part = file.get_slice(key)
        yield TensorHeader(path, key, tuple(part.get_shape()), part.get_dtype())


def open_weights(path: Path) -> Any:
    """A safetensors file, opened. Raises ValueError naming it if it is damaged."""
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path}: damaged or truncated safetensors file ({one_line(error)}); fetch it again"
        ) from error


def check_type(stored: TensorHeader, name: str) -> None:
    """Raises ValueError naming file and tensor unless it is of a floating type that is read."""
    if stored.dtype not in _READ:
        bits = re.fullmatch(r"([IU])(\d+)", stored.dtype)
        plain = _NAMES.get(stored.dtype, stored.dtype)
        if bits:
            plain = f"{'u' if bits[1] == 'U' else ''}int{bits[2]}"
        raise ValueError(
            f"{stored.path}: the weight {name} has type {plain}, not one of {', '.join(_READ.values())}; "
            "quantised weights are not read, take the model's unquantised files"
        )


def finite(array: np.ndarray) -> bool:
    """True if all values of an array are finite numbers, and stay so in bfloat16."""
    if array.dtype == np.float64:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    bits, unsigned, least = _NOT_FINITE[array.dtype.name]
    parts = np.array_split(array.reshape(-1).view(bits), max(1, array.size >> 20))
    return all((part & unsigned).max() < least for part in parts if part.size)


def _found(directory: Path) -> str:
    """The end of a message about a directory without weights: what is there instead."""
    names = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    names = [name for name in names if not name.startswith(".")]
    for patterns, what in _OTHERS:
        there = [name for pattern in patterns for name in fnmatch.filter(names, pattern)]
        if there:
            return f"; {there[0]} is {what}"
    return "; fetch them, or name the folder that has them"


def _read_index(directory: Path) -> dict[str, str]:
    """File name of each tensor."""
    listed = read_json(directory, INDEX).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise ValueError(f"{directory / INDEX}: not a safetensors index (weight_map is {short_repr(listed)})")
    wrong = [file for file in listed.values() if not isinstance(file, str)]
    if wrong:
        raise ValueError(
            f"{directory / INDEX}: not a safetensors index (a file is named {short_repr(wrong[0])})"
        )
    return listed


def _check_index(listed: Mapping[str, str], stored: list[TensorHeader]) -> None:
    """Raises ValueError unless index and shards say the same: transformers reads all that shards hold."""
    files = {tensor.key: tensor.path for tensor in stored}
    for name, file in listed.items():
        if name not in files or files[name].name != file:
            there = f"it is in {files[name].name}" if name in files else "it is in none"
            path = stored[0].path.parent / file
            raise ValueError(
                f"{path}: the weight {one_line(name)} is not in the shard that {INDEX} names for it; {there}"
            )
    extra = [tensor for tensor in stored if tensor.key not in listed]
    if extra:
        raise ValueError(
            f"{extra[0].path}: {INDEX} does not list the weight {one_line(extra[0].key)}; the files are of "
            "two checkpoints"
        )


def _unique(stored: Iterator[TensorHeader] | list[TensorHeader], directory: Path) -> dict[str, TensorHeader]:
    found: dict[str, TensorHeader] = {}
    for one in stored:
        name = short_name(one.key)
        if name in found:
            first = found[name]
            raise ValueError(
                f"{directory}: the weight {name} is there twice ({first.key} in {first.path.name}, "
                f"{one.key} in {one.path.name})"
            )
        found[name] = one
    return found


def short_name(name: str) -> str:
    """A tensor's name without what some files nest it in."""
    for prefix, ours in _RENAME:
        if name.startswith(prefix):
            return ours + name[len(prefix) :]
    return name
