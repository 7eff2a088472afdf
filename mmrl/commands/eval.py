"""``mmrl eval``: weights measured on data, on a suite of benchmarks, or as they were before."""

import argparse
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl.commands import options as option
from mmrl.commands import weights
from mmrl.commands.options import Command
from mmrl.terminal import table_lines, tell

if TYPE_CHECKING:
    from mmrl.suite.suite import Suite

_FIELDS = ("samples", "temperature", "top_p", "max_tokens")  # options that override those of benchmarks
_ELSEWHERE = {
    "rollout.temperature": "--temperature",
    "rollout.top_p": "--top-p",
    "rollout.group": "--samples",
}


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    weights.add_arguments(sub, required=False)  # --again names them
    what = sub.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", type=option.text, help="a data set, or several with commas between")
    what.add_argument("--suite", metavar="FILE[:ARG]", help="benchmarks (docs/evaluation.md)")
    what.add_argument(
        "--again",
        type=option.path,
        metavar="RESULTS",
        help="the suite, weights and seed of a results.json again",
    )
    sub.add_argument(
        "--samples", type=option.count, help="responses to each prompt (default: 1, or the suite's)"
    )
    sub.add_argument("--data-root", metavar="DIR", help="where the data of a suite lie (default: .)")
    sub.add_argument(
        "--out",
        type=option.path,
        metavar="PATH",
        help="with --data, also write every response with its grades to this JSONL file; of a suite, the "
        "folder of results (default with --workdir: WORKDIR/evaluations/<suite>/step<N>)",
    )


def run(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Measure, and print the figures."""
    if overrides and not options.data:
        raise ValueError(f"{overrides[0]}: a suite says by itself how it is measured; change its benchmarks")
    if options.again:
        _again(options)
        return
    if not (options.model or options.workdir):
        raise ValueError("name the weights: --workdir=RUN, or --model=DIR of a Hugging Face directory")
    if options.suite:
        from mmrl.suite.suite import load_suite, override_fields

        _measure_suite(override_fields(load_suite(options.suite), _given(options)), options, {})
        return
    if options.data_root:
        raise ValueError("--data-root says where the data of a --suite lie; --data is a path by itself")
    _measure_data(options, overrides)


def _measure_data(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """``--data``: the mean of every component as JSON, and the responses to ``--out``."""
    defaults = {"evaluation.samples": 1, "evaluation.prompts": weights.BATCH, "evaluation.limit": 0}
    keys = weights.OPTIONS | {"samples": ("evaluation.samples",), "batch": ("evaluation.prompts",)}
    elsewhere = weights.ELSEWHERE | _ELSEWHERE
    settings = weights.overrides_of(options, overrides, defaults, keys, weights.TRAINING, elsewhere)
    config, model, load = weights.open_weights(options, settings)
    import jax

    from mmrl.atomic import as_json, atomic_file
    from mmrl.open import open_heldout
    from mmrl.train.evaluate import evaluate as measure
    from mmrl.train.rollouts import open_rollouts

    sources = open_heldout(config, options.data, Path(), model, key="data")
    weights.check_out(options.out, "--data", [file for source in sources for file in source.table.files])
    _, params = load()
    total = config.evaluation.samples * sum(
        min(len(source), config.evaluation.limit or len(source)) for source in sources
    )
    with (
        atomic_file(options.out) if options.out else nullcontext() as part,
        jax.set_mesh(model.mesh),
        open_rollouts(config, model, options.workdir) as context,
    ):
        with weights.show_progress(total) as show:
            values, responses = measure(context, params, sources, on_response=show)
        if part:
            part.write_text("".join(as_json(row) + "\n" for row in responses), encoding="utf-8")
    figures = {"rows": sum(map(len, sources)), "samples": config.evaluation.samples, **values}
    tell(as_json(figures, indent=1))


def _given(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in _FIELDS if getattr(options, name) is not None}


def _again(options: argparse.Namespace) -> None:
    from mmrl.suite.run import changed, read_results
    from mmrl.suite.suite import from_dict, override_fields

    before = read_results(options.again)
    origin = before["origin"]
    if options.out is None:
        raise ValueError("--again needs a folder of its own: --out=DIR")
    if not (options.model or options.workdir):
        options.workdir = Path(origin["workdir"]) if origin["workdir"] else None
        options.model = Path(origin["model"]) if origin["model"] else None
    options.step = origin["step"] if options.step is None and options.workdir else options.step
    options.seed = before["seed"]
    options.data_root = options.data_root or before["data_root"]
    # A field that is overridden has another hash, unless it is what it was.
    suite = override_fields(from_dict(before["suite"], f"--again={options.again}"), _given(options))
    other = changed(_measure_suite(suite, options, {f"--again={options.again}": before["rows"]}), before)
    if other:
        raise ValueError(f"not as in {options.again}: {'; '.join(other)}")
    tell(f"the same figures as in {options.again}")


def _measure_suite(
    suite: "Suite", options: argparse.Namespace, expected: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """Run a suite, which must be measured as ``expected`` of `run_suite` was, and print its table."""
    from mmrl import hub
    from mmrl.suite.run import Origin, open_suite, run_suite

    config, model, load = weights.open_weights(options)
    root, workdir = options.data_root or ".", options.workdir
    seed, batch = options.seed or 0, options.batch or weights.BATCH
    opened = open_suite(suite, config, model, workdir, data_root=root, seed=seed, batch=batch)
    step, params = load()
    if workdir:
        path = workdir.absolute()
        origin = Origin(f"{path.name}-step{step}", workdir=str(path), step=step)
        out = options.out or workdir / "evaluations" / suite.name / f"step{step}"
    elif options.out:
        path = options.model.absolute()
        origin, out = Origin(hub.title(path), model=str(path)), options.out
    else:
        raise ValueError("--suite with --model needs a folder for what it writes: --out=DIR")
    results = run_suite(suite, opened, params, origin, out, config=config, data_root=root, expected=expected)
    tell(table(results))
    tell(f"\nresults   {out / 'results.json'}")
    return results


def table(results: Mapping[str, Any]) -> str:
    """The figures of a suite as a table of text."""
    rows = [("benchmark", "questions", "avg@k", "95 % interval", "pass@k", "k", "no image", "image gives")]
    for row in results["rows"]:
        samples = str(row["samples"])
        chance = _percent(row["pass"][samples]["mean"])
        cells = (row["benchmark"], str(row["questions"]), *_spread(row["accuracy"]), chance, samples)
        rows.append((*cells, *_hidden(row)))
    mean = results["overall"]
    rows.append(("mean", "", *_spread(mean["accuracy"]), "", "", *_hidden(mean)))
    return "\n".join(table_lines(rows, numbers=True))


def _hidden(row: Mapping[str, Any]) -> tuple[str, str]:
    if "masked" not in row:
        return "", ""
    gain = row["masked"]["difference"]
    return _percent(row["masked"]["accuracy"]["mean"]), " ".join(_spread(gain, "+"))


def _spread(interval: Mapping[str, float | None], sign: str = "") -> tuple[str, str]:
    low, high = (_percent(interval[end], sign) for end in ("low", "high"))
    return _percent(interval["mean"], sign), f"[{low}, {high}]"


def _percent(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{100 * value:{sign}.1f}"


_EXAMPLES = """\
examples:
  mmrl eval --workdir=runs/quickstart --data=heldout.parquet --samples=8
  mmrl eval --model=DIR --data=FILE.parquet --max-tokens=2048 --out=responses.jsonl
  mmrl eval --suite=experiments/suites/papers.py:smoke --workdir=runs/quickstart

Prints the mean of every reward component as JSON. With --workdir, the run's config says how, with --model the
defaults do; --config.KEY=VALUE overrules either. A suite is several benchmarks, and says how by itself
(docs/evaluation.md)."""
EVAL = Command(
    "eval",
    "Measure a model or a run on data, or on a suite.",
    _EXAMPLES,
    add_arguments,
    run,
    takes_config=True,
)
