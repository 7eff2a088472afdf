"""A run on Cloud TPU VMs, against a stand-in of gcloud whose workers really run what is sent to them."""

import json
from pathlib import Path

import pytest
from cloud import CHECKS, FOUR_HOSTS, NAME, ONE_HOST, SPOT, TRAIN, TWO_HOSTS, UP


def test_a_run_from_nothing_to_its_end(cloud, capsys):
    assert cloud.launch(*FOUR_HOSTS, "--hours=2", project="") == 0
    assert cloud.calls() == ["config get-value project", *CHECKS, *UP, "storage rsync", "delete"]
    assert cloud.trained() == [f"1 {worker} {TRAIN} --coordinator=auto" for worker in range(4)]
    assert cloud.slices() == []
    assert Path("runs/papo/summary.json").exists()
    assert cloud.heard("16 chips of v5e: 16 chip-hours an hour, 32 in 2 h")
    assert cloud.heard("all programs fit, update with 50 % of the memory")
    assert cloud.heard("quota     TPUV5sPreemptibleLitepodPerProjectPerZoneForTPUAPI: 64 in us-west4-a")
    assert cloud.heard("WAITING_FOR_RESOURCES after 0 min")
    assert capsys.readouterr().out == "step 1 of worker 0\nreward \\x1b[31m0.5\n"


def test_one_machine_needs_no_bucket(cloud):
    assert cloud.launch(*ONE_HOST) == 0
    there = f"--workdir=../mmrl-runs/{NAME}"
    assert cloud.trained() == [f"1 0 mmrl train --config=experiments/tiny.py {there} --config.seed=3"]
    assert cloud.calls()[-3:] == ["look", "scp", "delete"]
    assert Path("runs/papo/summary.json").read_text() == "{}\n"
    assert cloud.slices() == []


def test_what_is_preempted_goes_on_with_the_same_command(cloud):
    cloud.set(preempted_at_look={"1": 2, "2": 3})
    cloud.endings("1.1 0 wait", "2.1 0 wait")
    assert cloud.launch(*SPOT) == 0
    assert cloud.trained() == [f"{slice_} 0 {TRAIN}" for slice_ in (1, 2, 3)]
    again = ["describe", "delete", *UP]
    assert cloud.since_checks() == [*UP, *again, *again, "storage rsync", "delete"]
    assert cloud.slices() == []


@pytest.mark.exhaustive
def test_restarts_come_to_an_end(cloud):
    cloud.set(preempted_at_look={"1": 1, "2": 1})
    cloud.endings("1.1 0 wait", "2.1 0 wait")
    with pytest.raises(ValueError, match="was lost 2 times: --restarts allows more"):
        cloud.launch(*SPOT, "--restarts=1")
    assert cloud.since_checks().count("create") == 2
    assert cloud.slices() == []


def test_a_machine_that_is_taken_with_its_disk_is_not_started_again(cloud):
    cloud.set(preempted_at_look={"1": 1})
    cloud.endings("1.1 0 wait")
    with pytest.raises(
        ValueError, match="was taken away, and the run with its disk: with --bucket it goes on"
    ):
        cloud.launch(*ONE_HOST)
    assert cloud.slices() == []


def test_a_lost_process_is_started_again_where_it_was(cloud):
    cloud.endings("1.1 0 75", "1.1 1 134")
    assert cloud.launch(*TWO_HOSTS) == 0
    train = TRAIN.replace("bucket/", "bucket/team/")
    assert cloud.trained() == sorted([f"1 {k} {train} --coordinator=auto" for k in (0, 0, 1, 1)])
    assert cloud.since_checks().count("create") == 1
    assert "stop" in cloud.calls()


def test_a_crash_is_shown_and_not_repeated(cloud):
    cloud.endings("1.1 0 75", "1.1 1 1")
    assert cloud.launch(*TWO_HOSTS) == 1
    assert cloud.heard("the log of t1v-n-5eed-w-1 ends:")
    assert cloud.heard("ValueError: what went wrong on worker 1")
    assert len(cloud.trained()) == 2
    assert cloud.since_checks()[-3:] == ["tail", "storage rsync", "delete"]
    assert cloud.slices() == []


@pytest.mark.exhaustive
def test_a_run_that_somebody_stopped_is_not_started_again(cloud):
    cloud.endings("1.1 0 143")
    assert cloud.launch(*ONE_HOST) == 143
    assert len(cloud.trained()) == 1
    assert cloud.slices() == []


@pytest.mark.exhaustive
def test_spot_machines_end_processes_before_they_go(cloud):
    cloud.endings("1.1 0 143")
    cloud.set(preempted_states=["ACTIVE"])

    def taken(seconds: float) -> None:
        path = cloud.state / "slices" / f"{NAME}.json"
        told = json.loads(path.read_text())
        if told["born"] == 1 and told["looks"]:
            path.write_text(json.dumps(told | {"states": ["SUSPENDED"]}))

    cloud.sleep = taken
    assert cloud.launch(*SPOT) == 0
    assert len(cloud.trained()) == 2


def test_a_slice_of_ours_is_used_again(cloud):
    cloud.have("ACTIVE")
    assert cloud.launch(*SPOT) == 0
    assert "create" not in cloud.calls()
    assert cloud.slices() == []


@pytest.mark.exhaustive
def test_a_slice_of_somebody_else_is_left(cloud):
    cloud.have("ACTIVE", ours=False)
    assert cloud.launch(*SPOT) == 0
    assert cloud.slices() == [NAME]
    assert cloud.heard("at its cost")


def test_a_spent_slice_of_ours_is_made_anew(cloud):
    cloud.have("SUSPENDED")
    assert cloud.launch(*SPOT) == 0
    assert cloud.since_checks()[:2] == ["delete", "create"]


def test_a_slice_of_another_type_is_not_touched(cloud):
    cloud.have("ACTIVE", accelerator="v5litepod-4")
    with pytest.raises(ValueError, match="is there, and is a v5litepod-4, not a v5litepod-8"):
        cloud.launch(*SPOT)
    assert cloud.since_checks() == []


def test_the_same_command_finds_the_run_that_goes_on(cloud):
    cloud.endings("1.1 0 wait")
    cloud.interrupt_at = 2  # the first wait is for the slice
    assert cloud.launch(*SPOT, "--keep") == 130
    assert cloud.slices() == [NAME]
    (cloud.state / "calls.jsonl").unlink()
    cloud.sleep = lambda seconds: (cloud.state / "finish").touch()
    assert cloud.launch(*SPOT) == 0
    assert cloud.since_checks() == ["look", "start", "look", "storage rsync", "delete"]
    assert len(cloud.trained()) == 1


def test_ctrl_c_while_waiting_deletes_what_was_asked_for(cloud):
    cloud.set(states=["WAITING_FOR_RESOURCES"])
    cloud.interrupt_at = 3
    assert cloud.launch(*SPOT) == 130
    assert cloud.since_checks() == ["create", "describe", "delete"]
    assert cloud.slices() == []


def test_ctrl_c_lets_the_run_save_its_last_step(cloud):
    cloud.endings("1.1 0 wait")
    cloud.interrupt_at = 2
    assert cloud.launch(*ONE_HOST) == 130
    assert cloud.since_checks()[-4:] == ["describe", "stop", "scp", "delete"]
    assert cloud.slices() == []
    assert Path("runs/papo/summary.json").exists()


@pytest.mark.exhaustive
def test_ctrl_c_leaves_a_slice_that_was_there(cloud):
    cloud.have("ACTIVE")
    cloud.endings("0.1 0 wait")
    cloud.interrupt_at = 1
    assert cloud.launch(*SPOT) == 130
    assert cloud.slices() == [NAME]
    assert cloud.heard(f"python -m launch tpu delete --name={NAME} --zone=us-west4-a --project=my-project")
