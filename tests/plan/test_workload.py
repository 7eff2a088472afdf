"""Operations of score and update as they are traced, against products counted by hand."""

from dataclasses import dataclass, replace

import jax
import pytest

from mmrl.config import from_dict
from mmrl.mesh import make_mesh
from mmrl.models.config import ModelConfig
from mmrl.models.family import read_config
from mmrl.plan import flops
from mmrl.plan.lengths import LENGTHS
from mmrl.plan.workload import PROGRAMS, Workload, program, workload
from mmrl.train.fit import row_choices

PROMPT, PATCHES, GROUP, TOKENS, PROMPTS = 256, 1024, 3, 256, 6
KINDS = [
    "long-tailed",
    *(pytest.param(kind, marks=pytest.mark.exhaustive) for kind in LENGTHS if kind != "long-tailed"),
]
ROW, BLOCK = 1024, 128  # a group in a row of tokens, an image in a row of patches


@pytest.fixture(scope="module")
def sizes(fixtures_dir) -> ModelConfig:
    """Products outweigh all else; one vision layer attends within windows, one to whole images."""
    tiny = read_config(fixtures_dir / "qwen2_5_vl")
    vision = replace(tiny.vision, width=128, layers=2, full_attention_layers=(1,), heads=1, mlp_width=512)
    return replace(
        tiny, width=256, layers=2, query_heads=2, kv_heads=1, head_dim=128, mlp_width=1024, vocabulary=2048,
        mrope_sections=(16, 24, 24), vision=vision, remat="none",
    )  # fmt: skip


def work_of(sizes: ModelConfig, kind: str = "full", row: int = ROW, **algorithm) -> Workload:
    config = from_dict(
        {
            "data": {"prompt_buckets": (PROMPT,), "patch_buckets": (PATCHES,)},
            "rollout": {"prompts": PROMPTS, "group": GROUP, "max_tokens": TOKENS},
            "train": {"update_prompts": PROMPTS, "row_tokens": row},
            "algorithm": algorithm or {"name": "grpo"},
        }
    )
    return workload(config, sizes, make_mesh({}, jax.devices()[:1]), LENGTHS[kind])


def counted(work: Workload, name: str) -> flops.Flops:
    function, arguments, static = program(work, name)
    with jax.set_mesh(work.mesh):
        jaxpr = function.trace(*arguments, **static).jaxpr
    return flops.count(jaxpr, trips=work.trips(name), expensive_fraction=work.full_attention_fraction)


@dataclass(frozen=True)
class Products:
    """Multiplications in one forward pass, by what they are of; attention's for one of its products."""

    text: float
    output: float
    text_attention: float
    images: float
    patches: float  # to embed them: they have no gradient
    image_attention: float


def by_hand(work: Workload) -> Products:
    model, rows, vision = work.model, work.rows, work.model.vision.width
    slots, patch_slots = rows.token_rows * ROW, rows.patch_rows * ROW
    heads = model.head_dim * 2 * (model.query_heads + model.kv_heads)
    merged = model.token_patches * vision
    return Products(
        text=slots * model.layers * model.width * (heads + 3 * model.mlp_width),
        output=slots * model.width * model.vocabulary,
        text_attention=rows.token_rows
        * rows.text_pairs
        * BLOCK**2
        * (model.layers * model.query_heads * model.head_dim),
        images=patch_slots * model.vision.layers * vision * (4 * vision + 3 * model.vision.mlp_width)
        + patch_slots / model.token_patches * merged * (merged + model.width),
        patches=patch_slots * vision * 3 * model.vision.patch_size**2,
        image_attention=rows.patch_rows * (rows.image_pairs + rows.window_pairs) * BLOCK**2 * vision,
    )


def test_rows_of_full_lengths(sizes):
    """A row is a prompt and three responses, each two blocks; an image is eight."""
    work = work_of(sizes)
    assert (work.budget.tokens, work.budget.patches, work.budget.window) == (ROW, ROW, 16)
    assert work.trips("update") == {
        "decode_steps": TOKENS, "read_token": 1, "further_passes": 0,
        "token_rows": PROMPTS, "patch_rows": PROMPTS,
        "text_pairs": 3 + 3 * (3 + 4), "image_pairs": 8**2, "window_pairs": 8,
        "chunks_of_1024": 1, "chunks_of_512": 2,
    }  # fmt: skip


def test_rows_that_are_left_open_are_the_longest_that_are_chosen(sizes):
    work = work_of(sizes, row=0)
    longest = max(row_choices(work.config, 1, PROMPT))
    assert work.config.train.row_tokens == work.budget.tokens == longest


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_loop_of_a_program_has_a_length(sizes, name):
    found = counted(work_of(sizes), name)
    assert found.total > 0
    assert not found.unbounded


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["plain", "flash"])
def test_score_computes_rows_and_pairs(sizes, kind, attention):
    work = work_of(replace(sizes, attention=attention), kind)
    hand = by_hand(work)
    expected = 2 * (
        hand.text + hand.output + hand.images + hand.patches
        + 2 * (hand.text_attention + hand.image_attention)
    )  # fmt: skip
    assert counted(work, "score") == flops.Flops(round(expected))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("attention", "backward"), [("plain", 5), ("flash", 3 + 4)])
def test_update_computes_rows_and_pairs(sizes, kind, attention, backward):
    """Forward and twice backward; images forward once more; the output and attention's scores again.

    The kernels take the gradient of queries, and that of keys and values, each from scores of its own.
    """
    work = work_of(replace(sizes, attention=attention), kind)
    hand = by_hand(work)
    expected = 2 * (
        3 * hand.text + 4 * hand.output + 4 * hand.images + 3 * hand.patches
        + (2 + backward) * hand.text_attention + (2 + 2 + backward) * hand.image_attention
    )  # fmt: skip
    found = counted(work, "update")
    assert not found.unbounded
    assert found.total == pytest.approx(expected, rel=0.001)


@pytest.mark.exhaustive
def test_layers_that_are_recomputed_are_counted(sizes):
    """All is computed once more but a layer's last product, which no gradient reads."""
    plain, again = (counted(work_of(replace(sizes, remat=remat)), "update") for remat in ("none", "full"))
    hand = by_hand(work_of(sizes))
    more = 2 * (hand.text + hand.images + 2 * (hand.text_attention + hand.image_attention))
    assert not again.unbounded
    assert 0.6 * more < again.total - plain.total < more
