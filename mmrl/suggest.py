"""Suggestions of the nearest known name, for error messages."""

import difflib
from collections.abc import Iterable

RENAMED = {"lanes": "prompt_slots", "columns": "slots_per_prompt"}  # keys of the config, before 0.2


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is not ``known``: the one that is nearest, or all there are."""
    there = list(known)
    if RENAMED.get(name) in there:
        return f"; it is called {RENAMED[name]!r} now"
    close = difflib.get_close_matches(name, there, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(map(repr, sorted(there)))}"
