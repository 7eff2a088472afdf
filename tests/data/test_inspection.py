"""What a look through a data set finds, and that its report shows hostile text as text."""

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import hypothesis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmrl.data.examples import contact_sheet, example, printable
from mmrl.data.inspection import as_text, choose_examples, histogram, inspect_rows, page, report_parts
from mmrl.data.pipeline import PromptFormat
from mmrl.data.sources import read
from mmrl.rewards.verifiers import reported_components
from mmrl.tasks.shapes_world import write_data

CASES = Path(__file__).parent.parent / "cases"
HOSTILE = (
    "</pre><script>alert(1)</script><img src=\"http://evil.example/x\" onerror='x'>&amp;\x1b[2J\u202egnp"
)


def png(size=(60, 40), value=9):
    out = io.BytesIO()
    Image.new("RGB", size, (value, 90, 90)).save(out, "PNG")
    return out.getvalue()


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture
def mixed(tmp_path):
    """Good rows, and one broken in each way."""
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "cut.png").write_bytes(png()[:60])
    question = {"problem": "<image>Which?", "answer": "A", "images": "a.png", "verifier": "choice", "note": 3}
    rows = [
        question,
        question,  # again
        {**question, "answer": "B"},  # again, with another answer
        {"problem": "1 + 1?", "answer": 2, "verifier": "number"},
        {"problem": "x" * 3000, "answer": "y" * 200},
        "{not json",
        {**question, "images": "gone.png"},
        {**question, "images": "gone2.png"},
        {**question, "problem": "<image><image>"},
        {**question, "verifier": "chioce"},
        {**question, "verifier": "choice+choice"},
        {"problem": "?", "answer": "many", "verifier": "number"},
        {"problem": "?", "answer": "[1, 2", "verifier": "box"},
        {**question, "images": "cut.png"},  # only its header is whole
    ]
    return read(write(tmp_path / "d.jsonl", rows))


def prompt(policy, **choices):
    return policy.processor, PromptFormat(**{"prompt_buckets": (64,), "patch_buckets": (64,), **choices})


def test_what_is_found(mixed):
    found = inspect_rows(mixed, probe=reported_components)
    assert (found.rows, found.of, len(found.usable)) == (14, 14, 6)
    reasons = {one.id: one.reason for one in found.broken}
    for number, why in {
        5: "not JSON",
        6: "gone.png",
        8: "1 images but 2 placeholders",
        9: "verifier 'chioce' is unknown; did you mean 'choice'?",
        10: "names one twice",
        11: "answer 'many'",
        12: "no JSON",
    }.items():
        assert why in reasons[f"d.jsonl:{number}"]
    assert [(row.id, first.id, row.answer == first.answer) for row, first in found.repeated()] == [
        ("d.jsonl:1", "d.jsonl:0", True),
        ("d.jsonl:2", "d.jsonl:0", False),
    ]
    tables = {part.title: part.rows for part in report_parts(found)}
    assert tables["Repeated rows: problem and images of an earlier one"][1:] == [
        ("d.jsonl:1", "d.jsonl:0", "the same"),
        ("d.jsonl:2", "d.jsonl:0", "another"),
    ]
    assert list(found.answers()) == ["choice", "number", "math"]
    assert tables["Answers"][1] == ("choice", "4", "2", "A", "75.0%")
    assert next(iter(found.answers()["math"])).startswith("y" * 60 + "... (200 characters")
    assert {(column.name, column.type, column.used_as) for column in found.columns} == {
        ("problem", "text", "problem"),
        ("answer", "text or number", "answer"),
        ("images", "text", "images"),
        ("verifier", "text", "verifier"),
        ("note", "number", ""),
    }
    assert [len(row.sizes) for row in found.usable] == [1, 1, 1, 0, 0, 1]
    assert found.sizes.tolist() == [[40, 60]] * 4
    assert found.form is None
    assert len(found.over_budget) == 0


def test_tokens_are_those_of_a_run(mixed, policy):
    found = inspect_rows(mixed, prompt(policy), probe=reported_components)
    assert found.over_budget == (4,)
    longer = inspect_rows(
        mixed, prompt(policy, suffix="Think first, then answer."), probe=reported_components
    )
    assert (longer.values("tokens") > found.values("tokens")).all()
    text = as_text(found)
    assert "over the largest bucket" in text
    assert "Tokens are not counted" not in text


def test_without_a_probe_verifiers_are_not_asked(mixed):
    assert len(inspect_rows(mixed).broken) == 4


def test_a_view_keeps_the_names_of_rows(mixed):
    found = inspect_rows(mixed.choose([0, 5]), of=len(mixed))
    assert [one.id for one in found.broken] == ["d.jsonl:5"]
    assert "2 of 14" in as_text(found)


def test_progress_reaches_the_end(mixed):
    told = []
    inspect_rows(mixed, progress=lambda done, total: told.append((done, total)))
    assert told == [(14, 14)]


def test_reasons_of_broken_rows_are_counted_by_kind(mixed):
    parts = report_parts(inspect_rows(mixed, probe=reported_components))
    (broken,) = [one for one in parts if one.title == "Broken rows"]
    assert [row[2] for row in broken.rows if "gone" in row[1]] == ["2"]


def test_columns_of_parquet_and_of_an_image_folder(tmp_path):
    image = {"bytes": png(), "path": None}
    rows = [{"problem": "<image>?", "answer": "1", "images": [image], "extra": 1.5}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    found = inspect_rows(read(tmp_path / "d.parquet"))
    assert [(column.name, column.used_as) for column in found.columns] == [
        ("problem", "problem"),
        ("answer", "answer"),
        ("images", "images"),
        ("extra", ""),
    ]
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.png").write_bytes(png())
    (folder / "metadata.csv").write_text("file_name,problem,answer\na.png,<image>?,1\n")
    found = inspect_rows(read(folder))
    assert [column.used_as for column in found.columns] == ["images", "problem", "answer"]
    assert len(found.usable) == 1


class Page(HTMLParser):
    """The elements of a page, and the texts between them."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def hostile_source(folder, text=HOSTILE):
    (folder / "a.png").write_bytes(png())
    row = {
        "problem": f"<image>{text}",
        "answer": text,
        "images": "a.png",
        "solution": text,
        "facts": {text: [text]},
        text: text,
    }
    broken = {"problem": text, "answer": text, "verifier": text}
    return read(write(folder / "d.jsonl", [row, {**row, "turns": [text]}, broken]))


def test_hostile_text_stays_text(tmp_path):
    source = hostile_source(tmp_path)
    found = replace(inspect_rows(source, probe=reported_components), name=HOSTILE)
    assert (len(found.broken), len(found.repeated())) == (1, 1)
    text = page(found, choose_examples(source, found, 9))
    read_page = Page(text)
    assert read_page.open == []
    allowed = "html head meta title style body h1 h2 div table tr th td p img pre details summary"
    assert set(read_page.tags) <= set(allowed.split())
    assert not [name for name, _ in read_page.attributes if name.startswith("on")]
    links = [value for name, value in read_page.attributes if name in ("src", "href", "action")]
    assert links
    assert all(link.startswith("data:image/") for link in links)
    assert "default-src 'none'" in text
    told = "".join(read_page.texts)
    assert told.count("<script>alert(1)</script>") >= 6
    assert not set("\x1b\u202e") & set(text)
    assert not set("\x1b\u202e") & set(as_text(found))
    contact_sheet(choose_examples(source, found, 9))


@settings(max_examples=30, deadline=None)
@given(text=st.text(st.characters(codec=None), max_size=30))
def test_any_text_is_shown(text):
    told = printable(text, 20, lines=True)
    told.encode()
    assert all(one.isprintable() or one in "\n\u200c\u200d" for one in told)
    assert len(told) <= 23
    if text.isascii() and text.isprintable() and len(text) <= 20:
        assert told == text


def test_drawings_of_the_page(mixed, policy):
    found = inspect_rows(mixed, prompt(policy), probe=reported_components)
    drawn = r'class="drawing" alt="([^"]*)" src="data:image/png;base64,([^"]*)"'
    drawings = re.findall(drawn, page(found, []))
    titles = [title for title, _ in drawings]
    pictures = [Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB") for _, text in drawings]
    assert titles == [
        "Text",
        "Sizes of images",
        "Tokens of a prompt",
        "Patch slots of a prompt",
        "Width and height of images",
    ]
    red = [any(colour == (192, 74, 47) for _, colour in one.getcolors(1 << 20)) for one in pictures]
    assert red == [False, False, True, False, False]  # a prompt over the largest bucket


def test_examples_are_spread_and_damage_is_noted(mixed):
    found = inspect_rows(mixed, probe=reported_components)
    assert [one.id for one in choose_examples(mixed, found, 3)] == ["d.jsonl:0", "d.jsonl:2", "d.jsonl:13"]
    last = choose_examples(mixed, found, 100)[-1]
    assert last.pictures == ()
    assert "image 0 cannot be decoded" in last.note
    assert "image 0 cannot be decoded" in page(found, [last])


def test_pictures_of_the_page_are_small_and_made_anew(tmp_path):
    (tmp_path / "a.png").write_bytes(png((2000, 1000)) + b"<script>")
    source = read(write(tmp_path / "d.jsonl", [{"problem": "<image>?", "answer": "1", "images": ["a.png"]}]))
    one = example(source[0])
    assert one.pictures[0].size == (320, 160)
    assert len(page(inspect_rows(source), [one])) < 40_000


def test_a_sheet_shows_every_example(tmp_path):
    source = read(write_data(tmp_path, 0, cold_start=1, train=7, heldout=1)["train"])
    shown_ones = choose_examples(source, inspect_rows(source), 7)
    sheet = contact_sheet(shown_ones, columns=3)
    high = sheet.height // 3
    assert sheet.width == 960
    assert len(set(sheet.crop((0, 2 * high, 320, 3 * high)).getdata())) > 2  # the seventh, in the third row
    assert set(sheet.crop((320, 2 * high, 960, 3 * high)).getdata()) == {(255, 255, 255)}
    with pytest.raises(ValueError, match="no usable row"):
        contact_sheet([])


def test_a_file_without_a_usable_row_has_a_report(tmp_path):
    source = read(write(tmp_path / "d.jsonl", [{"problem": "?", "answer": " "}]))
    found = inspect_rows(source)
    assert ["usable", "0", "(0.0%)"] in [line.split() for line in as_text(found).splitlines()]
    assert "is empty" in page(found, choose_examples(source, found, 5))


@hypothesis.example(
    values=[288, 350], limit=None, scale=1e-6
)  # the last edge was rounded below the largest value
@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.integers(0, 10**9), min_size=1, max_size=40),
    limit=st.none() | st.integers(0, 10**6),
    scale=st.sampled_from([1, 1e-6]),
)
def test_every_value_is_in_a_bin(values, limit, scale):
    numbers = np.array(values, np.int64) if scale == 1 else np.array(values) * scale
    bins = histogram(numbers, "x", limit if scale == 1 else None)
    assert sum(bins.counts) == len(values)
    assert list(bins.edges) == sorted(set(bins.edges))
    assert len(bins.counts) < 50
    if bins.limit is not None:
        over = sum(count for k, count in enumerate(bins.counts) if bins.over(k))
        assert over == sum(value > limit for value in values) or limit < bins.edges[0]


def test_rows_that_spell_control_tokens_are_named(tmp_path, policy):
    """With a model its own are looked for, without one those of Qwen2; rows are as usable as others."""
    for name in ("control.jsonl", "inject_solution.jsonl"):
        shutil.copy(CASES / "control_tokens" / name, tmp_path / name)
    (tmp_path / "ok.png").write_bytes(png())
    prompt = (policy.processor, PromptFormat((512,), (64,)))
    for given_prompt in (None, prompt):
        found = inspect_rows(read(tmp_path / "control.jsonl"), given_prompt)
        assert (found.rows, len(found.broken), sum(bool(row.spelt) for row in found.usable)) == (11, 0, 5)
        assert {(token, len(ids), ids[0]) for token, ids in found.spelt().items()} == {
            ("<|im_start|>", 1, "control.jsonl:1"),
            ("<|im_end|>", 1, "control.jsonl:1"),
            ("<|endoftext|>", 1, "control.jsonl:2"),
            ("<|image_pad|>", 1, "control.jsonl:3"),
            ("<|vision_start|>", 1, "control.jsonl:4"),
            ("<|box_start|>", 1, "control.jsonl:6"),
        }
    text = as_text(found)
    assert "with a control token's name  5 (45.5%)" in text
    assert "<|im_end|>        1     control.jsonl:1" in text
    found = inspect_rows(read(tmp_path / "inject_solution.jsonl"), prompt)
    assert list(found.spelt()) == ["<|im_start|>", "<|im_end|>"]
    clean = write(tmp_path / "clean.jsonl", [{"problem": "1?", "answer": 1}])
    assert not inspect_rows(read(clean), prompt).spelt()
