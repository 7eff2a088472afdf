import pytest

from mmrl.python_file import defined, function


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("NUMBER = 3\n\n\ndef double(x):\n    return 2 * x\n")
    return "mine.py"


def test_what_a_file_defines(file):
    assert defined("asked", file, "NUMBER") == 3
    assert function("asked", f"{file}:double")(4) == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("none.py:double", "^asked: the file none.py does not exist$"),
        ("mine.py:treble", "^asked: mine.py does not define treble$"),
        ("mine.py:NUMBER", "^asked: NUMBER of mine.py is not a function$"),
        ("notes.txt:double", "^asked: notes.txt is not a Python file$"),
    ],
)
def test_messages(file, tmp_path, text, message):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=message):
        function("asked", text)
