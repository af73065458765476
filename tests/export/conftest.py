"""One run, and its export, for all tests of this folder."""

import pytest
from export_files import make_config
from trained_run import Untrained

from mmcl_jax.data import cohort as cohorts
from mmcl_jax.data.sources.synthetic import Synthetic
from mmcl_jax.export import __main__ as command
from mmcl_jax.run_dir import RunDir


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A run as MDM and two targets leave it, evaluated."""
    folder = tmp_path_factory.mktemp("run")
    source = Synthetic(subjects=48, prevalence="demo", imaged=0.0, phenotyped=0.0)
    cohorts.write(source, folder / "cohort", workers=0, progress=False)
    config = make_config(folder / "cohort")
    RunDir(folder).write_config(config)
    assert Untrained(config, RunDir(folder)).run_all(["mdm", "finetune", "evaluate"])
    return folder


@pytest.fixture(scope="session")
def whole(run, tmp_path_factory):
    """The export of all that predicts."""
    folder = tmp_path_factory.mktemp("out") / "export"
    command.main([str(run), "--output", str(folder)])
    return folder
