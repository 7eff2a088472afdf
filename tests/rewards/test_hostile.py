"""Hostile responses through the pool and every verifier: judged as wrong or invalid, and nothing is run."""

import subprocess
import time

import pytest
from hostile_responses import ANSWERS, MORE_RESPONSES, RESPONSES, dressed

from mmrl.rewards.pool import RewardPool
from mmrl.rewards.verifier import PAPO_WEIGHTS, VERIFIERS, score
from mmrl.sample import Sample

DEADLINE_S = 20.0  # wide: the tests share their cores
RIGHT, WRONG = dressed("3"), dressed("4")
# Where a verifier wants a form of its own, a right answer in it, and a wrong one.
FORMS = {
    "math_in_tag": ("<think>so</think><answer>3</answer>", "<think>so</think><answer>4</answer>"),
    "shapes": ("<think> a1 b1 c1 </think> \\boxed{3}", "<think> a1 b1 c1 </think> \\boxed{4}"),
}


def sample(verifier: str, row: int) -> Sample:
    facts = {"kind": "count", "seen": ["a1", "b1", "c1"], "options": ["1", "2", "3", "4"]}
    return Sample(f"test:{row}", "How many?", "3", verifier=verifier, facts=facts)


def reward(components: dict[str, float]) -> float:
    return score(components, {name: w for name, w in PAPO_WEIGHTS.items() if name in components})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The workers' current folder, in which nothing may appear."""
    return tmp_path_factory.mktemp("canary")


@pytest.fixture(scope="module")
def pool(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with RewardPool(2, deadline_s=DEADLINE_S) as pool:
            yield pool


def check(pool, folder, verifier, responses):
    """Each response, with a right one behind it, which must not be touched by what was before."""
    right, wrong = FORMS.get(verifier, (RIGHT, WRONG))
    texts = [right, wrong, *(text for response in responses for text in (response, right))]
    start = time.monotonic()
    graded = pool.grade([(sample(verifier, row), text) for row, text in enumerate(texts)])
    invalid = [item for item in graded if not item.valid]
    # Only what was killed may take long: a deadline, its grace and a new worker each.
    assert time.monotonic() - start < 60.0 + 25.0 * len(invalid)
    best, honest = (reward(item.components) for item in graded[:2])
    assert verifier == "format" or best > honest
    assert [reward(item.components) for item in graded[3::2]] == [best] * len(responses)
    for text, item in zip(responses, graded[2::2], strict=True):
        if item.valid:
            assert reward(item.components) <= honest, text[:80]
        else:
            assert "deadline" in item.error or "MemoryError" in item.error, (item.error, text[:80])
            assert item.components == {}
    assert len(invalid) <= len(responses) // 10, [item.error for item in invalid]
    assert list(folder.iterdir()) == []


def test_what_the_texts_would_run_makes_the_file(tmp_path, monkeypatch):
    """Otherwise its absence would say nothing."""
    monkeypatch.chdir(tmp_path)
    (shell,) = (text for text in ANSWERS if text.startswith("$("))
    subprocess.run(["sh", "-c", f": {shell}"], check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["executed"]


@pytest.mark.parametrize("verifier", sorted(VERIFIERS))
def test_answers(verifier, pool, folder):
    check(pool, folder, verifier, [text for answer in ANSWERS for text in (dressed(answer), answer)])


@pytest.mark.parametrize("verifier", sorted(VERIFIERS))
def test_responses(verifier, pool, folder):
    check(pool, folder, verifier, list(RESPONSES.values()))


@pytest.mark.exhaustive
@pytest.mark.parametrize("verifier", sorted(VERIFIERS))
def test_more_responses(verifier, pool, folder):
    check(pool, folder, verifier, list(MORE_RESPONSES.values()))
