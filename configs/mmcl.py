"""The method of the paper, Section IV: MDM, SimCLR of the CMR encoder, MMCL, fine-tuning.

    python -m mmcl_jax.main --config=configs/mmcl.py --workdir=runs/mmcl \
        --config.data.path=COHORT

Without `data.path` the cohort is the synthetic one. `init` of a stage names where its towers come
from: an earlier stage, RUN:STAGE, or a folder that `python -m mmcl_jax.port` made of a PyTorch
file (docs/weights.md):

    --stages=finetune,evaluate,report --config.stages.finetune.init.ecg_encoder=FOLDER

Arguments, combined with a comma:

    mmcl.py:demo       every stage on a small synthetic cohort with small models, on two CPU cores
    mmcl.py:reference  the settings behind the published weights, where they differ from the paper
    mmcl.py:bfloat16   computes in bfloat16; parameters, norms, softmax and losses stay float32.
                       By itself it does on TPUs and on NVIDIA GPUs since Ampere
    mmcl.py:float32    computes in float32 there too
    mmcl.py:sweep      the grid search of fine-tuning, for each target, then five seeds of the best
"""

from ml_collections import ConfigDict

from mmcl_jax import default_config

ARGUMENTS = {
    "demo": "small models and a small synthetic cohort, minutes on two CPU cores",
    "reference": "the settings behind the published weights, where they differ from the paper",
    "bfloat16": "computes in bfloat16, with float32 parameters, norms, softmax and losses",
    "float32": "computes in float32 on GPUs and TPUs too",
    "sweep": "fine-tuning searches the paper's grid for each target, then trains the best point",
}
PHENOTYPES = ("LV", "RV", "WT", "Ecc", "Err")
SELECT = {"classification": "val/auroc", "regression": "val/r"}


def get_config(arguments: str | None = None) -> ConfigDict:
    words = default_config.arguments(arguments, ARGUMENTS)
    config = default_config.experiment("mmcl")
    # Stages that do not need one another come first where they are quicker.
    config.order = ("mdm", "image", "mmcl", "finetune", "evaluate", "interpret", "report")

    # --- IV-C.1 Network architectures ----------------------------------------------------------
    config.models = {
        # 3 layers, 6 heads, embeddings of size 384, patches of size (1, 100) of 5 s at 500 Hz.
        "ecg_encoder": {
            "name": "vit", "width": 384, "depth": 3, "heads": 6, "patch": (1, 100), "samples": 2500,
            "positions": "sincos", "pool": "global", "drop_path": 0.0, "fc_norm_twice": False,
            "dtype": "auto",
        },
        "decoder": {
            "name": "mae_decoder", "width": 256, "depth": 2, "heads": 8, "patch": (1, 100),
            "samples": 2500, "dtype": "auto",
        },
        "cmr_encoder": {
            "name": "resnet", "depth": 50, "width": 64, "rematerialise": False, "dtype": "auto",
        },
        # One hidden layer of size 512, shared latent space of 128 dimensions.
        "ecg_projector": {"name": "projector", "hidden": 512, "out": 128},
        "cmr_projector": {"name": "projector", "hidden": 512, "out": 128},
        "head": {"name": "head"},
    }  # fmt: skip

    # --- IV-C.2 Augmentations ------------------------------------------------------------------
    # Random crop of 2500 of 5000 samples; noise sigma 0.25, rescaling sigma 0.5, surrogate 0.1.
    ecg_view = {
        "length": 2500, "surrogate_probability": 0.5, "surrogate_magnitude": 0.1,
        "noise_sigma": 0.25, "noise": "relative", "rescale_sigma": 0.5, "probability": 1.0,
    }  # fmt: skip
    cmr_view = {
        "size": 210, "crop_heart": True, "flip_probability": 0.5, "rotation_probability": 0.5,
        "degrees": 45.0, "brightness": 0.5, "contrast": 0.5, "saturation": 0.25,
        "scale": (0.6, 1.0), "probability": 0.95,
    }  # fmt: skip

    # --- III-A, IV-C.2 Masked data modelling ---------------------------------------------------
    config.stages.mdm = default_config.stage(
        "masked_modelling",
        settings={
            "mask_ratio": 0.8, "rounding": "nearest", "ncc_weight": 0.0, "norm_patches": False,
        },
        towers={"ecg_encoder": {"pool": "none"}, "decoder": {}},
        # Empty: fresh. A folder of `mmcl_jax.port`, such as of a published encoder, can be given.
        init={"ecg_encoder": "", "decoder": ""},
        frozen_parameters=("/pos_embed$",),
        ecg_view=ecg_view,
        batch_size=128,
        epochs=400,
        # Base rate 1e-5: the learning rate is base_rate * batch_size / 4 = 3.2e-4.
        optimizer={
            "name": "adamw", "base_rate": 1e-5, "weight_decay": 0.15, "b1": 0.9, "b2": 0.95,
            "schedule": "cosine", "warmup_epochs": 40,
        },
        hand_on="latest",
    )  # fmt: skip

    # --- IV-C.1 "All image encoders are pre-trained using SimCLR" ------------------------------
    config.stages.image = default_config.stage(
        "simclr",
        settings={"temperature": 0.1},
        # 512 views a step: blocks are computed again in the backward pass to save memory.
        towers={
            "cmr_encoder": {"rematerialise": True}, "cmr_projector": {"hidden": 2048, "out": 256},
        },
        init={"cmr_encoder": ""},
        fields=("cmr",),
        views=2,
        cmr_view=dict(cmr_view, crop_heart=False),
        batch_size=256,
        epochs=500,
        optimizer={
            "name": "adam_l2", "rate": 1e-4, "weight_decay": 1e-4, "b1": 0.9, "b2": 0.999,
            "schedule": "cosine", "warmup_epochs": 50,
        },
    )  # fmt: skip

    # --- III-B, IV-C.2 Multimodal contrastive learning -----------------------------------------
    config.stages.mmcl = default_config.stage(
        "clip",
        # tau 0.1; lambda 0.75, the weight of the imaging term.
        settings={
            "temperature": 0.1, "cmr_weight": 0.75, "map_upsampling": 1, "map_divisor": 1.0,
        },
        towers={
            "ecg_encoder": {"drop_path": 0.1}, "ecg_projector": {},
            "cmr_encoder": {}, "cmr_projector": {},
        },
        init={"ecg_encoder": "mdm", "cmr_encoder": "image"},
        new=("ecg_encoder/fc_norm",),
        unused=("ecg_encoder/norm/",),
        fields=("ecg", "cmr"),
        ecg_view=dict(ecg_view, surrogate_probability=1.0, probability=0.95),
        cmr_view=cmr_view,
        batch_size=256,
        epochs=300,
        # The paper sweeps the rate over 3e-5, 1e-4, 3e-4, 1e-3.
        optimizer={
            "name": "adamw", "rate": 1e-4, "weight_decay": 1e-4, "b1": 0.9, "b2": 0.999,
            "schedule": "cosine", "warmup_epochs": 30,
        },
    )  # fmt: skip

    # --- IV-B, IV-C.2 Fine-tuning --------------------------------------------------------------
    config.stages.finetune = default_config.stage(
        "supervised",
        # One point of the paper's grid over batch size, layer decay, drop path, label smoothing,
        # weight decay and rate.
        settings={"label_smoothing": 0.1, "missing": "exclude"},
        towers={"ecg_encoder": {"pool": "attention", "drop_path": 0.2}, "head": {}},
        init={"ecg_encoder": "mmcl"},
        new=("ecg_encoder/attention_pool",),
        # Encoders of other runs and of published files may have it.
        unused=("ecg_encoder/norm/",),
        targets=("CAD", "AF", "DM", *PHENOTYPES),
        seeds=(0, 101, 202, 303, 404),
        ecg_view=dict(ecg_view, surrogate_magnitude=0.075, noise_sigma=0.2),
        balanced=True,
        batch_size=8,
        epochs=400,
        optimizer={
            "name": "adamw", "base_rate": 3e-6, "weight_decay": 0.2, "b1": 0.9, "b2": 0.999,
            "layer_decay": 0.5, "decay_exclude": ("/cls_token$", "/pos_embed$"),
            "schedule": "cosine", "warmup_epochs": 20,
        },
        select=SELECT,
        patience=25,
        band={"classification": 0.0025, "regression": 0.0},
    )  # fmt: skip

    # --- III-C, IV-D, V Evaluation -------------------------------------------------------------
    config.stages.evaluate = {
        "splits": ("val", "test"), "crops": 1, "resamples": 1000, "batch_size": 64,
    }  # fmt: skip
    config.stages.interpret = {"stage": "mmcl", "split": "test", "subjects": 6}
    config.stages.report = {}

    if "sweep" in words:
        # IV-C.2: 648 points, searched with the first seed; 24 members train side by side.
        config.stages.finetune.sweep = {
            "grid": {
                "batch_size": (8, 16, 32),
                "layer_decay": (0.5, 0.75),
                "drop_path": (0.0, 0.1, 0.2),
                "label_smoothing": (0.0, 0.1, 0.2),
                "weight_decay": (0.0, 0.1, 0.2),
                "base_rate": (1e-6, 3e-6, 1e-5, 3e-5),
            },
            "seeds": (),
            "members": 24,
        }
    if {"bfloat16", "float32"} <= words:
        raise ValueError("bfloat16 and float32 exclude one another: name one of them")
    for dtype in words & {"bfloat16", "float32"}:
        for tower in set(config.models) - {"head"}:
            with config.ignore_type(), config.unlocked():
                config.models[tower].dtype = dtype
    if "reference" in words:
        _use_reference_settings(config)
    if "demo" in words:
        _shrink(config)
    return config.lock()


def _use_reference_settings(config: ConfigDict) -> None:
    """What the code behind the published weights does where the paper says otherwise."""
    stages = config.stages
    stages.mdm.settings.update({"rounding": "truncate", "ncc_weight": 0.1})
    # Constant heart box, every image rotated, saturation 0.5.
    for name in ("image", "mmcl"):
        stages[name].cmr_view.update({"rotation_probability": 1.0, "saturation": 0.5})
    stages.mmcl.cmr_view.box = (44, 68, 78, 78)
    stages.mmcl.settings.update({"map_upsampling": 2, "map_divisor": 0.8})
    stages.mmcl.optimizer.update({"name": "adam_l2", "schedule": "cosine_per_epoch"})
    stages.finetune.optimizer.warmup_epochs = 5
    stages.finetune.towers.ecg_encoder.fc_norm_twice = True
    stages.finetune.settings.missing = "zero"
    stages.finetune.order_seed = 0
    # The published encoders come without fc_norm.
    stages.finetune.new = ("ecg_encoder/attention_pool", "ecg_encoder/fc_norm")


def _shrink(config: ConfigDict) -> None:
    """Small models, short stages and a synthetic cohort in which the diseases are common."""
    config.data.synthetic.update({"subjects": 2000, "prevalence": "demo", "phenotyped": 1.0})
    models, stages = config.models, config.stages
    models.ecg_encoder.update({"width": 96, "depth": 2, "heads": 3})
    models.decoder.update({"width": 64, "depth": 1, "heads": 2})
    models.cmr_encoder.update({"depth": 18, "width": 16})
    # The heart crop in 48 x 48 pixels, also for the image stage.
    stages.image.cmr_view.update({"size": 48, "crop_heart": True})
    # Handing the CMR projector on too spares MMCL the plateau of its first epochs.
    stages.image.towers.cmr_projector.update({"hidden": 512, "out": 128})
    stages.mmcl.init.cmr_projector = "image"
    stages.mmcl.cmr_view.size = 48
    stages.mdm.update({"epochs": 7, "batch_size": 32, "evaluate_every_epochs": 2})
    stages.mdm.optimizer.update({"base_rate": 1.2e-4, "warmup_epochs": 1})
    stages.image.update({"epochs": 24, "batch_size": 32, "evaluate_every_epochs": 4})
    stages.image.optimizer.update({"rate": 1e-3, "warmup_epochs": 1})
    # The loss stays at log(batch) for the first 300 steps or so.
    stages.mmcl.update({"epochs": 20, "batch_size": 32, "evaluate_every_epochs": 2})
    stages.mmcl.optimizer.update({"rate": 1e-3, "warmup_epochs": 1})
    with config.ignore_type():
        stages.finetune.update({"targets": ("CAD", "AF", "DM", "phenotypes"), "seeds": (0,)})
    stages.finetune.update({"epochs": 6, "batch_size": 32})
    stages.finetune.optimizer.update({"base_rate": 1e-4, "warmup_epochs": 1, "layer_decay": 0.75})
    if stages.finetune.sweep:
        grid = {"layer_decay": (0.5, 0.75), "base_rate": (3e-5, 1e-4)}
        stages.finetune.sweep = {"grid": grid, "seeds": (), "members": 4}
    for name in ("mdm", "image", "mmcl", "finetune"):
        stages[name].log_every = 10
