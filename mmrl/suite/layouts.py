"""The same results in the layouts of VLMEvalKit and lmms-eval, for those who read such files.

Written after their sources, without their code: docs/evaluation.md says what was compared and what was not.
Text of a model is data: every field of a table is quoted, and what neither a table nor UTF-8 can hold (NUL,
half a surrogate pair) becomes U+FFFD.
"""

import csv
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmrl.atomic import atomic_file, atomic_write
from mmrl.suite.figures import NO_CATEGORY

_UNSAFE = re.compile(r"[^\w.-]+")
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")

Row = Mapping[str, Any]


def write_layouts(results: Mapping[str, Any], out: Path, categories: Mapping[str, Mapping[str, str]]) -> None:
    """Write ``out/vlmevalkit`` and ``out/lmms_eval``.

    Args: ``results``, as results.json holds them, with the responses beside it; ``categories`` of questions
    by id, by benchmark.
    """
    for row in results["rows"]:
        name = row["benchmark"]
        with (out / f"{name}.jsonl").open() as lines:
            questions = _grouped(json.loads(line) for line in lines)
        write_vlmevalkit(results, name, questions, categories.get(name, {}), out / "vlmevalkit")
        write_samples(results, name, questions, out / "lmms_eval")
    write_lmms_eval(results, out / "lmms_eval")


def write_vlmevalkit(
    results: Mapping[str, Any],
    benchmark: str,
    questions: Mapping[str, Sequence[Row]],
    categories: Mapping[str, str],
    folder: Path,
) -> None:
    """A prediction table and a table of accuracies for each response, as it has one response a question.

    ``folder/MODEL/T<date>_Gsample<j>/MODEL_BENCHMARK.tsv`` and ``..._acc.csv``; "index" is the row of our
    file, counted from 0, and a question with fewer graded responses than j is left out of the j-th table.
    """
    model = _safe(results["origin"]["name"])
    date = results["started"][:10].replace("-", "")
    most = max(map(len, questions.values()))
    for j in range(most):
        run = folder / model / f"T{date}_Gsample{j + 1}"
        asked = {name: graded[j] for name, graded in questions.items() if len(graded) > j}
        table = [
            {
                "index": _index(name),
                "question": row["problem"],
                "answer": row["answer"],
                **({"category": categories.get(name, NO_CATEGORY)} if categories else {}),
                "prediction": row["response"],
            }
            for name, row in asked.items()
        ]
        _table(run / f"{model}_{benchmark}.tsv", table, "\t")
        hits: dict[str, list[float]] = {"Overall": [row["accuracy"] for row in asked.values()]}
        for one in sorted({categories.get(name, NO_CATEGORY) for name in asked} if categories else ()):
            hits[one] = [
                row["accuracy"] for name, row in asked.items() if categories.get(name, NO_CATEGORY) == one
            ]
        accuracies = {"split": "none", **{name: float(np.mean(of_it)) for name, of_it in hits.items()}}
        _table(run / f"{model}_{benchmark}_acc.csv", [accuracies], ",")


def write_samples(
    results: Mapping[str, Any], benchmark: str, questions: Mapping[str, Sequence[Row]], folder: Path
) -> None:
    """``folder/MODEL/<date>_samples_BENCHMARK.jsonl``: a line a question, with all its responses."""
    lines = []
    for name, graded in questions.items():
        row, responses = graded[0], [_clean(one["response"]) for one in graded]
        accuracy = float(np.mean([one["accuracy"] for one in graded]))
        line = {
            "doc_id": _index(name),
            "target": _clean(row["answer"]),
            "resps": responses,
            "filtered_resps": responses[0],
            "doc_hash": _sha(row["problem"] + row["answer"]),
            "prompt_hash": _sha(row["problem"]),
            "target_hash": _sha(row["answer"]),
            "accuracy": accuracy,
            "score": accuracy,  # by that name its loader of baselines finds it
            "input": _clean(row["problem"]),
        }
        lines.append(json.dumps(line) + "\n")
    atomic_write(_lmms_file(results, folder, f"samples_{benchmark}.jsonl"), "".join(lines))


def write_lmms_eval(results: Mapping[str, Any], folder: Path) -> None:
    """``folder/MODEL/<date>_results.json``: the aggregated figures."""
    rows = {row["benchmark"]: row for row in results["rows"]}
    commit = results["rows"][0]["commit"] or {}
    content = {
        "results": {
            name: {
                "alias": name,
                "accuracy,none": row["accuracy"]["mean"],
                **{f"pass_at_{k},none": chance["mean"] for k, chance in row["pass"].items()},
            }
            for name, row in rows.items()
        },
        "group_subtasks": {results["suite"]["name"]: list(rows)},
        "configs": {
            name: {"task": name, "repeats": row["samples"], "metadata": row["settings"]}
            for name, row in rows.items()
        },
        "versions": dict.fromkeys(rows, 0),
        "n-shot": dict.fromkeys(rows, 0),
        "higher_is_better": {name: {"accuracy": True} for name in rows},
        "n-samples": {
            name: {"original": row["questions"] + row["left_out"], "effective": row["questions"]}
            for name, row in rows.items()
        },
        "config": {"model": "mmrl", "model_args": results["origin"]["name"], "seed": results["seed"]},
        "git_hash": commit.get("hash"),
        "date": _date(results),
        "model_name": results["origin"]["name"],
        "model_name_sanitized": _safe(results["origin"]["name"]),
        "task_hashes": {name: row["hashes"]["data"] for name, row in rows.items()},
    }
    atomic_write(_lmms_file(results, folder, "results.json"), json.dumps(content, indent=2) + "\n")


def _lmms_file(results: Mapping[str, Any], folder: Path, name: str) -> Path:
    path = folder / _safe(results["origin"]["name"]) / f"{_date(results)}_{name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _date(results: Mapping[str, Any]) -> str:
    """When the evaluation was begun, as YYYYMMDD_HHMMSS."""
    return re.sub(r"[-:Z]", "", results["started"]).replace("T", "_")


def _grouped(rows: Any) -> dict[str, list[Row]]:
    out: dict[str, list[Row]] = {}
    for row in rows:
        out.setdefault(row["id"], []).append(row)
    return out


def _index(name: str) -> int:
    """The row in its file, of an id "<source>:<row>"."""
    return int(name.rpartition(":")[2])


def _table(path: Path, rows: Sequence[Row], separator: str) -> None:
    """A table with every field quoted, as pandas reads it back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=separator, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow([_clean(name) for name in rows[0]])
        writer.writerows([_clean(str(value)) for value in row.values()] for row in rows)


def _clean(text: str) -> str:
    return _UNWRITABLE.sub("\ufffd", text)


def _safe(name: str) -> str:
    return _UNSAFE.sub("_", name)


def _sha(text: str) -> str:
    return hashlib.sha256(_clean(text).encode()).hexdigest()
