"""Held-out accuracy: sample, grade, average each component."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmrl.config import Config
from mmrl.data.pipeline import evaluation
from mmrl.data.sources import Source
from mmrl.rewards.pool import RewardPool
from mmrl.rollout.engine import decoding_weights
from mmrl.rollout.sampling import Sampling
from mmrl.train.assemble import Model, prompt_format
from mmrl.train.metrics import Phases
from mmrl.train.programs import Policy
from mmrl.train.rollouts import Experience, prompt_keys, sample_and_grade
from mmrl.types import Params, StopReason
from mmrl.workers.pool import WorkerPool

_PURPOSE = 2  # of random keys, apart from rollouts' and corruption's


def evaluate(
    params: Params,
    policy: Policy,
    model: Model,
    source: Source,
    pool: RewardPool,
    tools: WorkerPool | None,
    config: Config,
) -> tuple[dict[str, float], list[Experience]]:
    """Mean of reward components and episodes' facts over ``evaluation.samples`` responses a held-out prompt.

    The random keys depend on the seed and the prompt alone, so two evaluations differ by the weights only.

    Returns:
      ``{"accuracy": ..., <component or fact>: ..., "length": ..., "truncated": ..., "dropped": ...}``, and
      what was sampled. Responses whose grading failed are left out; "dropped" counts prompts over budget.
    """
    if config.evaluation.limit:
        source = dataclasses.replace(source, length=min(source.length, config.evaluation.limit))
    acting = decoding_weights(params, model.config)
    sampling = Sampling(
        max_tokens=config.rollout.max_tokens,
        temperature=config.evaluation.temperature,
        top_p=config.evaluation.top_p,
    )
    size = min(config.evaluation.prompts, len(source))
    experiences, dropped = [], 0
    batches = evaluation(
        source, model.processor, prompt_format(config), batch_size=size, workers=config.data.workers
    )
    for number, batch in enumerate(batches):
        experience = sample_and_grade(
            acting,
            policy,
            model,
            batch,
            prompt_keys(config.seed, _PURPOSE, 0, size, start=number * size),
            group=config.evaluation.samples,
            sampling=sampling,
            config=config,
            pool=pool,
            tools=tools,
            phases=Phases(),
        )
        dropped += batch.dropped
        valid = experience.responses.valid & batch.keep[:, None]
        experiences.append(
            dataclasses.replace(experience, responses=dataclasses.replace(experience.responses, valid=valid))
        )
    return {**_summary(experiences), "dropped": float(dropped)}, experiences


def _summary(experiences: Sequence[Experience]) -> dict[str, float]:
    valid = np.concatenate([np.asarray(experience.responses.valid) for experience in experiences])
    if not valid.any():
        raise ValueError("evaluation: no response could be graded; see the verifier's errors")

    def mean(parts: Sequence[np.ndarray]) -> float:
        values = np.concatenate(parts)
        return float(values[valid & ~np.isnan(values)].mean())

    tables = [{**e.facts, **e.components} for e in experiences]
    out = {}
    for name in sorted({name for table in tables for name in table}):
        parts = [
            table.get(name, np.full(e.rewards.shape, np.nan))
            for table, e in zip(tables, experiences, strict=True)
        ]
        out[name] = mean(parts)
    out["reward"] = mean([e.rewards for e in experiences])
    out["length"] = mean([np.asarray(e.responses.mask).sum(axis=-1).astype(float) for e in experiences])
    out["truncated"] = mean(
        [(np.asarray(e.responses.stop) == StopReason.LENGTH).astype(float) for e in experiences]
    )
    return out


def write_responses(path: Path, experiences: Sequence[Experience]) -> None:
    """One JSON row a response: the sample's id, problem and answer, the text, its components."""
    with path.open("w") as file:
        for experience in experiences:
            for b, sample in enumerate(experience.samples):
                for g, text in enumerate(experience.texts[b]):
                    if not experience.responses.valid[b, g]:
                        continue
                    row = {
                        "id": sample.id,
                        "problem": sample.problem,
                        "answer": sample.answer,
                        "response": text,
                        **{name: float(values[b, g]) for name, values in experience.components.items()},
                    }
                    file.write(json.dumps(row) + "\n")
