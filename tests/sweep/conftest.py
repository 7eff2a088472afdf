import dataclasses
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def quickstart() -> str:
    return f"{ROOT / 'experiments' / 'quickstart.py'}:smoke"


@pytest.fixture
def standin(tmp_path, monkeypatch):
    """Tells the stand-in for ``mmrl train`` what the runs of a sweep do; returns how it is called.

    ``events()`` gives what they did, as lists of words.
    """
    folder = tmp_path / "standin"
    folder.mkdir()
    monkeypatch.setenv("STANDIN", str(folder))

    def tell(members, *, together=1, seconds=0.0, stage_seconds=0.0, fails=(), heights=None):
        told = {
            one.name: {
                "config": dataclasses.asdict(one.config),
                "together": together,  # each waits until so many run
                "seconds": seconds,
                "stage_seconds": stage_seconds,
                "fails": one.name in fails,
                "heights": (heights or {}).get(one.name, [0.0, 1.0]),
            }
            for one in members
        }
        (folder / "told.json").write_text(json.dumps(told))
        return (sys.executable, "-S", str(Path(__file__).with_name("standin.py")))

    def events():
        path = folder / "events"
        return [line.split() for line in path.read_text().splitlines()] if path.is_file() else []

    tell.events = events
    return tell
