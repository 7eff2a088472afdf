"""Damaged checkpoints: any file, in many ways; the one before is used, and never a wrong value."""

import shutil
from functools import partial
from pathlib import Path

import pytest
from test_train_checkpoint import DESCRIPTION, FACTS, assert_restores, assert_same, make_state, read, write

from mmrl.train import checkpoint


def files_of(step_folder):
    return sorted(path.relative_to(step_folder) for path in step_folder.rglob("*") if path.is_file())


def flip(path, place, bit):
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)


def damages(path):
    """Ways to damage a file, by name."""
    size = path.stat().st_size
    places = {"first": 0, "quarter": size // 4, "middle": size // 2, "rest": 3 * size // 4, "last": size - 1}
    return {
        "deleted": path.unlink,
        "emptied": lambda: path.write_bytes(b""),
        "halved": lambda: path.write_bytes(path.read_bytes()[: size // 2]),
        "last byte gone": lambda: path.write_bytes(path.read_bytes()[:-1]),
        "zeroed": lambda: path.write_bytes(bytes(size)),
        # A bit of the byte at that place is flipped.
        **{name: partial(flip, path, place, place % 8) for name, place in places.items()},
    }


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """Checkpoints of steps 1 and 2."""
    directory = tmp_path_factory.mktemp("two")
    write(directory, [1, 2])
    return directory


QUICK = ("deleted", "halved", "middle")


@pytest.mark.parametrize(
    "ways",
    [pytest.param(QUICK, marks=pytest.mark.exhaustive), pytest.param((), marks=pytest.mark.exhaustive)],
    ids=["some ways", "all ways"],
)
def test_damage_of_any_file_falls_back_or_does_not_matter(two_steps, tmp_path, ways):
    """Each file in turn, each way: the state is that of step 2, or of step 1 with a word on step 2."""
    fell_back = set()
    for number, file in enumerate(files_of(two_steps / "2")):
        for way in damages(two_steps / "2" / file):
            if ways and way not in ways:
                continue
            run = tmp_path / f"{number}-{way}"
            shutil.copytree(two_steps, run)
            damages(run / "2" / file)[way]()
            saved, said = read(run)
            assert_same(saved.state, make_state(saved.step))
            assert saved.facts == {**FACTS, "step": saved.step}
            if saved.step == 1:
                assert len(said) == 1
                assert "step 2 is damaged" in said[0]
                assert (run / "damaged" / "2").is_dir()
                assert checkpoint.saved_steps(run) == [1]
                fell_back.add((str(file), way))
            else:
                assert (saved.step, said) == (2, [])
            shutil.rmtree(run)
    assert len(fell_back) >= (10 if ways else 80)
    assert {name.split("/")[0] for name, _ in fell_back} == {"params", "optimizer", "run"}


def spoil(directory, step):
    """Flip a bit in the middle of each file that holds weights, and in the facts."""
    for file in [
        *(directory / str(step) / "params").rglob("d/*"),
        directory / str(step) / "run" / "metadata",
    ]:
        flip(file, file.stat().st_size // 2, 3)


def test_two_damaged_in_a_row(tmp_path):
    write(tmp_path, [1, 2, 3])
    spoil(tmp_path, 2)
    (tmp_path / "3" / "run" / "metadata").unlink()
    said = assert_restores(tmp_path, 1)
    assert ["step 3" in line or "step 2" in line for line in said] == [True, True]
    assert sorted(path.name for path in (tmp_path / "damaged").iterdir()) == ["2", "3"]
    # The run goes on and saves the same steps anew, and one of them is damaged again.
    write(tmp_path, [2])
    spoil(tmp_path, 2)
    assert_restores(tmp_path, 1)
    assert sorted(path.name for path in (tmp_path / "damaged").iterdir()) == ["2", "2-2", "3"]


@pytest.mark.parametrize("left", [(), ("run",), ("params", "optimizer"), ("_CHECKPOINT_METADATA",)])
def test_an_older_one_that_is_half_deleted_does_not_matter(two_steps, tmp_path, left):
    """A run may be killed while it deletes."""
    shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "1").iterdir():
        if path.name not in left:
            (shutil.rmtree if path.is_dir() else Path.unlink)(path)
    assert assert_restores(tmp_path, 2) == []
    write(tmp_path, [3], keep=2)
    assert checkpoint.saved_steps(tmp_path) == [2, 3]


def test_all_damaged_is_an_error_that_moves_nothing(tmp_path):
    write(tmp_path, [1, 2])
    spoil(tmp_path, 1)
    spoil(tmp_path, 2)
    for _ in range(2):  # a second start is no different
        with pytest.raises(
            ValueError, match=r"every checkpoint here is damaged \(step 2: .*step 1: .*delete"
        ):
            read(tmp_path)
    assert checkpoint.saved_steps(tmp_path) == [1, 2]


def test_facts_are_guarded(tmp_path):
    write(tmp_path, [1, 2])
    path = tmp_path / "2" / "run" / "metadata"
    path.write_text(path.read_text().replace('"batch": 12', '"batch": 13'))
    assert "not what was written" in assert_restores(tmp_path, 1)[0]


def test_weights_swapped_with_another_step_are_noticed(tmp_path):
    write(tmp_path, [1, 2])
    shutil.rmtree(tmp_path / "2" / "params")
    shutil.copytree(tmp_path / "1" / "params", tmp_path / "2" / "params")
    assert "arrays are not what was written, first params/" in assert_restores(tmp_path, 1)[0]


def test_damaged_weights_alone(tmp_path):
    write(tmp_path, [1, 2])
    spoil(tmp_path, 2)
    with pytest.raises(ValueError, match=r"the checkpoint of step 2 is damaged .*; others: 1"):
        checkpoint.load_params(tmp_path, DESCRIPTION)
    assert checkpoint.saved_steps(tmp_path) == [1, 2]
