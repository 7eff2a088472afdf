"""Running a suite: everything is opened and checked, then benchmark by benchmark is sampled and kept."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from mmrl.atomic import atomic_write, read_jsonl, write_jsonl
from mmrl.config import Config
from mmrl.data.sources import Source
from mmrl.grading import reward_specs
from mmrl.hosts import say
from mmrl.open import OpenModel, open_processor, open_source
from mmrl.suite import identity
from mmrl.suite.figures import figures, overall
from mmrl.suite.layouts import write_layouts
from mmrl.suite.suite import Benchmark, Suite, config_for, data_path, masking
from mmrl.train.checksums import digest
from mmrl.train.environment import environment
from mmrl.train.evaluate import evaluate, wrong_response
from mmrl.train.rollouts import open_rollouts
from mmrl.types import Params

Rows = Sequence[Mapping[str, Any]]

_TELL_S = 10.0  # between two lines about a benchmark that goes on


@dataclass(frozen=True)
class Origin:
    """Where the weights are from, as `mmrl eval` names it: a run and its step, or a directory."""

    name: str  # of the model, in tables and files
    workdir: str = ""
    step: int | None = None
    model: str = ""


@dataclass(frozen=True)
class Opened:
    """A benchmark whose data are there and can be asked and graded."""

    benchmark: Benchmark
    config: Config
    model: OpenModel
    source: Source
    left_out: int  # rows that cannot be used
    categories: Mapping[str, str]  # of its questions, by id
    settings: dict[str, dict[str, Any]]  # `identity.settings`


def open_suite(
    suite: Suite,
    base: Config,
    model: OpenModel,
    workdir: Path | None,
    *,
    data_root: str,
    seed: int,
    batch: int,
) -> list[Opened]:
    """Open the data of all benchmarks and look through them; no weights are needed.

    Raises ValueError naming every benchmark that cannot be measured, and why.
    """
    found, wrong = [], []
    for benchmark in suite.benchmarks:
        config = config_for(benchmark, base, seed=seed, batch=batch)
        try:
            found.append(_opened(benchmark, config, model, workdir, data_root))
        except ValueError as error:
            wrong.append(f"benchmark {benchmark.name}: {error}")
    if wrong:
        raise ValueError("\n".join(wrong))
    return found


def run_suite(
    suite: Suite,
    opened: Sequence[Opened],
    params: Params,
    origin: Origin,
    out: Path,
    *,
    config: Config,
    data_root: str,
) -> dict[str, Any]:
    """Measure all benchmarks that ``out`` does not hold yet, and write what docs/evaluation.md lists there.

    Args:
      suite, opened: of `open_suite`.
      params: the weights, as the models of ``opened`` lay them out.
      origin: where these are from.
      out: a folder, made if need be.
      config: the run's, whose hash is recorded.
      data_root: recorded, for the same evaluation again.

    Returns:
      What ``results.json`` holds.

    Raises ValueError if ``out`` holds results that were measured otherwise, before anything is computed.
    """
    hashes = _hashes(opened, params)
    before = read_results(out) if (out / "results.json").is_file() else {}
    _check_same(before.get("rows", ()), hashes, str(out))
    kept = {row["benchmark"]: row for row in before.get("rows", ()) if _complete(row, out)}
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
    _made(out)
    for number, one in enumerate(opened, 1):
        name = one.benchmark.name
        say(f"{name}: kept from before" if name in kept else f"{name} ({number} of {len(opened)})")
        row = kept.get(name) or {
            "benchmark": name,
            **_measured(one, params, Path(origin.workdir) if origin.workdir else None, out),
            "hashes": hashes[name],
            "settings": one.settings,
            **made,
        }
        results["rows"].append(row)
        if number == len(opened):
            results["overall"] = _overall(opened, out)
        # A benchmark that follows was perhaps done before: its row must not be lost meanwhile.
        rest = [kept[later.benchmark.name] for later in opened[number:] if later.benchmark.name in kept]
        _write(out / "results.json", {**results, "rows": [*results["rows"], *rest]})
    write_layouts(results, out, {one.benchmark.name: one.categories for one in opened})
    return results


def read_results(out: Path) -> dict[str, Any]:
    """What ``results.json`` in a folder holds, or that file itself. Raises ValueError."""
    path = out / "results.json" if out.is_dir() else out
    try:
        found = json.loads(path.read_bytes())
        rows = found["rows"]
        kinds = {"suite": dict, "origin": dict, "rows": list, "seed": int, "data_root": str}
        if all(isinstance(found[key], kind) for key, kind in kinds.items()) and all(
            isinstance(row["benchmark"], str) and isinstance(row["hashes"], dict) for row in rows
        ):
            return found
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist: name the results.json of an evaluation") from error
    except (ValueError, TypeError, KeyError, RecursionError, OSError):
        pass
    raise ValueError(f"{path} is not what mmrl eval --suite writes; delete it, or name another file")


def changed(results: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """In which benchmarks, and what of them, two results differ, besides where and when they were made."""
    apart = ("commit", "config", "seconds")
    rows = {row["benchmark"]: row for row in before["rows"]}
    return [
        f"{row['benchmark']}: {key}"
        for row in results["rows"]
        for key in row
        if key not in apart and row[key] != rows.get(row["benchmark"], {}).get(key)
    ]


def _opened(
    benchmark: Benchmark, config: Config, model: OpenModel, workdir: Path | None, data_root: str
) -> Opened:
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
    categories, verifiers = _looked_at(benchmark, config, source)
    settings = identity.settings(benchmark, config, model.processor, source, verifiers)
    return Opened(benchmark, config, model, source, left_out, categories, settings)


def _looked_at(benchmark: Benchmark, config: Config, source: Source) -> tuple[dict[str, str], set[str]]:
    """The category of each question, by id, and the verifiers that grade."""
    specs = reward_specs(config)
    categories: dict[str, str] = {}
    verifiers: set[str] = set()
    facts: set[str] = set()
    for index in range(len(source)):
        sample = source[index]
        found = specs(sample)
        if "accuracy" not in found.weights:
            raise ValueError(f'{sample.id}: facts["weights"] has no accuracy, which is what is measured')
        verifiers |= {name.strip() for name in found.verifiers(sample.verifier).split("+")}
        facts |= sample.facts.keys()
        value = {"verifier": sample.verifier, "difficulty": sample.difficulty, **sample.facts}.get(
            benchmark.category
        )
        if benchmark.category and value is not None:
            categories[sample.id] = value if isinstance(value, str) else json.dumps(value)
    if benchmark.category and not categories:
        there = ", ".join(sorted(facts)) or "none"
        raise ValueError(
            f"no row has the fact {benchmark.category!r} to tell categories by; facts are: {there}"
        )
    return categories, verifiers


def _measured(one: Opened, params: Params, workdir: Path | None, out: Path) -> dict[str, Any]:
    """Sample and grade a benchmark, write its responses, and give its figures."""
    start = time.perf_counter()
    passes = {"": None, **({"masked": masking(one.benchmark)} if one.benchmark.masked else {})}
    told = {}
    with jax.set_mesh(one.model.mesh), open_rollouts(one.config, one.model, workdir) as context:
        for name, corruption in passes.items():
            told[name] = evaluate(
                context,
                params,
                [one.source],
                masked=corruption,
                on_batch=_progress(name, len(one.source), one.benchmark.samples),
            )
            if not told[name][1]:
                raise ValueError(f"benchmark {one.benchmark.name}: no response could be graded")
            write_jsonl(out / _file(one.benchmark.name, name), told[name][1])
    values, rows = told[""]
    masked = told["masked"][1] if "masked" in told else None
    return {
        **figures(values, rows, one.benchmark.samples, one.categories, masked),
        "samples": one.benchmark.samples,
        "left_out": one.left_out,
        "seconds": round(time.perf_counter() - start, 1),
    }


def _overall(opened: Sequence[Opened], out: Path) -> dict[str, Any]:
    names = [one.benchmark.name for one in opened]
    hidden = [one.benchmark.name for one in opened if one.benchmark.masked]
    return overall(
        [read_rows(out / _file(name, "")) for name in names],
        [read_rows(out / _file(name, "masked")) for name in hidden],
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The responses of a benchmark. Raises ValueError for a damaged line: figures are of all or of none."""
    rows, damaged = read_jsonl(path, wrong_response)
    if damaged:
        raise ValueError(f"{damaged[0]}; delete the file, and the same mmrl eval measures anew")
    return rows


def _file(name: str, part: str) -> str:
    return f"{name}.{part}.jsonl" if part else f"{name}.jsonl"


def _complete(row: Mapping[str, Any], out: Path) -> bool:
    parts = ("", "masked") if "masked" in row else ("",)
    return all((out / _file(row["benchmark"], part)).is_file() for part in parts)


def check_same(rows: Rows, opened: Sequence[Opened], params: Params, what: str) -> None:
    """Raises ValueError if ``rows`` of ``what``, another's results, were measured otherwise."""
    _check_same(rows, _hashes(opened, params), what)


def _check_same(rows: Rows, hashes: Mapping[str, Mapping[str, str]], what: str) -> None:
    for row in rows:
        name = row["benchmark"]
        if name not in hashes:
            raise ValueError(
                f"{what} holds results of {name!r}, which this suite has not; name another --out"
            )
        other = identity.differing(hashes[name], row["hashes"])
        if other:
            raise ValueError(
                f"{what} holds results of {name!r} with another {' and another '.join(other)}; make these "
                "what they were, or name another --out"
            )


def _hashes(opened: Sequence[Opened], params: Params) -> dict[str, dict[str, str]]:
    weights = identity.weights_hash(params)
    return {one.benchmark.name: identity.hashes(one.settings, weights) for one in opened}


def _made(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out={out} cannot be made: {error}") from error


def _write(path: Path, results: Mapping[str, Any]) -> None:
    atomic_write(path, json.dumps(results, indent=1, allow_nan=False) + "\n")


def _progress(part: str, questions: int, samples: int) -> Callable[[int], None]:
    """Says now and then how far a pass is."""
    start = last = time.monotonic()
    label = "without images" if part else "sampled"

    def tell(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done < questions and now - last > _TELL_S:
            last = now
            left = (now - start) / done * (questions - done)
            say(f"  {label} {done} of {questions} questions, {samples} responses each; {left:.0f} s left")

    return tell
