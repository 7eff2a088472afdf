"""Settings of the whole suite: CPU, exact float32 products, and the array shapes in annotations checked."""

import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Files that appear beside those of a test are looked for, and compiled ones are none of its doing.
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
# Many tests, and the processes they start, compile the same programs: each is compiled once.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "programs")
)

import flax.struct
import jax
import pytest
from filelock import FileLock
from jaxtyping import install_import_hook
from PIL import Image

sys.dont_write_bytecode = True
jax.config.update("jax_default_matmul_precision", "highest")
# Most of the time of a test is compiling: that is done in haste, but where `OPTIMISED` says otherwise.
jax.config.update("jax_disable_most_optimizations", True)

# Folders whose programs are compiled as they are for users: what compares with others' numbers to the last
# digits, and what looks at compiled programs.
OPTIMISED = ("golden", "parity", "plan", "kernels")

MOST_MAPPINGS = 20_000


def _pytree(*args, make=flax.struct.dataclass, **kwargs):
    """`flax.struct.dataclass` whose fields are not checked: tree maps fill them with specs, axes and None."""
    made = make(*args, **kwargs)
    made.__no_type_check__ = True
    return made


try:
    import beartype  # noqa: F401
except ImportError:
    pass
else:
    flax.struct.dataclass = _pytree
    install_import_hook("mmrl", "checker.check")


def pytest_collection_modifyitems(items):
    """Files with many slow tests first: the last to end is then a short one, on whatever worker."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="module", autouse=True)
def optimisation(request):
    """Compile properly in the folders `OPTIMISED`."""
    if request.path.parent.name not in OPTIMISED:
        yield
        return
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module", autouse=True)
def few_mappings():
    """A compiled program holds dozens of memory mappings, of which Linux grants a process 65530.

    Beyond, the process dies in whatever compiles next: a long session lets its programs go in between.
    """
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()


def pytest_terminal_summary(terminalreporter):
    """A line for each reader that tests/fuzz gave inputs to: how many, and how many of them it refused."""
    reports = [one for kind in ("passed", "failed") for one in terminalreporter.stats.get(kind, ())]
    told = [(one.nodeid, value) for one in reports for name, value in one.user_properties if name == "fuzzed"]
    for test, tally in sorted(dict(told).items()):
        counts = "  ".join(f"{count:6} {word}" for word, count in tally.items())
        terminalreporter.write_line(f"{counts}  {test.rpartition('::test_')[2]}")


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """Where the model directories with reference outputs lie."""
    return Path(os.environ.get("MMRL_FIXTURES_DIR", Path(__file__).parent / "data" / "fixtures"))


@pytest.fixture(scope="session")
def policy(fixtures_dir):
    """The tiny Qwen2.5-VL among the fixtures."""
    from tiny import read_policy

    return read_policy(fixtures_dir / "qwen2_5_vl")


@pytest.fixture(scope="session")
def smoke_config():
    """The quickstart, shrunk to seconds; layers are not unrolled, which compiles sooner."""
    from mmrl.config import resolve
    from mmrl.experiment import load

    experiment = Path(__file__).parents[1] / "experiments" / "quickstart.py"
    return resolve(load(f"{experiment}:smoke", ["--config.model.unroll=1"]))


@pytest.fixture(scope="session")
def smoke_run(smoke_config, tmp_path_factory) -> Path:
    """The folder of a finished run of `smoke_config`, which many look at: it is not to be changed.

    The first worker that asks for it makes it for all.
    """
    from mmrl.train.stages import run

    base = tmp_path_factory.getbasetemp()
    workdir = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "smoke"
    with FileLock(f"{workdir}.lock"):
        if not (workdir / "summary.json").exists():
            run(smoke_config, workdir)
    return workdir


@pytest.fixture(scope="session")
def sweep_folder(smoke_run, tmp_path_factory) -> Path:
    """Two arms of two seeds, whose metrics differ a little."""
    folder = tmp_path_factory.mktemp("sweep")
    for number, arm in enumerate(("papo_g", "half")):
        for seed in (0, 1):
            run = folder / arm / f"seed{seed}"
            run.mkdir(parents=True)
            config = json.loads((smoke_run / "config.json").read_text())
            (run / "config.json").write_text(json.dumps(config | {"seed": seed}))
            rows = [json.loads(line) for line in (smoke_run / "metrics.jsonl").read_text().splitlines()]
            for row in rows:
                row |= {name: row[name] + 0.1 * number + 0.01 * seed for name in row if name != "step"}
            (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
            for name in ("responses_before.jsonl", "responses_after.jsonl", "summary.json"):
                shutil.copy(smoke_run / name, run)
    asked = {"experiment": "quickstart.py:smoke", "arms": {"papo_g": {}, "half": {}}, "seeds": [0, 1]}
    asked |= {"baseline": "papo_g", "metrics": ["heldout/accuracy"]}
    (folder / "sweep.json").write_text(json.dumps(asked))
    return folder


@pytest.fixture
def make_source(tmp_path):
    """A source of the given problems, each "<image>" a small picture of its own."""
    from mmrl.data.sources import read

    def build(problems, name="rows.jsonl", **columns):
        lines = []
        for k, problem in enumerate(problems):
            names = []
            for j in range(problem.count("<image>")):
                names.append(f"{k}-{j}.png")
                Image.new("RGB", (60 + k, 50), (k, j, 0)).save(tmp_path / names[-1])
            row = {"problem": problem, "answer": str(k), "images": names}
            lines.append(json.dumps(row | {column: cells[k] for column, cells in columns.items()}))
        (tmp_path / name).write_text("\n".join(lines))
        return read(tmp_path / name)

    return build
