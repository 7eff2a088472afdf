"""Whole runs, compared by what they have logged."""

from pathlib import Path

import pytest

from experiments.faults.compare import TIMES
from mmrl.run_folder import read_metrics


def without_times(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in rows]


def assert_same_run(left: Path, right: Path) -> None:
    """The same responses, and every metric of both stages within 1e-5, times apart."""
    for stage in (".", "cold_start"):
        ours, theirs = (without_times(read_metrics(folder / stage)) for folder in (left, right))
        assert len(ours) == len(theirs) > 0
        for row, other in zip(ours, theirs, strict=True):
            assert row.keys() == other.keys()
            assert row.get("rollout/digest") == other.get("rollout/digest"), row["step"]
            for name, value in row.items():
                # Differences of nearly equal logprobs: rounding is all there is to compare.
                bound = 1e-6 if name.startswith(("sampler/", "perception/", "loss/approx_kl")) else 1e-8
                assert other[name] == pytest.approx(value, rel=1e-5, abs=bound), (row["step"], name)
    for name in ("responses_before.jsonl", "responses_after.jsonl"):
        assert (left / name).read_text() == (right / name).read_text()
