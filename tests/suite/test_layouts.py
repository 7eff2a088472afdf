"""The community's layouts read back, with the worst that a model may write."""

import csv
import json

import pytest

from mmrl.atomic import write_jsonl
from mmrl.suite.layouts import write_layouts
from mmrl.suite.run import read_rows

HOSTILE = [
    "tab\there, \"quotes\" and 'more'",
    "lines\nand\r\nand\rand\u2028separators\x85\x0c",
    "NUL \0 and half a pair \ud83d",
    '=HYPERLINK("http://x","y")',
    "</script><script>alert(1)</script> <!-- [a](b) | c |",
    "",
    "nan",
    "\\boxed{\\frac{1}{2}} \\n \\t \N{GRINNING FACE}",
]


@pytest.fixture
def out(tmp_path):
    interval = {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 8}
    results = {
        "suite": {"name": "demo"},
        "origin": {"name": "a run/../step3"},
        "started": "2026-11-22T06:24:03Z",
        "seed": 7,
        "rows": [
            {
                "benchmark": "hostile",
                "samples": 2,
                "questions": len(HOSTILE),
                "left_out": 1,
                "accuracy": interval,
                "pass": {"1": interval, "2": interval},
                "settings": {},
                "hashes": {"data": "d"},
                "commit": None,
            }
        ],
    }
    rows = [
        {
            "id": f"file:with:colons:{10 + k}",
            "problem": f"<image>{text}",
            "answer": text,
            "response": text if j == 0 else "second",
            "accuracy": float((k + j) % 2),
        }
        for k, text in enumerate(HOSTILE)
        for j in range(2 - (k == 0))  # one response to the first could not be graded
    ]
    write_jsonl(tmp_path / "hostile.jsonl", rows)
    categories = {row["id"]: "odd\tname" if k % 2 else "even" for k, row in enumerate(rows[1::2])}
    write_layouts(results, tmp_path, {"hostile": categories})
    return tmp_path


def clean(text):
    return text.replace("\0", "\ufffd").replace("\ud83d", "\ufffd")


def table(path, separator):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter=separator, strict=True))


def test_predictions_for_vlmevalkit(out):
    runs = out / "vlmevalkit" / "a_run_.._step3"
    assert sorted(path.name for path in runs.iterdir()) == ["T20261122_Gsample1", "T20261122_Gsample2"]
    first = table(runs / "T20261122_Gsample1" / "a_run_.._step3_hostile.tsv", "\t")
    assert list(first[0]) == ["index", "question", "answer", "category", "prediction"]
    assert [row["prediction"] for row in first] == [clean(text) for text in HOSTILE]
    assert [row["question"] for row in first] == [f"<image>{clean(text)}" for text in HOSTILE]
    assert [row["index"] for row in first] == [str(10 + k) for k in range(len(HOSTILE))]
    second = table(runs / "T20261122_Gsample2" / "a_run_.._step3_hostile.tsv", "\t")
    assert [row["index"] for row in second] == [str(11 + k) for k in range(len(HOSTILE) - 1)]
    assert {row["prediction"] for row in second} == {"second"}


def test_accuracies_for_vlmevalkit(out):
    folder = out / "vlmevalkit" / "a_run_.._step3" / "T20261122_Gsample1"
    (row,) = table(folder / "a_run_.._step3_hostile_acc.csv", ",")
    assert row.pop("split") == "none"
    assert float(row.pop("Overall")) == 0.5
    assert all(0 <= float(value) <= 1 for value in row.values())
    assert {"even", "odd\tname"} <= set(row)


def test_samples_for_lmms_eval(out):
    folder = out / "lmms_eval" / "a_run_.._step3"
    raw = (folder / "20261122_062403_samples_hostile.jsonl").read_bytes()
    lines = [json.loads(line) for line in raw.decode("utf-8").split("\n")[:-1]]
    assert [line["doc_id"] for line in lines] == [10 + k for k in range(len(HOSTILE))]
    assert [line["filtered_resps"] for line in lines] == [clean(text) for text in HOSTILE]
    assert [len(line["resps"]) for line in lines] == [1] + [2] * (len(HOSTILE) - 1)
    assert [line["score"] for line in lines] == [0.0] + [0.5] * (len(HOSTILE) - 1)
    assert all(line["target"] == line["filtered_resps"] for line in lines)
    for line in lines:
        json.dumps(line, ensure_ascii=False).encode("utf-8")  # as their tools write it on


def test_results_for_lmms_eval(out):
    path = out / "lmms_eval" / "a_run_.._step3" / "20261122_062403_results.json"
    found = json.loads(path.read_text())
    assert found["results"]["hostile"] == {
        "alias": "hostile",
        "accuracy,none": 0.5,
        "pass_at_1,none": 0.5,
        "pass_at_2,none": 0.5,
    }
    assert found["n-samples"]["hostile"] == {"original": len(HOSTILE) + 1, "effective": len(HOSTILE)}
    assert (found["model_name"], found["date"]) == ("a run/../step3", "20261122_062403")


def test_responses_are_read_whole_or_not_at_all(out):
    path = next(out.glob("*.jsonl"))
    assert len(read_rows(path)) > 1
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"hostile\.jsonl, line \d+, is damaged .*; delete the file"):
        read_rows(path)
