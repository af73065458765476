"""Open data, ECG only: MDM on PTB-XL, then fine-tuning of its five diagnostic superclasses.

    python -m mmcl_jax.prepare ptbxl --input PTB-XL --output cohorts/ptbxl
    python -m mmcl_jax.main --config=configs/ptbxl.py --config.data.path=cohorts/ptbxl \
        --workdir=runs/ptbxl

PTB-XL folds 1-8 train, fold 9 selects, fold 10 tests; no patient is on two sides.

    ptbxl.py:demo  small models and few epochs, minutes on two CPU cores
"""

from ml_collections import ConfigDict

from mmcl_jax import default_config

ARGUMENTS = {"demo": "small models and few epochs, minutes on two CPU cores"}


def get_config(arguments: str | None = None) -> ConfigDict:
    words = default_config.arguments(arguments, ARGUMENTS)
    config = default_config.experiment("mdm-ptbxl")
    config.order = ("mdm", "finetune", "evaluate", "report")
    config.models = {
        "ecg_encoder": {
            "name": "vit", "width": 384, "depth": 3, "heads": 6, "patch": (1, 100), "samples": 2500,
            "positions": "sincos", "pool": "global", "drop_path": 0.0, "dtype": "auto",
        },
        "decoder": {
            "name": "mae_decoder", "width": 256, "depth": 2, "heads": 8, "patch": (1, 100),
            "samples": 2500, "dtype": "auto",
        },
        "head": {"name": "head"},
    }  # fmt: skip
    # The augmentations of configs/mmcl.py.
    ecg_view = {
        "length": 2500, "surrogate_probability": 0.5, "surrogate_magnitude": 0.1,
        "noise_sigma": 0.25, "noise": "relative", "rescale_sigma": 0.5, "probability": 1.0,
    }  # fmt: skip
    config.stages.mdm = default_config.stage(
        "masked_modelling",
        settings={"mask_ratio": 0.8},
        towers={"ecg_encoder": {"pool": "none"}, "decoder": {}},
        # Empty: fresh. A folder of `mmcl_jax.port`, such as of a published encoder, can be given.
        init={"ecg_encoder": "", "decoder": ""},
        frozen_parameters=("/pos_embed$",),
        ecg_view=ecg_view,
        batch_size=128,
        epochs=400,
        optimizer={
            "name": "adamw", "base_rate": 1e-5, "weight_decay": 0.15, "b1": 0.9, "b2": 0.95,
            "schedule": "cosine", "warmup_epochs": 40,
        },
        hand_on="latest",
    )  # fmt: skip
    config.stages.finetune = default_config.stage(
        "supervised",
        settings={"label_smoothing": 0.1},
        towers={"ecg_encoder": {"pool": "attention", "drop_path": 0.1}, "head": {}},
        init={"ecg_encoder": "mdm"},
        new=("ecg_encoder/attention_pool", "ecg_encoder/fc_norm"),
        unused=("ecg_encoder/norm/",),
        # One head for the five superclasses; a recording may carry several.
        targets=("superclass",),
        seeds=(0, 101, 202, 303, 404),
        ecg_view=dict(ecg_view, surrogate_magnitude=0.075, noise_sigma=0.2),
        batch_size=32,
        epochs=100,
        optimizer={
            "name": "adamw", "base_rate": 1e-5, "weight_decay": 0.1, "b1": 0.9, "b2": 0.999,
            "layer_decay": 0.75, "decay_exclude": ("/cls_token$", "/pos_embed$"),
            "schedule": "cosine", "warmup_epochs": 5,
        },
        select={"classification": "val/auroc", "regression": "val/r"},
        patience=25,
        band={"classification": 0.0025, "regression": 0.0},
    )  # fmt: skip
    config.stages.evaluate = {
        "splits": ("val", "test"), "crops": 1, "resamples": 1000, "batch_size": 64,
    }  # fmt: skip
    config.stages.report = {}
    if "demo" in words:
        _shrink(config)
    return config.lock()


def _shrink(config: ConfigDict) -> None:
    models, stages = config.models, config.stages
    models.ecg_encoder.update({"width": 128, "depth": 3, "heads": 4})
    models.decoder.update({"width": 64, "depth": 1, "heads": 2})
    stages.mdm.update({"epochs": 40, "batch_size": 32, "log_every": 10})
    stages.mdm.update({"evaluate_every_epochs": 10})
    stages.mdm.optimizer.update({"base_rate": 6e-5, "warmup_epochs": 4})
    stages.finetune.update({"seeds": (0,), "epochs": 30, "log_every": 10})
    stages.finetune.optimizer.update({"base_rate": 6e-5, "warmup_epochs": 2})
