"""Settings of the whole suite: 8 fake CPU devices, no silent broadcasting, real recordings."""

import atexit
import os
import pathlib
import shutil
import tempfile

import jax
import pytest

# Also where there is a GPU: it multiplies float32 in TF32, and is one device.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Many tests build the same program anew; compiling it for 8 devices takes longer than running it.
# The processes that run the tests share the folder of the one that started them.
if (_compiled := os.environ.get("MMCL_JAX_TEST_COMPILED")) is None:
    _compiled = os.environ["MMCL_JAX_TEST_COMPILED"] = tempfile.mkdtemp(prefix="compiled-")
    atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", _compiled)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)

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


@pytest.fixture(scope="module")
def compiled_quickly():
    """For programs that run a few steps only."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
