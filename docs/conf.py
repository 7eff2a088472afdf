"""How the manual becomes a site: `make docs`. The pages are written to be read on GitHub too."""

from __future__ import annotations

import inspect
import os
import re
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path

from sphinx.application import Sphinx

from mmrl import cli
from mmrl.config import Config

DOCS = Path(__file__).parent

project = "mmrl"
author = "the authors of mmrl"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "mmrl"
html_copy_source = False
html_show_sphinx = False

# Links are written as GitHub reads them: to files, and to headings by their words.
myst_heading_anchors = 3
myst_links_external_new_tab = False
# Notebooks, which are kept without outputs, are executed on the run and the sweep that `make docs` names.
nb_execution_mode = "force" if os.environ.get("MMRL_RUN") else "off"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_execution_show_tb = True

# Types are shown as they stand in the code; they are no links, here or to manuals on the network.
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
napoleon_custom_sections = ["Returns"]  # read as text
nitpick_ignore_regex = [("py:.*", ".*")]


def with_reference(app: Sphinx, page: str, source: list[str]) -> None:
    """A page api/NAME.md is followed by what it is the reference of."""
    folder, _, name = page.rpartition("/")
    if folder == "api":
        make = {"commands": options_of_commands, "config": keys_of_config}.get(name)
        source[0] += "\n" + (make() if make else docstrings_of(name))


def options_of_commands() -> str:
    """The help of each command."""
    os.environ["COLUMNS"] = "100"
    return "\n".join(f"## mmrl {name}\n\n```text\n{text}\n```\n" for name, text in cli.help_texts())


def keys_of_config() -> str:
    """A table of keys for each section of the config: type and default of a field, and the comments on it."""
    sections = {"": Config, **{field.name: field.default_factory for field in fields(Config) if made(field)}}
    return "\n".join(
        f"## {f'config.{name}' if name else 'config'}\n\n{(section.__doc__ or '').strip()}\n\n"
        f"| key | type | default | |\n|---|---|---|---|\n{rows_of(section)}\n"
        for name, section in sections.items()
    )


def made(field: Field) -> bool:
    return is_dataclass(field.default_factory)


def rows_of(section: type) -> str:
    comments, above, rows = {}, [], []
    for line in inspect.getsource(section).splitlines():
        code, _, comment = line.partition("#")
        if not code.strip():
            above.append(comment.strip())
        elif found := re.match(r" {4}(\w+):", code):
            comments[found[1]], above = " ".join([*above, comment.strip()]).strip(), []
        else:
            above = []
    for field in fields(section):
        if made(field) and section is Config:
            continue
        default = field.default_factory() if field.default is MISSING else field.default
        kind = field.type.__name__ if type(field.type) is type else str(field.type)
        cells = [
            f"`{field.name}`",
            f"`{kind.replace('typing.', '')}`",
            f"`{default!r}`",
            comments.get(field.name, ""),
        ]
        rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(rows)


def docstrings_of(room: str) -> str:
    """The docstrings of a room's modules."""
    files = DOCS.parent / "mmrl" / room
    names = [f".{path.stem}" for path in sorted(files.glob("[!_]*.py"))]
    if (files / "__init__.py").read_text().strip():
        names = ["", *names]
    blocks = [
        f"## mmrl.{room}{name}\n\n```{{eval-rst}}\n.. automodule:: mmrl.{room}{name}\n   :members:\n```\n"
        for name in names
    ]
    return "\n".join(blocks)


def as_rst(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Docstrings are plain text: what stands between backticks is code, and no other mark means anything."""
    parts = re.split(r"(``.+?``|`[^`]+`)", "\n".join(lines))
    text = "".join(
        f"``{part.strip('`')}``" if k % 2 else re.sub(r"([*|\\]|_\b)", r"\\\1", part)
        for k, part in enumerate(parts)
    )
    lines[:] = text.split("\n")


def as_written(
    app: Sphinx,
    what: str,
    name: str,
    thing: object,
    options: object,
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    """Arrays under the name that the code has for them."""
    short = [text and text.replace("jaxlib._jax.Array", "Array") for text in (signature, returns)]
    return short[0], short[1]


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", as_written)
    app.connect("source-read", with_reference)
    app.connect("autodoc-process-docstring", as_rst, priority=900)
