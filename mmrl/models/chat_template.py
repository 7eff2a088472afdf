"""The chat template of a model directory, tried before it is used: it is a program that somebody wrote."""

import re
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes

from mmrl.models.model_files import read_json, short_repr
from mmrl.terminal import one_line

# Far beyond what a template of a short conversation does, which is some hundreds of lines.
_MOST_STEPS = 200_000  # lines of Python, to render a short conversation
_STEPS_TO_COMPILE = 400  # likewise, for a character of the template
_LONGEST = 50_000  # characters
_MOST_BYTES = 128 << 20  # of memory beside what there was
_LARGEST_NUMBER = 100_000  # in its text
_MOST_CHARACTERS = 100_000  # of what it renders
_ASKED = "What is this?"


def attach_chat_template(tokenizer: Any, folder: Path, *, images: bool) -> None:
    """Give the tokenizer the template that transformers' processor takes, and try it on a conversation.

    Contents are lists of parts in the conversations of a model that reads ``images``, and else texts.

    That is the one of processor_config.json, then of chat_template.json, then the tokenizer's own (of
    chat_template.jinja or tokenizer_config.json).

    Raises ValueError naming the file if there is none, or it is no text, is no template, raises, leaves the
    sandbox, or takes more steps or memory than any template needs.
    """
    own = "chat_template.jinja" if (folder / "chat_template.jinja").is_file() else "tokenizer_config.json"
    found = {own: tokenizer.chat_template}  # the last one that is there is taken, but all must be templates
    for name in ("chat_template.json", "processor_config.json"):
        if (folder / name).is_file():
            found[name] = read_json(folder, name).get("chat_template")
    found = {name: template for name, template in found.items() if template is not None}
    if not found:
        raise ValueError(
            f"{folder} has no chat template. Put one in tokenizer_config.json or chat_template.json."
        )
    for name, template in found.items():
        with _naming(folder / name):
            _check_text(template)
    source, tokenizer.chat_template = list(found.items())[-1]
    with _naming(folder / source):
        _try(tokenizer, images)


@contextmanager
def _naming(source: Path) -> Iterator[None]:
    """A block in which whatever a template raises becomes one line about its file."""
    try:
        yield
    except Exception as error:
        line = f" in line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise ValueError(f"{source}: the chat template does not work{line}: {one_line(error)}") from error


def _try(tokenizer: Any, images: bool) -> None:
    """Render a short conversation, and a longer one."""
    template = tokenizer.chat_template
    texts = list(template.values()) if isinstance(template, dict) else [template]
    most = _MOST_STEPS + _STEPS_TO_COMPILE * max(map(len, texts))
    content = [{"type": "image"}, {"type": "text", "text": _ASKED}] if images else _ASKED
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": "A cat."},
    ]
    for conversation in (turns[:1], [*turns, *turns[:1]]):
        made = _bounded(
            partial(tokenizer.apply_chat_template, conversation, tokenize=False, add_generation_prompt=True),
            most,
        )
        if not isinstance(made, str) or len(made) > _MOST_CHARACTERS:
            raise ValueError(f"it makes more than {_MOST_CHARACTERS} characters of a short conversation")
        if made.count(_ASKED) != sum(turn["role"] == "user" for turn in conversation):
            raise ValueError("it does not show once what each user says")


def _check_text(template: Any) -> None:
    """Raises ValueError unless a template, or each of several by name, is text that can be compiled."""
    texts = list(template.values()) if isinstance(template, dict) else [template]
    wrong = [text for text in texts if not isinstance(text, str)]
    if wrong or not texts:
        raise ValueError(f"it is {short_repr(wrong[0] if wrong else template)}, not a text")
    for text in texts:
        _check_numbers(text)


def _check_numbers(text: str) -> None:
    """Raises ValueError for arithmetic that makes large texts in one step, even while it is compiled."""
    if len(text) > _LONGEST:
        raise ValueError(f"it has {len(text)} characters, more than {_LONGEST}")
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    # Tags of transformers' own.
    text = re.sub(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}", "", text)
    tree = environment.parse(text)
    if any(True for _ in tree.find_all((nodes.Pow, nodes.Mul))):
        raise ValueError("it multiplies, which no conversation needs")
    for constant in tree.find_all(nodes.Const):
        if isinstance(constant.value, int | float) and abs(constant.value) > _LARGEST_NUMBER:
            raise ValueError(f"it has the number {short_repr(constant.value)}, which no conversation needs")


def _bounded(render: Callable[[], Any], most: int) -> Any:
    """The text that ``render`` returns. Raises ValueError if it takes more than ``most`` steps, or memory."""
    steps, before, start = 0, sys.gettrace(), _peak_bytes()

    def count(frame, event, argument):
        nonlocal steps
        steps += 1
        if steps > most:
            raise ValueError(f"it is not done after {most} steps")
        if steps % 16 == 0 and _peak_bytes() - start > _MOST_BYTES:
            raise ValueError(f"it takes more than {_MOST_BYTES >> 20} MB")
        return count

    sys.settrace(count)
    try:
        return render()
    finally:
        sys.settrace(before)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
