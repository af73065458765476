"""The dtype that a network computes in."""

import jax


def resolve(dtype: str) -> str:
    """`dtype`; 'auto' is bfloat16 where the device has units for it, else float32.

    TPUs have them, and NVIDIA GPUs since Ampere. Parameters, norms, softmax and losses are float32
    in any case.
    """
    if dtype != "auto":
        return dtype
    fast = jax.default_backend() == "tpu" or is_ampere_or_newer()
    return "bfloat16" if fast else "float32"


def is_ampere_or_newer() -> bool:
    """Whether the device is such an NVIDIA GPU."""
    device = jax.devices()[0]
    cuda = "cuda" in device.client.platform_version.lower()
    return cuda and float(device.compute_capability) >= 8.0
