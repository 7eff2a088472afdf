import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmrl.rewards.pool import Graded, RewardPool
from mmrl.sample import Sample

HOSTILE = "hostile_table"


def sample(verifier, answer="A", row=0):
    return Sample(f"test:{row}", "", answer, verifier=verifier)


@pytest.fixture
def hostile_pool(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with RewardPool(1, deadline_s=1.0, table=HOSTILE) as pool:
        yield pool


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until_dead(pid, seconds):
    end = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not is_alive(pid)


def test_results_come_in_the_order_of_the_requests():
    letters = "ABCD" * 20
    requests = [(sample("choice", answer="A", row=i), f"\\boxed{{{c}}}") for i, c in enumerate(letters)]
    with RewardPool(2) as pool:
        graded = pool.grade(requests)
    assert graded == [Graded({"accuracy": float(c == "A"), "format": 0.0}) for c in letters]


def test_mathematics_is_graded():
    with RewardPool(1) as pool:
        assert pool.grade([(sample("math", "1/2"), "\\boxed{\\frac{\\sqrt{2}}{\\sqrt{8}}}")]) == [
            Graded({"accuracy": 1.0, "format": 0.0})
        ]


@pytest.mark.parametrize(
    ("verifier", "reason"),
    [
        ("sleep", "ran past its deadline of 1.0 s"),
        ("long_c_call", "ran past its deadline of 1.0 s"),
        ("raises", "KeyError: 'no such fact'"),
        ("not_finite", "not finite"),
        ("eats_memory", "MemoryError"),
        ("exits", "ended its worker .exit status 3."),
        ("unheard_of", "KeyError"),
    ],
)
def test_a_misbehaving_verifier_makes_its_own_row_invalid_and_no_other(hostile_pool, verifier, reason):
    requests = [(sample("length", row=i), "x" * i) for i in range(8)]
    requests[3] = (sample(verifier, row=3), "")
    graded = hostile_pool.grade(requests)
    assert [g.components for i, g in enumerate(graded) if i != 3] == [
        {"length": float(i)} for i in range(8) if i != 3
    ]
    bad = graded[3]
    assert (bad.valid, bad.components) == (False, {})
    with pytest.raises(AssertionError, match=f"test:3.*{reason}"):
        raise AssertionError(bad.error)


def test_responses_are_graded_while_others_are_still_to_come(hostile_pool):
    slow = hostile_pool.submit(sample("sleep"), "")
    first = hostile_pool.submit(sample("length"), "x")
    assert not slow.done()
    assert slow.result().valid is False
    assert first.result() == Graded({"length": 1.0})


def test_closing_leaves_no_process_and_no_open_handle(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with RewardPool(2, deadline_s=60.0, table=HOSTILE) as pool:
        pids = {int(g.components["pid"]) for g in pool.grade([(sample("process_id"), "")] * 40)}
        handles = [pool.submit(sample("sleep"), "") for _ in range(5)]
        start = time.monotonic()
    assert time.monotonic() - start < 10.0
    assert all(not handle.result(timeout=1).valid for handle in handles)
    assert pids
    assert not any(map(is_alive, pids))
    with pytest.raises(ValueError, match="closed"):
        pool.submit(sample("length"), "")


@pytest.mark.parametrize("busy", [False, True])
def test_a_killed_parent_leaves_no_orphan(busy):
    code = f"""
import os, signal, sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from mmrl.rewards.pool import RewardPool
from mmrl.sample import Sample
pool = RewardPool(1, deadline_s=3.0, table={HOSTILE!r})
print(int(pool.grade([(Sample("a", "", "", verifier="process_id"), "")])[0].components["pid"]), flush=True)
if {busy}:
    pool.submit(Sample("a", "", "", verifier="long_c_call"), "")
    time.sleep(0.5)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert wait_until_dead(int(done.stdout), seconds=20.0)


def test_workers_import_neither_jax_nor_flax():
    with RewardPool(1) as pool:
        pool.grade([(sample("choice"), "")])
        children = Path(f"/proc/{os.getpid()}/task")
        pids = [pid for task in children.iterdir() for pid in (task / "children").read_text().split()]
        maps = [Path(f"/proc/{pid}/maps").read_text() for pid in pids]
    assert any("python" in m for m in maps)
    assert not any("jaxlib" in m for m in maps)


def test_a_table_that_cannot_be_imported_is_an_error():
    with RewardPool(1, table="no_such_table") as pool, pytest.raises(RuntimeError, match="no_such_table"):
        pool.grade([(sample("math"), "")])


@pytest.mark.parametrize("arguments", [{"workers": 0}, {"workers": 1, "deadline_s": 0.0}])
def test_senseless_pools(arguments):
    with pytest.raises(ValueError, match=r"workers|deadline_s"):
        RewardPool(**arguments)


@pytest.mark.slow
def test_ten_thousand_mathematical_answers_in_a_minute():
    spellings = ["{}", "\\frac{{{}}}{{2}}", "{}.5", "{}\\sqrt{{2}}", "x+{}"]
    requests = [
        (
            sample("math", spellings[i % 5].format(i // 40), row=i),
            f"\\boxed{{{spellings[i % 5].format(i // 35)}}}",
        )
        for i in range(10_000)
    ]
    with RewardPool(2) as pool:
        start = time.monotonic()
        graded = pool.grade(requests)
        assert time.monotonic() - start < 60.0
    assert all(g.valid for g in graded)
    assert {g.components["accuracy"] for g in graded} == {0.0, 1.0}
