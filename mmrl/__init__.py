"""Multimodal policy optimization in JAX."""

import os

# Reductions that XLA's CPU backend hands to YNNPACK (seen with jaxlib 0.10.2) sometimes read an operand
# before it is complete: the gradient norm, and all that is scaled by it, then comes out wrong, in up to half
# of the updates on two threads. Left to XLA itself, results are the same every time. XLA reads the variable
# when its first client is made, hence here.
_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}=-reduce".strip()
