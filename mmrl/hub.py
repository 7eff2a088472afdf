"""Models and data sets by their names on the Hugging Face hub, through huggingface_hub and its cache.

A name is "ORG/NAME" or "ORG/NAME@REVISION" (a branch, a tag or a commit) and, of data,
"ORG/NAME@REVISION:SPLIT". A path that exists comes before a name; "hf:ORG/NAME" is a name whatever exists.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PREFIX = "hf:"
Kind = Literal["model", "dataset"]
_NAME = re.compile(
    r"(?P<prefix>hf:)?(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?:@(?P<revision>[\w./-]+))?(?::(?P<split>.+))?"
)
_ADDRESS = re.compile(r"[a-z][a-z0-9+]+:/")  # "https://", "gs://"; a Path has one of the slashes
# What a path ends in, or begins with, that was meant as a path.
_FILES = (".parquet", ".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".safetensors", ".py")
_MODEL_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]
_WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]
_DATA_FILES = ["*.parquet", "*.jsonl", "*.ndjson", "*.json", "*.csv", "*.arrow"]
_IMAGES = ["*.jpg", "*.jpeg", "*.png", "*.webp", "*.gif", "*.bmp", "*.tif", "*.tiff"]


@dataclass(frozen=True)
class Reference:
    """A repository of the hub, at a revision."""

    repository: str  # "ORG/NAME"
    revision: str  # "main" where none is named
    split: str
    certain: bool  # "hf:" says that it is meant

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}"


def reference(text: str) -> Reference | None:
    """The repository that ``text`` names; None if it is a path: one that exists, or that looks like one."""
    if _ADDRESS.match(text) and not Path(text).exists():
        raise ValueError(
            f"{text}: no address can be read; copy what is there to this machine, or write the ORG/NAME of a"
            " repository on the hub"
        )
    match = _NAME.fullmatch(text)
    if not match:
        if text.startswith(PREFIX):
            raise ValueError(f"{text!r} is no name on the hub: write hf:ORG/NAME, hf:ORG/NAME@REVISION")
        return None
    repository = match["repository"]
    if not match["prefix"] and (
        Path(text).exists() or Path(repository.split("/")[0]).exists() or repository.endswith(_FILES)
    ):
        return None
    return Reference(repository, match["revision"] or "main", match["split"] or "", bool(match["prefix"]))


def fetch(
    name: Reference, kind: Kind, *, commit: str = "", weights: bool = True, offline: bool = False
) -> Path:
    """The folder of the cache with the files of a repository that mmrl reads, downloaded if need be.

    A connection that is cut off is taken up where it ended; a call that was cut off, at the files that are
    not whole yet. ``commit`` comes before the revision; without ``weights``, what a model's weights are read
    with is enough; ``offline`` looks into the cache alone.

    Raises ValueError, in one line with the fix: no such repository or revision, no access, no network.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name.repository,
                repo_type=kind,
                revision=commit or name.revision,
                allow_patterns=_MODEL_FILES if kind == "model" else _DATA_FILES + _IMAGES,
                ignore_patterns=["*/*", *([] if weights else _WEIGHTS)] if kind == "model" else None,
                local_files_only=offline,
            )
        )
    except Exception as error:  # of the hub's library, of the one below it, and of the system
        raise ValueError(f"{name}: {_reason(name, kind, error)}") from error


def local(text: str, kind: Kind, *, commit: str = "", weights: bool = True) -> str:
    """``text`` itself if it is a path, else the path of what it names on the hub, as `fetch` has it."""
    name = reference(text)
    if name is None:
        return text
    folder = fetch(name, kind, commit=commit, weights=weights)
    return f"{folder}:{name.split}" if name.split else str(folder)


def commit_of(folder: Path) -> str:
    """The commit of a folder of the cache."""
    return folder.name


def title(path: Path) -> str:
    """The title of a file or folder: its name, or that of the repository that it is a copy of."""
    if path.parent.name == "snapshots" and "--" in path.parents[1].name:
        return path.parents[1].name.rpartition("--")[2]
    return path.name


def check_push(repository: str) -> None:
    """Make the repository to push to, unless it is there. Raises ValueError if it cannot be pushed to."""
    from huggingface_hub import HfApi, get_token

    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repository):
        raise ValueError(f"--push={repository}: write ORG/NAME")
    if not get_token():
        raise ValueError(f"--push={repository} needs a token of the hub: run hf auth login, or set HF_TOKEN")
    try:
        HfApi().create_repo(repository, exist_ok=True)
        HfApi().auth_check(repository, write=True)
    except Exception as error:
        raise ValueError(f"--push={repository}: {_refusal(error)}") from error


def push(folder: Path, repository: str, message: str) -> str:
    """Upload what a folder holds as one commit; where to look at it. Raises ValueError if that fails."""
    from huggingface_hub import HfApi

    try:
        done = HfApi().upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=message,
            delete_patterns=_WEIGHTS,  # of another export: none of them may stay beside the new ones
        )
    except Exception as error:
        raise ValueError(
            f"--push={repository}: {_refusal(error)}; {folder} is written, so send it again with: hf upload"
            f" {repository} {folder}"
        ) from error
    return str(done.commit_url)


def _refusal(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return "the token may not write there: log in with one that may (hf auth login), or name another"
    return f"the hub did not take it ({_line(error)})"


def _reason(name: Reference, kind: Kind, error: Exception) -> str:
    """Why a repository could not be fetched, and what to do about it."""
    from huggingface_hub import constants, errors

    flag = " --repo-type=dataset" if kind == "dataset" else ""
    there = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name.repository}"
    elsewhere = f"fetch it where there is a network (hf download {name.repository}{flag}), or name a folder"
    path = "" if name.certain else f"there is no path {name.repository}, and on the hub "
    if isinstance(error, errors.GatedRepoError):
        return f"the {kind} is gated: agree to its conditions at {there}, and log in with hf auth login"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{path or 'on the hub '}no {kind} is called so; if it is private, log in with hf auth login or"
            " set HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the {kind} has no revision {name.revision!r}; there are the branches and tags of {there}"
    if isinstance(error, errors.HFValidationError):
        return f"no name on the hub ({_line(error)})"
    chain = _causes(error)
    if any(isinstance(error, errors.OfflineModeIsEnabled) for error in chain) or constants.HF_HUB_OFFLINE:
        return f"{path}it is not whole in the cache, and HF_HUB_OFFLINE forbids the network: {elsewhere}"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return f"{path}it cannot be fetched ({_line(chain[-1])}), nor is it whole in the cache: {elsewhere}"
    if (
        isinstance(error, OSError)
        and error.errno is not None
        and not isinstance(error, errors.HfHubHTTPError)
    ):
        return (
            f"it cannot be written to the cache {constants.HF_HUB_CACHE} ({error.strerror}); HF_HOME moves it"
        )
    return f"the download was cut off ({_line(chain[-1])}); the same command keeps the files that are whole"


def _causes(error: BaseException) -> list[BaseException]:
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def _line(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 200 else text[:197] + "..."
