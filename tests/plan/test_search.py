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
from mmrl.plan.lengths import LENGTHS
from mmrl.plan.search import Finding, fit_verdict
from mmrl.plan.workload import Workload, workload

ROW = 6144  # the smallest that a prompt and a response fit in


def config(*, row=ROW, update=8, prompts=16, prompt_slots=0, tensor=1) -> Config:
    return from_dict(
        {
            "data": {"prompt_buckets": (4096,), "patch_buckets": (10368,)},
            "train": {"row_tokens": row, "update_prompts": update},
            "rollout": {"prompts": prompts, "prompt_slots": prompt_slots},
            "mesh": {"tensor": tensor},
        }
    )


def sizes_of(made: Config) -> tuple[int, int, int]:
    return made.train.update_prompts, made.rollout.prompts, made.rollout.prompt_slots


@pytest.mark.parametrize(
    ("shards", "per_shard", "expected"),
    [
        (2, 1, (8, 16, 2)),
        (4, 2, (8, 16, 8)),
        (16, 1, (16, 16, 16)),
        (3, 1, (9, 18, 3)),  # the next multiples of 3 from 8, and of 9 from 16
        (64, 2, (64, 128, 128)),  # a prompt for every slot
        (2, None, (8, 16, 0)),
    ],
)
def test_with_batches(shards, per_shard, expected):
    made = search.with_batches(config(), shards, per_shard)
    assert sizes_of(made) == expected
    assert made.train.row_tokens == config().train.row_tokens


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (config(update=4), r"config.train.update_prompts=4 cannot be cut evenly into the 8 parts"),
        (
            config(prompt_slots=4),
            r"config.rollout.prompt_slots=4 cannot .* multiples of 8, or let --per-shard=1",
        ),
        (config(update=4, prompts=4), r"update_prompts=4 and config.rollout.prompts=4 cannot"),
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
    groups = 8 * (4096 + 8 * 2048), 8 * 8 * (4096 + 2048)  # prompts once, and repeated
    assert (found.row_tokens, found.rows, found.tokens) == (ROW, 8 * 8, groups[0])
    assert found.computed_over_real == 8 * 8 * ROW / groups[0]
    assert found.repeated_over_real == groups[1] / groups[0]
    decode = search.examine(work, "decode", topology, quick=True)
    assert (decode.steps, decode.tokens, decode.computed_over_real) == (2048, 16 * 8 * 2048, 1)
    prefill = search.examine(work, "prefill", topology, quick=True)
    assert (prefill.row_tokens, prefill.rows, prefill.tokens) == (4096, 16, 16 * 4096)
    monkeypatch.setattr(search, "resident_bytes", lambda work, name: 5 * GIB)
    with pytest.raises(AttributeError, match="trace"):
        search.examine(work, "update", topology, quick=True)


@pytest.fixture
def needs(monkeypatch):
    """Has every program need GiB by its name, size and mesh; its list fills with what is asked.

    The size is the number of prompts in prefill and decode, and the length of rows in score and update.
    """

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
            size = work.prompt_slots if rollout else work.budget.tokens
            asked.append((str(topology), program_name, size))
            limit = TPUS[topology.generation].hbm_bytes
            needed = int(gib(program_name, size, work.mesh) * GIB)
            row = 0 if rollout else size
            return Finding(program_name, size, row, fit_verdict(needed, limit), needed, limit, 0)

        monkeypatch.setattr(search, "examine", examine)
        monkeypatch.setattr(search.aot, "device_mesh", mesh_of)
        return asked

    return given


def suggested(model, made: Config, **options):
    plan = search.plan(made, model, parse_topology("v5e:2x2"), suggest=True, **options)
    return {one.key: (one.value, one.tried) for one in plan.suggestions}


def test_batches_grow_until_one_does_not_fit(needs, model):
    needs(lambda program, size, mesh: size * {"update": 1 / 1024, "decode": 0.1}.get(program, 1e-5))
    found = suggested(model, config(update=64, prompts=64, prompt_slots=4))
    assert found["train.row_tokens"] == (8192, ((ROW, "fits"), (8192, "fits"), (16384, "no")))
    assert found["rollout.prompt_slots"][0] == 64  # all prompts of a batch


def test_the_second_program_of_a_key_has_a_say(needs, model):
    needs(lambda program, size, mesh: size * {"score": 2 / 1024}.get(program, 1e-5))
    found = suggested(model, config(update=64, prompts=64))
    assert found["train.row_tokens"] == (ROW, ((ROW, "fits"), (8192, "no")))


def test_batches_shrink_until_one_fits(needs, model):
    needs(lambda program, size, mesh: size * {"update": 1.8 / 1024}.get(program, 1e-5))
    found = suggested(model, config(row=16384, update=64, prompts=64))
    assert found["train.row_tokens"] == (ROW, ((16384, "no"), (8192, "tight"), (ROW, "fits")))


def test_rows_that_no_response_fits_in_are_not_suggested(needs, model):
    needs(lambda program, size, mesh: 20.0)
    found = suggested(model, config(row=8192, update=64, prompts=64), names=["update"])
    assert found == {"train.row_tokens": (None, ((8192, "no"), (ROW, "no")))}


def test_only_what_was_asked_for_is_compiled(needs, model):
    asked = needs(lambda program, size, mesh: 1.0)
    plan = search.plan(config(), model, parse_topology("v5e:2x2"), ["update", "prefill"], per_shard=2)
    assert [found.program for found in plan.findings] == ["prefill", "update"]
    assert asked == [("v5e:2x2", "prefill", 8), ("v5e:2x2", "update", ROW)]
    assert plan.mesh == {"replica": 1, "data": 1, "fsdp": 4, "expert": 1, "tensor": 1}


def test_plans_are_counted_for_lengths(needs, model, monkeypatch):
    needs(lambda program, size, mesh: 1.0)
    topology, tailed = parse_topology("v5e:2x2"), LENGTHS["long-tailed"]
    seen: list[str] = []
    examine = search.examine

    def noted(work: Workload, *rest, **more) -> Finding:
        seen.append(work.distribution.name)
        return examine(work, *rest, **more)

    monkeypatch.setattr(search, "examine", noted)
    plan = search.plan(config(), model, topology, ["update"], lengths=tailed, suggest=True)
    small, _ = search.smallest(config(), model, "v5e", ["update"], lengths=tailed)
    assert plan.lengths == small.lengths == "long-tailed"
    assert set(seen) == {"long-tailed"}
    assert search.plan(config(), model, topology, ["update"]).lengths == "full"


def test_the_smallest_slice(needs, model):
    """Update needs 100 GiB over all devices; decode 24 over ``tensor``, which the model has two heads for."""

    def gib(program, size, mesh):
        return {"update": 100 / mesh.size, "decode": 24 / mesh.shape["tensor"]}.get(program, 1.0)

    asked = needs(gib)
    plan, attempts = search.smallest(config(), model, "v5e", per_shard=1)
    assert plan is not None
    assert str(plan.topology) == "v5e:2x4"
    assert plan.mesh == {"replica": 1, "data": 1, "fsdp": 4, "expert": 1, "tensor": 2}
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
    needs(lambda program, size, mesh: 15.0)  # tight
    plan, attempts = search.smallest(config(), model, "v5e", per_shard=1)
    assert plan is None
    assert {one.failed.fit for one in attempts} == {"tight"}
    assert str(attempts[-1].topology) == "v5e:16x16"


def test_a_mesh_that_a_slice_has_no_devices_for_is_passed_by(needs, model):
    needs(lambda program, size, mesh: 30 / mesh.size)
    plan, attempts = search.smallest(config(tensor=4), model, "v5e", per_shard=1)
    assert [(str(one.topology), one.mesh["tensor"]) for one in attempts] == [("v5e:1x1", 1), ("v5e:2x2", 4)]
    assert plan is not None
    assert sizes_of(plan.config) == (8, 16, 1)  # one part: both of the mesh's axes for batches have one


def test_an_unknown_generation_is_named(model):
    with pytest.raises(ValueError, match=r"unknown generation; did you mean 'v5p'"):
        search.smallest(config(), model, "v5x")
