"""Batches over a mesh, and searches for the largest batch and the smallest slice, with a made-up compiler."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from mmrl.config import Config, from_dict
from mmrl.mesh import AXES, make_mesh
from mmrl.models.family import read_config
from mmrl.plan import search
from mmrl.plan.chips import GIB, TPUS, Topology, parse_topology
from mmrl.plan.search import Finding, fit_verdict
from mmrl.plan.workload import Workload, workload


def config(*, micro=4, update=8, prompts=16, prompt_slots=0, tensor=1) -> Config:
    return from_dict(
        {
            "data": {"prompt_buckets": (4096,), "patch_buckets": (10368,)},
            "train": {"micro_prompts": micro, "update_prompts": update},
            "rollout": {"prompts": prompts, "prompt_slots": prompt_slots},
            "mesh": {"tensor": tensor},
        }
    )


def sizes_of(made: Config) -> tuple[int, int, int, int]:
    return (
        made.train.micro_prompts,
        made.train.update_prompts,
        made.rollout.prompts,
        made.rollout.prompt_slots,
    )


@pytest.mark.parametrize(
    ("shards", "per_shard", "expected"),
    [
        (2, 1, (2, 8, 16, 2)),
        (4, 2, (8, 8, 16, 8)),
        (16, 1, (16, 16, 16, 16)),
        (3, 1, (3, 9, 18, 3)),  # the next multiples of 3 from 8, and of 9 from 16
        (64, 2, (128, 128, 128, 128)),
        (2, None, (4, 8, 16, 0)),
    ],
)
def test_with_batches(shards, per_shard, expected):
    assert sizes_of(search.with_batches(config(), shards, per_shard)) == expected


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (config(micro=4), r"config.train.micro_prompts=4 cannot be cut evenly into the 8 parts"),
        (
            config(micro=8, prompt_slots=4),
            r"config.rollout.prompt_slots=4 cannot .* multiples of 8, or let --per-shard=1",
        ),
        (config(micro=2, update=4, prompts=4), r"micro_prompts=2 and config.rollout.prompts=4 cannot"),
    ],
)
def test_batches_that_do_not_divide_are_refused(made, named):
    with pytest.raises(ValueError, match=named):
        search.with_batches(made, 8, None)


@pytest.fixture
def model(fixtures_dir):
    return read_config(fixtures_dir / "qwen2_5_vl")


def test_arguments_alone_can_be_too_large(model, monkeypatch):
    """Nothing is traced then: the program here has nothing that could be."""
    work, topology = workload(config(), model, make_mesh({}, jax.devices()[:1])), parse_topology("v5e:2x2")
    monkeypatch.setattr(search, "program", lambda work, name: (None, (), {}))
    monkeypatch.setattr(search, "device_bytes", lambda arguments: 10 * GIB)
    monkeypatch.setattr(search, "resident_bytes", lambda work, name: 6 * GIB)
    found = search.examine(work, "update", topology, quick=True)
    assert (found.fit, found.needed_bytes, found.resident_bytes, found.flops) == (
        "no",
        16 * GIB,
        6 * GIB,
        None,
    )
    monkeypatch.setattr(search, "resident_bytes", lambda work, name: 5 * GIB)
    with pytest.raises(AttributeError, match="trace"):
        search.examine(work, "update", topology, quick=True)


@pytest.fixture
def needs(monkeypatch):
    """Has every program need GiB by its name, prompts and mesh; its list fills with what is asked."""

    def mesh_of(topology, sizes):
        shape = [sizes.get(axis, 1) for axis in AXES]
        known = int(np.prod([size for size in shape if size > 0]))
        if topology.devices % known:
            raise ValueError("the mesh does not fit the devices")
        shape = [size if size > 0 else topology.devices // known for size in shape]
        return Mesh(np.array(jax.devices() * topology.devices).reshape(shape), AXES)

    def given(gib) -> list[tuple[str, str, int]]:
        asked: list[tuple[str, str, int]] = []

        def examine(work: Workload, program_name: str, topology: Topology, *, quick: bool) -> Finding:
            rollout = program_name in ("prefill", "decode")
            prompts = work.prompt_slots if rollout else work.config.train.micro_prompts
            asked.append((str(topology), program_name, prompts))
            limit = TPUS[topology.generation].hbm_bytes
            needed = int(gib(program_name, prompts, work.mesh) * GIB)
            return Finding(program_name, prompts, prompts, fit_verdict(needed, limit), needed, limit, 0)

        monkeypatch.setattr(search, "examine", examine)
        monkeypatch.setattr(search.aot, "device_mesh", mesh_of)
        return asked

    return given


def suggested(model, made: Config, **options):
    plan = search.plan(made, model, parse_topology("v5e:2x2"), suggest=True, **options)
    return {one.key: (one.value, one.tried) for one in plan.suggestions}


def test_batches_grow_until_one_does_not_fit(needs, model):
    needs(lambda program, prompts, mesh: prompts * {"update": 1.0, "decode": 0.1}.get(program, 0.01))
    found = suggested(model, config(micro=4, update=16, prompts=32, prompt_slots=4))
    assert found["train.micro_prompts"] == (8, ((4, "fits"), (8, "fits"), (16, "no")))
    assert found["rollout.prompt_slots"][0] == 32  # all prompts of a batch


def test_the_second_program_of_a_key_has_a_say(needs, model):
    needs(lambda program, prompts, mesh: prompts * {"score": 3.0}.get(program, 0.01))
    assert suggested(model, config(micro=4, update=16))["train.micro_prompts"][0] == 4


def test_batches_shrink_until_one_fits(needs, model):
    needs(lambda program, prompts, mesh: prompts * 0.9)
    found = suggested(model, config(micro=32, update=32, prompts=32))
    assert found["train.micro_prompts"] == (8, ((32, "no"), (16, "tight"), (8, "fits")))


def test_less_than_one_prompt_a_part_is_not_suggested(needs, model):
    needs(lambda program, prompts, mesh: 20.0)
    found = suggested(model, config(micro=8, update=8), names=["update"])
    assert found == {"train.micro_prompts": (None, ((8, "no"), (4, "no")))}  # the mesh has four parts


def test_only_what_was_asked_for_is_compiled(needs, model):
    asked = needs(lambda program, prompts, mesh: 1.0)
    plan = search.plan(config(), model, parse_topology("v5e:2x2"), ["update", "prefill"], per_shard=2)
    assert [found.program for found in plan.findings] == ["prefill", "update"]
    assert asked == [("v5e:2x2", "prefill", 8), ("v5e:2x2", "update", 8)]
    assert plan.mesh == {"replica": 1, "data": 1, "fsdp": 4, "tensor": 1}


def test_the_smallest_slice(needs, model):
    """Update needs 100 GiB over all devices; decode 24 over ``tensor``, which the model has two heads for."""

    def gib(program, prompts, mesh):
        return {"update": 100 / mesh.size, "decode": 24 / mesh.shape["tensor"]}.get(program, 1.0)

    asked = needs(gib)
    plan, attempts = search.smallest(config(), model, "v5e", per_shard=1)
    assert plan is not None
    assert str(plan.topology) == "v5e:2x4"
    assert plan.mesh == {"replica": 1, "data": 1, "fsdp": 4, "tensor": 2}
    assert [found.program for found in plan.findings] == ["prefill", "decode", "score", "update"]
    assert [
        (str(one.topology), one.mesh["tensor"], one.failed and one.failed.program) for one in attempts
    ] == [
        ("v5e:1x1", 1, "update"),
        ("v5e:2x2", 1, "update"),
        ("v5e:2x2", 2, "update"),
        ("v5e:2x4", 1, "decode"),
        ("v5e:2x4", 2, None),
    ]
    assert [program for _, program, _ in asked[:3]] == ["update"] * 3  # on to the next at the first failure


def test_no_slice_is_large_enough(needs, model):
    needs(lambda program, prompts, mesh: 15.0)  # tight
    plan, attempts = search.smallest(config(), model, "v5e", per_shard=1)
    assert plan is None
    assert {one.failed.fit for one in attempts} == {"tight"}
    assert str(attempts[-1].topology) == "v5e:16x16"


def test_a_mesh_that_a_slice_has_no_devices_for_is_passed_by(needs, model):
    needs(lambda program, prompts, mesh: 30 / mesh.size)
    plan, attempts = search.smallest(config(tensor=4), model, "v5e", per_shard=1)
    assert [(str(one.topology), one.mesh["tensor"]) for one in attempts] == [("v5e:1x1", 1), ("v5e:2x2", 4)]
    assert plan is not None
    assert sizes_of(plan.config) == (1, 8, 16, 1)  # one part: both of the mesh's axes for batches have one


def test_an_unknown_generation_is_named(model):
    with pytest.raises(ValueError, match=r"unknown generation; did you mean 'v5p'"):
        search.smallest(config(), model, "v5x")
