"""Writers of a run's metrics: JSON lines, TensorBoard, Weights & Biases; each has the same three methods."""

import html
import json
import netrc
import os
import queue
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

import numpy as np
from jaxtyping import Float
from PIL import Image
from tensorboardX import SummaryWriter

from mmrl.atomic import atomic_write

WAITING = 256  # steps that wandb may be behind; what is more is left out
CLOSE_S = 60.0  # that the end of a run waits for wandb


@dataclass(frozen=True)
class HeldoutExample:
    """A held-out response with its images. Its texts are data, never markup."""

    row: Mapping[str, Any]  # of responses_after.jsonl
    images: tuple[Image.Image, ...]  # small
    pieces: tuple[str, ...]  # of its text, one for each token
    perception: Float[np.ndarray, "r"] | None  # of each token, in nats; None where it was not asked for


@runtime_checkable
class Writer(Protocol):
    """Takes the figures of each step and, at evaluations, some responses."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """The figures of a step, by their names."""

    def show(self, step: int, shown: Sequence[HeldoutExample]) -> None:
        """Some responses of the evaluation after a step."""

    def close(self) -> None:
        """Nothing comes any more."""


class JsonLines:
    """``metrics.jsonl``: a row a step, which is on the disk when `write` returns. It shows no responses."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        row = {"step": step, **{name: round(float(value), 8) for name, value in sorted(values.items())}}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def show(self, step: int, shown: Sequence[HeldoutExample]) -> None:
        """Held-out responses have files of their own."""

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Event files; figures of steps from ``first`` on take the place of those that are there."""

    def __init__(self, folder: Path, first: int) -> None:
        self._board = SummaryWriter(str(folder), purge_step=first)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, float(value), step)

    def show(self, step: int, shown: Sequence[HeldoutExample]) -> None:
        for k, example in enumerate(shown):
            self._board.add_text(f"heldout/{k}", _to_markdown(example), step)
            for n, image in enumerate(example.images):
                self._board.add_image(f"heldout/{k}/image{n}", np.asarray(image), step, dataformats="HWC")
        self._board.flush()

    def close(self) -> None:
        self._board.close()


class Wandb:
    """A run on Weights & Biases, which goes on in the same one when the run does (``wandb.json``).

    A thread of its own talks to it: one that is slow or fails leaves out figures, says so once, and keeps
    nothing waiting but the end of the run, that for at most `CLOSE_S`.
    """

    def __init__(
        self, project: str, workdir: Path, config: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        self._say, self._warned = say, False
        self._jobs: queue.Queue[Callable[[Any], None] | None] = queue.Queue(WAITING)
        start: dict[str, Any] = {"project": project, "id": _run_id(workdir), "name": workdir.resolve().name}
        start |= {"dir": str(workdir), "config": dict(config)}
        self._thread = threading.Thread(target=self._run, args=(start,), daemon=True, name="wandb")
        self._thread.start()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        row = {"step": step, **values}
        self._put(lambda run: run.log(row))

    def show(self, step: int, shown: Sequence[HeldoutExample]) -> None:
        self._put(lambda run: run.log({"step": step, "responses": _table(shown)}))

    def close(self) -> None:
        self._put(None)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self._fail("it has not taken everything yet")

    def _put(self, job: Callable[[Any], None] | None) -> None:
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            self._fail("it is too slow")

    def _fail(self, why: str | Exception) -> None:
        if isinstance(why, Exception):
            why = f"{type(why).__name__}: {why}".partition("\n")[0]
        if not self._warned:
            self._warned = True
            self._say(f"warning: wandb lacks figures of this run, which goes on: {why}")

    def _run(self, start: dict[str, Any]) -> None:
        """Of the thread: do what is asked until the end; after a failure of the start, nothing."""
        run: Any = None
        try:
            import wandb

            quiet = wandb.Settings(console="off", silent=True)
            run = wandb.init(**start, resume="allow", settings=quiet)
            run.define_metric("step")
            run.define_metric("*", step_metric="step")
            self._say(f"wandb     {run.dir if run.offline else run.url}")
        except Exception as error:
            self._fail(error)
        while (job := self._jobs.get()) is not None:
            if run is not None:
                self._try(job, run)
        if run is not None:
            self._try(lambda run: run.finish(), run)

    def _try(self, job: Callable[[Any], None], run: Any) -> None:
        try:
            job(run)
        except Exception as error:
            self._fail(error)


def check_wandb(project: str) -> None:
    """Raises ValueError if wandb is asked for and cannot be used: with the fix."""
    if not project:
        return
    if find_spec("wandb") is None:
        raise ValueError(f'config.log.wandb={project!r}: wandb is not installed: pip install "mmrl[wandb]"')
    import wandb

    settings = wandb.setup().settings
    host = urlsplit(settings.base_url).hostname or ""
    if settings.mode == "online" and not (settings.api_key or _logged_in(host)):
        raise ValueError(
            f"config.log.wandb={project!r}: wandb knows no key: run wandb login, or set WANDB_MODE=offline"
        )


def _logged_in(host: str) -> bool:
    """True if ``wandb login`` has left a key."""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _run_id(workdir: Path) -> str:
    """The id of the run on wandb that belongs to the folder."""
    path = workdir / "wandb.json"
    try:
        found = json.loads(path.read_text())["id"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if not isinstance(found, str):
        found = secrets.token_hex(4)
        atomic_write(path, json.dumps({"id": found}) + "\n")
    return found


def _table(shown: Sequence[HeldoutExample]) -> Any:
    import wandb

    texts = ("problem", "answer", "response", "reward")
    table = wandb.Table(columns=["id", "image", *texts, "accuracy", "tokens"])
    for example in shown:
        images = [wandb.Image(image) for image in example.images]
        table.add_data(
            example.row["id"],
            images[0] if len(images) == 1 else images or None,
            *(example.row[name] for name in texts),
            example.row.get("accuracy"),
            wandb.Html(_color_tokens(example)),
        )
    return table


def _color_tokens(example: HeldoutExample) -> str:
    """The tokens as HTML, darker the more each owes to the image; the number is shown under the pointer."""
    if example.perception is None:
        return html.escape("".join(example.pieces))
    most = max(float(example.perception.max(initial=0.0)), 1e-9)
    return "".join(
        f'<span title="{value:.4f} nats" style="background:rgba(255,140,0,{max(value, 0) / most:.2f})">'
        f"{html.escape(piece)}</span>"
        for piece, value in zip(example.pieces, example.perception.tolist(), strict=True)
    )


def _to_markdown(example: HeldoutExample) -> str:
    """The texts as blocks of code, in which no mark means anything."""
    parts = [f"reward {example.row['reward']:g}"]
    for name in ("problem", "answer", "response"):
        parts += [f"**{name}**", "\n".join(f"    {line}" for line in example.row[name].splitlines())]
    return "\n\n".join(parts)
