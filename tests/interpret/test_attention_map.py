"""Attention rollout against the same computed by hand with NumPy."""

import functools

import jax
import numpy as np
import pytest
from scipy.special import erf

from mmcl_jax.interpret import ecg as interpret_ecg
from mmcl_jax.interpret.attention_map import rollout
from mmcl_jax.interpret.figures import _files, _over_windows
from mmcl_jax.models import vit

WIDTH, DEPTH, HEADS, COLUMNS = 8, 2, 2, 4


@pytest.mark.parametrize("pool", ["global", "attention", "cls", "none"])
def test_rollout_is_the_product_of_the_attention_of_all_layers(pool):
    encoder, params, ecg = tiny(pool)
    matrices, pooling, features = by_hand(params, ecg, pool)
    reached = pooling
    for matrix in reversed(matrices):
        reached = np.einsum("bn,bnm->bm", reached, 0.5 * np.eye(matrix.shape[-1]) + 0.5 * matrix)
    found, pools = jax.jit(functools.partial(rollout, encoder))(params, ecg)
    assert found.shape == (2, 12, COLUMNS)
    np.testing.assert_allclose(np.asarray(found).reshape(2, -1), reached[:, 1:], atol=1e-6)
    np.testing.assert_allclose(np.asarray(pools).reshape(2, -1), pooling[:, 1:], atol=1e-6)
    np.testing.assert_allclose(reached.sum(axis=1), 1, atol=1e-6)
    if features is not None:
        # What is computed here by hand is what the encoder computes.
        theirs = jax.jit(encoder.apply)({"params": params}, ecg)["features"]
        np.testing.assert_allclose(features, theirs, atol=1e-5)


def test_a_patch_of_two_leads_counts_for_both():
    encoder, params, ecg = tiny("global", patch=(2, 10))
    found, _ = jax.jit(functools.partial(rollout, encoder))(params, ecg)
    assert found.shape == (2, 12, COLUMNS)
    np.testing.assert_array_equal(found[:, 0], found[:, 1])
    assert np.abs(np.asarray(found[:, 1] - found[:, 2])).max() > 0


def tiny(pool, patch=(1, 10)):
    """An encoder with weights large enough for attention that is not even."""
    sizes = {"width": WIDTH, "depth": DEPTH, "heads": HEADS, "patch": patch}
    encoder = vit.Model(**sizes, samples=10 * COLUMNS, pool=pool)
    generator = np.random.default_rng(0)
    ecg = generator.standard_normal((2, 12, 10 * COLUMNS)).astype(np.float32)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), ecg)["params"]
    draw = generator.standard_normal
    params = jax.tree.map(lambda leaf: 0.5 * draw(leaf.shape).astype(np.float32), shapes)
    return encoder, params, ecg


def by_hand(params, ecg, pool):
    """Attention of each layer, mean over heads, weights of the pooling, and pooled features."""
    patches = ecg.reshape(2, 12 * COLUMNS, 10).astype(np.float64)
    tokens = affine(params["patch_embed"], patches) + params["pos_embed"][:, 1:]
    first = np.repeat(params["cls_token"] + params["pos_embed"][:, :1], 2, axis=0)
    tokens, matrices = np.concatenate([first, tokens], axis=1), []
    for number in range(DEPTH):
        block = params[f"block_{number}"]
        parts = affine(block["attention"]["qkv"], norm(block["norm1"], tokens))
        weights, mixed = attend(*np.split(parts, 3, axis=2))
        matrices.append(weights)
        tokens = tokens + affine(block["attention"]["proj"], mixed)
        inner = affine(block["mlp"]["fc1"], norm(block["norm2"], tokens))
        inner = 0.5 * inner * (1 + erf(inner / np.sqrt(2)))
        tokens = tokens + affine(block["mlp"]["fc2"], inner)
    one, patches = np.zeros((2, 1)), tokens[:, 1:]
    if pool == "cls":
        pooling = np.zeros(tokens.shape[:2])
        pooling[:, 0] = 1
        return matrices, pooling, norm(params["norm"], tokens[:, 0])
    if pool != "attention":
        even = np.full(patches.shape[:2], 1 / patches.shape[1])
        features = norm(params["fc_norm"], patches.mean(1)) if pool == "global" else None
        return matrices, np.concatenate([one, even], axis=1), features
    pooled = params["attention_pool"]
    query = np.split(affine(pooled["in_proj"], patches.mean(axis=1, keepdims=True)), 3, axis=2)[0]
    _, key, value = np.split(affine(pooled["in_proj"], patches), 3, axis=2)
    weights, mixed = attend(query, key, value)
    features = norm(params["fc_norm"], affine(pooled["out_proj"], mixed[:, 0]))
    return matrices, np.concatenate([one, weights[:, 0]], axis=1), features


def attend(query, key, value):
    query, key, value = (x.reshape(*x.shape[:2], HEADS, -1) for x in (query, key, value))
    logits = np.einsum("bnhd,bmhd->bhnm", query, key) / np.sqrt(WIDTH / HEADS)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed = np.einsum("bhnm,bmhd->bnhd", weights, value)
    return weights.mean(axis=1), mixed.reshape(*mixed.shape[:2], -1)


def affine(layer, x):
    return x @ np.asarray(layer["kernel"], np.float64) + layer["bias"]


def norm(layer, x):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6) * layer["scale"] + layer["bias"]


def test_windows_that_overlap_are_averaged_over_time():
    maps = np.stack([np.full((12, 2), 1.0), np.full((12, 2), 3.0)])
    found = interpret_ecg.Attention("x", maps, maps, np.array([0.0, 0.3]), 0.2)
    values, edges = _over_windows(found)
    np.testing.assert_allclose(edges, [0, 0.2, 0.3, 0.4, 0.5, 0.7])
    np.testing.assert_allclose(values[4], [1, 1, 2, 3, 3])


def test_every_map_has_a_file_of_its_own():
    assert _files("occlusion", ["LVEDV_mL"]) == ["occlusion.png"]
    assert _files("occlusion", ["a/b_mL", "rhythm: AF", "a b_mL"]) == [
        "occlusion_0_a_b_mL.png", "occlusion_rhythm_AF.png", "occlusion_2_a_b_mL.png",
    ]  # fmt: skip
