import subprocess
import sys
from dataclasses import replace

import pytest
from rewards_cases import CASES

from mmrl.rewards.pool import RewardPool
from mmrl.rewards.reward import PAPO_WEIGHTS, VPPO_WEIGHTS, score, user_verifiers
from mmrl.rewards.verifier import Graded, combine
from mmrl.rewards.verifiers import VERIFIERS, reported_components, verifier_names
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
        combine(VERIFIERS["format"], VERIFIERS["format"])(SAMPLE, "")


# The length is a fact of the rollout, whatever the text.
@pytest.mark.parametrize("name", sorted(CASES.keys() - {"length_target"}))
def test_every_verifier_scores_the_empty_response_zero(name):
    case = CASES[name]
    found = VERIFIERS[case.sample.verifier](case.sample, "")
    worst = {"format_error": 1.0, "exploration": -1.0}
    assert found == {component: worst.get(component, 0.0) for component in found}


def test_importing_the_table_imports_neither_jax_nor_sympy():
    code = (
        "import sys, mmrl.rewards.verifiers, mmrl.rewards.pool\n"
        "print(sorted({'jax', 'sympy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A verifier of one's own, in a file of the folder that a command is given in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "def shout(sample, response):\n    return {'loud': float(response == sample.answer.upper())}\n"
    )
    return "mine.py:shout"


def test_a_verifier_of_ones_own_is_graded_like_the_others(mine):
    reward = {"weights": {"loud": 1.0}, "sources": {"a": {"verifier": f"choice+{mine}"}}}
    verifiers = user_verifiers(reward)
    sample = Sample("test:0", "", "b", verifier=f"choice+{mine}")
    assert list(verifiers) == [mine]
    assert reported_components(sample, verifiers) == {"accuracy", "format", "loud"}
    with RewardPool(1, user_verifiers=tuple(verifiers)) as pool:
        assert pool.grade([(sample, "B")]) == [Graded({"accuracy": 0.0, "format": 0.0, "loud": 1.0})]


def test_rows_cannot_name_a_file(mine, tmp_path):
    """Data are data: a row runs no code, here or in the workers."""
    (tmp_path / "other.py").write_text("open('touched', 'w')\n\n\ndef grade(s, r):\n    return {}\n")
    sample = Sample("test:0", "", "b", verifier="other.py:grade")
    with pytest.raises(ValueError, match=r"'other.py:grade': rows cannot name a file"):
        reported_components(sample, user_verifiers({"weights": {"loud": 1.0}, "verifier": mine}))
    with RewardPool(1, user_verifiers=(mine,)) as pool:
        (graded,) = pool.grade([(sample, "B")])
    assert (graded.valid, graded.error) == (False, "sample test:0: KeyError: 'other.py:grade'")
    assert not (tmp_path / "touched").exists()


def test_a_verifier_that_asks_for_images_sees_them(mine, tmp_path):
    (tmp_path / "look.py").write_text(
        "from functools import partial\n\nfrom mmrl.rewards.verifier import Verifier\n\n\n"
        "@partial(Verifier, needs_images=True)\n"
        "def look(sample, response, *, least: float = 1.0):\n"
        "    return {'seen': float(len(sample.images) >= least)}\n"
    )
    sample = Sample("test:0", "", "b", images=(b"x",), verifier="look.py:look")
    with RewardPool(1, user_verifiers=("look.py:look",)) as pool:
        grades = pool.grade([(sample, ""), (replace(sample, facts={"least": 2}), "")])
    assert [grade.components for grade in grades] == [{"seen": 1.0}, {"seen": 0.0}]


def test_a_verifier_of_ones_own_that_is_not_there(mine):
    with pytest.raises(ValueError, match=r"verifier 'mine.py:whisper': mine.py does not define whisper"):
        user_verifiers({"weights": {"loud": 1.0}, "also": ("mine.py:whisper",)})
    with pytest.raises(ValueError, match="names one twice"):
        verifier_names(f"{mine}+{mine}", (mine,))
