"""The look through a data set before a run, and the view of what can be used."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mmrl.data.inspection import as_text, inspect_rows
from mmrl.data.pipeline import PromptFormat
from mmrl.data.sources import read
from mmrl.data.validation import Broken, Report, inspect, keep_usable
from mmrl.models.processor import load_processor
from mmrl.models.prompts import OverBudget, chat_messages, encode

FORM = PromptFormat(prompt_buckets=(64, 128), patch_buckets=(64, 256))
LONG = "word and more words " * 60


@pytest.fixture(scope="module")
def processor():
    return load_processor(Path(__file__).parent / "fixtures" / "qwen2_5_vl")


@pytest.fixture
def make(tmp_path):
    """A source of rows with the given problems; all pictures are one. Cells of further columns follow."""
    Image.new("RGB", (60, 50), (9, 9, 9)).save(tmp_path / "a.png")

    def build(problems, **columns):
        lines = []
        for k, problem in enumerate(problems):
            row = {"problem": problem, "answer": str(k), "images": ["a.png"] * problem.count("<image>")}
            lines.append(json.dumps(row | {name: cells[k] for name, cells in columns.items()}))
        (tmp_path / "rows.jsonl").write_text("\n".join(lines))
        return read(tmp_path / "rows.jsonl")

    return build


@pytest.fixture
def mixed(make, tmp_path):
    """Six rows, of which two are broken (1, 4) and one is over budget (3)."""
    source = make(["A", "<image>B", "C", LONG, "<image>D", "E"])
    (tmp_path / "a.png").write_bytes(b"GIF89a")
    return source


def test_report(mixed, processor):
    report = inspect(mixed, processor, FORM)
    assert (report.rows, report.over_budget) == (6, (3,))
    assert [(one.row, one.id) for one in report.broken] == [(1, "rows.jsonl:1"), (4, "rows.jsonl:4")]
    assert report.broken[0].reason.startswith("image 0: cannot read the image")
    assert report.broken[1].reason.startswith("image 0: cannot read the image")
    part = inspect(mixed.choose(range(3)), processor, FORM)
    assert (part.broken, part.rows) == (report.broken[:1], 3)


def test_reports_of_a_view_speak_of_its_own_rows(mixed, processor):
    report = inspect(mixed.choose([4, 0, 3]), processor, FORM)
    assert [(one.row, one.id) for one in report.broken] == [(0, "rows.jsonl:4")]
    assert report.over_budget == (2,)


def shared(monkeypatch, count, look):
    """The reports of so many processes that share the rows, each with what the others send as JSON."""
    sent = []
    monkeypatch.setattr("jax.process_count", lambda: count)
    for gather in (lambda part: sent.append(json.dumps(part)) or [part], lambda _: map(json.loads, sent)):
        monkeypatch.setattr("mmrl.hosts.gather", lambda part, gather=gather: list(gather(part)))
        reports = []
        for index in range(count):
            monkeypatch.setattr("jax.process_index", lambda index=index: index)
            reports.append(look())
    return reports


@pytest.mark.parametrize("processes", [1, 2, 4, 7])
def test_processes_share_the_rows_and_all_have_the_whole_report(mixed, processor, monkeypatch, processes):
    whole = inspect(mixed, processor, FORM)
    reports = shared(monkeypatch, processes, lambda: inspect(mixed, processor, FORM))
    assert reports == [whole] * processes


def test_progress_is_told(make, processor, monkeypatch):
    monkeypatch.setattr("mmrl.data.validation.EVERY", 2)
    told = []
    inspect(make(list("ABCDE")), processor, FORM, progress=lambda done, of: told.append((done, of)))
    assert told == [(2, 5), (4, 5), (5, 5)]


def test_usable_rows(mixed, processor):
    report = inspect(mixed, processor, FORM)
    view = keep_usable(mixed, report, max_broken=0.5, overlong="drop")
    assert [sample.problem for sample in view] == ["A", "C", "E"]
    assert [sample.id for sample in view] == ["rows.jsonl:0", "rows.jsonl:2", "rows.jsonl:5"]
    view = keep_usable(view, inspect(view, processor, FORM), max_broken=0, overlong="error")
    assert [sample.problem for sample in view] == ["A", "C", "E"]


def test_images_that_may_be_resized(make, processor):
    """What resizing lets in is what `encode` then takes, and no more."""
    source = make(["A", "<image>" * 16, "<image>" * 17, LONG, "<image>B"])  # 17 windows are over 256 slots
    form = PromptFormat(prompt_buckets=(90,), patch_buckets=(256,))
    assert inspect(source, processor, form).over_budget == (1, 2, 3)
    report = inspect(source, processor, replace(form, overlong="resize"))
    assert report.over_budget == _refused(source, processor, form) == (2, 3)
    assert len(keep_usable(source, report, max_broken=0, overlong="resize")) == 3


def _refused(source, processor, form):
    """Rows that are over budget however small their images are made."""
    rows = []
    for row, sample in enumerate(source):
        try:
            encode(
                processor,
                chat_messages(sample.problem),
                sample.images,
                prompt_budget=max(form.prompt_buckets),
                patch_budget=max(form.patch_buckets),
                overlong="resize",
            )
        except OverBudget:
            rows.append(row)
    return tuple(rows)


def test_too_many_are_broken(mixed, processor):
    report = inspect(mixed, processor, FORM)
    with pytest.raises(ValueError, match=r"(?s)2 of 6 rows cannot.*jsonl:1: image 0.*jsonl:4: image 0.*0\.3"):
        keep_usable(mixed, report, max_broken=0.3, overlong="drop")
    with pytest.raises(ValueError, match=r"1 of 6 rows are over budget: rows\.jsonl:3\. 1 need"):
        keep_usable(mixed, report, max_broken=0.5, overlong="error")


def test_exactly_the_share_may_be_broken(make):
    source = make(list("ABCD"))
    report = Report(4, (Broken(1, "rows.jsonl:1", "it is"),), ())
    assert len(keep_usable(source, report, max_broken=0.25, overlong="drop")) == 3


def test_an_error_names_five_rows(make):
    source = make(list("ABCDEFGH"))
    report = Report(8, tuple(Broken(k, source.id(k), "it is") for k in range(7)), ())
    with pytest.raises(ValueError, match="7 of 8") as error:
        keep_usable(source, report, max_broken=0.1, overlong="drop")
    assert [f"rows.jsonl:{k}:" in str(error.value) for k in range(8)] == [True] * 5 + [False] * 3


def test_nothing_left(make):
    source = make(list("AB"))
    with pytest.raises(ValueError, match="all 2 prompts looked at are over budget"):
        keep_usable(source, Report(2, (), (0, 1)), max_broken=0.5, overlong="drop")
    with pytest.raises(ValueError, match=r"(?s)rows\.jsonl:0: it is.*no row is left"):
        keep_usable(
            source, Report(2, (Broken(0, "rows.jsonl:0", "it is"),), (1,)), max_broken=0.5, overlong="drop"
        )
    every = tuple(Broken(k, source.id(k), "it is") for k in range(2))
    with pytest.raises(ValueError, match="no row is left"):
        keep_usable(source, Report(2, every, ()), max_broken=1.0, overlong="resize")


def test_solutions(make, processor):
    solutions = ["fine", None, "word " * 50, "one <|image_pad|>"]
    source = make(["A"] * 4, solution=solutions)
    report = inspect(source, processor, FORM, longest=40)
    assert [one.row for one in report.broken] == [1]
    assert report.over_budget == (2,)
    assert inspect(source, processor, FORM) == Report(4, (), (), lengths=((28, 0),) * 4)


def test_turns_together_may_be_too_long(make, processor):
    source = make(["A"] * 3, turns=[["word " * 15] * 2, ["word " * 30] * 2, ["one", "<|image_pad|>"]])
    report = inspect(source, processor, FORM, longest=80)
    assert report.over_budget == (1,)
    assert report.broken == ()


def test_reasons_are_short(make, processor, monkeypatch):
    def fail(*_):
        raise KeyError("x" * 10**6)

    monkeypatch.setattr("mmrl.data.validation.measure", fail)
    (broken,) = inspect(make(["A"]), processor, FORM).broken
    assert broken.reason.startswith("KeyError: 'xxx")
    assert len(broken.reason) < 400


def test_placeholders_are_counted(make, processor):
    source = make(["A"], images=[["a.png"]])
    assert inspect(source, processor, FORM).broken[0].reason.startswith("1 images but 0 placeholders")


def test_buckets_of_whole_windows(make, processor):
    with pytest.raises(ValueError, match="patch bucket 40 is not a multiple of 16"):
        inspect(make(["A"]), processor, PromptFormat((64,), (40,)))


def test_budgets_say_how_many_are_over_and_what_holds_all(make, processor, monkeypatch):
    """The least values named hold all rows, and no smaller ones do; parts of a source add up."""
    source = make(["A", "<image>" * 9, "<image>" * 10, LONG, LONG + LONG, "<image>" * 11 + LONG])
    form = PromptFormat(prompt_buckets=(200,), patch_buckets=(128,))
    report = inspect(source, processor, form)
    tokens, slots = report.budgets
    assert (tokens.key, tokens.limit, tokens.rows) == ("data.prompt_buckets", 200, 3)
    assert (slots.key, slots.limit, slots.rows) == ("data.patch_buckets", 128, 3)
    least = PromptFormat(prompt_buckets=(tokens.least,), patch_buckets=(slots.least,))
    assert inspect(source, processor, least).over_budget == ()
    for short in (
        PromptFormat(prompt_buckets=(tokens.least - 1,), patch_buckets=(slots.least,)),
        PromptFormat(prompt_buckets=(tokens.least,), patch_buckets=(slots.least - processor.slots,)),
    ):
        assert len(inspect(source, processor, short).over_budget) == 1
    with pytest.raises(ValueError, match="5 of 6 rows are over budget") as error:
        keep_usable(source, report, max_broken=0, overlong="error")
    assert f"3 need more tokens than config.data.prompt_buckets has, 200 ({tokens.least} holds all)" in str(
        error.value
    )
    assert f"3 need more patch slots than config.data.patch_buckets has, 128 ({slots.least} holds" in str(
        error.value
    )
    assert "config.data.overlong as drop or resize" in str(error.value)
    assert shared(monkeypatch, 2, lambda: inspect(source, processor, form)) == [report] * 2


def test_a_solution_over_budget_names_its_key(make, processor):
    report = inspect(make(["A"] * 2, solution=["word " * 50, "word"]), processor, FORM, longest=40)
    (budget,) = report.budgets
    assert (budget.key, budget.limit, budget.rows, budget.least) == ("cold_start.max_tokens", 40, 1, 102)


@pytest.mark.parametrize("overlong", ["drop", "resize", "error"])
def test_a_look_for_people_counts_what_a_run_leaves_out(make, processor, overlong):
    source = make(["A", "<image>" * 16, "<image>" * 17, LONG, "<image>B", "D <|image_pad|>", "<image>" * 3])
    form = PromptFormat(prompt_buckets=(90,), patch_buckets=(256,), overlong=overlong)
    report, found = inspect(source, processor, form), inspect_rows(source, (processor, form))
    assert tuple(found.over_budget) == report.over_budget
    assert len(report.over_budget) == (2 if overlong == "resize" else 3)
    assert found.broken == report.broken
    assert found.budgets == report.budgets
    text = as_text(found)
    assert all(f"Of those over budget, {one}." in text for one in report.budgets)
    with pytest.raises(ValueError, match=r"patch bucket 100 is not .*config\.data\.patch_buckets"):
        inspect_rows(source, (processor, replace(form, patch_buckets=(100,))))
