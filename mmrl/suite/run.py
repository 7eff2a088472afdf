"""Running a suite: everything is opened and checked, then benchmark by benchmark is sampled and kept.

A row has hashes of all that its figures depend on: two rows with equal ones were measured alike.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import mmrl.rewards
from mmrl.atomic import atomic_write, read_jsonl, write_jsonl
from mmrl.config import Config
from mmrl.data.sources import Source, fingerprint
from mmrl.grading import rewards_of
from mmrl.hosts import say
from mmrl.models.processor import Processor
from mmrl.models.prompts import chat_messages, largest_bucket, rendered
from mmrl.open import OpenModel, open_processor, open_source
from mmrl.rewards.judge import JUDGED
from mmrl.suite.figures import figures, overall
from mmrl.suite.layouts import write_layouts
from mmrl.suite.suite import Benchmark, Suite, config_for, data_path, masking
from mmrl.train.checkpoint import checksums, digest
from mmrl.train.environment import environment
from mmrl.train.evaluate import evaluate, wrong_response
from mmrl.train.rollouts import open_rollouts
from mmrl.types import Params

ResultRows = Sequence[Mapping[str, Any]]  # "rows" of results.json, one a benchmark

# Each is a hash of `settings_of` under that name, but for the last, which is of the arrays.
COMPARED = ("prompt", "extractor", "grader", "data", "sampling", "weights")
_SHOW_S = 10.0  # between two lines about a benchmark that goes on


@dataclass(frozen=True)
class Origin:
    """Origin of the weights, as `mmrl eval` names it: a run and its step, or a directory."""

    name: str  # of the model, in tables and files
    workdir: str = ""
    step: int | None = None
    model: str = ""


@dataclass(frozen=True)
class OpenBenchmark:
    """A benchmark whose data are there and can be asked and graded."""

    benchmark: Benchmark
    config: Config
    model: OpenModel
    source: Source
    left_out: int  # rows that cannot be used
    categories: Mapping[str, str]  # of its questions, by id
    settings: dict[str, dict[str, Any]]  # `settings_of`

    @property
    def name(self) -> str:
        return self.benchmark.name


def open_suite(
    suite: Suite,
    base: Config,
    model: OpenModel,
    workdir: Path | None,
    *,
    data_root: str,
    seed: int,
    batch: int,
) -> list[OpenBenchmark]:
    """Open the data of all benchmarks and look through them; no weights are needed.

    Raises ValueError naming every benchmark that cannot be measured, and why.
    """
    found, wrong = [], []
    for benchmark in suite.benchmarks:
        config = config_for(benchmark, base, seed=seed, batch=batch)
        try:
            found.append(_open(benchmark, config, model, workdir, data_root))
        except ValueError as error:
            wrong.append(f"benchmark {benchmark.name}: {error}")
    if wrong:
        raise ValueError("\n".join(wrong))
    return found


def run_suite(
    suite: Suite,
    opened: Sequence[OpenBenchmark],
    params: Params,
    origin: Origin,
    out: Path,
    *,
    config: Config,
    data_root: str,
    expected: Mapping[str, ResultRows],
) -> dict[str, Any]:
    """Measure all benchmarks that ``out`` does not hold yet, and write what docs/evaluation.md lists there.

    Args:
      suite, opened: of `open_suite`.
      params: the weights, as the models of ``opened`` lay them out.
      origin: where these are from.
      out: a folder, made if need be.
      config: the run's, whose hash is recorded.
      data_root: recorded, for the same evaluation again.
      expected: rows that must have been measured alike, by the name of where they are.

    Returns:
      The content of ``results.json``.

    Raises ValueError if ``expected`` or ``out`` hold results that were measured otherwise, before anything is
    computed.
    """
    weights = weights_hash(params)
    hashes = {each.name: hashes_of(each.settings, weights) for each in opened}
    before = read_results(out) if (out / "results.json").is_file() else {}
    for where, rows in {**expected, str(out): before.get("rows", ())}.items():
        _check_same(rows, hashes, where)
    kept = {row["benchmark"]: row for row in before.get("rows", ()) if _is_complete(row, out)}
    made = {"commit": environment()["commit"], "config": digest(dataclasses.asdict(config))}
    results: dict[str, Any] = {
        "suite": dataclasses.asdict(suite),
        "origin": dataclasses.asdict(origin),
        "data_root": str(Path(data_root).absolute()),
        "seed": opened[0].config.seed,
        "started": before.get("started") or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "rows": [],
        "overall": None,
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out={out} cannot be made: {error}") from error
    for number, one in enumerate(opened, 1):
        say(
            f"{one.name}: kept from before" if one.name in kept else f"{one.name} ({number} of {len(opened)})"
        )
        row = kept.get(one.name) or {
            "benchmark": one.name,
            **_measure(one, params, Path(origin.workdir) if origin.workdir else None, out),
            "hashes": hashes[one.name],
            "settings": one.settings,
            **made,
        }
        results["rows"].append(row)
        if number == len(opened):
            masked = [_file(out, each.name, "masked") for each in opened if each.benchmark.masked]
            every = [_file(out, each.name) for each in opened]
            results["overall"] = overall([*map(read_rows, every)], [*map(read_rows, masked)])
        # A benchmark that follows was perhaps done before: its row must not be lost meanwhile.
        rest = [kept[later.name] for later in opened[number:] if later.name in kept]
        content = {**results, "rows": [*results["rows"], *rest]}
        atomic_write(out / "results.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    write_layouts(results, out, {each.name: each.categories for each in opened})
    return results


def read_results(out: Path) -> dict[str, Any]:
    """Content of ``results.json`` in a folder, or of that file itself. Raises ValueError."""
    path = out / "results.json" if out.is_dir() else out
    try:
        found = json.loads(path.read_bytes())
        kinds = {"suite": dict, "origin": dict, "rows": list, "seed": int, "data_root": str}
        if all(isinstance(found[key], kind) for key, kind in kinds.items()) and all(
            isinstance(row["benchmark"], str) and isinstance(row["hashes"], dict) for row in found["rows"]
        ):
            return found
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist: name the results.json of an evaluation") from error
    except (ValueError, TypeError, KeyError, RecursionError, OSError):
        pass
    raise ValueError(f"{path} is not what mmrl eval --suite writes; delete it, or name another file")


def changed(results: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """Benchmarks and their keys in which two results differ, besides where and when they were made."""
    apart = ("commit", "config", "seconds")
    rows = {row["benchmark"]: row for row in before["rows"]}
    return [
        f"{row['benchmark']}: {key}"
        for row in results["rows"]
        for key in row
        if key not in apart and row[key] != rows.get(row["benchmark"], {}).get(key)
    ]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The responses of a benchmark. Raises ValueError for a damaged line: figures are of all or of none."""
    rows, damaged = read_jsonl(path, wrong_response)
    if damaged:
        raise ValueError(f"{damaged[0]}; delete the file, and the same mmrl eval measures anew")
    return rows


def settings_of(
    benchmark: Benchmark, config: Config, processor: Processor, source: Source, verifiers: Collection[str]
) -> dict[str, dict[str, Any]]:
    """All that decides a benchmark's numbers besides the weights, as JSON, by what it is about.

    "prompt" has the chat template as it renders a problem; "grader" the code of all verifiers; "data" the
    fingerprint of the file. Neither says where anything lies or how work is cut up.
    """
    pixels = {"min_pixels": processor.image.min_pixels, "max_pixels": processor.image.max_pixels}
    conversation = chat_messages("<image>{problem}", benchmark.system or None, benchmark.suffix)
    budgets = {
        "prompt_tokens": largest_bucket(config.data.prompt_buckets),
        "patches": largest_bucket(config.data.patch_buckets),
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


def hashes_of(found: Mapping[str, Any], weights: str) -> dict[str, str]:
    """The hash of each of `settings_of`, and that of the weights."""
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


def _open(
    benchmark: Benchmark, config: Config, model: OpenModel, workdir: Path | None, data_root: str
) -> OpenBenchmark:
    path = data_path(benchmark, data_root)
    if "{workdir}" in path and workdir is None:
        raise ValueError(f"its data, {path}, lie in a run's folder: name one with --workdir")
    if benchmark.masked and config.episode.tools:
        raise ValueError(
            "the run's tools (config.episode.tools) show the images as they are, so they cannot be hidden: "
            'set masked=""'
        )
    model = replace(model, processor=open_processor(config, model.directory))
    source = open_source(config, path, workdir or Path(), model, key="data")
    left_out = source.table.length - len(source)
    if benchmark.limit:
        source = source.choose(range(min(len(source), benchmark.limit)))
    categories, verifiers = _categories_and_verifiers(benchmark, config, source)
    settings = settings_of(benchmark, config, model.processor, source, verifiers)
    return OpenBenchmark(benchmark, config, model, source, left_out, categories, settings)


def _categories_and_verifiers(
    benchmark: Benchmark, config: Config, source: Source
) -> tuple[dict[str, str], set[str]]:
    """The category of each question, by id, and the verifiers that grade."""
    rewards, wanted = rewards_of(config), benchmark.category
    categories: dict[str, str] = {}
    verifiers: set[str] = set()
    facts: set[str] = set()
    for index in range(len(source)):
        sample = source[index]
        reward = rewards(sample)
        if "accuracy" not in reward.weights:
            raise ValueError(f'{sample.id}: facts["weights"] has no accuracy, which is what is measured')
        verifiers |= {name.strip() for name in reward.verifiers(sample.verifier).split("+")}
        facts |= sample.facts.keys()
        values = {"verifier": sample.verifier, "difficulty": sample.difficulty, **sample.facts}
        if wanted and (value := values.get(wanted)) is not None:
            categories[sample.id] = value if isinstance(value, str) else json.dumps(value)
    if wanted and not categories:
        known = ", ".join(sorted(facts)) or "none"
        raise ValueError(f"no row has the fact {wanted!r} to tell categories by; facts are: {known}")
    return categories, verifiers


def _measure(one: OpenBenchmark, params: Params, workdir: Path | None, out: Path) -> dict[str, Any]:
    """Sample and grade a benchmark, write its responses, and give its figures."""
    start, samples = time.perf_counter(), one.benchmark.samples
    passes = {"": None, **({"masked": masking(one.benchmark)} if one.benchmark.masked else {})}
    found = {}
    with jax.set_mesh(one.model.mesh), open_rollouts(one.config, one.model, workdir) as context:
        for part, corruption in passes.items():
            show = _show_progress(part, len(one.source), samples)
            found[part] = evaluate(context, params, [one.source], masked=corruption, on_batch=show)
            if not found[part][1]:
                raise ValueError(f"benchmark {one.name}: no response could be graded")
            write_jsonl(_file(out, one.name, part), found[part][1])
    values, rows = found[""]
    return {
        **figures(values, rows, samples, one.categories, found["masked"][1] if "masked" in found else None),
        "samples": samples,
        "left_out": one.left_out,
        "seconds": round(time.perf_counter() - start, 1),
    }


def _file(out: Path, name: str, part: str = "") -> Path:
    return out / (f"{name}.{part}.jsonl" if part else f"{name}.jsonl")


def _is_complete(row: Mapping[str, Any], out: Path) -> bool:
    parts = ("", "masked") if "masked" in row else ("",)
    return all(_file(out, row["benchmark"], part).is_file() for part in parts)


def _check_same(rows: ResultRows, hashes: Mapping[str, Mapping[str, str]], where: str) -> None:
    """Raises ValueError if ``rows``, results at ``where``, were measured otherwise than ``hashes`` say."""
    for row in rows:
        name = row["benchmark"]
        if name not in hashes:
            raise ValueError(
                f"{where} holds results of {name!r}, which this suite has not; name another --out"
            )
        other = differing(hashes[name], row["hashes"])
        if other:
            raise ValueError(
                f"{where} holds results of {name!r} with another {' and another '.join(other)}; make these "
                "what they were, or name another --out"
            )


def _show_progress(part: str, questions: int, samples: int) -> Callable[[int], None]:
    """Prints now and then how far a pass is."""
    start = last = time.monotonic()
    label = "without images" if part else "sampled"

    def show(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done < questions and now - last > _SHOW_S:
            last = now
            left = (now - start) / done * (questions - done)
            say(f"  {label} {done} of {questions} questions, {samples} responses each; {left:.0f} s left")

    return show
