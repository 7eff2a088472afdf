"""Calls in killable processes: values and bytes come back, whatever fails is an answer of its own call."""

from pathlib import Path

import pytest

from mmrl.workers.pool import Answer, WorkerPool
from mmrl.workers.worker import pack, unpack


@pytest.fixture
def pool(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with WorkerPool(1, "worker_table:FUNCTIONS", deadline_s=1.0) as pool:
        yield pool


def test_arguments_by_position_and_by_name(pool):
    assert pool.submit("join", ("a", "b")).result() == Answer("a b")
    assert pool.submit("raises", {"text": "no"}).result() == Answer(error="ValueError: no")
    wrong = pool.submit("raises", {"words": "no"}).result()
    assert wrong.value is None
    assert "unexpected keyword argument" in wrong.error


def test_bytes_and_numbers_of_numpy_come_back(pool):
    data = bytes(range(256)) * 4000  # more than a pipe holds
    value = pool.submit("reverse", (data,)).result().value
    assert value == {"data": data[::-1], "length": len(data), "nested": [data, {"again": data}]}


@pytest.mark.parametrize(
    ("function", "payload", "reason"),
    [
        ("sleep", (), "tool 'sleep' ran past its deadline of 1.0 s"),
        ("exits", (), r"tool 'exits' ended its worker \(exit status 3\)"),
        ("rubbish", (), "tool 'rubbish' "),
        ("an_object", (), "TypeError: a worker cannot send a object"),
        ("unheard_of", (), "KeyError: 'unheard_of'"),
        ("raises", ("x" * 10_000,), "ValueError: x{100}"),
    ],
)
def test_a_failure_is_an_answer_and_spares_the_others(pool, function, payload, reason):
    before, bad, after = (
        pool.submit(*call) for call in (("join", ("a",)), (function, payload), ("join", ("b",)))
    )
    assert (before.result().value, after.result().value) == ("a", "b")
    assert bad.result().value is None
    assert len(bad.result().error) <= 500
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(bad.result().error)


def test_loaders_run_once_and_workers_have_no_jax(pool):
    assert [pool.submit("load_order", ()).result().value for _ in range(2)] == [["loaded"]] * 2
    assert pool.submit("modules", ()).result() == Answer([])


def test_a_closed_pool_takes_nothing(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with WorkerPool(1, "worker_table:FUNCTIONS", deadline_s=60.0) as pool:
        waiting = [pool.submit("sleep", ()) for _ in range(3)]
    closed = Answer(error="the pool was closed before this was done")
    assert [future.result(timeout=1) for future in waiting] == [closed] * 3
    with pytest.raises(ValueError, match="closed"):
        pool.submit("join", ("a",))


@pytest.mark.parametrize("table", ["no_such_table:FUNCTIONS", "worker_table:NO_SUCH_NAME"])
def test_a_table_that_is_not_there_is_an_error(monkeypatch, table):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with WorkerPool(1, table) as pool, pytest.raises(RuntimeError, match=table):
        pool.submit("join", ()).result()


@pytest.mark.parametrize("message", [b"\xff", b"{", b'{"bytes in base64": "!"}'])
def test_messages_that_nobody_packed(message):
    with pytest.raises(ValueError, match=r"."):
        unpack(message)
    assert unpack(pack({"bytes in base64": 1})) == {"bytes in base64": 1}
