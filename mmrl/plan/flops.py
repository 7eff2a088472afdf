"""Floating-point operations of matrix products and convolutions, counted on the program before compilation.

The compiler's own count takes the body of a loop once; here loops are multiplied out.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


@dataclass(frozen=True)
class Flops:
    """Operations of a program.

    Attributes:
      total: operations of products and convolutions, over all devices.
      unbounded: a loop's number of iterations is not in the program, and was taken as one.
    """

    total: int
    unbounded: bool = False


def count(
    jaxpr: ClosedJaxpr | Jaxpr,
    *,
    trips: Mapping[str, float] = MappingProxyType({}),
    expensive_fraction: float = 1.0,
    platform: str = "tpu",
    scope: str = "",
) -> Flops:
    """Operations of all matrix products and convolutions: 2 M N K for each, over all devices together.

    Loops with a length count that often, a recomputed block as often as it is computed, the body of a
    `jax.shard_map` once a device of the axes it is manual over. A Pallas kernel counts its stated cost, else
    its products times its grid.

    Args:
      jaxpr: of a traced program, its shapes global.
      trips: iterations of loops, and sizes of the axes of grids, that are data, by the `jax.named_scope` that
        they stand in: the innermost that is named here, or "" for any. Others run once.
      expensive_fraction: share of the runs of a `jax.lax.cond` that take its costliest branch; the others are
        held to take its cheapest.
      platform: which branch of `jax.lax.platform_dependent` runs.
      scope: names of the scopes around the program, outermost first.
    """
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    total, unbounded = 0, False
    for equation in jaxpr.eqns:
        found = _of_equation(equation, trips, expensive_fraction, platform, scope)
        total, unbounded = total + found.total, unbounded or found.unbounded
    return Flops(total, unbounded)


def _of_equation(
    equation: JaxprEqn, trips: Mapping[str, float], expensive_fraction: float, platform: str, scope: str
) -> Flops:
    kind, params = equation.primitive.name, equation.params
    scope = f"{scope}/{equation.source_info.name_stack}"
    if kind == "dot_general":
        return Flops(_product(equation))
    if kind == "conv_general_dilated":
        return Flops(_convolution(equation))
    if kind == "ragged_dot_general":
        return Flops(_ragged_product(equation))
    if kind == "pallas_call" and params["cost_estimate"] is not None:
        return Flops(int(params["cost_estimate"].flops))
    inside = partial(
        count,
        trips=trips,
        expensive_fraction=expensive_fraction,
        platform=platform,
        scope="" if kind == "while" else scope,  # the scope of a loop is not that of the loops in it
    )
    inner = [inside(sub) for sub in _subprograms(params)]
    unbounded = any(flops.unbounded for flops in inner)
    if kind == "cond":
        if params.get("branches_platforms"):
            return inner[_branch(params["branches_platforms"], platform)]
        totals = [flops.total for flops in inner]
        return Flops(
            round(expensive_fraction * max(totals) + (1 - expensive_fraction) * min(totals)), unbounded
        )
    times, known = _times(kind, params, innermost(trips, scope))
    total = round(times * sum(flops.total for flops in inner))
    return Flops(total, unbounded or (total > 0 and not known))


def innermost(trips: Mapping[str, float], scope: str) -> float | None:
    """The value of the last name in ``scope``, a path of scopes; of "" if it has none; None without that."""
    found = re.findall("|".join(map(re.escape, sorted(filter(None, trips)))) or "$^", scope)
    return trips.get(found[-1] if found else "")


def _times(kind: str, params: Mapping[str, Any], trips: float | None) -> tuple[float, bool]:
    """Runs of the programs inside an equation, over all devices, and whether their number is known."""
    if kind == "scan":
        return params["length"], True
    if kind == "while":
        return (1, False) if trips is None else (trips, True)
    if kind == "shard_map":
        axes = params["newly_manual_axes"] if "newly_manual_axes" in params else params["manual_axes"]
        return math.prod(params["mesh"].shape[axis] for axis in axes), True
    if kind == "pallas_call":
        grid = params["grid_mapping"].grid
        fixed = [size for size in grid if isinstance(size, int)]
        if len(fixed) == len(grid) or trips is None:
            return math.prod(fixed), len(fixed) == len(grid)
        return math.prod(fixed) * trips, True
    return 1, True


def _branch(platforms: tuple[tuple[str, ...] | None, ...], platform: str) -> int:
    for index, names in enumerate(platforms):
        if names is None or platform in names:  # None: the default, and last
            return index
    raise ValueError(f"the program has no branch for the platform {platform!r}, only for {platforms}")


def _subprograms(params: Mapping[str, Any]) -> Iterator[Jaxpr | ClosedJaxpr]:
    for value in params.values():
        values = value if isinstance(value, tuple | list) else (value,)
        yield from (inner for inner in values if isinstance(inner, Jaxpr | ClosedJaxpr))


def _product(equation: JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = _shape(equation.invars[0])
    return 2 * math.prod(_shape(equation.outvars[0])) * math.prod(left[axis] for axis in contracted)


def _ragged_product(equation: JaxprEqn) -> int:
    numbers = equation.params["ragged_dot_dimension_numbers"]
    (_, contracted), (_, batch) = numbers.dot_dimension_numbers
    left, right = (_shape(variable) for variable in equation.invars[:2])
    shared = {*contracted, *batch, *numbers.rhs_group_dimensions}
    return 2 * math.prod(left) * math.prod(size for axis, size in enumerate(right) if axis not in shared)


def _convolution(equation: JaxprEqn) -> int:
    kernel = _shape(equation.invars[1])
    outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(_shape(equation.outvars[0])) * (math.prod(kernel) // outputs)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape
