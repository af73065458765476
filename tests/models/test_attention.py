import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmcl_jax.models import attention as attention_file
from mmcl_jax.models.attention import SelfAttention, self_attention

SHAPE = (8, 5, 2, 4)  # [B, N, heads, d]


def test_values_and_gradients_are_those_of_plain_attention():
    ours, our_gradients = jax.jit(_outputs_and_gradients(attention))(*_inputs())
    expected, gradients = jax.jit(_outputs_and_gradients(_plain))(*_inputs())
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    for our, gradient in zip(our_gradients, gradients, strict=True):
        np.testing.assert_allclose(our, gradient, atol=1e-5)


def test_accelerators_get_the_same_numbers(monkeypatch):
    expected = attention(*_inputs())
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    np.testing.assert_allclose(attention(*_inputs()), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "width", "version", "capability", "served"),
    [
        (jnp.bfloat16, 64, "cuda 12090", "8.6", True),
        (jnp.float16, 32, "cuda 12090", "9.0", True),
        (jnp.float32, 64, "cuda 12090", "8.6", False),
        (jnp.bfloat16, 64, "cuda 12090", "7.0", False),
        (jnp.bfloat16, 20, "cuda 12090", "8.6", False),
        (jnp.bfloat16, 64, "rocm 6", "gfx90a", False),
    ],
)
def test_cudnn_is_used_where_it_serves(monkeypatch, dtype, width, version, capability, served):
    client = types.SimpleNamespace(platform_version=version)
    device = types.SimpleNamespace(client=client, compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert attention_file._cudnn_serves(jnp.zeros((1, 1, 1, width), dtype)) is served


@pytest.mark.parametrize("count", [4, 5])
def test_a_token_more_changes_nothing(count):
    qkv = np.random.default_rng(0).normal(size=(3, count, 3, 2, 4)).astype(np.float32)

    def loss(function):
        return lambda qkv: jnp.sin(function(qkv)).sum()

    ours = jax.value_and_grad(loss(lambda x: attention_file._fused(x, "xla")))(qkv)
    expected = jax.value_and_grad(loss(attention_file._whole_batch))(qkv)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, expected)


@pytest.mark.parametrize("members", [(), (3,)])
@pytest.mark.parametrize("count", [60, 61, 301])
def test_cudnn_trains_with_any_number_of_tokens(monkeypatch, count, members):
    """Lowered for a GPU, with the probes of its version answered: nothing is compiled or run."""
    kernels = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(kernels, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(kernels, "check_cudnn_version", lambda: 91200)
    monkeypatch.setattr(kernels, "is_cuda_compute_capability_equal", lambda capability: False)
    step = jax.grad(lambda qkv: jnp.square(attention_file._fused(qkv).astype(jnp.float32)).sum())
    for _ in members:
        step = jax.vmap(step)
    qkv = jax.ShapeDtypeStruct((*members, 4, count, 3, 6, 64), jnp.bfloat16)
    program = jax.jit(step).trace(qkv).lower(lowering_platforms=("cuda",)).as_text()
    assert "cudnn$fmhaSoftmax" in program
    assert "cudnn$fmhaSoftmaxBackward" in program


def test_half_precision_keeps_its_dtype_and_stays_close():
    inputs = [jnp.asarray(x, jnp.bfloat16) for x in _inputs()]
    ours = attention(*inputs)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(ours, np.float32), attention(*_inputs()), atol=0.03)


def test_eight_devices_give_the_numbers_of_one():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    spread = [jax.device_put(x, sharding) for x in _inputs()]
    np.testing.assert_allclose(jax.jit(attention)(*spread), attention(*_inputs()), atol=1e-6)


def test_width_must_be_a_multiple_of_heads():
    with pytest.raises(ValueError, match=r"width 10.*heads 3"):
        SelfAttention(3).init(jax.random.key(0), jnp.zeros((1, 2, 10)))


def attention(query, key, value):
    return self_attention(jnp.stack([query, key, value], axis=2))


def _inputs():
    return list(np.random.default_rng(0).normal(size=(3, *SHAPE)).astype(np.float32))


def _plain(query, key, value):
    logits = jnp.einsum("bnhd,bmhd->bhnm", query, key) / query.shape[-1] ** 0.5
    return jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(logits, axis=-1), value)


def _outputs_and_gradients(function):
    def run(*inputs):
        weights = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
        gradient = jax.grad(lambda *x: (function(*x) * weights).sum(), argnums=(0, 1, 2))
        return function(*inputs), gradient(*inputs)

    return run
