"""Checker of the shapes world: was the answer right, and if not, was it seen wrongly or concluded wrongly."""

import re

from mmrl.rewards.text import last_boxed
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


def shapes(sample: Sample, response: str) -> dict[str, float]:
    """Judge a response to a question of the shapes world.

    Args:
        sample: ``facts["kind"]`` names the question's kind, ``facts["seen"]`` lists the words of the true
            facts.
        response: the policy's text, ideally ``<think> facts </think> \\boxed{answer}``. Any text is judged,
            in time linear in its length.

    Returns:
        Components, each 0 or 1:
        ``accuracy``: the last ``\\boxed{}`` holds the answer.
        ``format``: the response is one thinking and one boxed answer, and nothing else.
        ``format_error``, ``perception_error``, ``reasoning_error``: why the answer is not right: no answer or
        no statement of facts can be read; facts are stated that differ from the scene's; the facts are right
        but not the conclusion. ``accuracy`` and these three sum to 1.
        ``unfaithful``: the answer is right but the stated facts are wrong or unreadable.

    Raises:
        ValueError: the sample's facts lack a kind of the shapes world or the list of words.
    """
    kind, seen = sample.facts.get("kind"), sample.facts.get("seen")
    if (
        not (isinstance(kind, str) and kind in _FACT)
        or not isinstance(seen, list)
        or not all(isinstance(word, str) for word in seen)
    ):
        raise ValueError(
            f"sample {sample.id}: the shapes verifier needs facts with a 'kind' ({', '.join(_FACT)}) and a "
            "list 'seen'; write the data with `mmrl data shapes`"
        )
    answer = last_boxed(response) or None
    stated = _stated_facts(kind, _thinking(response))
    right = answer == sample.answer.strip()
    seen_right = stated is not None and stated == _stated_facts(kind, " ".join(seen))
    readable = answer is not None and stated is not None
    return {
        "accuracy": float(right),
        "format": float(_FORMAT.fullmatch(response.strip()) is not None),
        "format_error": float(not right and not readable),
        "perception_error": float(not right and readable and not seen_right),
        "reasoning_error": float(not right and readable and seen_right),
        "unfaithful": float(right and not seen_right),
    }


def _thinking(response: str) -> str:
    _, _, rest = response.partition("<think>")
    inside, closed, _ = rest.partition("</think>")
    return inside if closed else ""


def _stated_facts(kind: str, thinking: str) -> list[str] | None:
    """The facts of a thinking, sorted (their order says nothing); None if it is no statement of that kind."""
    if len(thinking) > _LONGEST:
        return None
    words, fact = " ".join(thinking.split()), _FACT[kind]
    if re.fullmatch(f"{fact}(?: {fact})*", words) is None:
        return None
    return sorted(re.findall(fact, words))
