"""A few held-out responses for people to look at while a run goes on: pictures, texts, token perception."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from mmrl import hosts
from mmrl.data.inspection_examples import small
from mmrl.mesh import batch_shards, local_rows, put, to_host
from mmrl.models.pieces import pieces_of
from mmrl.train.experience import Experience
from mmrl.train.programs import Batch, score
from mmrl.train.rollouts import prompt_keys
from mmrl.train.step import Stage
from mmrl.train.writers import Shown
from mmrl.types import Params

COUNT = 8  # prompts, of each of which one response is shown
_PURPOSE = 2, 1  # of random keys: evaluation, and its corrupted images


def choose_shown(
    stage: Stage,
    params: Params,
    experience: Experience,
    rows: Sequence[Sequence[Mapping[str, Any]]],
    *,
    tokens: bool,
) -> list[Shown]:
    """The first response to each of the first prompts of a batch; with ``tokens``, their perception too.

    Every process calls this with its ``experience`` and the rows of its responses; the first gets all of its
    own, and the others nothing.
    """
    shards = batch_shards(stage.model.mesh) // jax.process_count() or 1
    count = min(-(-COUNT // shards) * shards, len(experience.samples))
    perception = _perception(stage, params, experience, count) if tokens else None
    shown: list[Shown] = []
    for b, sample in enumerate(experience.samples[: count if hosts.is_main_process() else 0]):
        valid = np.flatnonzero(experience.responses.valid[b])
        if len(valid) == 0 or valid[0] > 0:  # the first is the one that was measured
            continue
        written = experience.responses.mask[b, 0]
        shown.append(
            Shown(
                row=rows[b][0],
                images=tuple(small(image, sample.id) for image in sample.images),
                pieces=pieces_of(experience.responses.tokens[b, 0][written].tolist(), stage.model.processor),
                perception=None if perception is None else perception[b, 0][written],
            )
        )
    return shown


def _perception(
    stage: Stage, params: Params, experience: Experience, count: int
) -> Float[np.ndarray, "b 1 r"]:
    """Of each token of the first response to ``count`` prompts: exact KL, image present or corrupted."""
    mesh = stage.model.mesh
    prompts = jax.tree.map(lambda leaf: leaf[:count], experience.prompts)
    responses = jax.tree.map(lambda leaf: leaf[:count, :1], experience.responses)
    mine = local_rows(mesh, count * jax.process_count())
    keys = prompt_keys(stage.config.seed, *_PURPOSE, count * jax.process_count())[mine]
    asked, written, drawn = put((prompts, responses, keys), mesh)
    batch = Batch(asked, written, jax.random.wrap_key_data(drawn))
    wanted = frozenset({"perception"})
    found = score(params, stage.policy, batch, stage.corruption, wanted=wanted, micro_batches=1)
    return to_host(found["perception"])[mine]
