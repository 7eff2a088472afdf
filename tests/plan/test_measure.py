"""The programs of a small config, run and timed on the CPU."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import noise_image, one_layer

from mmrl.cli import main
from mmrl.config import from_dict
from mmrl.kernels.packed import block_of
from mmrl.mesh import make_mesh
from mmrl.models.family import read_config
from mmrl.models.full_prompts import full_prompts
from mmrl.models.prompts import chat_messages, collate, encode
from mmrl.plan import flops
from mmrl.plan.lengths import LENGTHS
from mmrl.plan.measure import (
    Executable,
    Limits,
    compile_program,
    least_bytes,
    limits,
    measure,
    time_calls,
    time_program,
)
from mmrl.plan.report import bench_json, bench_text
from mmrl.plan.useful import RealTokens, count, real_tokens
from mmrl.plan.workload import PROGRAMS, arguments, program, workload
from mmrl.train.metrics import CompileCounter

P, N, G, R, LANES, UPDATE = 24, 32, 2, 5, 2, 2
ROW = 128  # the shortest: both groups of an update fit in it
EXPERIMENT = Path(__file__).parents[2] / "experiments" / "quickstart.py"


@pytest.fixture(scope="module", autouse=True)
def in_haste():
    """Programs are compiled without optimization: what they do is the same."""
    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, True)
    yield
    jax.config.update(name, before)


@pytest.fixture(scope="module")
def work(fixtures_dir):
    sizes = read_config(fixtures_dir / "qwen2_5_vl")
    sizes = replace(sizes, layers=1, vision=one_layer(sizes.vision), remat="full")
    config = from_dict(
        {
            "data": {"prompt_buckets": (8, P), "patch_buckets": (16, N)},
            "rollout": {"prompts": 4, "prompt_slots": LANES, "group": G, "max_tokens": R},
            "train": {"update_prompts": UPDATE, "row_tokens": ROW},
            "algorithm": {"name": "papo_g"},
        }
    )
    return workload(config, sizes, make_mesh({}))


@pytest.fixture(scope="module")
def executables(work):
    """Each program, compiled."""
    return {name: compile_program(work, name) for name in PROGRAMS}


@pytest.fixture(scope="module")
def given(work):
    """What each program is called with."""
    return {name: arguments(work, name) for name in PROGRAMS}


@pytest.fixture(scope="module")
def measured(work, executables, given):
    """Each program, timed; and how many programs were compiled in between."""
    with CompileCounter() as compiles:
        found = {
            name: time_program(work, executables[name], kept(given[name]), 2, real_tokens(work, name, 1.0))
            for name in PROGRAMS
        }
    return found, compiles.count


def kept(given: tuple) -> tuple:
    """The same in memory of its own, which a program may take."""
    return jax.tree.map(lambda leaf: leaf.copy(), given)


def counted(work, name: str) -> int:
    function, abstract, static = program(work, name)
    with jax.set_mesh(work.mesh):
        traced = function.trace(*abstract, **static)
    return flops.count(traced.jaxpr, trips={**work.trips(name), "decode_steps": R}, platform="cpu").total


def test_prompts_are_those_of_the_processor(policy):
    """An image of two by two windows, as the processor would lay it out at the same place."""
    sizes, processor = policy.config, policy.processor
    side, unit = 2 * processor.window, processor.image.patch
    image = noise_image(2 * side * unit, 2 * side * unit)
    spec = replace(processor.image, min_pixels=1, max_pixels=10**8)
    processor = replace(processor, image=spec)
    encoded = encode(processor, chat_messages("<image>How many?"), [image])
    p, n = len(encoded.tokens), len(encoded.patches)
    theirs = collate([encoded], processor, p, n)
    ours = jax.device_get(full_prompts(sizes, 1, p, n))
    np.testing.assert_array_equal(ours.images.position, theirs.images.position)
    np.testing.assert_array_equal(ours.images.image, theirs.images.image)
    assert ours.next_position == theirs.next_position
    first = [np.flatnonzero(prompts.image_token[0] >= 0)[0] for prompts in (ours, theirs)]
    tokens = n // 4
    for name in ("image_token", "position"):
        spans = [
            getattr(prompts, name)[0, at : at + tokens]
            for prompts, at in zip((ours, theirs), first, strict=True)
        ]
        shift = first[0] - first[1] if name == "position" else 0
        np.testing.assert_array_equal(spans[0], spans[1] + shift)


@pytest.mark.parametrize(("p", "n", "windows"), [(24, 64, 4), (10, 64, 2), (3, 64, 0), (24, 48, 3)])
def test_an_image_is_as_large_as_both_buckets_allow(work, p, n, windows):
    made = full_prompts(work.model, LANES, p, n)
    assert (made.image_token >= 0).sum(axis=1).tolist() == [4 * windows] * LANES
    assert (made.images.image >= 0).sum(axis=1).tolist() == [16 * windows] * LANES
    assert made.mask.all()


def test_batches_have_the_lengths_that_are_counted(work):
    """Rows of the arrays are as many as were counted, and hold as many tokens and patches."""
    data = replace(work.config.data, prompt_buckets=(128,), patch_buckets=(256,))
    rollout = replace(work.config.rollout, max_tokens=64)
    made = from_dict(asdict(replace(work.config, data=data, rollout=rollout)))
    tailed = workload(made, work.model, work.mesh, LENGTHS["long-tailed"])
    lengths, asked = tailed.lengths, tailed.prompt_lengths
    assert lengths.responses.max() < 64
    batch = arguments(tailed, "score")[2]
    assert batch.prompts.mask.sum(axis=1).tolist() == lengths.prompts.tolist()
    assert batch.responses.mask.sum(axis=2).tolist() == lengths.responses.tolist()
    assert (batch.prompts.images.image >= 0).sum(axis=1).tolist() == lengths.patches.tolist()
    of_prompts = arguments(tailed, "prefill")[2]
    for packed, rows, sizes in (
        (batch.packed, tailed.rows, (lengths.tokens, lengths.patches.sum())),
        (of_prompts, tailed.prompt_rows, (asked.prompts.sum(), asked.patches.sum())),
    ):
        assert (packed.token_rows, packed.patch_rows) == (rows.token_rows, rows.patch_rows)
        slots = packed.tokens.segments.span, packed.patches.images.reads
        assert [int((part >= 0).sum()) for part in slots] == [*sizes]
        for pairs, of_rows, mean in (
            (packed.tokens.pairs, rows.token_rows, rows.text_pairs),
            (packed.patches.image_pairs, rows.patch_rows, rows.image_pairs),
            (packed.patches.window_pairs, rows.patch_rows, rows.window_pairs),
        ):
            assert np.mean(np.asarray(pairs.count)[: round(of_rows)]) == pytest.approx(mean)


@pytest.mark.exhaustive
def test_decoding_goes_on_to_the_last_token(executables, given):
    state, made = executables["decode"].call(*kept(given["decode"]))
    assert made.tokens.shape == (LANES, G, R)
    assert (made.drawn == R).all()
    assert state.running.all()  # so that the next call can go on from there
    assert len(np.unique(made.tokens)) > 2
    assert jnp.isfinite(made.logprob).all()


@pytest.mark.exhaustive
def test_an_update_is_taken(executables, given):
    before = np.asarray(given["update"][0].params["lm_head"])
    state, metrics = executables["update"].call(*kept(given["update"]))
    assert metrics["skipped"] == 0
    assert metrics["gradient_norm"] > 0
    assert state.updates == 1
    assert (np.asarray(state.params["lm_head"]) != before).any()


@pytest.mark.exhaustive
def test_nothing_is_compiled_between_calls(measured):
    found, compiles = measured
    assert {name: len(one.seconds) for name, one in found.items()} == dict.fromkeys(PROGRAMS, 2)
    assert compiles == 0


def test_what_an_update_gives_is_what_the_next_is_given():
    seen = []

    def call(state: np.ndarray, other: str) -> tuple:
        seen.append((int(state), other))
        return state + 1, "metrics"

    assert len(time_calls(call, (np.array(0), "batch"), 2, carried=0)) == 2
    assert seen == [(0, "batch"), (1, "batch"), (2, "batch")]


@pytest.mark.exhaustive
def test_operations_are_those_of_the_program(work, measured):
    measured, _ = measured
    lean = replace(work, model=replace(work.model, remat="none"))
    for name, one in measured.items():
        assert one.flops.computed.total == counted(work, name)
        assert one.flops.useful <= counted(lean, name)
    update, decode = measured["update"].flops, measured["decode"].flops
    assert update.computed.total > counted(lean, "update")
    assert (decode.useful, decode.repeated) == (decode.computed.total, None)


@pytest.mark.parametrize("full", [(), (0,), (0, 1)])
def test_windowed_layers_of_the_vision_tower_count_as_such(work, full):
    data = replace(work.config.data, prompt_buckets=(128,), patch_buckets=(256,))

    def operations(layers):
        sizes = replace(work.model, vision=replace(work.model.vision, layers=2, full_attention_layers=layers))
        two = replace(work, model=sizes, config=replace(work.config, data=data))
        function, given, static = program(two, "prefill")
        with jax.set_mesh(work.mesh):
            jaxpr = function.trace(*given, **static).jaxpr
        return two, count(two, jaxpr, two.trips("prefill")).total

    two, highest = operations((0, 1))
    trips = two.trips("prefill")
    spared = trips["image_pairs"] - trips["window_pairs"]
    assert spared > 0
    spared *= 4 * trips["patch_rows"] * block_of(two.prompt_budget.patches) ** 2 * two.model.vision.width
    assert operations(full)[1] == highest - (2 - len(full)) * spared


def test_decoding_moves_weights_and_prefix_in_every_step(work):
    sizes = work.model
    language = sizes.layers * (
        sizes.width * sizes.head_dim * 2 * (sizes.query_heads + sizes.kv_heads)  # query, out, key, value
        + sizes.head_dim * (sizes.query_heads + 2 * sizes.kv_heads)  # their biases
        + 3 * sizes.width * sizes.mlp_width
        + 2 * sizes.width
    )
    weights = language + sizes.width + sizes.vocabulary * sizes.width
    token = LANES * 2 * sizes.layers * sizes.kv_heads * sizes.head_dim
    steps = [weights + P * token + G * token * (step + 1) + G * token for step in range(R)]
    assert least_bytes(work, "decode") == 4 * sum(steps)


def test_an_update_moves_the_state_twice(work):
    leaves = jax.tree.leaves(program(work, "prefill")[1][0])
    counters = 3
    assert least_bytes(work, "update") == 2 * 4 * (3 * sum(leaf.size for leaf in leaves) + counters)


@pytest.mark.exhaustive
def test_report(work, measured):
    measured, _ = measured
    made = bench_json("tiny", work, list(measured.values()), Limits(1e9, 1e9, "made up"))
    assert as_lists(made) == json.loads(json.dumps(made))
    rows = {row["program"]: row for row in made["programs"]}
    assert {name: row["tokens"] for name, row in rows.items()} == {
        "prefill": LANES * P,
        "decode": LANES * G * R,
        "score": UPDATE * (P + G * R),
        "update": UPDATE * (P + G * R),
    }
    for name, row in rows.items():
        taken = row["seconds"]
        assert taken["min"] <= taken["median"] <= taken["max"]
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / taken["median"])
        assert row["useful_share"] == pytest.approx(measured[name].flops.useful / taken["median"] / 1e9)
        assert row["bytes_share"] == pytest.approx(least_bytes(work, name) / taken["median"] / 1e9)
        assert row["times_floor"] == pytest.approx(1 / max(row["useful_share"], row["bytes_share"]))
        assert row["memory"]["held"] >= row["memory"]["argument"]
        assert f"{taken['median']:.4g}" in bench_text(made)
    assert rows["decode"]["step"]["seconds"] == pytest.approx(rows["decode"]["seconds"]["median"] / R)
    for name in ("score", "update"):
        assert (rows[name]["shapes"]["rows"], rows[name]["shapes"]["row_tokens"]) == (1, ROW)


def as_lists(node):
    """JSON has no tuples."""
    if isinstance(node, dict):
        return {name: as_lists(value) for name, value in node.items()}
    return [as_lists(value) for value in node] if isinstance(node, list | tuple) else node


def test_limits_are_measured_where_the_kind_is_not_known(work):
    """Within what any machine can do: a rate in another unit would be far off."""
    found = limits(work.mesh, jnp.float32)
    assert found.source == "measured here"
    assert 1e8 < found.flops < 1e14
    assert 1e7 < found.bandwidth < 1e13


def arguments_of_cli(fixtures_dir, *more: str) -> list[str]:
    return [
        "bench",
        f"--config={EXPERIMENT}:smoke",
        f"--config.model.path={fixtures_dir / 'qwen2_5_vl'}",
        "--program=prefill",
        "--config.rollout.prompt_slots=1",
        *more,
    ]


def test_command(fixtures_dir, tmp_path, capsys):
    out = tmp_path / "deep" / "bench.json"
    assert main(arguments_of_cli(fixtures_dir, "--repeats=1", f"--json={out}")) == 0
    made = json.loads(out.read_text())
    said = capsys.readouterr()
    assert said.out == bench_text(made) + "\n"
    assert "prefill: compiled in" in said.err
    assert made["hardware"]["kind"] == jax.devices()[0].device_kind
    assert made["versions"]["jax"] == jax.__version__
    assert made["config"]["rollout"]["prompt_slots"] == 1
    (row,) = made["programs"]
    assert (row["program"], row["repeats"], row["shapes"]["prompts"]) == ("prefill", 1, 1)


@pytest.mark.exhaustive
def test_object_alone_on_stdout(fixtures_dir, capsys):
    assert main(arguments_of_cli(fixtures_dir, "--repeats=1", "--json=-")) == 0
    assert json.loads(capsys.readouterr().out)["programs"][0]["program"] == "prefill"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--repeats=0", "--repeats: '0' should be a whole number, 1 or more"),
        ("--config.data.patch_buckets=70", "70 is not a multiple of 16"),
        ("--config.mesh.data=3", "does not fit 1 devices"),
        ("--config.model.path=nowhere", "--model-size"),
        ("--model-size=8b", "published sizes are 3b, 7b, 32b, 72b"),
        ("--config.rollout.top_p=0.0", "rollout.top_p=0.0 is out of range"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_compiled(fixtures_dir, capsys, option, message):
    with CompileCounter() as compiles:
        assert main(arguments_of_cli(fixtures_dir, option)) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert message in said
    assert compiles.count == 0


def test_out_of_memory_names_the_program_and_the_fix(work, monkeypatch):
    def refuse(*_: object) -> Executable:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")

    monkeypatch.setattr("mmrl.plan.measure.compile_program", refuse)
    with pytest.raises(ValueError, match=r"update does not fit .* config\.train\.row_tokens"):
        measure(work, "update", 1, RealTokens(1, 1.0))
