"""Multimodal policy optimization in JAX."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmrl.notebook import load as load

# Settings of the compilers, read when the first device is asked for; one that the user has set stays.
#
# Reductions that XLA's CPU backend hands to YNNPACK (seen with jaxlib 0.10.2) sometimes read an operand
# before it is complete: the gradient norm, and all that is scaled by it, then comes out wrong, in up to half
# of the updates on two threads. Left to XLA itself, results are the same every time.
#
# For TPU, the compiler would cut an all-gather beside a large product into a loop of permutes, which overlap
# with parts of the product. By its own estimate that loses for weights cut over ``fsdp``: the update of a 7B
# model takes half as many cycles again (docs/performance.md).
for _variable, _flag, _value in (
    ("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type", "-reduce"),
    ("LIBTPU_INIT_ARGS", "--xla_jf_spmd_threshold_for_windowed_einsum_mib", "1000000"),
):
    if _flag not in os.environ.get(_variable, ""):
        os.environ[_variable] = f"{os.environ.get(_variable, '')} {_flag}={_value}".strip()

# Only tokenizers are taken from transformers: that it finds no PyTorch is nothing to tell.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def __getattr__(name: str) -> Any:
    """`mmrl.load`, imported when it is asked for: jax and what lies above it take seconds."""
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mmrl.notebook import load

    return load
