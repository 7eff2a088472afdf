"""How much each token of a response owes to the image, measured again on any response by any weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from mmrl.algorithms.divergences import k3
from mmrl.analysis.scoring import Progress, Scores, scored
from mmrl.config import Config
from mmrl.data.pipeline import encode_sample
from mmrl.models.pieces import pieces_of
from mmrl.models.processor import Processor
from mmrl.models.prompts import text_ids
from mmrl.open import OpenModel, prompt_format
from mmrl.sample import Sample
from mmrl.types import Params


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
    model: OpenModel,
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
    model: OpenModel,
    config: Config,
    seed: int = 0,
    progress: Progress | None = None,
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
    if len(samples) != len(responses):
        raise ValueError(f"{len(samples)} samples, {len(responses)} responses: give each response its sample")
    processor, form = model.processor, prompt_format(config)
    written = [
        ids_of(response, sample, processor) for sample, response in zip(samples, responses, strict=True)
    ]
    groups = _groups(samples, most=config.rollout.group)
    scores = scored(
        params,
        [encode_sample(samples[members[0]], processor, form) for members in groups],
        [[written[k] for k in members] for members in groups],
        [samples[members[0]].id for members in groups],
        model=model,
        config=config,
        wanted=frozenset({"entropy", "corrupted", "perception"}),
        seed=seed,
        progress=progress,
    )
    out = {
        k: _told(written[k], row, processor)
        for members, rows in zip(groups, scores, strict=True)
        for k, row in zip(members, rows, strict=True)
    }
    return [out[k] for k in range(len(samples))]


def ids_of(response: str | Sequence[int], sample: Sample, processor: Processor) -> Int[np.ndarray, "r"]:
    """Token ids of a response; those of a text end with the token that ends a turn.

    Raises ValueError naming the row for a token that no policy writes.
    """
    if isinstance(response, str):
        ids = [*text_ids(processor, response, sample.id), processor.eos]
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


def _told(tokens: Int[np.ndarray, "r"], scores: Scores, processor: Processor) -> TokenPerception:
    return TokenPerception(
        tokens=tokens,
        pieces=pieces_of(tokens.tolist(), processor),
        logprob=scores["logprob"],
        corrupted=scores["corrupted"],
        entropy=scores["entropy"],
        exact=scores["perception"],
        k3=np.asarray(k3(jnp.asarray(scores["logprob"]), jnp.asarray(scores["corrupted"]))),
    )


def _groups(samples: Sequence[Sample], most: int) -> list[list[int]]:
    """Which responses have their prompt in common, at most ``most`` together."""
    found: dict[tuple, list[int]] = {}
    for k, sample in enumerate(samples):
        found.setdefault((sample.id, sample.problem, sample.images), []).append(k)
    return [members[k : k + most] for members in found.values() for k in range(0, len(members), most)]
