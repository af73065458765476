"""One pass over clean views gives what the loss and `predict` give one after the other."""

import functools

import jax
import numpy as np
import pytest
import tiny

from mmcl_jax.state import initialise, make_eval_step


@pytest.mark.parametrize("name", ["masked_modelling", "supervised"])
def test_evaluation_in_parts_equals_loss_and_predict(name):
    settings = {"missing": "zero"} if name == "supervised" else {}
    objective, views = tiny.objective(name, **settings)
    rows = tiny.batch(24)
    rows["valid"][-3:] = 0  # a part of padding for the most part
    rows["label_valid"][1:9] = 0
    params, extra = initialise(objective, views, rows, jax.random.key(0))
    metrics, outputs = make_eval_step(objective, views)(params, extra, rows, {})

    seen = tiny.clean(views, rows)
    variables = {"params": params, **extra}
    compare = functools.partial(objective.apply, train=False)
    loss, others = jax.jit(compare)(variables, seen)
    predicted = jax.jit(functools.partial(objective.apply, method="predict"))(variables, seen)
    assert metrics.keys() == {"loss", *others}
    for label, value in {"loss": loss, **others}.items():
        np.testing.assert_allclose(metrics[label], value, rtol=1e-5)
    assert outputs.keys() == predicted.keys()
    for label, value in predicted.items():
        np.testing.assert_allclose(outputs[label], value, rtol=1e-4, atol=1e-6)
