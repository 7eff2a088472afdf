"""What mmrl prints: nothing of data acts on a terminal, and commands can be pasted into a shell."""

import ast
import os
import subprocess
from pathlib import Path

import pytest

from mmrl import cli
from mmrl.commands.options import Command
from mmrl.terminal import command, printable, rewrite, tell

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b\n\tc", "a b\n\tc"),
        ("日本\u3000語, 1\u00a0km, é, 🙂", "日本\u3000語, 1\u00a0km, é, 🙂"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("a\rb\x08\x7f\x00", r"a\rb\x08\x7f\x00"),
        ("\x9b31m\x85", r"\x9b31m\x85"),
        ("\u202eabc\u2066\u200f", r"\u202eabc\u2066\u200f"),
        ("a\u200b\u200d\ufeff\u00adb", r"a\u200b\u200d\ufeff\xadb"),
        ("\ud800x\udcff", r"\ud800x\udcff"),
        ("\u2028\u2029\U000e0041", r"\u2028\u2029\U000e0041"),
    ],
)
def test_what_acts_on_a_terminal_is_escaped(text, shown):
    assert printable(text) == shown


def test_printing(capsys):
    tell("a\x1b[31m")
    tell("b\r", error=True)
    rewrite("c\x1b[2K", last=False)
    rewrite("d", last=True)
    said = capsys.readouterr()
    assert said.out == "a\\x1b[31m\n\rc\\x1b[2K\rd\n"
    assert said.err == "b\\r\n"


def test_nothing_is_printed_in_another_way():
    printing = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for room in ("mmrl", "launch")
        for file in sorted((ROOT / room).rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert {where.partition(":")[0] for where in printing} == {"mmrl/terminal.py"}


def test_a_shell_reads_a_command_as_it_was_meant():
    words = [
        "--workdir=runs/run ü with space",
        "it's",
        'a "b" $HOME `id` \\ ! * ~',
        "",
        "--config.reward.weights={'a': 1}",
        "line\nbreak\tand \x1b[31m, \\, ', \u202e",
        os.fsdecode(b"not utf-8: \xff"),
        "#; rm -rf x & | > < ( )",
    ]
    line = command("printf", r"%s\0", *words, Path("-dash"), Path("/plain/path"))
    assert printable(line) == line
    assert "\n" not in line
    read = subprocess.run(["bash", "-c", line], capture_output=True, check=True, timeout=60).stdout
    assert [os.fsdecode(word) for word in read.split(b"\0")[:-1]] == [*words, "./-dash", "/plain/path"]
    assert command("mmrl", "report", Path("runs/a")) == "mmrl report runs/a"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a command"),
        (["tarin"], "there is no 'tarin'; did you mean 'train'? (see mmrl --help)"),
        (["data", "inspct"], "there is no 'inspct'; did you mean 'inspect'? (see mmrl data --help)"),
        (["data"], "the following arguments are required: WHAT (see mmrl data --help)"),
        (["train"], "the following arguments are required: --config (see mmrl train --help)"),
        (["tra\x1b[31min"], r"there is no 'tra\x1b[31min'"),
        (
            ["train", "--config=x.py", "--config.train.steps", "3"],
            "write --config.train.steps=VALUE, in one word",
        ),
        (["train", "--config=x.py", "--wrkdir=x"], "unknown argument '--wrkdir=x'; see mmrl train --help"),
        (["train", "--config=none\x1b.py"], r"the file none\x1b.py does not exist"),
    ],
)
def test_words_that_mmrl_cannot_read(words, message, capsys):
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert f"mmrl: {message}" in said or message in said.splitlines()[-1]
    assert "\x1b" not in said
    assert "Traceback" not in said


def test_version_and_help(capsys):
    for words, said in (
        (["--version"], "mmrl 0."),
        (["help"], "Begin with mmrl train"),
        (["help", "data"], "WHAT"),
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(words)
        assert stopped.value.code == 0
        assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (PermissionError(13, "Permission denied", "/a/b\x1b"), 2, "mmrl: /a/b\\x1b: Permission denied\n"),
        (OSError(28, "No space left on device"), 2, "mmrl: No space left on device\n"),
        (IsADirectoryError(21, "Is a directory", b"/a/\xff"), 2, "mmrl: /a/\\udcff: Is a directory\n"),
        (
            FileNotFoundError(2, "No such file or directory", Path("x")),
            2,
            "mmrl: x: No such file or directory\n",
        ),
        (ConnectionResetError(104, "Connection reset by peer"), 1, "Traceback"),
        (RuntimeError("a fault of ours \x1b[31m"), 1, "RuntimeError: a fault of ours \\x1b[31m\n"),
    ],
)
def test_what_a_command_raises(error, status, message, monkeypatch, capsys):
    def run(options, words):
        raise error

    monkeypatch.setattr(cli, "COMMANDS", (Command("fail", "Fails.", "", run=run),))
    assert cli.main(["fail"]) == status
    said = capsys.readouterr().err
    assert message in said
    assert status == 1 or said == message
