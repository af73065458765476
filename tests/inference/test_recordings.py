"""Real recordings give the same from files and from a cohort, however they are batched."""

import csv
import subprocess
import sys

import numpy as np
import pytest
from trained_run import command

from mmcl_jax import embed
from mmcl_jax.data import cohort as cohorts
from mmcl_jax.data.sources.ptbxl import PtbXl
from mmcl_jax.data.sources.wfdb import Wfdb

_RECORDS = 24


@pytest.fixture(scope="module")
def ptbxl(recordings, tmp_path_factory):
    """A few records of PTB-XL in its own layout, `ptbxl`, and the cohort of them."""
    folder = tmp_path_factory.mktemp("ptbxl")
    whole, part = recordings / "ptbxl", folder / "ptbxl"
    part.mkdir()
    for file in whole.glob("*"):
        if file.name != "ptbxl_database.csv":
            (part / file.name).symlink_to(file)
    with (whole / "ptbxl_database.csv").open(newline="") as file:
        lines = csv.DictReader(file)
        rows = list(lines)
    with (part / "ptbxl_database.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, lines.fieldnames)
        writer.writeheader()
        # From all over the table, so that all splits are there.
        writer.writerows(rows[:: len(rows) // _RECORDS][:_RECORDS])
    cohorts.write(PtbXl(part), folder / "cohort", workers=0, progress=False)
    return folder


def headers(ptbxl):
    """The header of each record of the cohort, by its file name."""
    with (ptbxl / "ptbxl" / "ptbxl_database.csv").open(newline="") as file:
        names = [row["filename_hr"] for row in csv.DictReader(file)]
    found = [ptbxl / "ptbxl" / f"{name}.hea" for name in names]
    return {file.stem: file for file in found}


def by_record(file):
    found = np.load(file)
    assert not any(found["refused"])
    names = (name.rpartition("/")[2] for name in found["record"].tolist())
    return dict(zip(names, found["embedding"], strict=True))


def test_ptbxl_in_any_order_and_batch_size(run, model, ptbxl, tmp_path):
    """Files give what `model.embed` makes of the prepared cohort; here on eight devices."""
    assert command(embed, run, ptbxl / "cohort", tmp_path / "cohort.npz") == 0
    of_cohort = by_record(tmp_path / "cohort.npz")
    cohort = cohorts.open_cohort(ptbxl / "cohort")
    names, ecg = [], []
    for split, size in cohort.splits.items():
        names += cohort.table(split)["record"].tolist()
        ecg += [cohort.source(split)[row]["ecg"] for row in range(size)]
    expected = dict(zip(names, model.embedder(np.stack(ecg)), strict=True))
    assert len(expected) >= _RECORDS - 1
    files = headers(ptbxl)
    folder = tmp_path / "files"
    folder.mkdir()
    for number, (name, header) in enumerate(reversed(files.items())):
        # Another order than that of the cohort; records are named by their signal files.
        (folder / f"{number:02d}").mkdir()
        for suffix in (".hea", ".dat"):
            (folder / f"{number:02d}" / f"{name}{suffix}").symlink_to(header.with_suffix(suffix))
    for size in (5, _RECORDS):
        out = tmp_path / f"{size}.npz"
        assert command(embed, run, folder, out, "--batch-size", size) == 0
        found = by_record(out)
        assert list(found) == list(reversed(files))
        for name, values in expected.items():
            np.testing.assert_allclose(found[f"{name}_hr"], values, atol=1e-6)
            np.testing.assert_allclose(of_cohort[name], values, atol=1e-6)
    one = next(iter(files))
    np.testing.assert_allclose(model.embed(files[one]), found[one], atol=1e-6)


def test_one_device_and_processes_that_read(run, model, recordings, tmp_path):
    """The command as it is run: on one device, and here on eight."""
    folder = recordings / "cinc2021"
    cohorts.write(Wfdb(folder), tmp_path / "cohort", workers=0, progress=False)
    assert command(embed, run, tmp_path / "cohort", tmp_path / "cohort.npz") == 0
    arguments = ["--run", run, "--input", folder, "--output", tmp_path / "files.npz"]
    line = [sys.executable, "-m", "mmcl_jax.embed", *arguments, "--workers", "1"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "files.npz: 30 records used, 0 refused" in done.stdout
    files, cohort = (np.load(tmp_path / f"{name}.npz") for name in ("files", "cohort"))
    row_of = {record: row for row, record in enumerate(files["record"].tolist())}
    rows = [row_of[record] for record in cohort["record"].tolist()]
    assert len(rows) >= 29
    np.testing.assert_allclose(files["embedding"][rows], cohort["embedding"], atol=1e-6)
    flags = zip(files["flags"][rows].tolist(), cohort["flags"].tolist(), strict=True)
    assert all(theirs.startswith(ours) or ours in theirs for ours, theirs in flags)
    one = model.embed(folder / "E07500.hea")
    np.testing.assert_allclose(one, files["embedding"][row_of["E07500"]], atol=1e-6)
    # 15 leads, 1000 Hz, 38 s; by its signal file.
    assert np.isfinite(model.embed(recordings / "ptb" / "s0010_re.dat")).all()
