"""The seeded ResNet50 on the seeded frames, computed once for several tests."""

import types

import golden_weights
import jax
import numpy as np
import pytest

from mmcl_jax.models import resnet


@pytest.fixture(scope="session")
def resnet50(golden):
    """Variables, frames [2, 210, 210, 3], outputs in evaluation, and PyTorch's numbers."""
    variables = golden_weights.resnet(golden_weights.state_dict(golden, "image_encoder"))
    expected = dict(np.load(golden / "image_encoder.npz"))
    draw = np.random.default_rng(int(expected["seed"]))
    frames = draw.random((2, 3, 210, 210)).astype(np.float32).transpose(0, 2, 3, 1)
    outputs = jax.jit(resnet.Model().apply)(variables, frames)
    return types.SimpleNamespace(
        variables=variables, frames=frames, outputs=outputs, expected=expected
    )
