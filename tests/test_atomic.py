"""Atomic writes: whole or not at all, in ordinary modes, and what a kill leaves is cleared by the next."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mmrl import atomic
from mmrl.atomic import atomic_file, atomic_folder, atomic_write, remove_partial

KILLED = """
import os, signal, sys
from pathlib import Path
from mmrl.atomic import atomic_file, atomic_folder
with atomic_file(Path(sys.argv[1], "file")) as part, atomic_folder(Path(sys.argv[1], "folder")) as folder:
    part.write_text("half")
    (folder / "weights").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def fill(folder: Path, text: str) -> None:
    with atomic_folder(folder) as part:
        (part / "inside").mkdir()
        (part / "inside" / "weights").write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_what_a_killed_writer_left_is_cleared_by_the_next(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path])
    assert done.returncode == -signal.SIGKILL
    assert names(tmp_path) == [".file.part", ".folder.part", ".folder.part/weights"]
    atomic_write(tmp_path / "file", "whole")
    fill(tmp_path / "folder", "whole")
    assert names(tmp_path) == ["file", "folder", "folder/inside", "folder/inside/weights"]
    assert (tmp_path / "file").read_text() == (tmp_path / "folder/inside/weights").read_text() == "whole"


def test_what_fails_leaves_what_was_there(tmp_path):
    atomic_write(tmp_path / "file", "old")
    fill(tmp_path / "folder", "old")
    before = names(tmp_path)
    with pytest.raises(OSError, match="No such file"), atomic_file(tmp_path / "file") as part:
        part.write_text((tmp_path / "none").read_text())
    with pytest.raises(OSError, match="No such file"), atomic_folder(tmp_path / "folder") as part:
        (part / "weights").write_text((part / "none").read_text())
    assert names(tmp_path) == before
    assert (tmp_path / "file").read_text() == (tmp_path / "folder/inside/weights").read_text() == "old"


@pytest.mark.parametrize("writer", [atomic_file, atomic_folder])
def test_two_writers_of_one_place(tmp_path, monkeypatch, writer):
    """The second waits a while, and touches nothing of the first."""
    monkeypatch.setattr(atomic, "WAIT_S", 0.1)
    with writer(tmp_path / "a") as part:
        remove_partial(tmp_path)
        with pytest.raises(ValueError, match="a is being written by another process"), writer(tmp_path / "a"):
            pass
        assert part.exists()
    assert names(tmp_path) == ["a"]
    with writer(tmp_path / "a"):
        pass


def test_a_file_where_a_folder_was_and_the_other_way_round(tmp_path):
    (tmp_path / ".a.part").mkdir()
    atomic_write(tmp_path / "a", "file")
    (tmp_path / ".a.part").write_text("")
    fill(tmp_path / "a", "folder")
    assert names(tmp_path) == ["a", "a/inside", "a/inside/weights"]


def test_ordinary_modes(tmp_path):
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "file", "")
        with atomic_folder(tmp_path / "folder") as part:
            (part / "weights").touch(0o600)  # as safetensors does
    finally:
        os.umask(before)
    found = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in names(tmp_path)}
    assert found == {"file": 0o640, "folder": 0o750, "folder/weights": 0o640}


def test_links_are_followed_and_devices_are_not_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real/file")
    atomic_write(tmp_path / "link", "text")
    assert (tmp_path / "real" / "file").read_text() == "text"
    atomic_write(Path("/dev/null"), "text")
    assert Path("/dev/null").is_char_device()


def test_where_nobody_can_write():
    with pytest.raises(ValueError, match=r"/proc/\d+ cannot be written to"):
        atomic_write(Path("/proc/self/file"), "")


def test_parts_of_the_dead_anywhere_in_a_folder(tmp_path):
    for name in (".a.part", "b/.c.part/weights", "b/.d.old.part/weights", "b/kept", "b/kept.part"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    remove_partial(tmp_path)
    assert names(tmp_path) == ["b", "b/kept", "b/kept.part"]
