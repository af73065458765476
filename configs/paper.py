"""Everything that the tables and figures of the paper need, run in order.

    python -m mmcl_jax.paper --config=configs/paper.py --workdir=runs/paper \
        --config.data.path=COHORT
    python -m mmcl_jax.paper --config=configs/paper.py --workdir=runs/paper --plan

Without `data.path` the cohort is the synthetic one. `--runs=mae,mmcl_10pct` does some of the runs.
What runs share is trained once: see mmcl_jax/paper/plan.py and docs/protocol.md.

Arguments, combined with a comma:

    paper.py:demo       small models on a small synthetic cohort, on two CPU cores
    paper.py:study      small models, five seeds, a large test split; hours on two CPU cores
    paper.py:few        like study: more recordings to pre-train on, 10 and 1 % of the labels
    paper.py:sweep      searches the paper's grid of fine-tuning first, for each method and target
    paper.py:reference  the settings behind the published weights, where they differ
    paper.py:bfloat16   computes in bfloat16, on a CPU too
    paper.py:float32    computes in float32, on GPUs and TPUs too
"""

from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from mmcl_jax import default_config

ARGUMENTS = {
    "demo": "small models on a small synthetic cohort, on two CPU cores",
    "study": "small models, five seeds, a large test split; hours on two CPU cores",
    "few": "like study, with more recordings to pre-train on and 10 and 1 % of the labels",
    "sweep": "searches the paper's grid of fine-tuning first, for each method and target",
    "reference": "the settings behind the published weights, where they differ from the paper",
    "bfloat16": "computes in bfloat16, with float32 parameters, norms, softmax and losses",
    "float32": "computes in float32 on GPUs and TPUs too",
}
# Handed on to the configuration of each run; the others are sizes, of which there can be one.
SETTINGS = {"sweep", "reference", "bfloat16", "float32"}
# In the order in which they are run: an earlier method trains what a later one shares.
METHODS = (
    "tabular", "supervised", "mae", "simclr", "clocs", "byol", "barlow_twins", "mmcl_wo_mdm",
    "mmcl", "cmr_supervised", "cmr_mmcl_wo_mdm", "cmr_mmcl",
)  # fmt: skip
# V-D, Figure 5: methods with a share of the balanced training sets, in runs like mae_10pct.
LOW_DATA = (
    "supervised", "mae", "simclr", "clocs", "byol", "barlow_twins", "mmcl_wo_mdm", "mmcl",
)  # fmt: skip
SHARES = {"10pct": 0.1, "1pct": 0.01}
DISEASES = ("CAD", "AF", "DM")
# Table IV has the phenotypes of these; the others predict diseases only.
PHENOTYPED = ("supervised", "mae", "mmcl_wo_mdm", "mmcl", "cmr_supervised")
SEEDS = (0, 101, 202, 303, 404)


def get_config(arguments: str | None = None) -> ConfigDict:
    words = default_config.arguments(arguments, ARGUMENTS)
    if len(sizes := sorted(words - SETTINGS)) > 1:
        raise ValueError(f"{' and '.join(sizes)} are settings of their own: name one of them")
    handed_on = words & SETTINGS | ({"demo"} if sizes else set())
    config = ConfigDict({"data": default_config.experiment("paper").data})
    # Each is a configuration beside this one, and changes to its fields.
    config.runs = {name: _run(name, handed_on, **_targets(name)) for name in METHODS}
    config.order = METHODS
    for suffix, share in SHARES.items():
        for name in LOW_DATA:
            config.order += (f"{name}_{suffix}",)
            # At 1 % of AF 17 records are left, two batches of 8; so settings are those of the
            # configurations, not those of a sweep.
            run = _run(name, handed_on - {"sweep"}, targets=DISEASES, fraction=share)
            config.runs[f"{name}_{suffix}"] = run
    # IV-C.2: the learning rate of MMCL, chosen by the validation loss with one run per rate.
    config.choices = {
        name: {
            "runs": (name, *(f"{name}_{suffix}" for suffix in SHARES), f"cmr_{name}"),
            "stage": "mmcl", "field": "optimizer.rate", "values": (3e-5, 1e-4, 3e-4, 1e-3),
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
    if "few" in words:
        _few(config)
    return config.lock()


def _run(name: str, words: frozenset[str], **finetune: Any) -> dict[str, Any]:
    """A run of a method.

    Args:
        finetune: changes to that stage.
    """
    file = "mmcl.py" if name == "mmcl" else f"baselines.py:{name}"
    # The tabular baseline always searches a grid, its own.
    known = {"demo"} if name == "tabular" else words
    for word in sorted(words & known):
        file += f"{',' if ':' in file else ':'}{word}"
    # Its stage is called `tabular`.
    stages = {} if name == "tabular" else {"finetune": finetune}
    return {"config": file, "changes": {"stages": stages}}


def _targets(name: str) -> dict[str, tuple[str, ...]]:
    """Nothing where those of the configuration stay."""
    return {} if name in (*PHENOTYPED, "tabular") else {"targets": DISEASES}


def _shrink(config: ConfigDict) -> None:
    config.data.synthetic.update({"subjects": 800, "prevalence": "demo", "phenotyped": 1.0})
    few = ("supervised_10pct", "mae_10pct", "mmcl_10pct")
    _keep(config, (*METHODS, *few))
    for name in few:
        # 10 % of the smallest balanced set are about 23 records.
        config.runs[name].changes.stages.finetune.batch_size = 8
    with config.ignore_type():
        config.choices.mmcl.values = (3e-4, 1e-3)
    del config.choices.mmcl_wo_mdm
    config.probe.labels = (*DISEASES, "LV")
    # One page compares all runs.
    config.leave_out = ("report",)


# --- Studies, see docs/results.md ----------------------------------------------------------------
# Stages of pre-training of the methods, and batch size and base rate of fine-tuning: chosen on the
# validation split of `study` with one seed, or those of a method like it (docs/results.md).
STUDIED = {
    "supervised": ((), 8, 3e-4), "mae": (("mdm",), 8, 1e-4), "simclr": (("simclr",), 8, 1e-4),
    "clocs": (("clocs",), 8, 1e-4), "byol": (("byol",), 8, 1e-4),
    "barlow_twins": (("barlow_twins",), 8, 1e-4), "mmcl_wo_mdm": (("image", "mmcl"), 8, 1e-4),
    "mmcl": (("mdm", "image", "mmcl"), 8, 1e-4), "cmr_supervised": ((), 32, 3e-4),
    "cmr_mmcl_wo_mdm": (("image", "mmcl"), 32, 1e-4),
    "cmr_mmcl": (("mdm", "image", "mmcl"), 32, 1e-4),
}  # fmt: skip
# With few labels too.
COMPARED = ("supervised", "mae", "mmcl_wo_mdm", "mmcl")


def _study(config: ConfigDict) -> None:
    """What Tables I to V and Figure 5 claim, with five seeds.

    Of 4,000 subjects 1,400 train and 2,200 test: a subject that tests costs little, and narrows the
    intervals of the differences between methods.
    """
    config.data.synthetic.update(
        {"subjects": 4000, "prevalence": "demo", "phenotyped": 1.0, "splits": (35, 10, 55)}
    )
    # 10 % of the balanced sets are 87 records of CAD, two times what 1 % at the paper's size has;
    # 1 % of them would be 8.
    _keep(config, ("tabular", *STUDIED, *(f"{name}_10pct" for name in COMPARED)))
    config.choices = {}
    config.runs.tabular.changes = {"stages": {"tabular": {"seeds": SEEDS}}}
    longer = {
        name: {"epochs": 30, "evaluate_every_epochs": 3}
        for name in ("simclr", "clocs", "byol", "barlow_twins", "mmcl")
    }
    longer["mdm"] = {"epochs": 100, "evaluate_every_epochs": 10}
    longer["image"] = {"epochs": 24, "evaluate_every_epochs": 4}
    for name in STUDIED:
        _train(config.runs[name], name, longer, epochs=12, evaluate_every_epochs=2)
    for name in COMPARED:
        # After 24 epochs, 168 to 240 steps, validation was still rising.
        few = config.runs[f"{name}_10pct"]
        _train(few, name, longer, epochs=72, evaluate_every_epochs=12)


def _few(config: ConfigDict) -> None:
    """Figure 5 where labels are rare among the recordings, as in the paper, with five seeds.

    Of 6,000 subjects 4,200 train and 1,500 test. All stages of pre-training take about as many
    steps as in `study`, on three times the recordings.
    """
    config.data.synthetic.update(
        {"subjects": 6000, "prevalence": "demo", "phenotyped": 1.0, "splits": (70, 5, 25)}
    )
    _keep(config, [f"{name}_{suffix}" for suffix in SHARES for name in COMPARED])
    config.choices = {}
    longer = {
        "mdm": {"epochs": 30, "evaluate_every_epochs": 5},
        "image": {"epochs": 8, "evaluate_every_epochs": 2},
        "mmcl": {"epochs": 12, "evaluate_every_epochs": 2},
    }
    for name in COMPARED:
        # About 260 and 26 records of CAD.
        few, fewest = (config.runs[f"{name}_{suffix}"] for suffix in SHARES)
        _train(few, name, longer, epochs=24, evaluate_every_epochs=4)
        _train(fewest, name, longer, epochs=120, evaluate_every_epochs=20)


def _keep(config: ConfigDict, names: Iterable[str]) -> None:
    """Leaves the runs of these names, in this order."""
    config.order = tuple(names)
    config.runs = {name: config.runs[name] for name in config.order}
    for choice in config.choices.values():
        choice.runs = tuple(name for name in choice.runs if name in config.order)


def _train(run: ConfigDict, name: str, longer: dict[str, Any], **finetune: Any) -> None:
    """Five seeds of fine-tuning, after stages of pre-training that are as long as `longer` says.

    Args:
        name: of the method.
        finetune: settings of that stage.
    """
    stages, batch_size, base_rate = STUDIED[name]
    finetune |= {
        "seeds": SEEDS, "batch_size": batch_size, "optimizer": {"base_rate": base_rate},
    }  # fmt: skip
    changes = run.changes.stages
    with changes.ignore_type():
        changes.update({stage: longer[stage] for stage in stages})
        changes.finetune.update(finetune)
