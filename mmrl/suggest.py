"""Suggestions of the nearest known name, for error messages."""

import difflib
from collections.abc import Collection, Iterable

RENAMED = {  # keys of the config, before 0.2; with the section where that is another
    "lanes": "prompt_slots",
    "columns": "slots_per_prompt",
    "micro_prompts": "row_tokens",
    "micro_batch": "train.row_tokens",
}


def renamed(name: str, known: Collection[str]) -> str:
    """The name that a key of the config, or its last part, has now; "" if it was not renamed."""
    parent, dot, last = name.rpartition(".")
    now = RENAMED.get(last, "")
    if "." in now:  # of another section, which ``known`` need not have
        return now
    return now if (now := parent + dot + now) in known else ""


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is not ``known``: the one that is nearest, or all there are."""
    there = list(known)
    if now := renamed(name, there):
        return f"; it is called {now!r} now"
    close = difflib.get_close_matches(name, there, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(map(repr, sorted(there)))}"
