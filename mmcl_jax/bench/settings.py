"""What is measured: the steps of `configs/mmcl.py` as plain dicts, and small ones for tests.

They stand here a second time because a machine that is only measured needs no configuration and
data libraries; a test compares them with the configuration.
"""

from typing import Any

_VIT = {
    "name": "vit", "width": 384, "depth": 3, "heads": 6, "patch": (1, 100), "samples": 2500,
    "positions": "sincos", "pool": "global", "drop_path": 0.0, "fc_norm_twice": False,
    "dtype": "auto",
}  # fmt: skip
_DECODER = {
    "name": "mae_decoder", "width": 256, "depth": 2, "heads": 8, "patch": (1, 100),
    "samples": 2500, "dtype": "auto",
}  # fmt: skip
_RESNET = {
    "name": "resnet", "depth": 50, "width": 64, "rematerialise": False, "dtype": "auto",
}  # fmt: skip
_PROJECTOR = {"name": "projector", "hidden": 512, "out": 128}
_ECG_VIEW = {
    "length": 2500, "surrogate_probability": 0.5, "surrogate_magnitude": 0.1,
    "noise_sigma": 0.25, "noise": "relative", "rescale_sigma": 0.5, "probability": 1.0,
}  # fmt: skip
_CMR_VIEW = {
    "size": 210, "crop_heart": True, "flip_probability": 0.5, "rotation_probability": 0.5,
    "degrees": 45.0, "brightness": 0.5, "contrast": 0.5, "saturation": 0.25,
    "scale": (0.6, 1.0), "probability": 0.95,
}  # fmt: skip

# Training steps: the fields of a stage that decide what a step computes.
FULL: dict[str, dict[str, Any]] = {
    "mdm": {
        "objective": "masked_modelling",
        "settings": {
            "mask_ratio": 0.8, "rounding": "nearest", "ncc_weight": 0.0, "norm_patches": False,
        },
        "towers": {"ecg_encoder": _VIT | {"pool": "none"}, "decoder": _DECODER},
        "fields": ("ecg",),
        "ecg_view": _ECG_VIEW,
        "cmr_view": {},
        "frozen_parameters": ("/pos_embed$",),
        "optimizer": {
            "name": "adamw", "base_rate": 1e-5, "weight_decay": 0.15, "b1": 0.9, "b2": 0.95,
            "schedule": "cosine", "warmup_epochs": 40,
        },
    },
    "finetune": {
        "objective": "supervised",
        "settings": {"label_smoothing": 0.1, "missing": "exclude"},
        "towers": {
            "ecg_encoder": _VIT | {"pool": "attention", "drop_path": 0.2},
            "head": {"name": "head"},
        },
        "fields": ("ecg",),
        "ecg_view": _ECG_VIEW | {"surrogate_magnitude": 0.075, "noise_sigma": 0.2},
        "cmr_view": {},
        "frozen_parameters": (),
        "optimizer": {
            "name": "adamw", "base_rate": 3e-6, "weight_decay": 0.2, "b1": 0.9, "b2": 0.999,
            "layer_decay": 0.5, "decay_exclude": ("/cls_token$", "/pos_embed$"),
            "schedule": "cosine", "warmup_epochs": 20,
        },
    },
    "mmcl": {
        "objective": "clip",
        "settings": {
            "temperature": 0.1, "cmr_weight": 0.75, "map_upsampling": 1, "map_divisor": 1.0,
        },
        "towers": {
            "ecg_encoder": _VIT | {"drop_path": 0.1}, "ecg_projector": _PROJECTOR,
            "cmr_encoder": _RESNET, "cmr_projector": _PROJECTOR,
        },
        "fields": ("ecg", "cmr"),
        "ecg_view": _ECG_VIEW | {"surrogate_probability": 1.0, "probability": 0.95},
        "cmr_view": _CMR_VIEW,
        "frozen_parameters": (),
        "optimizer": {
            "name": "adamw", "rate": 1e-4, "weight_decay": 1e-4, "b1": 0.9, "b2": 0.999,
            "schedule": "cosine", "warmup_epochs": 30,
        },
    },
}  # fmt: skip

# Shapes of a record: (leads, samples) and (rows, columns, channels).
RECORD = {"full": {"ecg": (12, 5000), "cmr": (210, 210, 3)}}
RECORD["tiny"] = {"ecg": (12, 1000), "cmr": (48, 48, 3)}
BOX = {"full": (40, 40, 100, 100), "tiny": (8, 8, 30, 30)}  # top, left, height, width

_SMALLER = {
    "ecg_encoder": {"width": 32, "depth": 1, "heads": 2, "samples": 500},
    "decoder": {"width": 16, "depth": 1, "heads": 2, "samples": 500},
    "cmr_encoder": {"depth": 18},
    "ecg_projector": {"hidden": 8, "out": 8},
    "cmr_projector": {"hidden": 8, "out": 8},
    "head": {},
}

# Batch sizes by name, on a CPU and on an accelerator.
BATCHES = {
    "mdm": {"cpu": (64,), "accelerator": (128,)},
    "finetune": {"cpu": (32,), "accelerator": (32, 8)},
    "mmcl": {"cpu": (16,), "accelerator": (256,)},
    "embed": {"cpu": (128,), "accelerator": (128,)},
}
STEPS = tuple(BATCHES)


def spec(name: str, size: str = "full", dtype: str = "float32") -> dict[str, Any]:
    """Settings of a step.

    Args:
        name: one of `STEPS`. 'embed' has the settings of 'mmcl', whose ECG encoder it runs.
        size: 'full' or 'tiny'.
        dtype: of the computation in the encoders and the decoder.
    """
    chosen = FULL["mmcl" if name == "embed" else name]
    tiny = size == "tiny"
    towers = {
        tower: fields
        | (_SMALLER[tower] if tiny else {})
        | ({"dtype": dtype} if "dtype" in fields else {})
        for tower, fields in chosen["towers"].items()
    }
    ecg_view = chosen["ecg_view"] | ({"length": 500} if tiny else {})
    cmr_view = chosen["cmr_view"] | ({"size": 32} if tiny and chosen["cmr_view"] else {})
    return {**chosen, "towers": towers, "ecg_view": ecg_view, "cmr_view": cmr_view}
