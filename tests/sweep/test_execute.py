"""Runs as processes, a stand-in for training in each: so many at once, stages shared, failures, signals."""

import os
import signal
import threading
import time

import pytest

from mmrl.sweep import Sweep, load_sweep, param, table
from mmrl.sweep.definition import plan_runs, run_states, write_sweep
from mmrl.sweep.execute import execute, last_line


@pytest.fixture
def sweep(quickstart):
    return Sweep(quickstart, param("algorithm.perception_kl", 0.1, 0.2, 0.3), seeds=(0, 1))


@pytest.fixture
def members(sweep, tmp_path):
    return plan_runs(sweep, tmp_path / "sweep")


def run(members, command, at_once=1, wait=True, pending=None):
    lines: list[str] = []
    ended = execute(
        members, members if pending is None else pending, command, at_once, wait=wait, show=lines.append
    )
    return ended, lines


def most_at_once(events):
    running = most = 0
    for what, *_ in events:
        running += {"start": 1, "end": -1}.get(what, 0)
        most = max(most, running)
    return most


@pytest.mark.parametrize("at_once", [1, 3])
def test_so_many_run_at_once_and_are_finished(members, standin, at_once):
    ended, lines = run(members, standin(members, together=at_once), at_once, wait=False)
    assert most_at_once(standin.events()) == at_once
    assert {one.name for one in ended.finished} == {one.name for one in members}
    assert set(run_states(members).values()) == {"finished"}
    assert lines[-1].startswith("sweep 6/6 done, 0 running  [")
    if at_once == 1:
        started = [name for what, name in (event[:2] for event in standin.events()) if what == "start"]
        assert started == [one.name for one in members]


def test_a_failure_ends_no_other_and_is_tried_again(members, standin):
    bad = "perception_kl=0.2/seed0"
    command = standin(members, fails=[bad])
    ended, lines = run(members, command, 2)
    assert [(one.name, said) for one, said in ended.failed] == [(bad, "out of memory [31m<b>")]
    assert len(ended.finished) == 5
    assert "1 failed" in lines[-1]
    left = [one for one in members if run_states(members)[one.name] != "finished"]
    assert [one.name for one in left] == [bad]
    ended, _ = run(members, standin(members), pending=left)
    assert [one.name for one in ended.finished] == [bad]
    text = (left[0].workdir / "log.txt").read_text()
    assert text.startswith("mmrl sweep: the stages")
    assert "out of memory" in text


def test_stages_are_made_once_for_a_seed_and_shared(members, standin):
    run(members, standin(members, stage_seconds=0.1), 3)
    made = [event[1:] for event in standin.events() if event[0] == "make"]
    assert len(made) == 4
    assert {(name.split("/")[1], stage) for name, stage in made} == {
        (seed, stage) for seed in ("seed0", "seed1") for stage in ("world", "cold_start")
    }
    maker = {name.split("/")[1]: name for name, _ in made}
    for one in members:
        for stage in ("world", "cold_start"):
            weights = (one.workdir / stage / "model" / "weights").read_text()
            assert weights == f"of {maker[one.workdir.name]}"
        assert not list(one.workdir.glob(".*"))
    # A run waits for the stages of its seed, and lets one of the other seed go first.
    first = [event[1] for event in standin.events() if event[0] == "start"][:2]
    assert {name.split("/")[1] for name in first} == {"seed0", "seed1"}


def test_stages_are_not_shared_with_another_cold_start(quickstart, tmp_path, standin):
    members = plan_runs(Sweep(quickstart, param("cold_start.learning_rate", 0.1, 0.2)), tmp_path / "sweep")
    run(members, standin(members))
    assert len([event for event in standin.events() if event[0] == "make"]) == 4


def test_a_stage_that_is_begun_is_left_alone(members, standin):
    begun = members[1].workdir / "cold_start"
    begun.mkdir(parents=True)
    (begun / "half").touch()
    run(members, standin(members), pending=members[:2])
    assert [event[1:] for event in standin.events() if event[0] == "make"][2:] == [
        [members[1].name, "cold_start"]  # and the world is shared
    ]
    assert (begun / "half").exists()


def test_the_one_that_makes_a_stage_may_fail_before_it_is_made(members, standin):
    (members[0].workdir / "world").mkdir(parents=True)
    (members[0].workdir / "world" / "model").touch()  # so that making the folder fails
    ended, _ = run(members, standin(members), 2, pending=members[:3])
    assert [one.name for one, _ in ended.failed] == [members[0].name]
    assert {one.name for one in ended.finished} == {members[1].name, members[2].name}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_once_and_no_more_are_begun(members, standin, number):
    def interrupt():
        while sum(event[0] == "start" for event in standin.events()) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    thread = threading.Thread(target=interrupt)
    command = standin(members, seconds=60)
    thread.start()
    ended, _ = run(members, command, 2, wait=False)
    thread.join()
    assert ended.signal == number
    assert not ended.failed
    assert not ended.finished
    told = [event for event in standin.events() if event[0] == "signal"]
    assert [event[2] for event in told] == [str(int(number))] * 2
    assert len(list(run_states(members).values())) == 6
    assert sum(state == "begun" for state in run_states(members).values()) == 2
    assert signal.getsignal(number) == before
    ended, _ = run(members, standin(members), 3)
    assert len(ended.finished) == 6


def test_a_run_that_leaves_nothing_here_is_neither_finished_nor_failed(members):
    ended, _ = run(members, ("true",), pending=members[:1])
    assert [one.name for one in ended.elsewhere] == [members[0].name]
    assert not ended.finished
    assert not ended.failed


def test_the_table_of_what_has_run(sweep, members, standin, tmp_path):
    write_sweep(sweep, tmp_path / "sweep", ())
    heights = {one.name: [0.0, one.seed + one.config.algorithm["perception_kl"]] for one in members}
    run(members, standin(members, heights=heights), 3, pending=members[:5])
    rows = {row.arm: row for row in table(load_sweep(tmp_path / "sweep", ["heldout/accuracy"]))}
    assert rows["perception_kl=0.2"].value.mean == pytest.approx(0.7)
    assert (rows["perception_kl=0.3"].finished, rows["perception_kl=0.3"].planned) == (1, 2)


def test_last_line_of_a_log(tmp_path):
    log = tmp_path / "log.txt"
    assert last_line(log) == "it said nothing"
    log.write_bytes(b"one\nrl 3/60\rrl 4/60\x07\xff\n \n")
    assert last_line(log) == "rl 4/60\ufffd"
