"""Every experiment resolves in both forms, and mistakes in a config are named."""

import re
from pathlib import Path

import pytest

from mmrl.algorithms.passes import CORRUPTED_LOGPROB, ENTROPY, PERCEPTION, REFERENCE_LOGPROB
from mmrl.config import algorithm, from_dict, resolve
from mmrl.experiment import load

EXPERIMENTS = sorted((Path(__file__).parents[1] / "experiments").glob("*.py"))
(VPPO,) = (path for path in EXPERIMENTS if path.stem == "vppo_qwen2_5_vl_7b")


def overridden(*overrides: str):
    return resolve(load(str(VPPO), overrides))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("form", ["", ":smoke"])
def test_resolves(path, form):
    config = resolve(load(f"{path}{form}"))
    assert algorithm(config).needs <= {REFERENCE_LOGPROB, CORRUPTED_LOGPROB, ENTROPY, PERCEPTION}


def test_the_smoke_form_keeps_the_method():
    for path in EXPERIMENTS:
        whole, smoke = (resolve(load(f"{path}{form}")) for form in ("", ":smoke"))
        assert smoke.algorithm == whole.algorithm
        assert smoke.corruption == whole.corruption
        assert smoke.reward.weights == whole.reward.weights


def test_overrides_take_the_type_of_their_key():
    config = overridden(
        "--config.optimizer.learning_rate=1",
        "--config.data.prompt_buckets=(64, 128)",
        "--config.data.patch_buckets=64",
        "--config.model.path=some dir",
        "--config.algorithm.shaping_min=0.5",
    )
    assert config.optimizer.learning_rate == 1.0
    assert config.data.prompt_buckets == (64, 128)
    assert config.data.patch_buckets == (64,)
    assert config.model.path == "some dir"
    assert config.algorithm["shaping_min"] == 0.5


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("zoom,calculate", ("zoom", "calculate")),
        ("zoom, calculate,", ("zoom", "calculate")),
        ("zoom", ("zoom",)),
        ("'zoom'", ("zoom",)),
        ("('zoom','calculate')", ("zoom", "calculate")),
        ('["zoom"]', ("zoom",)),
        ("", ()),
        ("()", ()),
        (" ", ()),
    ],
)
def test_tuples_on_the_command_line(text, value):
    assert overridden(f"--config.episode.tools={text}").episode.tools == value


def test_tuples_of_numbers_and_of_tuples():
    config = overridden(
        "--config.data.prompt_buckets=64,256,", "--config.data.stages=((0.5, 'a b.parquet'),)"
    )
    assert config.data.prompt_buckets == (64, 256)
    assert config.data.stages == ((0.5, "a b.parquet"),)
    assert overridden("--config.data.patch_buckets=[0,64]").data.patch_buckets == (0, 64)
    assert overridden("--config.data.curriculum.tiers=1,1,2").data.curriculum.tiers == (1.0, 1.0, 2.0)


@pytest.mark.parametrize(
    ("overrides", "sources"),
    [
        (["charts.weights.accuracy=1"], {"charts": {"weights": {"accuracy": 1}}}),
        (["a-b.also=repetition,language"], {"a-b": {"also": ("repetition", "language")}}),
        (["charts.bonuses="], {"charts": {"bonuses": ()}}),
        (
            ["data/v1.2.parquet.options.relative_tolerance=0.05", "data/v1.2.parquet.verifier=number"],
            {"data/v1.2.parquet": {"options": {"relative_tolerance": 0.05}, "verifier": "number"}},
        ),
        (['charts.options={"units": true}'], {"charts": {"options": {"units": True}}}),
        (["a.weights.accuracy=(0, 1), (1, 0.5)"], {"a": {"weights": {"accuracy": ((0, 1), (1, 0.5))}}}),
    ],
)
def test_what_one_data_set_has_for_itself(overrides, sources):
    config = overridden(*(f"--config.reward.sources.{override}" for override in overrides))
    assert config.reward.sources == sources


def test_objects_on_the_command_line():
    text = '{"t.parquet": {"weights": {"accuracy": 1.0}}}'
    config = overridden(f"--config.reward.sources={text}", "--config.reward.sources.other.verifier=math")
    assert config.reward.sources == {
        "t.parquet": {"weights": {"accuracy": 1.0}},
        "other": {"verifier": "math"},
    }
    assert overridden("--config.reward.weights={'accuracy': 1}").reward.weights == {"accuracy": 1}
    assert overridden('--config.reward.options={"units": false}').reward.options == {"units": False}


def test_none_leaves_a_hyper_parameter_to_the_method():
    config = overridden("--config.algorithm.shaping_min=0.5", "--config.algorithm.shaping_min=None")
    assert config.algorithm["shaping_min"] is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "--config.modle.path=x",
            "config.modle.path is not a key of the config; did you mean config.model.path",
        ),
        ("--config.train.step=3", "did you mean config.train.steps"),
        ("--config.rollout.lanes=4", "config.rollout.lanes is called config.rollout.prompt_slots now"),
        (
            "--config.rollout.columns=2",
            "is called config.rollout.slots_per_prompt now",
        ),
        (
            "--config.train.micro_prompts=4",
            "config.train.micro_prompts is called config.train.row_tokens now",
        ),
        (
            "--config.cold_start.micro_batch=4",
            "config.cold_start.micro_batch is called config.train.row_tokens now",
        ),
        ("--config.train.steps=many", "config.train.steps=many should be a whole number"),
        ("--config.train.steps=1.5", "should be a whole number"),
        ("--config.train.steps=True", "should be a whole number"),
        ("--config.train.steps=" + "(" * 3000, "should be a whole number"),
        ("--config.train=3", "config.train holds keys and no value: config.train.checkpoint_every, "),
        ("--config.=3", "is not a key of the config"),
        ("--config.optimizer.learning_rate=fast", "config.optimizer.learning_rate=fast should be a number"),
        ("--config.optimizer.learning_rate=1e999", "should be a number"),
        ("--config.reward.weights=1", 'config.reward.weights=1 should be an object, as in {"accuracy": 0.9}'),
        (
            "--config.reward.sources.a.wieght=1",
            "config.reward.sources.a.wieght: write config.reward.sources.NAME",
        ),
        ("--config.reward.sources.a.weights=1", "config.reward.sources.a.weights=1 should be an object"),
        ("--config.reward.sources.a.also=(", "should be values with commas between them"),
        ("--config.episode.tools=zoom,,calculate", "should be values with commas between them"),
        ("--config.episode.tools=zoom,zooom", "config.episode.tools='zooom' should be one of"),
        (
            "--config.episode.tools=(zoom, calculate)",
            "config.episode.tools=(zoom, calculate) should be values",
        ),
        ("--config.episode.tools=3", "config.episode.tools[0]=3 should be of type str"),
        (
            "--config.data.prompt_buckets=64,many",
            "config.data.prompt_buckets[1]='many' should be of type int",
        ),
        ("--config.data.stages=0.5,a.parquet", "config.data.stages[0]=0.5 should be a tuple"),
        ("--config.algorithm.name=papoo", "did you mean 'papo_g'"),
        (
            "--config.algorithm.perception_kl=0.1",
            "config.algorithm.perception_kl is not a hyper-parameter of 'vppo'",
        ),
        ("--config.rollout.group=1", "a group of one has no advantage"),
        ("--config.train.update_prompts=100", "does not divide config.rollout.prompts"),
        ("--config.train.row_tokens=-1", "should be 0 (what fits) or more"),
        ("--config.model.dtype=float16", "should be one of 'float32', 'bfloat16'"),
        ("--config.data.overlong=cut", "should be one of 'drop', 'resize', 'error'"),
        ("--config.world.name=cubes", "should be one of 'shapes', 'zoom'"),
        ("--config.episode.observation_patches=0", "should be 1 or more"),
        ("--config.corruption.probability=2.0", "is not in"),
        ("--config.data.patch_buckets=(-1,)", "should be whole numbers from 0"),
        ("--config.data.prompt_buckets=(0,)", "should be whole numbers from 1"),
    ],
)
def test_mistakes_are_named(override, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        overridden(override)


@pytest.mark.parametrize(
    ("part", "key", "now"),
    [
        ("rollout", "lanes", "prompt_slots"),
        ("train", "micro_prompts", "row_tokens"),
        ("cold_start", "micro_batch", "train.row_tokens"),
    ],
)
def test_a_run_with_keys_of_before_is_refused_by_their_new_names(part, key, now):
    with pytest.raises(ValueError, match=rf"config\.{part}\.{key} .*it is called '{now}' now"):
        from_dict({part: {key: 4}})


def test_wrong_files(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load(str(tmp_path / "none.py"))
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match="does not define get_config"):
        load(str(tmp_path / "empty.py"))
    (tmp_path / "wrong.py").write_text(
        "from mmrl.config import template\n\ndef get_config(arg):\n    template().modle = 3\n"
    )
    with pytest.raises(ValueError, match=r"wrong.py, line 4: AttributeError"):
        load(str(tmp_path / "wrong.py"))
    (tmp_path / "none.py").write_text("def get_config(arg):\n    pass\n")
    with pytest.raises(ValueError, match="get_config returned NoneType"):
        load(str(tmp_path / "none.py"))
    with pytest.raises(ValueError, match="there is no form 'smok'"):
        load(f"{EXPERIMENTS[0]}:smok")


RECIPE = """
from mmrl.algorithms.algorithm import Algorithm
from mmrl.algorithms.recipes import grpo


def mine(clip_low: float = 0.2, bonus: float = 0.01, average: str = "sequence") -> Algorithm:
    return grpo(clip_low=clip_low, reference_kl=bonus, average=average)


def shapeless(clip_low, clip_high, dual_clip, reference_kl, average):
    return 3
"""


def test_a_recipe_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(RECIPE)
    name = "--config.algorithm.name=mine.py:mine"
    config = overridden(name, "--config.algorithm.bonus=0.5", "--config.algorithm.shaping_min=None")
    (penalty,) = algorithm(config).penalties
    assert float(penalty.coefficient(0, 1)) == 0.5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["name=mine.py:yours"], "config.algorithm.name='mine.py:yours': mine.py does not define yours"),
        (["name=mine.py:mine", "bonsu=1"], "config.algorithm.bonsu is not .* did you mean 'bonus'"),
        (["name=mine.py:shapeless"], "should return an Algorithm, and returns int"),
        (["bonus=1"], "config.algorithm.bonus is not a key"),
    ],
)
def test_mistakes_about_a_recipe_of_ones_own(tmp_path, monkeypatch, overrides, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(RECIPE)
    grpo = next(path for path in EXPERIMENTS if path.stem == "grpo_qwen2_5_vl_7b")
    with pytest.raises(ValueError, match=message):
        resolve(load(str(grpo), [f"--config.algorithm.{override}" for override in overrides]))


def test_reading_a_config_back_runs_no_file():
    config = from_dict({"algorithm": {"name": "gone.py:mine"}, "reward": {"verifier": "gone.py:grade"}})
    assert config.algorithm == {"name": "gone.py:mine"}
    with pytest.raises(ValueError, match=r"the file gone.py does not exist"):
        algorithm(config)
