"""What a policy may write, and what a row may ask, through every verifier: graded or refused, and in time."""

import math

import pytest
from damage import TEXTS, altered, among, texts
from hypothesis import strategies as st

from mmrl.rewards.verifier import VERIFIERS
from mmrl.sample import Sample

COSTLY = ("math", "reflection")  # left to sympy: run in processes that are killed
TRUTHS = {
    "choice": ("B", {"options": ["red", "blue"]}),
    "json": ('{"a": 1}', {"schema": {"type": "object"}, "gold": {"a": 1}}),
    "box": ("[1, 2, 30, 40]", {"width": 100, "height": 80}),
    "boxes": ('[{"bbox": [1, 2, 30, 40], "label": "cat"}]', {"width": 100, "height": 80}),
    "point": ("[1, 2]", {"box": [0, 0, 10, 10], "width": 100, "height": 80}),
    "interval": ("[1, 2]", {}),
    "gui": ("click(1, 2)", {"box": [0, 0, 10, 10]}),
    "list": ('["a", "b"]', {}),
    "yes_no": ("yes", {}),
    "shapes": ("3", {"kind": "count"}),
}
ROLLOUT = {"tokens": 10, "max_tokens": 20, "progress": 0.5, "truncated": False}  # of a run, never of a row
PARTS = (
    *(text for text in TEXTS if len(text) < 4000),
    *(
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "\\boxed{",
        "}",
        "\\frac{1}{0}",
        "10^{10^{10}}",
        "\\sqrt{",
    ),
    *("[1, 2, 3, 4]", "1,234.5e-7", "\u22127", "½", "12 cm", "(B)", "**B**"),
)


def responses():
    return st.lists(among(PARTS) | texts(), max_size=8).map("".join)


@pytest.mark.parametrize("name", [name for name in VERIFIERS if name not in COSTLY])
def test_verifiers(fuzz, name):
    truth, facts = TRUTHS.get(name, ("3", {}))
    rows = altered({"answer": truth, "facts": facts}, 1) | st.just({"answer": truth, "facts": facts})

    def go(given):
        row, response = given
        row = row if isinstance(row, dict) else {}
        answer, told = row.get("answer"), row.get("facts")
        if not (isinstance(answer, str) and answer.strip() and isinstance(told, dict)):
            answer, told = truth, {}
        sample = Sample("a:7", "?", answer, verifier=name, facts={**told, "rollout": ROLLOUT})
        for value in VERIFIERS[name](sample, response).values():
            assert math.isfinite(value)
            assert -1.0 <= value <= 1.0

    fuzz(st.tuples(rows, responses()), go, share=0.2)
