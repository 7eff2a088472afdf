"""Read and write Hugging Face directories: safetensors, one file or a sharded index.

Every way a checkpoint can disagree with the model's description is its own error and names the tensor.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mmrl.models.params import Param, flatten, unflatten
from mmrl.types import Params
from mmrl.whole_file import whole_folder

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
# transformers 5 nests the towers; the hub's files do not. Ours are the hub's names.
_RENAME = (("model.language_model.", "model."), ("model.visual.", "visual."))
_WEIGHT_FILES = ("*.safetensors", _INDEX, "*.bin", "*.pt", "*.pth")


def load(
    directory: str | Path,
    description: dict,
    dtype: DTypeLike = jnp.float32,
    shardings: dict | None = None,
) -> Params:
    """Read the weights of ``description`` from a Hugging Face directory.

    Args:
      directory: holds ``model.safetensors``, or shards with ``model.safetensors.index.json``.
      description: nested dict of `Param`.
      dtype: floating type of the result.
      shardings: where each weight goes, a tree like ``description``; by default the first device.

    Raises:
      ValueError: no weights, a truncated or damaged file, or a weight that is missing, not mapped, there
        twice, of the wrong shape or not floating point; the message names file and tensor.
    """
    directory = Path(directory)
    where = _locate(directory)
    flat = {path: param for path, param in flatten(description).items() if isinstance(param, Param)}
    expected = {name for param in flat.values() for name in _tensor_names(param)}
    _check_names(directory, expected, set(where), tied="lm_head" not in description)
    places = {} if shardings is None else flatten(shardings)
    leaves = {}
    with _Files() as files:
        for path, param in flat.items():
            parts = [_tensor(files, where[name], param, name, directory) for name in _tensor_names(param)]
            array = np.stack(parts) if param.stacked else parts[0]
            leaves[path] = _placed(np.asarray(array, dtype), places.get(path))
    return unflatten(leaves)


def _placed(array: np.ndarray, place: jax.sharding.Sharding | None) -> jax.Array:
    """An array that this process has whole, on the devices it belongs to."""
    if place is None:
        return jax.device_put(array)
    return jax.make_array_from_callback(array.shape, place, lambda index: array[index])


def save(
    params: Params,
    description: dict,
    directory: str | Path,
    base: str | Path,
    dtype: DTypeLike | None = None,
    shard_bytes: int = 5 * 1024**3,
) -> None:
    """Write a Hugging Face directory that ``transformers`` loads; it appears whole or not at all.

    Args:
      params: the weights; with several processes, as `mmrl.mesh.whole` brings them together.
      description: nested dict of `Param` that ``params`` follows.
      directory: to be made; an existing one is replaced.
      base: the directory the model came from; its config, tokenizer and processor files are copied.
      dtype: of the tensors written; by default that of ``params``.
      shard_bytes: a new file is begun when one would grow beyond this.
    """
    with whole_folder(Path(directory)) as part:
        for file in Path(base).iterdir():
            if file.is_file() and not any(file.match(pattern) for pattern in _WEIGHT_FILES):
                shutil.copyfile(file, part / file.name)
        write_weights(params, description, part, dtype, shard_bytes)


def write_weights(
    params: Params,
    description: dict,
    directory: Path,
    dtype: DTypeLike | None = None,
    shard_bytes: int = 5 * 1024**3,
) -> None:
    """Write the weights alone, as `save`, into a folder whose config.json then says their type."""
    shards = list(_shards(_export(params, description, dtype), shard_bytes))
    _write_shards(shards, directory)
    _state_dtype(directory / "config.json", next(iter(shards[0].values())).dtype)


class _Files:
    """Open safetensors files, each opened once."""

    def __enter__(self) -> "_Files":
        self.open: dict[Path, object] = {}
        return self

    def __exit__(self, *_: object) -> None:
        self.open.clear()

    def __getitem__(self, path: Path):
        if path not in self.open:
            self.open[path] = _open(path)
        return self.open[path]


def _open(path: Path):
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path}: damaged or truncated safetensors file ({error}); fetch it again"
        ) from error


def _locate(directory: Path) -> dict[str, Path]:
    """Which file holds each tensor (under the hub's names)."""
    index = directory / _INDEX
    if index.is_file():
        listed = _read_index(index)
        for file in sorted(set(listed.values())):
            if Path(file).name != file or not (directory / file).is_file():
                raise ValueError(f"{directory}: the shard {file} named by {_INDEX} is missing")
        return _unique({name: directory / file for name, file in listed.items()}, directory)
    single = directory / _SINGLE
    if not single.is_file():
        raise ValueError(f"{directory}: no weights (neither {_SINGLE} nor {_INDEX})")
    return _unique(dict.fromkeys(_open(single).keys(), single), directory)


def _read_index(index: Path) -> dict[str, str]:
    """File name of each tensor."""
    try:
        listed = json.loads(index.read_text())["weight_map"]
        if not all(isinstance(file, str) for file in listed.values()):
            raise TypeError("weight_map must map tensors to file names")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: not a safetensors index ({error})") from error
    return listed


def _unique(where: dict[str, Path], directory: Path) -> dict[str, Path]:
    renamed: dict[str, Path] = {}
    for name, path in where.items():
        hub = _hub_name(name)
        if hub in renamed:
            raise ValueError(f"{directory}: the weight {hub} is there twice (also as {name})")
        renamed[hub] = path
    return renamed


def _hub_name(name: str) -> str:
    for prefix, ours in _RENAME:
        if name.startswith(prefix):
            return ours + name[len(prefix) :]
    return name


def _tensor_names(param: Param) -> list[str]:
    if not param.stacked:
        return [param.hf_name]
    return [param.hf_name.format(layer) for layer in range(param.shape[0])]


def _check_names(directory: Path, expected: set[str], found: set[str], tied: bool) -> None:
    missing = sorted(expected - found)
    if missing:
        raise ValueError(f"{directory}: {len(missing)} weights are missing, the first is {missing[0]}")
    unmapped = sorted(found - expected - ({"lm_head.weight"} if tied else set()))
    if unmapped:
        raise ValueError(
            f"{directory}: {len(unmapped)} weights have no place in the model, the first is {unmapped[0]}; "
            "does config.json belong to these files?"
        )


def _tensor(files: _Files, path: Path, param: Param, name: str, directory: Path) -> np.ndarray:
    handle = files[path]
    stored = {_hub_name(key): key for key in handle.keys()}  # noqa: SIM118 (not a dict)
    if name not in stored:
        raise ValueError(f"{path}: the weight {name} is not in the shard that {_INDEX} names for it")
    try:
        array = handle.get_tensor(stored[name])
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path}: the weight {name} cannot be read ({error}); fetch the file again"
        ) from error
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{path}: the weight {name} has type {array.dtype}, not a floating-point type")
    if array.shape != param.hf_shape:
        raise ValueError(
            f"{path}: the weight {name} has shape {array.shape}, the config asks {param.hf_shape}"
        )
    return rearrange(array, param.layout, **_sizes(param))


def _sizes(param: Param) -> dict[str, int]:
    """Axis lengths einops cannot infer: those inside parentheses."""
    inside = param.layout[param.layout.find("(") + 1 : param.layout.find(")")] if "(" in param.layout else ""
    return {name: param.sizes[name] for name in inside.split()}


def _export(params: Params, description: dict, dtype: DTypeLike | None) -> Iterator[tuple[str, np.ndarray]]:
    arrays = flatten(params)
    for path, param in flatten(description).items():
        assert isinstance(param, Param)
        source, target = param.layout.split("->")
        array = np.asarray(jax.device_get(arrays[path]))
        if dtype is not None:
            array = array.astype(dtype)
        parts = array if param.stacked else array[None]
        for name, part in zip(_tensor_names(param), parts, strict=True):
            yield name, np.ascontiguousarray(rearrange(part, f"{target} -> {source}"))


def _shards(tensors: Iterator[tuple[str, np.ndarray]], limit: int) -> Iterator[dict[str, np.ndarray]]:
    shard: dict[str, np.ndarray] = {}
    size = 0
    for name, array in tensors:
        if shard and size + array.nbytes > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = array
        size += array.nbytes
    yield shard


def _write_shards(shards: list[dict[str, np.ndarray]], directory: Path) -> None:
    metadata = {"format": "pt"}  # what transformers looks for
    if len(shards) == 1:
        save_file(shards[0], directory / _SINGLE, metadata=metadata)
        return
    names, total = {}, 0
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, directory / file, metadata=metadata)
        names.update(dict.fromkeys(shard, file))
        total += sum(array.nbytes for array in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": names}
    (directory / _INDEX).write_text(json.dumps(index, indent=1))


def _state_dtype(path: Path, dtype: np.dtype) -> None:
    """Let the copied config say the type of the weights beside it."""
    config = json.loads(path.read_text())
    key = "dtype" if "dtype" in config else "torch_dtype"
    config[key] = str(dtype)
    path.write_text(json.dumps(config, indent=1))
