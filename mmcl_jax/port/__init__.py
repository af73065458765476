"""Weights from PyTorch and to PyTorch, without PyTorch.

    python -m mmcl_jax.port --from signal_encoder_mmcl.pth --to ported/mmcl
    python -m mmcl_jax.port --from runs/mmcl:mmcl --to mmcl.pth

One side is a PyTorch file (.pth, .pt, .ckpt) or .safetensors, the other a folder that a stage
starts from (`--config.stages.finetune.init.ecg_encoder=ported/mmcl`) or a stage of a run. What a
file holds and how large it is follows from its keys and shapes. Nothing in a file is executed.
"""
