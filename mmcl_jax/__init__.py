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
