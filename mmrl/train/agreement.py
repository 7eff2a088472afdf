"""Agreement of the processes of a run: compared before the first step, refused in one line."""

import dataclasses
import hashlib
import platform
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import mmrl
from mmrl import hosts
from mmrl.config import Config
from mmrl.run_folder import flat
from mmrl.train.checkpoint import saved_steps
from mmrl.train.environment import versions

SEEN_S = 30.0  # until a network file system shows what another host has written
LAST_WORDS_S = 2.0  # the first process ends so much later: its end is the others' at once
_FILE = re.compile(r"(.+\.py):\w+")  # a function of the user's, as a config names it
_END = 1 << 20  # bytes at either end of a large file that count
_SETTINGS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl")


def check_start(config: Config, workdir: Path) -> None:
    """Compare over the processes what a run is made of, before its folder is written or its data is read.

    Raises:
      ValueError: in every process, naming what differs: config, code, versions, devices, or the folder.
    """
    if jax.process_count() > 1:
        agree(start_facts(config), hosts.gather_early)
        check_folder(workdir)
        agree(
            {
                "steps saved": [
                    saved_steps(workdir / name) for name in ("checkpoints", "cold_start/checkpoints")
                ]
            }
        )


def start_facts(config: Config) -> dict[str, Any]:
    """Config, code, versions, settings and devices of this process, by names for messages."""
    values = {f"config.{key}": value for key, value in flat(dataclasses.asdict(config)).items()}
    files = {match[1] for value in values.values() if (match := _FILE.fullmatch(str(value)))}
    kinds = Counter(device.device_kind for device in jax.local_devices())
    return {
        **values,
        **{f"the file {name}": _digest([Path(name)]) for name in files if Path(name).is_file()},
        "the code of mmrl": _digest(sorted(Path(mmrl.__file__).parent.rglob("*.py"))),
        "python": platform.python_version(),
        **versions(),
        **{name: str(getattr(jax.config, name)) for name in _SETTINGS},
        "devices": ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())),
    }


def check_folder(workdir: Path, exchange: Callable[[Any], list[Any]] = hosts.gather) -> None:
    """Raises ValueError in every process if one sees another folder than the first, whose lock is there."""
    path = workdir / "lock"
    written = exchange(_read(path))[0]
    end = time.monotonic() + SEEN_S
    while _read(path) != written and time.monotonic() < end:
        time.sleep(0.5)
    others = [str(k) for k, seen in enumerate(exchange(_read(path) == written)) if not seen]
    if others:
        _refuse(
            f"--workdir={workdir} is another folder on process {', '.join(others)} than on process 0; all"
            " processes write each checkpoint together: name a folder on a disk that all hosts share"
        )


def agree(facts: Mapping[str, Any], exchange: Callable[[Any], list[Any]] = hosts.gather) -> None:
    """Raises ValueError in every process, naming what differs and where, unless all give the same facts."""
    found = differences(exchange(dict(facts)))
    if found:
        more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
        _refuse(
            f"the processes of this run are not alike: {'; '.join(found[:5])}{more}. Start the same command"
            " with the same files and versions on every host"
        )


def differences(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Facts in which a process differs from the first, as text."""
    first, *_ = facts
    found = []
    for key in dict.fromkeys(key for part in facts for key in part):
        other = [k for k, part in enumerate(facts) if part.get(key) != first.get(key)]
        if other:
            here, there = (_shorten(part.get(key)) for part in (first, facts[other[0]]))
            which = f"process {', '.join(map(str, other))}"
            found.append(f"{key} is {here} on process 0 and {there} on {which}")
    return found


def model_fingerprint(directory: str | Path) -> str:
    """Of the files of a model: small ones whole, of large ones the size and both ends."""
    return _digest(sorted(path for path in Path(directory).iterdir() if path.is_file()))


def _digest(paths: Sequence[Path]) -> str:
    """SHA-256 of names and contents."""
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.parent.name}/{path.name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(_END))
            file.seek(max(_END, size - _END))
            digest.update(file.read())
    return digest.hexdigest()


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _shorten(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text[:12] if re.fullmatch("[0-9a-f]{64}", text) else text[:80]


def _refuse(text: str) -> None:
    if hosts.is_main_process():
        time.sleep(LAST_WORDS_S)
    raise ValueError(text)
