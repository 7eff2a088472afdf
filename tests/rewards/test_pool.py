import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from mmrl.rewards.pool import RewardPool
from mmrl.rewards.verifier import Graded
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


def test_several_verifiers_of_one_response(hostile_pool):
    graded = hostile_pool.grade(
        [(sample(name), "A") for name in ("accurate+length", "length+raises+not_finite", "length+length")]
    )
    assert graded[0] == Graded({"accuracy": 1.0, "length": 1.0})
    assert not graded[1].valid
    assert "no such fact" in graded[1].error
    assert "not finite" in graded[1].error
    assert graded[2].error == "sample test:0: two verifiers of 'length+length' report 'length'"


@pytest.mark.parametrize(
    ("verifier", "reason"),
    [
        ("sleep", "ran past its deadline of 1.0 s"),
        ("long_c_call", "ran past its deadline of 1.0 s"),
        ("raises", "KeyError: 'no such fact'"),
        ("not_finite", "not finite"),
        ("too_large", "beyond 1e.15"),
        ("escapes", r"ValueError: \\x1b\[2J\\ud800"),
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


def test_a_worker_that_ended_between_two_jobs_is_replaced(hostile_pool):
    assert hostile_pool.grade([(sample("exits_later"), "")]) == [Graded({"accuracy": 1.0})]
    time.sleep(0.5)
    assert hostile_pool.grade([(sample("length"), "x")]) == [Graded({"length": 1.0})]


def test_what_a_verifier_started_dies_with_it(hostile_pool, tmp_path):
    other = tmp_path / "pid"
    assert not hostile_pool.grade([(sample("starts_another"), str(other))])[0].valid
    assert wait_until_dead(int(other.read_text()), seconds=5.0)


DESYNC = Path(__file__).parents[1] / "cases" / "verifier_desync" / "ver.py"
HONEST = Graded({"accuracy": 0.0, "format": 0.0})  # of a wrong answer to `math`
MORE = """
def forge(s, r):
    import json
    os.write(int(sys.argv[1]), json.dumps({"job": "0", "value": {"accuracy": 99.0}}).encode() + b"\\n")
    return {"accuracy": 0.0}
def half(s, r):
    os.write(int(sys.argv[1]), b"\\xff" * 1000)
    return {"accuracy": 0.0}
def pipe(s, r):
    os.close(int(sys.argv[1]))
    time.sleep(60)
def raises_in_both(s, r):
    os.fork()
    raise ValueError("twice")
"""


@pytest.mark.parametrize(
    ("verifier", "right"),
    [
        ("noisy", {"accuracy": 1.0, "format": 1.0}),
        ("escape", {"accuracy": 1.0}),
        ("forkbomb", {"accuracy": 1.0}),
        ("envleak", {"accuracy": 0.0}),
        ("exit0", r"ended its worker \(exit status 0\)"),
        ("closer", r"ended its worker \(exit status 1\)"),
        ("inject", "wrote what is no answer into its worker's pipe"),
        ("forge", "wrote what is not its own answer into its worker's pipe"),
        ("half", "wrote what is no answer into its worker's pipe"),
        ("noalarm", "ran past its deadline of 1.5 s"),
        ("raises_in_both", "ValueError: twice"),
        ("pipe", None),  # its timer or the look at its pipe, whichever comes first
        ("forkreturn", None),
    ],
)
def test_no_verifier_reaches_the_grade_of_another_response(monkeypatch, tmp_path, capfd, verifier, right):
    """Whatever it forks, prints, starts, or writes into the pipe; and nothing that it started stays."""
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    file = tmp_path / "ver.py"
    mark = f"9{os.getpid():08d}"  # seconds that no other process sleeps
    file.write_text(DESYNC.read_text().replace('"97"', f'"{mark}"') + MORE)
    name = f"{file}:{verifier}"
    with RewardPool(1, deadline_s=1.5, user_verifiers=[name]) as pool:
        first, *rest = pool.grade([(sample(name), "x")] + [(sample("math", "1"), "\\boxed{2}")] * 3)
    assert rest == [HONEST] * 3
    if isinstance(right, dict):
        assert first == Graded(right)
    elif right is not None:
        with pytest.raises(AssertionError, match=right):
            raise AssertionError(first.error)
    assert capfd.readouterr().out == ""
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            commands.append(path.read_bytes())
    assert not [one for one in commands if mark.encode() in one or str(file).encode() in one]


def test_payloads_larger_than_a_worker_end_neither_the_pool_nor_each_other(monkeypatch):
    """Many that are too large together are sent apart; one that is too large alone is invalid."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    requests = [(sample("length", row=i), "x" * (8 << 20)) for i in range(24)]
    requests[5] = (sample("length", row=5), "x" * (260 << 20))
    with RewardPool(1, deadline_s=20.0, table=HOSTILE, memory_bytes=256 << 20) as pool:
        graded = pool.grade(requests)
    assert [i for i, item in enumerate(graded) if not item.valid] == [5]
    assert "was given 260 MiB" in graded[5].error


def test_a_worker_that_cannot_be_replaced_costs_rows_and_not_the_run(hostile_pool, monkeypatch):
    assert hostile_pool.grade([(sample("length"), "x")]) == [Graded({"length": 1.0})]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/no/such/python")
        graded = hostile_pool.grade([(sample("exits"), ""), (sample("length"), "x")])
    assert [item.valid for item in graded] == [False, False]
    assert "could not start" in graded[1].error
    assert hostile_pool.grade([(sample("length"), "xx")]) == [Graded({"length": 2.0})]


def test_a_pool_whose_first_worker_cannot_start_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with RewardPool(1) as pool, pytest.raises(RuntimeError, match="verifier worker could not start"):
        pool.grade([(sample("math"), "")])


def test_signals_to_the_whole_group_leave_the_workers_at_work(tmp_path):
    """A notice of preemption reaches every process of the group; the step that it interrupts is finished."""
    begun = tmp_path / "begun"
    code = f"""
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from mmrl.rewards.pool import RewardPool
from mmrl.sample import Sample
signal.signal(signal.SIGTERM, lambda *_: None)
signal.signal(signal.SIGINT, lambda *_: None)
with RewardPool(1, deadline_s=20.0, table={HOSTILE!r}) as pool:
    handle = pool.submit(Sample("a", "", "", verifier="half_a_second"), {str(begun)!r})
    while not Path({str(begun)!r}).exists():
        time.sleep(0.01)
    os.killpg(0, signal.SIGTERM)
    os.killpg(0, signal.SIGINT)
    print(handle.result())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, start_new_session=True
    )
    assert done.stdout.strip() == str(Graded({"accuracy": 1.0})), done.stderr


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
