"""Identity of a measurement, as hashes: two rows with equal ones were measured alike."""

import dataclasses
import hashlib
from collections.abc import Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import mmrl.rewards
from mmrl.config import Config
from mmrl.data.sources import Source, fingerprint
from mmrl.models.processor import Processor
from mmrl.models.prompts import budget, messages, rendered
from mmrl.rewards.judge import JUDGED
from mmrl.suite.suite import Benchmark
from mmrl.train.checkpoint import checksums, digest
from mmrl.types import Params

# Each is a hash of `settings` under that name, but for the last, which is of the arrays.
COMPARED = ("prompt", "extractor", "grader", "data", "sampling", "weights")


def settings(
    benchmark: Benchmark, config: Config, processor: Processor, source: Source, verifiers: Collection[str]
) -> dict[str, dict[str, Any]]:
    """All that decides a benchmark's numbers besides the weights, as JSON, by what it is about.

    "prompt" has the chat template as it renders a problem; "grader" the code of all verifiers; "data" the
    fingerprint of the file. Neither says where anything lies or how work is cut up.
    """
    pixels = {"min_pixels": processor.image.min_pixels, "max_pixels": processor.image.max_pixels}
    conversation = messages("<image>{problem}", benchmark.system or None, benchmark.suffix)
    budgets = {
        "prompt_tokens": budget(config.data.prompt_buckets),
        "patches": budget(config.data.patch_buckets),
    }
    judged = any(name in JUDGED for name in verifiers)
    judge = config.reward.judge
    tools = dataclasses.asdict(config.episode) if config.episode.tools else {}
    tools.pop("workers", None)
    return {
        "prompt": {"rendered": rendered(processor, conversation), **pixels, **budgets},
        "extractor": {"verifier": benchmark.verifier, "options": benchmark.options},
        "grader": {
            "verifiers": sorted(verifiers),
            "code": code_of(Path(mmrl.rewards.__file__).parent),
            **{name: metadata.version(name) for name in ("math-verify", "rapidfuzz", "jsonschema")},
            "own": {name: _file_hash(name.rpartition(":")[0]) for name in sorted(verifiers) if ":" in name},
            **({"judge": [judge.model, judge.max_tokens]} if judged else {}),
        },
        "data": {"sha256": fingerprint(source), "limit": benchmark.limit},
        "sampling": {
            "samples": benchmark.samples,
            "temperature": benchmark.temperature,
            "top_p": benchmark.top_p,
            "max_tokens": benchmark.max_tokens,
            "seed": config.seed,
            "masked": benchmark.masked,
            "dtype": config.model.dtype,
            "tools": tools,
        },
    }


def hashes(found: Mapping[str, Any], weights: str) -> dict[str, str]:
    """The hash of each of `settings`, and that of the weights."""
    return {**{name: digest(content) for name, content in found.items()}, "weights": weights}


def differing(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """Settings, by name, in which the hashes of two rows differ."""
    return [name for name in COMPARED if here.get(name) != there.get(name)]


def weights_hash(params: Params) -> str:
    """Hash of all weights as they are in memory: the same for a checkpoint and its float32 export."""
    return digest(checksums(params))


def code_of(package: Path) -> str:
    """SHA-256 of the source of a package."""
    found = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        found.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()


def _file_hash(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
