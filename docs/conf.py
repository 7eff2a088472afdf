"""How the manual becomes a site: `make docs`. The pages are written to be read on GitHub too."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

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


def with_modules(app: Sphinx, page: str, source: list[str]) -> None:
    """A page api/ROOM.md is followed by what the docstrings of that room's modules say."""
    folder, _, room = page.rpartition("/")
    if folder != "api":
        return
    files = DOCS.parent / "mmrl" / room
    names = [f".{path.stem}" for path in sorted(files.glob("[!_]*.py"))]
    if (files / "__init__.py").read_text().strip():
        names = ["", *names]
    blocks = [
        f"## mmrl.{room}{name}\n\n```{{eval-rst}}\n.. automodule:: mmrl.{room}{name}\n   :members:\n```\n"
        for name in names
    ]
    source[0] += "\n" + "\n".join(blocks)


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
    app.connect("source-read", with_modules)
    app.connect("autodoc-process-docstring", as_rst, priority=900)
