"""Weights laid out as the published files, without PyTorch, and the command that ports them."""

import json
import pathlib

import numpy as np
from golden_weights import seeded

from mmcl_jax import models
from mmcl_jax.port.__main__ import main, ported

WIDTH, DEPTH, HEADS = 48, 2, 3
DECODER_WIDTH, DECODER_HEADS = 32, 4
SAMPLES = 500
# Sizes of the published networks and of the small ones here, which keep their key names.
_SMALLER = {
    "signal_encoder_attention_pool": {384: 48, 1152: 144, 1536: 192, 301: 61},
    "masked_autoencoder": {
        384: 48, 1152: 144, 1536: 192, 256: 32, 768: 96, 1024: 128, 301: 61,
    },
}  # fmt: skip


def small(golden: pathlib.Path, network: str) -> dict[str, np.ndarray]:
    """Seeded weights of a narrower network with one block less and recordings of 1 s.

    Args:
        golden: folder of the parity numbers.
        network: 'signal_encoder_attention_pool' or 'masked_autoencoder'.
    """
    shapes = json.loads((golden / "checkpoint_shapes.json").read_text())[network]
    sizes = _SMALLER[network]
    return {
        key: seeded(key, tuple(sizes.get(size, size) for size in shape))
        for key, shape in shapes.items()
        if not key.startswith(("blocks.2.", "projector.", "predictor."))
    }


def port(source, target, *options) -> int:
    """The exit code of `mmcl_jax.port`."""
    return main(["--from", str(source), "--to", str(target), *options])


def refused(capsys, source, target, *options) -> str:
    """What the command says when it cannot; one line, and nothing is left behind."""
    assert port(source, target, *options) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not target.exists()
    assert not list(target.parent.glob(f".{target.name}*"))
    return error


def tower(folder, name: str, **fields):
    """A ported tower, which is read by its path alone: its network and its variables."""
    found = ported.read(folder)
    variables = {"params": found.params[name]}
    variables |= {kind: trees[name] for kind, trees in found.extra.items()}
    return models.build({**found.models[name], **fields}), variables


def apply(folder, name: str, *inputs, pool=None, **arguments):
    """Output of a ported tower."""
    network, variables = tower(folder, name, **({"pool": pool} if pool else {}))
    return network.apply(variables, *inputs, **arguments)
