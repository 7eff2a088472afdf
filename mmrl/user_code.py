"""User-defined code: experiments, verifiers and recipes that a Python file or module defines."""

import importlib
import importlib.util
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def run_user_code(where: str, path: str) -> Iterator[None]:
    """Around a call of code of the user's in the file ``path``: what that raises is one line that says where.

    Raises ValueError, which begins with ``where`` and names the line of the file.
    """
    try:
        yield
    except Exception as error:
        said = str(error).strip().partition("\n")[0]
        frames = traceback.extract_tb(error.__traceback__)
        if isinstance(error, ValueError) and Path(frames[-1].filename).is_relative_to(Path(__file__).parent):
            raise ValueError(f"{where}: {said}") from error  # a refusal of ours says enough
        file = Path(path).absolute()
        lines = [frame.lineno for frame in frames if Path(frame.filename).absolute() == file]
        if isinstance(error, SyntaxError) and error.filename and Path(error.filename).absolute() == file:
            lines.append(error.lineno)
        at = f"{path}, line {lines[-1]}" if lines else path
        raise ValueError(f"{where}: {at}: {type(error).__name__}: {said}") from error


def load_name(where: str, path: str, name: str) -> Any:
    """Value of ``name`` in a Python file, "FILE.py", or in a module, "package.module". Either is run.

    ``where`` says in messages who asked, such as "--config=FILE". Raises ValueError if there is no such file
    or module, it cannot be run, or it does not define the name.
    """
    if os.path.isfile(path):
        spec = importlib.util.spec_from_file_location(Path(path).stem, path)
        if spec is None or spec.loader is None:
            raise ValueError(f"{where}: {path} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        with run_user_code(where, path):
            spec.loader.exec_module(module)
    elif path.endswith(".py") or "." not in path or not all(map(str.isidentifier, path.split("."))):
        raise ValueError(f"{where}: the file {path} does not exist")
    else:
        with run_user_code(where, path):
            module = importlib.import_module(path)
    if not hasattr(module, name):
        raise ValueError(f"{where}: {path} does not define {name}")
    return getattr(module, name)


def load_function(where: str, text: str) -> Any:
    """Function by its name, "FILE.py:function" or "package.module:function".

    Raises ValueError, like `load_name`.
    """
    path, _, name = text.rpartition(":")
    found = load_name(where, path, name)
    if not callable(found):
        raise ValueError(f"{where}: {name} of {path} is not a function")
    return found
