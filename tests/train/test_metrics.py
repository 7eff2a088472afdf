"""The metrics file, the clock and the counter."""

import json

import jax
import jax.numpy as jnp
import pytest

from mmrl.run_folder import read_metrics
from mmrl.train.metrics import CompileCounter, Metrics, Phases
from mmrl.train.stages import summarise


def test_every_step_has_one_row_after_a_crash(tmp_path):
    metrics = Metrics(tmp_path, 0)
    for step in range(1, 6):
        metrics.write(step, {"x": float(step)})
    metrics.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "x"')  # the process died while writing
    metrics = Metrics(tmp_path, 3)
    metrics.write(4, {"x": 40.0})
    metrics.close()
    rows = read_metrics(tmp_path)
    assert [(row["step"], row["x"]) for row in rows] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]


WHOLE = [{"step": step, "heldout/accuracy": step / 10, "x": 1.0} for step in range(4)]
DAMAGED = {
    b'{"step": 1, "heldout/accur': "not JSON: ",
    b'{"step": 1, "x": 1.0}\xff': "not UTF-8 at byte 22",
    b"123": "not an object",
    b'{"a": 1}': "it has no step",
    b'{"step": "1"}': "it has no step",
    b'{"step": true}': "it has no step",
    b'{"step": 1, "x": "high"}': "'x' is no number",
    b'{"step": 1, "x": 1' + b"0" * 400 + b"}": "'x' is no number",
    b"[" * 100_000: "not JSON: ",
    b"\x00\x00": "not JSON: ",
}


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_line_costs_no_other_and_is_set_aside(tmp_path, capsys, content, place):
    """Wherever it stands, the last included; the summary tells of no other step than it says."""
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps(row).encode() for row in WHOLE]
    there = [row for row in WHOLE if row["step"] != place]
    path.write_bytes(b"\n".join([*lines[:place], content, *lines[place + 1 :], b""]))
    said = f"{path}, line {place + 1}, is damaged ({DAMAGED[content]}"
    assert read_metrics(tmp_path) == there
    assert said in capsys.readouterr().err
    summary = summarise(tmp_path, 3, 0.0)
    assert summary["accuracy_before"] == (None if place == 0 else 0.0)
    assert summary["accuracy_after"] == (None if place == 3 else 0.3)
    capsys.readouterr()
    Metrics(tmp_path, 3).close()
    aside = tmp_path / "metrics.jsonl.damaged"
    out = capsys.readouterr().out
    assert said in out
    assert f"it is kept in {aside}" in out
    assert aside.read_bytes() == content + b"\n"
    assert read_metrics(tmp_path) == there
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("cut", [1, 12, -1])
def test_a_last_line_cut_short_is_dropped_in_silence(tmp_path, capsys, cut):
    lines = [json.dumps(row) for row in WHOLE]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines[:3], lines[3][:cut]]))
    assert read_metrics(tmp_path) == WHOLE[:3]
    Metrics(tmp_path, 3).close()
    assert capsys.readouterr() == ("", "")
    assert [path.name for path in tmp_path.glob("metrics*")] == ["metrics.jsonl"]


def test_phases_add_up():
    phases = Phases()
    with phases("a"):
        pass
    with phases("a"), pytest.raises(RuntimeError):
        raise RuntimeError
    values = phases.metrics()
    assert set(values) == {"time/a", "time/step", "time/other"}
    assert values["time/a"] + values["time/other"] == pytest.approx(values["time/step"])


def test_compilations_are_counted():
    function = jax.jit(lambda x: x * 3 + 1)
    with CompileCounter() as counter:
        function(jnp.ones(3))
        once = counter.count
        function(jnp.ones(3))
        assert counter.count == once >= 1
        function(jnp.ones(4))
        assert counter.count > once
    after = counter.count
    function(jnp.ones(5))
    assert counter.count == after
