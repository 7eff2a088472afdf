"""What somebody may have meant."""

import difflib
from collections.abc import Iterable


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is not ``known``: the one that is nearest, or all there are."""
    there = list(known)
    close = difflib.get_close_matches(name, there, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(map(repr, sorted(there)))}"
