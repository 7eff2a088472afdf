"""What of a program's work is useful: the tokens that there are, the operations they need, rates by these."""

from dataclasses import dataclass, replace

import jax
from jax.extend.core import ClosedJaxpr

from mmrl.plan import flops
from mmrl.plan.lengths import RowCounts
from mmrl.plan.workload import Workload, program


@dataclass(frozen=True)
class RealTokens:
    """Tokens of one call of a program, over all devices.

    Attributes:
      tokens: that there are, prompts once; of decode, those sampled in slots that do not wait.
      computed_over_real: slots of the rows over ``tokens``; of decode, response slots times steps over the
        tokens of all responses of a rollout.
      repeated_over_real: tokens that there would be with a prompt for each response, over ``tokens``.
      rows: that are computed; 0 where none are packed.
      steps: that decode takes for a rollout, in the slots that a run chooses by these lengths; 0 elsewhere.
    """

    tokens: int
    computed_over_real: float
    repeated_over_real: float | None = None
    rows: int = 0
    steps: int = 0


def real_tokens(work: Workload, name: str, flops_per_byte: float) -> RealTokens:
    """Of the program ``name``, on devices that do so many operations while they read a byte."""
    if name == "decode":
        tokens, count = work.decode_count(flops_per_byte)
        share = tokens / count.token_capacity
        rollout = work.config.rollout
        slots = work.prompt_slots * min(rollout.slots_per_prompt or rollout.group, rollout.group)
        return RealTokens(round(share * slots * rollout.max_tokens), 1 / share, steps=count.steps)
    if name == "prefill":
        rows = round(work.prompt_rows.token_rows) * work.prompt_shards
        tokens = int(work.prompt_lengths.prompts.sum())
        return RealTokens(tokens, rows * work.prompt_budget.tokens / tokens, rows=rows)
    lengths, rows = work.lengths, work.computed_rows
    return RealTokens(
        lengths.tokens,
        rows * work.budget.tokens / lengths.tokens,
        lengths.repeated_tokens / lengths.tokens,
        rows,
    )


@dataclass(frozen=True)
class UsefulFlops:
    """Operations of products in one call, over all devices.

    Attributes:
      computed: by the program.
      useful: those that real tokens need, once: none of empty slots, of pairs of tokens that do not read each
        other, or of what is computed again to save memory. Of decode, also what masks hide.
      repeated: as many as would be useful with a prompt for each response; None in prefill and decode.
    """

    computed: flops.Flops
    useful: int
    repeated: int | None


def useful_flops(work: Workload, name: str, traced: jax.stages.Traced, real: RealTokens) -> UsefulFlops:
    """Counted on the program ``name`` as traced, and on one that computes nothing twice."""
    computed = count(work, traced.jaxpr, work.trips(name))
    if name == "decode":
        return UsefulFlops(computed, round(computed.total / real.computed_over_real), None)
    lean = traced
    if name == "update" and work.model.remat != "none":
        lean = trace(replace(work, model=replace(work.model, remat="none")), name)

    def needed(rows: RowCounts) -> int:
        return count(work, lean.jaxpr, rows.trips()).total

    repeated = None if name == "prefill" else needed(work.needed_rows(name, repeated=True))
    return UsefulFlops(computed, needed(work.needed_rows(name)), repeated)


def trace(work: Workload, name: str) -> jax.stages.Traced:
    """The program ``name``, traced on abstract arguments."""
    function, abstract, static = program(work, name)
    with jax.set_mesh(work.mesh):
        return function.trace(*abstract, **static)


def count(work: Workload, jaxpr: ClosedJaxpr, trips: dict[str, float]) -> flops.Flops:
    """`mmrl.plan.flops.count` of a program of ``work``, whose loops turn so often."""
    return flops.count(
        jaxpr,
        trips=trips,
        expensive_fraction=work.full_attention_fraction,
        platform=work.mesh.devices.flat[0].platform,
    )


@dataclass(frozen=True)
class Rates:
    """Real tokens a second, and operations of a device a second over its peak; None where not known."""

    tokens_per_second: float | None
    useful_share: float | None
    repeated_share: float | None


def rates(tokens: int, seconds: float, useful: float | None, repeated: float | None, peak: float) -> Rates:
    """Of a call that takes so long: ``tokens`` of all devices, and operations of one."""

    def over_peak(operations: float | None) -> float | None:
        return None if operations is None else operations / seconds / peak

    return Rates(tokens / seconds, over_peak(useful), over_peak(repeated))
