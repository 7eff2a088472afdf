"""Multimodal policy optimization in JAX."""

import os

# XLA's CPU backend (seen with jaxlib 0.10.2) orders operations so that many may run at once, and in the update
# then sometimes reads a gradient while it is being written: the norm, and all that is scaled by it, comes out
# wrong, in up to half of the steps on two threads. In its other order results are the same every time. XLA
# reads the variable when its first client is made, hence here.
_FLAG = "--xla_cpu_enable_concurrency_optimized_scheduler"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}=false".strip()
