"""What a Python file of the user's defines: experiments, verifiers and recipes of one's own."""

import importlib.util
from pathlib import Path
from typing import Any


def defined(where: str, path: str, name: str) -> Any:
    """What the Python file ``path`` defines as ``name``. The file is run, as an import would.

    ``where`` says in messages who asked, such as "--config=FILE". Raises ValueError if there is no such file,
    or it does not define the name; what the file itself raises is passed on.
    """
    if not Path(path).is_file():
        raise ValueError(f"{where}: the file {path} does not exist")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{where}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, name):
        raise ValueError(f"{where}: {path} does not define {name}")
    return getattr(module, name)


def function(where: str, text: str) -> Any:
    """The function that ``text``, "FILE.py:function", names. Raises ValueError, like `defined`."""
    path, _, name = text.rpartition(":")
    found = defined(where, path, name)
    if not callable(found):
        raise ValueError(f"{where}: {name} of {path} is not a function")
    return found
