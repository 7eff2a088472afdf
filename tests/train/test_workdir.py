"""A run's folder: one run at a time, one config, the same data, and a list of its starts."""

import dataclasses
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmrl import run_folder
from mmrl.config import Config, DataConfig, MeshConfig, RolloutConfig, TrainConfig, from_dict
from mmrl.train import environment, workdir
from mmrl.train.stop_signal import Interrupted

CONFIG = Config(seed=3, data=DataConfig(train="a.parquet"), train=TrainConfig(steps=7))


def changed(part, **values):
    return dataclasses.replace(CONFIG, **{part: dataclasses.replace(getattr(CONFIG, part), **values)})


class TestConfig:
    def test_is_written_and_read(self, tmp_path):
        workdir.open_workdir(CONFIG, tmp_path / "a" / "run")
        assert run_folder.read_config(tmp_path / "a" / "run") == CONFIG
        workdir.open_workdir(CONFIG, tmp_path / "a" / "run")

    @pytest.mark.parametrize(
        "other",
        [
            dataclasses.replace(CONFIG, mesh=MeshConfig(data=2, tensor=4)),
            changed("train", row_tokens=4096, checkpoint_every=3, keep_checkpoints=9, evaluate_every=2),
            changed("rollout", prompt_slots=4, slots_per_prompt=2, chunk=8),
            changed("data", workers=1),
            changed("episode", workers=1),
            changed("cold_start", checkpoint_every=2),
        ],
        ids=["mesh", "train", "rollout", "data", "episode", "cold start"],
    )
    def test_what_changes_no_result_may_change(self, tmp_path, other):
        workdir.open_workdir(CONFIG, tmp_path)
        workdir.open_workdir(other, tmp_path)
        assert run_folder.read_config(tmp_path) == other

    def test_anything_else_may_not(self, tmp_path):
        workdir.open_workdir(CONFIG, tmp_path)
        other = dataclasses.replace(
            CONFIG, seed=4, train=TrainConfig(steps=8), rollout=RolloutConfig(group=3, prompt_slots=2)
        )
        with pytest.raises(
            ValueError, match=r"\(rollout.group: 8 there, 3 now; seed: 3 there, 4 now; tr"
        ) as told:
            workdir.open_workdir(other, tmp_path)
        assert "prompt_slots" not in str(told.value)
        assert run_folder.read_config(tmp_path) == CONFIG

    @pytest.mark.parametrize("left", ["", '{"seed": 3, "da', "\x00\x00\x00"])
    def test_half_written(self, tmp_path, left):
        """As a machine that stopped may leave it; and a part beside it."""
        (tmp_path / "config.json").write_text(left)
        (tmp_path / ".config.json.part").write_text('{"se')
        with pytest.raises(ValueError, match=r"config\.json is damaged; starting the run again"):
            run_folder.read_config(tmp_path)
        workdir.open_workdir(CONFIG, tmp_path)
        assert run_folder.read_config(tmp_path) == CONFIG

    def test_no_run(self, tmp_path):
        with pytest.raises(ValueError, match="holds no run"):
            run_folder.read_config(tmp_path)

    def test_every_key_that_may_change_is_one(self):
        keys = run_folder.flat(dataclasses.asdict(from_dict(dataclasses.asdict(Config()))))
        for name in run_folder.CHANGEABLE:
            assert any(key == name or key.startswith(name) for key in keys), name


class TestFolder:
    def test_a_file_in_its_place(self, tmp_path):
        (tmp_path / "run").write_text("")
        for inside in ("run", "run/deeper"):
            with pytest.raises(ValueError, match="cannot be made"), workdir.hold(tmp_path / inside):
                pass
            with pytest.raises(ValueError, match="cannot be made"):
                workdir.open_workdir(CONFIG, tmp_path / inside)

    def test_where_nobody_can_write(self):
        """The kernel's own folder refuses even root."""
        with pytest.raises(ValueError, match=r"--workdir=/proc/self.* cannot be made"):
            workdir.open_workdir(CONFIG, Path("/proc/self/run"))

    def test_a_full_disk(self, tmp_path, monkeypatch):
        """Every write to /dev/full fails as on a full disk."""

        def full(_):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(ValueError, match=r"cannot be written: .*No space left"):
                workdir.open_workdir(CONFIG, tmp_path)
        assert not list(tmp_path.iterdir())
        (tmp_path / "starts.jsonl").symlink_to("/dev/full")
        with pytest.raises(ValueError, match=r"cannot be written: .*No space left"):
            workdir.record_start(tmp_path, {}, print)


HOLDER = """
import subprocess, sys, time
from pathlib import Path
from mmrl.train.workdir import hold
with hold(Path(sys.argv[1])):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
    print(child.pid, flush=True)
    time.sleep(60)
"""


class TestOneRunAtATime:
    def test_another_process_is_refused_until_this_one_is_killed(self, tmp_path):
        with subprocess.Popen(
            [sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True
        ) as holder:
            try:
                outlives = int(holder.stdout.readline())
                with (
                    pytest.raises(ValueError, match=rf"in use by another run \(process {holder.pid} on "),
                    workdir.hold(tmp_path),
                ):
                    pass
            finally:
                holder.kill()
                holder.wait()
            try:
                with workdir.hold(tmp_path):
                    assert (tmp_path / "lock").read_text().startswith(f"{os.getpid()} on ")
            finally:
                os.kill(outlives, signal.SIGKILL)

    def test_again_in_the_same_process(self, tmp_path):
        for _ in range(2):
            with workdir.hold(tmp_path):
                pass
        with pytest.raises(RuntimeError, match="mine"), workdir.hold(tmp_path):
            raise RuntimeError("mine")
        with workdir.hold(tmp_path):
            pass

    def test_a_file_system_without_locks(self, tmp_path, monkeypatch):
        def none(*_):
            raise OSError(37, "No locks available")

        monkeypatch.setattr(fcntl, "flock", none)
        with workdir.hold(tmp_path):
            workdir.open_workdir(CONFIG, tmp_path)


class TestRefusedStart:
    def start(self, path, error, *, step=False):
        def run():
            workdir.open_workdir(CONFIG, path)
            workdir.record_start(path, {}, print)
            (path / "world").mkdir()
            (path / "metrics.jsonl").write_text('{"step": 0}\n' if step else "")
            raise error

        with pytest.raises(type(error)), workdir.hold(path):
            run()

    @pytest.mark.parametrize("error", [ValueError("bad data"), MemoryError()])
    def test_leaves_the_folder_as_it_was(self, tmp_path, error):
        self.start(tmp_path / "run", error)
        assert not (tmp_path / "run").exists()
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "notes").touch()
        (tmp_path / "mine" / "world").mkdir()
        with pytest.raises(FileExistsError):
            self.start(tmp_path / "mine", error)
        assert {one.name for one in (tmp_path / "mine").iterdir()} == {"notes", "world"}

    def test_after_a_step_it_stays(self, tmp_path):
        self.start(tmp_path, ValueError("not finite"), step=True)
        assert {one.name for one in tmp_path.iterdir()} >= {"config.json", "starts.jsonl", "world"}

    def test_an_interrupted_one_and_an_earlier_run_stay(self, tmp_path):
        self.start(tmp_path / "a", Interrupted("SIGTERM"))
        assert (tmp_path / "a" / "world").is_dir()
        (tmp_path / "a" / "world").rmdir()
        self.start(tmp_path / "a", ValueError("bad data"))
        assert len(run_folder.read_starts(tmp_path / "a")) == 2

    def test_one_in_the_folder_of_another_that_is_starting_touches_nothing(self, tmp_path, monkeypatch):
        def held(*_):
            (tmp_path / "world").mkdir()
            raise OSError(errno.EAGAIN, "locked")

        monkeypatch.setattr(fcntl, "flock", held)
        with pytest.raises(ValueError, match="in use by another"), workdir.hold(tmp_path):
            pass
        assert (tmp_path / "world").is_dir()


class TestStarts:
    def start(self, path, fingerprints):
        said = []
        workdir.record_start(path, fingerprints, said.append)
        return said

    def test_a_row_each(self, tmp_path):
        before = time.time()
        assert self.start(tmp_path, {"data.train": "aa"}) == []
        (tmp_path / "checkpoints" / "12").mkdir(parents=True)
        assert self.start(tmp_path, {"data.train": "aa", "data.heldout": "bb"}) == []
        first, second = run_folder.read_starts(tmp_path)
        assert (first["step"], second["step"]) == (0, 12)
        assert second["data"] == {"data.train": "aa", "data.heldout": "bb"}
        assert first["command"] == sys.argv
        assert first["devices"]["count"] >= 1
        assert first["processes"] == 1
        assert first["libraries"]["jax"] == environment.versions()["jax"]
        assert workdir.datetime.fromisoformat(first["time"]).timestamp() >= before - 1
        assert set(first) >= {"commit", "python", "platform", "variables"}

    def test_other_data_is_refused(self, tmp_path):
        self.start(tmp_path, {"data.train": "a" * 64})
        self.start(tmp_path, {"data.train": "a" * 64, "data.heldout": "c" * 64})
        for key in ("data.train", "data.heldout"):
            with pytest.raises(ValueError, match=rf"config\.{key} is not the data .*now\)"):
                self.start(tmp_path, {key: "b" * 64})
        assert len(run_folder.read_starts(tmp_path)) == 2

    def test_other_libraries_are_told(self, tmp_path):
        self.start(tmp_path, {})
        row = run_folder.read_starts(tmp_path)[0]
        row["libraries"] |= {"jax": "0.0.1", "gone": "2"}
        (tmp_path / "starts.jsonl").write_text(json.dumps(row) + "\n")
        said = self.start(tmp_path, {})
        assert len(said) == 1
        assert "gone 2 then, missing now; jax 0.0.1 then" in said[0]
        assert self.start(tmp_path, {}) == []

    @pytest.mark.parametrize("size", [1, 40, -1])
    def test_a_row_cut_short(self, tmp_path, size):
        self.start(tmp_path, {"data.train": "aa"})
        path = tmp_path / "starts.jsonl"
        whole = path.read_bytes()
        path.write_bytes(whole + whole[:size])
        self.start(tmp_path, {"data.train": "aa"})
        rows = run_folder.read_starts(tmp_path)
        # Without its newline the row is whole.
        assert len(rows) == (3 if size == -1 else 2)
        assert path.read_bytes().startswith(whole)

    @pytest.mark.parametrize(
        "content", [b"123", b"{}", b"\xff", b'{"data": {"a": 1}, "libraries": {}, "time": ""}', b'{"data']
    )
    def test_a_damaged_row_is_set_aside(self, tmp_path, content, capsys):
        self.start(tmp_path, {"data.train": "aa"})
        path = tmp_path / "starts.jsonl"
        path.write_bytes(content + b"\n" + path.read_bytes())
        assert len(run_folder.read_starts(tmp_path)) == 1
        assert f"{path}, line 1, is damaged" in capsys.readouterr().err
        (said,) = self.start(tmp_path, {"data.train": "aa"})
        assert "line 1, is damaged" in said
        assert path.with_name("starts.jsonl.damaged").read_bytes() == content + b"\n"
        assert len(run_folder.read_starts(tmp_path)) == 2
        assert capsys.readouterr().err == ""


class TestCommit:
    def git(self, where, *words):
        names = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", *names, *words], cwd=where, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def test_is_named_with_what_differs(self, tmp_path):
        package = tmp_path / "package"
        package.mkdir()
        (package / "a.py").write_text("1")
        assert environment.commit(package) is None
        self.git(tmp_path, "init", "-q")
        assert environment.commit(package) is None  # nothing of it is in the repository
        self.git(tmp_path, "add", ".")
        self.git(tmp_path, "commit", "-qm", "first")
        head = self.git(tmp_path, "rev-parse", "HEAD")
        assert environment.commit(package) == {"hash": head, "changed": False}
        (tmp_path / "elsewhere.txt").write_text("1")
        assert environment.commit(package) == {"hash": head, "changed": False}
        (package / "a.py").write_text("2")
        assert environment.commit(package) == {"hash": head, "changed": True}
