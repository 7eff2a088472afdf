"""The zoom world: unreadable as a whole, plain when zoomed at, and few tokens."""

import io
import json
from concurrent.futures import Future
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmrl.models.checkpoint import load
from mmrl.models.family import param_specs, read_config
from mmrl.models.params import initialise
from mmrl.models.processor import load_processor
from mmrl.models.prompts import chat_messages, encode, encode_turn
from mmrl.models.tiny_model import model_config, write_config, write_processor, write_tokenizer
from mmrl.rewards.verifiers import VERIFIERS
from mmrl.rollout import episodes, tools
from mmrl.rollout.episodes import with_tools
from mmrl.rollout.replay import replay
from mmrl.rollout.sampling import Sampling
from mmrl.rollout.tools import TOOLS, Answer
from mmrl.sample import Sample
from mmrl.tasks.shapes_world import SPLITS
from mmrl.tasks.zoom_world import (
    BOXES,
    ERRORS,
    PATTERNS,
    conclude,
    example,
    model_spec,
    question,
    texture,
    write_data,
    write_model,
    zoom_call,
)

SAMPLING = Sampling(max_tokens=16)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("zoom_model")
    write_tokenizer(path, model_spec())
    write_config(path, model_config(model_spec()))
    write_processor(path, model_spec())
    return path


@pytest.fixture(scope="module")
def processor(directory):
    return load_processor(directory)


def here(call):
    answer: Future[Answer] = Future()
    answer.set_result(Answer(TOOLS[call.tool](**call.arguments)))
    return answer


def sample(row):
    return Sample("zoom:0", row["problem"], row["answer"], verifier="choice", facts=json.loads(row["facts"]))


def as_picture(processor, patches, position):
    """Grey levels of the one image of these patches."""
    used = patches.any(axis=1)
    p = processor.image.patch
    rows, columns = position[used].max(axis=0) + 1
    out = np.zeros((rows * p, columns * p))
    for (row, column), patch in zip(position[used], patches[used], strict=True):
        green = patch.reshape(3, p, p)[1]
        out[row * p : (row + 1) * p, column * p : (column + 1) * p] = green
    return out


def nearest(picture):
    """The pattern that a view of a cell (56 x 56 grey levels) correlates with most; ties go to the first."""
    seen = picture - picture.mean()
    scores = [(seen * texture(name)).sum() / np.linalg.norm(texture(name)) for name in PATTERNS]
    return PATTERNS[int(np.argmax(scores))]


def test_rows_are_a_function_of_their_place():
    assert example(3, "train", 5) == example(3, "train", 5)
    others = [example(3, "train", 6), example(3, "heldout", 5), example(4, "train", 5)]
    assert all(other != example(3, "train", 5) for other in others)


def test_all_pictures_are_one_for_who_does_not_zoom(processor):
    """The prompt's patches hold no bit of the answer."""
    views = set()
    for index in range(200):
        row = example(0, "train", index)
        prompt = encode(processor, chat_messages(row["problem"]), [row["images"][0]["bytes"]])
        assert (prompt.image_token >= 0).sum() == 4
        views.add(prompt.patches.tobytes())
    assert len(views) == 1


def test_a_reader_needs_the_zoom(processor):
    """It sees what a model sees: with zoom always right, without it right as often as a guess."""
    with_zoom, without = [], []
    for index in range(200):
        row = example(0, "heldout", index)
        image = row["images"][0]["bytes"]
        ((_, t),) = replay(with_tools(processor, [image], SAMPLING), row["turns"], processor, here)
        assert t.facts["images"] == 1.0
        with_zoom.append(nearest(as_picture(processor, t.patches, t.patch_position)) == row["answer"])
        prompt = encode(processor, chat_messages(row["problem"]), [image])
        whole = as_picture(processor, prompt.patches, prompt.patch_position)
        left, top, _, _ = BOXES[json.loads(row["facts"])["cell"]]
        corner = whole[top * 56 // 100 :, left * 56 // 100 :][:28, :28]
        enlarged = Image.fromarray(corner.astype(np.uint8)).resize((56, 56), Image.Resampling.BICUBIC)
        without.append(nearest(np.asarray(enlarged).astype(float)) == row["answer"])
    assert np.mean(with_zoom) == 1.0
    assert np.mean(without) < 0.25 + 3 * np.sqrt(0.25 * 0.75 / 200)


def test_another_cell_does_not_help(processor):
    """The zoomed cell is the one that was named: its neighbour's texture is drawn apart from it."""
    right = []
    for index in range(200):
        row = example(1, "heldout", index)
        cell = json.loads(row["facts"])["cell"]
        other = next(name for name in BOXES if name != cell)
        turns = [zoom_call(other), row["turns"][1]]
        episode = with_tools(processor, [row["images"][0]["bytes"]], SAMPLING)
        ((_, t),) = replay(episode, turns, processor, here)
        right.append(nearest(as_picture(processor, t.patches, t.patch_position)) == row["answer"])
    assert np.mean(right) < 0.25 + 3 * np.sqrt(0.25 * 0.75 / 200)


def test_a_replayed_row_is_graded():
    for index in range(20):
        row = example(0, "train", index)
        text = "\n".join(row["turns"])
        assert VERIFIERS[row["verifier"]](sample(row), text)["accuracy"] == 1.0
        wrong = next(name for name in PATTERNS if name != row["answer"])
        assert VERIFIERS["choice"](sample(row), text.replace(row["answer"], wrong))["accuracy"] == 0.0
        assert VERIFIERS["choice"](sample(row), row["turns"][0])["accuracy"] == 0.0


def test_guesses_are_at_chance():
    rows = [example(0, "cold_start", index, zooming=0.0) for index in range(400)]
    assert all(row["turns"] == [row["solution"]] for row in rows)
    right = np.mean([row["solution"] == conclude(row["answer"]) for row in rows])
    assert abs(right - 0.25) < 3 * np.sqrt(0.25 * 0.75 / 400)


def test_share_that_zooms():
    rows = [example(0, "cold_start", index, zooming=0.3) for index in range(400)]
    zooms = np.array([len(row["turns"]) == 2 for row in rows])
    assert abs(zooms.mean() - 0.3) < 3 * np.sqrt(0.3 * 0.7 / 400)
    for row, zoomed in zip(rows, zooms, strict=True):
        cell = json.loads(row["facts"])["cell"]
        assert row["problem"] == f"<image>{question(cell)}"
        assert not zoomed or row["turns"] == [zoom_call(cell), conclude(row["answer"])]
    for split in ("train", "heldout"):
        assert all(len(example(0, split, index, zooming=0.0)["turns"]) == 2 for index in range(20))


def test_answers_are_balanced():
    rows = [example(2, "train", index) for index in range(800)]
    for values, names in (
        ([row["answer"] for row in rows], PATTERNS),
        ([json.loads(row["facts"])["cell"] for row in rows], tuple(BOXES)),
    ):
        shares = [values.count(name) / len(values) for name in names]
        assert max(abs(share - 0.25) for share in shares) < 4 * np.sqrt(0.25 * 0.75 / 800)


def test_pictures_keep_their_size(processor):
    picture = Image.open(io.BytesIO(example(0, "train", 0)["images"][0]["bytes"]))
    assert picture.size == (112, 112)
    boxes = (([50, 0, 100, 50], 4), ([0, 0, 100, 100], 4), ([0, 0, 100, 50], 2), ([0, 0, 25, 25], 1))
    for box, count in boxes:
        part = TOOLS["zoom"](example(0, "train", 0)["images"][0]["bytes"], box)
        seen = encode_turn(processor, "<image>", [part], ended=False)
        assert (seen.image_token >= 0).sum() == count
        assert len(seen.patches) == 16


def test_everything_is_few_tokens(processor):
    def count(text):
        return len(processor.tokenizer(text)["input_ids"])

    words = [*PATTERNS, "<zoom>", "</zoom>", "0", " 0", " 50", " 100", "\\boxed{", "}", " a1", " b2"]
    assert {word: count(word) for word in words} == dict.fromkeys(words, 1)
    row = example(0, "train", 0)
    prompt = encode(processor, chat_messages(row["problem"]), [row["images"][0]["bytes"]])
    assert len(prompt.tokens) <= 20
    assert [count(turn) for turn in row["turns"]] == [6, 3]
    assert len(processor.tokenizer) <= 448


def test_errors_of_the_tools_are_few_tokens(processor):
    texts = {f"Error: {text}" for text in (tools.BOX_NEEDS, tools.BOX_ORDER)}
    for text in ("<zoom>", "<zoom>" + " " * 300 + "</zoom>"):
        texts.add(f"Error: {tools.find_call(text, ('zoom',)).error}")
    source = "".join(Path(module.__file__).read_text() for module in (episodes, tools))
    assert texts <= set(ERRORS)
    assert [text for text in set(ERRORS) - texts if text.removeprefix("Error: ") not in source] == []
    for text in ERRORS:
        assert len(encode_turn(processor, text, ended=False).tokens) <= 30


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(("test", 0), "unknown split 'test'"), (("train", 0, 1.5), "zooming is 1.5")],
)
def test_what_is_refused(arguments, reason):
    split, index, *share = arguments
    with pytest.raises(ValueError, match=reason):
        example(0, split, index, **({"zooming": share[0]} if share else {}))


def test_files(tmp_path):
    paths = write_data(tmp_path, 7, cold_start=5, train=3, heldout=2, zooming=1.0)
    assert list(paths) == list(SPLITS)
    for split, size in zip(SPLITS, (5, 3, 2), strict=True):
        rows = pq.read_table(paths[split]).to_pylist()
        assert rows == [example(7, split, index, zooming=1.0) for index in range(size)]


def test_the_model_is_read(tmp_path, directory):
    write_model(tmp_path / "model", 0, num_hidden_layers=1)
    description = param_specs(read_config(tmp_path / "model"))
    drawn, read = initialise(description, 0), load(tmp_path / "model", description)
    jax.tree.map(np.testing.assert_array_equal, read, drawn)
    for name in ("tokenizer.json", "preprocessor_config.json"):
        assert (tmp_path / "model" / name).read_bytes() == (directory / name).read_bytes()
