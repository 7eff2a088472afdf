"""Which files a path names: one file, a folder of files, a dataset repository's splits, an image folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

SUFFIXES = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
METADATA = {"metadata.jsonl": "jsonl", "metadata.csv": "csv", "metadata.parquet": "parquet"}
# The hub's name of a part; older ones end in a hash.
SHARD = re.compile(r"(?P<split>.+)-(?P<shard>\d{5})-of-(?P<shards>\d{5})(?:-[0-9a-f]{16})?")
TFDS_FILES = ("dataset_info.json", "features.json")  # what a directory written by TFDS holds
SPLIT_FOLDER = "data"  # where a dataset repository keeps its files


class Layout(NamedTuple):
    """The files of a data set."""

    kind: str  # "parquet", "jsonl", "csv" or "tfds"
    files: tuple[Path, ...]  # of "tfds": its directory
    root: Path  # relative image paths start here
    described: bool = False  # an image folder's rows, which name their image in "file_name"


def located(spec: str | Path) -> tuple[Path, str]:
    """The absolute path of "PATH" or of "DIR:SPLIT", and the split ("" if none is named)."""
    path = Path(spec).absolute()
    text = str(path)
    for colon in [] if path.exists() else re.finditer(":", text):  # a split may hold one: "train[:10%]"
        if Path(text[: colon.start()]).is_dir() and text[colon.end() :]:
            return Path(text[: colon.start()]), text[colon.end() :]
    return path, ""


def layout(path: Path, split: str = "") -> Layout:
    """What lies at a path. ``split`` picks among the parts of a directory.

    Raises ValueError naming the path and the mend: nothing there, no kind of file that is known, several
    kinds, several splits of which none is picked, a split or a part that is not there.
    """
    if not path.exists():
        raise ValueError(f"data file {path} does not exist")
    if not path.is_dir():
        return Layout(_kind(path), (path,), path.parent)
    if all((path / name).is_file() for name in TFDS_FILES):
        return Layout("tfds", (path,), path)
    if split and (path / split).is_dir():
        return layout(path / split)
    described = [path / name for name in METADATA if (path / name).is_file()]
    if len(described) > 1:
        names = ", ".join(file.name for file in described)
        raise ValueError(f"directory {path} holds {names}: leave one of them")
    if described and not split:
        return Layout(METADATA[described[0].name], tuple(described), path, described=True)
    files = _files(path) or _files(path / SPLIT_FOLDER)
    if not files:
        raise _no_files(path, split)
    files = _of_split(path, files, split)
    kinds = {_kind(file) for file in files}
    if len(kinds) > 1:
        raise ValueError(f"directory {path} holds parquet and JSONL files; name one file, or split them")
    return Layout(kinds.pop(), tuple(files), path)


def _kind(file: Path) -> str:
    if not file.is_file():
        raise ValueError(f"{file} is neither a file nor a directory")
    if file.suffix not in SUFFIXES:
        raise ValueError(f"{file}: not a parquet or JSONL file; its name must end in {', '.join(SUFFIXES)}")
    return SUFFIXES[file.suffix]


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES and file.is_file())


def _no_files(path: Path, split: str) -> ValueError:
    """An error that names the folders below which could have been meant."""
    parts = sorted(
        folder.name
        for folder in path.iterdir()
        if folder.is_dir() and (_files(folder) or any((folder / name).is_file() for name in METADATA))
    )
    if parts:
        what = f"has no split {split!r}" if split else "holds several splits or parts"
        return ValueError(f"directory {path} {what}; name one of them: {_named(path, parts)}")
    return ValueError(f"directory {path} holds no file ending in {', '.join(SUFFIXES)}")


def _of_split(path: Path, files: Sequence[Path], split: str) -> list[Path]:
    """The files of a split, or all of them where they are not named after splits."""
    shards = {file: SHARD.fullmatch(file.stem) for file in files}
    names = {file: match["split"] if match else file.stem for file, match in shards.items()}
    if not split:
        splits = sorted({names[file] for file, match in shards.items() if match})
        if not splits:
            return list(files)
        if len(set(names.values())) > 1:
            every = sorted(set(names.values()))
            raise ValueError(f"directory {path} holds several splits; name one: {_named(path, every)}")
        split = splits[0]
    chosen = [file for file in files if names[file] == split]
    if not chosen:
        raise ValueError(
            f"directory {path} has no split {split!r}; name one of them:"
            f" {_named(path, sorted(set(names.values())))}"
        )
    there = {int(match["shard"]) for file in chosen if (match := shards[file])}
    wanted = max((int(match["shards"]) for file in chosen if (match := shards[file])), default=0)
    absent = sorted(set(range(wanted)) - there)
    if absent:
        raise ValueError(f"directory {path}: part {absent[0]} of {wanted} of the split {split!r} is missing")
    return chosen


def _named(path: Path, splits: Sequence[str]) -> str:
    return ", ".join(f"{path}:{split}" for split in splits)
