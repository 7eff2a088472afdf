"""Answers that list items: a list, a set, an order of given items, a ranking of candidates."""

from bisect import bisect_right, insort
from collections.abc import Callable, Sequence

from mmrl.rewards.answers import answer_of, wrong_answer
from mmrl.rewards.facts import list_fact
from mmrl.rewards.items import Key, items_of, key_of, ordered_items
from mmrl.sample import Sample


def list_(sample: Sample, response: str) -> dict[str, float]:
    """Judges a list: ``accuracy`` (the same items in the same order) and ``positions``.

    ``positions`` is the share of places that hold the right item, of the longer of the two lists.
    ValueError if ``sample.answer`` lists nothing.
    """
    truth = truth_of(sample, items_of)
    given = _keys(answer_of(sample, response), items_of)
    same = sum(a == b for a, b in zip(given, truth, strict=False))
    return {"accuracy": float(given == truth), "positions": same / max(len(given), len(truth))}


def set_(sample: Sample, response: str) -> dict[str, float]:
    """Judges a set, in any order and whatever is repeated: ``accuracy``, ``item_f1`` and ``jaccard``.

    With c items in common, ``item_f1`` is 2 c / (given + wanted) and ``jaccard`` c / (given + wanted - c).
    ValueError if ``sample.answer`` lists nothing.
    """
    truth, given = (
        frozenset(truth_of(sample, items_of)),
        frozenset(_keys(answer_of(sample, response), items_of)),
    )
    common = len(given & truth)
    return {
        "accuracy": float(given == truth),
        "item_f1": 2 * common / (len(given) + len(truth)),
        "jaccard": common / len(given | truth),
    }


def order(sample: Sample, response: str) -> dict[str, float]:
    """Judges a permutation of the truth's items: ``accuracy`` (all right), ``positions`` and ``pairs``.

    ``positions`` is the share of items in their place. ``pairs`` is the share of pairs of items in the right
    order, which is (Kendall's tau + 1) / 2; half of them are right by chance. What is no permutation is 0 in
    all. Items of one character may be written without anything between them. ValueError if ``sample.answer``
    lists nothing, or an item twice.
    """
    truth = truth_of(sample, ordered_items)
    if len(set(truth)) < len(truth):
        raise wrong_answer(sample, "has an item twice; name each once")
    place = {key: i for i, key in enumerate(truth)}
    given = _keys(answer_of(sample, response), ordered_items)
    if len(given) == 1 and len(truth) > 1:
        given = _characters(answer_of(sample, response) or "", len(truth))
    if len(given) != len(truth) or set(given) != set(truth):
        return {"accuracy": 0.0, "positions": 0.0, "pairs": 0.0}
    return {
        "accuracy": float(given == truth),
        "positions": sum(a == b for a, b in zip(given, truth, strict=True)) / len(truth),
        "pairs": concordant_pairs([place[key] for key in given]),
    }


def concordant_pairs(places: Sequence[int]) -> float:
    """Share of the pairs of a permutation that stand in rising order; 1 for a single item."""
    count, falling = len(places), 0
    seen: list[int] = []
    for place in places:
        falling += len(seen) - bisect_right(seen, place)
        insort(seen, place)
    pairs = count * (count - 1) // 2
    return 1.0 - falling / pairs if pairs else 1.0


def rank(sample: Sample, response: str) -> dict[str, float]:
    """Judges a ranking of ``facts["candidates"]``, of which ``sample.answer`` lists the relevant ones.

    ``accuracy``: the relevant ones come first. ``rank_gain``: the sum of 1 / rank^3 over them, over that of
    the best ranking. ``listing``: how well the response lists the candidates: (1 - |listed - n| / n), not
    below 0, times the share of what is listed that is a candidate named for the first time. MM-R5
    (``qwen_module.py``). ValueError if a relevant one is no candidate, or there are none.
    """
    candidates = [key_of(str(item)) for item in list_fact(sample, "candidates")]
    relevant = frozenset(truth_of(sample, ordered_items))
    if not relevant <= frozenset(candidates) or len(set(candidates)) < len(candidates):
        raise wrong_answer(sample, "should be among facts['candidates'], each of which stands there once")
    listed = _keys(answer_of(sample, response), ordered_items)
    first = {key: place for place, key in reversed(list(enumerate(listed, start=1)))}
    best = sum(1 / place**3 for place in range(1, len(relevant) + 1))
    gain = sum(1 / first[key] ** 3 for key in relevant if key in first) / best
    known = sum(key in first for key in candidates) / max(1, len(listed))
    complete = max(0.0, 1 - abs(len(listed) - len(candidates)) / len(candidates))
    return {
        "accuracy": float(frozenset(listed[: len(relevant)]) == relevant),
        "rank_gain": gain,
        "listing": complete * known,
    }


def truth_of(sample: Sample, read: Callable[[str], list[str] | None]) -> list[Key]:
    """The items of ``sample.answer``. ValueError if there are none."""
    items = read(sample.answer)
    if items is None:
        raise wrong_answer(sample, "lists nothing; give items with commas between them, or a JSON list")
    return [key_of(item) for item in items]


def _keys(answer: str | None, read: Callable[[str], list[str] | None]) -> list[Key]:
    return [key_of(item) for item in read(answer or "") or []]


def _characters(answer: str, count: int) -> list[Key]:
    bare = "".join(answer.split())
    return [key_of(character) for character in bare] if len(bare) == count else []
