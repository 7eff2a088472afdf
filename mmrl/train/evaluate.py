"""Held-out accuracy: sample, grade, average each component."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, UInt32

from mmrl import hosts
from mmrl.atomic import is_number, write_jsonl
from mmrl.config import Config, CorruptionConfig
from mmrl.data.pipeline import Batch, evaluation
from mmrl.data.sources import Source
from mmrl.mesh import batch_shards, local_mesh, local_rows
from mmrl.models.corruption import corrupt
from mmrl.open import OpenModel, prompt_format, readers
from mmrl.rewards.pool import RewardPool
from mmrl.rollout.sampling import Policy, Sampling
from mmrl.rollout.stats import Stats
from mmrl.train.experience import Experience, Overview, concatenated
from mmrl.train.graded_rollouts import sample_and_grade
from mmrl.train.metrics import Phases
from mmrl.train.preemption import Notice
from mmrl.train.rollouts import acting_weights, prompt_keys
from mmrl.types import Images, Params
from mmrl.workers.pool import WorkerPool

_PURPOSE = 2  # of random keys, apart from rollouts' and corruption's
_SAMPLES, _IMAGES = 0, 1  # what keys of that purpose draw, in the place of a step


def evaluate(
    params: Params,
    policy: Policy,
    model: OpenModel,
    sources: Sequence[Source],
    pool: RewardPool,
    tools: WorkerPool | None,
    config: Config,
    notice: Notice,
    *,
    masked: CorruptionConfig | None = None,
    progress: Callable[[int], None] = lambda done: None,
    heard: Callable[[int], None] = lambda tokens: None,
    look: Callable[[Experience, list[list[dict[str, Any]]]], None] = lambda experience, rows: None,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Mean of reward components and episodes' facts over ``evaluation.samples`` responses a held-out prompt.

    The random keys depend on the seed and the prompt alone, so two evaluations differ by the weights only.
    ``masked`` shows every image corrupted so, and samples with the same keys; what tools show of an image is
    not masked. ``progress`` is told how many prompts are done, after each batch; ``heard`` the tokens of each
    response, when it has ended. ``look`` is given the first batch as this process has it, with its JSON rows.

    Returns:
      ``{"accuracy": ..., <component or fact>: ..., "length": ..., "truncated": ..., "skipped": ...,
      "invalid": ...}``, of several sources together and, as ``<source>/accuracy`` and so on, apart; and a
      JSON row a response: the sample's id, problem, answer and source, the text, its components. "skipped"
      counts prompts that could not be used, and "invalid" responses whose grading failed; means leave them
      out, and are left out themselves if no response could be graded.

    Raises:
      Interrupted: ``notice`` was given.
    """
    if config.evaluation.limit:
        sources = [one.choose(range(min(len(one), config.evaluation.limit))) for one in sources]
    acting = acting_weights(params, model)
    sampling = Sampling(
        max_tokens=config.rollout.max_tokens,
        temperature=config.evaluation.temperature,
        top_p=config.evaluation.top_p,
    )
    size = _batch_size(config, model, sum(map(len, sources)))
    seen: list[Overview] = []
    told: list[dict[str, Any]] = []
    batches = evaluation(
        sources,
        model.processor,
        prompt_format(config),
        batch_size=size,
        rows=local_rows(model.mesh, size),
        readers=readers(config),
    )
    for number, batch in enumerate(batches):
        start = number * size
        if masked is not None:
            keys = prompt_keys(config.seed, _PURPOSE, _IMAGES, size, start=start)[batch.rows]
            batch = _without_images(batch, masked, keys, model)
        experience, whole = sample_and_grade(
            acting,
            policy,
            model,
            batch,
            prompt_keys(config.seed, _PURPOSE, _SAMPLES, size, start=start)[batch.rows],
            group=config.evaluation.samples,
            sampling=sampling,
            config=config,
            pool=pool,
            tools=tools,
            stats=Stats(),
            phases=Phases(),
            notice=notice,
            progress=1.0,
            heard=heard,
        )
        seen.append(whole)
        rows = _responses(experience)
        if number == 0:
            look(experience, rows)
        told += [row for group in hosts.gather_rows(batch.rows, rows) for row in group]
        progress(min(start + size, sum(map(len, sources))))
    whole = reduce(concatenated, seen)
    values = _summary(whole)
    for name in [source.name for source in sources] if len(sources) > 1 else []:
        values |= {f"{name}/{key}": value for key, value in _summary(whole, name).items()}
    return values, told


def _batch_size(config: Config, model: OpenModel, rows: int) -> int:
    """Prompts of a batch: as configured, but not many more than there are rows, and evenly over processes."""
    size = min(config.evaluation.prompts, rows)
    if local_mesh(model.mesh) is model.mesh:
        return size
    parts = batch_shards(model.mesh)
    return -(-size // parts) * parts


def _without_images(
    batch: Batch, masked: CorruptionConfig, keys: UInt32[np.ndarray, "b k"], model: OpenModel
) -> Batch:
    """The batch with its images corrupted."""
    with jax.set_mesh(local_mesh(model.mesh)):
        images = _corrupted(batch.prompts.images, keys, masked.method, masked.probability)
        images = jax.tree.map(np.asarray, images)
    return replace(batch, prompts=replace(batch.prompts, images=images))


@partial(jax.jit, static_argnames=("method", "probability"))
def _corrupted(images: Images, keys: UInt32[Array, "b k"], method: str, probability: float) -> Images:
    return corrupt(images, jax.random.wrap_key_data(keys), method, probability)


def _responses(experience: Experience) -> list[list[dict[str, Any]]]:
    """The JSON rows of each prompt's valid responses."""
    responses = experience.responses
    out: list[list[dict[str, Any]]] = []
    for b, sample in enumerate(experience.samples):
        rows = []
        for g, text in enumerate(experience.texts[b]):
            if not responses.valid[b, g]:
                continue
            graded = {
                name: float(values[b, g])
                for name, values in experience.components.items()
                if not np.isnan(values[b, g])  # a component of other rows' verifiers
            }
            rows.append(
                {
                    "id": sample.id,
                    "source": sample.source,
                    "problem": sample.problem,
                    "answer": sample.answer,
                    "response": text,
                    "tokens": responses.tokens[b, g][responses.mask[b, g]].tolist(),
                    "reward": float(experience.rewards[b, g]),
                    **graded,
                }
            )
        out.append(rows)
    return out


def _summary(whole: Overview, source: str | None = None) -> dict[str, float]:
    """Figures of the rows of one source, or of all."""
    of = np.array([source in (None, name) for name in whole.sources])[:, None]
    valid = whole.valid & of
    counts = {
        "skipped": float(sum(source in (None, one.id.rpartition(":")[0]) for one in whole.skipped)),
        "invalid": float((of & ~whole.valid & (whole.lengths > 0)).sum()),
    }
    if not valid.any():
        return counts
    columns = {
        **dict(sorted({**whole.facts, **whole.components}.items())),
        "reward": whole.rewards,
        "length": whole.lengths.astype(float),
        "truncated": whole.truncated.astype(float),
    }
    # A verifier of another source may report what this one's doesn't.
    known = {name: values[valid & ~np.isnan(values)] for name, values in columns.items()}
    return {**{name: float(values.mean()) for name, values in known.items() if values.size}, **counts}


def write_responses(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """The rows of `evaluate` as JSONL; the file appears whole or not at all."""
    write_jsonl(path, rows)


def wrong_response(row: dict[str, Any]) -> str | None:
    """Why an object is no row of `write_responses`; None if it is one."""
    for name in ("id", "problem", "answer", "response"):
        if not isinstance(row.get(name), str):
            return f"it has no {name}"
    if not isinstance(row.get("source", ""), str):
        return "its source is no name"
    tokens = row.get("tokens", [])
    if not isinstance(tokens, list) or not all(type(one) is int for one in tokens):
        return "its tokens are none"
    known = ("id", "source", "problem", "answer", "response", "tokens")
    other = next((name for name in row if name not in known and not _is_finite(row[name])), None)
    return None if other is None else f"{other!r} is no finite number"


def _is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)
