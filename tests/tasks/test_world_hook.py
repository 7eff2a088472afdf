"""The function that ``config.world.name`` names writes the world of a run."""

from dataclasses import replace

import pytest

from mmrl.config import Config, WorldConfig
from mmrl.train.stages import write_world

OWN = """
def write(directory, seed, world):
    (directory / "model").mkdir(parents=True)
    (directory / "train.txt").write_text(f"{seed} {world.train}")
    (directory / "model" / "config.json").write_text("{}")
"""


def test_a_world_of_your_own_is_written_once(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    config = Config(seed=3, world=WorldConfig(name=f"{tmp_path / 'own.py'}:write", train=5))
    write_world(replace(config, world=replace(config.world, train=0)), tmp_path)
    assert not (tmp_path / "world").exists()
    for seed in (3, 4):
        write_world(replace(config, seed=seed), tmp_path)
        assert (tmp_path / "world" / "train.txt").read_text() == "3 5"


def test_what_it_raises_is_one_line(tmp_path):
    (tmp_path / "own.py").write_text("def write(directory, seed, world):\n    raise KeyError('gone')\n")
    own = f"{tmp_path / 'own.py'}:write"
    with pytest.raises(ValueError, match=r"^config\.world\.name: .*own\.py, line 2: KeyError: 'gone'$"):
        write_world(Config(world=WorldConfig(name=own, train=5)), tmp_path)
    with pytest.raises(ValueError, match=r"^config\.world\.name: shapes world: heldout has 0"):
        write_world(Config(world=WorldConfig(train=1, heldout=0, cold_start=1)), tmp_path)


@pytest.mark.parametrize(
    ("name", "files"), [("shapes", "train.parquet"), ("mixed", "train/box/rows.parquet")]
)
def test_the_built_in_ones(tmp_path, name, files):
    write_world(Config(world=WorldConfig(name=name, train=2, heldout=1, cold_start=1)), tmp_path)
    assert (tmp_path / "world" / files).is_file()
    assert (tmp_path / "world" / "model" / "config.json").is_file()
