"""The baselines of the paper, Tables I to V, each a run of its own:

    python -m mmcl_jax.main --config=configs/baselines.py:byol --workdir=runs/byol \
        --config.data.path=COHORT

The first word behind the colon names the baseline; see `BASELINES`. The others are those of
configs/mmcl.py, whose settings hold wherever this file says nothing else:

    baselines.py:byol,demo       small models and a small synthetic cohort, on two CPU cores
    baselines.py:byol,reference  the settings of the published code, where they differ
    baselines.py:byol,bfloat16   computes in bfloat16, on a CPU too
    baselines.py:byol,float32    computes in float32, on GPUs and TPUs too
    baselines.py:byol,sweep      the grid search of fine-tuning

A stage that another run holds already need not be trained again:

    --stages=finetune,evaluate,report --config.stages.finetune.init.ecg_encoder=runs/mmcl:mdm
"""

from ml_collections import ConfigDict

from mmcl_jax import default_config

BASELINES = {
    "tabular": "XGBoost on age, sex, weight and height",
    "supervised": "the ViT from random weights, on ECG",
    "mae": "masked data modelling alone",
    "simclr": "SimCLR on ECG",
    "byol": "BYOL on ECG",
    "barlow_twins": "Barlow Twins on ECG",
    "clocs": "CLOCS on ECG: the halves of a recording belong together",
    "mmcl_wo_mdm": "MMCL with an ECG encoder from random weights",
    "cmr_supervised": "the ResNet50 from random weights, on CMR",
    "cmr_mmcl": "the CMR encoder of MMCL, fine-tuned on CMR",
    "cmr_mmcl_wo_mdm": "the CMR encoder of MMCL without MDM, fine-tuned on CMR",
}
WORDS = ("demo", "reference", "bfloat16", "float32", "sweep")

# --- IV-D.1 Contrastive baselines --------------------------------------------------------------
# tau, rates and weight decays are the paper's; projectors are those of the published code.
CONTRASTIVE = {
    "simclr": {
        "settings": {"temperature": 0.1},
        "projector": {"hidden": 2048, "out": 128},
        "optimizer": {"rate": 3e-3, "weight_decay": 1e-4},
    },
    "byol": {
        "settings": {"tau": 0.9996},
        "projector": {"name": "normalised_projector", "hidden": 4096, "out": 256},
        "predictor": {"name": "normalised_projector", "hidden": 4096, "out": 256},
        "optimizer": {"rate": 1e-5, "weight_decay": 1e-4},
    },
    "barlow_twins": {
        "settings": {"off_diagonal_weight": 5e-3},
        "projector": {"name": "normalised_projector", "hidden": 8192, "out": 8192},
        "optimizer": {"rate": 3e-5, "weight_decay": 1.5e-6},
    },
    "clocs": {
        "settings": {"temperature": 0.1},
        "projector": {"hidden": 384, "out": 128},
        "optimizer": {"rate": 3e-4, "weight_decay": 1e-4},
    },
}
# A ViT without MDM starts like one that is trained from scratch: learned positions.
FROM_SCRATCH = {"positions": "learned"}


def get_config(arguments: str | None = None) -> ConfigDict:
    name, words = _parse(arguments)
    config = default_config.neighbour(__file__, "mmcl")(",".join(words))
    config.unlock()
    config.name = name
    config.order = ("finetune", "evaluate", "report")
    with config.ignore_type():
        if name == "tabular":
            _boost_trees(config)
        elif name in CONTRASTIVE:
            _pretrain_on_ecg(config, name, words)
        elif name == "supervised":
            _start_from_scratch(config, words)
        elif name == "mae":
            config.order = ("mdm", *config.order)
            config.stages.finetune.init.ecg_encoder = "mdm"
            # MDM knows no pooled features.
            config.stages.finetune.new = ("ecg_encoder/attention_pool", "ecg_encoder/fc_norm")
        elif name == "mmcl_wo_mdm":
            config.order = ("image", "mmcl", "finetune", "evaluate", "interpret", "report")
            _leave_out_mdm(config, words)
        elif name == "cmr_supervised":
            _finetune_cmr(config)
            config.stages.finetune.init = {}
            _raise_base_rate(config, words)
        elif name == "cmr_mmcl":
            config.order = ("mdm", "image", "mmcl", *config.order)
            _finetune_cmr(config)
        elif name == "cmr_mmcl_wo_mdm":
            config.order = ("image", "mmcl", *config.order)
            _leave_out_mdm(config, words)
            _finetune_cmr(config)
    _leave_out_unused(config)
    return config.lock()


def _parse(arguments: str | None) -> tuple[str, list[str]]:
    """The baseline, and the words for configs/mmcl.py."""
    known = BASELINES | {word: "as in configs/mmcl.py" for word in WORDS}
    words = default_config.arguments(arguments, known)
    if len(names := sorted(words & set(BASELINES))) != 1:
        raise ValueError(
            f"name one baseline, as in baselines.py:byol; got {', '.join(names) or 'none'}. "
            f"Known: {', '.join(BASELINES)}"
        )
    return names[0], sorted(words & set(WORDS))


def _boost_trees(config: ConfigDict) -> None:
    """Table I, IV-D.1: the records, targets and seeds of fine-tuning, see mmcl_jax/tabular.py."""
    finetune = config.stages.finetune
    config.order = ("tabular", "evaluate", "report")
    config.stages.tabular = default_config.stage(
        "tabular",
        settings={"inputs": ("age", "sex", "weight", "height")},
        targets=("CAD", "AF", "DM"),
        seeds=finetune.seeds,
        balanced=finetune.balanced,
        sweep={
            "grid": {
                "rounds": (50, 75, 100, 125, 150),
                "max_depth": (3, 4, 5, 6, 7, 8),
                "learning_rate": (0.1, 0.2, 0.3),
                "subsample": (0.5, 0.75, 1.0),
            }
        },
    )


def _pretrain_on_ecg(config: ConfigDict, name: str, words: list[str]) -> None:
    method = CONTRASTIVE[name]
    projectors = {"ecg_projector": method["projector"]}
    if "predictor" in method:
        projectors["ecg_predictor"] = method["predictor"]
        config.models.ecg_predictor = dict(config.models.ecg_projector)
    config.order = (name, *config.order)
    stage = config.stages[name] = default_config.stage(
        name,
        settings=method["settings"],
        towers={"ecg_encoder": {"drop_path": 0.1, **FROM_SCRATCH}, **projectors},
        # Two views of 2500 of 5000 samples; CLOCS has one from each half.
        views="halves" if name == "clocs" else 2,
        # The four augmentations of IV-C.2, for the second view at a rate of 0.95.
        ecg_view=config.stages.mmcl.ecg_view.to_dict(),
        batch_size=256,
        epochs=300,
        optimizer={
            "name": "adam_l2", "b1": 0.9, "b2": 0.999, "schedule": "cosine", "warmup_epochs": 30,
            **method["optimizer"],
        },
        # The loss against a moving target says little about the encoder.
        hand_on="latest" if name == "byol" else "best",
    )  # fmt: skip
    config.stages.finetune.init.ecg_encoder = name
    config.stages.finetune.towers.ecg_encoder.update(FROM_SCRATCH)
    if "reference" in words:
        _use_reference_settings(stage, name)
    if "demo" in words:
        _shrink(stage, name)


def _start_from_scratch(config: ConfigDict, words: list[str]) -> None:
    """Paper IV-D.1, with the weaker layer decay of the grid: every layer has to learn."""
    finetune = config.stages.finetune
    finetune.init = {}
    finetune.update({"new": (), "unused": ()})
    finetune.towers.ecg_encoder.update(FROM_SCRATCH)
    finetune.towers.head = {"kernel_sd": 0.02}
    finetune.optimizer.layer_decay = 0.75
    _raise_base_rate(config, words)


def _raise_base_rate(config: ConfigDict, words: list[str]) -> None:
    """Of the grid, the rate that the published code has for training from scratch."""
    if "demo" not in words:
        config.stages.finetune.optimizer.base_rate = 3e-5


def _leave_out_mdm(config: ConfigDict, words: list[str]) -> None:
    """Table III; the published code has three times the rate of MMCL with MDM."""
    mmcl = config.stages.mmcl
    mmcl.towers.ecg_encoder.update(FROM_SCRATCH)
    mmcl.update({"new": (), "unused": ()})
    del mmcl.init["ecg_encoder"]
    if "demo" not in words:
        mmcl.optimizer.rate = 3e-4
    config.stages.finetune.towers.ecg_encoder.update(FROM_SCRATCH)


def _finetune_cmr(config: ConfigDict) -> None:
    """Tables I, IV and V: one point of the grid of IV-C.2, whose layers and drop path are a ViT's.

    Batches of 32, the most of the grid, for BatchNorm. Images are augmented at the rate of the
    evaluation in the published code.
    """
    finetune = config.stages.finetune
    finetune.update({"fields": ("cmr",), "new": (), "unused": (), "batch_size": 32})
    finetune.towers = {"cmr_encoder": {}, "head": {}}
    finetune.init = {"cmr_encoder": "mmcl"}
    finetune.ecg_view = {}
    finetune.cmr_view = dict(config.stages.mmcl.cmr_view.to_dict(), probability=0.8)
    for setting in ("layer_decay", "decay_exclude"):
        del finetune.optimizer[setting]
    if finetune.sweep:
        for axis in {"layer_decay", "drop_path"} & set(finetune.sweep.grid):
            del finetune.sweep.grid[axis]


def _leave_out_unused(config: ConfigDict) -> None:
    for stage in set(config.stages) - set(config.order):
        del config.stages[stage]
    towers = {name for stage in config.stages.values() for name in stage.get("towers", ())}
    for tower in set(config.models) - towers:
        del config.models[tower]


def _use_reference_settings(stage: ConfigDict, name: str) -> None:
    """What the published code does where the paper says otherwise."""
    stage.optimizer.schedule = "cosine_per_epoch"
    if name == "byol":
        stage.optimizer.rate = 3e-5
    if name == "clocs":
        stage.batch_size = 768
        # "Heavy" in the published code.
        stage.ecg_view.update(
            {"noise_sigma": 0.4, "rescale_sigma": 0.65, "surrogate_magnitude": 0.125}
        )
    stage.ecg_view.update(
        {"time_flip_probability": 0.5, "sign_flip_probability": 0.5, "spectral_mask": 0.25}
    )


def _shrink(stage: ConfigDict, name: str) -> None:
    """As the contrastive stage of configs/mmcl.py:demo."""
    stage.update({"epochs": 7, "batch_size": 32, "log_every": 10})
    # Higher, the losses with negatives stay at the logarithm of their number.
    rate = 3e-4 if name in ("simclr", "clocs") else 1e-3
    stage.optimizer.update({"rate": rate, "warmup_epochs": 1})
    stage.towers.ecg_projector.update({"hidden": 256, "out": 64})
    if name == "byol":
        stage.towers.ecg_predictor.update({"hidden": 256, "out": 64})
        # 300 steps: the target has to follow sooner.
        stage.settings.tau = 0.98
