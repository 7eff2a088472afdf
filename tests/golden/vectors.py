"""Reads golden vectors: numbers from the official implementations, described by a manifest."""

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN_DIR = Path(
    os.environ.get("MMRL_GOLDEN_DIR", Path(__file__).resolve().parents[2] / "third_party" / "golden")
)


@dataclass(frozen=True)
class Source:
    """A function of a reference implementation."""

    repo: str  # "owner/name"
    commit: str
    file: str
    function: str

    @property
    def project(self) -> str:
        return self.repo.split("/")[-1]


@dataclass(frozen=True, eq=False)
class Case:
    """One run of a reference: what went in, the hyper-parameters and what came out."""

    id: str
    family: str  # such as "01_advantages"
    sources: tuple[Source, ...]  # the first is the function that made the outputs
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    hparams: dict[str, Any]
    tags: frozenset[str]
    notes: str

    @property
    def source(self) -> Source:
        return self.sources[0]

    @property
    def project(self) -> str:
        return self.source.project

    @property
    def function(self) -> str:
        return self.source.function


@cache
def manifest() -> dict[str, Any]:
    return json.loads((GOLDEN_DIR / "manifest.json").read_text())


def family_name(number: str) -> str:
    """The full name of the family whose name begins with ``number`` (such as "01")."""
    names = [name for name in manifest()["families"] if name.startswith(number)]
    if len(names) != 1:
        raise ValueError(f"{GOLDEN_DIR}/manifest.json: no single family begins with {number!r}: {names}")
    return names[0]


@cache
def cases(number: str) -> tuple[Case, ...]:
    """All cases of the family whose name begins with ``number``, excluded ones included."""
    name = family_name(number)
    family = manifest()["families"][name]
    with np.load(GOLDEN_DIR / family["file"], allow_pickle=False) as arrays:
        stored = {key: arrays[key] for key in arrays.files}
    return tuple(_case(name, entry, stored) for entry in family["cases"])


def tables(number: str) -> dict[str, Any]:
    """The JSON tables of a family that has them (rewards: rows of text and scores)."""
    family = manifest()["families"][family_name(number)]
    return json.loads((GOLDEN_DIR / family["json_file"]).read_text())


def _case(family: str, entry: dict[str, Any], stored: dict[str, np.ndarray]) -> Case:
    sources = entry["source"] if isinstance(entry["source"], list) else [entry["source"]]
    return Case(
        id=entry["id"],
        family=family,
        sources=tuple(Source(s["repo"], s["commit"], s["file"], s["function"]) for s in sources),
        inputs={name: stored[key] for name, key in entry["inputs"].items()},
        outputs={name: stored[key] for name, key in entry["outputs"].items()},
        hparams=entry["hparams"],
        tags=frozenset(entry.get("tags") or ()),
        notes=entry.get("notes") or "",
    )
