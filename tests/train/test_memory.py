"""The estimate of memory beside what compilers say, and what is chosen and refused by it."""

import json
import re
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from PIL import Image
from runs import without_times

from mmrl import cli
from mmrl.config import Config, resolve
from mmrl.experiment import load
from mmrl.mesh import AXES, make_mesh
from mmrl.models.published import published
from mmrl.open import with_compute_options
from mmrl.plan import workload
from mmrl.run_folder import read_metrics, read_starts
from mmrl.train import fit as fitting
from mmrl.train import memory, stages
from mmrl.train.fit import buckets_of, fit, row_choices
from mmrl.train.memory import GIB, Widths, estimate

PAPO = "experiments/papo_qwen2_5_vl_3b.py"
MID = replace(
    published("3b"),
    vocabulary=32_000,
    width=768,
    layers=12,
    query_heads=12,
    head_dim=64,
    mlp_width=3072,
    mrope_sections=(8, 12, 12),
    vision=replace(
        published("3b").vision, layers=8, width=384, heads=6, mlp_width=1024, full_attention_layers=(3, 7)
    ),
)
TINY = replace(
    MID,
    vocabulary=448,
    width=128,
    layers=4,
    query_heads=4,
    head_dim=32,
    mlp_width=384,
    mrope_sections=(4, 6, 6),
    vision=replace(
        MID.vision, layers=3, width=64, heads=4, mlp_width=176, window_size=56, full_attention_layers=(2,)
    ),
)
# 60 photographs of 1024 x 768 with a short question each: tokens and patch slots.
PHOTOS = np.array([[1040, 4480]] * 59 + [[1056, 4480]])


@pytest.fixture(scope="module")
def mesh():
    return make_mesh({}, jax.devices()[:1])


@pytest.fixture
def papo(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    return resolve(load(PAPO))


def sized(config, model, *, dtype, remat, group=5, tokens=2048, row=1, update=2, prompt_slots=4):
    """A run with these batches, and the model as it computes it."""
    config = replace(
        config,
        rollout=replace(
            config.rollout,
            prompts=update,
            group=group,
            max_tokens=tokens,
            prompt_slots=prompt_slots,
            slots_per_prompt=group,
        ),
        train=replace(config.train, update_prompts=update, row_tokens=row),
    )
    return config, replace(model, dtype=jnp.dtype(dtype), remat=remat)


# Temporaries by the CPU compiler's account (jax 0.10.2; of a prefill also its output and its weights).
@pytest.mark.parametrize(
    ("model", "prompt", "patches", "batches", "program", "measured"),
    [
        (TINY, 1088, 4352, {"dtype": "bfloat16", "remat": "full"}, "update", 70_744_216),
        (TINY, 1088, 4352, {"dtype": "bfloat16", "remat": "full"}, "prefill", 28_986_472),
        (TINY, 1088, 4352, {"dtype": "bfloat16", "remat": "none", "row": 8192}, "update", 583_707_032),
        (TINY, 64, 64, {"dtype": "float32", "remat": "none"}, "update", 216_871_816),
        (TINY, 64, 64, {"dtype": "float32", "remat": "none", "row": 16384}, "update", 1_568_490_760),
        (TINY, 64, 64, {"dtype": "float32", "remat": "dots", "row": 8192}, "update", 408_093_512),
        (TINY, 64, 64, {"dtype": "float32", "remat": "full"}, "update", 65_339_976),
        (
            MID,
            128,
            256,
            {"dtype": "float32", "remat": "none", "group": 4, "tokens": 128, "update": 4},
            "update",
            1_556_994_000,
        ),
        (
            published("7b"),
            4096,
            12288,
            {"dtype": "bfloat16", "remat": "full", "prompt_slots": 2},
            "update",
            95_110_552_096,
        ),
        (
            published("7b"),
            4096,
            12288,
            {"dtype": "bfloat16", "remat": "full", "prompt_slots": 2},
            "prefill",
            48_688_589_288,
        ),
    ],
)
def test_estimate_is_at_most_a_third_more_than_the_cpu_compiler_takes_and_never_less(
    papo, mesh, model, prompt, patches, batches, program, measured
):
    config, model = sized(papo, model, **batches)
    stages = estimate(config, model, mesh, Widths(prompt, patches), cpu=True).stages
    if program == "prefill":
        caches = ("keys and values", "logits", "images of the batch")
        found = sum(size for name, size in stages["sampling"].items() if name not in caches)
    else:
        found = sum(size for name, size in stages["update"].items() if name != "images of the batch")
    assert measured <= found <= 1.36 * measured


# docs/performance.md, what the TPU compiler says of the update with all that is held beside it.
@pytest.mark.parametrize(
    ("size", "fsdp", "tensor", "gib"),
    [
        ("3b", 4, 1, 26.37),
        ("7b", 4, 1, 57.84),
        ("7b", 4, 4, 17.05),
        ("7b", 8, 4, 9.48),
    ],
)
def test_estimate_is_near_what_the_tpu_compiler_takes(papo, size, fsdp, tensor, gib):
    config = replace(
        papo,
        rollout=replace(papo.rollout, prompt_slots=fsdp, slots_per_prompt=5),
        train=replace(papo.train, row_tokens=6144),
    )
    model = replace(published(size), dtype=jnp.dtype("bfloat16"), remat="full", attention="flash")
    mesh = AbstractMesh((1, 1, fsdp, 1, tensor), AXES)
    found = estimate(config, model, mesh, Widths(4096, 12288), cpu=False).peak / GIB
    assert 0.94 * gib <= found <= 1.2 * gib


def test_estimate_of_a_prefill_beside_the_compiler_that_is_here(papo, mesh):
    config, model = sized(papo, TINY, dtype="float32", remat="none", prompt_slots=2)
    config = replace(config, data=replace(config.data, prompt_buckets=(320,), patch_buckets=(1024,)))
    work = workload.workload(config, model, mesh)
    program, arguments, static = workload.program(work, "prefill")
    with jax.set_mesh(mesh):
        stats = program.trace(*arguments, **static).lower().compile().memory_analysis()
    taken = stats.temp_size_in_bytes + stats.output_size_in_bytes
    parts = memory.sampling(config, model, mesh, Widths(320, 1024), cpu=True)
    found = sum(parts.values()) - sum(parts[k] for k in ("keys and values", "logits", "images of the batch"))
    assert taken <= found <= 1.36 * taken


def test_batches_of_photographs_are_chosen_by_data_and_memory(papo, mesh):
    """The README's command on two cores and 24 GB, with a tiny model; of the template, buckets too."""
    config = replace(papo, data=replace(papo.data, prompt_buckets=(), patch_buckets=()))
    model = with_compute_options(TINY, config, mesh)
    found = fit(config, model, mesh, PHOTOS, 22 * GIB, {})
    assert found.chosen["data.prompt_buckets"] == (1056,)
    assert found.chosen["data.patch_buckets"] == (4480,)
    assert found.estimate().peak <= 0.9 * 22 * GIB
    assert found.config.rollout.prompt_slots >= 16
    assert found.config.train.row_tokens == 16384
    less = fit(config, model, mesh, PHOTOS, 9 * GIB, {})
    assert less.estimate().peak <= 0.9 * 9 * GIB
    assert less.config.rollout.prompt_slots < found.config.rollout.prompt_slots
    least = fit(config, model, mesh, PHOTOS, 17 * GIB // 4, {})
    assert least.estimate().peak <= 0.9 * 17 * GIB / 4
    assert least.config.train.row_tokens < found.config.train.row_tokens
    unknown = fit(config, model, mesh, PHOTOS, None, {})
    assert unknown.config.rollout.prompt_slots == 256
    assert fit(papo, model, mesh, PHOTOS, 22 * GIB, {}).widths == Widths(1536, 4608)


def test_values_that_the_config_names_stay(papo, mesh):
    config = replace(
        papo,
        rollout=replace(papo.rollout, prompt_slots=3, slots_per_prompt=2),
        train=replace(papo.train, row_tokens=4096),
    )
    found = fit(config, with_compute_options(TINY, config, mesh), mesh, PHOTOS, 22 * GIB, {})
    assert (found.config, found.chosen) == (config, {})


def test_a_run_goes_on_with_what_was_chosen_before_if_there_is_room(papo, mesh):
    config = replace(papo, data=replace(papo.data, prompt_buckets=(), patch_buckets=()))
    model = with_compute_options(TINY, config, mesh)
    before = json.loads(json.dumps(fit(config, model, mesh, PHOTOS, 9 * GIB, {}).chosen))
    before["data.prompt_buckets"] = [2048]  # as another version may have chosen
    again = fit(config, model, mesh, PHOTOS, 22 * GIB, before)
    assert json.loads(json.dumps(again.chosen)) == before
    small = fit(config, model, mesh, PHOTOS, 8 * GIB, before)
    assert small.chosen["data.prompt_buckets"] == (2048,)
    assert small.estimate().peak <= 0.9 * 8 * GIB


@pytest.mark.parametrize(
    ("lengths", "batch", "buckets"),
    [
        ([100] * 10, 4, (128,)),
        ([100] * 99 + [1000], 4, (128, 1024)),  # most batches are without the long one
        ([100] * 99 + [1000], 384, (1024,)),  # few are
        ([0] * 9 + [64], 4, (0, 64)),
        ([0], 4, (0,)),
        ([990, 1000], 1, (1024,)),
    ],
)
def test_buckets_follow_the_lengths_of_batches(lengths, batch, buckets):
    assert buckets_of(np.array(lengths), batch, 64 if buckets[-1] != 128 else 128) == buckets


def test_what_has_no_room_is_refused_with_keys_that_make_room(papo, mesh):
    config = replace(
        papo, rollout=replace(papo.rollout, prompt_slots=64), train=replace(papo.train, row_tokens=65536)
    )
    model = with_compute_options(TINY, config, mesh)
    with pytest.raises(ValueError, match=r"needs .* GiB of each device, and 2\.0 are free") as refused:
        fit(config, model, mesh, PHOTOS, 2 * GIB, {})
    said = str(refused.value)
    assert "config.rollout.prompt_slots=64 " in said
    assert "config.train.row_tokens=65536 " in said
    parts = re.findall(r"^ *([\d.]+)  update: (?!.*together)", said, re.MULTILINE)
    assert len(parts) >= 5
    pasted = re.findall(r"--config\.\S+", said.splitlines()[-1])
    assert pasted
    changed = resolve(load(PAPO, pasted))
    lengths = np.minimum(PHOTOS, [max(changed.data.prompt_buckets), max(changed.data.patch_buckets)])
    found = fit(changed, with_compute_options(TINY, changed, mesh), mesh, lengths, 2 * GIB, {})
    assert found.estimate().peak <= 0.9 * 2 * GIB


def own_data(folder, count=3):
    """Photographs of one's own, and a question about each."""
    folder.mkdir()
    rows = []
    for k in range(count):
        Image.new("RGB", (1024, 768), (40 * k, 90, 200)).save(folder / f"{k}.jpg")
        row = {"problem": "<image>How many red shapes?", "answer": str(k), "images": [f"{k}.jpg"]}
        rows.append(json.dumps(row))
    (folder / "own.jsonl").write_text("\n".join(rows))
    return folder / "own.jsonl"


def model_of_7b(fixture, folder):
    """The tiny tokenizer with the config.json of Qwen/Qwen2.5-VL-7B-Instruct, and no weights."""
    folder.mkdir()
    for path in fixture.iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            shutil.copy(path, folder / path.name)
    ids = {k: v for k, v in json.loads((fixture / "config.json").read_text()).items() if k.endswith("_id")}
    sizes = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "hidden_act": "silu",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "max_position_embeddings": 128000,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vision_config": {
            "depth": 32,
            "hidden_act": "silu",
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vocab_size": 152064,
    }
    (folder / "config.json").write_text(json.dumps({**ids, **sizes}))
    return folder


@pytest.mark.exhaustive
def test_the_published_7b_is_refused_on_a_small_machine_before_weights_are_read(
    tmp_path, fixtures_dir, monkeypatch, request, capsys
):
    monkeypatch.chdir(request.config.rootpath)
    monkeypatch.setattr(stages, "device_bytes", lambda mesh: 24 * GIB)
    words = [
        "train",
        "--config=experiments/papo_qwen2_5_vl_7b.py",
        f"--config.model.path={model_of_7b(fixtures_dir / 'qwen2_5_vl', tmp_path / '7b')}",
        f"--config.data.train={own_data(tmp_path / 'own')}",
        f"--workdir={tmp_path / 'run'}",
    ]
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("mmrl: the run needs 2")
    assert "30.891  always: weights" in said
    assert "61.781  always: optimizer" in said
    assert "61.781  update: gradient" in said
    assert "config.rollout.max_tokens=2048" in said
    assert "Traceback" not in said
    assert "--config.mesh.fsdp=4 --config.mesh.tensor=4" in said.splitlines()[-1]


def test_memory_that_runs_out_all_the_same_shows_the_estimate(papo, mesh):
    found = fit(papo, with_compute_options(TINY, papo, mesh), mesh, PHOTOS, 22 * GIB, {})
    with (
        pytest.raises(
            ValueError, match="out of memory, which was not foreseen: RESOURCE_EXHAUSTED: Out"
        ) as told,
        found.explained(),
    ):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory allocating 474581477480 bytes.\nmore"
        )
    assert "update: gradient" in str(told.value)
    assert "--config." in str(told.value).splitlines()[-1]
    with pytest.raises(jax.errors.JaxRuntimeError), found.explained():
        raise jax.errors.JaxRuntimeError("INTERNAL: other")


def test_prompt_slots_of_an_evaluation_follow_what_is_free(mesh, monkeypatch):
    model = replace(TINY, attention="plain")
    slots = []
    for gib in (None, 0.5, 1.5, 1e-6):
        monkeypatch.setattr(fitting, "free_bytes", lambda mesh, gib=gib: gib and int(gib * GIB))
        slots.append(fitting.max_prompt_slots(Config(), model, mesh, Widths(1056, 4480), 32))
    assert slots[0] == 32
    assert slots[0] > slots[2] > slots[1] >= slots[3] == 1


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 8192 * 1024),
        ({"sys/fs/cgroup/memory.max": "max", "sys/fs/cgroup/memory.current": "5"}, 8192 * 1024),
        ({"sys/fs/cgroup/a/memory.max": "1000", "sys/fs/cgroup/a/memory.current": "400"}, 650),
        ({"sys/fs/cgroup/a/b/memory.max": "100", "sys/fs/cgroup/a/b/memory.current": "400"}, 1),
    ],
)
def test_free_memory_of_the_host(tmp_path, files, free):
    given = {
        "proc/meminfo": "MemTotal: 16384 kB\nMemAvailable:    8192 kB\n",
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/memory.stat": "anon 3\ninactive_file 50\n",
        **files,
    }
    for name, text in given.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert memory._free_on_host(tmp_path) == free
    assert memory._free_on_host(tmp_path / "none") is None


@pytest.mark.exhaustive
def test_what_is_left_open_changes_padding_and_nothing_else(smoke_config, smoke_run, tmp_path):
    """The same responses and figures as the run that names buckets, slots and rows."""
    config = replace(
        smoke_config,
        data=replace(smoke_config.data, prompt_buckets=(), patch_buckets=()),
        train=replace(smoke_config.train, row_tokens=0),
    )
    stages.run(config, tmp_path / "run")
    chosen = read_starts(tmp_path / "run")[0]["chosen"]
    assert chosen["train.row_tokens"] == row_choices(config, 1, max(chosen["data.prompt_buckets"]))[0]
    ours, named = (without_times(read_metrics(folder)) for folder in (tmp_path / "run", smoke_run))
    assert [row["rollout/digest"] for row in ours[1:]] == [row["rollout/digest"] for row in named[1:]]
    for row, other in zip(ours, named, strict=True):
        for name in row.keys() - {"compiles"}:
            if "padding" not in name and not name.startswith(("sampler/", "perception/", "loss/approx_kl")):
                assert row[name] == pytest.approx(other[name], rel=1e-4, abs=1e-7), (row["step"], name)
