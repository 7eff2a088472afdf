"""`mmrl report` from its words to its file."""

import json
import re

import pytest
from report_cases import rollouts_shown, write_run

from mmrl import cli


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1])


def fails(capsys, *words) -> str:
    assert cli.main(["report", *map(str, words)]) == 2
    return capsys.readouterr().err


def test_a_finished_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mmrl.report.report.rollout_sample", rollouts_shown)
    run, out = write_run(tmp_path / "run"), tmp_path / "page.html"
    assert cli.main(["report", str(run), f"--out={out}", "--rollouts=4"]) == 0
    assert re.search(r"page\.html +\(\d\.\d MB", capsys.readouterr().out)
    rollouts = data_of(out)["rollouts"]
    assert len(rollouts) == 4
    one = rollouts[0]
    assert (one["kind"], one["reward"], one["group"]) == ("right", 0.5, [1, 1])
    assert one["parts"]["accuracy"] == 1
    assert one["images"][0].startswith("data:image/png;base64,")
    assert one["before"]["response"] == "".join(one["pieces"])
    assert len(one["exact"]) == len(one["k3"]) == len(one["pieces"])


def test_rollouts_are_divided_over_runs_and_none_reads_no_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("mmrl.report.report.rollout_sample", rollouts_shown)
    runs = [str(write_run(tmp_path / "sweep" / name / "seed0", name=name)) for name in ("papo_g", "vppo")]
    out = tmp_path / "page.html"
    assert cli.main(["report", str(tmp_path / "sweep"), f"--out={out}", "--rollouts=5"]) == 0
    assert [one["run"] for one in data_of(out)["rollouts"]] == [0, 0, 0, 1, 1]
    assert [one["name"] for one in data_of(out)["runs"]] == ["papo_g/seed0", "vppo/seed0"]
    monkeypatch.setattr("mmrl.report.report.rollout_sample", lambda *_, **__: pytest.fail("weights are read"))
    assert cli.main(["report", *runs, f"--out={out}", "--rollouts=0"]) == 0
    assert data_of(out)["rollouts"] == []


def test_without_weights_responses_are_shown_without_perception(tmp_path):
    run, out = write_run(tmp_path / "run"), tmp_path / "page.html"
    assert cli.main(["report", str(run), f"--out={out}", "--rollouts=3"]) == 0
    rollouts = data_of(out)["rollouts"]
    assert len(rollouts) == 3
    assert all("exact" not in one and one["why"] for one in rollouts)
    assert "without token perception" in out.read_text()


def test_an_unfinished_run_without_held_out_data(tmp_path):
    run, out = write_run(tmp_path / "run", finished=False, heldout=""), tmp_path / "page.html"
    assert cli.main(["report", str(run), f"--out={out}"]) == 0
    assert "run is not finished" in out.read_text()
    (run / "metrics.jsonl").unlink()
    assert cli.main(["report", str(run), f"--out={out}"]) == 0
    assert all(not section["panels"] for section in data_of(out)["sections"])


def test_wrong_words_are_one_line_and_leave_no_file(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    empty = tmp_path / "empty"
    empty.mkdir()
    out = f"--out={tmp_path / 'page.html'}"
    assert f"{empty} holds no run" in fails(capsys, run, empty, out)
    assert "nowhere does not exist" in fails(capsys, tmp_path / "nowhere", out)
    assert "--rollouts: '-1' should be" in fails(capsys, run, out, "--rollouts=-1")
    assert "is a folder" in fails(capsys, run, f"--out={empty}")
    assert "there is no folder" in fails(capsys, run, f"--out={tmp_path / 'no' / 'page.html'}")
    (empty / "config.json").write_text("{")
    error = fails(capsys, empty, out)
    assert "is damaged" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "starts.jsonl", "responses_before.jsonl", "responses_after.jsonl"]
)
@pytest.mark.parametrize(
    "content", [b'{"step": 1, "id', b"\xff", b"123", b"null", b'{"a": 1}', b"[" * 100_000]
)
def test_damaged_lines_are_left_out_and_named(tmp_path, capsys, name, content):
    run, out = write_run(tmp_path / "run", texts=("a", "b")), tmp_path / "page.html"
    path = run / name
    lines = path.read_bytes().splitlines() if path.is_file() else [b""]
    path.write_bytes(b"\n".join([content, *lines[1:], b""]))
    assert cli.main(["report", str(run), f"--out={out}", "--rollouts=0"]) == 0
    assert f"mmrl: warning: {path}, line 1, is damaged (" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"12", b'{"seconds": "x"}', b"[" * 100_000])
@pytest.mark.parametrize("name", ["summary.json", "config.json"])
def test_a_damaged_file_is_named(tmp_path, capsys, name, content):
    run = write_run(tmp_path / "run", texts=("a", "b"))
    (run / name).write_bytes(content)
    said = fails(capsys, run, f"--out={tmp_path / 'page.html'}", "--rollouts=0")
    assert str(run / name) in said
    assert said.count("\n") == 1
