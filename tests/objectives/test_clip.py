import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mmcl_jax.objectives.clip import clip_loss, normalise


@pytest.fixture(scope="module")
def numbers(golden):
    return np.load(golden / "clip_loss.npz")


def loss_of(ecg, cmr, weight=0.75, valid=None):
    loss, _ = clip_loss(ecg, cmr, temperature=0.1, cmr_weight=weight, valid=valid)
    return float(loss)


def test_golden_loss_and_logits(numbers):
    loss, logits = clip_loss(
        numbers["signal_projection"],
        numbers["image_projection"],
        temperature=numbers["temperature"].item(),
        cmr_weight=numbers["lambda_image"].item(),
    )
    assert float(loss) == pytest.approx(numbers["loss"].item(), rel=1e-6)
    # The golden logits have the image in the rows.
    error = np.linalg.norm(logits.T - numbers["logits"]) / np.linalg.norm(numbers["logits"])
    assert error < 1e-5


def test_equals_a_loop_over_queries(numbers):
    ecg, cmr = (np.array(normalise(numbers[f"{n}_projection"])) for n in ("signal", "image"))
    total = 0.0
    for b in range(len(ecg)):
        to_cmr = [np.exp(ecg[b] @ cmr[j] / 0.1) for j in range(len(ecg))]
        to_ecg = [np.exp(cmr[b] @ ecg[j] / 0.1) for j in range(len(ecg))]
        total -= 0.25 * np.log(to_cmr[b] / sum(to_cmr)) + 0.75 * np.log(to_ecg[b] / sum(to_ecg))
    assert loss_of(ecg, cmr) == pytest.approx(total / len(ecg), rel=1e-5)


def test_lambda_weighs_the_imaging_term(numbers):
    ecg, cmr = numbers["signal_projection"], numbers["image_projection"]
    assert loss_of(ecg, cmr, 1.0) == pytest.approx(loss_of(cmr, ecg, 0.0), rel=1e-6)
    assert loss_of(ecg, cmr, 0.75) != pytest.approx(loss_of(ecg, cmr, 0.25), rel=1e-3)


def test_padding_is_neither_query_nor_negative(numbers):
    ecg, cmr = numbers["signal_projection"], numbers["image_projection"]
    valid = np.arange(16) < 11
    padded = loss_of(
        np.where(valid[:, None], ecg, 7.0), np.where(valid[:, None], cmr, -3.0),
        valid=valid.astype(np.float32),
    )  # fmt: skip
    assert padded == pytest.approx(loss_of(ecg[:11], cmr[:11]), rel=1e-6)


def test_padding_leaves_gradients_finite(numbers):
    zeros = np.zeros((4, 128), np.float32)
    ecg = np.concatenate([numbers["signal_projection"][:4], zeros])
    cmr = np.concatenate([numbers["image_projection"][:4], zeros])
    valid = jnp.asarray([1.0] * 4 + [0.0] * 4)
    gradient = jax.grad(
        lambda e: clip_loss(e, cmr, temperature=0.1, cmr_weight=0.75, valid=valid)[0]
    )(ecg)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[:4]).max() > 0
    np.testing.assert_array_equal(gradient[4:], 0)


def test_scale_of_a_projection_does_not_matter_but_pairing_does(numbers):
    ecg, cmr = numbers["signal_projection"], numbers["image_projection"]
    assert loss_of(3 * ecg, cmr) == pytest.approx(loss_of(ecg, cmr), rel=1e-5)
    order = np.random.default_rng(0).permutation(16)
    assert loss_of(ecg[order], cmr[order]) == pytest.approx(loss_of(ecg, cmr), rel=1e-5)
    assert loss_of(ecg, ecg) < loss_of(ecg, ecg[order])


def test_upsampled_map_keeps_the_mean_place_and_is_divided():
    variables, maps = None, {}
    for upsampling, divisor in ((1, 1.0), (2, 0.5)):
        objective, views = tiny.objective("clip", map_upsampling=upsampling, map_divisor=divisor)
        if variables is None:  # The parameters are the same.
            batch = tiny.clean(views, tiny.batch(2))
            init = jax.jit(objective.init, static_argnames="train")
            variables = init(jax.random.key(0), batch, train=False)
        look = functools.partial(objective.apply, method="local_similarity")
        maps[upsampling] = jax.jit(look)(variables, batch)
    assert maps[1]["cmr"].shape == (2, 2, 2)
    assert maps[2]["cmr"].shape == (2, 4, 4)
    # A corner of the enlarged map is the corner of the map itself.
    np.testing.assert_allclose(maps[2]["cmr"][:, 0, 0], 2 * maps[1]["cmr"][:, 0, 0], rtol=1e-4)
    np.testing.assert_allclose(maps[2]["ecg"], 2 * maps[1]["ecg"], rtol=1e-4)
