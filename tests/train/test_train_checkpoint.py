"""What is restored is what was saved, bit for bit, or it is said that it is not."""

import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from devices import run_on
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from mmrl.models.params import Param
from mmrl.train import checkpoint
from mmrl.train.checkpoint import checksums
from mmrl.train.state import TrainState, initial_state

SHAPES = {"embed": (40, 16), "layers": {"up": (8, 16, 32), "scale": (8, 16)}}
FACTS = {"data": {"batch": 12}, "config": {"seed": 3, "name": "größer"}, "nothing": None}


def make_state(seed, place=None):
    """Weights and moments of Adam, all with values of their own."""
    place = place or SingleDeviceSharding(jax.devices()[0])
    generator = np.random.default_rng(seed)

    def weight(shape):
        return jax.device_put(jnp.asarray(generator.standard_normal(shape), jnp.float32), place)

    params = jax.tree.map(weight, SHAPES, is_leaf=lambda node: isinstance(node, tuple))
    optimizer = optax.adamw(1e-3)
    state = initial_state(params, optimizer)
    gradients = jax.tree.map(lambda leaf: weight(leaf.shape), params)
    _, moments = optimizer.update(gradients, state.optimizer, params)
    return TrainState(params, moments, state.updates + seed)


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def write(directory, steps, keep=10, **best):
    """Checkpoints of some steps; the state of step n is ``make_state(n)``."""
    with checkpoint.open_manager(directory, keep) as manager:
        for step in steps:
            checkpoint.save(manager, step, make_state(step), {**FACTS, "step": step}, best)


def read(directory, like=None):
    said = []
    with checkpoint.open_manager(directory, 10) as manager:
        saved = checkpoint.restore(manager, make_state(0) if like is None else like, said.append)
    return saved, said


def assert_restores(directory, step):
    saved, said = read(directory)
    assert saved is not None
    assert saved.step == step
    assert saved.facts == {**FACTS, "step": step}
    assert_same(saved.state, make_state(step))
    return said


def test_nothing_there(tmp_path):
    assert read(tmp_path / "checkpoints") == (None, [])


def test_comes_back_bit_for_bit(tmp_path):
    write(tmp_path, [3, 7])
    assert assert_restores(tmp_path, 7) == []


def test_odd_values_come_back(tmp_path):
    """NaN with a payload, infinities, the negative zero and numbers below the normal range."""
    state = make_state(1)
    bits = np.array([0x7FC00123, 0xFF800000, 0x80000000, 0x00000001], np.uint32)
    odd = jnp.asarray(np.resize(bits.view(np.float32), SHAPES["embed"]))
    state = state.replace(trainable={**state.params, "embed": odd})
    with checkpoint.open_manager(tmp_path, 2) as manager:
        checkpoint.save(manager, 1, state, FACTS)
    saved, _ = read(tmp_path)
    assert_same(saved.state, state)


def test_keeps_the_newest_and_the_best(tmp_path):
    values = {1: 0.5, 2: 0.9, 3: 0.1, 4: 0.9, 5: None, 6: float("nan"), 7: 0.2}
    # Half of them by an earlier call of the run, whose metrics are only in the files.
    for steps in ((1, 2, 3), (4, 5, 6, 7)):
        with checkpoint.open_manager(tmp_path, 2, keep_best=2, best="accuracy") as manager:
            for step in steps:
                value = values[step]
                metrics = {"loss": 1.0} if value is None else {"accuracy": value}
                checkpoint.save(manager, step, make_state(step), FACTS, metrics)
    assert checkpoint.saved_steps(tmp_path) == [2, 4, 6, 7]


@pytest.mark.parametrize(
    ("values", "keep", "keep_best", "expected"),
    [
        ([None, None, None], 1, 1, [0, 0, 1]),
        ([3.0, 2.0, 1.0], 1, 1, [1, 0, 1]),
        ([1.0, 1.0, 0.0], 1, 1, [0, 1, 1]),
        ([3.0, 2.0, 1.0], 1, 0, [0, 0, 1]),
        ([3.0, float("nan"), float("inf"), None], 1, 1, [1, 0, 0, 1]),
        ([1.0], 2, 2, [1]),
        ([], 1, 1, []),
    ],
)
def test_which_are_kept(values, keep, keep_best, expected):
    assert checkpoint.select_kept(values, keep, keep_best) == [bool(flag) for flag in expected]


def test_a_saved_step_is_not_saved_again(tmp_path):
    with checkpoint.open_manager(tmp_path, 3) as manager:
        checkpoint.save(manager, 5, make_state(5), {**FACTS, "step": 5})
        checkpoint.save(manager, 5, make_state(6), {})
        checkpoint.save(manager, 4, make_state(4), {})
    assert_restores(tmp_path, 5)


def test_what_a_killed_run_left_unfinished_is_deleted(tmp_path):
    write(tmp_path, [1])
    unfinished = tmp_path / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "1", unfinished)
    assert checkpoint.saved_steps(tmp_path) == [1]
    assert_restores(tmp_path, 1)
    assert not unfinished.exists()


class TestChecksums:
    def test_one_changed_bit_changes_it(self):
        x = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
        seen = {checksums({"x": jnp.asarray(x)})["x"]}
        for bit in range(32):
            other = x.copy()
            other.view(np.uint32)[3, 2] ^= np.uint32(1 << bit)
            seen.add(checksums({"x": jnp.asarray(other)})["x"])
        assert len(seen) == 33

    def test_places_count(self):
        x = np.arange(24, dtype=np.float32)
        swapped = x.copy()
        swapped[[3, 20]] = swapped[[20, 3]]
        made = [checksums([jnp.asarray(a)])["0"] for a in (x, swapped, x[::-1].copy(), np.roll(x, 1))]
        assert len(set(made)) == 4

    @pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "bfloat16", "float16", "int32", "float32"])
    def test_every_type(self, dtype):
        x = jnp.asarray(np.arange(12).reshape(3, 4) % 2, dtype)
        other = x.at[1, 2].set(1 - x[1, 2].astype(jnp.int32))
        assert checksums({"a": x})["a"] != checksums({"a": other})["a"]

    def test_against_the_definition(self):
        x = np.random.default_rng(1).standard_normal((3, 4, 5)).astype(np.float32)
        total = 0
        for index, bits in enumerate(x.view(np.uint32).reshape(-1).tolist()):
            h = (bits + index * 0x9E3779B9) % 2**32
            h = (h ^ (h >> 16)) * 0x85EBCA6B % 2**32
            h = (h ^ (h >> 13)) * 0xC2B2AE35 % 2**32
            total += h ^ (h >> 16)
        assert checksums({"x": jnp.asarray(x), "none": jnp.zeros((0, 3))}) == {"x": total % 2**32, "none": 0}


def test_another_model_is_refused_and_nothing_is_moved(tmp_path):
    write(tmp_path, [1])
    like = make_state(0)
    other = like.replace(trainable={**like.params, "embed": jnp.zeros((41, 16)), "head": jnp.zeros(3)})
    with pytest.raises(
        ValueError, match=r"embed: float32\[40, 16\] there, float32\[41, 16\] wanted; params/head"
    ):
        read(tmp_path, other)
    assert checkpoint.saved_steps(tmp_path) == [1]


LAYOUTS = {1: "a -> a", 2: "a b -> a b", 3: "a b c -> a b c"}
DESCRIPTION = jax.tree.map(
    lambda shape: Param(shape, (None,) * len(shape), "name", LAYOUTS[len(shape)]),
    SHAPES,
    is_leaf=lambda node: isinstance(node, tuple),
)


def test_weights_alone(tmp_path):
    write(tmp_path, [1, 2])
    step, params = checkpoint.load_params(tmp_path, DESCRIPTION)
    assert step == 2
    assert_same(params, make_state(2).params)
    shutil.rmtree(tmp_path / "1" / "optimizer")
    step, params = checkpoint.load_params(tmp_path, DESCRIPTION, step=1)
    assert_same(params, make_state(1).params)
    with pytest.raises(ValueError, match="no checkpoint of step 5; there are 1, 2"):
        checkpoint.load_params(tmp_path, DESCRIPTION, step=5)
    with pytest.raises(ValueError, match="no checkpoint here"):
        checkpoint.load_params(tmp_path / "none", DESCRIPTION)


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(ValueError, match="a checkpoint cannot be written"):
        checkpoint.open_manager(tmp_path / "checkpoints", 1)


FULL_DISK = """
import resource, sys
from pathlib import Path
sys.path[:0] = [sys.argv[3], sys.argv[4]]
from test_train_checkpoint import FACTS, make_state
from mmrl.train import checkpoint
directory, limit = Path(sys.argv[1]), int(sys.argv[2])
try:
    with checkpoint.open_manager(directory, 1) as manager:
        checkpoint.save(manager, 1, make_state(1), {**FACTS, "step": 1})
        manager.wait_until_finished()
        state = make_state(2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        checkpoint.save(manager, 2, state, {**FACTS, "step": 2})
except ValueError as error:
    sys.exit(f"refused: {error}")
"""


@pytest.mark.parametrize(
    "room", [300, *(pytest.param(room, marks=pytest.mark.exhaustive) for room in (0, 5000))]
)
def test_full_disk(tmp_path, room):
    """No file of the child may grow beyond ``room`` bytes, which stands for a disk that is full."""
    here = Path(__file__).parent
    child = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path, str(room), here, here.parent],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == 1, child.stderr[-2000:]
    assert f"\nrefused: {tmp_path}: a checkpoint cannot be written (" in child.stderr, child.stderr[-2000:]
    assert "GB free; those finished before are whole" in child.stderr
    assert_restores(tmp_path, 1)
    write(tmp_path, [2])
    assert_restores(tmp_path, 2)


def over(*shape):
    """Cut over the first ``shape`` devices."""
    count = int(np.prod(shape))
    mesh = Mesh(np.array(jax.devices()[:count]).reshape(shape), ("fsdp", "tensor"))
    return NamedSharding(mesh, PartitionSpec("fsdp" if mesh.shape["fsdp"] > 1 else None))


@pytest.fixture
def eight():
    """The test is for eight devices."""
    if jax.device_count() < 8:
        pytest.skip("on the child's devices")


class TestMeshes:
    def test_in_a_child(self):
        run_on(8, __file__, "-k", "TestMeshes")

    @pytest.mark.parametrize(("there", "here"), [((8, 1), (1, 1)), ((1, 1), (8, 1)), ((2, 4), (4, 1))])
    def test_other_shape(self, eight, tmp_path, there, here):
        before = make_state(4, over(*there))
        with (
            checkpoint.open_manager(tmp_path, 2) as manager,
            jax.set_mesh(before.params["embed"].sharding.mesh),
        ):
            checkpoint.save(manager, 4, before, FACTS)
        like = make_state(0, over(*here))
        saved, said = read(tmp_path, like)
        assert said == []
        assert_same(saved.state, before)
        assert jax.tree.map(lambda x: x.sharding, saved.state) == jax.tree.map(lambda x: x.sharding, like)

    def test_checksums_are_the_same(self, eight):
        x = {"x": jnp.asarray(np.random.default_rng(0).standard_normal((8, 12)), jnp.float32)}
        cuts = [over(1, 1), over(8, 1), over(2, 4), over(4, 2)]
        assert len({checksums(jax.device_put(x, cut))["x"] for cut in cuts}) == 1
