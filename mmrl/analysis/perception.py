"""Responses measured again: token perception, pictures as a model sees them, and occlusion.

Any response, by any weights; computed by the programs of training.
"""

import io
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8, UInt32
from PIL import Image

from mmrl.algorithms.divergences import k3
from mmrl.algorithms.passes import CORRUPTED_LOGPROB, ENTROPY, LOGPROB, PERCEPTION, Score
from mmrl.analysis.runs import (
    Row,
    Run,
    choose_evenly,
    error_kind,
    load_params,
    responses_of,
    samples_of,
    tokens_of,
)
from mmrl.config import Config
from mmrl.data.pipeline import encode_sample
from mmrl.mesh import batch_shards, shard_batch
from mmrl.models.corruption import corrupt
from mmrl.models.pieces import pieces_of
from mmrl.models.processor import Processor
from mmrl.models.prompts import Encoded, collate, padded, text_ids
from mmrl.open import OpenModel, check_corruption, prompt_format
from mmrl.sample import Sample
from mmrl.train.programs import score, train_batch, views_of
from mmrl.types import Images, Params, Responses

ESTIMATES = ("exact", "k3")
TOP = (0.05, 0.1, 0.2, 0.4)
MOST_REGIONS = 64  # of an image, where the caller does not say how large they are
_BATCH = 8  # prompts whose images and responses are on the device at once
_PURPOSE = 4  # of random keys, apart from those of a run and of `mmrl generate`

TokenScores = dict[Score, Float[np.ndarray, "r"]]  # of one response
ProgressCallback = Callable[[int, int], None]  # called with (responses done, of how many) after each batch


@dataclass(frozen=True)
class TokenPerception:
    """Logprobs, entropy and perception of a response's tokens, in nats, at the temperature of training.

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


@dataclass(frozen=True)
class PerceptionProfile:
    """Token perception of many responses, in nats: how few tokens carry it, and how far responses differ.

    The two observations that VPPO (arXiv 2510.09285, section 3) begins with.
    """

    tokens: Float[np.ndarray, "n"]  # of all tokens, ascending
    responses: Float[np.ndarray, "k"]  # mean over the tokens of each response, in order; NaN without tokens
    gini: float  # 0: all tokens alike, 1: one token has all
    top: dict[float, float]  # share of the tokens -> share of all perception that the highest have

    @property
    def mean(self) -> float:
        return float(self.tokens.mean()) if len(self.tokens) else float("nan")

    def percentile(self, percent: float) -> float:
        return float(np.percentile(self.tokens, percent)) if len(self.tokens) else float("nan")

    @property
    def spread(self) -> float:
        """Standard deviation of the responses' means by their mean: how far responses differ."""
        means = self.responses[~np.isnan(self.responses)]
        return float(means.std() / means.mean()) if len(means) and means.mean() > 0 else float("nan")


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
    progress: ProgressCallback | None = None,
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
      progress: called with (responses done, of how many) after each batch.

    Raises:
      ValueError: a prompt cannot be made, a token is not one that a policy writes, the corruption is
        unknown, or there are more samples than responses or fewer.
    """
    if len(samples) != len(responses):
        raise ValueError(f"{len(samples)} samples, {len(responses)} responses: give each response its sample")
    pairs = list(zip(samples, responses, strict=True))
    tokens = [ids_of(response, sample, model.processor) for sample, response in pairs]
    prompts: dict[tuple, list[int]] = {}
    for k, sample in enumerate(samples):
        prompts.setdefault((sample.id, sample.problem, sample.images), []).append(k)
    most = config.rollout.group
    groups = [members[k : k + most] for members in prompts.values() for k in range(0, len(members), most)]
    firsts = [samples[members[0]] for members in groups]
    scores = score_responses(
        params,
        [encode_sample(sample, model.processor, prompt_format(config)) for sample in firsts],
        [[tokens[k] for k in members] for members in groups],
        [sample.id for sample in firsts],
        model=model,
        config=config,
        wanted=frozenset({LOGPROB, ENTROPY, CORRUPTED_LOGPROB, PERCEPTION}),
        seed=seed,
        progress=progress,
    )
    out: dict[int, TokenPerception] = {}
    for members, rows in zip(groups, scores, strict=True):
        for k, row in zip(members, rows, strict=True):
            out[k] = TokenPerception(
                tokens=tokens[k],
                pieces=pieces_of(tokens[k].tolist(), model.processor),
                logprob=row[LOGPROB],
                corrupted=row[CORRUPTED_LOGPROB],
                entropy=row[ENTROPY],
                exact=row[PERCEPTION],
                k3=np.asarray(k3(jnp.asarray(row[LOGPROB]), jnp.asarray(row[CORRUPTED_LOGPROB]))),
            )
    return [out[k] for k in range(len(samples))]


def perception_profile(measured: Sequence[TokenPerception], estimate: str = "exact") -> PerceptionProfile:
    """The profile of responses that `perceive` has measured; ``estimate`` is "exact" or "k3".

    Raises ValueError for another estimate.
    """
    if estimate not in ESTIMATES:
        raise ValueError(f"estimate={estimate!r} should be one of {ESTIMATES}")
    values = [getattr(perception, estimate) for perception in measured]
    # A KL is never negative but for rounding.
    tokens = np.sort(np.maximum(np.concatenate([*values, np.zeros(0, np.float32)]), 0.0))
    _, held = lorenz(tokens)
    count, total = len(tokens), tokens.sum(dtype=float)
    # Twice the area between the Lorenz curve and that of equal values.
    ranked = 2 * (np.arange(1, count + 1) * tokens.astype(float)).sum()
    return PerceptionProfile(
        tokens=tokens,
        responses=np.array([row.mean() if len(row) else np.nan for row in values], float),
        gini=float(ranked / (count * total) - (count + 1) / count) if total > 0 else 0.0,
        top={share: float(1 - held[count - int(np.ceil(share * count))]) for share in TOP},
    )


def lorenz(tokens: Float[np.ndarray, "n"]) -> tuple[Float[np.ndarray, "m"], Float[np.ndarray, "m"]]:
    """The Lorenz curve of ascending values: share of the tokens from the lowest, share of the sum they hold.

    Both from 0 to 1. The second is the first where the sum is 0.
    """
    places = np.linspace(0.0, 1.0, len(tokens) + 1)
    total = tokens.sum(dtype=float)
    if not total > 0:
        return places, places
    return places, np.concatenate([[0.0], np.cumsum(tokens, dtype=float) / total])


def ids_of(response: str | Sequence[int], sample: Sample, processor: Processor) -> Int[np.ndarray, "r"]:
    """Token ids of a response; those of a text end with the token that ends a turn.

    Raises ValueError naming the row for a token that no policy writes.
    """
    if isinstance(response, str):
        ids = [*text_ids(processor, response, sample.id), processor.eos]
    else:
        ids = [int(token) for token in response]
    known = range(len(processor.tokenizer))
    for token in ids:
        if token not in known or token in processor.placeholders:
            raise ValueError(
                f"{sample.id}: token {token} of a response is none that this model writes; is the response"
                " of another model?"
            )
    return np.array(ids, np.int32)


def corruption_keys(ids: Sequence[str], seed: int) -> UInt32[np.ndarray, "b k"]:
    """Data of the keys that corrupt the images of the rows called ``ids``: of (seed, purpose, id) alone."""
    key = jax.random.fold_in(jax.random.key(seed), _PURPOSE)
    names = np.array([zlib.crc32(name.encode()) for name in ids], np.uint32)
    return np.asarray(jax.random.key_data(jax.vmap(lambda name: jax.random.fold_in(key, name))(names)))


def score_responses(
    params: Params,
    prompts: Sequence[Encoded],
    groups: Sequence[Sequence[Int[np.ndarray, "_"]]],
    ids: Sequence[str],
    *,
    model: OpenModel,
    config: Config,
    wanted: frozenset[Score],
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> list[list[TokenScores]]:
    """`mmrl.train.programs.score` of the responses to each prompt, batch by batch in few shapes.

    Args:
      params, model, config: weights; the model; how its prompts are padded, the corruption and temperature.
      prompts: unpadded; ``groups`` has the token ids of the responses to each, ``ids`` the name of its row,
        which its image is corrupted by, together with ``seed``.
      wanted: as for `score`.
      progress: called after each batch.

    Raises ValueError if the corruption is unknown, and `OverBudget` if a prompt is over all buckets.
    """
    check_corruption(config)
    if not prompts:
        return []
    longest = max(len(prompt.tokens) for prompt in prompts), max(len(prompt.patches) for prompt in prompts)
    tokens, slots = padded(*longest, model.processor, config.data.prompt_buckets, config.data.patch_buckets)
    length = _round_up(max(len(row) for group in groups for row in group), config.rollout.max_tokens)
    width = _round_up(max(map(len, groups)), config.rollout.group)
    size = min(_round_up(len(prompts), _BATCH), _BATCH)
    size += -size % batch_shards(model.mesh)
    policy = model.policy(config.rollout.temperature)
    measure = partial(
        score,
        {"policy": params},
        # A few passes do not pay for compiling the layers apart.
        replace(policy, model=replace(policy.model, unroll=1)),
        views=views_of(config),
        wanted=wanted,
    )
    total = sum(map(len, groups))
    out: list[list[TokenScores]] = []
    with jax.set_mesh(model.mesh):
        for start in range(0, len(prompts), size):
            # The last batch is filled up with its first prompt, without responses.
            there = [*range(start, min(start + size, len(prompts)))]
            missing = size - len(there)
            rows = [prompts[k] for k in there] + [prompts[start]] * missing
            batch = (
                collate(rows, model.processor, tokens, slots),
                _pad([groups[k] for k in there] + [()] * missing, width, length),
                corruption_keys([ids[k] for k in there] + [""] * missing, seed),
            )
            asked, written, keys = shard_batch(batch, model.mesh)
            keys = jax.random.wrap_key_data(keys)
            rows_of = (model.config, model.mesh, config.train.row_tokens)
            scores = jax.device_get(measure(train_batch(asked, written, *rows_of, keys)))
            for b, k in enumerate(there):
                lengths = list(enumerate(map(len, groups[k])))
                out.append([{name: scores[name][b, g, :count] for name in scores} for g, count in lengths])
            if progress:
                progress(sum(map(len, out)), total)
    return out


def _pad(groups: Sequence[Sequence[np.ndarray]], width: int, length: int) -> Responses:
    """Responses padded to ``[b, width, length]``, on the host."""
    shape = (len(groups), width, length)
    tokens: Any = np.zeros(shape, np.int32)  # numpy until put on the device
    mask: Any = np.zeros(shape, bool)
    zeros: Any = np.zeros(shape, np.float32)
    for b, members in enumerate(groups):
        for g, ids in enumerate(members):
            tokens[b, g, : len(ids)] = ids
            mask[b, g, : len(ids)] = True
    stop: Any = np.zeros(shape[:2], np.int32)
    return Responses(
        tokens=tokens, mask=mask, logprob=zeros, log_kept=zeros, stop=stop, valid=mask.any(axis=-1)
    )


def _round_up(count: int, most: int) -> int:
    """The power of two from ``count``, but ``most`` where that lies between: few shapes are compiled."""
    power = 1 << max(count - 1, 0).bit_length()
    return most if count <= most < power else power


@dataclass(frozen=True)
class RolloutView:
    """A held-out response to look at. Its texts are data, never markup: a model wrote them."""

    sample: Sample
    row: Row  # of the run's file: "id", "problem", "answer", "response", "reward", each component
    kind: str  # one of `mmrl.analysis.runs.KINDS`
    perception: TokenPerception  # by the weights that were loaded; its ``pieces`` are the response's text
    images: tuple[bytes, ...]  # PNG files: what the model saw
    corrupted: tuple[bytes, ...]  # and what it saw with the image corrupted


@dataclass(frozen=True)
class Occlusion:
    """An image cut into square regions, and what each is worth to each token of a response."""

    picture: Image.Image  # as the model sees it
    side: int  # of a region, in pixels; those at the right and lower edge may be smaller
    pieces: tuple[str, ...]
    logprob: Float[np.ndarray, "r"]  # with the whole image
    drop: Float[np.ndarray, "rows columns r"]  # nats of logprob lost without the region; below 0 is gained


def picture_of(
    patches: UInt8[np.ndarray, "n c"],
    position: Int[np.ndarray, "n 2"],
    image: Int[np.ndarray, "n"],
    index: int = 0,
) -> Image.Image:
    """Image ``index`` of a prompt out of its patches: undoes `mmrl.models.images.patchify` and window slots.

    Takes the fields of `mmrl.types.Images` of one prompt. Raises ValueError if it has no such image.
    """
    mine = image == index
    if not mine.any():
        raise ValueError(f"the prompt has {image.max(initial=-1) + 1} images, so none of number {index}")
    side = round((patches.shape[1] / 3) ** 0.5)
    rows, columns = position[mine].max(axis=0) + 1
    cells = np.zeros((rows, columns, side, side, 3), np.uint8)
    # Bytes of a patch are in order (channel, row, column).
    cells[tuple(position[mine].T)] = patches[mine].reshape(-1, 3, side, side).transpose(0, 2, 3, 1)
    return Image.fromarray(cells.swapaxes(1, 2).reshape(rows * side, columns * side, 3))


def png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def pictures_seen(
    sample: Sample, *, model: OpenModel, config: Config, seed: int = 0
) -> tuple[list[Image.Image], list[Image.Image]]:
    """The images of a sample as the model sees them, and corrupted as `perceive` has them with this ``seed``.

    Raises ValueError naming the row if its prompt cannot be made.
    """
    encoded = encode_sample(sample, model.processor, prompt_format(config))
    fields = (encoded.patches, encoded.patch_position, encoded.patch_image)
    keys = jax.random.wrap_key_data(jnp.asarray(corruption_keys([sample.id], seed)))
    images = Images(*(jnp.asarray(field)[None] for field in fields))
    corrupted = corrupt(images, keys, config.corruption.method, config.corruption.probability)
    both = encoded.patches, np.asarray(corrupted.patches[0])
    count = int(encoded.patch_image.max(initial=-1)) + 1
    clean, other = ([picture_of(patches, *fields[1:], k) for k in range(count)] for patches in both)
    return clean, other


def rollout_sample(
    run: Run,
    count: int,
    *,
    when: str = "after",
    step: int | None = None,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> list[RolloutView]:
    """Some held-out responses of a run: as evenly as there are of each kind, of different questions first.

    Args:
      run: of `load_run`.
      count: how many, at most.
      when: responses "before" the first step, or "after" the last.
      step: of the weights that look at them; by default those that wrote them: 0 before, the newest after.
      seed: of the corruption.
      progress: as for `perceive`.

    Raises ValueError if responses, data or weights are not there, or the run is one with tools.
    """
    if count < 1:
        raise ValueError(f"count={count}: show at least one response")
    rows = choose_evenly(responses_of(run, when), count)
    tokens, samples = tokens_of(run, rows), samples_of(run, rows)
    model, params = load_params(run, 0 if step is None and when == "before" else step)
    config = run.config
    measured = perceive(params, samples, tokens, model=model, config=config, seed=seed, progress=progress)
    shown = []
    for row, sample, perception in zip(rows, samples, measured, strict=True):
        images, corrupted = pictures_seen(sample, model=model, config=config, seed=seed)
        files = tuple(map(png, images)), tuple(map(png, corrupted))
        shown.append(RolloutView(sample, row, error_kind(row), perception, *files))
    return shown


def where_it_looks(
    params: Params,
    sample: Sample,
    response: str | Sequence[int],
    *,
    model: OpenModel,
    config: Config,
    image: int = 0,
    side: int | None = None,
    progress: ProgressCallback | None = None,
) -> Occlusion:
    """Blacken the regions of an image one at a time and score the response again.

    Occlusion sensitivity (Zeiler and Fergus, arXiv 1311.2901, section 4.2), on the patch grid of the model.

    Args:
      params, sample, response, model, config: as for `perceive`.
      image: which of the sample's images.
      side: of a region, in patches; by default whole image tokens, as many as leave at most 64 regions.
      progress: called with (passes done, of how many) after each batch.

    Raises ValueError if the sample has no such image, or as `perceive` does.
    """
    if side is not None and side < 1:
        raise ValueError(f"side={side}: a region has one patch or more to a side")
    encoded = encode_sample(sample, model.processor, prompt_format(config))
    picture = picture_of(encoded.patches, encoded.patch_position, encoded.patch_image, image)
    mine = encoded.patch_image == image
    grid = encoded.patch_position[mine].max(axis=0) + 1
    if side is None:
        merge = model.processor.image.merge  # no region cuts what the language model sees as one token
        side = next(n for n in range(merge, max(grid) + 1, merge) if np.prod(-(-grid // n)) <= MOST_REGIONS)
    rows, columns = -(-grid // side)
    region = encoded.patch_position // side
    variants = [encoded]
    for place in np.ndindex(rows, columns):
        blackened = mine & (region == place).all(axis=1)
        patches = np.where(blackened[:, None], 0, encoded.patches).astype(np.uint8)
        variants.append(replace(encoded, patches=patches))
    ids = ids_of(response, sample, model.processor)
    scores = score_responses(
        params,
        variants,
        [[ids]] * len(variants),
        [sample.id] * len(variants),
        model=model,
        config=config,
        wanted=frozenset({LOGPROB}),
        progress=progress,
    )
    logprobs = np.stack([group[0][LOGPROB] for group in scores])
    return Occlusion(
        picture=picture,
        side=side * model.processor.image.patch,
        pieces=pieces_of(ids.tolist(), model.processor),
        logprob=logprobs[0],
        drop=(logprobs[0] - logprobs[1:]).reshape(rows, columns, len(ids)),
    )
