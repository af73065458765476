"""ECG encoders that learn from cardiac MRI, in three stages of training.

Shape letters, used in every docstring:

    B  batch                    L  leads (12: I II III aVR aVL aVF V1-V6)
    T  samples (500 per second) N  tokens, lead-major: token = lead * (T / 100) + time
    D  width of an encoder      K  label columns, or width of a projection
    H, W  rows and columns of a CMR frame (210, 210); its 3 channels are ES, mid, ED

Batch schema, shared by the pipeline, the augmentation and every objective:

    ecg          [B, L, T]     z-scored per lead group, 500 Hz
    cmr          [B, H, W, 3]  uint8 from the pipeline, [0, 1] float after the views are made
    cmr_box      [B, 4]        heart box: top, left, height, width in pixels
    labels       [B, K]        0 where missing; regression labels z-scored
    label_valid  [B, K]        1 where the label is known
    valid        [B]           0 on padding rows of an evaluation batch
    index        [B]           row of the split's table in the cohort
"""

__version__ = "0.1.0"


def load(run_dir, stage=""):
    """A trained run, ready for ECGs.

        model = mmcl_jax.load("runs/mmcl")
        model.embed(ecg)      # [N, D] float32
        model.predict(ecg)    # {"CAD_probability": [N], "LVEDV_mL": [N], ...} float64

    `ecg` is a float array [N, 12, T] or [12, T] as measured, in mV, leads I II III aVR aVL aVF
    V1-V6, 500 samples per second (`rate=`), 10 s or more; or the path of a file. It is preprocessed
    as the training records of the run were. See `mmcl_jax.inference.TrainedRun`.

    Args:
        run_dir: run directory, the --workdir of `mmcl_jax.main`.
        stage: which stage to use; '' for the contrastive encoder and all fine-tuned stages.

    Raises:
        FileNotFoundError: it is no run directory.
    """
    # Importing the package costs no JAX.
    from mmcl_jax.inference import load

    return load(run_dir, stage)
