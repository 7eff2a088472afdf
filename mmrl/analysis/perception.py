"""How much each token of a response owes to the image, measured again on any response by any weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from mmrl.algorithms.divergences import k3
from mmrl.analysis.keys import corruption_keys
from mmrl.config import Config
from mmrl.data.pipeline import encode_sample
from mmrl.mesh import batch_shards, put
from mmrl.models.processor import Processor
from mmrl.models.prompts import bucket, collate
from mmrl.sample import Sample
from mmrl.train.assemble import Model, check_corruption, prompt_format
from mmrl.train.programs import Batch, ImageCorruption, score
from mmrl.types import Params, Responses

_WANTED = frozenset({"entropy", "corrupted", "perception"})


@dataclass(frozen=True)
class TokenPerception:
    """What the policy says of each token of a response, in nats, at the temperature that it was trained at.

    ``pieces`` put together are the text; a token that adds none (the one that ends a turn, the first bytes
    of a letter) has an empty piece.
    """

    tokens: Int[np.ndarray, "r"]
    pieces: tuple[str, ...]
    logprob: Float[np.ndarray, "r"]
    corrupted: Float[np.ndarray, "r"]  # logprob with the image corrupted
    entropy: Float[np.ndarray, "r"]
    exact: Float[np.ndarray, "r"]  # KL(image present || image corrupted) over the whole vocabulary
    k3: Float[np.ndarray, "r"]  # its estimate from the token alone, in [0, 10]: what VPPO's code takes


def token_perception(
    params: Params,
    sample: Sample,
    response: str | Sequence[int],
    *,
    model: Model,
    config: Config,
    seed: int = 0,
) -> TokenPerception:
    """`perceive` for one response."""
    return perceive(params, [sample], [response], model=model, config=config, seed=seed)[0]


def perceive(
    params: Params,
    samples: Sequence[Sample],
    responses: Sequence[str | Sequence[int]],
    *,
    model: Model,
    config: Config,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[TokenPerception]:
    """Logprob, entropy and perception of every token of ``responses``, in order.

    The image of a sample is corrupted by ``config.corruption`` and ``seed``, alike for all its responses and
    for all weights, so what differs between two weights is theirs.

    Args:
      params, model: of `mmrl.analysis.load_params`.
      samples: the prompt of each response; those that are the same are computed once.
      responses: token ids, as a run keeps them, or a text, whose tokens are then its usual ones.
      config: of the run: how prompts are made, the corruption, the temperature.
      seed: of the corruption.
      progress: is told (responses done, of how many) after each batch.

    Raises:
      ValueError: a prompt cannot be made, a token is not one that a policy writes, the corruption is
        unknown, or there are more samples than responses or fewer.
    """
    check_corruption(config)
    if len(samples) != len(responses):
        raise ValueError(f"{len(samples)} samples, {len(responses)} responses: give each response its sample")
    if not samples:
        return []
    processor, form = model.processor, prompt_format(config)
    written = [_ids(response, sample, processor) for sample, response in zip(samples, responses, strict=True)]
    groups = _groups(samples, most=config.rollout.group)
    encoded = [encode_sample(samples[members[0]], processor, form) for members in groups]
    tokens = bucket(max(len(one.tokens) for one in encoded), form.prompt_buckets)
    slots = bucket(max(len(one.patches) for one in encoded), form.patch_buckets)
    length = _rounded(max(map(len, written)), config.rollout.max_tokens)
    width = _rounded(max(map(len, groups)), config.rollout.group)
    size = _rounded(len(groups), config.train.micro_prompts)
    size += -size % batch_shards(model.mesh)
    policy = model.policy(config.rollout.temperature)
    measure = partial(
        score,
        params,
        # A few passes do not pay for compiling the layers apart.
        replace(policy, model=replace(policy.model, unroll=1)),
        corruption=ImageCorruption(config.corruption.method, config.corruption.probability),
        wanted=_WANTED,
        micro_batches=1,
    )
    out: dict[int, TokenPerception] = {}
    with jax.set_mesh(model.mesh):
        for start in range(0, len(groups), size):
            # The last batch is filled up with its own first prompt, which then has no responses.
            here = [*groups[start : start + size], *[[]] * size][:size]
            full = [*encoded[start : start + size], *[encoded[start]] * size][:size]
            names = [samples[members[0]].id if members else "" for members in here]
            laid = _laid([[written[k] for k in members] for members in here], width, length)
            prompts, answers, keys = put(
                (collate(full, processor, tokens, slots), laid, corruption_keys(names, seed)), model.mesh
            )
            scores = jax.device_get(measure(Batch(prompts, answers, jax.random.wrap_key_data(keys))))
            for b, members in enumerate(here):
                for g, k in enumerate(members):
                    of_row = {name: values[b, g, : len(written[k])] for name, values in scores.items()}
                    out[k] = _told(written[k], of_row, processor)
            if progress:
                progress(len(out), len(samples))
    return [out[k] for k in range(len(samples))]


def pieces_of(tokens: Sequence[int], processor: Processor) -> tuple[str, ...]:
    """The text that each token adds; together they are the text of all of them, special tokens left out.

    A letter of several tokens stands with the last of them.
    """
    decode = partial(processor.tokenizer.decode, skip_special_tokens=True)
    pieces: list[str] = []
    start = 0
    for k in range(len(tokens)):
        text = decode(tokens[start : k + 1])
        if text.endswith("\ufffd") and k + 1 < len(tokens):  # perhaps a letter of which more is to come
            text = ""
        else:
            start = k + 1
        pieces.append(text)
    return tuple(pieces)


def _told(
    tokens: Int[np.ndarray, "r"], scores: dict[str, Float[np.ndarray, "r"]], processor: Processor
) -> TokenPerception:
    return TokenPerception(
        tokens=tokens,
        pieces=pieces_of(tokens.tolist(), processor),
        logprob=scores["logprob"],
        corrupted=scores["corrupted"],
        entropy=scores["entropy"],
        exact=scores["perception"],
        k3=np.asarray(k3(jnp.asarray(scores["logprob"]), jnp.asarray(scores["corrupted"]))),
    )


def _ids(response: str | Sequence[int], sample: Sample, processor: Processor) -> Int[np.ndarray, "r"]:
    """Token ids of a response; those of a text end with the token that ends a turn."""
    if isinstance(response, str):
        ids = [*processor.tokenizer(response, add_special_tokens=False)["input_ids"], processor.eos]
    else:
        ids = [int(token) for token in response]
    known = range(len(processor.tokenizer))
    wrong = [token for token in ids if token not in known or token in processor.placeholders]
    if wrong:
        raise ValueError(
            f"{sample.id}: token {wrong[0]} of a response is none that this model writes; is the response of"
            " another model?"
        )
    return np.array(ids, np.int32)


def _groups(samples: Sequence[Sample], most: int) -> list[list[int]]:
    """Which responses have their prompt in common, at most ``most`` together."""
    found: dict[tuple, list[int]] = {}
    for k, sample in enumerate(samples):
        found.setdefault((sample.id, sample.problem, sample.images), []).append(k)
    return [members[k : k + most] for members in found.values() for k in range(0, len(members), most)]


def _laid(groups: Sequence[Sequence[np.ndarray]], width: int, length: int) -> Responses:
    """Responses padded to ``[b, width, length]``, on the host."""
    grid = (len(groups), width)
    tokens: Any = np.zeros((*grid, length), np.int32)  # numpy until put on the device
    mask: Any = np.zeros((*grid, length), bool)
    logprob: Any = np.zeros(mask.shape, np.float32)
    zeros: Any = np.zeros(grid, np.int32)
    for b, members in enumerate(groups):
        for g, ids in enumerate(members):
            tokens[b, g, : len(ids)] = ids
            mask[b, g, : len(ids)] = True
    return Responses(
        tokens=tokens,
        mask=mask,
        logprob=logprob,
        stop=zeros,
        valid=mask.any(axis=-1),
    )


def _rounded(count: int, most: int) -> int:
    """The power of two from ``count``, but ``most`` where that lies between: few shapes are compiled."""
    power = 1 << max(count - 1, 0).bit_length()
    return most if count <= most < power else power
