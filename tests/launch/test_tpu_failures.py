"""What goes wrong around a run on Cloud TPU VMs: each ends in one line, and leaves nothing that costs."""

import json
import os
import re
import shutil
import subprocess

import pytest
from cloud import FOUR_HOSTS, NAME, ONE_HOST, SPOT, STANDINS, TRAIN

from launch import __main__ as launch

QR, VM = "compute tpus queued-resources", "compute tpus tpu-vm"


def broken(command: str, say: str, times: tuple[int, ...] = (1,), status: int = 1) -> dict:
    return {"command": command, "say": say, "times": list(times), "status": status}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--accelerator=v5litepod-16"], "has 4 machines, .* --bucket=gs://NAME"),
        ([*ONE_HOST, "--spot"], "--spot machines are taken away with their disks: .* --bucket=gs://NAME"),
        ([*ONE_HOST, "--workdir=gs://b/x"], "name the bucket with --bucket"),
        ([*SPOT, "--workdir=/tmp/x"], "with --bucket, a folder below it"),
        (["--accelerator=tpu7x:2x2x1"], "python -m launch gke"),
        (["--accelerator=v5e:2x4*2"], "several slices are for GKE"),
        (["--accelerator=v5p:4x4x16"], "come in one shape a size: take v5p:4x8x8, or python -m launch gke"),
        (["--accelerator=v5litepod-12"], "no slice has 12 chips; nearest are v5e:2x4"),
        ([*ONE_HOST, "--config.sed=1"], "config.sed is not a key of the config; did you mean config.seed"),
        ([*ONE_HOST, "--config=experiments/none.py"], "experiments/none.py does not exist"),
        ([*ONE_HOST, "--name=My_Run"], "lower-case letters, digits and hyphens"),
        ([*ONE_HOST, "--restarts=-1"], "0 or more"),
    ],
)
def test_refused_before_google_cloud_is_asked(cloud, words, message):
    with pytest.raises(ValueError, match=message):
        cloud.launch(*words)
    assert cloud.calls() == []


def test_a_plan_that_does_not_fit_is_refused(cloud):
    program = {"program": "update", "fit": "no", "needed_bytes": 40 * 2**30, "limit_bytes": 16 * 2**30}
    plan = json.dumps({"model": "m", "plan": {"programs": [program]}})
    with pytest.raises(ValueError, match=r"update does not fit on v5e:2x4: 40\.0 of 16\.0 GiB a device"):
        cloud.launch(*ONE_HOST, plan=lambda *_: plan)
    assert cloud.calls() == []


def test_changes_are_refused_or_travel(cloud):
    path = cloud.root / "experiments" / "tiny.py"
    path.write_text(path.read_text() + "# changed\n")
    (cloud.root / "notes.txt").write_text("")
    with pytest.raises(
        ValueError, match=r"2 files are not as in commit \w{10} \(experiments/tiny.py, notes.txt"
    ):
        cloud.launch(*ONE_HOST)
    assert cloud.calls() == []
    assert cloud.launch(*ONE_HOST, "--allow-dirty", "--keep") == 0
    assert cloud.heard("and 1 changed files")
    assert cloud.heard("not copied, as git does not know them: notes.txt")
    there = cloud.state / "worker0" / "mmrl"
    assert (there / "experiments" / "tiny.py").read_text().endswith("# changed\n")
    assert not (there / "notes.txt").exists()
    status = subprocess.run(["git", "status", "--short"], capture_output=True, text=True, check=True)
    assert status.stdout == " M experiments/tiny.py\n?? notes.txt\n?? runs/\n"


def test_a_file_that_git_does_not_know_is_not_run(cloud):
    (cloud.root / "mine.py").write_text((cloud.root / "experiments" / "tiny.py").read_text())
    with pytest.raises(ValueError, match="only files that git knows are copied"):
        cloud.launch(*ONE_HOST, "--config=mine.py", "--allow-dirty")


@pytest.mark.parametrize(
    ("words", "scenario", "message"),
    [
        (["--zone=us-west4-b"], {}, "--zone=us-west4-b has no TPUs; did you mean 'us-west4-a'"),
        (
            ["--accelerator=v5litepod-1"],
            {},
            "us-west4-a has no v5litepod-1: it has v5litepod-8, v5litepod-16",
        ),
        (["--accelerator=v6e-1"], {}, "has no v6e-1, nor others like it; zones with TPUs: us-central1-a"),
        (
            ["--spot"],
            {"quota": "4"},
            "quota TPUV5sPreemptibleLitepodServingPerProjectPerZoneForTPUAPI is 4 in us-west4-a",
        ),
        (
            [],
            {"hierarchical": False},
            "no hierarchical namespace.*gcloud storage buckets create gs://my-bucket",
        ),
        (
            [],
            {"fail": [broken("storage buckets describe", "gs://my-bucket not found: 404. NOT_FOUND")]},
            "there is no gs://my-bucket; make one with: gcloud storage buckets create",
        ),
    ],
)
def test_refused_before_a_slice_is_asked_for(cloud, words, scenario, message):
    cloud.set(**scenario)
    with pytest.raises(ValueError, match=message):
        cloud.launch(*ONE_HOST, "--bucket=gs://my-bucket", *words)
    assert "create" not in cloud.calls()


@pytest.mark.exhaustive
def test_what_cannot_be_known_of_quotas_is_left_to_the_service(cloud):
    cloud.set(
        fail=[broken("beta quotas info describe", "SERVICE_DISABLED: Cloud Quotas API has not been used")]
    )
    assert cloud.launch(*ONE_HOST) == 0
    assert cloud.heard("quota     TPUV5sLitepodServingPerProjectPerZoneForTPUAPI (not known: ERROR")


def test_gcloud_is_not_set_up(cloud, monkeypatch, tmp_path):
    cloud.set(project="(unset)")
    with pytest.raises(ValueError, match="gcloud has no project: name one with --project"):
        cloud.launch(*ONE_HOST, project="")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "git").symlink_to(shutil.which("git"))
    monkeypatch.setenv("PATH", str(tmp_path / "bare"))
    with pytest.raises(ValueError, match="no Google Cloud: gcloud is not installed, or not on PATH"):
        cloud.launch(*ONE_HOST, project="")


def test_quota_is_used_up(cloud):
    said = "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepodServing' has been exceeded. Limit: 0 in us-west4-a."
    cloud.set(fail=[broken(f"{QR} create", said)])
    with pytest.raises(
        ValueError, match=r"the project's quota \(TPUV5sLitepodServing\w+\) is too small or used up"
    ):
        cloud.launch(*ONE_HOST)
    assert cloud.since_checks() == ["create", "delete"]


def test_stockout(cloud):
    cloud.set(
        states=["WAITING_FOR_RESOURCES", "FAILED"],
        failed='There is no more capacity in the zone "us-west4-a"',
    )
    with pytest.raises(ValueError, match="us-west4-a has no free machines of this kind now: try later"):
        cloud.launch(*ONE_HOST)
    assert cloud.since_checks() == ["create", "describe", "delete"]
    assert cloud.slices() == []


def test_a_machine_that_is_not_ready_for_ssh_is_tried_again(cloud):
    cloud.set(fail=[broken(f"{VM} ssh", "[/usr/bin/ssh] exited with return code [255].", (1, 2))])
    assert cloud.launch(*SPOT) == 0
    assert cloud.slept[-2:] == [10.0, 20.0]
    assert cloud.trained() == [f"1 0 {TRAIN}"]


@pytest.mark.exhaustive
def test_a_failure_of_a_moment_is_tried_again(cloud):
    cloud.set(fail=[broken(f"{QR} describe", "UNAVAILABLE: The service is currently unavailable", (1, 3))])
    assert cloud.launch(*ONE_HOST) == 0


def test_an_install_that_fails(cloud):
    (cloud.state / "no-package").touch()
    with pytest.raises(ValueError, match=r"failed on t1v-n-5eed-w-\d \(install\): see its last lines above"):
        cloud.launch(*SPOT)
    assert cloud.heard("  | error: No solution found when resolving dependencies: libtpu==0.0.0 is not there")
    assert cloud.since_checks()[-2:] == ["describe", "delete"]
    assert cloud.slices() == []


def test_workers_that_fall_silent(cloud):
    cloud.endings("1.1 0 wait")
    cloud.set(fail=[broken(f"{VM} ssh", "no key in the agent", tuple(range(7, 30)))])
    with pytest.raises(ValueError, match=f"1 of 1 workers of {NAME} have not answered 10 times"):
        cloud.launch(*SPOT)
    assert cloud.slices() == []


def test_results_that_are_nowhere_else_keep_their_slice(cloud):
    cloud.set(fail=[broken(f"{VM} scp", "scp: No space left on device", (2,))])
    assert cloud.launch(*ONE_HOST) == 0
    assert cloud.slices() == [NAME]
    assert cloud.heard("results are on the slice alone, so that it is not deleted")


@pytest.mark.exhaustive
def test_a_slice_that_cannot_be_deleted_is_named(cloud):
    cloud.set(fail=[broken(f"{QR} delete", "FAILED_PRECONDITION: busy")])
    assert cloud.launch(*ONE_HOST) == 0
    assert cloud.heard(
        f"{NAME} could NOT be deleted and costs as long as it is there: ERROR: "
        "(gcloud.compute.tpus.queued-resources.delete) FAILED_PRECONDITION: busy; try: gcloud compute tpus "
        f"queued-resources delete {NAME} --force --zone=us-west4-a --project=my-project"
    )


def test_a_dry_run_runs_nothing(cloud, capsys):
    assert cloud.launch(*FOUR_HOSTS, "--dry-run") == 0
    assert cloud.calls() == []
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(("gcloud ", "git archive ")) for line in lines)
    assert sum("queued-resources create" in line for line in lines) == 1
    assert f"start {TRAIN} --coordinator=auto" in next(line for line in lines if "worker.sh start" in line)
    assert "queued-resources delete" in lines[-1]
    assert cloud.heard("plan      a model on v5e:4x4: all programs fit")
    assert not cloud.heard("ACTIVE")


def test_a_slice_looked_at_and_deleted(cloud, capsys):
    at = [f"--name={NAME}", "--zone=us-west4-a", "--project=p"]
    assert launch.main(["tpu", "status", *at]) == 2
    assert capsys.readouterr().err == f"launch: there is no slice {NAME} in us-west4-a\n"
    cloud.endings("1.1 0 1")
    assert cloud.launch(*ONE_HOST, "--keep") == 1
    capsys.readouterr()
    assert launch.main(["tpu", "status", *at]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [f"{NAME}: ACTIVE, v5litepod-8", "machines: 1, READY", "t1v-n-5eed-w-0: ended 1"]
    assert launch.main(["tpu", "follow", *at]) == 1
    assert capsys.readouterr().out.startswith("step 1 of worker 0\n")
    assert launch.main(["tpu", "fetch", "--workdir=runs/papo", "--zone=us-west4-a"]) == 0
    assert launch.main(["tpu", "delete", *at]) == 0
    assert cloud.slices() == []


@pytest.mark.exhaustive
def test_the_real_gcloud_knows_what_the_stand_in_takes(tmp_path):
    """Where one is installed; only its help is asked for."""
    if not shutil.which("gcloud"):
        pytest.skip("no gcloud is installed: https://cloud.google.com/sdk/docs/install")
    source = (STANDINS / "gcloud").read_text().replace('STATE = os.environ["LAUNCH_STANDIN"]', "STATE = ''")
    source = source[: source.index("HOSTS = {")]
    names: dict = {}
    exec(compile(source, "gcloud", "exec"), names)
    for command, (_, _, flags, _) in names["GRAMMAR"].items():
        asked = subprocess.run(
            ["gcloud", *command.split(), "--help"],
            env={**os.environ, "CLOUDSDK_CONFIG": str(tmp_path), "PAGER": "cat"},
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
        told = re.sub(r"\x1b\[\d*m|.\x08", "", asked.stdout)
        assert [flag for flag in flags if flag not in told] == [], command


def test_the_verb_run_may_be_left_out(cloud, capsys):
    words = ["--zone=us-west4-a", "--config=experiments/tiny.py", "--workdir=runs/x", "--accelerator=v5p-16"]
    assert launch.main(["tpu", *words]) == 2
    assert capsys.readouterr().err.startswith("launch: --accelerator=v5p-16 has 2 machines")
    assert launch.main(["tpu", *words, "--sopt"]) == 2
    assert "unknown argument '--sopt'" in capsys.readouterr().err
