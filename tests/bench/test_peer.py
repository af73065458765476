"""PyTorch's models have the layers of ours."""

import importlib.util

import jax
import pytest

from mmcl_jax.bench import __main__ as command
from mmcl_jax.bench import settings, steps

pytest.importorskip("torch")
# Importing timm fails beside a torchvision that `peer` has not mended yet.
if importlib.util.find_spec("timm") is None or importlib.util.find_spec("torchvision") is None:
    pytest.skip("timm or torchvision is not installed", allow_module_level=True)
from mmcl_jax.bench import peer, peer_process


@pytest.mark.parametrize("name", settings.STEPS)
def test_number_of_parameters(name):
    import torch

    step = steps.build(name, 2, "float32")
    state = step.shapes()[0]
    ours = state.params if step.training else state
    # On 'meta' nothing is allocated.
    with torch.device("meta"):
        model = peer.build(name, step.spec)
    theirs = sum(parameter.numel() for parameter in model.parameters())
    assert theirs == sum(leaf.size for leaf in jax.tree.leaves(ours))


@pytest.mark.parametrize("name", ["mdm", "finetune", "embed"])
def test_tiny_steps_run(name):
    peer.Runner(name, settings.spec(name, "tiny"), 2, "eager").run(2)


def test_other_width_of_the_resnet_is_refused():
    spec = settings.spec("mmcl", "tiny")
    spec["towers"]["cmr_encoder"]["width"] = 8
    with pytest.raises(ValueError, match="64 wide"):
        peer.build("mmcl", spec)


def test_a_peer_that_does_not_run_is_a_remark(monkeypatch, capsys):
    def fail(*arguments):
        raise RuntimeError("RuntimeError: no compiler found")

    monkeypatch.setattr(peer_process, "Peer", fail)
    arguments = ["embed", "--size", "tiny", "--rounds", "1", "--peer", "compiled"]
    assert command.main(arguments) == 0
    assert (
        "PyTorch compiled did not run: RuntimeError: no compiler found" in capsys.readouterr().out
    )


def test_a_peer_runs_in_a_process_of_its_own():
    runner = peer_process.Peer("embed", settings.spec("embed", "tiny"), 2, "eager")
    runner.run(2)
    runner.close()
    with pytest.raises(RuntimeError, match=r"ValueError|KeyError|TypeError"):
        peer_process.Peer("embed", {}, 2, "eager")
