"""Read and write Hugging Face directories: safetensors, one file or a sharded index.

Every way a checkpoint can disagree with the model's description is its own error and names the tensor.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.typing import DTypeLike
from safetensors import SafetensorError
from safetensors.numpy import save_file

from mmrl.atomic import atomic_folder
from mmrl.models.params import Param, flatten, unflatten
from mmrl.models.weight_files import (
    INDEX,
    SINGLE,
    TensorHeader,
    check_type,
    finite,
    locate,
    open_weights,
    short_name,
)
from mmrl.terminal import one_line
from mmrl.types import Params

_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
# Of the base model, and what stands beside a file on some systems: not copied.
_LEFT_OUT = ("*.safetensors", "*.index.json", "*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack", ".*")


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
    where = check(directory, description)
    places = {} if shardings is None else flatten(shardings)
    leaves = {}
    files: dict[Path, Any] = {}  # each is opened once
    for path, param in _params(description).items():
        tensors = (_read(files, where[name], name) for name in map(short_name, param.hf_names))
        parts = [rearrange(_upright(tensor, param), param.layout, **_sizes(param)) for tensor in tensors]
        array = np.stack(parts) if param.stacked else parts[0]
        leaves[path] = _placed(np.asarray(array, dtype), places.get(path))
    return unflatten(leaves)


def check(directory: str | Path, description: dict) -> dict[str, TensorHeader]:
    """The files of the weights of ``description``, by name: checks names, types and shapes, reads no weight.

    Raises ValueError as `load` does, but for values that are no finite numbers.
    """
    directory = Path(directory)
    where = locate(directory)
    expected = {short_name(name): param for param in _params(description).values() for name in param.hf_names}
    tied = "lm_head" not in description
    _check_names(directory, set(expected), set(where), tied)
    for name, param in expected.items():
        _check_tensor(where[name], param, name)
    if tied and _HEAD in where:
        _check_tied(where)
    return where


def _check_tied(where: dict[str, TensorHeader]) -> None:
    """Raises ValueError if a head that config.json ties is another: transformers 5 takes it, 4 does not."""
    files: dict[Path, Any] = {}
    head, embedding = (_read(files, where[name], name) for name in (_HEAD, _EMBEDDING))
    if not np.array_equal(head, embedding):
        raise ValueError(
            f"{where[_HEAD].path}: {_HEAD} is not {_EMBEDDING}, though config.json ties the two; set "
            "tie_word_embeddings to false, or remove it from the file"
        )


def _params(description: dict) -> dict[str, Param]:
    return {path: param for path, param in flatten(description).items() if isinstance(param, Param)}


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
      params: the weights; with several processes, as `mmrl.mesh.to_host` brings them together.
      description: nested dict of `Param` that ``params`` follows.
      directory: to be made; an existing one is replaced.
      base: the directory the model came from; its config, tokenizer and processor files are copied.
      dtype: of the tensors written; by default that of ``params``.
      shard_bytes: a new file is begun when one would grow beyond this.
    """
    with atomic_folder(Path(directory)) as part:
        for file in Path(base).iterdir():
            if file.is_file() and not any(file.match(pattern) for pattern in _LEFT_OUT):
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


def _check_names(directory: Path, expected: set[str], found: set[str], tied: bool) -> None:
    missing = sorted(expected - found)
    if missing:
        raise ValueError(
            f"{directory}: {len(missing)} weights are missing, the first is {missing[0]}; does config.json "
            "belong to these files?"
        )
    unmapped = sorted(found - expected - ({_HEAD} if tied else set()))
    if unmapped:
        raise ValueError(
            f"{directory}: {len(unmapped)} weights have no place in the model, the first is {unmapped[0]}; "
            "does config.json belong to these files?"
        )


def _check_tensor(stored: TensorHeader, param: Param, name: str) -> None:
    check_type(stored, name)
    turned = (*param.hf_shape[:-2], *param.hf_shape[:-3:-1])
    if stored.shape != param.hf_shape and not (param.either_way and stored.shape == turned):
        raise ValueError(
            f"{stored.path}: the weight {name} has shape {stored.shape}, the config asks {param.hf_shape}"
        )


def _upright(tensor: np.ndarray, param: Param) -> np.ndarray:
    return tensor if tensor.shape == param.hf_shape else np.swapaxes(tensor, -1, -2)


def _read(files: dict[Path, Any], stored: TensorHeader, name: str) -> np.ndarray:
    """A tensor as it lies in its file, looked at for values that are no numbers."""
    if stored.path not in files:
        files[stored.path] = open_weights(stored.path)
    try:
        array = files[stored.path].get_tensor(stored.key)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{stored.path}: the weight {name} cannot be read ({one_line(error)}); fetch the file again"
        ) from error
    if not finite(array):
        raise ValueError(
            f"{stored.path}: the weight {name} holds values that are no finite numbers (NaN or infinity); "
            "training or merging went wrong before it was saved, so take an earlier checkpoint"
        )
    return array


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
        if not finite(np.ascontiguousarray(array)):
            raise ValueError(
                f"the weight {path} holds values that are no finite numbers (NaN or infinity); take an "
                "earlier step of the run"
            )
        parts = array if param.stacked else array[None]
        for name, part in zip(param.hf_names, parts, strict=True):
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
        save_file(shards[0], directory / SINGLE, metadata=metadata)
        return
    names, total = {}, 0
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, directory / file, metadata=metadata)
        names.update(dict.fromkeys(shard, file))
        total += sum(array.nbytes for array in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": names}
    (directory / INDEX).write_text(json.dumps(index, indent=1))


def _state_dtype(path: Path, dtype: np.dtype) -> None:
    """Let the copied config say the type of the weights beside it."""
    config = json.loads(path.read_text())
    key = "dtype" if "dtype" in config else "torch_dtype"
    config[key] = str(dtype)
    path.write_text(json.dumps(config, indent=1))
