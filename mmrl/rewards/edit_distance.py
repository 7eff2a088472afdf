"""Levenshtein distance in time that large answers allow."""

MAX_COMPARED = 8192  # characters of a text; longer ones are compared by equality only


def levenshtein(one: str, other: str) -> int:
    """Fewest insertions, deletions and substitutions of a character that make ``one`` into ``other``.

    A column of the table is held in the bits of two integers (Myers 1999, in the form of Hyyrö 2003), so a
    pair of 8192 characters takes some tens of milliseconds.
    """
    if not one or not other:
        return max(len(one), len(other))
    places: dict[str, int] = {}
    for place, character in enumerate(one):
        places[character] = places.get(character, 0) | 1 << place
    every, last = (1 << len(one)) - 1, 1 << (len(one) - 1)
    up, down, distance = every, 0, len(one)  # where the column rises and falls by one; its last entry
    for character in other:
        same = places.get(character, 0)
        keeps = (((same & up) + up) ^ up) | same | down
        right = (down | ~(keeps | up)) & every
        left = up & keeps
        distance += bool(right & last) - bool(left & last)
        right, left = (right << 1 | 1) & every, (left << 1) & every
        diagonal = same | down
        up, down = (left | ~(diagonal | right)) & every, right & diagonal
    return distance


def normalized_distance(one: str, other: str) -> float:
    """The distance over the longer length: 0 if equal, at most 1. Beyond ``MAX_COMPARED`` either 0 or 1."""
    if one == other:
        return 0.0
    longest = max(len(one), len(other))
    return 1.0 if longest > MAX_COMPARED else levenshtein(one, other) / longest
