"""Converters: entries of common public layouts become rows in the schema.

Each layout is a function of an entry, the folder of images and `ConvertOptions` that gives rows; it raises
ValueError for an entry that cannot be used. `convert` reads the entries, converts, checks and writes them.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrl.data.files import parse_json
from mmrl.data.rows import sample_of
from mmrl.data.sources import ANSWERS, QUESTIONS
from mmrl.data.validation import EVERY, SHOWN, reason
from mmrl.data.writing import SCHEMA, check_kind, write_rows
from mmrl.models.prompts import IMAGE, check_placeholders
from mmrl.sample import Sample
from mmrl.tasks.entries import ImageFolder, box_entries, first_of, read_entries

Row = dict[str, Any]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Roles that a column of questions may play, and the column names that it then replaces.
ROLES: Mapping[str, tuple[str, ...]] = {
    "question": QUESTIONS,
    "answer": ANSWERS,
    "images": ("image", "images"),
    "options": ("options", "choices", *LETTERS),
    "hint": ("hint", "context"),
}
ANSWER_FORMS = ("letter", "index", "text")
UNITS = {
    "pixels": "in pixels",
    "unit": "from 0 to 1 over the width and the height",
    "thousand": "from 0 to 1000 over the width and the height",
}


@dataclass(frozen=True)
class ConvertOptions:
    """Options of the conversion of entries."""

    verifier: str = "text"  # of conversations and questions; of several, the first that can grade a row
    turns: str = "each"  # of a conversation: a row for "each" question, or for the "first" only
    task: str = "detect"  # of boxes: "detect" all objects of an image, or "ground" the only one of a category
    coordinates: str = "pixels"  # that answers are to be in, a key of `UNITS`
    answer: str = ""  # how a choice is given: "letter", "index" (from 0), "text"; "": what fits it
    columns: Mapping[str, str] = field(default_factory=dict)  # of questions: a role, and what plays it
    where: tuple[tuple[str, tuple[str, ...]], ...] = ()  # only entries with one of these values in a column
    facts: Mapping[str, Any] = field(default_factory=dict)  # for every question
    ask: str = ""  # the question of entries that have none, as it stands in their image
    say: Mapping[str, str] = field(default_factory=dict)  # answers in other words: {"0": "no"}
    agreed: int = 1  # of several answers, how many annotators must have given one for it to be right


def _row(problem: str, answer: Any, images: Sequence[Any], verifier: str, kind: str, **more: Any) -> Row:
    row = {"problem": problem, "answer": answer, "images": list(images), "verifier": verifier, "kind": kind}
    return {**row, **more}


def _entry_images(entry: Mapping[str, Any]) -> list[Any]:
    named = first_of(entry, ROLES["images"])
    return named if isinstance(named, list) else [] if named is None else [named]


# Conversations, as LLaVA writes them

SPEAKERS = {"human": "human", "user": "human", "gpt": "reply", "assistant": "reply"}


def conversation_rows(entry: Mapping[str, Any], images: ImageFolder, options: ConvertOptions) -> list[Row]:
    """A row for each human turn, or for the first; earlier turns stand before the question.

    An entry is ``{"image": ..., "conversations": [{"from": ..., "value": ...}]}``, or has ``messages`` of
    ``role`` and ``content``. The reply is the answer, and a solution to imitate.

    Raises ValueError for turns that are no conversation, images that are not there, or a video.
    """
    turns = _turns(entry)
    pictures = [images.picture(image) for image in _entry_images(entry)]
    questions = [text for role, text in turns if role == "human"]
    replies = [text for role, text in turns if role == "reply"]
    if any(IMAGE in reply for reply in replies):
        raise ValueError(f"a reply holds {IMAGE}; only questions may show an image")
    if pictures and not any(IMAGE in question for question in questions):
        questions[0] = IMAGE * len(pictures) + questions[0]
    marks = sum(question.count(IMAGE) for question in questions)
    if marks != len(pictures):
        raise ValueError(f"{len(pictures)} images but {marks} placeholders in the questions")
    rows, before = [], ""
    for question, reply in zip(questions, replies, strict=False):
        problem = f"{before}Question: {question}" if before else question
        shown = pictures[: problem.count(IMAGE)]
        rows.append(_row(problem, reply, shown, options.verifier, "conversation", solution=reply))
        if options.turns == "first":
            break
        before += f"Question: {question}\nAnswer: {reply}\n\n"
    return rows


def _turns(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(role, text) of a conversation, which is a human's turn, a reply, and so on."""
    if entry.get("video"):
        raise ValueError("it is about a video; only images are read")
    listed = first_of(entry, ("conversations", "messages"))
    if not isinstance(listed, list):
        raise ValueError('no list \'conversations\' of {"from": ..., "value": ...}')
    turns = [turn for turn in map(_turn, listed) if turn[0] != "system"]
    if len(turns) < 2 or any(role != ("human", "reply")[k % 2] for k, (role, _) in enumerate(turns)):
        raise ValueError("its turns are not a question, a reply, and so on")
    return turns


def _turn(turn: Any) -> tuple[str, str]:
    role = first_of(turn, ("from", "role")) if isinstance(turn, Mapping) else None
    text = first_of(turn, ("value", "content")) if isinstance(turn, Mapping) else None
    if not isinstance(text, str) or not isinstance(role, str):
        raise ValueError("a turn without a role or a text")
    if "<video>" in text:
        raise ValueError("it is about a video; only images are read")
    if role != "system" and role not in SPEAKERS:
        raise ValueError(f"a turn of {role[:40]!r}; there are {', '.join(SPEAKERS)} and system")
    return SPEAKERS.get(role, role), text.strip()


# Boxes: COCO's instances, and referring expressions with a box, as in RefCOCO

OVERSHOOT = 2.0  # pixels that a box may reach beyond its image, by rounding; it is cut off
NAMES = ("file_name", "image", "image_path", "img_path", "filename")
SENTENCES = ("sentence", "sentences", "expression", "caption", "phrase", "ref", "answer")


def box_rows(entry: Mapping[str, Any], images: ImageFolder, options: ConvertOptions) -> list[Row]:
    """Boxes [x, y, width, height] in pixels become [left, top, right, bottom].

    One row to detect all objects of an image, or one for each category of which it has one object; of a
    referring expression, one for each sentence.

    A category of which an image has a crowd (``iscrowd``) is not asked for there. Raises ValueError for a box
    that is none, an unknown category, or an image that is not there or of another size than stated.
    """
    units, embedded = UNITS[options.coordinates], entry.get("image")
    if "annotations" not in entry:
        embedded = isinstance(embedded, Mapping) and embedded.get("bytes")
        image = images.picture(embedded or first_of(entry, NAMES))
        size = images.size(image, "its image")
        box = _corners(entry.get("bbox"), size)
        questions = [(f'Find what this describes: "{sentence}".', box) for sentence in _sentences(entry)]
    else:
        stated = entry["image"]
        image = images.path(first_of(stated, NAMES))
        size = images.size(image, image)
        if (stated.get("height", size[0]), stated.get("width", size[1])) != size:
            raise ValueError(
                f"the image is {size[1]}x{size[0]} pixels, but {stated.get('width')}x{stated.get('height')}"
                " where its boxes are"
            )
        objects = _objects(entry, size)
        count = Counter(name for name, _ in objects)
        questions = [(f"Where is the {name}?", box) for name, box in objects if count[name] == 1]
    facts = {"image_size": [size[1], size[0]], "coordinates": options.coordinates}
    if "annotations" not in entry or options.task == "ground":
        form = f"Give its box as [x1, y1, x2, y2], {units}."
        return [
            _row(f"<image>{question} {form}", json.dumps(box), [image], "box", "grounding", facts=facts)
            for question, box in questions
        ]
    if not objects:
        return []
    problem = (
        f"<image>Find every object of these kinds: {', '.join(sorted(count))}. Give a JSON list with one"
        f' {{"bbox_2d": [x1, y1, x2, y2], "label": kind}} for each, {units}.'
    )
    answer = json.dumps([{"bbox_2d": box, "label": name} for name, box in objects])
    return [_row(problem, answer, [image], "boxes", "detection", facts=facts)]


def _objects(entry: Mapping[str, Any], size: tuple[int, int]) -> list[tuple[str, list[float]]]:
    """(category, box) of each object of an image, without categories of which it has a crowd."""
    objects, crowds = [], set()
    for annotation in entry["annotations"]:
        category = annotation.get("category_id")
        name = entry["names"].get(str(category))
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"an object of the unknown category {str(category)[:40]}")
        objects.append((name.strip(), _corners(annotation.get("bbox"), size)))
        if annotation.get("iscrowd"):
            crowds.add(name.strip())
    return [(name, box) for name, box in objects if name not in crowds]


def _sentences(entry: Mapping[str, Any]) -> list[str]:
    listed = first_of(entry, SENTENCES)
    sentences = [
        first_of(item, ("sent", "raw", "sentence")) if isinstance(item, Mapping) else item
        for item in (listed if isinstance(listed, list) else [listed])
    ]
    if not all(isinstance(sentence, str) and sentence.strip() for sentence in sentences):
        raise ValueError(f"no sentence that refers to the box, under {', '.join(SENTENCES)}")
    return [sentence.strip() for sentence in sentences]


def _corners(box: Any, size: tuple[int, int]) -> list[float]:
    """[left, top, right, bottom], within an image of (height, width)."""
    if not isinstance(box, list) or len(box) != 4 or not all(_finite(number) for number in box):
        raise ValueError(f"the box {str(box)[:80]} is not [x, y, width, height]")
    x, y, width, height = box
    if width <= 0 or height <= 0:
        raise ValueError(f"the box {box} has no area")
    if min(x, y) < -OVERSHOOT or x + width > size[1] + OVERSHOOT or y + height > size[0] + OVERSHOOT:
        raise ValueError(f"the box {box} reaches out of its image of {size[1]}x{size[0]} pixels")
    corners = [max(x, 0), max(y, 0), min(x + width, size[1]), min(y + height, size[0])]
    found = [int(number) if number == int(number) else round(number, 2) for number in corners]
    if found[0] >= found[2] or found[1] >= found[3]:
        raise ValueError(f"the box {box} has no area in its image")
    return found


def _finite(number: Any) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)


# Questions with their answers under any column names, and multiple choice

LONGEST_LIST = 20_000  # characters of options written as one text
_PLACE = re.compile(r"<image ?(\d+)>")  # MMMU's mark of the image in "image_1", "image_2", ...
_LETTER = re.compile(r"[(\[]?([A-Za-z])[)\].:]?")
_NUMBER = re.compile(r"[(\[]?(\d{1,2})[)\].:]?", re.ASCII)
# A label that an option carries, perhaps with Chinese punctuation: "A. red", "(A) red", "A: red", "1. red".
_CARRIED = re.compile(
    r"[(\[]?([A-Za-z]|\d{1,2})(?:[)\]]\s*[.:]?|\s*[.:](?=\s)|[\u3001\uff0e\uff1a])\s*(?=\S)", re.ASCII
)
_LABEL = re.compile(r"(?:^|[;,\n])\s*\(?([A-Z])[.:)]\s*")  # before an option of several in one text
MOST_IMAGES = 20  # columns "image_1", "image_2", ... that are looked for


def question_rows(entry: Mapping[str, Any], images: ImageFolder, options: ConvertOptions) -> list[Row]:
    """The row of a question, with options a multiple choice; none if ``options.where`` leaves it out.

    ``options.columns`` says which column plays which of `ROLES`; ``options.ask`` is the question where no
    column holds one. Of a list of answers the commonest is the truth, and the others are aliases.

    Raises ValueError for a column that is not there, a question without text or answer, or what
    `choice_rows` refuses.
    """
    if any(str(_column(entry, name)) not in values for name, values in options.where):
        return []
    entry = _rename_columns(entry, options)
    if first_of(entry, ("options", "choices", "A")) is not None:
        rows = choice_rows(entry, images, options)
        return [{**row, "facts": {**options.facts, **row["facts"]}} for row in rows]
    problem, pictures = _place_images(_question_text(entry, QUESTIONS), entry, images)
    truth, aliases = _answers(first_of(entry, ANSWERS), options.agreed)
    facts = {**options.facts, **({"aliases": aliases} if aliases else {})}
    return [_row(problem, truth, pictures, options.verifier, "question", facts=facts)]


def _rename_columns(entry: Mapping[str, Any], options: ConvertOptions) -> dict[str, Any]:
    """The entry with each column under the name of the role that it plays."""
    found = dict(entry)
    for role, column in options.columns.items():
        value = _column(entry, column)
        found |= dict.fromkeys(ROLES[role])
        found[ROLES[role][0]] = value
    if options.ask and first_of(found, QUESTIONS) is None:
        found[QUESTIONS[0]] = options.ask
    if options.say:
        answer = first_of(found, ANSWERS)
        found |= dict.fromkeys(ANSWERS)
        found[ANSWERS[0]] = options.say.get(str(answer), answer)
    return found


def _column(entry: Mapping[str, Any], name: str) -> Any:
    if name not in entry:
        raise ValueError(f"no column {name!r}; it has {', '.join(entry)}")
    return entry[name]


def _answers(given: Any, agreed: int) -> tuple[Any, list[str]]:
    """The commonest of several answers, and those others that at least ``agreed`` annotators gave."""
    if not isinstance(given, list):
        return given, []
    counts = Counter(str(answer).strip() for answer in given if answer is not None and str(answer).strip())
    if not counts:
        return None, []
    (truth, _), *others = counts.most_common()
    return truth, [answer for answer, count in others if count >= agreed]


def _question_text(entry: Mapping[str, Any], names: Sequence[str]) -> str:
    question, hint = first_of(entry, names), first_of(entry, ROLES["hint"])
    if not isinstance(question, str):
        raise ValueError(f"no text under {', '.join(names)}")
    return f"{hint.strip()}\n{question.strip()}" if isinstance(hint, str) else question.strip()


def choice_rows(entry: Mapping[str, Any], images: ImageFolder, options: ConvertOptions) -> list[Row]:
    """The row of a multiple choice, as ScienceQA, MMMU and MMBench have them; none without options.

    Options stand in a list ``options`` or ``choices``, perhaps written as text (or as "A. red; B. blue"), or
    in columns A, B, ...; the question in ``question`` (after its ``hint`` or ``context``), the right one in
    ``answer``. Options that carry labels already, and a question that lists them, get no second ones.

    Raises ValueError for a question, an option, an answer or an image that cannot be read, or labels that are
    not in order.
    """
    text = _question_text(entry, ("question", "problem", "text"))
    labels, choices = _strip_labels(_read_options(entry))
    if not choices:
        return []
    if len(choices) == 1 or len(choices) > len(LETTERS):
        raise ValueError(f"{len(choices)} options: a choice has 2 to {len(LETTERS)}")
    if not _lists_options(text, choices):
        lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
        text = "\n".join([text, *lines])
    problem, pictures = _place_images(text, entry, images)
    answer = LETTERS[_right_option(entry.get("answer"), choices, labels, options.answer)]
    facts = {"options": [_PLACE.sub(r"image \1", choice) for choice in choices]}
    return [_row(problem, answer, pictures, "choice", "choice", facts=facts)]


def _read_options(entry: Mapping[str, Any]) -> list[str]:
    listed = first_of(entry, ("options", "choices"))
    if isinstance(listed, str):
        listed = _parse_list(listed)
    if isinstance(listed, Mapping):  # a struct of parquet names the options that other rows have
        named = {key: option for key, option in listed.items() if option not in (None, "")}
        letters = all(len(key) == 1 and key.isalpha() for key in named)
        listed = [f"{key}) {named[key]}" for key in sorted(named)] if letters else list(named.values())
    if listed is None:
        lettered = (entry.get(letter) for letter in LETTERS)
        listed = list(itertools.takewhile(lambda option: option not in (None, ""), lettered))
    if not isinstance(listed, list):
        raise ValueError(f"options are a {type(listed).__name__}, not a list")
    found = [str(option).strip() if isinstance(option, str | int | float) else "" for option in listed]
    if not all(found):
        raise ValueError(f"option {found.index('') + 1} is no text")
    return found


def _strip_labels(options: Sequence[str]) -> tuple[str, list[str]]:
    """The first label that options carry, "A" or "1" ("" for none), and the options without labels.

    A single option that begins like a label ("A. Smith") has none. Raises ValueError for labels of some only,
    or in another order: then nobody knows whether an answer means a label or a place.
    """
    found = [_CARRIED.match(option) for option in options]
    labels = [match[1].upper() if match else "" for match in found]
    for first in ("A", "1"):
        wanted = list(LETTERS[: len(options)]) if first == "A" else [str(k + 1) for k in range(len(options))]
        if labels == wanted:
            return first, [
                option[match.end() :] for option, match in zip(options, found, strict=True) if match
            ]
        in_place = sum(label == place for label, place in zip(labels, wanted, strict=False))
        if in_place > 1 or (len(options) > 1 and sorted(labels) == sorted(wanted)):
            raise ValueError(f"the options carry the labels {', '.join(label or 'none' for label in labels)}")
    return "", list(options)


def _lists_options(question: str, options: Sequence[str]) -> bool:
    """True if a question lists these options, all and in order, with their letters."""
    each = (
        rf"[(\[]?{letter}(?:[)\]]\s*[.:]?|\s*[.:]|[\u3001\uff0e\uff1a])\s*{re.escape(option)}"
        for letter, option in zip(LETTERS, options, strict=False)
    )
    return re.search(r"(?:^|\s)" + r"[\s;,]*\s".join(each) + r"(?:\W|$)", question) is not None


def _parse_list(text: str) -> Any:
    """A list written as JSON, labelled, or as Python does: only constants are read, and nothing is run."""
    if len(text) > LONGEST_LIST:
        raise ValueError(f"options are a text of {len(text)} characters")
    try:
        return parse_json(text)
    except ValueError:
        pass
    before, *labelled = _LABEL.split(text.strip())
    if not before and len(labelled) > 2 and "".join(labelled[::2]) == LETTERS[: len(labelled) // 2]:
        return labelled[1::2]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"options are {text[:80]!r}, which is no list") from error


def _right_option(answer: Any, options: Sequence[str], labels: str, form: str) -> int:
    """Number of the right option. Raises ValueError if that is none, or two readings of the answer differ."""
    answer = answer[0] if isinstance(answer, list) and len(answer) == 1 else answer
    text = str(answer).strip()
    names = [str(k + 1) for k in range(len(options))] if labels == "1" else list(LETTERS)
    letter = _LETTER.fullmatch(text) if isinstance(answer, str) else None
    number = _NUMBER.fullmatch(text) if isinstance(answer, str | int) and type(answer) is not bool else None
    if labels == "1":
        by_label = int(number[1]) - 1 if number else None
    else:
        by_label = LETTERS.index(letter[1].upper()) if letter else None
    carried = _CARRIED.match(text)
    same = [k for k, option in enumerate(options) if option == text]
    if not same and carried:  # the option with its label
        name, rest = carried[1].upper(), text[carried.end() :]
        same = [k for k, option in enumerate(options) if option == rest and names[k] == name]
    readings = {
        "letter": by_label,
        "index": int(number[1]) if number else None,
        "text": same[0] if len(same) == 1 else None,
    }
    forms = [form] if form else ["index"] if isinstance(answer, int) and labels != "1" else ANSWER_FORMS
    found = {
        way: place for way in forms if (place := readings[way]) is not None and 0 <= place < len(options)
    }
    if not found:
        raise ValueError(f"the answer {str(answer)[:80]!r} is none of its {len(options)} options")
    if len(set(found.values())) > 1:
        ways = " or ".join(found)
        raise ValueError(f"the answer {str(answer)[:80]!r} can be read as {ways}; say which, by --answer")
    return next(iter(found.values()))


def _place_images(text: str, entry: Mapping[str, Any], images: ImageFolder) -> tuple[str, list[bytes | str]]:
    """The text with a placeholder for each image of the entry, and these in its order.

    A mark "<image 1>" stands for the image in the column ``image_1``, or for the first of ``image``. Images
    without such marks stand in front.
    """
    numbers = [int(number) for number in _PLACE.findall(text)]
    named = _entry_images(entry)
    apart = {k: entry[f"image_{k}"] for k in range(1, MOST_IMAGES) if entry.get(f"image_{k}") is not None}
    if numbers and named and not apart and sorted(numbers) == list(range(1, len(named) + 1)):
        apart = dict(enumerate(named, 1))
    if numbers and (not named or apart):
        named = [apart.get(number) for number in numbers]
        text = _PLACE.sub(IMAGE, text)
    else:
        text = _PLACE.sub(r"image \1", text)
        named = named or list(apart.values())
        text = text if IMAGE in text else IMAGE * len(named) + text
    identity, split = str(entry.get("id", "")), str(entry.get("split", ""))
    pictures = []
    for image in named:
        if isinstance(image, str):  # it may lie in ScienceQA's places
            places = (image, f"{split}/{identity}/{image}", f"{identity}/{image}")
            image = next((place for place in places if images.holds(place)), image)
        pictures.append(images.picture(image))
    return text, pictures


# Files

LAYOUTS: Mapping[str, Callable[[Any, ImageFolder, ConvertOptions], list[Row]]] = {
    "llava": conversation_rows,
    "coco": box_rows,
    "choice": choice_rows,
    "questions": question_rows,
}
_COLUMNS = {name: name for name in SCHEMA.names}


@dataclass(frozen=True)
class Converted:
    """Counts of a converted file's entries."""

    entries: int
    rows: int
    empty: int  # entries that are no question of the kind asked for
    broken: tuple[tuple[str, str], ...]  # name and reason


def convert(
    layout: str,
    spec: Path,
    images: Path,
    out: Path,
    options: ConvertOptions,
    *,
    embed: bool = False,
    max_broken: float = 0.0,
    probe: Callable[[Sample], Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Converted:
    """Write the rows of a file of another layout to ``out``, parquet or JSONL; all or nothing.

    Args:
      layout: a key of `LAYOUTS`.
      spec: the file, or a data set of several.
      images: where the image paths of its entries start; none may lead out of it.
      options: what to make of an entry.
      embed: put the images into the file, instead of their paths from the folder of ``out``.
      max_broken: the share of entries that may be unusable; they are left out.
      probe: raises ValueError for a row that its verifier cannot grade.
      progress: called now and then with the number of entries looked at.

    Raises ValueError naming entries if more are broken, and for a file that cannot be read or written.
    """
    check_kind(out)
    if embed and out.suffix == ".jsonl":
        raise ValueError(f"{out}: JSONL holds no images; write a .parquet file, or paths")
    if out.exists() and spec.exists() and out.samefile(spec):
        raise ValueError(f"{out} is what is to be converted: write to another file")
    if not images.is_dir():
        raise ValueError(f"the folder of images {images} does not exist")
    pictures = ImageFolder(images.absolute())
    entries = (box_entries if layout == "coco" else read_entries)(spec)
    count, empty = 0, 0
    broken: list[tuple[str, str]] = []

    def rows() -> Iterator[Row]:
        nonlocal count, empty
        for count, (name, entry) in enumerate(entries, 1):
            try:
                if isinstance(entry, Exception):
                    raise entry
                if not isinstance(entry, Mapping):
                    raise ValueError(f"a {type(entry).__name__}, not an object")
                made = [
                    _check_row(row, name, out.absolute().parent, pictures, embed, probe)
                    for row in LAYOUTS[layout](entry, pictures, options)
                ]
            except Exception as error:  # whatever an entry makes a parser raise, that entry is broken
                broken.append((name, reason(error, name)))
                continue
            empty += not made
            if progress and count % EVERY == 0:
                progress(count)
            yield from made
        if len(broken) > max_broken * count:
            shown = "\n  ".join(f"{name}: {why}" for name, why in broken[:SHOWN])
            raise ValueError(
                f"{spec}: {len(broken)} of {count} entries cannot be used:\n  {shown}\nFix or remove them, or"
                f" raise the share that may be broken, {max_broken:g}."
            )
        if empty + len(broken) == count:
            raise ValueError(f"{spec}: {count} entries, of which none makes a row")

    written = write_rows(out, rows())
    return Converted(entries=count, rows=written, empty=empty, broken=tuple(broken))


def _check_row(
    row: Row,
    name: str,
    folder: Path,
    pictures: ImageFolder,
    embed: bool,
    probe: Callable[[Sample], Any] | None,
) -> Row:
    """A row as it is written to ``folder``: checked as it will be when it is read, its images in place.

    Its verifier is the first of several ("number,text") that can grade it.
    """
    *others, last = row["verifier"].split(",")
    for verifier in (*others, last):
        row = {**row, "verifier": verifier}
        sample = sample_of(row, _COLUMNS, Path(), name, "")
        with contextlib.nullcontext() if verifier == last else contextlib.suppress(ValueError):
            if probe:
                probe(sample)
            break
    check_placeholders(sample.problem.count(IMAGE), len(sample.images), name)
    written: list[dict[str, Any]] = []
    for k, image in enumerate(sample.images):
        pictures.size(image, f"{name}, image {k}")
        if isinstance(image, bytes) or embed:
            written.append({"bytes": image if isinstance(image, bytes) else Path(image).read_bytes()})
        else:
            written.append({"path": os.path.relpath(image, folder)})
    return {**row, "answer": sample.answer, "images": written, "origin": name}
