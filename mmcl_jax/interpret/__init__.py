"""What a trained run looks at: similarity of ECG and CMR, or maps of one ECG alone.

    python -m mmcl_jax.interpret RUN
    python -m mmcl_jax.interpret RUN --input ecg.hea --output maps/

The first is the passive module of paper III-C on a contrastive stage: cosine similarity of the ECG
of a subject with each place of the CMR feature map, and of its CMR with each ECG token. Writes
interpret/cmr_similarity.npz and interpret/ecg_similarity.npz; the report draws them. The second
draws attention, and what hiding parts of the ECG changes, over its 12 leads.
"""

from mmcl_jax.interpret.similarity import run, similarity

__all__ = ["run", "similarity"]
