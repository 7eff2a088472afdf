"""The same update of the same state gives the same bits, every time.

XLA's CPU backend once broke this (see ``mmrl/__init__.py``): under the thread setting below, every second
gradient norm was wrong.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
import jax
import jax.numpy as jnp
import mmrl
from mmrl.config import resolve
from mmrl.experiment import load
from mmrl.rollout.sampling import Sampling
from mmrl.mesh import shard_batch
from mmrl.packing import pack_batch
from mmrl.train import programs
from mmrl.train.programs import TrainBatch
from mmrl.open import open_model, open_source, prompt_format
from mmrl.train.sft import demonstrations
from mmrl.train.optimizer import make_optimizer
from mmrl.train.state import initial_state
from mmrl.train.rollouts import episode_maker
from pathlib import Path

config = resolve(load(sys.argv[1] + ":smoke"))
workdir = Path(sys.argv[2])
model = open_model(config, workdir / "world" / "model")
source = open_source(config, config.cold_start.data, workdir, model, key="data", longest=12)
batch = next(demonstrations(
    source,
    model.processor,
    prompt_format(config),
    episode=episode_maker(config, model.processor, Sampling(max_tokens=12)),
    max_tokens=12,
    seed=0,
    batch_size=8,
))
params = model.load()
prompts, responses = shard_batch((batch.prompts, batch.responses), model.mesh)
packed = pack_batch(prompts, responses, model.config, model.mesh, config.train.row_tokens)
rows = TrainBatch(prompts, responses, packed)
optimizer = make_optimizer(config.optimizer, 1)
norms = set()
for _ in range(60):
    state = initial_state(jax.tree.map(jnp.copy, params), optimizer)
    _, made = programs.imitate(state, model.policy(1.0), rows, optimizer=optimizer)
    norms.add(float(made["gradient_norm"]))
print(len(norms))
"""


@pytest.mark.exhaustive
def test_update_gives_the_same_bits_every_time(smoke_run):
    experiment = Path(__file__).parents[2] / "experiments" / "quickstart.py"
    command = [sys.executable, "-c", PROGRAM, str(experiment), str(smoke_run)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["1"]
