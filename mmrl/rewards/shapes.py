"""Verifier `shapes` of the shapes world: a wrong answer is an error of format, perception or reasoning."""

import re

from mmrl.rewards.text import last_boxed
from mmrl.rewards.verifier import Components, Verifier
from mmrl.sample import Sample

# One stated fact of each kind of question; a statement is one or more of them, in any order.
_FACT = {
    "count": r"(?:none|[a-d][1-4])",
    "compare": r"[a-z]+ [0-9]",
    "locate": r"[a-d][1-4]",
    "read": r"[0-9]",
    "missing": r"[a-z]+",
}
_FORMAT = re.compile(r"<think>[^<>{}]*</think>\s*\\boxed\{[^{}]*\}")
_LONGEST = 200  # characters of a thinking that may still say something true about a scene


@Verifier
def shapes(sample: Sample, response: str) -> Components:
    r"""An answer to a question of the shapes world, ideally ``<think> facts </think> \boxed{answer}``.

    ``accuracy``: the last box holds the answer. ``format``: one thinking and one boxed answer, and nothing
    else. ``format_error``, ``perception_error``, ``reasoning_error``: a wrong answer because none or no facts
    can be read; facts are stated that differ from the scene's (``facts["seen"]``); the facts are right but
    not the conclusion. ``unfaithful``: the answer is right but the stated facts are wrong or unreadable.
    ValueError if the row lacks ``facts["kind"]`` or ``facts["seen"]``.
    """
    kind, seen = sample.facts.get("kind"), sample.facts.get("seen")
    words = isinstance(seen, list) and all(isinstance(word, str) for word in seen)
    if not (isinstance(kind, str) and kind in _FACT) or not words:
        raise ValueError(
            f"sample {sample.id}: the shapes verifier needs facts with a 'kind' ({', '.join(_FACT)}) and a "
            "list 'seen'; write the data with `mmrl data shapes`"
        )
    answer = last_boxed(response) or None
    inside, closed, _ = response.partition("<think>")[2].partition("</think>")
    stated = _read_facts(kind, inside if closed else "")
    right = answer == sample.answer.strip()
    seen_right = stated is not None and stated == _read_facts(kind, " ".join(seen or ()))
    readable = answer is not None and stated is not None
    return {
        "accuracy": float(right),
        "format": float(_FORMAT.fullmatch(response.strip()) is not None),
        "format_error": float(not right and not readable),
        "perception_error": float(not right and readable and not seen_right),
        "reasoning_error": float(not right and readable and seen_right),
        "unfaithful": float(right and not seen_right),
    }


def _read_facts(kind: str, thinking: str) -> list[str] | None:
    """The facts of a thinking, sorted (their order says nothing); None if it is no statement of that kind."""
    words, fact = " ".join(thinking.split()), _FACT[kind]
    if len(thinking) > _LONGEST or re.fullmatch(f"{fact}(?: {fact})*", words) is None:
        return None
    return sorted(re.findall(fact, words))
