"""FLOPs and bytes against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import pytest

from mmcl_jax.bench import steps, work

F32 = jnp.float32


def _shape(*shape):
    return jax.ShapeDtypeStruct(shape, F32)


def _products(function, *arguments):
    return list(work.find_products(jax.make_jaxpr(function)(*arguments).jaxpr))


def test_product():
    (found,) = _products(lambda x, w: x @ w, _shape(3, 4), _shape(4, 5))
    assert found.flops == 2 * 3 * 4 * 5
    assert found.elements == 3 * 4 + 4 * 5 + 3 * 5
    assert found.shape == "[3,4] x [4,5] -> [3,5]"


def test_loops_multiply_and_calls_are_entered():
    @jax.jit
    @jax.checkpoint
    def body(carry, w):
        return carry @ w, None

    def loop(x, weights):
        return jax.lax.scan(body, x, weights)[0]

    (found,) = _products(jax.jit(loop), _shape(3, 4), _shape(7, 4, 4))
    assert found.times == 7
    assert found.flops == 7 * 2 * 3 * 4 * 4
    (found,) = _products(
        lambda x: jax.lax.map(lambda row: jax.lax.map(lambda y: y @ y, row), x), _shape(2, 5, 3, 3)
    )
    assert found.times == 10


def test_convolution():
    def convolve(x, kernel, groups=1):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (2, 2),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    (found,) = _products(convolve, _shape(2, 8, 8, 6), _shape(3, 3, 6, 10))
    assert found.flops == 2 * (2 * 4 * 4 * 10) * (3 * 3 * 6)
    (found,) = _products(lambda x, k: convolve(x, k, 2), _shape(2, 8, 8, 6), _shape(3, 3, 3, 10))
    assert found.flops == 2 * (2 * 4 * 4 * 10) * (3 * 3 * 3)


def test_of_a_conditional_the_longer_branch_counts():
    def choose(p, x):
        return jax.lax.cond(p, lambda x: x @ x @ x, lambda x: x @ x, x)

    found = _products(choose, jax.ShapeDtypeStruct((), bool), _shape(3, 3))
    assert len(found) == 2


def test_logits_of_attention_are_not_moved():
    def attend(q, k, v):
        weights = jax.nn.softmax(jnp.einsum("hnd,hmd->hnm", q, k))
        return jnp.einsum("hnm,hmd->hnd", weights, v)

    arrays = (_shape(2, 5, 3), _shape(2, 7, 3), _shape(2, 7, 3))
    found = _products(attend, *arrays)
    assert sum(p.flops for p in found) == 2 * (2 * 2 * 5 * 7 * 3)
    assert sum(p.elements for p in found) == 2 * (5 * 3 + 7 * 3 + 7 * 3 + 5 * 3)


def test_step_counts_state_batch_and_three_passes():
    state, batch = {"w": _shape(4, 5)}, {"x": _shape(3, 4)}
    arguments = (state["w"], batch["x"])
    counted = {
        training: work.of_step(
            lambda w, x: x @ w,
            arguments,
            state=state,
            batch=batch,
            dtype="bfloat16",
            training=training,
        )
        for training in (True, False)
    }
    elements = 12 + 20 + 15
    assert counted[True].flops == 3 * 120
    assert counted[True].bytes == 3 * elements * 2 + 2 * 20 * 4 + 12 * 4
    assert counted[False].flops == 120
    assert counted[False].bytes == elements * 2 + 20 * 4 + 12 * 4


@pytest.mark.parametrize(
    ("name", "gflop"), [("mdm", 5.5), ("finetune", 11.4), ("mmcl", 34.4), ("embed", 3.6)]
)
def test_full_size_steps(name, gflop):
    counted = steps.build(name, 2, "float32").work()
    assert counted.flops / 2 / 1e9 == pytest.approx(gflop, rel=0.02)
    modules = {module for module, *_ in counted.by_module()}
    assert "ecg_encoder/block_*/mlp/fc1" in modules or name == "embed"
    assert "block_*/mlp/fc1" in modules or name != "embed"
    # The parts add up to the whole.
    assert sum(row[3] for row in counted.by_module()) == pytest.approx(counted.flops)
    # The dtype changes the bytes and not the FLOPs.
    half = steps.build(name, 2, "bfloat16").work()
    assert half.flops == counted.flops
    assert half.bytes < counted.bytes
