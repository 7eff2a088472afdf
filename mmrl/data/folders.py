"""The files that a path names: one file, a folder of files, a dataset repository's splits, an image folder.

The only place that says which files a split has.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mmrl.data.files import parse_json
from mmrl.terminal import command

SUFFIXES = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".arrow": "arrow",
}
# What hubs and libraries write beside the data, about it.
NO_DATA = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "features.json")
METADATA = {"metadata.jsonl": "jsonl", "metadata.csv": "csv", "metadata.parquet": "parquet"}
# The hub's name of a part; older ones end in a hash.
SHARD = re.compile(r"(?P<split>.+)-(?P<shard>\d{5})-of-(?P<shards>\d{5})(?:-[0-9a-f]{16})?")
SAVED = "state.json"  # what ``Dataset.save_to_disk`` writes beside its parts, naming them
TFDS_FILES = ("dataset_info.json", "features.json")  # what a directory written by TFDS holds
SPLIT_FOLDER = "data"  # where a dataset repository keeps its files


class Layout(NamedTuple):
    """The files of a data set."""

    kind: str  # "parquet", "arrow", "jsonl", "csv" or "tfds"
    files: tuple[Path, ...]  # of "tfds": its directory
    root: Path  # relative image paths start here
    described: bool = False  # an image folder's rows, which name their image in "file_name"


def locate(spec: str | Path) -> tuple[Path, str]:
    """The absolute path of "PATH" or of "DIR:SPLIT", and the split ("" if none is named)."""
    path = Path(spec).absolute()
    text = str(path)
    for colon in [] if path.exists() else re.finditer(":", text):  # a split may hold one: "train[:10%]"
        if Path(text[: colon.start()]).is_dir() and text[colon.end() :]:
            return Path(text[: colon.start()]), text[colon.end() :]
    return path, ""


def layout(path: Path, split: str = "") -> Layout:
    """The layout of what lies at a path. ``split`` picks among the parts of a directory.

    Raises ValueError naming the path and the fix: nothing there, no kind of file that is known, several
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
        first = [next(file.name for file in files if _kind(file) == kind) for kind in sorted(kinds)]
        raise ValueError(
            f"directory {path} holds files of several kinds, {' and '.join(first)}; name one file, or split"
            " them"
        )
    return Layout(kinds.pop(), tuple(files), path)


def _kind(file: Path) -> str:
    if not file.is_file():
        raise ValueError(f"{file} is neither a file nor a directory")
    if file.suffix not in SUFFIXES:
        hint = f"; or {conversion(file, file.parent)}" if file.suffix in (".csv", ".tsv") else ""
        raise ValueError(
            f"{file}: not a parquet or JSONL file; its name must end in {', '.join(SUFFIXES)}{hint}"
        )
    if file.name in NO_DATA:
        raise ValueError(f"{file} tells about a data set, and is none: name the folder, or a file of data")
    return SUFFIXES[file.suffix]


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    if (folder / SAVED).is_file():
        return _saved_files(folder)
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix in SUFFIXES
        and file.name not in NO_DATA
        and not file.name.startswith(".")  # of macOS, editors and downloads: "._train.parquet"
        and file.is_file()
    )


def _saved_files(folder: Path) -> list[Path]:
    """The parts of a data set that ``Dataset.save_to_disk`` wrote; other Arrow files beside them are caches.

    Raises ValueError naming what cannot be read as it is.
    """
    state = folder / SAVED
    try:
        saved = parse_json(state.read_text(encoding="utf-8"))
        files = [folder / part["filename"] for part in saved["_data_files"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{state} is not what save_to_disk writes: {error!r}") from error
    if saved.get("_indices_data_files") or saved.get("_indices_files"):
        raise ValueError(f"{folder} is a selection of rows: save it again after flatten_indices()")
    absent = [file for file in files if not file.is_file() or file.parent != folder]
    if absent:
        raise ValueError(f"{absent[0]}, which {state} names, is missing")
    return files


def _no_files(path: Path, split: str) -> ValueError:
    """An error that names the folders below which could have been meant."""
    parts = sorted(
        folder.name
        for folder in path.iterdir()
        if folder.is_dir()
        and not folder.name.startswith(".")
        and (_files(folder) or any((folder / name).is_file() for name in METADATA))
    )
    if parts:
        what = f"has no split {split!r}" if split else "holds several splits or parts"
        return ValueError(f"directory {path} {what}; name one of them: {_join(path, parts)}")
    return ValueError(f"directory {path} holds no file ending in {', '.join(SUFFIXES)}")


def _of_split(path: Path, files: Sequence[Path], split: str) -> list[Path]:
    """The files of a split, or all of them where they are not named after splits."""
    shards = {file: SHARD.fullmatch(file.stem) for file in files}
    names = {file: match["split"] if match else file.stem for file, match in shards.items()}
    splits = sorted(set(names.values()))
    if not split:
        if not any(shards.values()):
            return list(files)
        if len(splits) > 1:
            raise ValueError(f"directory {path} holds several splits; name one: {_join(path, splits)}")
        split = splits[0]
    if split not in splits:
        raise ValueError(f"directory {path} has no split {split!r}; name one of them: {_join(path, splits)}")
    chosen = [file for file in files if names[file] == split]
    matches = [match for file in chosen if (match := shards[file])]
    wanted = max((int(match["shards"]) for match in matches), default=0)
    absent = sorted(set(range(wanted)) - {int(match["shard"]) for match in matches})
    if absent:
        raise ValueError(f"directory {path}: part {absent[0]} of {wanted} of the split {split!r} is missing")
    return chosen


def conversion(file: Path | str, images: Path, layout: str = "questions", columns: str = "") -> str:
    """The command that makes rows in the schema of a file in another layout."""
    out = Path(Path(file).name.partition(":")[0]).with_suffix(".rows.parquet")
    words = ["mmrl", "data", "convert", f"--from={layout}", file, f"--images={images}", f"--out={out}"]
    return command(*words, *([f"--columns={columns}"] if columns else []))


def _join(path: Path, splits: Sequence[str]) -> str:
    return ", ".join(f"{path}:{split}" for split in splits)
