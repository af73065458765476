import jax
import pytest


@pytest.fixture(scope="module")
def compiled_quickly():
    """For programs that run a few steps only."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
