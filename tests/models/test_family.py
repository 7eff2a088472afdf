"""The seam of model families: nothing outside of `mmrl.models` knows one by name."""

import ast
from pathlib import Path

import mmrl
from mmrl.models.family import FAMILIES

ROOT = Path(mmrl.__file__).parent


def _plain(name):
    return name.lower().replace("_", "").replace(".", "")


def _names(tree):
    """Names that code uses: imported, read, or a string that is a family's key."""
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom():
                yield from [node.module or "", *(alias.name for alias in node.names)]
            case ast.Import():
                yield from [alias.name for alias in node.names]
            case ast.Name():
                yield node.id
            case ast.Attribute():
                yield node.attr
            case ast.Constant(value=str() as value) if value in FAMILIES:
                yield value


def test_no_family_is_named_outside_of_models():
    families = [_plain(name) for name in FAMILIES]
    found = [
        (str(path.relative_to(ROOT)), name)
        for path in ROOT.rglob("*.py")
        if path.relative_to(ROOT).parts[0] != "models"
        for name in _names(ast.parse(path.read_text()))
        if any(family in _plain(name) for family in families)
    ]
    assert not found
    inside = (ROOT / "models" / "family.py").read_text()
    assert any(families[0] in _plain(name) for name in _names(ast.parse(inside)))  # the search finds names
