import re

import pytest

from mmrl.user_code import load_function, load_name


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("NUMBER = 3\n\n\ndef double(x):\n    return 2 * x\n")
    return "mine.py"


def test_what_a_file_defines(file):
    assert load_name("asked", file, "NUMBER") == 3
    assert load_function("asked", f"{file}:double")(4) == 8
    assert load_function("asked", "os.path:basename")("a/b") == "b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("none.py:double", "^asked: the file none.py does not exist$"),
        ("mine.py:treble", "^asked: mine.py does not define treble$"),
        ("mine.py:NUMBER", "^asked: NUMBER of mine.py is not a function$"),
        ("mmrl.none:double", "^asked: mmrl.none: ModuleNotFoundError: No module named 'mmrl.none'$"),
        ("os.path:nothing", "^asked: os.path does not define nothing$"),
        ("notes.txt:double", "^asked: notes.txt is not a Python file$"),
    ],
)
def test_messages(file, tmp_path, text, message):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=message):
        load_function("asked", text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A = 1\nB = {}['gone']\n", "asked: mine.py, line 2: KeyError: 'gone'"),
        ("import nowhere_to_be_found\n", "asked: mine.py, line 1: ModuleNotFoundError: No module named"),
        ("A = 1\n\nif A\n", "asked: mine.py, line 3: SyntaxError: expected ':'"),
        (
            "def f(x):\n    return int(x)\n\nf('many')\n",
            "asked: mine.py, line 2: ValueError: invalid literal",
        ),
        ("raise RuntimeError('one\\ntwo')\n", "asked: mine.py, line 1: RuntimeError: one"),
        ("import json\njson.loads('{')\n", "asked: mine.py, line 2: JSONDecodeError: Expecting"),
    ],
)
def test_what_a_file_raises_is_one_line_that_says_where(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as raised:
        load_function("asked", "mine.py:f")
    assert "\n" not in str(raised.value)
