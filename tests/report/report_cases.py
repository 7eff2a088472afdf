"""Runs and rollouts that are made up, and texts that try to be more than text."""

import dataclasses
import io
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image

from mmrl.analysis import RolloutView, TokenPerception, error_kind
from mmrl.config import Config, DataConfig, TrainConfig
from mmrl.sample import Sample

HOSTILE = (
    "</script><script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 1'>",
    "<!-- <script>",
    "{{ 7 * 7 }}{% for %}",
    "\u202eright to left\u202c \u2066isolated\u2069",
    "a\x00b\x1b[31m\x7f",
    "half \ud83d of a letter",
    "line\u2028separator\u2029",
    "one\u200d\ttwo\nthree & &lt; \"quoted\" 'so'",
    "x" * 100_000,
)
ERRORS = ("perception_error", "reasoning_error", "format_error")
EVERY = 5  # steps from one evaluation to the next


def metrics_rows(steps: int, shift: float = 0.0) -> list[dict[str, float]]:
    """What a run of two data sets logs, evaluations among it."""
    rows: list[dict[str, float]] = []
    for step in range(steps + 1):
        row: dict[str, float] = {"step": step}
        if step % EVERY == 0:
            row |= {"heldout/accuracy": 0.5 + 0.3 * step / steps + shift, "heldout/length": 8.0}
            row |= {f"heldout/{name}": 0.2 - 0.1 * step / steps for name in ERRORS}
            row |= {f"heldout/{name}.parquet/accuracy": 0.5 for name in "ab"}
        if step:
            wave = math.sin(step) / 10
            row |= {"reward/accuracy": 0.5 + wave, "reward/mean": 0.6 + wave, "reward/format": 0.9}
            row |= {f"reward/{name}": 0.1 + wave for name in ERRORS}
            row |= {f"source/{name}.parquet/accuracy": 0.4 + wave for name in "ab"}
            row |= {"policy/reference_kl": 0.01 * step, "loss/perception_kl": 0.1 + wave / 10}
            row |= {"policy/sampled_entropy": 0.5, "loss/corrupted_sampled_entropy": 0.7 + wave}
            row |= {"response/length": 8.0 + wave, "response/truncated": 0.02, "loss/ratio": 1.00001}
            row |= {"loss/clip_low": 0.01, "loss/clip_high": 0.02, "loss/gradient_norm": math.exp(5 * wave)}
            row |= {"perception/mean": 0.2, "perception/p50": 0.0, "perception/p90": 0.6, "own/metric": 3.0}
            row |= {"sampler/logprob_difference_mean": 0.01, "sampler/logprob_difference_max": 0.1}
            row |= {"sampler/cut_mass_mean": 0.03, "sampler/cut_mass_max": 0.1}
            row |= {"time/step": 1.5, "time/rollout": 1.0, "time/update": 0.45, "time/data": 0.001}
            row |= {"rollout/tokens_per_second": 1000.0, "loss/loss": wave}
        rows.append(row)
    return rows


def response_rows(texts: tuple[str, ...]) -> list[dict]:
    """A held-out response of each text, every second of them right, the others wrong in turn."""
    rows = []
    for k, text in enumerate(texts):
        errors = {name: float(k % 2 and k // 2 % 3 == place) for place, name in enumerate(ERRORS)}
        question = {"id": f"a.parquet:{k}", "source": "ab"[k % 2], "problem": f"<image>Why? {text[:99]}"}
        graded = {"reward": 0.5, "accuracy": float(k % 2 == 0), **errors}
        rows.append({**question, "answer": text[:99], "response": text, "tokens": [1, 2], **graded})
    return rows


def write_run(
    folder: Path,
    *,
    steps: int = 20,
    name: str = "papo_g",
    seed: int = 0,
    texts: tuple[str, ...] = HOSTILE,
    finished: bool = True,
    heldout: str = "heldout.parquet",
) -> Path:
    """The folder of a run as `mmrl train` leaves it, without weights and data."""
    folder.mkdir(parents=True)
    data, train = DataConfig(train="train.parquet", heldout=heldout), TrainConfig(steps=steps)
    config = dataclasses.replace(Config(), data=data, train=train, algorithm={"name": name}, seed=seed)
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    rows = metrics_rows(steps, 0.01 * seed)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for when in ("before", "after") if heldout else ():
        lines = [json.dumps(row) + "\n" for row in response_rows(texts)]
        (folder / f"responses_{when}.jsonl").write_text("".join(lines))
    if finished:
        (folder / "summary.json").write_text(json.dumps({"seconds": 75.0}))
    return folder


def png_of(colour: str, side: int = 28) -> bytes:
    """A picture of one colour, as the bytes of a PNG file."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(file, "PNG")
    return file.getvalue()


def shown(row: dict, pieces: tuple[str, ...]) -> RolloutView:
    """A rollout as `mmrl.analysis.rollout_sample` gives it."""
    values = np.linspace(0, 2, len(pieces), dtype=np.float32)
    return RolloutView(
        sample=Sample(id=row["id"], problem=row["problem"], answer=row["answer"]),
        row=row,
        kind=error_kind(row),
        perception=TokenPerception(
            tokens=np.arange(len(pieces)),
            pieces=pieces,
            logprob=-values,
            corrupted=-2 * values,
            entropy=values / 2,
            exact=values,
            k3=values * 1.1,
        ),
        images=(png_of("red"),),
        corrupted=(png_of("black"),),
    )


def rollouts_shown(run, count: int, **_) -> list[RolloutView]:
    """In place of `mmrl.analysis.rollout_sample`: responses cut into pieces of up to nine characters."""
    told = []
    for row in run.after[:count]:
        text = row["response"]
        size = max(9, len(text) // 1000)
        told.append(shown(row, (*(text[k : k + size] for k in range(0, len(text), size)), "")))
    return told
