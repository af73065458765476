"""The runs of the paper: order, sharing, choices, and going on where a command was stopped."""

import json
import textwrap

import jax
import pytest
from tiny_experiment import CONFIGS, read_config
from tiny_people import TinyPeople

from mmcl_jax.data import cohort as cohorts
from mmcl_jax.paper import runs
from mmcl_jax.paper.plan import Plan
from mmcl_jax.run_dir import RunDir
from mmcl_jax.stages import expand

METHODS = """
    import tiny
    from mmcl_jax import default_config

    OPTIMIZER = {"name": "adamw", "rate": 1e-3, "weight_decay": 0.0, "schedule": "cosine"}

    def get_config(argument=None):
        config = default_config.experiment(argument)
        if argument == "tabular":
            # Trained in an instant.
            config.order = ("finetune", "evaluate")
            grid = {"rounds": (5,), "max_depth": (2,), "learning_rate": (0.3,), "subsample": (1.0,)}
            config.stages.finetune = default_config.stage(
                "tabular", targets=("CAD",), seeds=(0,), balanced=True, sweep={"grid": grid}
            )
            config.stages.evaluate = {
                "splits": ("test",), "crops": 1, "resamples": 20, "batch_size": 8,
            }
            return config.lock()
        config.models = {
            "ecg_encoder": tiny.VIT, "decoder": tiny.DECODER, "head": {"name": "head"},
        }
        common = {"ecg_view": {"length": 500}, "batch_size": 8, "optimizer": OPTIMIZER}
        init = {"ecg_encoder": "mdm"} if argument == "mae" else {}
        config.order = ("finetune", "evaluate", "report")
        if argument == "mae":
            config.order = ("mdm", "finetune", "evaluate", "interpret", "report")
            config.stages.mdm = default_config.stage(
                "masked_modelling", towers={"ecg_encoder": {"pool": "none"}, "decoder": {}},
                hand_on="latest", **common,
            )
            config.stages.interpret = {"stage": "mdm", "split": "test", "subjects": 1}
        config.stages.finetune = default_config.stage(
            "supervised", towers={"ecg_encoder": {}, "head": {}}, init=init,
            new=("ecg_encoder/fc_norm",), unused=("ecg_encoder/norm/",),
            targets=("CAD",), seeds=(0,), balanced=True, select="val/auroc", **common,
        )
        config.stages.evaluate = {
            "splits": ("val", "test"), "crops": 1, "resamples": 20, "batch_size": 8,
        }
        config.stages.report = {}
        return config.lock()
"""


def run_of(config, **changes):
    return {"config": config, "changes": changes}


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    (folder / "tiny_methods.py").write_text(textwrap.dedent(METHODS))
    return folder


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    path = tmp_path_factory.mktemp("paper") / "cohort"
    cohorts.write(TinyPeople(), path, workers=0, progress=False)
    return path


@pytest.fixture
def config(cohort):
    from mmcl_jax import default_config

    data = json.loads(default_config.experiment("paper").data.to_json())
    data |= {"path": str(cohort), "preprocessing": cohorts.open_cohort(cohort).settings}
    return {
        "data": data,
        "order": ["supervised", "mae", "mae_50pct"],
        "runs": {
            "supervised": run_of("tiny_methods.py:supervised"),
            "mae": run_of("tiny_methods.py:mae"),
            "mae_50pct": run_of("tiny_methods.py:mae", stages={"finetune": {"fraction": 0.5}}),
        },
        "choices": {
            "mae": {
                "runs": ["mae", "mae_50pct"], "stage": "mdm", "field": "optimizer.rate",
                "values": [1e-4, 1e-3],
            }
        },
        "leave_out": ["interpret", "report"],
        "probe": {"labels": ("CAD",), "resamples": 20},
    }  # fmt: skip


def fill(run, **done):
    """Marks the stages of a run as done."""
    RunDir(run.path).write_config(run.config)
    for stage in run.config["order"]:
        RunDir(run.path).mark_done(stage, {"select": "val/loss", **done})


def test_a_choice_is_made_once_and_its_stage_is_shared(config, configs, tmp_path):
    plan = Plan(config, configs, tmp_path)
    names = []
    for run in plan.steps():
        names.append(run.name)
        fill(run, best={"choices/mae/0.0001": 0.3, "choices/mae/0.001": 0.2}.get(run.name))
        if run.name.startswith("mae"):
            assert run.taken == {"mdm": f"{tmp_path}/choices/mae/0.001:mdm"}
            assert run.config["order"] == ["finetune", "evaluate"]
            found = run.config["stages"]["finetune"]["init"]
            assert found == {"ecg_encoder": f"{tmp_path}/choices/mae/0.001:mdm"}
        if run.name == "mae_50pct":
            assert run.config["stages"]["finetune"]["fraction"] == 0.5
    assert names == [
        "supervised", "choices/mae/0.0001", "choices/mae/0.001", "mae", "mae_50pct",
    ]  # fmt: skip
    choice = tmp_path / "choices" / "mae" / "choice.json"
    made = json.loads(choice.read_text())
    assert made["chosen"] == 1e-3
    assert made["found"] == {"0.0001": 0.3, "0.001": 0.2}
    # It stays, whatever the runs say later.
    again = list(plan.steps())
    assert [run.name for run in again if run.is_candidate] == ["choices/mae/0.001"]
    for run in again:
        fill(run, best=0.0)
    assert json.loads(choice.read_text()) == made
    config["choices"]["mae"]["values"] = [1e-4, 3e-4]
    with pytest.raises(ValueError, match="choice.json was made among others: values"):
        list(Plan(config, configs, tmp_path).steps())


def test_a_value_that_diverges_is_not_chosen(config, configs, tmp_path):
    plan = Plan(config, configs, tmp_path)
    for run in plan.steps():
        if run.name == "choices/mae/0.001":
            plan.note_divergence(run)
        else:
            fill(run, best=0.5)
    made = json.loads((tmp_path / "choices" / "mae" / "choice.json").read_text())
    assert made["chosen"] == 1e-4
    assert made["found"]["0.001"] is None


def test_a_choice_waits_for_every_value(config, configs, tmp_path):
    plan = Plan(config, configs, tmp_path)
    names = []
    for run in plan.steps():
        names.append(run.name)
        if run.name != "choices/mae/0.0001":
            fill(run, best=0.5)
    assert names == ["supervised", "choices/mae/0.0001", "choices/mae/0.001"]
    assert list(plan.blocked) == ["mae", "mae_50pct"]
    assert "choice.json needs stage mdm of" in plan.blocked["mae"]
    assert not (tmp_path / "choices" / "mae" / "choice.json").exists()


def test_a_part_of_the_runs_finds_the_same_places(config, configs, tmp_path):
    config["runs"]["again"] = run_of("tiny_methods.py:mae")
    config["order"].append("again")
    config["choices"]["mae"]["runs"].append("again")
    every = {run.name: run for run in Plan(config, configs, tmp_path).steps(dry=True)}
    part = {run.name: run for run in Plan(config, configs, tmp_path).steps(["again"], dry=True)}
    assert list(part) == ["choices/mae/0.0001", "choices/mae/0.001", "again"]
    assert all(every[name] == run for name, run in part.items())


def test_equal_stages_are_trained_once_and_others_are_not(config, configs, tmp_path):
    config["choices"] = {}
    config["order"] = ["mae", "again", "longer", "seed"]
    config["runs"] = {
        "mae": run_of("tiny_methods.py:mae"),
        "again": run_of("tiny_methods.py:mae", stages={"finetune": {"targets": ["LVEDV"]}}),
        "longer": run_of("tiny_methods.py:mae", stages={"mdm": {"epochs": 2}}),
        "seed": run_of("tiny_methods.py:mae", seed=1),
    }
    runs = {run.name: run for run in Plan(config, configs, tmp_path).steps(dry=True)}
    assert {name: list(run.taken) for name, run in runs.items()} == {
        "mae": [], "again": ["mdm"], "longer": [], "seed": [],
    }  # fmt: skip
    # Frozen embeddings are probed where they are trained.
    assert runs["mae"].config["order"] == ["mdm", "finetune", "evaluate", "probe"]
    assert runs["again"].config["order"] == ["finetune", "evaluate"]
    # A part of the runs finds the same place for what it shares.
    (alone,) = Plan(config, configs, tmp_path).steps(["again"], dry=True)
    assert alone == runs["again"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": ["mmcl"]}, "no run mmcl.*; known: supervised, mae, mae_50pct"),
        (
            {"runs": {"mae": run_of("absent.py")}, "order": ["mae"], "choices": {}},
            "absent.py, which does not exist",
        ),
        (
            {
                "runs": {"mae": run_of("tiny_methods.py:mae", seeed=1)},
                "order": ["mae"],
                "choices": {},
            },
            "changes of run mae do not fit tiny_methods.py:mae: .*seeed",
        ),
        ({"choices": {"mae": {"runs": ["mae"], "values": []}}}, "choices.mae has no values"),
    ],
)
def test_errors_of_a_configuration(config, configs, tmp_path, change, message):
    with pytest.raises((ValueError, OSError), match=message):
        list(Plan({**config, **change}, configs, tmp_path).steps(dry=True))


def test_everything_runs_once(config, configs, tmp_path, capsys):
    config["choices"], config["order"] = {}, ["broken", "tabular", "tabular_50pct"]
    config["runs"] = {
        # Fails, which does not stop the others.
        "broken": run_of("tiny_methods.py:tabular", stages={"finetune": {"targets": ["HCM"]}}),
        "tabular": run_of("tiny_methods.py:tabular"),
        "tabular_50pct": run_of("tiny_methods.py:tabular", stages={"finetune": {"fraction": 0.5}}),
    }
    plan = Plan(config, configs, tmp_path)
    failed = runs.run_all(plan)
    assert list(failed) == ["broken"]
    assert "no label called HCM" in failed["broken"]
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Tabular" in page
    records = [
        json.loads((tmp_path / run / "stages/finetune/CAD/0/done.json").read_text())["records"]
        for run in ("tabular", "tabular_50pct")
    ]
    assert records[1] == round(records[0] / 2)
    assert "tabular,CAD,test,auroc," in (tmp_path / "tabular/evaluate/metrics.csv").read_text()
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("tabular*/**/*.json")}
    capsys.readouterr()
    assert runs.run_all(plan, ["tabular", "tabular_50pct"]) == {}
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert capsys.readouterr().out.count(": done") == 2
    assert "tabular_50pct (finetune): 2 of 2 stages done" in plan.describe()
    config["runs"]["tabular"] = run_of(
        "tiny_methods.py:tabular", stages={"finetune": {"seeds": [0], "fraction": 0.7}}
    )
    changed = Plan(config, configs, tmp_path)
    assert "fraction: 1.0 then, 0.7 now" in runs.run_all(changed, ["tabular"])["tabular"]
    assert runs.run_all(changed, ["tabular"], force=True) == {}


def test_failures_of_a_device_and_of_the_report_are_told(config, configs, tmp_path, monkeypatch):
    def fail(path, config, title, force):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    config["choices"], config["order"] = {}, ["tabular"]
    config["runs"] = {"tabular": run_of("tiny_methods.py:tabular")}
    monkeypatch.setattr(runs, "_run", fail)
    failed = runs.run_all(Plan(config, configs, tmp_path))
    assert failed["tabular"] == "RESOURCE_EXHAUSTED: out of memory"
    assert "no run directory" in failed["report"]


def test_the_configuration_of_the_paper_shares_what_can_be_shared(tmp_path):
    """One MDM, one SimCLR of the images, one MMCL per rate; 12 methods; 8 with 10 and 1 %."""
    for argument, count, rates in (
        ("", 12 + 8 + 16, 2 * [3e-5, 1e-4, 3e-4, 1e-3]),
        ("demo", 14 + 3, [1e-3, 3e-4, 1e-3]),
        ("sweep,demo", 14 + 3, [1e-3, 3e-4, 1e-3]),
        ("study", 12 + 4, [1e-3, 1e-3]),
        ("few", 4 + 4, [1e-3, 1e-3]),
        ("reference,bfloat16", 12 + 8 + 16, 2 * [3e-5, 1e-4, 3e-4, 1e-3]),
    ):
        whole = json.loads(read_config("paper", argument).to_json())
        runs = list(Plan(whole, CONFIGS, tmp_path).steps(dry=True))
        assert len(runs) == len({run.name for run in runs}) == count
        trained = [
            (stage, run.config["stages"][stage]["optimizer"].get("rate"))
            for run in runs
            for stage in run.config["order"]
            if not run.config["stages"][stage].get("targets")
            and "objective" in run.config["stages"][stage]
        ]
        assert [stage for stage, _ in trained].count("mdm") == 1
        assert [stage for stage, _ in trained].count("image") == 1
        assert [rate for stage, rate in trained if stage == "mmcl"] == rates
        for run in runs:
            for stage in expand(run.config):
                if stage.target:
                    searches = run.name == "tabular" or (
                        "sweep" in argument and "pct" not in run.name
                    )
                    assert bool(stage.config["sweep"]) == searches
                    assert stage.config["fraction"] == (
                        0.1 if "_10pct" in run.name else 0.01 if "_1pct" in run.name else 1.0
                    )
