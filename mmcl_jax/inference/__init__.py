"""Trained stages applied to ECGs: embeddings, and predictions with the seeds of a target together.

`python -m mmcl_jax.embed` and `predict` run this over files and cohorts; in Python it is

    model = mmcl_jax.load(run_dir)
    model.embed(ecg)
    model.predict(ecg)
"""

from mmcl_jax.inference.trained_run import BATCH_SIZE, Program, TrainedRun, embed_batch, load

__all__ = ["BATCH_SIZE", "Program", "TrainedRun", "embed_batch", "load"]
