"""What the registry says holds: rows in a data set's layout are converted as it says, and can be graded."""

import base64
import contextlib
import json
import re
import shlex
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmrl import cli
from mmrl.commands.data_convert import question_options
from mmrl.data.sources import read
from mmrl.models.images import image_size
from mmrl.models.prompts import IMAGE
from mmrl.rewards.verifiers import VERIFIERS, reported_components, verifier_names
from mmrl.tasks.catalogue import describe, entry, read_registry, table
from tests.tasks.catalogue_rows import OTHERS, PNG, papers_rows

REGISTRY = read_registry()
FORMS = [
    pytest.param(name, k, id=f"{name}-{k}") for name, one in REGISTRY.items() for k in range(len(one.forms))
]
FOLDERS = ("images", "val2017", "train2017")  # where stand-in images lie


def rows_of(name, k):
    """The file of a form, and stand-in rows."""
    form = REGISTRY[name].forms[k]
    if not form.papers:
        return OTHERS[name, k]
    return re.search(r" DIR/(\S+)", form.steps[0])[1], papers_rows(name)


def write_form(folder, name, k):
    file, rows = rows_of(name, k)
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        written = base64.b64encode(PNG + bytes(4096)).decode()
        rows = [{**row, "image": written} if row.get("image") == "BASE64" else row for row in rows]
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        lines = path.suffix == ".jsonl"
        path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    for place in (*FOLDERS, f"data/images/{name}"):
        (folder / place).mkdir(parents=True, exist_ok=True)
        for number in (0, 1):
            (folder / place / f"{number}.png").write_bytes(PNG)
    return rows


@pytest.mark.parametrize(("name", "k"), FORMS)
def test_a_form_becomes_rows_that_can_be_graded(name, k, tmp_path):
    form = REGISTRY[name].forms[k]
    rows = write_form(tmp_path / "DIR", name, k)
    there = set(rows) if isinstance(rows, dict) else set().union(*rows)
    assert there == set(form.columns)
    with contextlib.chdir(tmp_path):
        for step in form.steps:
            program, *words = shlex.split(step)
            assert (program, cli.main([*words, "--max-broken=0"])) == ("mmrl", 0)
        outs = [re.search(r"--out=(\S+)", step)[1] for step in form.steps] or [form.data]
        assert form.data in outs
        for out in outs:
            samples = list(read(out))
            assert len(samples) >= 2
            for sample in samples:
                reported_components(sample)
                if "coordinates" in sample.facts:  # answers are to be in others than the truth's pixels
                    sample = replace(sample, facts={**sample.facts, "coordinates": "pixels"})
                assert VERIFIERS[sample.verifier](sample, f"\\boxed{{{sample.answer}}}")["accuracy"] == 1.0
                assert VERIFIERS[sample.verifier](sample, "\\boxed{Ms Nobody}")["accuracy"] == 0.0
                assert sample.problem.count(IMAGE) == len(sample.images)
                assert all(image_size(image, "image") == (48, 64) for image in sample.images)
            assert any(sample.images for sample in samples)


def test_rows_of_options_and_answers_are_read_as_they_were_meant(tmp_path):
    """Where the layouts differ most: what the row has become."""
    made = {}
    for name, k in (
        ("wemath", 1),
        ("mmmu_pro", 1),
        ("mathvision", 1),
        ("mathverse_v", 1),
        ("textvqa", 0),
        ("chartqa", 0),
    ):
        write_form(tmp_path / name / "DIR", name, k)
        with contextlib.chdir(tmp_path / name):
            assert cli.main(shlex.split(REGISTRY[name].forms[k].steps[0])[1:]) == 0
            made[name] = list(read(REGISTRY[name].forms[k].data))
    assert made["wemath"][1].facts["options"] == ["90", "60, or less", "30", "No correct answer"]
    ten, four = made["mmmu_pro"]
    assert (ten.problem.count(IMAGE), len(ten.images), len(four.images)) == (2, 2, 1)
    assert made["mathvision"][0].problem.startswith(f"Which is next?\n{IMAGE}\nA. A")
    assert made["mathvision"][1].problem == f"{IMAGE}image 1 How many in all, with image 2?"
    assert [row.answer for row in made["mathverse_v"]] == ["C", "A"]
    assert made["textvqa"][0].answer == "stop"
    assert made["textvqa"][0].facts["aliases"] == ["stop sign"]
    number, word = made["chartqa"]
    assert (number.verifier, word.verifier) == ("number", "text")
    assert VERIFIERS["number"](number, "\\boxed{42}")["accuracy"] == 1.0


def test_every_entry_names_verifiers_and_rows():
    assert len(REGISTRY) >= 25
    for name, one in REGISTRY.items():
        assert set(one.use) <= {"train", "eval"}
        for verifier in re.sub(r" \(.*?\)", "", one.verifier).split(", "):
            assert verifier_names(verifier)
        assert one.forms, name
        for form in one.forms:
            assert form.splits, name
            assert "://" not in str(form), name
    stated = {form.licence for one in REGISTRY.values() for form in one.forms}
    assert {"not stated", "not verified", "mit"} <= stated


def test_the_table_and_an_entry_are_told(capsys):
    assert cli.main(["data", "list", "--use=train"]) == 0
    lines = capsys.readouterr().out.splitlines()
    named = {line.split()[0] for line in lines[1:] if line and not line.startswith("mmrl")}
    assert named == {name for name, one in REGISTRY.items() if "train" in one.use}
    assert cli.main(["data", "list", "geometry3k"]) == 0
    told = capsys.readouterr().out
    for words in ("hiyouga/geometry3k", "test 601", "mit", "--from=llava", "in the schema", "DIR:test"):
        assert words in told
    assert table(REGISTRY).count("\n") == len(REGISTRY)
    assert "not verified" in describe("pope", entry(REGISTRY, "pope"))


def test_an_unknown_name_is_answered_with_the_nearest(capsys):
    assert cli.main(["data", "list", "mathvsta"]) == 2
    assert "no data set 'mathvsta' is known; did you mean 'mathvista'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"columns": "picture=image"}, "'picture' is no role"),
        ({"columns": "images"}, "--columns: 'images' is not NAME=VALUE"),
        ({"where": ["type="]}, "--where: 'type=' is not NAME=VALUE"),
        ({"facts": "{x"}, "is not JSON"),
        ({"facts": "3"}, "write an object"),
        ({"agreed": 0}, "one person at least"),
    ],
)
def test_wrong_flags_are_named(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        question_options(given)


def test_a_column_that_is_not_there_is_named(tmp_path, capsys):
    (tmp_path / "in.json").write_text(json.dumps([{"question": "2 + 2?", "answer": 4}]))
    words = ["data", "convert", "--from=questions", str(tmp_path / "in.json"), f"--images={tmp_path}"]
    words += [f"--out={tmp_path / 'out.jsonl'}", "--verifier=math"]
    assert cli.main([*words, "--columns=images=picture"]) == 2
    assert "no column 'picture'; it has question, answer" in capsys.readouterr().err
    assert cli.main([*words, "--where=level=3"]) == 2
    assert "no column 'level'" in capsys.readouterr().err
    assert cli.main([*words, "--task=detect"]) == 2
    assert "--task says nothing about --from=questions" in capsys.readouterr().err
    assert cli.main(words) == 0
    (row,) = read(tmp_path / "out.jsonl")
    assert (row.problem, row.answer, row.verifier) == ("2 + 2?", "4", "math")
