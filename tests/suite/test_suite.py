"""Suite files: what they may say, and what is wrong with those that cannot be."""

from pathlib import Path

import pytest

from mmrl.config import BaseModelConfig, Config, CorruptionConfig, DataConfig, RewardConfig
from mmrl.suite import Benchmark, Suite
from mmrl.suite.suite import config_for, data_path, from_dict, load_suite, masking, override_fields
from mmrl.tasks.catalogue import read_registry

PAPERS = Path(__file__).parents[2] / "experiments" / "suites" / "papers.py"


def written(folder: Path, body: str) -> str:
    path = folder / "suite.py"
    path.write_text(f"from mmrl.suite import Benchmark, Suite\ndef get_suite(arg):\n    {body}\n")
    return str(path)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1", "returned a int"),
        ("return Suite('x', ())", "has no benchmark"),
        ("return Suite('a/b', (Benchmark('x', 'y'),))", "'a/b'"),
        ("return Suite('x', (Benchmark('a b', 'y'),))", "'a b'"),
        ("return Suite('x', (Benchmark('results', 'y'),))", "none of results"),
        ("return Suite('x', (Benchmark('a.masked', 'y'),))", "not end in '.masked'"),
        ("return Suite('x', (Benchmark('a', 'y'), Benchmark('a', 'z')))", "two benchmarks are called 'a'"),
        ("return Suite('x', (Benchmark('a', ''),))", "benchmark a: data is empty"),
        ("return Suite('x', (Benchmark('a', 'y', samples=0),))", "benchmark a: samples=0"),
        ("return Suite('x', (Benchmark('a', 'y', top_p=0.0),))", "benchmark a: top_p=0.0"),
        ("return Suite('x', (Benchmark('a', 'y', masked='blanc'),))", "did you mean 'blank'"),
        ("return Suite('x', (Benchmark('a', 'y', verifier='maths'),))", "did you mean 'math'"),
        ("raise ValueError('no form')", "no form"),
    ],
)
def test_what_is_wrong_is_said(body, message, tmp_path):
    path = written(tmp_path, body)
    with pytest.raises(ValueError, match=r"(?s)^--suite=.*suite\.py: ") as error:
        load_suite(path)
    assert message in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_suite(str(tmp_path / "none.py"))


def test_a_suite_goes_through_json():
    suite = Suite("x", (Benchmark("a", "y", options={"answer_in": "tag", "within": [1, 2]}),))
    read = from_dict({"name": "x", "benchmarks": [{"name": "a", "data": "y", "temperature": 1}]}, "file")
    assert read.benchmarks[0].temperature == 1.0
    assert override_fields(suite, {"samples": 2}).benchmarks[0].samples == 2
    with pytest.raises(ValueError, match="file: not a suite"):
        from_dict({"name": "x"}, "file")
    with pytest.raises(ValueError, match=r"file: .*max_tokens='9' should be of type int"):
        from_dict({"name": "x", "benchmarks": [{"name": "a", "data": "y", "max_tokens": "9"}]}, "file")


def test_the_config_has_the_suites_prompts_and_the_runs_precision():
    run = Config(
        model=BaseModelConfig(dtype="bfloat16"),
        data=DataConfig(suffix="run's", prompt_buckets=(77,), max_pixels=5, image_root="there"),
        reward=RewardConfig(weights={"unfaithful": 1.0}, also=("repetition",), workers=7),
    )
    benchmark = Benchmark("a", "y", suffix="suite's", verifier="choice", options={"answer_in": "tag"})
    found = config_for(benchmark, run, seed=3, batch=5)
    assert (found.seed, found.evaluation.prompts, found.evaluation.samples) == (3, 5, 8)
    assert (found.data.suffix, found.data.system, found.data.image_root) == ("suite's", "", "")
    assert (found.data.prompt_buckets, found.data.max_pixels, found.data.overlong) == ((77,), 0, "resize")
    assert found.reward == RewardConfig(
        {"accuracy": 1.0}, verifier="choice", options={"answer_in": "tag"}, workers=7
    )
    assert (found.model, found.rollout.max_tokens) == (run.model, 2048)


def test_paths_of_data():
    assert data_path(Benchmark("a", "b.parquet"), "root") == "root/b.parquet"
    for fixed in ("/b.parquet", "{workdir}/b.parquet", "tfds:b:test"):
        assert data_path(Benchmark("a", fixed), "root") == fixed
    assert masking(Benchmark("a", "b", masked="")) is None
    assert masking(Benchmark("a", "b")) == CorruptionConfig("blank", 1.0)


@pytest.mark.parametrize(("form", "count"), [("", 11), (":papo", 9), (":vppo", 8)])
def test_the_papers_benchmarks_are_those_of_the_registry(form, count):
    """Nine for PAPO, whose eight count MathVerse and its vision-dependent part as one."""
    suite = load_suite(f"{PAPERS}{form}")
    assert len(suite.benchmarks) == count
    assert {(one.samples, one.temperature, one.top_p, one.max_tokens) for one in suite.benchmarks} == {
        (8, 1.0, 1.0, 2048)
    }
    registry = read_registry()
    for one in suite.benchmarks:
        assert one.data in {form.data for form in registry[one.name].forms if form.papers}


def test_no_such_form():
    with pytest.raises(ValueError, match="':smoke'"):
        load_suite(f"{PAPERS}:mmbench")
