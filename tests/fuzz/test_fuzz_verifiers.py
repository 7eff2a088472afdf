"""What a policy may write, and what a row may ask, through every verifier: graded or refused, and in time."""

import math
from dataclasses import replace

import pytest
from damage import TEXTS, altered, among, texts
from hypothesis import strategies as st
from rewards.rewards_cases import CASES

from mmrl.rewards.verifiers import VERIFIERS

COSTLY = ("math", "reflection")  # left to sympy: run in processes that are killed
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


@pytest.mark.parametrize("name", sorted(CASES.keys() - set(COSTLY)))
def test_verifiers(fuzz, name):
    """A row as it is or altered, and a response of any kind in the form that is asked for, or bare."""
    case = CASES[name]
    right = {"answer": case.sample.answer, "facts": dict(case.sample.facts)}
    rows = st.just(right) | altered(right, 1)
    told = st.sampled_from((case.truth, case.wrong)) | responses()
    verifier = VERIFIERS[case.sample.verifier]

    def go(given):
        row, response = given
        row = right | row if isinstance(row, dict) else right
        answer, facts = row["answer"], row["facts"]
        if not (isinstance(answer, str) and answer.strip() and isinstance(facts, dict)):
            answer, facts = right["answer"], right["facts"]
        if "rollout" in right["facts"]:  # of a run, never of a row
            facts = {**facts, "rollout": right["facts"]["rollout"]}
        found = verifier(replace(case.sample, id="a:7", answer=answer, facts=facts), response)
        assert all(math.isfinite(value) and -1.0 <= value <= 1.0 for value in found.values())

    fuzz(st.tuples(rows, told | told.map(case.response)), go, share=0.3)
