"""Boxes against VLM-R1's rewards: equal on every row, but where the reference is defective.

Which rows those are is decided by rules, never by name. A rule is called as in the table of
``docs/rewards.md``, which says who is right and why.
"""

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import vectors

from mmrl.rewards.boxes import iou, read_boxes, true_boxes
from mmrl.rewards.verifier import answer_of
from mmrl.rewards.verifiers import VERIFIERS
from mmrl.sample import Sample

DOCS = Path(__file__).resolve().parents[2] / "docs" / "rewards.md"
OWN_VECTORS = (DOCS.parents[1] / "third_party" / "golden").resolve() == vectors.GOLDEN_DIR.resolve()

TOLERANCE = 1e-6
REFERENCE_BOX = re.compile(r"\[(\d+),\s*(\d+),\s*(\d+),\s*(\d+)\]", re.ASCII)
REFERENCE_FENCE = re.compile(r"```json(.*?)```", re.DOTALL)
# The component that a column is, and where its function looks for the answer.
DETECTION = {
    "detection_score": ("detection", "tag_or_all"),
    "weighted_sum": ("detection", "tag_or_all"),
    "map": ("map", "tag_or_all"),
    "od_ap": ("map", "tag"),
    "od_ap50": ("map50", "tag"),
    "odLength": ("map_times_count", "tag"),
}
GROUNDING = ("qwen_iou", "internvl_iou", "glm_iou")


@cache
def table(name):
    rows = vectors.tables("07")[name]
    assert rows
    return rows


def is_error(value):
    return isinstance(value, dict)


def truth_of(solution):
    """What a row's data would hold: what the last tag holds, without fences. VLM-R1's None is no boxes."""
    content = (re.findall(r"<answer>(.*?)</answer>", solution, re.DOTALL) or [solution])[-1]
    content = (REFERENCE_FENCE.findall(content) or [content])[-1].strip()
    return "[]" if content == "None" else content


def sample(verifier, row, **facts):
    return Sample("golden:0", "", truth_of(row["solution"]), verifier=verifier, facts=facts)


def usable(sample):
    try:
        VERIFIERS[sample.verifier](sample, "")
    except ValueError:
        return False
    return True


def narrow(first, second):
    """Whether two boxes share a strip of at most one pixel, for which VLM-R1's ``iou`` is 0."""
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    return bool((sides > 0.0).all() and (sides <= 1.0).any())


def rules_of_iou():
    """For each row the rule by which mmrl and the reference part, or None; asserts that it is so."""
    for row in table("iou"):
        first, second = (np.array(row[name], float) for name in ("box1", "box2"))
        found = iou(first[None], second[None])[0, 0]
        if is_error(row["iou"]):
            assert found == 0.0, row
            yield "two boxes without area"
        elif narrow(first, second):
            assert row["iou"] == 0.0 < found, row
            yield "boxes that share a strip of a pixel or less"
        else:
            assert found == pytest.approx(row["iou"], abs=TOLERANCE), row
            yield None


def rules_of_grounding(column):
    for row in table("box_reward"):
        facts = {"answer_in": "tag"}
        if column == "qwen_iou":
            _, down, across = row["image_grid_thw"]
            facts["input_size"] = [across * 14, down * 14]
            facts["image_size"] = [row["image_width"], row["image_height"]]
        yield rule_of_grounding(row, sample("box", row, **facts), row["scores"][column], column)


def rule_of_grounding(row, sample, expected, column):
    if not usable(sample):
        assert is_error(expected) or expected == 0.0, row
        return "a truth that is no box, or has no area"
    found = VERIFIERS["box"](sample, row["response"])["iou"]
    if is_error(expected):
        assert "<answer>" not in row["solution"], row
        return "a truth without a tag"
    answer = answer_of(row["response"], sample.facts.get("answer_in", "box"))
    own, read = read_boxes(answer), REFERENCE_BOX.search(answer)
    given = [] if own is None else own.corners.tolist()
    if len(given) > 1:
        assert found == 0.0, row
        return "several boxes where one is wanted"
    if given and (read is None or given != [[float(number) for number in read.groups()]]):
        assert expected == 0.0, row
        return "a box in another notation"
    if given and column != "glm_iou" and narrow(scaled(sample, given[0]), true_boxes(sample).corners[0]):
        assert expected == 0.0 < found, row
        return "boxes that share a strip of a pixel or less"
    assert found == pytest.approx(expected, abs=TOLERANCE), row
    return None


def scaled(sample, box):
    sizes = [np.array(sample.facts.get(name, [1, 1]), float) for name in ("image_size", "input_size")]
    return np.array(box) * np.tile(sizes[0] / sizes[1], 2)


def rules_of_detection(column):
    component, where = DETECTION[column]
    for row in table("detection"):
        graded = sample("boxes", row, answer_in=where)
        yield rule_of_detection(row, graded, row["scores"][column], component)


def rule_of_detection(row, sample, expected, component):
    if not usable(sample):
        assert is_error(expected) or expected == 0.0, row
        return "a truth that is no box, or has no area"
    found = VERIFIERS["boxes"](sample, row["response"])[component]
    answer, truth = answer_of(row["response"], sample.facts.get("answer_in", "box")), true_boxes(sample)
    own, fenced = read_boxes(answer), REFERENCE_FENCE.findall(answer)
    if own is None:
        assert found == 0.0, row
        assert not truth.labels or expected == 0.0, row
        return None if expected == 0.0 else "an answer without boxes where there are none"
    if len(fenced) > 1:
        assert len(own.corners) == sum(len(read_boxes(part).corners) for part in fenced), row
        return "several lists of boxes"
    if own.labels and not read_by_reference(fenced):
        assert expected <= found, row
        return "boxes in another notation"
    if None in own.labels and truth.labels:
        assert set(own.labels) != {None} or found <= (0.3 + TOLERANCE if component == "detection" else 0.0), (
            row
        )
        return "boxes without a label"
    if component != "detection" and differs_by_case(fenced, sample):
        assert expected < found, row
        return "labels in another case"
    assert found == pytest.approx(expected, abs=TOLERANCE), row
    return None


def read_by_reference(fenced):
    """Whether VLM-R1 reads boxes there: a JSON list of objects with four numbers each."""
    try:
        entries = json.loads(fenced[0]) if fenced else None
    except ValueError:
        return False
    return isinstance(entries, list) and all(
        isinstance(entry, dict)
        and all(isinstance(number, int | float) for number in entry.get("bbox_2d", "?"))
        for entry in entries
    )


def differs_by_case(fenced, sample):
    given = {str(entry["label"]) for entry in json.loads(fenced[0])} if fenced else set()
    wanted = {entry["label"] for entry in json.loads(sample.answer)}
    return bool({name.casefold() for name in given - wanted} & {name.casefold() for name in wanted})


@cache
def rules_of(judge, *column):
    return list(judge(*column))


def test_iou(record_property):
    rules = rules_of(rules_of_iou)
    assert rules.count(None) > len(rules) / 2
    record_property("golden", ("07_rewards", "iou"))


@pytest.mark.parametrize("column", GROUNDING)
def test_grounding(column, record_property):
    rules = rules_of(rules_of_grounding, column)
    assert rules.count(None) > len(rules) / 2
    record_property("golden", ("07_rewards", f"box_{column}"))


@pytest.mark.parametrize("column", sorted(DETECTION))
def test_detection(column, record_property):
    rules = rules_of(rules_of_detection, column)
    assert rules.count(None) > len(rules) / 2
    record_property("golden", ("07_rewards", f"det_{column}"))


def test_forms(record_property):
    for row in table("box_reward"):
        sample = Sample("golden:0", "", "[0, 0, 1, 1]", verifier="box", facts={"answer_in": "tag"})
        assert VERIFIERS["box"](sample, row["response"])["format"] == row["scores"]["format"], row
    record_property("golden", ("07_rewards", "box_format"))


def test_the_table_of_rules_is_complete():
    every = rules_of(rules_of_iou)
    for judge, columns in ((rules_of_grounding, GROUNDING), (rules_of_detection, sorted(DETECTION))):
        for column in columns:
            every = [*every, *rules_of(judge, column)]
    found = set(every) - {None}
    lines = DOCS.read_text().split("## Where boxes part from VLM-R1")[1].split("\n## ")[0].splitlines()
    documented = {line.split("|")[1].strip() for line in lines if line.startswith("|")} - {"rows with", "---"}
    assert found == documented if OWN_VECTORS else found <= documented
