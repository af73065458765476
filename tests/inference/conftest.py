"""One run with data for all tests of this folder."""

import pytest
from trained_run import Untrained, command, configuration, write_data

import mmcl_jax
from mmcl_jax import embed, predict
from mmcl_jax.run_dir import RunDir


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """72 ECGs in an array, with frames and labels, and the cohort of them."""
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.fixture(scope="session")
def run(data, tmp_path_factory):
    """A run as MDM, MMCL and two seeds of three targets leave it."""
    folder = tmp_path_factory.mktemp("run")
    config = configuration(data / "cohort")
    RunDir(folder).write_config(config)
    assert Untrained(config, RunDir(folder)).run_all()
    return folder


@pytest.fixture(scope="session")
def model(run):
    """The run, loaded once: its programs are compiled for the first test that needs them."""
    return mmcl_jax.load(run)


@pytest.fixture(scope="session")
def predicted(run, data, tmp_path_factory):
    """predict and embed of the cohort as .npz."""
    folder = tmp_path_factory.mktemp("out")
    for verb in (predict, embed):
        file = folder / f"{verb.__name__.rpartition('.')[2]}.npz"
        assert command(verb, run, data / "cohort", file) == 0
    return folder
