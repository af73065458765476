"""Arrays of one's own against the native readers of the same recordings, and what goes wrong."""

import csv
import pickle

import numpy as np
import pytest
from made_up_ecg import made_up

from mmcl_jax import prepare
from mmcl_jax.data import cohort
from mmcl_jax.data.formats import wfdb
from mmcl_jax.data.images import cmr
from mmcl_jax.data.signals import ecg
from mmcl_jax.data.signals.leads import LEADS
from mmcl_jax.data.sources.table import Table
from mmcl_jax.data.subject import RefusedRecord

N = 6


def write_labels(folder, rows=None, header="record,split,CAD,rhythm"):
    path = folder / "labels.csv"
    splits = ("train", "train", "train", "val", "val", "test")
    rows = rows or [f"r{i},{s},{i % 2},{'SR' if i % 3 else 'AF'}" for i, s in enumerate(splits)]
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


DECLARED = {"binary": "CAD", "multiclass": "rhythm"}


def source(folder, signals, **options):
    if signals is not None:
        np.save(folder / "ecg.npy", signals)
    if "labels" not in options:
        options["labels"] = write_labels(folder)
    return Table(folder / "ecg.npy", **{"rate": 500, "unit": "mV", "declared": DECLARED, **options})


def test_an_array_gives_what_the_files_give(recordings, tmp_path):
    folder = recordings / "ptbxl"
    with open(folder / "ptbxl_database.csv") as file:
        files = [row["filename_hr"] for row in csv.DictReader(file)][:N]
    read = [wfdb.read(folder / file) for file in files]
    expected = [ecg.prepare(file, recording) for file, recording in zip(files, read, strict=True)]
    order = ("V6", "V5", "V4", "V3", "V2", "V1", "aVF", "aVL", "aVR", "III", "II", "I")
    backwards = np.stack([recording.signal[::-1].T for recording in read])
    table = source(tmp_path, backwards * 1000, unit="uV", leads=",".join(order))
    table = pickle.loads(pickle.dumps(table))
    assert [label.name for label in table.labels] == ["CAD", "rhythm"]
    for task, (signal, flags) in zip(table.tasks, expected, strict=True):
        subject = table.load(task)
        np.testing.assert_allclose(subject.ecg, signal, atol=1e-5)
        assert subject.flags == flags
    assert table.settings == {"ecg": ecg.DEFAULT.as_dict()}

    # The same records as files of their own, of two kinds.
    np.save(tmp_path / "one.npy", read[1].signal)
    rows = [f"a,{folder / files[0]}", "b,one.npy", f"c,{files[0]}"]
    labels = write_labels(tmp_path, rows, "record,ecg")
    named = Table(tmp_path, rate=500, unit="mV", labels=labels)
    for task, (signal, _) in zip(named.tasks[:2], expected, strict=False):
        np.testing.assert_allclose(named.load(task).ecg, signal, atol=1e-5)
    with pytest.raises(RefusedRecord, match="the header is absent"):
        named.load(named.tasks[2])
    # WFDB records say their rate and units themselves.
    labels = write_labels(tmp_path, rows[:1], "record,ecg")
    only = Table(tmp_path, labels=labels)
    np.testing.assert_allclose(only.load(only.tasks[0]).ecg, expected[0][0], atol=1e-5)
    assert not any("standard order" in remark for remark in only.remarks)


def test_rate_leads_and_labels(tmp_path):
    # Only I and II of the limb leads, 250 Hz.
    table = source(
        tmp_path, made_up(samples=2500)[:, [0, 1, 6, 7, 8, 9, 10, 11]],
        rate=250, leads="I,II,V1,V2,V3,V4,V5,V6",
    )  # fmt: skip
    subject = table.load(table.tasks[4])
    assert subject.ecg.shape == (12, 5000)
    assert "derived from I and II: III, aVR, aVL, aVF" in subject.flags
    assert "resampled from 250 Hz" in subject.flags
    assert (subject.record, subject.split, subject.labels) == (
        "r4", "val", {"CAD": 0.0, "rhythm": 1.0},
    )  # fmt: skip
    assert table.tasks[4].row == 4
    assert table.parameters["rate"] == 250
    assert len(table.tasks[1:3]) == 2
    assert not table.remarks[1:]


def test_the_standard_order_is_stated(tmp_path):
    assert source(tmp_path, made_up()).remarks == (
        "no column subject: every record counts as a person of its own",
        f"leads in the standard order: {', '.join(LEADS)}",
    )


def test_a_row_is_read_alone(tmp_path, monkeypatch):
    """No array as a whole: 100,000 records would be 24 GB."""
    table = source(tmp_path, made_up().astype(np.float32))
    sizes = []
    original = ecg.standardise

    def spy(path, recording, *options):
        sizes.append(recording.signal.nbytes)
        return original(path, recording, *options)

    monkeypatch.setattr("mmcl_jax.data.tasks.row_task.standardise", spy)
    table.load(table.tasks[5])
    assert sizes == [12 * 5000 * 8]
    assert len(pickle.dumps(table)) < 3000


def test_frames(tmp_path):
    generator = np.random.default_rng(0)
    images = generator.random((N, 40, 50, 3))
    images[2] = np.nan
    images[3] = 0.5
    signals = made_up()
    signals[4] = np.nan
    np.save(tmp_path / "cmr.npy", images)
    table = source(tmp_path, signals, cmr=tmp_path / "cmr.npy")
    assert table.settings["cmr"] == cmr.DEFAULT.as_dict()
    both, without, only = (table.load(table.tasks[row]) for row in (0, 2, 4))
    expected = cmr.stack_frames(*images[0].transpose(2, 0, 1))
    np.testing.assert_array_equal(both.cmr, expected)
    assert both.cmr_box == cmr.CONSTANT_BOX
    assert both.ecg is not None
    assert without.cmr is None
    assert only.ecg is None
    with pytest.raises(RefusedRecord, match="the frames show nothing"):
        table.load(table.tasks[3])
    np.save(tmp_path / "cmr.npy", images[:5])
    with pytest.raises(ValueError, match=r"cmr\.npy holds 5 records, .*labels\.csv has 6"):
        source(tmp_path, None, cmr=tmp_path / "cmr.npy")


def test_preprocessed_ecgs_are_used_as_they_are(tmp_path):
    raw = made_up()
    ready = np.stack([ecg.preprocess(signal) for signal in raw])
    ready[3] *= 2
    table = source(tmp_path, ready, rate=0, unit="", preprocessed=True)
    np.testing.assert_array_equal(table.load(table.tasks[0]).ecg, ready[0])
    assert table.settings["ecg"]["preprocessed"] == "before the preparation"
    with pytest.raises(
        RefusedRecord, match="not preprocessed: the leads I, II, III have mean .* 2"
    ):
        table.load(table.tasks[3])
    # Each declared as the other.
    with pytest.raises(ValueError, match=r"ecg\.npy: every lead group has mean 0 .*--preprocessed"):
        source(tmp_path, ready)
    with pytest.raises(ValueError, match=r"ecg\.npy: not preprocessed"):
        source(tmp_path, raw, rate=0, unit="", preprocessed=True)
    with pytest.raises(ValueError, match="--preprocessed is in place of --rate and --unit"):
        source(tmp_path, ready, preprocessed=True)
    # A single one among recordings as they were measured.
    raw[3] = ready[0]
    table = source(tmp_path, raw)
    with pytest.raises(RefusedRecord, match="normalised already"):
        table.load(table.tasks[3])
    # Files of their own are checked one by one.
    np.save(tmp_path / "one.npy", ready[1])
    labels = write_labels(tmp_path, ["a,one.npy"], "record,ecg")
    files = Table(tmp_path, labels=labels, preprocessed=True)
    np.testing.assert_array_equal(files.load(files.tasks[0]).ecg, ready[1])


def test_records_that_cannot_be_used(tmp_path):
    signals = made_up()
    signals[0] = np.nan
    signals[1] = 0.1
    signals[2, :, :1000] = np.nan
    rows = ["r0,train,1,SR", "r1,train,0,AF", "r2,train,0,SR", "r3,val,2,AF", "r3,val,1,AF"]
    labels = write_labels(tmp_path, [*rows, "r3,val,0,SR"])
    table = source(tmp_path, signals, labels=labels)
    reasons = []
    for row in (0, 1, 2, 3, 5):
        with pytest.raises(RefusedRecord) as caught:
            table.load(table.tasks[row])
        assert caught.value.path == str(tmp_path / "ecg.npy")
        reasons.append(caught.value.reason)
    assert reasons == [
        "100.0% of the samples are missing, at most 10% may",
        "every lead is flat",
        "20.0% of the samples are missing, at most 10% may",
        "labels.csv, line 5: CAD is '2', expected 0 or 1",
        "labels.csv, line 7: record r3 is on line 5 already",
    ]
    short = source(tmp_path, made_up(samples=4000))
    with pytest.raises(RefusedRecord, match="8 s long, expected at least 10 s"):
        short.load(short.tasks[0])
    padded = source(tmp_path, made_up(samples=4000), shortest=5.0)
    assert "padded: 8.0 s of 10 s" in padded.load(padded.tasks[0]).flags


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0}, "--rate missing: an array says neither"),
        ({"unit": ""}, "--unit missing"),
        ({"unit": "g"}, "--unit is 'g', expected mV, uV, nV or V"),
        ({"leads": "I,II,V1"}, "--leads: leads V2, V3, V4, V5, V6 are missing"),
        ({"leads": ",".join((*LEADS[:11], "V5"))}, "--leads: lead V5 occurs twice"),
        ({"leads": "I,II,V1,V2,V3,V4,V5,V6"}, r"shape is \(12, 5000\), expected \(8, samples\)"),
        ({"array": "ecg"}, "holds one array"),
        ({"labels": None}, "columns are declared, but there is no table"),
    ],
)
def test_declarations_that_do_not_fit(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        source(tmp_path, made_up(), **options)


@pytest.mark.parametrize("count", [N - 1, N + 1])
def test_a_table_of_another_length(tmp_path, count):
    rows = [f"r{i},train,{i % 2},{'SR' if i % 3 else 'AF'}" for i in range(count)]
    labels = write_labels(tmp_path, rows)
    with pytest.raises(ValueError, match=rf"ecg\.npy holds 6 records, .*labels\.csv has {count}"):
        source(tmp_path, made_up(), labels=labels)


def test_without_a_table(tmp_path):
    np.save(tmp_path / "ecg.npy", made_up())
    table = Table(tmp_path / "ecg.npy", rate=500, unit="mV")
    assert [task.record for task in table.tasks][:2] == ["row000000", "row000001"]
    assert table.labels == ()
    assert table.load(table.tasks[1]).split_assigned
    with pytest.raises(ValueError, match="is a folder: it needs --labels with a column ecg"):
        Table(tmp_path, rate=500, unit="mV")


def test_command(tmp_path, capsys):
    np.save(tmp_path / "ecg.npy", made_up())
    rows = [f"r{i},{s},{i % 2},SR;X" for i, s in enumerate(("train",) * 4 + ("val", "test"))]
    labels = write_labels(tmp_path, rows, "record,split,CAD,codes")
    output = tmp_path / "cohort"
    arguments = ["table", "--input", str(tmp_path / "ecg.npy"), "--labels", str(labels)]
    arguments += ["--binary", "CAD", "--multilabel", "codes", "--output", str(output)]
    arguments += ["--workers", "0"]
    assert prepare.main(arguments) == 1
    assert "--rate and --unit missing" in capsys.readouterr().err
    assert prepare.main([*arguments, "--rate", "500", "--unit", "mV"]) == 0
    assert "note: X: all known values of the training split are 1" in capsys.readouterr().err
    made = cohort.open_cohort(output)
    assert [label.name for label in made.target("codes")] == ["SR", "X"]
    np.testing.assert_array_equal(made.table("train")["labels"][:, 0], [0, 1, 0, 1])
