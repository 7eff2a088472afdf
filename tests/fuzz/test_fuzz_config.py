"""Overrides, experiments, and the config of a run's folder, whatever they hold."""

import dataclasses
from pathlib import Path

import pytest
from damage import RUNS, altered, as_json, damaged, json_files, values, words
from fuzzing import command
from hypothesis import strategies as st
from ml_collections import ConfigDict

from mmrl.commands import train
from mmrl.config import Config, from_dict, resolve, template
from mmrl.experiment import load
from mmrl.run_folder import read_config

QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.py"
MINE = f"def run(sample, response):\n    return {{'accuracy': 1.0}}\n\n\ndef boom(*_):\n    {RUNS}\n"


def leaves(tree, prefix=""):
    """The paths of a nested dict, those of its inner dicts too, and what stands there."""
    for key, value in tree.items():
        yield prefix + key, value
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")


DEFAULTS = dict(leaves(template().to_dict()))
KEYS = sorted(DEFAULTS)
NAMES = st.one_of(
    st.sampled_from(KEYS),
    st.sampled_from(KEYS),
    st.sampled_from(KEYS).map(lambda key: key[:-1]),
    st.sampled_from(KEYS).map(lambda key: f"{key}.more"),
    st.sampled_from(
        ("reward.weights.accuracy", "reward.gates.format", "reward.options.a", "reward.sources.a.b")
    ),
    st.sampled_from(("", ".", "..", "__class__", "reward.weights.", "algorithm.", "algorithm.__init__")),
    words(),
)
LIKELY = st.sampled_from(("1", "2", "0.5", "1e-6", "true", "(1,)", "64,128", "papo_g", "None", '{"a.b": {}}'))
WRONG = words() | values().map(lambda value: as_json(value).decode(errors="replace")[:6000])
WORDS = st.one_of(
    st.sampled_from(KEYS).map(lambda key: f"--config.{key}={DEFAULTS[key]}"),
    st.tuples(st.sampled_from(KEYS), LIKELY).map(lambda pair: "--config.{}={}".format(*pair)),
    st.tuples(NAMES, LIKELY | WRONG).map(lambda pair: "--config.{}={}".format(*pair)),
)


@pytest.fixture
def mine(fuzz):
    (fuzz.folder / "mine.py").write_text(MINE)
    (fuzz.folder / "__pycache__").mkdir()
    return fuzz


def test_overrides(mine):
    mine(
        st.lists(WORDS, min_size=1, max_size=3),
        lambda given: resolve(load(f"{QUICKSTART}:smoke", given)),
        names="config",
    )


def test_words_of_a_command(mine, monkeypatch):
    monkeypatch.setattr(train, "_run_with_processes", lambda options, run: None)
    several = st.lists(WORDS | words().filter(lambda text: not text.startswith("@")), min_size=1, max_size=3)
    mine(several, lambda given: command("train", f"--config={QUICKSTART}:smoke", *given))


def test_names_of_experiments(mine):
    names = st.one_of(
        words(), words().map(lambda text: f"{QUICKSTART}:{text}"), words().map(lambda t: f"mine.py:{t}")
    )
    mine(names, lambda name: resolve(load(name)), names="--config=")


def test_experiment_files(mine):
    path = mine.folder / "experiment.py"
    path.touch()
    source = QUICKSTART.read_bytes()

    def read(data):
        path.write_bytes(data)
        load(str(path))

    mine(damaged(source), read, names="experiment.py")


def test_configs_of_experiments(mine):
    tree = template().to_dict()

    def read(altered_tree):
        try:
            config = ConfigDict(altered_tree, type_safe=False)
        except Exception:
            return  # no experiment can make it
        resolve(config)

    mine(altered(tree), read, names="config")


def test_config_of_a_run(mine):
    path = mine.folder / "config.json"
    path.touch()

    def read(data):
        path.write_bytes(data)
        assert isinstance(read_config(mine.folder), Config)

    mine(json_files(dataclasses.asdict(Config())), read, names="config")


def test_plain_dicts(mine):
    def read(tree):
        config = from_dict(tree)
        assert from_dict(dataclasses.asdict(config)) == config

    mine(altered(dataclasses.asdict(Config())), read, names="config")
