"""Calls read out of hostile text, and the tools themselves."""

import io
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from mmrl.rollout.tools import TABLE, TOOLS, ToolCallMatch, calculate, closing_tags, find_call, zoom
from mmrl.workers.pool import WorkerPool

IMAGES = Path(__file__).parent.parent / "data" / "fixtures" / "images"


def png(pixels):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def pixels_of(data):
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).integers(0, 256, (140, 200, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("text", "tool", "arguments"),
    [
        ("<zoom>0 0 50 50</zoom>", "zoom", {"box": [0, 0, 50, 50]}),
        ("I look. <zoom>\n 5  10 100\t99 </zoom> so", "zoom", {"box": [5, 10, 100, 99]}),
        ("<calculate> 2 * (3 + 4) </calculate>", "calculate", {"expression": "2 * (3 + 4)"}),
        ("<calculate>1</calculate><zoom>0 0 1 1</zoom>", "calculate", {"expression": "1"}),
    ],
)
def test_calls_are_read(text, tool, arguments):
    assert find_call(text, tuple(TOOLS)) == ToolCallMatch(tool, arguments)


def test_text_without_a_call():
    for text in ("", "zoom 0 0 50 50", "<zoom", "</zoom>", "<Zoom>0 0 1 1</Zoom>", "< zoom>"):
        assert find_call(text, tuple(TOOLS)) is None
    assert find_call("<calculate>1</calculate>", ("zoom",)) is None
    assert find_call("<calculate>1</calculate>", ()) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<zoom>", "zoom is not closed"),
        ("<zoom>0 0 50 50", "zoom is not closed"),
        ("<zoom></zoom>", "four whole numbers"),
        ("<zoom>0 0 50</zoom>", "four whole numbers"),
        ("<zoom>0 0 50 50 50</zoom>", "four whole numbers"),
        ("<zoom>0 0 50 101</zoom>", "four whole numbers"),
        ("<zoom>-1 0 50 50</zoom>", "four whole numbers"),
        ("<zoom>0 0 5e1 50</zoom>", "four whole numbers"),
        ("<zoom>0, 0, 50, 50</zoom>", "four whole numbers"),
        ("<zoom>0 0 nan 50</zoom>", "four whole numbers"),
        ("<zoom>0 0 \u0665\u0660 50</zoom>", "four whole numbers"),  # Arabic digits, which int() takes
        ("<zoom>0 0 50 0050</zoom>", "four whole numbers"),
        ("<zoom>0 0 50 50<zoom>1 1 2 2</zoom>", "four whole numbers"),
        ("<zoom>50 0 50 100</zoom>", "left before right"),
        ("<zoom>0 60 50 40</zoom>", "left before right"),
        ("<zoom>" + " " * 10_000_000 + "</zoom>", "at most 200 characters"),
        ("<calculate></calculate>", "calculate needs numbers"),
        ("<calculate>__import__('os')</calculate>", "calculate needs numbers"),
        ("<calculate>" + "(" * 5_000_000 + "</calculate>", "at most 200 characters"),
    ],
)
def test_senseless_calls_are_errors(text, reason):
    found = find_call(text, tuple(TOOLS))
    assert found.arguments == {}
    assert reason in found.error


def test_reading_ten_megabytes_is_quick():
    start = time.monotonic()
    for unit in ("<zoom>", "</zoom>", "<", "<calculate>1", "0 ", "\u0660"):
        find_call(unit * (10_000_000 // len(unit)), tuple(TOOLS))
    assert time.monotonic() - start < 5.0


CALLS = st.builds(
    lambda before, tool, inside, after: f"{before}<{tool}>{inside}</{tool}>{after}",
    st.text(max_size=5),
    st.sampled_from(sorted(TOOLS)),
    st.text() | st.text("0123456789 ") | st.text("0123456789.+-*/%() "),
    st.text(max_size=5),
)


@given(st.text() | CALLS)
@example("<calculate>" + "-" * 199 + "1</calculate>")
@example("<calculate>(" + ")" * 150 + "</calculate>")
@example("<calculate>1(2)</calculate>")
def test_no_text_raises(text):
    """Neither is reading it an error, nor are the tools by any error but their own."""
    found = find_call(text, tuple(TOOLS))
    if found is None or found.error is not None:
        return
    image = {"image": png(np.zeros((30, 30, 3), np.uint8))} if found.tool == "zoom" else {}
    try:
        value = TOOLS[found.tool](**found.arguments, **image)
    except ValueError:
        return
    assert isinstance(value, bytes if found.tool == "zoom" else str)


def test_zoom_cuts_the_original(noise):
    np.testing.assert_array_equal(pixels_of(zoom(png(noise), [0, 0, 100, 100])), noise)
    np.testing.assert_array_equal(pixels_of(zoom(png(noise), [50, 25, 75, 100])), noise[35:, 100:150])


def test_zoom_rounds_outwards():
    pixels = np.random.default_rng(0).integers(0, 256, (150, 150, 3), dtype=np.uint8)
    np.testing.assert_array_equal(pixels_of(zoom(png(pixels), [33, 33, 67, 67])), pixels[49:101, 49:101])


def test_zoom_enlarges_what_is_smaller_than_a_token(noise):
    part = Image.fromarray(noise[:14, :20]).resize((40, 28), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(pixels_of(zoom(png(noise), [0, 0, 10, 10])), np.asarray(part))
    assert pixels_of(zoom(png(noise[:1, :1]), [99, 99, 100, 100])).shape == (28, 28, 3)


@pytest.mark.parametrize("path", sorted(IMAGES.iterdir()), ids=lambda path: path.name)
def test_zoom_reads_what_prompts_read(path):
    """Paths and bytes; grey, palettes and transparency, the last on white as in prompts."""
    part = zoom(str(path), [0, 0, 100, 100])
    assert zoom(path.read_bytes(), [0, 0, 100, 100]) == part
    assert Image.open(io.BytesIO(part)).mode == "RGB"


def test_zoom_refuses(noise):
    with pytest.raises(ValueError, match="wider part"):
        zoom(png(np.zeros((1000, 400, 3), np.uint8)), [0, 0, 1, 100])
    with pytest.raises(ValueError, match="left before right"):
        zoom(png(noise), [50, 0, 50, 100])
    with pytest.raises(ValueError, match="cannot read the image"):
        zoom(b"no image", [0, 0, 100, 100])


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1", "1"),
        ("2 + 3 * 4", "14"),
        (" (2 + 3) * -4 ", "-20"),
        ("7 // 2 + 7 % 4", "6"),
        ("1 / 3", "0.333333333333"),
        ("6 / 3", "2"),
        ("2 ** 10", "1024"),
        ("2 ** -1", "0.5"),
        ("2 ** 0.5", "1.41421356237"),
        ("99999 * 99999", "9999800001"),
        ("-2 ** 2", "-4"),
    ],
)
def test_calculate(expression, value):
    assert calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("9**9**9", "exponent over 100"),
        ("9**99", "too large"),
        ("10**30", "too large"),
        ("9.0**99 * 9.0**99 * 9.0**99 * 9.0**99", "too large"),
        ("9" * 150, "too large"),
        ("9" * 150 + ".", "too large"),
        ("*".join(["99999"] * 20), "too large"),
        ("(" * 3000 + "1" + ")" * 3000, "at most 200"),
        ("(" * 90 + "1" + ")" * 90, "too deep"),
        ("-" * 150 + "1", "too deep"),
        ("+".join("1" * 60), "too deep"),
        ("1 / 0", "division by zero"),
        ("1 % 0.0", "division by zero"),
        ("0 ** -1", "division by zero"),
        ("(-8) ** 0.5", "root of a negative"),
        ("", "needs numbers"),
        ("__import__('os').system('true')", "needs numbers"),
        ("nan", "needs numbers"),
        ("1e400", "needs numbers"),
        ("1_000", "needs numbers"),
        ("0x10", "needs numbers"),
        ("\u0665 + \u0661", "needs numbers"),  # digits, but not ours
        ("\uff11+\uff11", "needs numbers"),
        ("1j", "needs numbers"),
        ("1 +", "needs numbers"),
        ("1, 2", "needs numbers"),
        ("()", "needs numbers"),
        ("1(2)", "needs numbers"),
        ("1\n+2", "needs numbers"),
        ("012", "needs numbers"),
        ("1 if 1 else 2", "needs numbers"),
    ],
)
def test_calculate_refuses(expression, reason):
    start = time.monotonic()
    with pytest.raises(ValueError, match=reason):
        calculate(expression)
    assert time.monotonic() - start < 1.0


def test_closing_tags():
    assert closing_tags(("calculate", "zoom")) == ("</calculate>", "</zoom>")
    with pytest.raises(ValueError, match="there is no tool 'draw'; there are zoom, calculate"):
        closing_tags(("zoom", "draw"))


def test_tools_run_in_workers(noise):
    with WorkerPool(1, TABLE) as pool:
        part = pool.submit("zoom", {"image": png(noise), "box": [50, 25, 75, 100]})
        bad = pool.submit("calculate", {"expression": "1/0"})
        np.testing.assert_array_equal(pixels_of(part.result().value), noise[35:, 100:150])
        assert bad.result().error == "ValueError: calculate: division by zero"


def test_tools_import_no_jax():
    code = "import sys, mmrl.rollout.tools; print(sorted({'jax', 'flax', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
