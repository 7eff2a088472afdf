"""Suites: benchmarks, each with its data, its prompts, its grader and its sampling.

A suite file defines ``get_suite(arg)``, which returns a `Suite`. A suite says all that its numbers depend on
besides the weights, so that two models, or two runs with different configs, are measured alike.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

from mmrl.config import Config, CorruptionConfig, EvaluationConfig, RewardConfig
from mmrl.experiment import call
from mmrl.models.corruption import METHODS
from mmrl.rewards.reward import reward_of
from mmrl.rollout.sampling import Sampling
from mmrl.suggest import suggest
from mmrl.typed import dataclass_from_dict

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_TAKEN = ("results", "vlmevalkit", "lmms_eval")  # names of what stands beside the benchmarks' files


@dataclass(frozen=True)
class Benchmark:
    """One data set, and how it is asked and graded."""

    name: str  # of its files and of its row
    data: str  # in the schema; relative to --data-root, and "{workdir}" stands for the run's folder
    system: str = ""  # system message; "" leaves the chat template's own
    suffix: str = ""  # appended to every problem: the format prompt
    min_pixels: int = 0  # of an image after resizing; 0 leaves the model's own value
    max_pixels: int = 0
    verifier: str = ""  # overrules the verifier that rows name
    options: dict[str, Any] = field(default_factory=dict)  # facts for rows without them, e.g. "answer_in"
    samples: int = 8  # responses to each question
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 2048  # of a response
    category: str = ""  # a fact, or "verifier" or "difficulty", by whose values accuracy is also given
    masked: str = "blank"  # how images are hidden when all is asked again without them; "" does not ask again
    limit: int = 0  # questions that are asked, the first ones; 0 means all


@dataclass(frozen=True)
class Suite:
    """Benchmarks that are measured together."""

    name: str
    benchmarks: tuple[Benchmark, ...]


def load_suite(text: str) -> Suite:
    """The suite that ``get_suite(ARG)`` of FILE[:ARG] returns, checked. Raises ValueError."""
    what = f"--suite={text}"
    suite = call(text, "get_suite", what)
    if not isinstance(suite, Suite):
        raise ValueError(f"{what}: get_suite returned a {type(suite).__name__}, not a mmrl.suite.Suite")
    return from_dict(dataclasses.asdict(suite), what)


def from_dict(values: Mapping[str, Any], what: str) -> Suite:
    """A checked suite of ``dataclasses.asdict`` of one, perhaps read back from JSON.

    Raises ValueError, which begins with ``what``, for a wrong type, an unknown name or two benchmarks of one
    name.
    """
    try:
        benchmarks = tuple(
            dataclass_from_dict(Benchmark, one, f"benchmarks[{k}]")
            for k, one in enumerate(values["benchmarks"])
        )
        suite = Suite(str(values["name"]), benchmarks)
        _check(suite)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{what}: not a suite ({error!r})") from error
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    return suite


def override_fields(suite: Suite, given: Mapping[str, Any]) -> Suite:
    """The suite with some fields of all benchmarks replaced, as by options of the command line; checked."""
    changed = replace(suite, benchmarks=tuple(replace(benchmark, **given) for benchmark in suite.benchmarks))
    _check(changed)
    return changed


def config_for(benchmark: Benchmark, base: Config, *, seed: int, batch: int) -> Config:
    """The config that evaluates a benchmark.

    Of ``base`` (the run's) remain the model's precision, budgets of tokens and patches, tools, and the means
    of grading. The reward is the accuracy. An image that does not fit the budget is made smaller, as every
    question counts.
    """
    reward = RewardConfig(
        weights={"accuracy": 1.0},
        verifier=benchmark.verifier,
        options=benchmark.options,
        workers=base.reward.workers,
        deadline_seconds=base.reward.deadline_seconds,
        judge=base.reward.judge,
    )
    data = replace(
        base.data,
        system=benchmark.system,
        suffix=benchmark.suffix,
        min_pixels=benchmark.min_pixels,
        max_pixels=benchmark.max_pixels,
        image_root="",  # the run's config does not say where the images of other data lie
        overlong="resize",
    )
    evaluation = EvaluationConfig(
        prompts=batch,
        limit=benchmark.limit,
        samples=benchmark.samples,
        temperature=benchmark.temperature,
        top_p=benchmark.top_p,
    )
    rollout = replace(base.rollout, max_tokens=benchmark.max_tokens)
    return replace(base, seed=seed, data=data, rollout=rollout, reward=reward, evaluation=evaluation)


def masking(benchmark: Benchmark) -> CorruptionConfig | None:
    """Corruption of the second pass, which hides images wholly; None where there is none."""
    return CorruptionConfig(benchmark.masked, 1.0) if benchmark.masked else None


def data_path(benchmark: Benchmark, data_root: str) -> str:
    """The data set as `mmrl.data.sources.read` takes it, "{workdir}" not filled in yet."""
    data = benchmark.data
    if data.startswith(("tfds:", "hf:", "{workdir}")) or PurePath(data).is_absolute():
        return data
    return str(PurePath(data_root) / data)


def _check(suite: Suite) -> None:
    if not _NAME.fullmatch(suite.name):
        raise ValueError(f"the suite's name {suite.name!r} should be of letters, digits, '_', '-' and '.'")
    if not suite.benchmarks:
        raise ValueError(f"the suite {suite.name!r} has no benchmark")
    names = [benchmark.name for benchmark in suite.benchmarks]
    for one in suite.benchmarks:
        # A name beside another's "NAME.masked.jsonl" or "results.json" would share its file.
        if not _NAME.fullmatch(one.name) or one.name in _TAKEN or one.name.endswith(".masked"):
            raise ValueError(
                f"a benchmark's name {one.name!r} should be of letters, digits, '_', '-' and '.', not end in "
                f"'.masked', and be none of {', '.join(_TAKEN)}"
            )
        if names.count(one.name) > 1:
            raise ValueError(f"two benchmarks are called {one.name!r}; files are named by that")
        try:
            _check_benchmark(one)
        except ValueError as error:
            raise ValueError(f"benchmark {one.name}: {error}") from error


def _check_benchmark(one: Benchmark) -> None:
    if not one.data:
        raise ValueError("data is empty: name a data set")
    if one.masked and one.masked not in METHODS:
        raise ValueError(f"masked={one.masked!r} is unknown{suggest(one.masked, METHODS)}")
    for name, value, least in (
        ("samples", one.samples, 1),
        ("limit", one.limit, 0),
        ("min_pixels", one.min_pixels, 0),
        ("max_pixels", one.max_pixels, 0),
    ):
        if value < least:
            raise ValueError(f"{name}={value} should be {least} or more")
    try:
        Sampling(max_tokens=one.max_tokens, temperature=one.temperature, top_p=one.top_p)
        reward_of({"weights": {"accuracy": 1.0}, "verifier": one.verifier, "options": one.options})
    except ValueError as error:
        raise ValueError(str(error).replace("rollout.", "").replace("config.reward.", "")) from error
