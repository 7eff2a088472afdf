"""TensorBoard and Weights & Biases: figures, responses with pictures, the same run again, and what fails."""

import dataclasses
import json
import struct
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from mmrl.config import LogConfig
from mmrl.run_folder import read_metrics
from mmrl.train import writers
from mmrl.train.metrics import Metrics
from mmrl.train.writers import HeldoutExample, Wandb, check_wandb

HOSTILE = "<script>alert(1)</script> **bold** \x1b[2J\n| a | b |"
ROW = {"id": "rows:0", "problem": "<image>How many?", "answer": "2", "response": HOSTILE, "reward": 0.5}
SHOWN = HeldoutExample(
    ROW, (Image.new("RGB", (20, 10), (255, 0, 0)),), ("<script>", "alert"), np.array([0.1, 0.2])
)


def events(folder) -> list[Event]:
    found = []
    for file in sorted(folder.glob("events*")):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            found.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 16 + length
    return found


def board_of(workdir) -> dict[str, list]:
    values = [
        (event.step, value) for event in events(workdir / "tensorboard") for value in event.summary.value
    ]
    return {
        tag: [(step, one) for step, one in values if one.tag == tag] for tag in {one.tag for _, one in values}
    }


def test_tensorboard_has_figures_texts_and_pictures(tmp_path):
    metrics = Metrics(tmp_path, -1)
    metrics.write(0, {"reward/mean": 0.25})
    metrics.show(0, [SHOWN, dataclasses.replace(SHOWN, images=())])
    metrics.close()
    board = board_of(tmp_path)
    assert [(step, one.simple_value) for step, one in board["reward/mean"]] == [(0, 0.25)]
    ((_, image),) = board["heldout/0/image0"]
    assert (image.image.height, image.image.width) == (10, 20)
    ((_, text),) = board["heldout/1/text_summary"]
    said = text.tensor.string_val[0].decode()
    assert "    <image>How many?" in said
    marked = [line for line in said.splitlines() if line.strip() and not line.startswith("    ")]
    assert marked == ["reward 0.5", "**problem**", "**answer**", "**response**"]
    assert "heldout/1/image0" not in board


@pytest.mark.slow
def test_a_run_shows_held_out_responses(smoke_run):
    board = board_of(smoke_run)
    steps = {step for step, _ in board["heldout/0/text_summary"]}
    assert {0, read_metrics(smoke_run)[-1]["step"]} <= steps
    assert {step for step, _ in board["heldout/0/image0"]} == steps
    assert len([tag for tag in board if tag.endswith("text_summary")]) == 8


def sent(workdir, number: int) -> bytes:
    """What the ``number``-th start of a run left to be synchronised."""
    return sorted(workdir.glob("wandb/offline-run-*/*.wandb"))[number].read_bytes()


@pytest.fixture
def offline(monkeypatch, tmp_path):
    pytest.importorskip("wandb", reason='pip install "mmrl[wandb]"')
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    said: list[str] = []
    return said


def test_wandb_offline_and_the_same_run_again(offline, tmp_path):
    for start in range(2):
        run = Wandb("project", tmp_path, {"algorithm": {"name": "papo_g"}}, offline.append)
        run.write(start, {"reward/mean": 0.25})
        run.show(start, [SHOWN])
        run.close()
        time.sleep(1.1 * (start == 0))  # folders are named by the second
    same = json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert [line.split(" ")[0] for line in offline] == ["wandb", "wandb"]
    for start in range(2):
        told = sent(tmp_path, start)
        for word in (
            same,
            "project",
            '{"name":"papo_g"}',
            "reward/mean",
            "responses",
            "media/images/",
            "media/html/",
        ):
            assert word.encode() in told
    (table,) = [json.loads(path.read_text()) for path in tmp_path.glob("wandb/*/files/media/table/*")][:1]
    assert [row[0] for row in table["data"]] == ["rows:0"]
    assert table["data"][0][table["columns"].index("response")] == HOSTILE


def test_tokens_are_coloured_and_never_markup():
    assert writers._color_tokens(SHOWN).count("<") == 4
    assert "&lt;script&gt;" in writers._color_tokens(SHOWN)
    assert 'title="0.1000 nats" style="background:rgba(255,140,0,0.50)"' in writers._color_tokens(SHOWN)
    assert "<" not in writers._color_tokens(dataclasses.replace(SHOWN, perception=None))


def stand_in(monkeypatch, init):
    settings = SimpleNamespace(mode="online", api_key=None, base_url="https://wandb.test")
    module = SimpleNamespace(
        init=init, Settings=lambda **_: None, setup=lambda: SimpleNamespace(settings=settings)
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    return settings


def broken_start(**_):
    raise RuntimeError("no\nnetwork")


def broken_log(**_):
    def log(row):
        raise OSError("gone")

    return SimpleNamespace(
        log=log, define_metric=lambda *_, **__: None, offline=False, url="u", finish=broken_start
    )


@pytest.mark.parametrize(("init", "why"), [(broken_start, "RuntimeError: no"), (broken_log, "OSError: gone")])
def test_a_wandb_that_fails_is_told_once(monkeypatch, tmp_path, init, why):
    stand_in(monkeypatch, init)
    said: list[str] = []
    metrics = Metrics(tmp_path, -1, lambda: [Wandb("project", tmp_path, {}, said.append)])
    for step in range(5):
        metrics.write(step, {"x": 1.0})
        metrics.show(step, [SHOWN])
    metrics.close()
    warnings = [line for line in said if line.startswith("warning")]
    assert len(warnings) == 1
    assert why in warnings[0]
    assert len(read_metrics(tmp_path)) == 5


def test_a_wandb_that_hangs_keeps_nothing_waiting(monkeypatch, tmp_path):
    let_go = threading.Event()
    stand_in(monkeypatch, lambda **_: let_go.wait(60))
    monkeypatch.setattr(writers, "CLOSE_S", 0.1)
    said: list[str] = []
    start = time.monotonic()
    run = Wandb("project", tmp_path, {}, said.append)
    for step in range(2 * writers.WAITING):
        run.write(step, {"x": 1.0})
    run.close()
    assert time.monotonic() - start < 5
    assert said == ["warning: wandb lacks figures of this run, which goes on: it is too slow"]
    let_go.set()


def test_what_wandb_needs_is_asked_for_before_anything_is_computed(monkeypatch, tmp_path):
    check_wandb("")
    settings = stand_in(monkeypatch, broken_start)
    monkeypatch.setattr(writers, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r'config.log.wandb=.p.: wandb is not installed: pip install "mmrl\[wandb\]"'
    ):
        check_wandb("p")
    monkeypatch.setattr(writers, "find_spec", lambda name: name)
    (tmp_path / "netrc").write_text("machine elsewhere.test login user password x\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match="wandb knows no key: run wandb login, or set WANDB_MODE=offline"):
        check_wandb("p")
    settings.api_key = "key"
    check_wandb("p")
    settings.api_key = None
    (tmp_path / ".netrc").write_text("machine wandb.test login user password key\n")
    (tmp_path / ".netrc").chmod(0o600)
    check_wandb("p")
    (tmp_path / ".netrc").unlink()
    settings.mode = "offline"
    check_wandb("p")


@pytest.mark.exhaustive
def test_a_run_with_wandb_has_token_perception(offline, smoke_config, monkeypatch, tmp_path):
    from mmrl.train.stages import run

    seen: dict[int, list[HeldoutExample]] = {}
    show = Wandb.show

    def noted(self, step, shown):
        seen[step] = shown
        show(self, step, shown)

    monkeypatch.setattr(Wandb, "show", noted)
    train = dataclasses.replace(smoke_config.train, steps=1)
    run(dataclasses.replace(smoke_config, log=LogConfig(wandb="project"), train=train), tmp_path / "run")
    told = sent(tmp_path / "run", 0)
    assert b"heldout/accuracy" in told
    assert b"media/html/" in told
    assert set(seen) == {0, 1}
    for shown in seen.values():
        assert len({one.row["id"] for one in shown}) == 8
        for one in shown:
            assert "".join(one.pieces) == one.row["response"]
            assert len(one.perception) == len(one.pieces) == len(one.row["tokens"])
            assert np.isfinite(one.perception).all()
            assert one.perception.max() > 0
