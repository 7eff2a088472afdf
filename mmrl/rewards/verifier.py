"""Verifiers as values: functions that grade a response, and their typed options.

A verifier is a pure function ``(sample, response) -> {component: value}``. What may differ between data sets
is a keyword argument of it, with a type: ``boxes(threshold=0.7)`` is the verifier `boxes` with that
threshold. A row's own facts of these names go before.
"""

import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache, update_wrapper
from inspect import Parameter, signature
from types import MappingProxyType
from typing import Annotated, Any, Concatenate, Generic, Literal, ParamSpec, TypeVar, overload

from mmrl.rewards.quantity import last_number
from mmrl.rewards.text import MAX_ANSWER, first_tagged, has_tag, last_answer_line, last_boxed, unboxed
from mmrl.sample import Sample
from mmrl.suggest import suggest

Components = dict[str, float]
Grade = Callable[[Sample, str], Components]
P = ParamSpec("P")
R = TypeVar("R")

# Types of options; the bounds of a number are the least and the most that it may be.
AnswerIn = Literal["box", "tag", "tag_or_all", "line", "number", "all"]
Share = Annotated[float, 0.01, 1.0]  # a threshold: from 0 on everything would be right
Size = Annotated[float, 0.0, 1e15]


@dataclass(frozen=True)
class Graded:
    """Grading of one response: its reward components, or why there are none.

    ``valid=False`` means that nobody knows the reward (the verifier raised, or ran out of time or memory).
    The row must be left out of statistics and of the loss; it is not a reward of 0.
    """

    components: dict[str, float]
    valid: bool = True
    error: str | None = None


class Verifier(Generic[P, R]):
    """A verifier, made of a function ``(sample, response, *, OPTION: TYPE = DEFAULT, ...)``; a decorator.

    Called with options it is the verifier that has these; called with a sample and a response it grades, with
    the sample's facts above its own options. ``needs_images``: it is given ``sample.images``, which others
    are not. Types of options are bool, float, str, list, a `Literal`, ``Annotated[float, least, most]``.
    """

    def __init__(
        self,
        function: Callable[Concatenate[Sample, str, P], R],
        *,
        name: str = "",
        options: Mapping[str, Any] = MappingProxyType({}),
        needs_images: bool = False,
    ) -> None:
        update_wrapper(self, function)
        self.function, self.name = function, name or function.__name__.rstrip("_")
        self.options, self.needs_images = options, needs_images

    @overload
    def __call__(self, sample: Sample, response: str, /) -> R: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, *_: P.args, **options: P.kwargs) -> "Verifier[P, R]": ...

    def __call__(self, *graded: Any, **options: Any) -> Any:
        if graded:
            function: Callable[..., Any] = self.function
            return function(*graded, **options_of(function, graded[0], self.options))
        known = _parameters(self.function)
        for name, value in options.items():
            if name not in known:
                raise TypeError(f"{self.name}() has no option {name!r}{suggest(name, known)}")
            options[name] = _typed(value, known[name].annotation, f"{self.name}({name}=...)")
        made = copy(self)
        made.options = {**self.options, **options}
        return made


def combine(*verifiers: Grade) -> Grade:
    """The verifier that reports the components of all ``verifiers``.

    The result raises ValueError if two of them report the same component.
    """

    def combined(sample: Sample, response: str) -> Components:
        components: Components = {}
        for part in verifiers:
            for name, value in part(sample, response).items():
                if name in components:
                    raise ValueError(
                        f"two verifiers report the component {name!r}; combine only distinct ones"
                    )
                components[name] = value
        return components

    return Verifier(combined, needs_images=any(getattr(part, "needs_images", False) for part in verifiers))


def options_of(
    function: Callable[..., Any], sample: Sample, defaults: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """The keyword arguments that a sample's facts, or else ``defaults``, give to a grading function.

    Raises ValueError if one is of another type, or there is none and the function has no default.
    """
    options: dict[str, Any] = {}
    for name, parameter in _parameters(function).items():
        value = sample.facts.get(name, defaults.get(name))
        if value is not None:
            options[name] = _typed(value, parameter.annotation, f"sample {sample.id}: facts[{name!r}]")
        elif parameter.default is Parameter.empty:
            raise missing_option(sample, name)
    return options


@cache
def _parameters(function: Callable[..., Any]) -> dict[str, Parameter]:
    """The options of a grading function: keyword-only parameters, and keys of its ``Unpack[TypedDict]``."""
    hints = typing.get_type_hints(function, include_extras=True)
    options: dict[str, Parameter] = {}
    for name, parameter in signature(function).parameters.items():
        if parameter.kind is Parameter.KEYWORD_ONLY:
            options[name] = parameter.replace(annotation=hints.get(name, Any))
        elif parameter.kind is Parameter.VAR_KEYWORD:  # Unpack of a TypedDict
            for key, hint in typing.get_type_hints(
                typing.get_args(hints[name])[0], include_extras=True
            ).items():
                options[key] = Parameter(key, Parameter.KEYWORD_ONLY, annotation=hint, default=None)
    return options


def _typed(value: Any, hint: Any, path: str) -> Any:
    """An option's value as its type has it. Raises ValueError naming ``path`` if it is of another."""
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):  # of a type and None, which stands for no value
        return _typed(value, typing.get_args(hint)[0], path)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if origin is Annotated or hint is float:
        least, most = getattr(hint, "__metadata__", (-math.inf, math.inf))
        fits, wanted = is_number and least <= value <= most, "a number"
        wanted += "" if math.isinf(least) and math.isinf(most) else f" from {least:g} to {most:g}"
        value = float(value) if fits else value
    elif origin is Literal:
        choices = typing.get_args(hint)
        fits, wanted = value in choices, f"one of {', '.join(map(str, sorted(choices)))}"
    elif origin in (list, Sequence):
        fits, wanted = isinstance(value, list | tuple), "a list"
        value = list(value) if fits else value
    elif hint is int:
        fits, wanted = is_number and isinstance(value, int), "a whole number"
    else:
        wanted = {bool: "true or false", str: "text"}.get(hint, "")
        fits = not wanted or isinstance(value, hint)
    if not fits:
        raise ValueError(f"{path} is {str(value)[:80]!r}, but should be {wanted}")
    return value


def missing_option(sample: Sample, name: str) -> ValueError:
    """The error of a row that lacks an option its verifier cannot do without."""
    return ValueError(
        f"sample {sample.id}: the verifier {sample.verifier!r} needs facts[{name!r}]; give it in the row,"
        " or in config.reward.options"
    )


def wrong_answer(sample: Sample, problem: str) -> ValueError:
    """The error of a row whose own answer a verifier cannot use: what is wrong with it, and the fix."""
    return ValueError(f"sample {sample.id}: answer {sample.answer[:80]!r} {problem}")


@dataclass(frozen=True)
class RolloutInfo:
    """One response and the run it was sampled in."""

    progress: float = 1.0  # share of the run's steps that are done; 1 in an evaluation
    tokens: int = 0  # of the response, without tool observations
    max_tokens: int = 0  # the budget of a response
    truncated: bool = False  # the budget ran out


def rollout_info(sample: Sample) -> RolloutInfo:
    """The rollout's part of a sample, ``facts["rollout"]``. ValueError if it was not sampled in one."""
    info = sample.facts.get("rollout")
    if not isinstance(info, Mapping):
        raise ValueError(
            f"sample {sample.id}: the verifier {sample.verifier!r} needs facts of a rollout; grade in a run,"
            ' or give facts["rollout"] with progress, tokens, max_tokens and truncated'
        )
    return RolloutInfo(**info)


def _after_thinking(response: str) -> str | None:
    rest = response.rpartition("</think>")[2].strip()
    return rest if len(rest) <= MAX_ANSWER else None


def _in_tag(response: str) -> str | None:
    return unboxed(first_tagged(response))


READERS: Mapping[str, Callable[[str], str | None]] = MappingProxyType(
    {
        "box": last_boxed,
        "tag": _in_tag,
        # as in EasyR1's examples/reward_function/r1v.py
        "tag_or_all": lambda response: (_in_tag if has_tag(response) else _after_thinking)(response),
        "line": lambda response: unboxed(last_answer_line(response)),
        "number": last_number,
        "all": _after_thinking,
    }
)


def answer_of(response: str, answer_in: AnswerIn = "box") -> str:
    r"""The answer that ``response`` gives, stripped; "" if there is none, or it is too long to be one.

    ``answer_in``: "box" (the last ``\boxed{}``), "tag" (the first ``<answer>``), "tag_or_all" (that, or the
    whole of a response without the tag), "line" (after the last ``Answer:``), "number" (the last number),
    "all" (what follows the thinking). In a tag or on a line a box may stand around the answer.
    """
    return READERS[answer_in](response) or ""
