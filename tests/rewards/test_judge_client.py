"""The client of a judge, against a server that fails in every way it can."""

import json
import multiprocessing
import socket
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from judge_stub import Stub, completion, verdict

from mmrl.rewards import judge_client
from mmrl.rewards.judge_client import (
    ChatServer,
    Judge,
    JudgeClient,
    ReplyCache,
    check_judge,
    read_completion,
    read_retry_after,
)
from mmrl.rewards.verifier import Graded
from mmrl.sample import Sample

KEY = "sk-very-secret-0123456789"
RIGHT, WRONG = Graded({"judge": 1.0}), Graded({"judge": 0.0})


def sample(row=0, answer="rust", verifier="judge", **facts):
    return Sample(f"test:{row}", "Why?", answer, verifier=verifier, facts=facts)


def judge_at(stub, **settings):
    return Judge(stub.endpoint, "stub", **{"timeout_seconds": 5.0, "cache": "", **settings})


def ask(pool, *responses):
    handles = [pool.submit(sample(row), response) for row, response in enumerate(responses)]
    return [handle.result(timeout=30) for handle in handles]


@pytest.fixture(autouse=True)
def in_haste(monkeypatch):
    monkeypatch.setattr(judge_client, "FIRST_WAIT_S", 0.01)


def test_answers_are_graded_and_empty_ones_are_not_asked_about():
    with Stub() as stub, JudgeClient(judge_at(stub, max_tokens=7)) as pool:
        assert ask(pool, "\\boxed{rust}", "\\boxed{paint}", "", "\\boxed{ }") == [RIGHT, WRONG, WRONG, WRONG]
        listed = sample(verifier="checklist", checklist=["rust", "iron"])
        assert pool.submit(listed, "some rust").result(timeout=5) == Graded({"checklist": 0.5})
        found = pool.stats()
    assert len(stub.seen) == 3
    assert stub.keys == [None] * 3
    body = stub.seen[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("stub", 0, 7)
    assert (found["requests"], found["unasked"], found["tokens"], found["failed"]) == (3, 2, 300, 0)
    assert 0 < found["seconds"] < 1


@pytest.mark.parametrize(
    "fault",
    [
        "status 500",
        "status 503 Retry-After: 0",
        "status 429",
        "status 429 Retry-After: nonsense",
        "half",
        "huge",
        "drop",
        "raw {",
        "raw []",
        'raw {"choices": []}',
        'raw {"choices": [{"message": null}]}',
        'raw {"choices": [{"message": {"content": null}}]}',
        "raw " + "[" * 100_000,
        'say The score is {"score": 0}',
        'say {"score": "0"}',
        'say {"score": 0, "score": 1}',
        "say",
    ],
)
def test_what_fails_once_is_asked_again(fault):
    with Stub([fault]) as stub, JudgeClient(judge_at(stub)) as pool:
        assert ask(pool, "\\boxed{rust}") == [RIGHT]
        assert pool.stats()["retries"] == 1
    assert len(stub.seen) == 2


@pytest.mark.parametrize("fault", ["hang", "drip", "drip_headers"])
def test_a_request_past_its_time_is_ended_and_made_again(fault):
    with Stub([fault]) as stub, JudgeClient(judge_at(stub, timeout_seconds=0.3)) as pool:
        start = time.monotonic()
        assert ask(pool, "\\boxed{rust}") == [RIGHT]
        assert time.monotonic() - start < 2.0


@pytest.mark.parametrize(
    ("fault", "reason", "requests"),
    [
        ("status 500", "the server answers 500: no luck", 3),
        ("status 400", "the server answers 400: no luck", 1),
        ("status 302 Location: /", "the server answers 302", 1),
        ("status 429 Retry-After: 3600", "it asks to wait for 3600 s", 1),
        ('say {"score": 7}', "its reply cannot be read: '{\"score\": 7}'", 3),
        ("say I cannot tell.", "its reply cannot be read: 'I cannot tell.'", 3),
        ("cut", "cut off by config.reward.judge.max_tokens=256", 1),
        ("raw {", "not the JSON of a chat completion", 3),
        ("huge", "the reply has over 1048576 bytes", 3),
        ("drop", "the server cannot be reached: RemoteDisconnected", 3),
        ("hang", "there was no reply within 0.5 s", 3),
    ],
)
def test_what_fails_always_is_invalid_and_not_0(fault, reason, requests):
    with Stub([fault] * 9) as stub, JudgeClient(judge_at(stub, retries=2, timeout_seconds=0.5)) as pool:
        (graded,) = ask(pool, "\\boxed{rust}")
        assert pool.stats()["failed"] == 1
    assert (graded.valid, graded.components) == (False, {})
    assert "test:0" in graded.error
    assert reason in graded.error
    assert len(stub.seen) == requests


def test_an_unreadable_reply_is_answered_by_a_reminder():
    with Stub(["say Certainly! It is right."]) as stub, JudgeClient(judge_at(stub)) as pool:
        assert ask(pool, "\\boxed{rust}") == [RIGHT]
    first, second = (body["messages"] for body in stub.seen)
    assert second[:2] == first
    assert [message["role"] for message in second[2:]] == ["assistant", "user"]
    assert second[2]["content"] == "Certainly! It is right."


def test_a_wrong_row_is_invalid_and_nobody_is_asked():
    with Stub() as stub, JudgeClient(judge_at(stub)) as pool:
        graded = [
            pool.submit(sample(answer=""), "\\boxed{rust}").result(timeout=5),
            pool.submit(sample(verifier="math"), "\\boxed{rust}").result(timeout=5),
        ]
    assert [one.valid for one in graded] == [False, False]
    assert "the answer, which is empty" in graded[0].error
    assert "'math' is not judged" in graded[1].error
    assert stub.seen == []


def test_a_server_that_asks_to_wait_is_left_alone_by_all_threads():
    with (
        # The other thread is busy until the first has read that it shall wait.
        Stub(["status 429 Retry-After: 1", "slow"]) as stub,
        JudgeClient(judge_at(stub, concurrency=2)) as pool,
    ):
        assert ask(pool, *[f"\\boxed{{rust {k}}}" for k in range(8)]) == [WRONG] * 8
    first, second, *rest = sorted(stub.times)
    assert second - first < 0.5  # was under way
    assert all(later - first >= 1.0 for later in rest)


def test_waits_grow_and_depend_on_the_seed_alone(monkeypatch):
    monkeypatch.setattr(judge_client, "FIRST_WAIT_S", 0.5)

    def waits(seed):
        with Stub() as stub, JudgeClient(judge_at(stub), seed=seed) as pool:
            return [pool._wait_before_retry("key", attempt, 0.0) for attempt in range(12)]

    assert waits(0) == waits(0) != waits(1)
    assert all(0.25 * 2**k <= wait <= 0.5 * 2**k for k, wait in enumerate(waits(0)[:6]))
    assert max(waits(0)) <= judge_client.MAX_WAIT_S


def test_concurrency_is_bounded_and_used():
    with Stub(seconds=0.03) as stub, JudgeClient(judge_at(stub, concurrency=3)) as pool:
        ask(pool, *[f"\\boxed{{{k}}}" for k in range(12)])
    assert stub.busiest == 3


def test_the_same_question_under_way_is_asked_once():
    with Stub(seconds=0.2) as stub, JudgeClient(judge_at(stub)) as pool:
        handles = [pool.submit(sample(row), "\\boxed{rust}") for row in range(6)]
        graded = [handle.result(timeout=5) for handle in handles]
        assert (pool.stats()["shared"], pool.stats()["requests"]) == (5, 1)
    assert graded == [RIGHT] * 6
    assert len(stub.seen) == 1
    graded[0].components["judge"] = 7.0
    assert graded[1] == RIGHT


def test_invalid_gradings_that_share_a_request_name_their_own_rows():
    with Stub(["status 400"], seconds=0.1) as stub, JudgeClient(judge_at(stub)) as pool:
        graded = [
            handle.result(timeout=5) for handle in [pool.submit(sample(k), "\\boxed{a}") for k in (3, 4)]
        ]
        assert pool.stats()["failed"] == 2
    assert ["test:3" in graded[0].error, "test:4" in graded[1].error] == [True, True]


def test_replies_are_kept_on_disk_and_unreadable_ones_are_not(tmp_path):
    cache = str(tmp_path / "folder" / "judge.sqlite3")
    with Stub(["status 400"]) as stub, JudgeClient(judge_at(stub, cache=cache)) as pool:
        assert [one.valid for one in ask(pool, "\\boxed{paint}")] == [False]
        assert ask(pool, "\\boxed{rust}", "\\boxed{paint}") == [RIGHT, WRONG]
    with Stub() as other, JudgeClient(judge_at(other, cache=cache)) as pool:
        assert ask(pool, "\\boxed{rust}", "\\boxed{paint}", "\\boxed{oil}") == [RIGHT, WRONG, WRONG]
        assert (pool.stats()["cached"], pool.stats()["requests"]) == (2, 1)
    assert len(other.seen) == 1
    with Stub() as stub, JudgeClient(replace(judge_at(stub, cache=cache), model="other")) as pool:
        ask(pool, "\\boxed{rust}")
    assert len(stub.seen) == 1


def test_the_budget_holds_over_a_restart_and_is_told_once(tmp_path):
    cache, told = str(tmp_path / "judge.sqlite3"), []
    questions = [f"\\boxed{{{k}}}" for k in range(8)]
    with Stub(["status 500"]) as stub:
        settings = judge_at(stub, cache=cache, max_requests=5, concurrency=2)
        with JudgeClient(settings, say=told.append) as pool:
            assert [one.valid for one in ask(pool, *questions[:2])] == [True, True]  # and one retry
            assert pool.stats()["spent"] == 3
        with JudgeClient(settings, say=told.append) as pool:
            graded = ask(pool, *questions)
            assert pool.stats()["spent"] == 5
            assert pool.stats()["failed"] == 4
        with JudgeClient(settings, run="another", say=told.append) as pool:
            assert all(one.valid for one in ask(pool, *questions[:5]))
        assert len(stub.seen) == 6
    assert [one.valid for one in graded] == [True] * 2 + [one.valid for one in graded[2:]]
    assert sum(one.valid for one in graded) == 4
    reasons = {one.error.partition(": ")[2] for one in graded if not one.valid}
    assert reasons == {"verifier 'judge': the judge's budget of 5 requests is used up"}
    assert len(told) == 1
    assert "raise config.reward.judge.max_requests" in told[0]


def test_several_processes_share_a_cache_and_a_budget(tmp_path):
    path = str(tmp_path / "judge.sqlite3")
    with multiprocessing.get_context("spawn").Pool(3) as processes:
        assert sum(processes.map(_spend_forty, [path] * 3)) == 100
    with ReplyCache(path, "run") as cache:
        assert cache.spent == 100
        assert not cache.spend(100)
        assert [cache.get(f"{k}") for k in range(40)] == [f"reply {k}" for k in range(40)]


def _spend_forty(path):
    def spend(cache, k):
        cache.put(f"{k}", f"reply {k}")
        return cache.spend(100)

    with ReplyCache(path, "run") as cache, ThreadPoolExecutor(4) as threads:
        return sum(threads.map(lambda k: spend(cache, k), range(40)))


def test_a_budget_holds_without_its_file(tmp_path):
    with ReplyCache(str(tmp_path / "judge.sqlite3"), "run") as cache:
        assert cache.spend(3)
        cache.close()
        assert [cache.spend(3) for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize("damage", ["garbage", "header", "middle"])
def test_a_damaged_cache_is_set_aside(tmp_path, damage):
    path, told = tmp_path / "judge.sqlite3", []
    with ReplyCache(str(path)) as cache:
        for k in range(300):
            cache.put(f"key {k}", "a reply" * 20)
    whole = path.read_bytes()
    harmed = {
        "garbage": b"no data base" * 100,
        "header": b"\x00" * 100 + whole[100:],
        "middle": whole[:4096] + b"\xff" * (len(whole) - 4096),
    }
    path.write_bytes(harmed[damage])
    with Stub() as stub, JudgeClient(judge_at(stub, cache=str(path)), say=told.append) as pool:
        assert ask(pool, "\\boxed{rust}") == [RIGHT]
    assert len(told) == 1
    assert "is damaged" in told[0]
    (aside,) = [one for one in tmp_path.iterdir() if ".damaged-" in one.name and one.name[-1].isdigit()]
    assert str(aside) in told[0]
    with Stub() as stub, JudgeClient(judge_at(stub, cache=str(path)), say=told.append) as pool:
        assert ask(pool, "\\boxed{rust}") == [RIGHT]
    assert stub.seen == []
    assert len(told) == 1


def test_requests_count_on_when_a_cache_is_damaged_under_way(tmp_path):
    path = tmp_path / "judge.sqlite3"
    with ReplyCache(str(path), say=lambda _: None) as cache:
        assert [cache.spend(5) for _ in range(3)] == [True] * 3
        with sqlite3.connect(path) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for ending in ("-wal", "-shm"):
            Path(f"{path}{ending}").unlink(missing_ok=True)
        path.write_bytes(b"no data base" * 1000)
        cache.put("a", "b")
        assert [cache.spend(5) for _ in range(3)] == [True, True, False]


def test_a_cache_that_cannot_be_written_to_costs_replies_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("mmrl.rewards.judge_client.CACHE_LOCK_S", 0.1)
    path = tmp_path / "judge.sqlite3"
    with Stub() as stub, JudgeClient(judge_at(stub, cache=str(path), max_requests=3)) as pool:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        assert ask(pool, "\\boxed{rust}") == [RIGHT]
        other.close()
        assert [one.valid for one in ask(pool, *(f"\\boxed{{{k}}}" for k in range(4)))].count(True) == 2


def test_a_cache_that_cannot_be_opened_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "judge.sqlite3"):
        with pytest.raises(ValueError, match="cannot be opened"):
            ReplyCache(str(path))


@pytest.mark.parametrize("status", [400, 401, 500])
def test_the_key_is_sent_and_never_told(monkeypatch, status, capsys, tmp_path):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with Stub([f"status {status}"] * 20) as stub:
        cache = tmp_path / "judge.sqlite3"
        judge = judge_at(stub, key_variable="JUDGE_KEY", retries=1, cache=str(cache))
        with JudgeClient(judge) as pool:
            (graded,) = ask(pool, "\\boxed{rust}")
        if status != 500:
            with pytest.raises(ValueError, match=f"answers {status}") as error:
                check_judge(judge)
            assert KEY not in str(error.value)
            assert error.value.__cause__ is None
    assert set(stub.keys) == {f"Bearer {KEY}"}
    assert "no luck, Bearer ***" in graded.error
    assert KEY not in graded.error + repr(pool) + repr(vars(pool)["_judge"]) + str(capsys.readouterr())
    assert KEY.encode() not in cache.read_bytes()


@pytest.mark.parametrize(
    ("value", "reason"), [(None, "is not set"), ("", "is not set"), ("a\nb", "characters")]
)
def test_keys_that_cannot_be_sent(monkeypatch, value, reason):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    judge = Judge("http://localhost:1/v1", "m", "JUDGE_KEY")
    for begin in (check_judge, JudgeClient):
        with pytest.raises(ValueError, match=f"'JUDGE_KEY'.*key_variable.*{reason}") as error:
            begin(judge)
        assert value is None or value == "" or value not in str(error.value)


@pytest.mark.parametrize("fault", ["hang", "drip", "status 429 Retry-After: 60"])
def test_closing_while_requests_hang_is_prompt(fault):
    with Stub([fault] * 9) as stub:
        with JudgeClient(judge_at(stub, timeout_seconds=60.0, concurrency=2)) as pool:
            handles = [pool.submit(sample(k), f"\\boxed{{{k}}}") for k in range(5)]
            while not stub.seen:
                time.sleep(0.01)
            start = time.monotonic()
        assert time.monotonic() - start < 0.9
    graded = [handle.result(timeout=0) for handle in handles]
    assert not any(one.valid for one in graded)
    assert all("the pool was closed" in one.error for one in graded)
    with pytest.raises(ValueError, match="closed"):
        pool.submit(sample(), "\\boxed{a}")
    assert not any(thread.name.startswith("judge") for thread in threading.enumerate())


def test_a_connection_is_kept_and_a_server_that_closes_it_costs_no_retry():
    with Stub(["", "drop"]) as stub, JudgeClient(judge_at(stub, concurrency=1)) as pool:
        for k in range(3):
            assert ask(pool, f"\\boxed{{{k}}}") == [WRONG]
        assert pool.stats()["retries"] == 0
    assert len(stub.seen) == 4


def test_check_asks_for_a_word(monkeypatch):
    with Stub(["", "status 503", "status 404", "status 401", "raw {}"]) as stub:
        for _ in range(2):  # a server that is busy is there
            check_judge(judge_at(stub))
        with pytest.raises(ValueError, match=r"404.*fix config.reward.judge.endpoint or .model"):
            check_judge(judge_at(stub))
        with pytest.raises(ValueError, match=r"401.*key_variable"):
            check_judge(judge_at(stub))
        with pytest.raises(ValueError, match=r"not the JSON.*fix config.reward.judge.endpoint"):
            check_judge(judge_at(stub))
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        with pytest.raises(ValueError, match=r"cannot be reached.*start the server, or fix"):
            check_judge(Judge(f"http://127.0.0.1:{port}/v1", "m"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"endpoint": ""},
        {"model": ""},
        {"concurrency": 0},
        {"timeout_seconds": 0.0},
        {"timeout_seconds": float("nan")},
        {"retries": -1},
        {"max_requests": -1},
        {"max_tokens": 0},
        {"endpoint": "localhost:8000"},
        {"endpoint": "ftp://host/v1"},
        {"endpoint": "http://user:pass@host/v1"},
        {"endpoint": "http://host:port/v1"},
        {"endpoint": "http://host/v1?key=1"},
    ],
)
def test_senseless_settings(wrong):
    judge = replace(Judge("http://localhost:1/v1", "m"), **wrong)
    for begin in (check_judge, JudgeClient):
        with pytest.raises(ValueError, match=f"config.reward.judge.{next(iter(wrong))}") as error:
            begin(judge)
        assert "pass" not in str(error.value)


def test_the_stub_goes_by_its_rule():
    pool_sample = sample(verifier="checklist", checklist=["a", "b"])
    messages = judge_client.JUDGED["checklist"].request(pool_sample, "a")
    assert json.loads(verdict(messages)) == {"1": "yes", "2": "no"}


def test_endpoints():
    def server(url):
        return ChatServer(Judge(url, "m"))

    assert server("https://host/v1/").path == "/v1/chat/completions"
    assert server("https://host/v1/").connect().port == 443
    assert server("http://host:80/v1/chat/completions").path == "/v1/chat/completions"
    assert server("http://[::1]:80").connect().host == "::1"


def test_retry_after_in_both_forms():
    now = 1_700_000_000.0
    assert read_retry_after("2", now) == 2.0
    assert read_retry_after(" 1.5 ", now) == 1.5
    assert read_retry_after("Tue, 14 Nov 2023 22:13:30 GMT", now) == 10.0
    assert read_retry_after("Tue, 14 Nov 2023 22:13:10 GMT", now) == 0.0
    for text in ("", "-1", "nan", "inf", "soon", "9" * 400, "Tue, 99 Nov 2023 22:13:30 GMT"):
        assert read_retry_after(text, now) == 0.0


def test_completions():
    assert read_completion(completion("a")) == ("a", 100, False)
    assert read_completion(completion("a", "length")) == ("a", 100, True)
    odd = {"choices": [{"message": {"content": "a"}}], "usage": {"total_tokens": -5}}
    assert read_completion(json.dumps(odd).encode()) == ("a", 0, False)
    assert read_completion(json.dumps({**odd, "usage": None}).encode()) == ("a", 0, False)
