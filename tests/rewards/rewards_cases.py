"""For each verifier of the table a row, a right response, an honest wrong one, and what a run would pay for.

The honest wrong response is what somebody writes who has looked and erred a little: it has the form, and
where a component is graded it has most of the credit that an error leaves. Tests compare with it what others
write.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mmrl.rewards.reward import score
from mmrl.sample import Sample

BOX = "<think>I look at it.</think>\\boxed{@}"
TAG = "<think>I look at it.</think><answer>@</answer>"
TWICE = (
    "<think>I look at it.</think><answer>@</answer><reflection>Let me look again.</reflection>"
    "<think>I do.</think><answer>@</answer>"
)


@dataclass(frozen=True)
class Case:
    """A row of one verifier and responses to it."""

    sample: Sample
    wrong: str  # the answer of the honest wrong response
    right: str = ""  # the right answer, where it is not written as in the row
    several: bool = False  # an answer may list several things
    others: tuple[str, ...] = ()  # further answers that could be guessed
    slot: str = BOX  # a response in the right form, with "@" for the answer
    weights: Mapping[str, float] = field(default_factory=lambda: {"accuracy": 0.9, "format": 0.1})

    @property
    def truth(self) -> str:
        return self.right or self.sample.answer

    def response(self, answer: str) -> str:
        """A response in the right form that gives ``answer``."""
        return self.slot.replace("@", answer)

    def reward(self, components: Mapping[str, float]) -> float:
        """What a run would pay."""
        return score(components, self.weights)


def row(verifier: str, answer: str, problem: str = "What is it?", **facts: object) -> Sample:
    return Sample("test:0", problem, answer, verifier=verifier, facts=facts)


def paid(accuracy: float, **graded: float) -> dict[str, float]:
    """Weights of an accuracy, finer components and, as in PAPO, a tenth for the format."""
    return {"accuracy": accuracy, **graded, "format": 0.1}


TOKENS = {"progress": 0.5, "tokens": 100, "max_tokens": 1000, "truncated": False}
SCHEMA = {
    "type": "object",
    "required": ["name", "count", "colour"],
    "properties": {
        "name": {"type": "string"},
        "count": {"type": "integer"},
        "colour": {"enum": ["red", "green", "blue"]},
    },
    "additionalProperties": False,
}

ANSWERS = {
    "math": Case(
        row("math", "3", "Solve for x. Put the answer into \\boxed{}."), "4", others=("1", "2", "5", "6")
    ),
    "choice": Case(
        row("choice", "B", "Which?\nA. cat\nB. dog\nC. cow\nD. pig", options=["cat", "dog", "cow", "pig"]),
        "C",
        others=("A", "D"),
    ),
    "choices": Case(
        row("choice", "B, D", options=["cat", "dog", "cow", "pig"], several=True, partial=True),
        "B",
        others=("A", "C"),
        several=True,
    ),
    "number": Case(
        row("number", "30", "How wide is it?"),
        "36",
        others=("10", "20", "25", "29", "31", "40", "50"),
        weights=paid(0.6, mean_relative_accuracy=0.2, near=0.1),
    ),
    "count": Case(
        row("count", "3"), "4", others=("0", "1", "2", "5", "10"), weights=paid(0.6, near_count=0.3)
    ),
    "yes_no": Case(row("yes_no", "no", "Is it red?"), "yes"),
    "exact": Case(row("exact", "red dog"), "red cat", others=("red cow", "old dog")),
    "text": Case(row("text", "red dog"), "red cat", others=("red cow", "old dog")),
    "anls": Case(row("anls", "red dog"), "red cat", others=("red cow", "old dog")),
    "edit": Case(
        row("edit", "red dog"), "red cat", others=("red cow", "old dog"), weights=paid(0.5, similarity=0.4)
    ),
    "list": Case(
        row("list", "cat, dog, cow"),
        "cat, dog, pig",
        others=("hen, fox, ape", "cow, dog, cat"),
        several=True,
        weights=paid(0.6, positions=0.3),
    ),
    "set": Case(
        row("set", "cat, dog, cow"),
        "cat, dog, pig",
        others=("hen, fox", "ape, owl"),
        several=True,
        weights=paid(0.4, item_f1=0.3, jaccard=0.2),
    ),
    "order": Case(
        row("order", "3, 1, 2, 4"),
        "3, 2, 1, 4",
        others=("1, 2, 3, 4", "4, 3, 2, 1"),
        weights=paid(0.5, positions=0.2, pairs=0.2),
    ),
    "rank": Case(
        row("rank", "3", candidates=["1", "2", "3", "4"]),
        "2, 3, 1, 4",
        right="3, 1, 2, 4",
        others=("1, 2, 3, 4", "4, 3, 2, 1"),
        several=True,
        weights=paid(0.5, rank_gain=0.3, listing=0.1),
    ),
    "box": Case(
        row("box", "[10, 10, 50, 60]"),
        "[20, 20, 60, 70]",
        others=("[100, 100, 200, 200]", "[0, 0, 640, 480]"),
        weights=paid(0.4, iou=0.3, giou=0.2),
    ),
    "boxes": Case(
        row(
            "boxes",
            '[{"bbox_2d": [10, 10, 50, 60], "label": "cat"}, {"bbox_2d": [90, 40, 160, 99], "label": "dog"}]',
        ),
        '[{"bbox_2d": [10, 10, 50, 60], "label": "cat"}, {"bbox_2d": [120, 40, 220, 120], "label": "dog"}]',
        others=(
            '[{"bbox_2d": [0, 0, 640, 480], "label": "cat"}, {"bbox_2d": [0, 0, 640, 480], "label": "dog"}]',
            '[{"bbox_2d": [300, 10, 350, 60], "label": "cat"}, {"bbox_2d": [0, 20, 9, 29], "label": "dog"}]',
        ),
        several=True,
        weights=paid(
            0.3, map_times_count=0.1, detection=0.1, matched_iou=0.1, progressive_iou=0.1, confidence=0.1
        ),
    ),
    "point": Case(
        row("point", "[10, 10, 50, 60]"), "[80, 20]", right="[30, 30]", others=("[0, 0]", "[320, 240]")
    ),
    "points": Case(
        row("point", "[[10, 10, 50, 60], [100, 10, 150, 60]]", several=True),
        "[30, 30], [200, 30]",
        right="[30, 30], [120, 30]",
        others=("[0, 0], [320, 240]", "[400, 400], [600, 0]", "[500, 0], [500, 400]"),
        several=True,
    ),
    "interval": Case(
        row("interval", "[12, 20]"),
        "[10, 16]",
        others=("[0, 100]", "[40, 50]"),
        weights=paid(0.5, temporal_iou=0.4),
    ),
    "gui": Case(
        row("gui", '{"action": "click", "box": [10, 10, 50, 60]}', "Press the button."),
        "click(80, 20)",
        right="click(30, 30)",
        others=("click(320, 240)", 'type(text="button")', 'scroll(direction="down")', "wait()"),
        weights=paid(0.5, action_type=0.2, argument=0.2),
    ),
    "gui_candidates": Case(
        row("gui_candidates", "[10, 10, 50, 60]", "Press the button."),
        "[80, 20]",
        right="[30, 30]",
        others=("[0, 0]", "[320, 240]"),
        several=True,
    ),
    "json": Case(
        row("json", '{"name": "dog", "count": 2, "colour": "red"}', answer_in="tag", schema=SCHEMA),
        '{"name": "dog", "count": 2, "colour": "blue"}',
        others=(
            '{"name": "cat", "count": 3, "colour": "green"}',
            '{"name": "cow", "count": 1, "colour": "blue"}',
        ),
        slot=TAG,
        weights=paid(0.5, fields=0.3, json=0.1),
    ),
    "triples": Case(
        row("triples", "paint(0, red) resize(1, large) move(2, front)", answer_in="tag"),
        "paint(0, red) resize(1, small) move(2, front)",
        others=("paint(1, blue)", "resize(0, small)", "move(0, back)", "spin(2, left)", "paint(2, green)"),
        slot=TAG,
        several=True,
        weights=paid(0.5, triples=0.4),
    ),
    "reflection": Case(
        row("reflection", "3", answer_in="tag"),
        "4",
        others=("1", "2", "5"),
        slot=TWICE,
        weights={"reflection": 1.0, "format": 0.5},
    ),
    "shapes": Case(
        row("shapes", "3", kind="count", seen=["a1", "b1", "c1"]),
        "4",
        others=("1", "2", "5"),
        slot="<think> a1 b1 c1 </think> \\boxed{@}",
    ),
}
# How a response is written: here the answer does not matter, and the honest wrong response is at its best.
STYLES = {
    "format": Case(row("format", "3"), "4", weights={"format": 1.0}),
    "thought": Case(row("thought", "3", least_words=3), "4", weights={"thought": 1.0}),
    "stages": Case(
        row("stages", "3", stages=["think", "answer"]),
        "4",
        slot=TAG,
        weights={"stages": 0.5, "stage_tags": 0.5},
    ),
    "overlong": Case(
        row("overlong", "3", rollout=TOKENS, overlong_buffer=200), "4", weights={"overlong": 1.0}
    ),
    "length_target": Case(
        row("length_target", "3", rollout=TOKENS, target_tokens=100), "4", weights={"length_target": 1.0}
    ),
    "repetition": Case(row("repetition", "3"), "4", weights={"repetition": 1.0}),
    "language": Case(row("language", "3", language="en"), "4", weights={"language": 1.0}),
    "consistency": Case(
        row("consistency", "3"),
        "4",
        slot="<think>The answer is @.</think>\\boxed{@}",
        weights={"consistency": 1.0},
    ),
}
CASES: Mapping[str, Case] = {**ANSWERS, **STYLES}
