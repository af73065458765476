"""Settings of the whole suite: 8 fake CPU devices, no silent broadcasting, real recordings."""

import os
import pathlib

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    """Folder of the parity numbers."""
    return ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def recordings() -> pathlib.Path:
    """Folder of real ECG and CMR recordings; the test is skipped where there is none."""
    folder = pathlib.Path(os.environ.get("MMCL_JAX_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no recordings at {folder}; set MMCL_JAX_TEST_DATA to their folder")
    return folder
