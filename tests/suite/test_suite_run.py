"""``mmrl eval --suite`` on a finished run: what it writes, what it keeps, what it refuses, and again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import mmrl.suite.run as suite_run
import mmrl.train.evaluate as evaluate_module
from mmrl.cli import main
from mmrl.config import Config, DataConfig, EpisodeConfig, RewardConfig
from mmrl.data.sources import read
from mmrl.open import open_model
from mmrl.suite import Benchmark, Suite
from mmrl.suite.figures import figures
from mmrl.suite.run import Origin, code_of, differing, hashes_of, open_suite, read_rows, settings_of
from mmrl.suite.suite import config_for

# Of the shapes in which the smoke run evaluates, so that nothing is compiled; graded so that a policy
# which has learnt nothing is right now and then.
SMALL = """
from mmrl.suite import Benchmark, Suite


def even(sample, response):
    return {"accuracy": float(len(response) % 2 == 0), "letters": float(len(response))}


def get_suite(arg):
    small = {"data": "heldout.parquet", "max_tokens": 12, "samples": 4}
    kinds = Benchmark("kinds", limit=9, category="kind", verifier=__file__ + ":even", **small)
    plain = Benchmark("plain", limit=8, masked="", temperature=0.0, **small)
    return Suite("small", (kinds, plain))
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("suites") / "small.py"
    path.write_text(SMALL)
    return path


def measure(run, *words, out=None) -> int:
    options = [f"--out={out}"] if out else []
    return main(["eval", f"--workdir={run}", f"--data-root={run / 'world'}", "--batch=8", *options, *words])


@pytest.fixture(scope="module")
def seen():
    """What was sampled: images and keys of each batch."""
    return []


@pytest.fixture(scope="module")
def done(smoke_run, small, tmp_path_factory, seen) -> Path:
    """The folder of results of the small suite."""
    out = tmp_path_factory.mktemp("results") / "out"

    def watched(context, params, batch, keys, **rest):
        seen.append((batch, keys))
        return original(context, params, batch, keys, **rest)

    with pytest.MonkeyPatch.context() as patch:
        original = evaluate_module.sample_and_grade
        patch.setattr(evaluate_module, "sample_and_grade", watched)
        assert measure(smoke_run, f"--suite={small}", out=out) == 0
    return out


@pytest.fixture
def copy(done, tmp_path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "out"))


def no_sampling(*_, **__):
    raise AssertionError("nothing was to be sampled")


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def test_what_it_writes(done, smoke_run):
    names = {path.name for path in done.iterdir()}
    responses = {"kinds.jsonl", "kinds.masked.jsonl", "plain.jsonl"}
    assert names == {"results.json", "vlmevalkit", "lmms_eval", *responses}
    found = results_of(done)
    kinds, plain = found["rows"]
    assert (kinds["benchmark"], kinds["questions"], kinds["samples"]) == ("kinds", 9, 4)
    rows = read_rows(done / "kinds.jsonl")
    assert len(rows) == 36
    again = figures({}, rows, 4, {}, read_rows(done / "kinds.masked.jsonl"))
    assert kinds["accuracy"] == again["accuracy"]
    assert kinds["pass"] == again["pass"]
    assert kinds["masked"] == again["masked"]
    source = read(smoke_run / "world" / "heldout.parquet")
    assert set(kinds["categories"]) == {source[k].facts["kind"] for k in range(9)}
    assert sum(one["questions"] for one in kinds["categories"].values()) == 9
    assert kinds["length"] == pytest.approx(np.mean([len(row["tokens"]) for row in rows]))
    assert set(kinds["components"]) == {"letters"}
    assert {"format", "perception_error"} <= set(plain["components"])
    assert 0 < kinds["accuracy"]["mean"] < kinds["pass"]["4"]["mean"] <= 1
    assert kinds["masked"]["accuracy"] != kinds["accuracy"]
    assert "masked" not in plain
    assert found["overall"]["accuracy"]["mean"] == pytest.approx(
        (kinds["accuracy"]["mean"] + plain["accuracy"]["mean"]) / 2
    )
    assert set(kinds["hashes"]) == {"prompt", "extractor", "grader", "data", "sampling", "weights"}
    assert kinds["settings"]["sampling"]["seed"] == found["seed"] == 0


def test_the_second_pass_sees_black_images_and_the_same_keys(done, seen):
    first, second = seen[:2], seen[2:4]  # nine questions are two batches of eight
    for (batch, keys), (masked, same_keys) in zip(first, second, strict=True):
        there = batch.prompts.images.image >= 0
        assert there.any()
        assert batch.prompts.images.patches[there].any()
        assert not masked.prompts.images.patches.any()
        assert (masked.prompts.images.image == batch.prompts.images.image).all()
        assert (masked.prompts.tokens == batch.prompts.tokens).all()
        assert (keys == same_keys).all()
    assert len(seen) == 5  # and one of eight questions, once


def test_a_second_call_samples_nothing(copy, smoke_run, small, monkeypatch, capsys):
    before = (copy / "results.json").read_text()
    monkeypatch.setattr(suite_run, "evaluate", no_sampling)
    assert measure(smoke_run, f"--suite={small}", out=copy) == 0
    assert "kinds: kept from before" in capsys.readouterr().out
    assert (copy / "results.json").read_text() == before


def test_what_is_missing_is_measured_again(copy, done, smoke_run, small, monkeypatch):
    (copy / "plain.jsonl").unlink()
    sampled = []

    def watched(*words, **rest):
        sampled.append(words[0].config.evaluation.limit)
        return original(*words, **rest)

    original = suite_run.evaluate
    monkeypatch.setattr(suite_run, "evaluate", watched)
    assert measure(smoke_run, f"--suite={small}", out=copy) == 0
    assert sampled == [8]
    assert (copy / "plain.jsonl").read_text() == (done / "plain.jsonl").read_text()
    assert results_of(copy)["overall"] == results_of(done)["overall"]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--seed=1"], "'kinds' with another sampling;"),
        (["--max-tokens=11"], "'kinds' with another sampling;"),
        (["--step=2"], "'kinds' with another weights;"),
    ],
)
def test_results_of_another_evaluation_are_not_mixed(
    words, what, copy, smoke_run, small, monkeypatch, capsys
):
    before = (copy / "results.json").read_text()
    monkeypatch.setattr(suite_run, "evaluate", no_sampling)
    assert measure(smoke_run, f"--suite={small}", *words, out=copy) == 2
    assert what in capsys.readouterr().err
    assert (copy / "results.json").read_text() == before


@pytest.mark.exhaustive
def test_again_from_the_result_gives_the_same_numbers(done, smoke_run, tmp_path, capsys):
    """In batches of another size, from what ``results.json`` says alone."""
    again = ["eval", f"--again={done / 'results.json'}", f"--out={tmp_path / 'again'}"]
    assert main([*again, "--batch=4"]) == 0
    assert "the same figures" in capsys.readouterr().out
    for name in ("kinds.jsonl", "kinds.masked.jsonl", "plain.jsonl"):
        assert (tmp_path / "again" / name).read_text() == (done / name).read_text()


def test_again_refuses_what_is_not_the_same(copy, smoke_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(suite_run, "evaluate", no_sampling)
    again = ["eval", f"--again={copy / 'results.json'}"]
    found = results_of(copy)
    found["rows"][1]["hashes"]["grader"] = "of another version"
    (copy / "results.json").write_text(json.dumps(found))
    for words, message in (
        ([f"--out={tmp_path / 'new'}"], "'plain' with another grader"),
        ([], "--out=DIR"),
        ([f"--out={tmp_path / 'new'}", "--top-p=0.5"], "with another sampling"),
    ):
        assert main([*again, *words]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_again_tells_what_came_out_otherwise(copy, smoke_run, tmp_path, capsys):
    found = results_of(copy)
    found["rows"][0]["accuracy"]["mean"] += 1e-9
    (copy / "results.json").write_text(json.dumps(found))
    (tmp_path / "new").mkdir()
    for path in copy.glob("*.jsonl"):
        shutil.copy(path, tmp_path / "new")
    shutil.copy(copy / "results.json", tmp_path / "new")
    found["rows"][0]["accuracy"]["mean"] -= 1e-8
    (copy / "results.json").write_text(json.dumps(found))
    assert main(["eval", f"--again={copy / 'results.json'}", f"--out={tmp_path / 'new'}"]) == 2
    assert "kinds: accuracy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data=x", "--data-root=y"], "--data is a path by itself"),
        (["--suite=none.py"], "none.py does not exist"),
        (["--again=none.json", "--out=x"], "none.json does not exist"),
    ],
)
def test_options_that_do_not_fit(words, message, tmp_path, capsys):
    assert main(["eval", f"--model={tmp_path}", *words]) == 2
    assert message in capsys.readouterr().err
    assert main(["eval", "--suite=none.py"]) == 2
    assert "name the weights" in capsys.readouterr().err


@pytest.fixture(scope="module")
def model(smoke_run, smoke_config):
    return open_model(smoke_config, smoke_run / "world" / "model")


def opened(suite, config, model, smoke_run, workdir=None):
    data_root = str(smoke_run / "world")
    return open_suite(suite, config, model, workdir, data_root=data_root, seed=0, batch=4)


def test_everything_is_opened_before_anything_is_sampled(smoke_run, smoke_config, model):
    data = "heldout.parquet"
    suite = Suite(
        "x",
        (
            Benchmark("fine", data),
            Benchmark("gone", "gone.parquet"),
            Benchmark("boxed", data, verifier="box"),
            Benchmark("uncategorical", data, category="sort"),
            Benchmark("homeless", "{workdir}/world/heldout.parquet"),
        ),
    )
    with pytest.raises(ValueError, match="benchmark gone") as error:
        opened(suite, smoke_config, model, smoke_run)
    text = str(error.value)
    assert "fine" not in text
    assert "benchmark boxed: heldout.parquet: 16 of 16 rows cannot be used" in text
    assert "benchmark uncategorical: no row has the fact 'sort'" in text
    assert "grid, kind, objects" in text
    assert "benchmark homeless: its data" in text
    tools = replace(smoke_config, episode=EpisodeConfig(tools=("zoom",)))
    with pytest.raises(ValueError, match='cannot be hidden: set masked=""'):
        opened(Suite("x", (Benchmark("fine", data),)), tools, model, smoke_run)


def test_hashes_are_of_what_decides_and_of_nothing_else(small, smoke_run, smoke_config, model):
    source = read(smoke_run / "world" / "heldout.parquet")
    first = Benchmark("a", "b")

    def of(benchmark=first, verifiers=("shapes",), seed=0, batch=4, weights="w", **run):
        config = config_for(benchmark, replace(smoke_config, **run), seed=seed, batch=batch)
        return hashes_of(settings_of(benchmark, config, model.processor, source, verifiers), weights)

    same = [
        of(batch=8),
        of(reward=RewardConfig(weights={"format": 1.0}, workers=3)),
        of(replace(first, name="c", data="d", category="kind")),
        of(data=replace(smoke_config.data, workers=1, suffix="the run's")),
    ]
    assert same == [of()] * len(same)
    other = {
        "prompt": of(replace(first, suffix=" Think.")),
        "extractor": of(replace(first, options={"answer_in": "tag"})),
        "grader": of(verifiers=("math",)),
        "grader ": of(verifiers=("shapes", f"{small}:even")),
        "data": of(replace(first, limit=3)),
        "sampling": of(seed=1),
        "weights": of(weights="v"),
    }
    for name, found in other.items():
        assert differing(found, of()) == [name.strip()]
    budget = DataConfig(prompt_buckets=(50,), patch_buckets=smoke_config.data.patch_buckets)
    assert differing(of(data=budget), of()) == ["prompt"]


def test_the_code_of_a_grader_counts(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    first = code_of(tmp_path)
    (tmp_path / "notes.txt").write_text("not code")
    assert code_of(tmp_path) == first
    (tmp_path / "a.py").write_text("x = 2\n")
    assert code_of(tmp_path) != first


def test_a_folder_by_default(smoke_run, small, monkeypatch):
    """Of a run it lies in the run; of a model it must be named."""
    written = []

    def recorded(suite, opened, params, origin, out, **_):
        written.append((origin, out))
        raise ValueError("enough")

    monkeypatch.setattr(suite_run, "run_suite", recorded)
    assert measure(smoke_run, f"--suite={small}", "--step=2") == 2
    ((origin, out),) = written
    assert out == smoke_run / "evaluations" / "small" / "step2"
    assert origin == Origin(f"{smoke_run.name}-step2", workdir=str(smoke_run), step=2)
    root = f"--data-root={smoke_run / 'world'}"
    assert main(["eval", f"--suite={small}", f"--model={smoke_run / 'world' / 'model'}", root]) == 2
    assert len(written) == 1


def test_defaults_of_a_model():
    """With --model the config is the default one, which a suite needs nothing else of."""
    assert config_for(Benchmark("a", "b"), Config(), seed=0, batch=1).rollout.max_tokens == 2048
