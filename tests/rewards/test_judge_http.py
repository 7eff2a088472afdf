"""What the judge's client sends to and reads from a server, without one."""

import json

from judge_stub import completion

from mmrl.rewards.judge_http import completion_of, endpoint_of, seconds_of


def test_endpoints():
    assert endpoint_of("https://host/v1/").path == "/v1"
    assert endpoint_of("http://host:80/v1/chat/completions").path == "/v1"
    assert endpoint_of("http://[::1]:80").host == "::1"


def test_retry_after_in_both_forms():
    now = 1_700_000_000.0
    assert seconds_of("2", now) == 2.0
    assert seconds_of(" 1.5 ", now) == 1.5
    assert seconds_of("Tue, 14 Nov 2023 22:13:30 GMT", now) == 10.0
    assert seconds_of("Tue, 14 Nov 2023 22:13:10 GMT", now) == 0.0
    for text in ("", "-1", "nan", "inf", "soon", "9" * 400, "Tue, 99 Nov 2023 22:13:30 GMT"):
        assert seconds_of(text, now) == 0.0


def test_completions():
    assert completion_of(completion("a")) == ("a", 100, False)
    assert completion_of(completion("a", "length")) == ("a", 100, True)
    odd = {"choices": [{"message": {"content": "a"}}], "usage": {"total_tokens": -5}}
    assert completion_of(json.dumps(odd).encode()) == ("a", 0, False)
    assert completion_of(json.dumps({**odd, "usage": None}).encode()) == ("a", 0, False)
