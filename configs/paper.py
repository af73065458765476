"""Everything that the tables and figures of the paper need, run in order.

    python -m mmcl_jax.paper --config=configs/paper.py --workdir=runs/paper \
        --config.data.path=COHORT
    python -m mmcl_jax.paper --config=configs/paper.py --workdir=runs/paper --plan

Without `data.path` the cohort is the synthetic one. `--runs=mae,mmcl` does some of the methods.
What runs share is trained once: see mmcl_jax/paper/plan.py and docs/protocol.md.

Arguments, combined with a comma:

    paper.py:demo   small models on a small synthetic cohort, on two CPU cores
    paper.py:study  small models, five seeds, a large test split; hours on two CPU cores
    paper.py:sweep  searches the paper's grid of fine-tuning first, for each method and target
"""

from typing import Any

from ml_collections import ConfigDict

from mmcl_jax import default_config

ARGUMENTS = {
    "demo": "small models on a small synthetic cohort, on two CPU cores",
    "study": "small models, five seeds, a large test split; hours on two CPU cores",
    "sweep": "searches the paper's grid of fine-tuning first, for each method and target",
}
# In the order in which they are run: an earlier method trains what a later one shares.
METHODS = (
    "tabular", "supervised", "mae", "simclr", "clocs", "byol", "barlow_twins", "mmcl_wo_mdm",
    "mmcl", "cmr_supervised", "cmr_mmcl_wo_mdm", "cmr_mmcl",
)  # fmt: skip
LOW_DATA = (
    "supervised", "mae", "simclr", "clocs", "byol", "barlow_twins", "mmcl_wo_mdm", "mmcl",
)  # fmt: skip
DISEASES = ("CAD", "AF", "DM")
# Table IV has the phenotypes of these; the others predict diseases only.
PHENOTYPED = ("supervised", "mae", "mmcl_wo_mdm", "mmcl", "cmr_supervised")

# Methods of a study, with the stages of pre-training of each; these are longer than in a demo.
STUDY = {
    "tabular": (), "supervised": (), "mae": ("mdm",), "mmcl": ("mdm", "image", "mmcl"),
    "mmcl_wo_mdm": ("image", "mmcl"),
}  # fmt: skip
LONGER = {
    "mdm": {"epochs": 100, "evaluate_every_epochs": 10},
    "image": {"epochs": 24, "evaluate_every_epochs": 4},
    "mmcl": {"epochs": 30, "evaluate_every_epochs": 3},
}
# Batch size and base rate of fine-tuning, chosen on the validation split with one seed.
FINETUNED = {
    "supervised": (8, 3e-4), "mae": (8, 1e-4), "mmcl": (8, 1e-4), "mmcl_wo_mdm": (8, 1e-4),
}  # fmt: skip
SEEDS = (0, 101, 202, 303, 404)


def get_config(arguments: str | None = None) -> ConfigDict:
    words = default_config.arguments(arguments, ARGUMENTS)
    if {"demo", "study"} <= words:
        raise ValueError("demo and study are two settings: name one of them")
    small = words & {"sweep"} | ({"demo"} if words - {"sweep"} else set())
    config = ConfigDict({"data": default_config.experiment("paper").data})
    config.order = METHODS
    # A configuration beside this one, and changes to its fields.
    config.runs = {name: _run(name, small, _targets(name)) for name in METHODS}
    # V-D, Figure 5: shares of the balanced training sets. At 1 % of AF 17 records are left, two
    # batches of 8; so settings are those of the configurations, not those of a sweep.
    config.low_data = {
        "shares": (0.1, 0.01),
        "runs": {name: _run(name, small - {"sweep"}, DISEASES) for name in LOW_DATA},
    }
    # IV-C.2: the learning rate of MMCL, chosen by the validation loss with one run per rate.
    config.choices = {
        name: {
            "runs": (name, f"cmr_{name}"), "stage": "mmcl", "field": "optimizer.rate",
            "values": (3e-5, 1e-4, 3e-4, 1e-3),
        }
        for name in ("mmcl_wo_mdm", "mmcl")
    }  # fmt: skip
    # Of the frozen embeddings of every pre-trained ECG encoder (mmcl_jax/probe.py); {} for none.
    config.probe = {"labels": (), "resamples": 1000}
    # Stages of the runs that are left out.
    config.leave_out = ()
    if "demo" in words:
        _shrink(config)
    if "study" in words:
        _study(config)
    return config.lock()


def _run(name: str, words: frozenset[str], targets: tuple[str, ...]) -> dict[str, Any]:
    """A run of a method.

    Args:
        targets: of fine-tuning; none for those of its configuration.
    """
    file = "mmcl.py" if name == "mmcl" else f"baselines.py:{name}"
    # The tabular baseline always searches a grid, its own.
    known = {"demo"} if name == "tabular" else {"demo", "sweep"}
    for word in sorted(words & known):
        file += f"{',' if ':' in file else ':'}{word}"
    changes = {"stages": {"finetune": {"targets": targets}}} if targets else {}
    return {"config": file, "changes": changes}


def _targets(name: str) -> tuple[str, ...]:
    return () if name in (*PHENOTYPED, "tabular") else DISEASES


def _shrink(config: ConfigDict) -> None:
    config.data.synthetic.update({"subjects": 800, "prevalence": "demo", "phenotyped": 1.0})
    for name in set(LOW_DATA) - {"supervised", "mae", "mmcl"}:
        del config.low_data.runs[name]
    with config.ignore_type():
        config.low_data.shares = (0.1,)
        config.choices.mmcl.values = (3e-4, 1e-3)
    for run in config.low_data.runs.values():
        # 10 % of the smallest balanced set are about 23 records.
        run.changes.stages.finetune.batch_size = 8
    del config.choices.mmcl_wo_mdm
    config.probe.labels = (*DISEASES, "LV")
    # One page compares all runs.
    config.leave_out = ("interpret", "report")


def _study(config: ConfigDict) -> None:
    """What Tables I and III and Figure 5 claim, with five seeds: see docs/results.md.

    Of 4,000 subjects 1,400 train and 2,200 test: a subject that tests costs little, and narrows the
    intervals of the differences between methods.
    """
    config.data.synthetic.update(
        {"subjects": 4000, "prevalence": "demo", "phenotyped": 1.0, "splits": (35, 10, 55)}
    )
    with config.ignore_type():
        config.order = tuple(STUDY)
        # 10 % of the balanced sets are 87 records of CAD, two times what 1 % at the paper's size
        # has; 1 % of them would be 8.
        config.low_data.shares = (0.1,)
    config.choices = {}
    for runs in (config.runs, config.low_data.runs):
        for name in list(runs):
            if name not in STUDY:
                del runs[name]
                continue
            few = runs is config.low_data.runs
            changes = {"tabular": {"seeds": SEEDS}} if name == "tabular" else _longer(name, few)
            runs[name].changes = {"stages": changes}


def _longer(name: str, few: bool) -> dict[str, Any]:
    """Changes to the stages of a demo.

    Args:
        few: of the runs with a share of the labels.
    """
    batch_size, base_rate = FINETUNED[name]
    finetune = {
        "targets": (*DISEASES, "phenotypes"), "seeds": SEEDS, "batch_size": batch_size,
        "optimizer": {"base_rate": base_rate}, "epochs": 12, "evaluate_every_epochs": 2,
    }  # fmt: skip
    if few:
        # After 24 epochs, 168 to 240 steps, validation was still rising.
        few_records = {"batch_size": 8, "epochs": 72, "evaluate_every_epochs": 12}
        finetune |= {"targets": DISEASES, **few_records}
    return {**{stage: LONGER[stage] for stage in STUDY[name]}, "finetune": finetune}
