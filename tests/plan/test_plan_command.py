"""``mmrl plan``: what it refuses, and the real compiler's answer for a tiny model."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmrl.cli import main

GRPO = Path(__file__).parents[2] / "experiments" / "grpo_qwen2_5_vl_7b.py"
needs_libtpu = pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason='libtpu is not installed: pip install "mmrl[tpu]"'
)

# A model whose products outweigh its attention, and a run of four prompts of four responses.
WIDTH, LAYERS, HEADS, HEAD_DIM, MLP, VOCABULARY = 256, 2, 2, 128, 4096, 2048
VISION_WIDTH, VISION_LAYERS, VISION_MLP = 128, 2, 512
MODEL = {
    "model_type": "qwen2_5_vl",
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "intermediate_size": MLP,
    "vocab_size": VOCABULARY,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {
        "depth": VISION_LAYERS,
        "hidden_size": VISION_WIDTH,
        "intermediate_size": VISION_MLP,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
        "fullatt_block_indexes": [1],
    },
}
PROMPT, PATCHES, GROUP, TOKENS, PROMPTS = 256, 256, 4, 128, 4
ROW = PROMPT + GROUP * TOKENS  # a group; two images, as each of the two parts of the batch has, leave a third
TEXT_WEIGHTS = LAYERS * (4 * WIDTH * HEADS * HEAD_DIM + 3 * WIDTH * MLP)
VISION_WEIGHTS = VISION_LAYERS * (4 * VISION_WIDTH**2 + 3 * VISION_WIDTH * VISION_MLP)
MERGER_WEIGHTS = 4 * VISION_WIDTH * (4 * VISION_WIDTH + WIDTH)
OUTPUT_WEIGHTS = VOCABULARY * WIDTH
RUN = (
    "--config.mesh.tensor=2",
    f"--config.data.prompt_buckets={PROMPT}",
    f"--config.data.patch_buckets={PATCHES}",
    f"--config.rollout.max_tokens={TOKENS}",
    f"--config.rollout.group={GROUP}",
    f"--config.train.update_prompts={PROMPTS}",
    f"--config.train.row_tokens={ROW}",
    "--config.model.dtype=bfloat16",
)


def test_sizes_come_from_somewhere(capsys):
    command = ["plan", f"--config={GRPO}", "--topology=v5e:2x2"]
    assert main(command) == 2
    assert "name one with a config.json, or a published model with --model-size" in capsys.readouterr().err
    assert main([*command, "--model-size=8b"]) == 2
    assert "published sizes are 3b, 7b, 32b, 72b" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--topology=v5e:3x3"], "topology 'v5e:3x3': no such slice; nearest are"),
        (["--topology=v6p:2x2"], "unknown generation; did you mean 'v6e'?"),
        (["--smallest=v6p"], "unknown generation; did you mean 'v6e'?"),
        (["--smallest=v5e", "--suggest"], "--suggest looks at one slice: name it with --topology"),
        (
            ["--topology=v5e:2x2", "--lengths=short"],
            "no 'short'; there are 'full', 'long-tailed' and folders",
        ),
        (["--topology=v5e:2x2", f"--lengths={Path(__file__).parent}"], "has no lengths of responses"),
        (["--topology=v5e:2x2", "--batch=4"], "unknown argument '--batch=4'"),
        (["--topology=v5e:2x2", "--config.mesh.tenser=4"], "did you mean config.mesh.tensor?"),
    ],
)
def test_mistakes(options, message, capsys):
    assert main(["plan", f"--config={GRPO}", "--model-size=7b", *options]) == 2
    assert message in capsys.readouterr().err


@needs_libtpu
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--topology=v5e:4x4*2"], "set replica to 2"),
        (["--topology=v5e:2x2", "--config.mesh.tensor=3"], "does not fit 4 devices"),
        (
            ["--topology=v5e:4x4", "--config.train.update_prompts=4"],
            "config.train.update_prompts=4 cannot be cut evenly into the 16 parts",
        ),
        (["--topology=v5e:4x4", "--per-shard=0"], "--per-shard: '0' should be a whole number, 1 or more"),
        (["--smallest=v5e", "--per-shard=0"], "--per-shard: '0' should be a whole number, 1 or more"),
    ],
)
def test_meshes_and_batches_that_do_not_fit(options, message, capsys):
    assert main(["plan", f"--config={GRPO}", "--model-size=7b", *options]) == 2
    assert message in capsys.readouterr().err


def test_without_libtpu_it_says_what_to_install(monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "libtpu" else found(name, *rest)
    )
    for where in ("--topology=v5e:2x2", "--smallest=v5e"):
        assert main(["plan", f"--config={GRPO}", "--model-size=7b", where]) == 2
        assert 'pip install "mmrl[tpu]"' in capsys.readouterr().err


def planned(folder: Path, *options: str) -> tuple[str, str]:
    """What the command prints, in a process that was told nothing of TPUs."""
    (folder / "config.json").write_text(json.dumps(MODEL))
    unset = {"JAX_PLATFORMS", "XLA_FLAGS", "TPU_LOG_DIR", "TPU_WORKER_HOSTNAMES", "TPU_ACCELERATOR_TYPE"}
    command = [sys.executable, "-m", "mmrl.cli", "plan", f"--config={GRPO}:smoke"]
    done = subprocess.run(
        [*command, f"--config.model.path={folder}", *RUN, *options],
        env={name: value for name, value in os.environ.items() if name not in unset},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.exhaustive
@needs_libtpu
def test_a_tiny_model_on_four_chips(tmp_path):
    only = ["--program=update", "--program=decode"]
    out, progress = planned(tmp_path, "--topology=v5e:2x2", "--per-shard=1", *only, "--suggest", "--json")
    plan = json.loads(out)["plan"]
    assert plan["mesh"] == {"replica": 1, "data": 1, "fsdp": 2, "expert": 1, "tensor": 2}
    assert (plan["batches"]["train.row_tokens"], plan["batches"]["rollout.prompt_slots"]) == (ROW, 2)
    decode, update = plan["programs"]
    assert (decode["program"], update["program"]) == ("decode", "update")
    for program in (decode, update):
        assert program["fit"] == "fits"
        assert not program["unbounded"]
        assert program["needed_bytes"] == program["memory"]["peak"] + program["resident_bytes"]
        assert program["cycle_seconds"] > program["roofline_seconds"] > 0
    assert f"decode of 2: fits, {decode['needed_bytes'] / 2**30:.2f} of 15.75 GiB" in progress

    # The optimizer's moments and weights lie beside decoding; updating reads them.
    weights = TEXT_WEIGHTS + VISION_WEIGHTS + MERGER_WEIGHTS + 2 * OUTPUT_WEIGHTS
    assert decode["resident_bytes"] >= 3 * 4 * weights / 4
    assert update["memory"]["argument"] >= 3 * 4 * weights / 4

    # Decoding gathers no weights, and reduces what heads and hidden units add up to in every layer.
    assert decode["collectives"]["all-reduce"]["count"] >= 2 * LAYERS * TOKENS
    assert sum(one["wire_bytes"] for one in decode["collectives"].values()) < TOKENS * OUTPUT_WEIGHTS
    assert update["collectives"]["all-gather"]["wire_bytes"] > 0
    assert {"reduce-scatter", "all-reduce"} & update["collectives"].keys()

    assert (update["rows"], update["tokens"], update["computed_over_real"]) == (PROMPTS, PROMPTS * ROW, 1)
    assert update["repeated_over_real"] == GROUP * (PROMPT + TOKENS) / ROW
    assert decode["flops"] == decode_flops() / 4
    assert update["flops"] == pytest.approx(update_flops() / 4, rel=0.05)
    assert [(one["key"], one["value"]) for one in plan["suggestions"]] == [
        ("train.row_tokens", ROW),  # all that there is in a row
        ("rollout.prompt_slots", 8),
    ]


def decode_flops() -> int:
    """Every token of a turn reads all slots of its prompt and of its own cache."""
    attention = LAYERS * 4 * HEADS * HEAD_DIM * (PROMPT + TOKENS)
    return 2 * GROUP * TOKENS * (2 * (TEXT_WEIGHTS + OUTPUT_WEIGHTS) + attention)


def update_flops() -> int:
    """Three passes forward and backward, four of images and of the output table; attention by its blocks."""
    block, parts = 128, 2
    patches = parts * ROW
    images = VISION_WEIGHTS + MERGER_WEIGHTS / 4
    products = PROMPTS * ROW * (3 * TEXT_WEIGHTS + 4 * OUTPUT_WEIGHTS)
    products += patches * (4 * images + 3 * 3 * 14 * 14 * VISION_WIDTH)
    text_pairs = 3 + GROUP * (2 + 1)  # a prompt of two blocks, which each response of one reads
    image_pairs = 2 * 2**2 + 2, ROW // block  # two images and two empty blocks; windows
    # Two products forward and seven backward; heads of the vision tower are filled up to 128.
    attention = PROMPTS * text_pairs * block**2 * LAYERS * HEADS * HEAD_DIM * (2 + 7)
    attention += parts * sum(image_pairs) * block**2 * 2 * 128 * (2 + 2 + 7)
    return round(2 * (products + attention))


@pytest.mark.exhaustive
@needs_libtpu
def test_the_smallest_slice_of_a_tiny_model(tmp_path):
    out, _ = planned(tmp_path, "--smallest=v5e", "--program=prefill", "--quick")
    assert "v5e:1x1" in out.splitlines()[0]
    assert "the smallest slice is v5e:1x1" in out
    assert "compiled without optimization" in out
