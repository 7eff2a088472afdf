import jax
import pytest


@pytest.fixture
def haste():
    """Programs are compiled in haste: they run for seconds."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
