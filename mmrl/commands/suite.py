"""``mmrl eval``: of data (`mmrl.commands.sampling`), of a suite of benchmarks, or as it was done before."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl.commands import option_types, sampling
from mmrl.terminal import tell

if TYPE_CHECKING:
    from mmrl.suite.run import Origin
    from mmrl.suite.suite import Suite

_FIELDS = ("samples", "temperature", "top_p", "max_tokens")  # options that overrule those of benchmarks


def arguments(sub: argparse.ArgumentParser) -> None:
    """The options of ``mmrl eval`` besides those of weights and sampling."""
    what = sub.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", type=option_types.text, help="a data set, or several with commas between")
    what.add_argument("--suite", metavar="FILE[:ARG]", help="benchmarks (docs/evaluation.md)")
    what.add_argument(
        "--again",
        type=option_types.path,
        metavar="RESULTS",
        help="the suite, weights and seed of a results.json again",
    )
    sub.add_argument(
        "--samples", type=option_types.count, help="responses to each prompt (default: 1, or the suite's)"
    )
    sub.add_argument("--data-root", metavar="DIR", help="where the data of a suite lie (default: .)")
    sub.add_argument(
        "--out",
        type=option_types.path,
        metavar="PATH",
        help="with --data, also write every response with its grades to this JSONL file; of a suite, the "
        "folder of results (default with --workdir: WORKDIR/evaluations/<suite>/step<N>)",
    )


def run(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """``mmrl eval``."""
    if overrides and not options.data:
        raise ValueError(f"{overrides[0]}: a suite says by itself how it is measured; change its benchmarks")
    if options.again:
        _again(options)
        return
    if not (options.model or options.workdir):
        raise ValueError("name the weights: --workdir=RUN, or --model=DIR of a Hugging Face directory")
    if options.suite:
        _suite(options)
        return
    if options.data_root:
        raise ValueError("--data-root says where the data of a --suite lie; --data is a path by itself")
    sampling.evaluate(options, overrides)


def _suite(options: argparse.Namespace) -> None:
    from mmrl.suite.suite import load_suite, overruled

    _measure(overruled(load_suite(options.suite), _given(options)), options)


def _given(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in _FIELDS if getattr(options, name) is not None}


def _again(options: argparse.Namespace) -> None:
    from mmrl.suite.run import changed, read_results
    from mmrl.suite.suite import from_dict, overruled

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
    # What is overruled has another hash, unless it is what it was.
    suite = overruled(from_dict(before["suite"], f"--again={options.again}"), _given(options))
    now = _measure(suite, options, before["rows"])
    other = changed(now, before)
    if other:
        raise ValueError(f"not as in {options.again}: {'; '.join(other)}")
    tell(f"the same figures as in {options.again}")


def _measure(
    suite: "Suite", options: argparse.Namespace, rows: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Run a suite, whose hashes must be those of ``rows`` where there are such; print its table."""
    from mmrl.suite.run import check_same, open_suite, run_suite

    config, model, load = sampling.opened(options)
    data_root = options.data_root or "."
    opened = open_suite(
        suite,
        config,
        model,
        options.workdir,
        data_root=data_root,
        seed=options.seed or 0,
        batch=options.batch or sampling.BATCH,
    )
    step, params = load()
    origin = _origin(options, step)
    out = options.out or _default_out(options, suite, step)
    check_same(rows, opened, params, f"--again={options.again}")
    results = run_suite(suite, opened, params, origin, out, config=config, data_root=data_root)
    tell(table(results))
    tell(f"\nresults   {out / 'results.json'}")
    return results


def _origin(options: argparse.Namespace, step: int | None) -> "Origin":
    from mmrl import hub
    from mmrl.suite.run import Origin

    if options.workdir:
        workdir = options.workdir.absolute()
        return Origin(f"{workdir.name}-step{step}", workdir=str(workdir), step=step)
    return Origin(hub.title(options.model.absolute()), model=str(options.model.absolute()))


def _default_out(options: argparse.Namespace, suite: "Suite", step: int | None) -> Path:
    if not options.workdir:
        raise ValueError("--suite with --model needs a folder for what it writes: --out=DIR")
    return options.workdir / "evaluations" / suite.name / f"step{step}"


def table(results: Mapping[str, Any]) -> str:
    """The figures of a suite, for people."""
    head = ("benchmark", "questions", "avg@k", "95 % interval", "pass@k", "k", "no image", "image gives")
    rows = [head]
    for row in results["rows"]:
        chance = row["pass"][str(row["samples"])]["mean"]
        rows.append(
            (
                row["benchmark"],
                str(row["questions"]),
                *_spread(row["accuracy"]),
                _percent(chance),
                str(row["samples"]),
                *_hidden(row),
            )
        )
    mean = results["overall"]
    rows.append(("mean", "", *_spread(mean["accuracy"]), "", "", *_hidden(mean)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


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
