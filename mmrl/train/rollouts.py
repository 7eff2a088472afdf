"""One batch of experience: sample groups, grade them, and draw again where an algorithm filters groups."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Key

from mmrl.config import Reward
from mmrl.data.pipeline import Batch as PromptBatch
from mmrl.mesh import put
from mmrl.models.processor import Processor
from mmrl.rewards.pool import RewardPool
from mmrl.rewards.verifier import score
from mmrl.rollout import engine
from mmrl.rollout.sampling import Sampling
from mmrl.sample import Sample
from mmrl.train.assemble import Model
from mmrl.train.metrics import Phases
from mmrl.train.programs import Policy
from mmrl.types import Params, Prompts, Responses, StopReason


@dataclass(frozen=True)
class Experience:
    """Graded groups of responses, on the host."""

    samples: list[Sample]
    prompts: Prompts
    responses: Responses  # ``valid`` is False where grading failed
    texts: list[list[str]]
    rewards: Float[np.ndarray, "b g"]
    components: dict[str, Float[np.ndarray, "b g"]]  # NaN where a verifier does not report it

    @property
    def accuracy(self) -> Float[np.ndarray, "b g"]:
        """The "accuracy" component, or the reward where no verifier reports one."""
        return np.nan_to_num(self.components.get("accuracy", self.rewards))


def prompt_keys(seed: int, purpose: int, step: int, count: int, start: int = 0) -> Key[jax.Array, "b"]:
    """Random keys with the address (seed, purpose, step, prompt): no draw depends on another."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), step)
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(start + jnp.arange(count))


def sample_and_grade(
    params: Params,
    policy: Policy,
    model: Model,
    batch: PromptBatch,
    keys: Key[jax.Array, "b"],
    *,
    group: int,
    sampling: Sampling,
    lanes: int,
    pool: RewardPool,
    reward: Reward,
    phases: Phases,
) -> Experience:
    """Sample ``group`` responses to each prompt and grade them; ``params`` are laid out for decoding."""
    with phases("rollout"):
        responses = sample_in_turns(
            params, policy, model, batch.prompts, keys, group=group, sampling=sampling, lanes=lanes
        )
    with phases("reward"):
        texts = decode_texts(model.processor, responses)
        requests = [
            (replace(sample, verifier=reward.verifier or sample.verifier), text)
            for sample, row in zip(batch.samples, texts, strict=True)
            for text in row
        ]
        graded = pool.grade(requests)
        shape = (len(batch.samples), group)
        valid: Any = np.array([item.valid for item in graded]).reshape(shape)
        names = sorted({name for item in graded for name in item.components})
        components = {
            name: np.array([item.components.get(name, np.nan) for item in graded], np.float32).reshape(shape)
            for name in names
        }
        rewards = [score(item.components, reward.weights) if item.valid else 0.0 for item in graded]
    return Experience(
        samples=batch.samples,
        prompts=batch.prompts,
        responses=replace(responses, valid=valid),
        texts=texts,
        rewards=np.array(rewards, np.float32).reshape(shape),
        components=components,
    )


def sample_in_turns(
    params: Params,
    policy: Policy,
    model: Model,
    prompts: Prompts,
    keys: Key[jax.Array, "b"],
    *,
    group: int,
    sampling: Sampling,
    lanes: int,
) -> Responses:
    """Sample ``group`` responses to each prompt, ``lanes`` prompts at a time (0: all); arrays of the host.

    What is sampled does not depend on ``lanes``; the last turn is filled up with prompts of the first rows.
    """
    count = len(prompts.tokens)
    lanes = min(lanes or count, count)
    turns = []
    for start in range(0, count, lanes):
        rows = np.arange(start, start + lanes) % count
        made = engine.generate(
            params,
            policy.model,
            put(jax.tree.map(lambda leaf, rows=rows: leaf[rows], prompts), model.mesh),
            keys[rows],
            group=group,
            sampling=sampling,
            bias=policy.bias,
            stop_ids=model.processor.stop,
        )
        turns.append(jax.device_get(made))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *turns)


def decode_texts(processor: Processor, responses: Responses) -> list[list[str]]:
    """The responses as text, special tokens left out: for verifiers and people, never to be encoded again."""
    tokens, mask = np.asarray(responses.tokens), np.asarray(responses.mask)
    length = tokens.shape[-1]
    flat = zip(tokens.reshape(-1, length), mask.reshape(-1, length), strict=True)
    rows = [row[keep].tolist() for row, keep in flat]
    texts = processor.tokenizer.batch_decode(rows, skip_special_tokens=True)
    group = tokens.shape[1]
    return [texts[start : start + group] for start in range(0, len(texts), group)]


def collect(
    draw: Callable[[int], Experience],
    keep: Callable[[Experience], np.ndarray],
    prompts: int,
    max_batches: int,
) -> tuple[Experience, dict[str, float]]:
    """Dynamic sampling: draw batches until ``prompts`` groups are worth training on, at most ``max_batches``.

    When the bound is reached, the batch is filled up with groups that were passed over; having no spread of
    rewards they do not move the policy, and the shapes stay as they are.

    Args:
      draw: the experience of the n-th batch of this step.
      keep: which of its groups to train on, ``Bool[b]``.
      prompts: groups wanted.
      max_batches: bound on the number of draws.

    Returns:
      The experience, and the counts "sampled_batches" and "kept_groups" (share of the groups seen).
    """
    drawn: list[Experience] = []
    kept: list[tuple[int, int]] = []
    passed: list[tuple[int, int]] = []
    while len(kept) < prompts and len(drawn) < max_batches:
        experience = draw(len(drawn))
        for row, good in enumerate(keep(experience)):
            (kept if good else passed).append((len(drawn), row))
        drawn.append(experience)
    seen = sum(len(experience.samples) for experience in drawn)
    metrics = {"rollout/batches": float(len(drawn)), "rollout/kept_groups": len(kept) / seen}
    chosen = (kept + passed)[:prompts]
    if len(drawn) == 1:
        chosen = sorted(chosen)
    return _choose(drawn, chosen), metrics


def _choose(drawn: Sequence[Experience], chosen: Sequence[tuple[int, int]]) -> Experience:
    """The chosen groups as one batch; prompts of different buckets are padded to the longest."""

    def gather(leaves: Sequence[np.ndarray], fill: Any = 0) -> np.ndarray:
        axis_one = max(leaf.shape[1] for leaf in leaves) if leaves[0].ndim > 1 else 0
        rows = []
        for batch, row in chosen:
            value = np.asarray(leaves[batch][row])
            if value.ndim and value.shape[0] < axis_one:
                padding = [(0, axis_one - value.shape[0])] + [(0, 0)] * (value.ndim - 1)
                value = np.pad(value, padding, constant_values=fill)
            rows.append(value)
        return np.stack(rows)

    def merge(trees: Sequence[Any]) -> Any:
        return jax.tree.map(lambda *leaves: gather(leaves), *trees)

    prompts = merge([experience.prompts for experience in drawn])
    # -1, not 0, stands for "no image" in these two.
    image_token = gather([np.asarray(experience.prompts.image_token) for experience in drawn], -1)
    image = gather([np.asarray(experience.prompts.images.image) for experience in drawn], -1)
    prompts = replace(prompts, image_token=image_token, images=replace(prompts.images, image=image))
    names = {name for experience in drawn for name in experience.components}
    missing = np.full(drawn[0].rewards.shape, np.nan, np.float32)
    return Experience(
        samples=[drawn[batch].samples[row] for batch, row in chosen],
        prompts=prompts,
        responses=merge([experience.responses for experience in drawn]),
        texts=[drawn[batch].texts[row] for batch, row in chosen],
        rewards=gather([experience.rewards for experience in drawn]),
        components={
            name: gather([experience.components.get(name, missing) for experience in drawn])
            for name in sorted(names)
        },
    )


def describe(experience: Experience) -> dict[str, float]:
    """Metrics of sampled and graded responses."""
    responses, valid = experience.responses, np.asarray(experience.responses.valid)
    lengths = responses.mask.sum(axis=-1)
    out = {
        "reward/mean": _mean(experience.rewards, valid),
        "reward/invalid": float(1.0 - valid.mean()),
        "reward/equal_groups": float(_without_spread(experience.rewards, valid).mean()),
        "response/length": float(lengths.mean()),
        "response/longest": float(lengths.max()),
        "response/truncated": float((responses.stop == StopReason.LENGTH).mean()),
        "padding/prompt": float(1.0 - experience.prompts.mask.mean()),
        "padding/patches": float(1.0 - (experience.prompts.images.image >= 0).mean()),
        "padding/response": float(1.0 - responses.mask.mean()),
    }
    for name, values in experience.components.items():
        out[f"reward/{name}"] = _mean(values, valid & ~np.isnan(values))
    return out


def _without_spread(rewards: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Groups whose valid rewards are all equal: they have no advantage to learn from."""
    highest = np.where(valid, rewards, -np.inf).max(axis=1)
    lowest = np.where(valid, rewards, np.inf).min(axis=1)
    return highest <= lowest


def _mean(values: np.ndarray, where: np.ndarray) -> float:
    return float(values[where].mean()) if where.any() else 0.0
