"""Names of slices, the sizes that exist, and their devices."""

import importlib.util
import itertools
import json
import os
import subprocess
import sys

import jax
import pytest

from mmrl.plan import chips
from mmrl.plan.aot import environment
from mmrl.plan.chips import Topology, parse_topology


@pytest.mark.parametrize(
    ("text", "topology"),
    [
        ("v5p:4x4x4", Topology("v5p", (4, 4, 4))),
        ("v6e:16x16*4", Topology("v6e", (16, 16), 4)),
        ("v5e-16", Topology("v5e", (4, 4))),
        ("v5litepod-256", Topology("v5e", (16, 16))),
        ("v5p-128", Topology("v5p", (4, 4, 4))),
        ("v4-8*2", Topology("v4", (2, 2, 1), 2)),
        ("v5p-4096", Topology("v5p", (8, 16, 16))),
        ("v5p-2048", Topology("v5p", (8, 8, 16))),
        ("tpu7x-8", Topology("tpu7x", (2, 2, 1))),
        ("V6E-1", Topology("v6e", (1, 1))),
    ],
)
def test_names_are_read_as_google_cloud_means_them(text, topology):
    assert parse_topology(text) == topology
    assert parse_topology(str(topology)) == topology


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5p:5x5x5", "no such slice; nearest are v5p:4x4x4, v5p:4x4x8"),
        ("v5p:8x4x4", "v5p:4x4x8"),
        ("v6e:32x32", "v6e:16x16"),
        ("v5p-100", "100 TensorCores, two a chip; nearest are v5p:2x4x4, v5p:4x4x4"),
        ("v5e-3", "3 chips; nearest are v5e:1x1, v5e:2x2"),
        ("v7x:2x2x1", "did you mean 'tpu7x'"),
        ("h100:2x2", "unknown generation; there are 'tpu7x', 'v4', 'v5e'"),
        ("v5e:2x2*0", "at least one slice"),
        ("64 chips", "write a generation and its chips"),
        ("v5p:16x16x28", "nearest are .*16x16x24"),
    ],
)
def test_what_is_no_product_is_refused_with_the_nearest(text, message):
    with pytest.raises(ValueError, match=message):
        parse_topology(text)


def test_counts():
    four_slices = parse_topology("v6e:16x16*4")
    assert (four_slices.chips, four_slices.devices) == (1024, 1024)
    ironwood = parse_topology("tpu7x:4x4x4")
    assert (ironwood.chips, ironwood.devices) == (64, 128)


@pytest.mark.parametrize(
    ("text", "rings"),
    [
        ("v5p:4x4x4", (True, True, True)),
        ("v4:4x4x8", (True, True, True)),
        ("v5p:2x4x4", (False, False, False)),
        ("v5e:8x8", (False, False, False)),
        ("v5e:8x16", (False, True, False)),
        ("v6e:16x16", (True, True, False)),
    ],
)
def test_which_dimensions_are_rings(text, rings):
    assert parse_topology(text).wrap == rings


@pytest.mark.parametrize("generation", chips.TPUS)
def test_slices_to_try_double_and_exist(generation):
    slices = chips.slices_to_try(generation)
    counts = [topology.chips for topology in slices]
    assert all(after in (2 * before, 4 * before) for before, after in itertools.pairwise(counts))
    assert all(parse_topology(str(topology)) == topology for topology in slices)
    assert counts[-1] == {"v4": 2048, "v5e": 256, "v5p": 4096, "v6e": 256, "tpu7x": 8192}[generation]


def test_peak_is_a_whole_number_of_matrix_units_at_the_clock():
    for chip in chips.TPUS.values():
        side = 256 if chip.name in ("v6e", "tpu7x") else 128
        units = chip.peak_flops / chip.clock / (2 * side**2)
        assert units == pytest.approx(round(units), rel=5e-3)


def test_device_kinds():
    assert chips.chip_of("TPU v5 lite").name == chips.chip_of("TPU v5e").name == "v5e"
    assert chips.chip_of("TPU v5").name == chips.chip_of("TPU v5p").name == "v5p"
    assert chips.chip_of("NVIDIA H100 80GB HBM3").peak_flops == pytest.approx(989e12, rel=1e-3)
    assert chips.chip_of(jax.devices("cpu")[0].device_kind) is None


def test_without_libtpu_the_fix_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "mmrl\[tpu\]"'):
        chips.devices(parse_topology("v5p:4x4x4"))


DEVICES = """
import json
from mmrl.plan import chips
found = {}
for text in ("v4:4x4x4", "v5e:1x1", "v5p:4x4x8", "v6e:16x16*2", "tpu7x:1x1x1", "tpu7x:2x2x1", "v5p:2x2x1*2"):
    devices = chips.devices(chips.parse_topology(text))
    slices = {getattr(device, "slice_index", 0) or 0 for device in devices}
    found[text] = [len(devices), devices[0].device_kind, len(slices)]
print(json.dumps(found))
"""


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed")
def test_devices_are_as_many_and_of_the_kind_that_the_table_says():
    run = subprocess.run(
        [sys.executable, "-c", DEVICES],
        env=os.environ | environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    for text, (count, kind, slices) in json.loads(run.stdout).items():
        topology = parse_topology(text)
        assert count == topology.devices, text
        assert chips.chip_of(kind) == chips.TPUS[topology.generation], text
        assert slices == topology.slices, text
