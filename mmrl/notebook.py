"""The short path for notebooks: a model out of a directory, which samples, scores and is measured."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from mmrl import hub
from mmrl.algorithms.passes import ENTROPY, LOGPROB
from mmrl.analysis.perception import TokenPerception, ids_of, perceive, png, score_responses
from mmrl.analysis.runs import load_params, load_run
from mmrl.config import Config
from mmrl.data.pipeline import encode_sample
from mmrl.data.rows import PROMPT, sample_of
from mmrl.models.images import to_rgb
from mmrl.open import OpenModel, config_without_run, open_model, prompt_format
from mmrl.sample import Sample
from mmrl.train.completions import choose_buckets, complete
from mmrl.types import Params


class Completion(NamedTuple):
    """A sampled response."""

    text: str
    tokens: list[int]  # those that the policy wrote, the stop token included
    logprobs: list[float]  # of each token, in nats: of the distribution sampled from
    stop: str  # "stop" for a stop token, "length" for the budget


class ResponseScores(NamedTuple):
    """The policy's statistics of each token of a response, in nats."""

    logprob: Float[np.ndarray, "r"]
    entropy: Float[np.ndarray, "r"]  # of the distribution that the token was drawn from


@dataclass(frozen=True)
class LoadedModel:
    """A model with its weights, and how prompts are made for it; of `load`.

    A prompt is a row of data: {"problem": "<image>What is this?", "images": [...]}, an image being a path,
    the bytes of a file, or a picture of PIL's. Responses are a list for each prompt: of what `generate` gave,
    of texts (their usual tokens and the one that ends a turn), or of token ids. Wrong ones raise ValueError
    in one line.
    """

    model: OpenModel
    params: Params
    config: Config

    def generate(
        self,
        prompts: Iterable[Any],
        n: int = 1,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> list[list[Completion]]:
        """Sample ``n`` responses to each prompt: ``[b][n]``.

        A response depends on the weights, the prompt, its place and the seed. What is None is the run's, or
        512 tokens at temperature 1 and top-p 1; temperature 0 takes the most likely token.
        """
        if n < 1:
            raise ValueError(f"n={n}: ask for one response or more")
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed={seed} should be a whole number, 0 to {2**32 - 1}")
        config = replace(self._at(max_tokens=max_tokens, temperature=temperature, top_p=top_p), seed=seed)
        samples = samples_of_prompts(prompts)
        if not samples:
            return []
        buckets = choose_buckets(samples, config, self.model)
        rows = list(complete(samples, buckets, config, self.model, self.params, n=n))
        made = [Completion(*(row[name] for name in Completion._fields)) for row in rows]
        return [made[start : start + n] for start in range(0, len(made), n)]

    def score(
        self, prompts: Iterable[Any], responses: Sequence[Any], *, temperature: float | None = None
    ) -> list[list[ResponseScores]]:
        """Logprob and entropy of each token of the responses to each prompt, ``[b][g]``, as training scores.

        Temperature is the run's, or 1.
        """
        samples, groups = self._pairs(prompts, responses)
        config = self._at(temperature=temperature, scoring=True)
        encoded = [encode_sample(sample, self.model.processor, prompt_format(config)) for sample in samples]
        tokens = [
            [ids_of(response, sample, self.model.processor) for response in group]
            for sample, group in zip(samples, groups, strict=True)
        ]
        ids, wanted = [sample.id for sample in samples], frozenset({LOGPROB, ENTROPY})
        scores = score_responses(
            self.params, encoded, tokens, ids, model=self.model, config=config, wanted=wanted
        )
        return [[ResponseScores(row[LOGPROB], row[ENTROPY]) for row in group] for group in scores]

    def token_perception(
        self,
        prompts: Iterable[Any],
        responses: Sequence[Any],
        *,
        temperature: float | None = None,
        seed: int = 0,
    ) -> list[list[TokenPerception]]:
        """Dependence of each token of the responses, ``[b][g]``, on the image: `mmrl.analysis.perceive`.

        ``exact`` of each is KL(image present || image corrupted) over the whole vocabulary, as training
        computes it; the corruption is the run's, or the config's default, drawn by ``seed`` and the prompt's
        place. `mmrl.analysis.plot_tokens` draws it.
        """
        samples, groups = self._pairs(prompts, responses)
        config = self._at(temperature=temperature, scoring=True)
        of_responses = [sample for sample, group in zip(samples, groups, strict=True) for _ in group]
        flat = [response for group in groups for response in group]
        found = iter(perceive(self.params, of_responses, flat, model=self.model, config=config, seed=seed))
        return [[next(found) for _ in group] for group in groups]

    def _at(self, *, scoring: bool = False, **given: Any) -> Config:
        """The config with what is given of ``config.rollout``."""
        if scoring and self.config.episode.tools:
            raise ValueError(
                "this run has tools (config.episode.tools): a response read what is not among its tokens"
            )
        chosen = {name: value for name, value in given.items() if value is not None}
        if scoring and not chosen.get("temperature", 1.0) > 0:
            raise ValueError(f"temperature={chosen['temperature']}: score at one above 0")
        return replace(self.config, rollout=replace(self.config.rollout, **chosen))

    def _pairs(
        self, prompts: Iterable[Any], responses: Sequence[Any]
    ) -> tuple[list[Sample], list[list[str | Sequence[int]]]]:
        """The sample of each prompt, and its responses as texts or token ids."""
        samples = samples_of_prompts(prompts)
        if len(samples) != len(responses):
            raise ValueError(f"{len(samples)} prompts, {len(responses)} lists of responses: give one to each")
        groups = []
        for k, group in enumerate(responses):
            if isinstance(group, str | Completion) or not all(
                isinstance(response, str | Completion | Sequence | np.ndarray) for response in group
            ):
                raise ValueError(f"responses[{k}] is one response: give a list of responses to each prompt")
            if not len(group):
                raise ValueError(f"responses[{k}] is empty: give each prompt a response, or leave it out")
            groups.append([each.tokens if isinstance(each, Completion) else each for each in group])
        return samples, groups


def load(path: str | Path, *, step: int | None = None) -> LoadedModel:
    """Load a model to work with in a notebook: no config is needed.

    Args:
      path: a Hugging Face directory, ORG/NAME[@REVISION] of the hub, or the folder
        of a run, whose config then says how prompts are made.
      step: of a run's checkpoint; None means the newest, 0 the weights reinforcement learning began with.

    Raises ValueError in one line: nothing is there, or it is not what it should be.
    """
    if (Path(path) / "checkpoints").is_dir():
        run = load_run(path)
        return LoadedModel(*load_params(run, step), run.config)
    if step is not None:
        raise ValueError(f"step={step}: {path} is no folder of a run, which alone has steps")
    config = config_without_run()
    model = open_model(config, hub.local(str(path), "model"))
    return LoadedModel(model, model.load(), config)


def samples_of_prompts(prompts: Iterable[Any]) -> list[Sample]:
    """Samples without answers, called by their places. Raises ValueError naming the first wrong prompt."""
    if isinstance(prompts, str | Mapping):
        raise ValueError(
            'prompts should be a list, as in [{"problem": "<image>What is this?", "images": [...]}]'
        )
    samples = []
    for k, prompt in enumerate(prompts):
        name = f"prompt {k}"
        if not isinstance(prompt, Mapping):
            raise ValueError(
                f'{name} is a {type(prompt).__name__}: write {{"problem": TEXT, "images": [...]}}'
            )
        images = prompt.get("images") or []
        images = list(images) if isinstance(images, list | tuple) else [images]
        images = [png(to_rgb(image)) if isinstance(image, Image.Image) else image for image in images]
        row = {"problem": prompt.get("problem"), "images": images}
        columns = {key: key for key in PROMPT}
        samples.append(sample_of(row, columns, Path(), name, "", required=("problem",)))
    return samples
