"""The public data sets that are trained and evaluated on: where they are, their layouts, how to convert them.

``registry.toml`` beside this file holds what is known, and says what its keys mean. Nothing is downloaded.
"""

from __future__ import annotations

import textwrap
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mmrl.suggest import suggest
from mmrl.terminal import table_lines
from mmrl.typed import dataclass_from_dict

FILE = Path(__file__).with_suffix(".toml")
WIDTH = 100  # characters of a line


@dataclass(frozen=True)
class Form:
    """One way in which a data set is published."""

    where: str  # a repository of data sets ("owner/name"), or what else it is known by
    data: str  # the data set once converted, or as it lies below DIR if it is in the schema
    columns: tuple[str, ...]
    splits: Mapping[str, int]  # rows; 0: not documented
    licence: str
    checked: str  # what this was taken from
    unpack: str = ""  # what must be unpacked before
    steps: tuple[str, ...] = ()  # commands that convert it
    note: str = ""
    papers: bool = False  # the rows that PAPO or VPPO report on


@dataclass(frozen=True)
class Entry:
    """A data set."""

    title: str
    use: tuple[str, ...]  # "train", "eval"
    about: str
    verifier: str
    forms: tuple[Form, ...] = field(default=())


def read_registry() -> dict[str, Entry]:
    """Every entry by its name. Raises ValueError for a key or type that the file should not have."""
    found = {}
    for name, values in tomllib.loads(FILE.read_text(encoding="utf-8")).items():
        forms = tuple(dataclass_from_dict(Form, form, f"{name}.forms") for form in values.pop("forms"))
        found[name] = dataclass_from_dict(Entry, {**values, "forms": forms}, name)
    return found


def entry(registry: Mapping[str, Entry], name: str) -> Entry:
    """The entry of that name. Raises ValueError naming the nearest if there is none."""
    if name not in registry:
        raise ValueError(f"no data set {name!r} is known{suggest(name, registry)}")
    return registry[name]


def table(registry: Mapping[str, Entry], use: str = "") -> str:
    """The entries (for one use) as text: a line with name, use, verifier, rows, licence, where for each."""
    head = ("name", "use", "verifier", "rows", "licence", "where")
    rows = [
        (name, ", ".join(entry.use), entry.verifier, _rows(form), form.licence, form.where)
        for name, entry in registry.items()
        if not use or use in entry.use
        for form in (_original(entry),)
    ]
    return "\n".join(table_lines([head, *rows]))


def describe(name: str, entry: Entry) -> str:
    """All that is known of an entry, with the commands that convert it, as text."""
    lines = [f"{name}: {entry.title} ({', '.join(entry.use)})", *textwrap.wrap(entry.about, WIDTH)]
    lines.append(f"graded by {entry.verifier}")
    for form in entry.forms:
        lines += ["", form.where + (", the rows of the papers" if form.papers else "")]
        rows = ", ".join(f"{split} {count or '?'}" for split, count in form.splits.items())
        facts = {
            "rows": rows,
            "columns": ", ".join(form.columns),
            "licence": form.licence,
            "taken from": form.checked,
            "note": form.note,
            "unpack": form.unpack,
            "in the schema": "" if form.steps else f'--config.data.train="{form.data}"',
        }
        for key, text in facts.items():
            if text:
                lines += textwrap.wrap(text, WIDTH, initial_indent=f"  {key}: ", subsequent_indent="    ")
        lines += [f"  {step}" for step in form.steps]
    lines += ["", "DIR: where you downloaded it to. Then look at it: mmrl data inspect FILE"]
    return "\n".join(lines)


def _original(entry: Entry) -> Form:
    """Of several forms that which its authors published: not the papers' selection."""
    return next((form for form in entry.forms if not form.papers), entry.forms[0])


def _rows(form: Form) -> str:
    total = sum(form.splits.values())
    return f"{total:,}" if all(form.splits.values()) else f"over {total:,}" if total else "?"
