import subprocess
import sys

import pytest
from rewards_cases import CASES

from mmrl.rewards.verifier import PAPO_WEIGHTS, VERIFIERS, VPPO_WEIGHTS, score, together
from mmrl.sample import Sample

SAMPLE = Sample("test:0", "", "7")


def test_rewards_of_papo_and_vppo():
    well_formed = VERIFIERS["math"](SAMPLE, "<think>3+4</think> \\boxed{7}")
    bare = VERIFIERS["math"](SAMPLE, "\\boxed{7}")
    wrong = VERIFIERS["math"](SAMPLE, "<think>3+4</think> \\boxed{8}")
    assert [score(c, PAPO_WEIGHTS) for c in (well_formed, bare, wrong)] == pytest.approx([1.0, 0.9, 0.1])
    assert [score(c, VPPO_WEIGHTS) for c in (well_formed, bare, wrong)] == [1.0, 1.0, 0.0]


def test_a_weight_without_its_component_is_an_error():
    with pytest.raises(ValueError, match=r"\['faith'\].*accuracy"):
        score({"accuracy": 1.0}, {"accuracy": 1.0, "faith": 0.5})


def test_two_verifiers_may_not_report_one_component():
    with pytest.raises(ValueError, match="'format'"):
        together(VERIFIERS["format"], VERIFIERS["format"])(SAMPLE, "")


# The length is a fact of the rollout, whatever the text.
@pytest.mark.parametrize("name", sorted(CASES.keys() - {"length_target"}))
def test_every_verifier_scores_the_empty_response_zero(name):
    case = CASES[name]
    found = VERIFIERS[case.sample.verifier](case.sample, "")
    worst = {"format_error": 1.0, "exploration": -1.0}
    assert found == {component: worst.get(component, 0.0) for component in found}


def test_importing_the_table_imports_neither_jax_nor_sympy():
    code = (
        "import sys, mmrl.rewards.verifier, mmrl.rewards.pool\n"
        "print(sorted({'jax', 'sympy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
