"""Hostile responses to every verifier: judged as wrong or invalid, in bounded time, and nothing is run.

Verifiers that may run long on an answer, because they leave it to sympy, go through the pool that kills them.
The others must be quick whatever they are given, and are called as they are.
"""

import math
import subprocess
import time

import pytest
from hostile_responses import ANSWERS, dressed, long_responses, more_long_responses
from rewards_cases import CASES

from mmrl.rewards.pool import RewardPool
from mmrl.rewards.verifiers import VERIFIERS

COSTLY = ["math", "reflection"]
QUICK = sorted(CASES.keys() - set(COSTLY))
DEADLINE_S = 20.0  # wide: the tests share their cores
QUICK_S = 2.0  # of processor time, for a response of up to a million characters
MEGABYTE = 1_000_000


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


def check(pool, folder, name, responses):
    """Each response, with a right one behind it, which must not be touched by what was before."""
    case = CASES[name]
    right, wrong = case.response(case.truth), case.response(case.wrong)
    texts = [right, wrong, *(text for response in responses for text in (response, right))]
    start = time.monotonic()
    graded = pool.grade([(case.sample, text) for text in texts])
    invalid = [item for item in graded if not item.valid]
    # Only what was killed may take long: a deadline, its grace and a new worker each.
    assert time.monotonic() - start < 60.0 + 25.0 * len(invalid)
    best, honest = (case.reward(item.components) for item in graded[:2])
    assert best > honest
    assert [case.reward(item.components) for item in graded[3::2]] == [best] * len(responses)
    for text, item in zip(responses, graded[2::2], strict=True):
        if item.valid:
            assert case.reward(item.components) <= honest, text[:80]
        else:
            assert "deadline" in item.error or "MemoryError" in item.error, (item.error, text[:80])
            assert item.components == {}
    assert len(invalid) <= len(responses) // 10, [item.error for item in invalid]
    assert list(folder.iterdir()) == []


def check_quick(folder, monkeypatch, name, responses):
    """Each response in this process; a right one at the end is still right."""
    monkeypatch.chdir(folder)
    case = CASES[name]
    verifier = VERIFIERS[case.sample.verifier]
    right, honest = (verifier(case.sample, case.response(text)) for text in (case.truth, case.wrong))
    for text in responses:
        start = time.process_time()
        found = verifier(case.sample, text)
        assert time.process_time() - start < QUICK_S, text[:80]
        assert found.keys() == right.keys()
        assert all(math.isfinite(value) and abs(value) <= 1.0 for value in found.values())
        assert case.reward(found) <= case.reward(honest), text[:80]
    assert verifier(case.sample, case.response(case.truth)) == right
    assert list(folder.iterdir()) == []


def test_what_the_texts_would_run_makes_the_file(tmp_path, monkeypatch):
    """Otherwise its absence would say nothing."""
    monkeypatch.chdir(tmp_path)
    (shell,) = (text for text in ANSWERS if text.startswith("$("))
    subprocess.run(["sh", "-c", f": {shell}"], check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["executed"]


DRESSED = [dressed(answer) for answer in ANSWERS]


@pytest.mark.parametrize("name", COSTLY)
def test_answers_in_the_pool(name, pool, folder):
    check(pool, folder, name, DRESSED)


def test_long_responses_in_the_pool(pool, folder):
    check(pool, folder, "math", list(long_responses(10 * MEGABYTE).values()))


@pytest.mark.parametrize("name", QUICK)
def test_answers(name, folder, monkeypatch):
    check_quick(folder, monkeypatch, name, DRESSED)


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"math"}))
def test_long_responses(name, folder, monkeypatch):
    check_quick(folder, monkeypatch, name, list(long_responses(MEGABYTE // 5).values()))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", sorted(CASES))
def test_more_responses(name, pool, folder, monkeypatch):
    responses = {**long_responses(MEGABYTE), **more_long_responses(MEGABYTE)}
    if name in COSTLY:
        check(pool, folder, name, [*ANSWERS, *responses.values()])
    else:
        check_quick(folder, monkeypatch, name, [*ANSWERS, *responses.values()])
