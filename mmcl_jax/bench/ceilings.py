"""What the device can do at most: a large matrix product, and a pass over a large array."""

import dataclasses

import jax
import jax.numpy as jnp

from mmcl_jax.bench.timing import Competitor

MATMUL = "matmul peak"
BANDWIDTH = "bandwidth"


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """Attributes:
    competitor: runs it.
    work: FLOPs or bytes of one repetition.
    """

    competitor: Competitor
    work: float


def matmul(dtype: str, size: str = "full") -> Ceiling:
    """A product of `dtype`: [4096, 1024] x [1024, 1024] on a CPU, 8192 x 8192 squared elsewhere.

    Precision is JAX's default for that dtype, as in the models.
    """
    rows, inner, columns = (4096, 1024, 1024) if jax.default_backend() == "cpu" else (8192,) * 3
    if size == "tiny":
        rows, inner, columns = 64, 64, 64
    # Random: what a GPU multiplies decides what power it draws, and so its clock.
    left = jax.random.normal(jax.random.key(0), (rows, inner), dtype)
    right = jax.random.normal(jax.random.key(1), (inner, columns), dtype)
    product = jax.jit(lambda left, right: left @ right)

    def run(count: int) -> None:
        for _ in range(count):
            result = product(left, right)
        jax.block_until_ready(result)

    return Ceiling(Competitor(MATMUL, run), 2.0 * rows * inner * columns)


def bandwidth(size: str = "full") -> Ceiling:
    """x + 1 in place over an array beyond every cache; bytes read and written."""
    mebibytes = 256 if jax.default_backend() == "cpu" else 1024
    if size == "tiny":
        mebibytes = 1
    # A step that changes its argument in place: no pages are asked for while it is timed.
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    held = [jnp.zeros(mebibytes * 2**18, jnp.float32)]

    def run(count: int) -> None:
        for _ in range(count):
            held[0] = step(held[0])
        jax.block_until_ready(held[0])

    return Ceiling(Competitor(BANDWIDTH, run), 2.0 * mebibytes * 2**20)
