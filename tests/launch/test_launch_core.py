"""What all launchers share: names, commands of other tools, the plan's verdict, names of slices."""

import importlib.util
import re
import sys

import pytest

from launch import request, shell, slices
from launch.request import LaunchJob, check_name, name_of
from launch.shell import Retry, Shell
from mmrl.plan.chips import parse_topology


def test_a_folder_names_its_job():
    names = [
        name_of(path)
        for path in ("runs/papo_g/seed1", "runs/papo-g/seed1", "/data/x/papo_g/seed1", "runs/7B")
    ]
    assert [name[:-7] for name in names] == ["papo-g-seed1", "papo-g-seed1", "papo-g-seed1", "r-7b"]
    assert len(set(names)) == 4
    assert name_of("runs/papo/") == name_of("runs/papo")
    assert all(check_name(name) == name for name in (*names, name_of("a" * 80 + "/" + "b" * 80)))


@pytest.mark.parametrize("name", ["Papo", "7b", "a_b", "a-", "a" * 41, ""])
def test_names_that_google_cloud_would_refuse(name):
    with pytest.raises(ValueError, match="lower-case letters, digits and hyphens"):
        check_name(name)


def test_commands_are_tried_again_only_where_it_may_help(tmp_path):
    slept, said = [], []
    quiet = Shell(say=said.append, sleep=slept.append)
    script = f"echo x >> {tmp_path}/tries; echo 'it is UNAVAILABLE' >&2; [ $(wc -l < {tmp_path}/tries) = 3 ]"
    retry = Retry(3, re.compile("UNAVAILABLE"), first_wait=2.0)
    assert shell.run(quiet, ["sh", "-c", script], retry=retry).status == 0
    assert slept == [2.0, 4.0]
    assert said[0] == "it is UNAVAILABLE; trying again in 2 s (3 left)"
    assert shell.run(quiet, ["sh", "-c", "echo no >&2; exit 3"], retry=retry).status == 3
    assert len(slept) == 2


def test_failures_of_starting_are_statuses():
    assert shell.run(Shell(), ["no-such-program"]).status == shell.MISSING
    slow = shell.run(Shell(), [sys.executable, "-c", "import time; time.sleep(9)"], timeout=0.2)
    assert (slow.status, slow.last_line) == (
        shell.TOO_LONG,
        f"{sys.executable} took longer than 0.2 s",
    )


def test_a_dry_run_shows_what_a_shell_would_take(capsys):
    done = shell.run(Shell(dry_run=True), ["rm", "-r", "a b"], assumed="gone")
    assert (done.status, done.out) == (0, "gone")
    assert capsys.readouterr().out == "rm -r 'a b'\n"


@pytest.mark.parametrize(
    ("text", "type_", "hosts", "quota"),
    [
        ("v5e:2x4", "v5litepod-8", 1, "TPUV5sPreemptibleLitepodServingPerProjectPerZoneForTPUAPI"),
        ("v5litepod-16", "v5litepod-16", 4, "TPUV5sPreemptibleLitepodPerProjectPerZoneForTPUAPI"),
        ("v6e-1", "v6e-1", 1, "TPUV6EPreemptiblePerProjectPerZoneForTPUAPI"),
        ("v6e:16x16", "v6e-256", 64, "TPUV6EPreemptiblePerProjectPerZoneForTPUAPI"),
        ("v5p-8", "v5p-8", 1, "TPUV5PPreemptiblePerProjectPerZoneForTPUAPI"),
        ("v5p:4x4x4", "v5p-128", 16, "TPUV5PPreemptiblePerProjectPerZoneForTPUAPI"),
        ("v4-32", "v4-32", 4, "TPUV4sPreemptiblePodPerProjectPerZoneForTPUAPI"),
    ],
)
def test_slices_by_their_names_at_google_cloud(text, type_, hosts, quota):
    topology = slices.tpu_slice(text)
    assert slices.accelerator_flags(topology) == [f"--accelerator-type={type_}"]
    assert slices.tpu_hosts(topology) == hosts
    assert slices.quota_name(topology, "spot") == quota
    assert slices.quota_name(topology, "on-demand") == quota.replace("Preemptible", "")
    assert slices.quota_name(topology, "reserved") is None


def test_a_shape_of_v4_that_its_number_does_not_mean():
    flags = slices.accelerator_flags(slices.tpu_slice("v4:4x4x16"))
    assert flags == ["--type=v4", "--topology=4x4x16"]


def test_the_cost_in_chips():
    assert request.cost(parse_topology("v5p-128*2"), 1.5) == (
        "128 chips of v5p: 128 chip-hours an hour, 192 in 1.5 h"
    )


@pytest.mark.exhaustive
def test_the_real_plan_has_a_verdict(fixtures_dir):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip('mmrl plan needs libtpu: pip install "mmrl[tpu]"')
    model = f"--config.model.path={fixtures_dir / 'qwen2_5_vl'}"
    job = LaunchJob("j", "experiments/quickstart.py", "runs/j", (model,))
    line = request.fits(job, parse_topology("v5e:1x1"), None, request.planner(Shell()))
    assert re.fullmatch(r".*qwen2_5_vl on v5e:1x1: all programs fit, \w+ with \d+ % of the memory", line)
    with pytest.raises(ValueError, match=r"mmrl plan says nothing for v5e:1x1: .*--no-plan goes without"):
        request.fits(
            LaunchJob("j", job.config, "runs/j"),
            parse_topology("v5e:1x1"),
            None,
            request.planner(Shell()),
        )
