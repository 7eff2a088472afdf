"""Rollouts for a page: of `mmrl.analysis.rollout_sample`, or what there is without the weights."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from mmrl.analysis import Run, Shown, error_kind, rollout_sample
from mmrl.analysis.runs import choose_evenly
from mmrl.data.inspection_examples import encoded
from mmrl.report.page import rounded

SIDE = 512  # pixels of the longer side of a picture
Row = Mapping[str, Any]
_TEXTS = ("id", "source", "problem", "answer", "response", "tokens", "reward")  # of a row; the rest are parts


def entries(
    run: Run, number: int, count: int, say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], str]:
    """``count`` rollouts of the run, the page's ``number``-th, and why they are not all there is to see ("").

    Where tokens cannot be measured, responses are shown without; where there is none, nothing is.
    """
    if not run.after and not run.before:
        return [], "no held-out responses yet" if run.config.data.heldout else "no held-out data"
    when = "after" if run.after else "before"
    try:
        shown = rollout_sample(run, count, when=when, progress=lambda k, n: say(f"measured {k} of {n}"))
    except ValueError as error:
        why = str(error)
        rows = choose_evenly(run.after or run.before, count)
        return [_entry(run, number, row, why=why) for row in rows], why
    return [_measured(run, number, one) for one in shown], ""


def _measured(run: Run, number: int, one: Shown) -> dict[str, Any]:
    seen = one.perception
    return {
        **_entry(run, number, one.row),
        "pieces": list(seen.pieces),
        "exact": rounded(seen.exact),
        "k3": rounded(seen.k3),
        "entropy": rounded(seen.entropy),
        "logprob": rounded(seen.logprob),
        "images": [_address(image) for image in one.images],
        "corrupted": [_address(image) for image in one.corrupted],
    }


def _entry(run: Run, number: int, row: Row, why: str = "") -> dict[str, Any]:
    earlier = [one for one in run.before if one["id"] == row["id"]] if run.after else []
    group = [one for one in run.after or run.before if one["id"] == row["id"]]
    before = {
        "response": earlier[0]["response"],
        "kind": error_kind(earlier[0]),
        "group": _right(earlier),
    } if earlier else None  # fmt: skip
    return {
        "run": number,
        "id": row["id"],
        "source": row.get("source", ""),
        "kind": error_kind(row),
        "problem": row["problem"],
        "answer": row["answer"],
        "pieces": [row["response"]],
        "reward": row.get("reward"),
        "parts": {key: value for key, value in row.items() if key not in _TEXTS},
        "group": _right(group),
        "before": before,
        "images": [],
        "corrupted": [],
        "why": why,
    }


def _right(rows: Sequence[Row]) -> list[int]:
    """How many of them are right, and how many they are."""
    return [sum(error_kind(row) == "right" for row in rows), len(rows)]


def _address(image: bytes) -> str:
    """A picture as an address that holds it."""
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    picture.thumbnail((SIDE, SIDE))
    kind, data = encoded(picture)
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
