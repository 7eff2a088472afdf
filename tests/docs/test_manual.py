"""The manual holds: its commands and snippets run, and what it names exists.

Commands stand in blocks marked ``sh`` and are run in their *quick form* (see `quick`) in a folder with the
files that the manual speaks of: ``DIR``, ``FILE.parquet``, ``prompts.jsonl``, ``photo.png`` and the run
``runs/quickstart``. So a new command is covered as soon as it is written; one that needs more fails until it
is given that here. Pages of the newcomer's path, ``docs/start``, are run as they are read, from top to end.
"""

import ast
import contextlib
import importlib
import importlib.util
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import pyarrow.parquet as pq
import pytest
from jax.experimental.compilation_cache import compilation_cache

from launch.__main__ import parse as launcher
from mmrl import cli
from mmrl.config import resolve, template
from mmrl.data.sources import read
from mmrl.experiment import FREE, load
from mmrl.tasks.shapes_world import example

ROOT = Path(__file__).parents[2]
START = sorted((ROOT / "docs" / "start").glob("*.md"))
API = sorted((ROOT / "docs" / "api").glob("*.md"))
MANUAL = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *START, *API]
PAGES = [*MANUAL, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "third_party").rglob("*.md"))]

# The quick form of a command: words for others, and words added (the last of a kind counts).
IN_PLACE = {
    "--step=STEP": ["--step=2"],
    "--config.model.path=DIR": ["--config.model.path=DIR", "--config.cold_start.steps=0"],
    "--model-size=7b": ["--config.model.path=DIR"],
    "--suite=experiments/suites/papers.py:papo": ["--suite=experiments/suites/papers.py:smoke"],
    "--workdir=runs/papo": ["--workdir=runs/quickstart"],
    "--data-root=benchmarks": ["--out=evaluated"],  # which is there by then
}
ADDED = {
    "train": ["--config.model.unroll=1"],
    "sft": ["--config.model.unroll=1"],
    "eval": ["--max-tokens=8", "--batch=1"],
    "generate": ["--max-tokens=8", "--batch=1"],
    "plan": ["--quick"],
    "sweep": ["--dry-run"],
    "report": ["--rollouts=2"],
    "data shapes": ["--cold-start=8", "--train=8", "--heldout=8"],
    "data pretext": ["--rows=6", "--side=140"],
}

# Blocks that only sketch a call, by how they begin.
SKETCHES = ("targets = prepare(algorithm, rewards=...",)


@dataclass(frozen=True)
class Block:
    """A fenced block, or one that is indented (language "indented")."""

    page: str  # from docs/ on
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def read_blocks(page: Path) -> list[Block]:
    found: list[Block] = []
    lines = page.read_text().splitlines()
    at = 0
    while at < len(lines):
        start, line = at, lines[at]
        at += 1
        if line.startswith("```"):
            end = lines.index("```", at)
            found.append(Block(_named(page), at, line[3:], "\n".join(lines[at:end])))
            at = end + 1
        elif line.startswith("    ") and not (start and lines[start - 1].strip()):
            body = list(itertools.takewhile(lambda text: text[:4].isspace() or not text, lines[start:]))
            found.append(Block(_named(page), at, "indented", "\n".join(text[4:] for text in body).strip()))
            at = start + len(body)
    return found


def _named(page: Path) -> str:
    return str(page.relative_to(ROOT)).removeprefix("docs/")


BLOCKS = [block for page in MANUAL for block in read_blocks(page)]


def in_language(*languages: str) -> list[Block]:
    """Blocks that are run each for itself."""
    return [b for b in BLOCKS if b.language in languages and not b.page.startswith("start/")]


# Commands that compute with a model: run by `make exhaustive`; `make test` reads their words only.
LONG = (
    *("mmrl train", "mmrl sft", "mmrl eval", "mmrl generate", "mmrl plan", "mmrl bench", "mmrl report"),
    *("make quickstart", "python -m experiments."),
)

COMMANDS = {
    f"{block}: {line}": line
    for block in in_language("sh")
    for line in block.text.splitlines()
    if line.strip() and not line.startswith("#")
}
RUN = [
    pytest.param(line, id=name, marks=pytest.mark.exhaustive if line.startswith(LONG) else pytest.mark.slow)
    for name, line in COMMANDS.items()
]


def inline(page: Path) -> list[str]:
    """What stands between backticks in the text of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


def quick(words: list[str]) -> list[str]:
    """A command of seconds that goes the same way: smoke form, few rows, short responses, a saved step."""
    words = [new for word in words for new in IN_PLACE.get(word, [word])]
    words = [f"{word}:smoke" if re.fullmatch(r"--config=[^:]+\.py", word) else word for word in words]
    return words + ADDED.get(words[0], ADDED.get(" ".join(words[:2]), []))


def run(words: list[str], folder: Path) -> None:
    if words[0] == "plan" and importlib.util.find_spec("libtpu") is None:
        pytest.skip('mmrl plan needs libtpu: pip install "mmrl[tpu]"')
    with contextlib.chdir(folder):
        assert cli.main(quick(words)) == 0, f"mmrl {shlex.join(quick(words))}"


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory) -> Iterator[None]:
    """Programs are compiled in haste, and one that a command compiled is there for the next."""
    settings = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def folder(smoke_run, tmp_path_factory, compiled_once) -> Path:
    """A folder that holds what the commands of the manual start from.

    The quickstart is there, as its command leaves it; the command then finds that nothing is left to do.
    """
    folder = tmp_path_factory.mktemp("manual")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    quickstart = folder / "runs" / "quickstart"
    shutil.copytree(smoke_run, quickstart)
    shutil.copytree(quickstart / "cold_start" / "model", folder / "DIR")
    pq.write_table(pq.read_table(quickstart / "world" / "train.parquet").slice(0, 2), folder / "FILE.parquet")
    write_photo(folder)
    write_photos(folder)
    prompts = [block.text for block in in_language("json") if block.page == "commands.md"]
    (folder / "prompts.jsonl").write_text("\n".join(prompts))
    return folder


def write_photo(folder: Path) -> None:
    record = example(0, "heldout", 0, kinds=("count",), levels=(1,))
    (folder / "photo.png").write_bytes(record["images"][0]["bytes"])


def write_photos(folder: Path) -> None:
    """A folder of images, and what public data sets would say of them."""
    (folder / "photos").mkdir()
    chat, boxes, captions, questions = [], [], [], ["question,A,B,answer,image"]
    for k in range(4):
        record = example(0, "train", k, levels=(3,))
        (folder / "photos" / f"{k}.png").write_bytes(record["images"][0]["bytes"])
        turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "shapes"}]
        chat.append({"image": f"{k}.png", "conversations": turns})
        boxes.append({"image_id": k, "category_id": 1, "bbox": [0, 0, 28, 28]})
        captions.append({"file_name": f"{k}.png", "caption": ("A red cup", "Two green cups")[k % 2]})
        questions.append(f"Which?,a board,a dog,A,{k}.png")
    images = [{"id": k, "file_name": f"{k}.png"} for k in range(4)]
    instances = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cell"}]}
    for name, content in (("chat", chat), ("instances", instances), ("captions", captions)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "questions.csv").write_text("\n".join(questions))


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_words_of_a_command_are_known(command, monkeypatch):
    """The command takes its options, and its experiment its keys; nothing is run."""
    monkeypatch.chdir(ROOT)
    program, *words = shlex.split(command.replace("=STEP", "=2"))
    if program == "make":
        for line in made(words):
            parsed(line)
    elif program == "mmrl":
        parsed(words)
    elif words[:2] == ["-m", "launch"]:
        followed([program, *words], ROOT)
    else:
        monkeypatch.setattr(sys, "argv", words[1:])
        importlib.import_module(words[1]).arguments()


def parsed(words: list[str]) -> None:
    options, rest = cli._parser().parse_known_args(words)
    cli._check_words(options.command, rest)
    if getattr(options, "config", None):
        resolve(load(options.config, rest))


@pytest.mark.parametrize("command", RUN)
def test_command_runs(command, folder):
    program, *words = shlex.split(command)
    if program == "mmrl":
        run(words, folder)
    elif program == "make":
        for line in made(words):
            run(line, folder)
    elif words[:2] == ["-m", "launch"]:
        followed([program, *words], folder)
    elif words[:2] == ["-m", "experiments.peers.compare"]:
        alone = ["--quick", "--threads=1", f"--peer-python={folder / 'none'}"]
        subprocess.run([sys.executable, *words, *alone], cwd=ROOT, check=True, timeout=600)
    elif words[1].startswith("experiments.faults."):
        # It goes on for minutes; here it must start and know the arguments.
        subprocess.run([sys.executable, *words, "--help"], cwd=ROOT, check=True, timeout=600)
    else:
        pytest.fail(f"how is {command!r} to be tested?")


def made(words: list[str]) -> list[list[str]]:
    """The mmrl commands that ``make`` with these words would run; make itself says so, and runs nothing."""
    names = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "ARGS", "PYTHON", "VENV", "TEST_VENV", "WORKDIR")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        ["make", "--dry-run", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines() if line.strip()]
    commands = [line[1:] for line in lines if Path(line[0]).name == "mmrl"]
    others = (["-m", "pytest"], ["-m", "sphinx"], ["check", "."])
    assert commands or any(line[1:3] in others for line in lines), done.stdout
    return commands


@pytest.mark.exhaustive
@pytest.mark.parametrize("page", START, ids=_named)
def test_a_page_of_the_path_runs_from_its_top_to_its_end(page, folder, tmp_path, monkeypatch, capsys):
    """In a folder of its own, beside the experiments, a model and a question.

    Python whose first line is a comment with a file's name is that file; other Python is run. A command that
    is followed by a block of text fails, with that text. Commands of docs/commands.md are run there.
    """
    for name in ("experiments", "DIR", "prompts.jsonl", "photo.png"):
        (tmp_path / name).symlink_to(folder / name)
    monkeypatch.chdir(tmp_path)
    elsewhere = (ROOT / "docs" / "commands.md").read_text().splitlines()
    blocks = read_blocks(page)
    for block, after in itertools.zip_longest(blocks, blocks[1:]):
        file = re.match(r"# (\w+\.py)\n", block.text)
        if block.language == "python" and file:
            Path(file[1]).write_text(block.text)
        elif block.language == "python":
            exec(compile(block.text, str(block), "exec"), {})
        elif block.language == "sh" and after is not None and after.language == "text":
            capsys.readouterr()
            assert cli.main(shlex.split(block.text)[1:]) == 2, block
            said = capsys.readouterr().err.replace(str(tmp_path), "/home/you").strip()
            assert said.endswith(after.text), block
        elif block.language == "sh":
            for line in block.text.splitlines():
                if line not in elsewhere:
                    followed(shlex.split(line), tmp_path)


def followed(words: list[str], folder: Path) -> None:
    """A command of the path: launched as far as its words are checked, looked through, or run."""
    if words[:3] == ["python", "-m", "launch"]:
        options, overrides = launcher(words[3:])
        if hasattr(options, "config"):
            resolve(load(options.config, overrides))
        return
    data = [word.partition("=")[2] for word in words if word.startswith("--config.data.train=")]
    if words[1] == "train" and data:  # what a run with data of one's own does before its first step
        words = ["mmrl", "data", "inspect", *data, *(word for word in words if word.startswith("--config"))]
    elif words[1] == "train":
        words = [*words, "--config.cold_start.steps=0", "--config.train.steps=1", "--config.data.heldout="]
    run(words[1:], folder)


def test_make_is_named_with_targets_that_exist():
    named = {word for page in PAGES for word in inline(page) if word.startswith("make ")}
    assert {"make quickstart", "make test"} <= named
    for command in sorted(named):
        made(shlex.split(command)[1:])


def test_commands_with_options_stand_in_blocks():
    """Between backticks stands the name of a command only: options there would not be run."""
    name = re.compile(
        r"mmrl (train|sft|sweep|eval|generate|export|plan|bench|report"
        r"|data (list|inspect|convert|pretext|shapes))"
    )
    named = [(page.name, word) for page in MANUAL for word in inline(page) if word.startswith("mmrl ")]
    assert [(page, word) for page, word in named if not name.fullmatch(word)] == []


def test_every_block_is_of_a_kind_that_is_run():
    kinds = {"sh", "python", "json", "bibtex", "indented", "{toctree}"}
    of_path = {"sh", "python", "text"}
    other = [
        str(block)
        for block in BLOCKS
        if block.language not in (of_path if block.page.startswith("start/") else kinds)
    ]
    assert other == []


SNIPPETS = in_language("python", "indented")
AFTER_QUICKSTART = [block for block in SNIPPETS if "runs/quickstart" in block.text]


@pytest.mark.parametrize("block", [block for block in SNIPPETS if block not in AFTER_QUICKSTART], ids=str)
def test_snippet_runs(block, tmp_path):
    if block.text.startswith(SKETCHES):
        pytest.skip("a sketch of a call")
    with contextlib.chdir(tmp_path):
        exec(compile(block.text, str(block), "exec"), {})


@pytest.mark.exhaustive
@pytest.mark.parametrize("block", AFTER_QUICKSTART, ids=str)
def test_snippet_runs_after_the_quickstart(block, folder):
    with contextlib.chdir(folder):
        exec(compile(block.text, str(block), "exec"), {})


@pytest.mark.parametrize("block", in_language("json"), ids=str)
def test_rows_can_be_read(block, tmp_path):
    """Rows with an answer are data in the schema, those without are prompts."""
    write_photo(tmp_path)
    rows = [json.loads(line) for line in block.text.splitlines()]
    assert all(row["problem"].count("<image>") == len(_listed(row.get("images", []))) for row in rows)
    if any("answer" in row for row in rows):
        path = tmp_path / "rows.jsonl"
        path.write_text(block.text)
        source = read(path)
        for index in range(len(rows)):
            assert all(Path(image).is_file() for image in source[index].images)


def _listed(images):
    return images if isinstance(images, list) else [images]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_tests_that_are_named_exist():
    named = {word for page in PAGES for word in inline(page) if re.fullmatch(r"tests/\w+/test_\w+\.py", word)}
    assert len(named) >= 10
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("page", MANUAL, ids=_named)
def test_keys_of_the_config_exist(page):
    keys = set(_keys(template()))
    commands = [
        line
        for block in read_blocks(page)
        if block.language == "sh" and page not in START  # whose mistakes are meant
        for line in block.text.splitlines()
    ]
    named = {
        key
        for text in [*inline(page), *commands]
        for key in re.findall(r"(?<![\w./])config\.([a-z_]+(?:\.[a-z_]+)*)(?![\w/])", text)
    }
    free = (*FREE, "reward.sources")
    assert {key for key in named - {"json", "py"} - keys if not key.startswith(free)} == set()


def _keys(config, prefix: str = "") -> Iterator[str]:
    for name in config:
        yield prefix + name
        if hasattr(config[name], "items"):
            yield from _keys(config[name], f"{prefix}{name}.")


@pytest.mark.slow
def test_a_run_leaves_what_the_readme_lists(folder):
    section = (ROOT / "README.md").read_text().split("## Where results are")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    named = [name for cell in cells for name in re.findall(r"`(.+?)`", cell)]
    assert len(named) >= 10
    assert [name for name in named if not (folder / "runs" / "quickstart" / name).exists()] == []


@pytest.mark.slow
def test_metrics_that_are_named_are_logged(folder):
    rows = (folder / "runs" / "quickstart" / "metrics.jsonl").read_text().splitlines()
    logged = {name for row in rows for name in json.loads(row)}
    groups = {name.split("/")[0] for name in logged if "/" in name}
    words = {word for page in MANUAL for word in inline(page) if re.fullmatch(r"[a-z_]+/[a-z_0-9]+", word)}
    named = {word for word in words if word.split("/")[0] in groups}
    assert named
    assert named - logged == set()


def test_errors_that_are_named_are_raised():
    source = "\n".join(path.read_text() for path in (ROOT / "mmrl").rglob("*.py"))
    section = (ROOT / "docs" / "data.md").read_text().split("## Errors you may see")[1]
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    named = [words for cell in cells for words in re.findall(r"`(.+?)`", cell)]
    assert len(named) > 10
    assert [words for words in named if words not in source] == []


def test_rooms_import_what_the_map_allows():
    text = (ROOT / "docs" / "architecture.md").read_text().split("## Rooms")[1].split("\n## ")[0]
    table = {
        room: set(re.findall(r"`(\w+)`", allowed))
        for room, allowed in re.findall(r"^\| `(\w+)` \| (.*?)\|", text, re.MULTILINE)
    }
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "mmrl").rglob("*.py")):
        parts = path.relative_to(ROOT / "mmrl").with_suffix("").parts
        if parts[0] != "__init__":
            found.setdefault(parts[0], set()).update(_rooms(path) - {parts[0]})
    assert found == table


def test_no_class_has_the_name_of_another():
    names = [
        node.name
        for path in (ROOT / "mmrl").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    assert len(names) > 150
    assert {name for name in names if names.count(name) > 1} == set()


def _rooms(path: Path) -> set[str]:
    """Rooms of mmrl that a file imports."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "mmrl":
            names += [f"mmrl.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("mmrl.")}
