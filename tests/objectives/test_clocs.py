import functools

import jax
import numpy as np
import pytest
import tiny

from mmcl_jax.objectives.clip import clip_loss


def test_the_halves_of_each_recording_are_contrasted():
    objective, views = tiny.objective("clocs")
    rows = tiny.batch(6)
    batch = tiny.clean(views, rows)
    np.testing.assert_array_equal(batch["ecg_view2"], rows["ecg"][:, :, 500:])
    variables = jax.jit(functools.partial(objective.init, train=False))(jax.random.key(0), batch)

    @jax.jit
    def computed(batch):
        loss, _ = objective.apply(variables, batch, train=False)
        project = functools.partial(objective.apply, variables, method="project")
        return loss, project(batch["ecg"]), project(batch["ecg_view2"])

    loss, first, second = computed(batch)
    for weight in (0.5, 0.0, 1.0):
        expected, _ = clip_loss(first, second, temperature=0.1, cmr_weight=weight)
        same = float(loss) == pytest.approx(float(expected), rel=1e-6)
        assert same == (weight == 0.5)
    assert objective.weight(batch) is None

    equal, _, _ = computed({**batch, "ecg_view2": batch["ecg"]})
    shifted, _, _ = computed({**batch, "ecg_view2": np.roll(batch["ecg"], 1, axis=0)})
    assert float(equal) < float(shifted)
