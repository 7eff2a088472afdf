"""A run on GKE, against stand-ins of xpk, kubectl, docker and gcloud."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from workloads import CHECKS, IMAGE, NAME, PLACE, TWO_SLICES, WORKDIR, Workloads

from launch import __main__ as main
from launch import gke, slices
from mmrl.plan.chips import parse_topology

STANDIN = Path(__file__).parent / "standins" / "gke"
MADE = [*CHECKS, "get jobset", "xpk workload create", "get jobset"]


@pytest.fixture
def workloads(tmp_path, clone, monkeypatch) -> Workloads:
    state, bin_ = tmp_path / "state", tmp_path / "bin"
    state.mkdir()
    bin_.mkdir()
    # Without site packages Python starts in a third of the time.
    text = STANDIN.read_text().replace("/usr/bin/env python3", f"{sys.executable} -IS", 1)
    for name in ("xpk", "kubectl", "docker", "gcloud"):
        (bin_ / name).write_text(text)
        (bin_ / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LAUNCH_STANDIN", str(state))
    monkeypatch.chdir(clone)
    monkeypatch.setattr(gke, "handle_sigterm", lambda: None)
    made = Workloads(state, clone)
    made.set()
    return made


def test_a_run_from_nothing_to_its_end(workloads, capsys):
    workloads.set(
        life=["queued", "starting", "running", "running", "completed"], configmap={"v5litepod-16": "16"}
    )
    asked = ("--hours=2", "--restarts=3", "--priority=high", "--storage=runs")
    assert workloads.launch(*TWO_SLICES, *asked) == 0
    assert workloads.calls() == MADE
    command = f"exec mmrl train --config=experiments/tiny.py --workdir={WORKDIR} --config.mesh.replica=2"
    assert workloads.created() == [
        [
            "workload",
            "create",
            f"--workload={NAME}",
            "--tpu-type=v5litepod-16",
            "--num-slices=2",
            f"--docker-image={IMAGE}",
            "--storage=runs",
            "--priority=high",
            "--max-restarts=3",
            "--restart-on-exit-codes=75",
            "--termination-grace-period-seconds=300",
            f"--command={command} --coordinator=auto",
            *PLACE,
        ]
    ]
    assert workloads.plans == ["v5e (4, 4) 2"]
    assert workloads.heard("32 chips of v5e: 32 chip-hours an hour, 64 in 2 h")
    assert workloads.heard("room      my-cluster has 16 machines of v5litepod-16, 8 needed")
    assert workloads.heard("storage   runs (gcsfuse) at /gcs")
    assert workloads.heard(
        "queued    couldn't assign flavors to pod set slice-job: insufficient unused quota"
    )
    assert workloads.heard("starting  0 of 8 pods run")
    assert workloads.heard("running   8 pods")
    assert workloads.heard(f"results   in {WORKDIR}, of storage runs")
    said = capsys.readouterr().out.splitlines()
    assert said == [f"step {n} \\x1b[31mof attempt 0" for n in range(4)]


def test_one_machine_needs_no_meeting(workloads, capsys):
    assert workloads.launch("--accelerator=v5p-8", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "exec mmrl train" in said
    assert "--coordinator" not in said


def test_what_is_preempted_goes_on_by_itself(workloads, capsys):
    workloads.set(life=["running", "queued", "running", "restart", "running", "completed"])
    assert workloads.launch() == 0
    assert workloads.calls() == MADE
    assert workloads.heard("queued    Preempted to accommodate a workload of higher priority")
    assert workloads.heard("restarted 1 times; the run goes on from its last checkpoint")
    said = capsys.readouterr().out.splitlines()
    assert said[:4] == [f"step {n} \\x1b[31mof attempt 0" for n in range(4)]
    # The pod of the second attempt has a log of its own, which is shown from its beginning.
    assert said[4:] == [f"step {n} \\x1b[31mof attempt 1" for n in range(8)]


def test_restarts_come_to_an_end(workloads):
    workloads.set(life=["running", "restart", "restart"])
    assert workloads.launch(*TWO_SLICES, "--restarts=1") == 75
    assert workloads.heard("failed    ReachedMaxRestarts")


def test_a_crash_is_shown_and_its_status_is_that_of_the_launcher(workloads):
    workloads.set(life=["running", "failed 3:1"])
    assert workloads.launch() == 1
    assert workloads.heard("failed    FailJobSetFailurePolicyAction")
    assert workloads.heard(f"the log of {NAME}-slice-job-0-3-x0 (status 1) ends:")
    assert workloads.heard("  | \\x1b[31mValueError: what went wrong on 3")


def test_the_same_command_follows_what_runs(workloads, capsys):
    workloads.interrupt_at = 2
    workloads.set(life=["running"])
    assert workloads.launch() == 130
    verb = f"python -m launch gke delete --name={NAME} {' '.join(PLACE)} ends it"
    assert workloads.heard(f"left      {NAME} goes on; the same command follows it again, {verb}")
    assert workloads.there()
    workloads.set(life=["running"] * 5 + ["completed"])
    assert workloads.launch() == 0
    assert workloads.heard(f"workload  {NAME} is there, active")
    assert len(workloads.created()) == 1
    assert len(set(capsys.readouterr().out.splitlines())) >= 4


def test_a_workload_of_before_that_failed_makes_way(workloads):
    workloads.set(life=["failed 0:1"])
    assert workloads.launch() == 1
    workloads.set(life=["running", "completed"])
    workloads.said.clear()
    assert workloads.launch() == 0
    assert workloads.heard(f"workload  {NAME} of before has failed")
    assert len(workloads.created()) == 2


def test_a_workload_of_the_same_name_that_runs_something_else_is_let_be(workloads):
    workloads.interrupt_at = 1
    workloads.set(life=["running"])
    assert workloads.launch() == 130
    with pytest.raises(ValueError, match="runs something else: take another --name, or delete it"):
        workloads.launch(*TWO_SLICES, "--config.seed=4")
    assert workloads.there()


def test_a_workload_that_somebody_deletes(workloads):
    workloads.set(life=["running", "deleted"])
    assert workloads.launch() == 143
    assert workloads.heard(f"deleted   {NAME} is not there any more")


def test_pods_without_an_image_are_not_left_to_wait(workloads):
    workloads.set(life=["no image"])
    with pytest.raises(ValueError, match=r"cannot start with its image: ImagePullBackOff .* and is deleted"):
        workloads.launch()
    assert not workloads.there()
    assert workloads.calls() == [*MADE, "xpk workload delete", "get jobset"]


def test_what_cannot_be_deleted_is_said(workloads):
    workloads.set(
        life=["no image"], fail=[{"command": "xpk workload delete", "say": "[XPK] no rights", "times": [1]}]
    )
    with pytest.raises(ValueError, match="is still there"):
        workloads.launch()
    assert workloads.heard(f"{NAME} could not be deleted, and may go on at its cost: no rights")


def test_a_short_silence_of_the_cluster_is_waited_out(workloads):
    silence = "Unable to connect to the server: net/http: TLS handshake timeout"
    workloads.set(fail=[{"command": "kubectl get", "say": silence, "times": [5, 6, 7]}])
    assert workloads.launch() == 0
    assert workloads.slept.count(5.0) >= 1


def test_a_long_silence_leaves_the_run_as_it_is(workloads):
    silence = "Unable to connect to the server: dial tcp 10.0.0.2:443: i/o timeout"
    workloads.set(
        life=["running"], fail=[{"command": "kubectl get", "say": silence, "times": list(range(6, 20))}]
    )
    with pytest.raises(
        ValueError, match=f"if {NAME} is there, it goes on: the same command follows it again"
    ):
        workloads.launch()
    assert workloads.there()


def test_xpk_is_tried_again_after_a_passing_failure(workloads):
    workloads.set(
        fail=[{"command": "xpk workload create", "say": "Connection reset by peer", "times": [1, 2]}]
    )
    assert workloads.launch() == 0
    assert len(workloads.created()) == 3


def test_a_workload_that_xpk_made_before_it_failed_is_followed(workloads):
    made = {"command": "xpk workload create", "say": "HTTPError 503: dashboards", "after": True}
    workloads.set(fail=[made])
    assert workloads.launch() == 0
    assert len(workloads.created()) == 1
    assert workloads.heard("made, though xpk then failed: ")


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        ({"machines": 4}, "has no room for 2 slices of v5litepod-16: 8 machines .*which is 8 VMs, but"),
        ({"images": []}, f"--image={IMAGE} is not there, or the cluster may not read it: --build makes it"),
        (
            {"configmap": {"v5litepod-16": "4"}},
            "has 4 machines of v5litepod-16, and the slices need 8: fewer",
        ),
        ({"storages": []}, "is in no storage, so that it would end with its pod: .*none; see xpk storage"),
        ({"storages": [["other", "/gcs", False]]}, "lies in storage other: say --storage=other"),
        ({"storages": [["data", "/gcs", True]]}, "storage data is read-only"),
        (
            {"locations": ["europe-west4"]},
            "my-cluster is in europe-west4, and --zone=us-west4-a is not there",
        ),
        (
            {"fail": [{"command": "xpk workload list", "say": "Reauthentication failed"}]},
            "xpk does not reach my-cluster: Reauthentication failed",
        ),
        (
            {"fail": [{"command": "gcloud container clusters list", "say": "PERMISSION_DENIED: no"}]},
            "--cluster=my-cluster: the project, its TPU API or your rights in it",
        ),
    ],
)
def test_refusals_leave_nothing_behind(workloads, scenario, message):
    workloads.set(**scenario)
    with pytest.raises(ValueError, match=message):
        workloads.launch()
    assert not workloads.there()
    assert "xpk workload delete" not in workloads.calls()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--accelerator=v5e:4x4", "--slices=2"], r"config.mesh.replica=1, .* say --config.mesh.replica=2"),
        (
            ["--accelerator=v5e:4x4", "--config.mesh.replica=2"],
            r"there is 1 slice: say --config.mesh.replica=1",
        ),
        (
            ["--accelerator=v5e:4x4", "--config.mesh.tensor=8"],
            r"would reach over machines, .*config.mesh.tensor=4 or a",
        ),
        (["--accelerator=v5e:4x5"], "no such slice; nearest are v5e:2x4, v5e:4x4"),
        (["--accelerator=v5x:4x4"], "did you mean"),
        (["--accelerator=v5e:2x2"], "the smallest such slice on GKE is v5e:2x4"),
        (["--accelerator=v5e:4x4*2", "--slices=3"], "which number of slices"),
        (["--accelerator=v5e:4x4", "--slices=0"], "--slices=0: at least one"),
        (["--accelerator=v5e:4x4", "--restarts=-1"], "--restarts=-1: 0 or more"),
        (
            ["--accelerator=v5e:4x4", "--storage=rums"],
            "--storage=rums is not attached to the cluster; did you mean 'runs'",
        ),
        (["--accelerator=v5e:4x4", "--name=No"], "--name=No"),
        (
            ["--accelerator=v5e:4x4", "--cluster=my-clutter"],
            "has none of that name .* did you mean 'my-cluster'",
        ),
    ],
)
def test_mistakes_are_refused_first(workloads, words, message):
    with pytest.raises(ValueError, match=message):
        workloads.launch(*words)
    assert workloads.created() == []


@pytest.mark.parametrize("workdir", ["gs://bucket/runs", "runs/papo", "/gcs/../x"])
def test_a_workdir_is_as_pods_see_it(workloads, workdir):
    with pytest.raises(ValueError, match="as pods see it"):
        workloads.launch(*TWO_SLICES, workdir=workdir)
    assert workloads.words() == []


def test_a_program_that_does_not_fit_is_not_sent(workloads):
    no = {"program": "update", "fit": "no", "needed_bytes": 9e9, "limit_bytes": 8e9}
    workloads.plan = lambda *_: json.dumps({"model": "m", "plan": {"programs": [no]}})
    with pytest.raises(ValueError, match=r"update does not fit on v5e:4x4\*2"):
        workloads.launch()
    assert workloads.words() == []


def test_an_image_is_built_of_the_commit_alone(workloads, tmp_path):
    root = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(workloads.root), str(root)], check=True)
    (root / "launch").mkdir()
    (root / "launch" / "Dockerfile").write_text("FROM scratch\n")
    git = ["git", "-C", str(root), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "two"], check=True)
    (root / "left").write_text("git does not know this one")
    os.chdir(root)
    workloads.root = root
    assert (
        workloads.launch(*TWO_SLICES, "--build", "--allow-dirty", image="us-docker.pkg.dev/p/team/mmrl") == 0
    )
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    built = json.loads((workloads.state / "built.json").read_text())
    assert built == {
        "tag": f"us-docker.pkg.dev/p/team/mmrl:{head[:12]}",
        "files": ["constraints.txt", "experiments", "launch"],
    }
    assert workloads.calls()[4:7] == ["docker build", "docker push", "get jobset"]
    assert f"--docker-image={built['tag']}" in workloads.created()[0]


@pytest.mark.parametrize(
    ("command", "says", "message"),
    [
        ("docker build", "ERROR: failed to solve: no space left on device", "no space left on device"),
        (
            "docker push",
            "denied: Unauthenticated request",
            r"gcloud auth configure-docker us-docker\.pkg\.dev, or the repository is not there",
        ),
    ],
)
def test_an_image_that_cannot_be_made_is_why_nothing_is_sent(workloads, monkeypatch, command, says, message):
    whole = Path(__file__).parents[2]
    workloads.set(fail=[{"command": command, "say": says}])
    from launch.shell import Shell

    shell = Shell(say=workloads.said.append, sleep=workloads.sleep)
    tree = subprocess.run(["git", "write-tree"], cwd=whole, capture_output=True, text=True, check=True).stdout
    with pytest.raises(ValueError, match=message):
        gke.build_image(shell, IMAGE, tree.strip(), whole)


def test_a_dry_run_shows_the_commands_in_their_order_and_runs_none(workloads, capsys):
    assert workloads.launch(*TWO_SLICES, "--build", "--dry-run") == 0
    assert workloads.words() == []
    said = [line.split(" --")[0] for line in capsys.readouterr().out.splitlines()]
    assert said[0] == "gcloud container clusters list"
    assert [line for line in said if line.startswith(("xpk", "docker"))] == [
        "xpk workload list",
        "docker build",
        f"docker push {IMAGE}",
        "xpk workload create",
    ]


def test_verbs_see_to_a_workload_that_is_there(workloads, capsys):
    workloads.interrupt_at = 1
    workloads.set(life=["running"])
    workloads.launch()
    capsys.readouterr()
    assert workloads.verb("status", f"--workdir={WORKDIR}") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{NAME}: active, 0 restarts"
    assert said[1] == f"{NAME}-slice-job-0-0-x0: Running"
    assert len(said) == 9
    workloads.set(life=["running"] * 5 + ["completed"])
    assert workloads.verb("delete", f"--name={NAME}") == 0
    assert not workloads.there()
    with pytest.raises(ValueError, match=f"there is no workload {NAME} on my-cluster"):
        workloads.verb("follow", f"--name={NAME}")


def test_the_command_line_leads_here(capsys):
    words = ["gke", *PLACE, "--accelerator=v5e:4x4", "--image=x", "--config=no.py", "--workdir=runs"]
    assert main.main(words) == 2
    assert (
        capsys.readouterr().err == "launch: --workdir=runs: the whole path, as pods see it: /gcs/runs/papo\n"
    )


@pytest.mark.parametrize(
    ("text", "kind", "machines", "devices"),
    [
        ("v5e:4x4", "v5litepod-16", 4, 4),
        ("v6e:1x1", "v6e-1", 1, 1),
        ("v6e:2x4*2", "v6e-8", 4, 4),
        ("v5p:4x4x4", "v5p-128", 16, 4),
        ("v5p:4x4x16", "v5p-4x4x16", 64, 4),
        ("tpu7x:2x2x2", "tpu7x-16", 2, 8),
    ],
)
def test_slices_as_xpk_has_them(text, kind, machines, devices):
    topology = parse_topology(text)
    assert slices.xpk_type(topology) == kind
    assert slices.gke_machines(topology) == machines
    assert slices.gke_machine_devices(topology) == devices


def test_the_image_is_made_of_files_that_are_there():
    root = Path(__file__).parents[2]
    lines = (root / "launch" / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("FROM")] == ["FROM python:3.11-slim"]
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert {"pyproject.toml", "constraints.txt", "."} <= set(copied)
    assert [name for name in copied if not (root / name).exists()] == []
