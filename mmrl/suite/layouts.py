"""Results in the layouts of VLMEvalKit and lmms-eval, for tools that read such files.

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

from mmrl.analysis.runs import Row, by_question
from mmrl.atomic import atomic_file, atomic_write
from mmrl.suite.figures import NO_CATEGORY

_UNSAFE = re.compile(r"[^\w.-]+")
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")


def write_layouts(results: Mapping[str, Any], out: Path, categories: Mapping[str, Mapping[str, str]]) -> None:
    """Write ``out/vlmevalkit`` and ``out/lmms_eval``.

    Args: ``results``, as results.json holds them, with the responses beside it; ``categories`` of questions
    by id, by benchmark.
    """
    model = _UNSAFE.sub("_", results["origin"]["name"])
    # When the evaluation was begun, as YYYYMMDD_HHMMSS.
    date = re.sub(r"[-:Z]", "", results["started"]).replace("T", "_")
    lmms_eval = out / "lmms_eval" / model
    lmms_eval.mkdir(parents=True, exist_ok=True)
    for row in results["rows"]:
        name = row["benchmark"]
        with (out / f"{name}.jsonl").open() as lines:
            questions = by_question(json.loads(line) for line in lines)
        _write_vlmevalkit(out / "vlmevalkit" / model, date[:8], name, questions, categories.get(name, {}))
        samples = "".join(json.dumps(_sample(key, graded)) + "\n" for key, graded in questions.items())
        atomic_write(lmms_eval / f"{date}_samples_{name}.jsonl", samples)
    content = json.dumps(_lmms_results(results, model, date), indent=2) + "\n"
    atomic_write(lmms_eval / f"{date}_results.json", content)


def _write_vlmevalkit(
    folder: Path,
    date: str,
    benchmark: str,
    questions: Mapping[str, Sequence[Row]],
    categories: Mapping[str, str],
) -> None:
    """A prediction table and a table of accuracies for each response, as it has one response a question.

    ``MODEL/T<date>_Gsample<j>/MODEL_BENCHMARK.tsv`` and ``..._acc.csv``; "index" is the row of our file,
    counted from 0, and a question with fewer graded responses than j is left out of the j-th table.
    """
    for j in range(max(map(len, questions.values()))):
        stem = f"T{date}_Gsample{j + 1}/{folder.name}_{benchmark}"
        table: list[Row] = []
        hits: dict[str, list[float]] = {}
        for name, graded in questions.items():
            if len(graded) <= j:
                continue
            row, category = graded[j], categories.get(name, NO_CATEGORY)
            table.append(
                {
                    "index": _index(name),
                    "question": row["problem"],
                    "answer": row["answer"],
                    **({"category": category} if categories else {}),
                    "prediction": row["response"],
                }
            )
            hits.setdefault(category, []).append(row["accuracy"])
        overall = float(np.mean([value for group in hits.values() for value in group]))
        by_category = {group: float(np.mean(hits[group])) for group in sorted(hits) if categories}
        accuracies = {"split": "none", "Overall": overall, **by_category}
        _write_table(folder / f"{stem}.tsv", table, "\t")
        _write_table(folder / f"{stem}_acc.csv", [accuracies], ",")


def _sample(name: str, graded: Sequence[Row]) -> dict[str, Any]:
    """A question with all its responses, as lmms-eval has it."""
    row, responses = graded[0], [_clean(response["response"]) for response in graded]
    accuracy = float(np.mean([response["accuracy"] for response in graded]))
    return {
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


def _lmms_results(results: Mapping[str, Any], model: str, date: str) -> dict[str, Any]:
    """The aggregated figures, as lmms-eval has them."""
    rows = {row["benchmark"]: row for row in results["rows"]}
    return {
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
        "git_hash": (results["rows"][0]["commit"] or {}).get("hash"),
        "date": date,
        "model_name": results["origin"]["name"],
        "model_name_sanitized": model,
        "task_hashes": {name: row["hashes"]["data"] for name, row in rows.items()},
    }


def _index(name: str) -> int:
    """The row in its file, of an id "<source>:<row>"."""
    return int(name.rpartition(":")[2])


def _write_table(path: Path, rows: Sequence[Row], separator: str) -> None:
    """A table with every field quoted, as pandas reads it back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=separator, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow([_clean(name) for name in rows[0]])
        writer.writerows([_clean(str(value)) for value in row.values()] for row in rows)


def _clean(text: str) -> str:
    return _UNWRITABLE.sub("\ufffd", text)


def _sha(text: str) -> str:
    return hashlib.sha256(_clean(text).encode()).hexdigest()
