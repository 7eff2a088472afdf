"""Models, data sets and samplers that a config names, opened; every check that needs no computation."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Float, Int

from mmrl import hosts, hub
from mmrl.config import Config, RolloutConfig
from mmrl.data.curriculum import Mixture
from mmrl.data.pipeline import PromptFormat, Readers, Skipped
from mmrl.data.sources import Source, mixture, read
from mmrl.data.validation import Report, inspect, keep_usable
from mmrl.grading import row_check
from mmrl.hosts import say
from mmrl.mesh import batch_shards, local_rows, make_mesh, shardings
from mmrl.models import checkpoint
from mmrl.models.config import ModelConfig
from mmrl.models.corruption import METHODS
from mmrl.models.family import param_specs, read_config
from mmrl.models.processor import Processor, load_processor
from mmrl.rollout.engine import vocabulary_bias
from mmrl.rollout.sampling import Policy, Sampling
from mmrl.run_folder import read_starts
from mmrl.terminal import rewrite
from mmrl.types import Params

PATIENCE_S = 3.0  # after which a look through data shows its progress


@dataclass(frozen=True)
class OpenModel:
    """A model directory, opened, and the mesh it is computed on."""

    directory: Path
    processor: Processor
    config: ModelConfig
    description: dict
    mesh: Mesh

    @property
    def shardings(self) -> dict:
        """The sharding of each weight while training."""
        return shardings(self.description, self.mesh)

    def load(self) -> Params:
        """The weights, float32, laid out over the mesh."""
        return checkpoint.load(self.directory, self.description, shardings=self.shardings)

    def check(self) -> None:
        """Raises ValueError if the weights are not those of the config: names, types, shapes."""
        checkpoint.check(self.directory, self.description)

    def policy(self, temperature: float) -> Policy:
        """The distribution sampled from: never a vision placeholder, never a padding row of the table."""
        bias = vocabulary_bias(
            self.config.vocabulary, len(self.processor.tokenizer), self.processor.placeholders
        )
        return Policy(model=self.config, temperature=temperature, bias=bias)


@dataclass(frozen=True)
class TrainingData:
    """The data sets that prompts are drawn from."""

    sources: tuple[Source, ...]  # without the rows that cannot be used
    mixtures: tuple[Mixture, ...]  # of ``config.data.train``, and of each of ``config.data.stages``
    difficulty: Float[np.ndarray, "n"] | None  # of all rows of the files, where an order asks for it
    rows: int  # of all, those that cannot be used included
    broken: tuple[Skipped, ...]
    lengths: Int[np.ndarray, "n 2"]  # tokens and patch slots of each prompt that is used


def expand_workdir(path: str, workdir: Path) -> str:
    """A path of the config, with ``{workdir}`` filled in: a run's folder may be moved."""
    return path.replace("{workdir}", str(workdir))


def resolve_model_path(config: Config, workdir: Path, *, weights: bool = True) -> str:
    """The directory that ``config.model.path`` names; of a name on the hub, its files in the cache.

    Of a run that was started before it is the commit it began with. Without ``weights``, these need not be
    there. Raises ValueError if it cannot be fetched.
    """
    path = expand_workdir(config.model.path, workdir)
    return hub.local(path, "model", commit=_first_commit(path, "model", workdir), weights=weights)


def _first_commit(path: str, kind: hub.Kind, workdir: Path) -> str:
    """The commit at which the run in ``workdir`` first read a name on the hub; "" if it did not yet."""
    name = hub.reference(path)
    starts = read_starts(workdir) if name else []
    key = f"{kind} {name}"
    return next((start["hub"][key] for start in starts if key in start.get("hub", {})), "")


def hub_commits(config: Config, workdir: Path) -> dict[str, str]:
    """The commit of each name on the hub that the config has, which are all in the cache by now.

    Raises ValueError if processes of the run have different ones.
    """
    data = [path for _, text in ((0.0, config.data.train), *config.data.stages) for path, _ in mixture(text)]
    data += [path.strip() for path in config.data.heldout.split(",")]
    data += [config.cold_start.data] if config.cold_start.steps else []
    kinds: dict[str, hub.Kind] = {expand_workdir(path, workdir): "dataset" for path in data}
    kinds[expand_workdir(config.model.path, workdir)] = "model"
    commits = {}
    for path, kind in kinds.items():
        name = hub.reference(path)
        if name is not None:
            commit = _first_commit(path, kind, workdir)
            commits[f"{kind} {name}"] = commit or hub.commit_of(hub.fetch(name, kind, offline=True))
    for other in hosts.gather(commits):
        for key, commit in commits.items():
            if other.get(key) != commit:
                raise ValueError(
                    f"processes have {key} at different commits ({commit}, {other.get(key)}); name one of"
                    f" them: {key.split()[1].partition('@')[0]}@{commit}"
                )
    return commits


def config_without_run() -> Config:
    """The config of a model that no run is named for: defaults, and responses of up to 512 tokens."""
    return Config(rollout=RolloutConfig(max_tokens=512))


def open_model(config: Config, directory: str | Path) -> OpenModel:
    """Open a Hugging Face directory; the weights are read by `OpenModel.load`.

    Raises:
      ValueError: the directory, a file in it or its family is not what it should be, ``config.mesh`` does
        not fit the devices, or ``config.episode`` not the model's windows.
    """
    if not str(directory):
        raise ValueError("config.model.path is empty: name a Hugging Face directory of a model")
    processor = open_processor(config, directory)
    seen = config.episode.observation_patches
    if config.episode.tools and seen % processor.slots:
        raise ValueError(
            f"config.episode.observation_patches={seen} is not a multiple of {processor.slots}, the slots of"
            " a window"
        )
    mesh = make_mesh(dataclasses.asdict(config.mesh))
    sizes = with_compute_options(read_config(directory), config, mesh)
    return OpenModel(Path(directory), processor, sizes, param_specs(sizes), mesh)


def open_processor(config: Config, directory: str | Path) -> Processor:
    """The processor of a Hugging Face directory, with the limits on pixels that the config sets."""
    processor = load_processor(directory)
    image = processor.image
    low, high = config.data.min_pixels or image.min_pixels, config.data.max_pixels or image.max_pixels
    return replace(processor, image=image.limited(low, high))


def with_compute_options(sizes: ModelConfig, config: Config, mesh: Mesh) -> ModelConfig:
    """Sizes of a model as ``config.model`` has it computed on the devices of ``mesh``."""
    return replace(
        sizes,
        dtype={"float32": jnp.float32, "bfloat16": jnp.bfloat16}[config.model.dtype],
        remat=config.model.remat,
        unroll=config.model.unroll,
        attention="flash" if mesh.devices.flat[0].platform == "tpu" else "plain",
    )


def sharding_warnings(config: Config, sizes: ModelConfig, mesh: Mesh | AbstractMesh) -> list[str]:
    """Warnings of sizes that the mesh does not divide: devices then repeat work or weights."""
    parts = batch_shards(mesh)
    batches = {
        "train.update_prompts": config.train.update_prompts,
        "rollout.prompts": config.rollout.prompts,
    }
    if config.cold_start.steps:
        batches["cold_start.batch"] = config.cold_start.batch
    cut = f"config.mesh.fsdp={mesh.shape['fsdp']}"
    if mesh.shape["expert"] > 1:
        cut += f" times config.mesh.expert={mesh.shape['expert']}"
    widths = {"": sizes.width, " of the vision tower": sizes.vision.width}
    return [
        f"config.{key}={size} is no multiple of {parts}, the parts that config.mesh cuts a batch into: "
        "devices will repeat each other's work"
        for key, size in batches.items()
        if size % parts
    ] + [
        f"{cut} does not divide the width{of} ({width}): those weights are "
        "kept whole; move a factor of it to config.mesh.data"
        for of, width in widths.items()
        if width % (mesh.shape["fsdp"] * mesh.shape["expert"])
    ]


def training_sizes(config: Config) -> tuple[int, int]:
    """Tokens and patch slots that every prompt has in training, so that all batches have one shape."""
    return max(config.data.prompt_buckets), max(config.data.patch_buckets)


def check_processes(config: Config, mesh: Mesh) -> None:
    """Raises ValueError if several processes cannot share the batches of ``config`` (see `local_rows`)."""
    local_rows(mesh, config.rollout.prompts)
    if config.cold_start.steps:
        local_rows(mesh, config.cold_start.batch)


def sampling_of(config: Config) -> Sampling:
    """Sampling options of training.

    Raises:
      ValueError: a value out of range.
    """
    rollout = config.rollout
    return Sampling(
        max_tokens=rollout.max_tokens,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        min_p=rollout.min_p,
    )


def check_corruption(config: Config) -> None:
    """Raises ValueError if ``config.corruption`` names no method."""
    method = config.corruption.method
    if method not in METHODS:
        known = ", ".join(map(repr, METHODS))
        raise ValueError(f"config.corruption.method={method!r} is unknown; there are {known}")


def prompt_format(config: Config) -> PromptFormat:
    """``config.data`` as a `PromptFormat`: buckets, system prompt, suffix, rule for overlong prompts."""
    data = config.data
    return PromptFormat(
        prompt_buckets=data.prompt_buckets,
        patch_buckets=data.patch_buckets,
        system=data.system or None,
        suffix=data.suffix,
        overlong=data.overlong,
    )


def readers(config: Config) -> Readers:
    """Threads or processes that read data ahead of need."""
    return Readers(config.data.workers, config.data.processes)


def open_data(config: Config, path: str, workdir: Path) -> Source:
    """The data set that the config calls ``path``, as it lies there; ValueError if it cannot be opened."""
    path = expand_workdir(path, workdir)
    path = hub.local(path, "dataset", commit=_first_commit(path, "dataset", workdir))
    return read(path, image_root=config.data.image_root or None)


def open_training_data(config: Config, workdir: Path, model: OpenModel) -> TrainingData:
    """Open the data sets of ``config.data.train`` and ``config.data.stages``, and look through them.

    Raises:
      ValueError: a file, a column, a weight or too many rows are not what they should be.
    """
    stages = [(0.0, config.data.train), *config.data.stages]
    if not config.data.train.strip():
        raise ValueError(
            "config.data.train is empty: name a data set, as in --config.data.train=FILE.parquet"
        )
    parts = [
        dict(mixture(text, "config.data.stages" if k else "config.data.train"))
        for k, (_, text) in enumerate(stages)
    ]
    keys = {path: "data.train" if path in parts[0] else "data.stages" for part in parts for path in part}
    found = [_looked_through(config, path, workdir, model, key, None) for path, key in keys.items()]
    _check_names([source for source, _ in found], "data.train", ",".join(keys))
    return TrainingData(
        sources=tuple(source for source, _ in found),
        mixtures=tuple(
            Mixture(
                start, tuple(one.get(path, 0.0) or float(path in one) for path in keys), None in one.values()
            )
            for (start, _), one in zip(stages, parts, strict=True)
        ),
        difficulty=difficulties(found) if config.data.curriculum.order == "difficulty" else None,
        rows=sum(report.rows for _, report in found),
        broken=tuple(Skipped(row.id, row.reason) for _, report in found for row in report.broken),
        lengths=_lengths(found),
    )


def open_heldout(
    config: Config, text: str, workdir: Path, model: OpenModel, *, key: str = "data.heldout"
) -> tuple[Source, ...]:
    """Open the data sets of "A,B", of which all rows are evaluated: there are no weights.

    Raises ValueError as `open_source` does, and if two are called alike.
    """
    return open_heldout_with_lengths(config, text, workdir, model, key=key)[0]


def open_heldout_with_lengths(
    config: Config, text: str, workdir: Path, model: OpenModel, *, key: str = "data.heldout"
) -> tuple[tuple[Source, ...], Int[np.ndarray, "n 2"]]:
    """`open_heldout`, and the tokens and patch slots of each prompt; nothing for ""."""
    paths = [path.strip() for path in text.split(",")] if text else []
    found = [_looked_through(config, path, workdir, model, key, None) for path in paths]
    sources = tuple(source for source, _ in found)
    _check_names(sources, key, text)
    return sources, _lengths(found)


def _lengths(found: Sequence[tuple[Source, Report]]) -> Int[np.ndarray, "n 2"]:
    return np.array([length for _, report in found for length in report.lengths], np.int64).reshape(-1, 2)


def open_source(
    config: Config, path: str, workdir: Path, model: OpenModel, *, key: str, longest: int | None = None
) -> Source:
    """Open a data set and look through it; ``key`` names it in messages.

    ``longest`` is for data to imitate: tokens that a row may demonstrate.

    Raises:
      ValueError: the file, a column or too many rows are not what they should be.
    """
    return _looked_through(config, path, workdir, model, key, longest)[0]


def difficulties(found: Sequence[tuple[Source, Report]]) -> Float[np.ndarray, "n"]:
    """Of all rows of all files, one source after the other; NaN for those that are not used.

    Raises ValueError if a row that is used has none.
    """
    columns = []
    for source, report in found:
        column = np.full(source.table.length, np.nan)
        for row, value in report.difficulty:
            column[row] = value
        used = np.arange(len(source)) if source.chosen is None else source.chosen
        without = used[np.isnan(column[used])]
        if len(without):
            raise ValueError(
                f"config.data.curriculum.order='difficulty': {len(without)} of {len(used)} rows of"
                f" {source.name} have no number in the column 'difficulty', first {source.name}:{without[0]};"
                " add it, or order by 'pass_rate'"
            )
        columns.append(column)
    return np.concatenate(columns)


def _check_names(sources: Sequence[Source], key: str, text: str) -> None:
    names = [source.name for source in sources]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(
            f"config.{key}={text!r}: several data sets are called {twice[0]!r}, and rows are named by that; "
            "rename a file"
        )


def _looked_through(
    config: Config, path: str, workdir: Path, model: OpenModel, key: str, longest: int | None
) -> tuple[Source, Report]:
    """A data set without the rows that cannot be used, and what the look through all of it found."""
    if not path:
        raise ValueError(f"config.{key} is empty: name a data set")
    source = open_data(config, path, workdir)
    form, size = prompt_format(config), len(source)
    report = inspect(
        source,
        model.processor,
        form,
        longest=longest,
        probe=row_check(config) if longest is None else None,
        progress=partial(_show_progress, source.name, time.monotonic()),
    )
    source = keep_usable(source, report, max_broken=config.data.max_broken, overlong=form.overlong)
    if len(source) < size:
        say(
            f"{source.name}: {len(source)} of {size} rows are used; {len(report.broken)} are broken, "
            f"{len(report.over_budget)} over budget{''.join(f'; {budget}' for budget in report.budgets)}"
        )
    return source, report


def _show_progress(name: str, start: float, done: int, total: int) -> None:
    """Only where looking takes long enough to wonder."""
    if time.monotonic() - start > PATIENCE_S and hosts.is_main_process():
        rewrite(f"looking through {name}: {done} of {total} rows", last=done == total)
