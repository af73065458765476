import jax
import numpy as np
import pytest
import tiny

from mmcl_jax.models.vit import patchify
from mmcl_jax.objectives import masked_modelling as mdm


@pytest.fixture(scope="module")
def numbers(golden):
    return np.load(golden / "masked_autoencoder.npz")


@pytest.fixture(scope="module")
def target(numbers):
    shape = (2, 12, 2500)
    ecg = np.random.default_rng(numbers["input_seed"].item()).standard_normal(shape)
    return np.asarray(patchify(ecg.astype(np.float32), (1, 100)))


def test_golden_masks(numbers):
    noise = np.random.default_rng(numbers["noise_seed"].item()).random((2, 300))
    visible, restore, mask = mdm.shuffle(noise.astype(np.float32), 59)
    np.testing.assert_array_equal(restore, numbers["ids_restore"])
    np.testing.assert_array_equal(mask, numbers["mask"])
    assert visible.shape == (2, 59)
    assert set(np.flatnonzero(mask[0] == 0)) == set(np.asarray(visible[0]).tolist())


def test_golden_losses(numbers, target):
    prediction = numbers["prediction"]
    mse = mdm.squared_error(prediction, target).mean()
    ncc = mdm.lead_correlation(prediction, target, 12).mean()
    assert float(mse) == pytest.approx(numbers["loss_mse_all_patches"].item(), rel=1e-6)
    assert float(0.9 * mse + 0.1 * (1 - ncc)) == pytest.approx(
        numbers["loss_mse_ncc_0p1"].item(), rel=1e-6
    )
    norm = mdm.squared_error(prediction, mdm.normalise_patches(target)).mean()
    assert float(norm) == pytest.approx(numbers["loss_norm_pix"].item(), rel=1e-6)


def test_correlation_equals_numpy(numbers, target):
    ours = mdm.lead_correlation(numbers["prediction"], target, 12)
    prediction, signal = (x.reshape(2, 12, 2500) for x in (numbers["prediction"], target))
    expected = [
        np.mean([np.corrcoef(prediction[b, lead], signal[b, lead])[0, 1] for lead in range(12)])
        for b in range(2)
    ]
    np.testing.assert_allclose(ours, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("ratio", "nearest", "truncate"),
    [(0.8, 60, 59), (0.75, 75, 75), (0.5, 150, 150), (0.6, 120, 120), (0.7, 90, 90), (0.9, 30, 29)],
)
def test_number_of_visible_tokens(ratio, nearest, truncate):
    assert mdm.visible_tokens(300, ratio, "nearest") == nearest
    assert mdm.visible_tokens(300, ratio, "truncate") == truncate


def test_unknown_rounding_is_an_error():
    with pytest.raises(ValueError, match="nearest, truncate"):
        mdm.visible_tokens(300, 0.8, "up")


def test_validation_masks_belong_to_the_record():
    objective, views = tiny.objective("masked_modelling")
    batch = tiny.clean(views, tiny.batch(4))
    init = jax.jit(objective.init, static_argnames="train")
    variables = init(jax.random.key(0), batch, train=False)
    predict = jax.jit(lambda rows: objective.apply(variables, rows, method="predict"))
    once = predict(batch)["correlation"]
    order = np.array([2, 0, 3, 1])
    again = predict(jax.tree.map(lambda rows: rows[order], batch))["correlation"]
    np.testing.assert_allclose(again, once[order], rtol=1e-5)


def test_training_masks_differ_between_records():
    noise = jax.random.uniform(jax.random.key(0), (8, 60))
    masks = np.asarray(mdm.shuffle(noise, 12)[2])
    assert len({row.tobytes() for row in masks}) == 8
    np.testing.assert_array_equal(masks.sum(axis=1), 48)
