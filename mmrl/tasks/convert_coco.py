"""Boxes: COCO's instances, and referring expressions with a box, as in RefCOCO.

Boxes are given as [x, y, width, height] in pixels of the image, and become [left, top, right, bottom].
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrl.models.images import image_size
from mmrl.tasks.convert_entries import Entry, Images, Options, first_of, read_entries, read_json

OVERSHOOT = 2.0  # pixels that a box may reach beyond its image, by rounding; it is cut off
NAMES = ("file_name", "image", "image_path", "img_path", "filename")
UNITS = {
    "pixels": "in pixels",
    "unit": "from 0 to 1 over the width and the height",
    "thousand": "from 0 to 1000 over the width and the height",
}
SENTENCES = ("sentence", "sentences", "expression", "caption", "phrase", "ref", "answer")


def entries(spec: Path) -> Iterator[Entry]:
    """Images with their annotations, of a file of instances; else what ``read_entries`` finds.

    Raises ValueError for a file of instances without one of its lists.
    """
    whole = read_json(spec) if spec.is_file() else None
    if not isinstance(whole, Mapping) or "annotations" not in whole:
        yield from read_entries(spec)
        return
    for key in ("images", "annotations", "categories"):
        part = whole.get(key)
        if not isinstance(part, list) or not all(isinstance(one, Mapping) for one in part):
            raise ValueError(f"{spec}: {key!r} is not a list of objects, as COCO's instances have")
    names = {str(category.get("id")): category.get("name") for category in whole["categories"]}
    known = {str(image.get("id")) for image in whole["images"]}
    found: dict[str, list[Any]] = defaultdict(list)
    for one in whole["annotations"]:
        owner = str(one.get("image_id"))
        if owner in known:
            found[owner].append(one)
        else:
            yield f"{spec.name}: annotation {one.get('id')}", ValueError(f"it is of no image: {owner[:40]}")
    for image in whole["images"]:
        owner = str(image.get("id"))
        yield f"{spec.name}: image {owner}", {"image": image, "annotations": found[owner], "names": names}


def rows(entry: Mapping[str, Any], images: Images, options: Options) -> list[dict[str, Any]]:
    """One row to detect all objects of an image, or one for each category of which it has one object; of a
    referring expression, one for each sentence.

    A category of which an image has a crowd (``iscrowd``) is not asked for there. Raises ValueError for a box
    that is none, an unknown category, or an image that is not there or of another size than stated.
    """
    if "annotations" not in entry:
        return _referring(entry, images, options)
    image = entry["image"]
    path = images.path(first_of(image, NAMES))
    size = images.size(path, path)
    stated = (image.get("height", size[0]), image.get("width", size[1]))
    if stated != size:
        raise ValueError(
            f"the image is {size[1]}x{size[0]} pixels, but {stated[1]}x{stated[0]} where its boxes are"
        )
    objects = []
    for one in entry["annotations"]:
        name, box = _name(one.get("category_id"), entry["names"]), _corners(one.get("bbox"), size)
        objects.append((name, box, bool(one.get("iscrowd"))))
    crowds = {name for name, _, crowd in objects if crowd}
    alone = [(name, box) for name, box, _ in objects if name not in crowds]
    make = _detection if options.task == "detect" else _grounding
    return [{**row, **_frame(path, size, options)} for row in make(alone, UNITS[options.coordinates])]


def _detection(objects: Sequence[tuple[str, list[float]]], units: str) -> list[dict[str, Any]]:
    if not objects:
        return []
    listed = ", ".join(sorted({name for name, _ in objects}))
    return [
        {
            "problem": f"<image>Find every object of these kinds: {listed}. Give a JSON list with one"
            f' {{"bbox_2d": [x1, y1, x2, y2], "label": kind}} for each, {units}.',
            "answer": json.dumps([{"bbox_2d": box, "label": name} for name, box in objects]),
            "verifier": "boxes",
            "kind": "detection",
        }
    ]


def _grounding(objects: Sequence[tuple[str, list[float]]], units: str) -> list[dict[str, Any]]:
    count = Counter(name for name, _ in objects)
    return [_box_row(f"Where is the {name}?", box, units) for name, box in objects if count[name] == 1]


def _referring(entry: Mapping[str, Any], images: Images, options: Options) -> list[dict[str, Any]]:
    embedded = isinstance(entry.get("image"), Mapping) and entry["image"].get("bytes")
    image = images.picture(embedded or first_of(entry, NAMES))
    size = image_size(image, "its image") if isinstance(image, bytes) else images.size(image, image)
    box = _corners(entry.get("bbox"), size)
    told = first_of(entry, SENTENCES)
    sentences = [
        first_of(one, ("sent", "raw", "sentence")) if isinstance(one, Mapping) else one
        for one in (told if isinstance(told, list) else [told])
    ]
    if not all(isinstance(sentence, str) and sentence.strip() for sentence in sentences):
        raise ValueError(f"no sentence that refers to the box, under {', '.join(SENTENCES)}")
    units = UNITS[options.coordinates]
    return [
        {
            **_box_row(f'Find what this describes: "{sentence.strip()}".', box, units),
            **_frame(image, size, options),
        }
        for sentence in sentences
    ]


def _box_row(question: str, box: Sequence[float], units: str) -> dict[str, Any]:
    return {
        "problem": f"<image>{question} Give its box as [x1, y1, x2, y2], {units}.",
        "answer": json.dumps(box),
        "verifier": "box",
        "kind": "grounding",
    }


def _frame(image: bytes | str, size: tuple[int, int], options: Options) -> dict[str, Any]:
    """The image, and what the verifier must know to compare an answer with its pixels."""
    facts = {"image_size": [size[1], size[0]], "coordinates": options.coordinates}
    return {"images": [image], "facts": facts}


def _name(category: Any, names: Mapping[str, Any]) -> str:
    name = names.get(str(category))
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"an object of the unknown category {str(category)[:40]}")
    return name.strip()


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
