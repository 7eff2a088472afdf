"""Held-out accuracy: sample, grade, average each component."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, UInt32

from mmrl import hosts
from mmrl.atomic import is_number
from mmrl.config import Config, CorruptionConfig
from mmrl.data.pipeline import Batch, Skipped, evaluation
from mmrl.data.sources import Source
from mmrl.mesh import batch_shards, local_mesh, local_rows
from mmrl.models.corruption import corrupt
from mmrl.open import OpenModel, prompt_format, readers
from mmrl.rollout.sampling import Sampling
from mmrl.rollout.scheduler import Stats
from mmrl.train.metrics import Phases
from mmrl.train.rollout_batch import RolloutBatch, RowStats, concatenate, sample_and_grade
from mmrl.train.rollouts import RolloutContext, prompt_keys, rollout_weights
from mmrl.types import Images, Params

_PURPOSE = 2  # of random keys, apart from rollouts' and corruption's
_SAMPLES, _IMAGES = 0, 1  # what keys of that purpose draw, in the place of a step


def evaluate(
    context: RolloutContext,
    params: Params,
    sources: Sequence[Source],
    *,
    masked: CorruptionConfig | None = None,
    on_batch: Callable[[int], None] = lambda prompts: None,
    on_response: Callable[[int], None] = lambda tokens: None,
    on_first: Callable[[RolloutBatch], None] = lambda batch: None,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Mean of reward components and episodes' facts over ``evaluation.samples`` responses a held-out prompt.

    The random keys depend on the seed and the prompt alone, so two evaluations differ by the weights only.

    Args:
      context: the config, model and pools; nothing is booked in its phases and statistics.
      params: weights, as they lie in training.
      sources: held-out data sets.
      masked: show every image corrupted so, and sample with the same keys; what tools show is not masked.
      on_batch: called with the number of prompts that are done, after each batch.
      on_response: called with the tokens of each response, when it has ended.
      on_first: called with the first batch.

    Returns:
      ``{"accuracy": ..., <component or fact>: ..., "length": ..., "truncated": ..., "skipped": ...,
      "invalid": ...}``, of several sources together and, as ``<source>/accuracy`` and so on, apart; and a
      JSON row a response: the sample's id, problem, answer and source, the text, its components. "skipped"
      counts prompts that could not be used, and "invalid" responses whose grading failed; means leave them
      out, and are left out themselves if no response could be graded.

    Raises:
      Interrupted: the run was asked to stop.
    """
    context = replace(context, phases=Phases(), stats=Stats())
    config, model = context.config, context.model
    if config.evaluation.limit:
        sources = [source.choose(range(min(len(source), config.evaluation.limit))) for source in sources]
    total = sum(map(len, sources))
    size = _batch_size(config, model, total)
    weights = rollout_weights(params, model)
    sampling = Sampling(
        max_tokens=config.rollout.max_tokens,
        temperature=config.evaluation.temperature,
        top_p=config.evaluation.top_p,
    )
    stats: list[RowStats] = []
    skipped: list[Skipped] = []
    responses: list[dict[str, Any]] = []
    batches = evaluation(
        sources,
        model.processor,
        prompt_format(config),
        batch_size=size,
        rows=local_rows(model.mesh, size),
        readers=readers(config),
    )
    for start, batch in zip(count(step=size), batches, strict=False):
        if masked is not None:
            keys = prompt_keys(config.seed, _PURPOSE, _IMAGES, size, start=start)[batch.rows]
            batch = _mask_images(batch, masked, keys, model)
        graded = sample_and_grade(
            context,
            weights,
            batch,
            prompt_keys(config.seed, _PURPOSE, _SAMPLES, size, start=start)[batch.rows],
            group=config.evaluation.samples,
            sampling=sampling,
            on_response=on_response,
        )
        if start == 0:
            on_first(graded)
        stats.append(graded.stats)
        skipped += graded.skipped
        responses += [row for rows in hosts.gather_rows(batch.rows, response_rows(graded)) for row in rows]
        on_batch(min(start + size, total))
    whole = concatenate(stats)
    values = _summarise(whole, skipped)
    for name in [source.name for source in sources] if len(sources) > 1 else []:
        values |= {f"{name}/{key}": value for key, value in _summarise(whole, skipped, name).items()}
    return values, responses


def _batch_size(config: Config, model: OpenModel, rows: int) -> int:
    """Prompts of a batch: as configured, but not many more than there are rows, and evenly over processes."""
    size = min(config.evaluation.prompts, rows)
    if local_mesh(model.mesh) is model.mesh:
        return size
    parts = batch_shards(model.mesh)
    return -(-size // parts) * parts


def _mask_images(
    batch: Batch, masked: CorruptionConfig, keys: UInt32[np.ndarray, "b k"], model: OpenModel
) -> Batch:
    """The batch with its images corrupted."""
    with jax.set_mesh(local_mesh(model.mesh)):
        images = _corrupt(batch.prompts.images, keys, masked.method, masked.probability)
        images = jax.tree.map(np.asarray, images)
    return replace(batch, prompts=replace(batch.prompts, images=images))


@partial(jax.jit, static_argnames=("method", "probability"))
def _corrupt(images: Images, keys: UInt32[Array, "b k"], method: str, probability: float) -> Images:
    return corrupt(images, jax.random.wrap_key_data(keys), method, probability)


def response_rows(batch: RolloutBatch) -> list[list[dict[str, Any]]]:
    """The JSON rows of each prompt's valid responses."""
    responses, stats = batch.responses, batch.local_stats
    return [
        [
            {
                "id": sample.id,
                "source": sample.source,
                "problem": sample.problem,
                "answer": sample.answer,
                "response": text,
                "tokens": responses.tokens[b, g][responses.mask[b, g]].tolist(),
                "reward": float(stats.rewards[b, g]),
                **{
                    name: float(values[b, g])
                    for name, values in stats.components.items()
                    if not np.isnan(values[b, g])  # a component of other rows' verifiers
                },
            }
            for g, text in enumerate(batch.texts[b])
            if responses.valid[b, g]
        ]
        for b, sample in enumerate(batch.samples)
    ]


def _summarise(stats: RowStats, skipped: Sequence[Skipped], source: str | None = None) -> dict[str, float]:
    """Figures of the rows of one source, or of all."""
    of = np.ones((len(stats.ids), 1), bool) if source is None else (stats.sources == source)[:, None]
    valid = stats.valid & of
    counts = {
        "skipped": float(sum(source in (None, row.id.rpartition(":")[0]) for row in skipped)),
        "invalid": float((of & ~stats.valid & (stats.lengths > 0)).sum()),
    }
    if not valid.any():
        return counts
    columns = {
        **dict(sorted({**stats.episode_metrics, **stats.components}.items())),
        "reward": stats.rewards,
        "length": stats.lengths.astype(float),
        "truncated": stats.truncated.astype(float),
    }
    # A verifier of another source may report what this one's doesn't.
    known = {name: values[valid & ~np.isnan(values)] for name, values in columns.items()}
    return {**{name: float(values.mean()) for name, values in known.items() if values.size}, **counts}


def wrong_response(row: dict[str, Any]) -> str | None:
    """The reason why an object is no row of `evaluate`; None if it is one."""
    for name in ("id", "problem", "answer", "response"):
        if not isinstance(row.get(name), str):
            return f"it has no {name}"
    if not isinstance(row.get("source", ""), str):
        return "its source is no name"
    tokens = row.get("tokens", [])
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        return "its tokens are none"
    known = ("id", "source", "problem", "answer", "response", "tokens")
    other = next((name for name in row if name not in known and not _is_finite(row[name])), None)
    return None if other is None else f"{other!r} is no finite number"


def _is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)
