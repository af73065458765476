"""Tensors as PyTorch writes them; the labels against the column map of the published code."""

import pickle

import numpy as np
import pytest
from made_up_ecg import made_up

from mmcl_jax import prepare
from mmcl_jax.data import cohort
from mmcl_jax.data.images import cmr
from mmcl_jax.data.signals import ecg
from mmcl_jax.data.sources.pt import Files, Pt
from mmcl_jax.data.subject import RefusedRecord
from mmcl_jax.data.targets.labels import DISEASES, PHENOTYPES

torch = pytest.importorskip("torch")
N = 3
READY = np.stack([ecg.preprocess(signal) for signal in made_up(1, 2 * N)])


def save(folder, name, content):
    if isinstance(content, np.ndarray):
        content = torch.from_numpy(content)
    torch.save(content, folder / name)
    return folder / name


def files(folder, ready=READY, **val):
    train = Files(save(folder, "ecgs_train_x.pt", ready[:N]))
    return {"train": train, "val": Files(save(folder, "ecgs_val_x.pt", ready[N:]), **val)}


def test_ecgs_and_images_are_used_as_they_are(tmp_path):
    images = np.random.default_rng(0).random((N, 3, 210, 210)).astype(np.float32)
    path = save(tmp_path, "images.pt", [torch.from_numpy(image) for image in images])
    source = Pt(files(tmp_path, images=path), preprocessed=True)
    source = pickle.loads(pickle.dumps(source))
    assert [task.record for task in source.tasks] == [
        "train000000", "train000001", "train000002", "val000000", "val000001", "val000002",
    ]  # fmt: skip
    for row, task in enumerate(source.tasks):
        subject = source.load(task)
        np.testing.assert_array_equal(subject.ecg, READY[row])
        assert subject.split == ("train" if row < N else "val")
        assert (subject.cmr is None) == (row < N)
        assert not subject.split_assigned
    np.testing.assert_allclose(
        subject.cmr / 255.0, images[-1].transpose(1, 2, 0), atol=0.5 / 255 + 1e-6
    )
    assert subject.cmr_box == cmr.CONSTANT_BOX
    assert source.settings["ecg"]["preprocessed"] == "before the preparation"
    assert source.settings["cmr"]["preprocessed"] == "before the preparation"


def test_images_of_another_range_or_size(tmp_path):
    images = [
        np.full((3, 210, 210), 0.5),
        np.ones((3, 200, 200)),
        np.eye(210)[None].repeat(3, 0) * 2,
    ]
    path = save(tmp_path, "images.pt", [torch.from_numpy(image) for image in images])
    source = Pt(files(tmp_path, images=path), preprocessed=True)
    for row, message in ((3, "hold 0.5 to 0.5"), (4, "200 x 200 pixels"), (5, "hold 0 to 2")):
        with pytest.raises(RefusedRecord, match=message):
            source.load(source.tasks[row])


def test_raw_tensors_are_preprocessed_once(tmp_path):
    raw = made_up(1, 2 * N).astype(np.float32)
    source = Pt(files(tmp_path, raw), rate=500, unit="mV")
    np.testing.assert_allclose(source.load(source.tasks[4]).ecg, READY[4], atol=1e-4)
    assert source.settings == {"ecg": ecg.DEFAULT.as_dict()}
    with pytest.raises(ValueError, match=r"ecgs_train_x\.pt: not preprocessed"):
        Pt(files(tmp_path, raw), preprocessed=True)
    with pytest.raises(ValueError, match="normalised already"):
        Pt(files(tmp_path), rate=500, unit="mV")


@pytest.mark.parametrize(
    "numbers",
    [
        [0, 1, 1],
        [torch.tensor(0), torch.tensor(1), torch.tensor(1)],
        torch.tensor([0, 1, 1]),
        torch.tensor([[0.0], [1.0], [1.0]]),
        torch.tensor([[1, 0], [0, 1], [0, 1]]),
    ],
    ids=["list", "list of tensors", "vector", "column", "one-hot"],
)
def test_labels_in_every_form(tmp_path, numbers):
    path = save(tmp_path, "labels.pt", numbers)
    source = Pt(files(tmp_path, labels={"CAD": path}), preprocessed=True)
    assert source.labels == DISEASES[:1]
    assert [task.labels for task in source.tasks] == [{}] * 3 + [
        {"CAD": 0.0}, {"CAD": 1.0}, {"CAD": 1.0},
    ]  # fmt: skip


def test_more_than_two_classes(tmp_path):
    path = save(tmp_path, "labels.pt", torch.eye(4)[[3, 0, 1]])
    source = Pt(files(tmp_path, labels={"rhythm": path}), preprocessed=True)
    assert source.labels[0].classes == ("0", "1", "2", "3")
    assert [task.labels["rhythm"] for task in source.tasks[3:]] == [3.0, 0.0, 1.0]


def test_phenotypes_by_the_published_columns(tmp_path):
    # Column c of row r holds c + r / 100, so that every value says where it comes from.
    values = np.arange(75)[None, :] + np.arange(N)[:, None] / 100
    mask = np.ones((N, 75), bool)
    mask[1, 3] = mask[2, 74] = False
    given = {"phenotypes": save(tmp_path, "p.pt", values), "mask": save(tmp_path, "m.pt", mask)}
    source = Pt(files(tmp_path, **given), preprocessed=True)
    assert [label.name for label in source.labels] == [label.name for label in PHENOTYPES]
    assert {label.unit for label in source.labels} == {"sd"}
    first, second, third = (task.labels for task in source.tasks[3:])
    columns = {
        "LVEDV": 0, "LVEF": 3, "LVM": 5, "RVEDV": 6, "RVEF": 9,
        "WT_1": 24, "WT_16": 39, "WT_global": 40, "Ecc_1": 41, "Ecc_global": 57,
        "Err_1": 58, "Err_global": 74,
    }  # fmt: skip
    assert {name: round(first[name]) for name in columns} == columns
    assert len(first) == 61
    assert second["LVEDV"] == pytest.approx(0.01)
    assert set(first) - set(second) == {"LVEF"}
    assert set(first) - set(third) == {"Err_global"}
    units = Pt(files(tmp_path, **given), preprocessed=True, phenotypes_in="units")
    assert units.labels == PHENOTYPES


def test_the_scale_of_phenotypes_is_checked(tmp_path):
    ready = np.concatenate([READY[:N], READY[:1].repeat(40, 0)])
    values = np.random.default_rng(0).normal(100, 20, (40, 75))
    path = save(tmp_path, "p.pt", values)
    with pytest.raises(ValueError, match=r"p\.pt: .* not z-scored, .*--phenotypes-in units"):
        Pt(files(tmp_path, ready, phenotypes=path), preprocessed=True)
    path = save(tmp_path, "p.pt", (values - 100) / 20)
    with pytest.raises(ValueError, match=r"p\.pt: .* are z-scored, .*--phenotypes-in sd"):
        Pt(files(tmp_path, ready, phenotypes=path), preprocessed=True, phenotypes_in="units")


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        ([0, 1], "labels", r"has 2 rows, .*ecgs_val_x\.pt 3"),
        ([0, 1, 0, 1], "labels", "has 4 rows"),
        (torch.tensor([0.5, 1, 0]), "labels", "row 0 is 0.5, expected the number of a class"),
        (torch.tensor([[1, 1], [0, 1], [1, 0]]), "labels", "row 0 is .*expected one 1"),
        (torch.zeros(3, 2, 2), "labels", r"shape is \(3, 2, 2\), expected \(N,\)"),
        ({"CAD": [0, 1, 0]}, "labels", "expected class numbers, found dict"),
        (["0", "x", "1"], "labels", "expected class numbers"),
        (torch.zeros(3, 61), "phenotypes", r"shape is \(3, 61\), expected \(N, 75\)"),
        (torch.zeros(2, 75), "phenotypes", "has 2 rows"),
        (torch.zeros(3, 75), "mask", "a mask without phenotypes"),
        ([torch.zeros(3, 210, 210)] * 2, "images", "has 2 rows"),
    ],
)
def test_what_does_not_fit(tmp_path, content, kind, message):
    path = save(tmp_path, "content.pt", content)
    given = {kind: {"CAD": path} if kind == "labels" else path}
    with pytest.raises(ValueError, match=rf"content\.pt.*{message}"):
        Pt(files(tmp_path, **given), preprocessed=True)


def test_command_finds_the_ecgs_of_a_folder(tmp_path, capsys):
    files(tmp_path)
    save(tmp_path, "labels_CAD.pt", [0, 1, 0])
    output = tmp_path / "cohort"
    arguments = ["pt", "--input", str(tmp_path), "--output", str(output), "--workers", "0"]
    arguments += ["--preprocessed", "--train-labels", "CAD=labels_CAD.pt"]
    assert prepare.main(arguments) == 0
    made = cohort.open_cohort(output)
    assert made.splits == {"train": 3, "val": 3, "test": 0}
    np.testing.assert_array_equal(made.table("train")["labels"], [[0], [1], [0]])
    for extra, message in (
        (["--test-labels", "CAD=labels_CAD.pt"], "--test-ecg is missing"),
        (["--val-labels", "labels_CAD.pt"], "expected NAME=FILE"),
        (["--val-ecg", "none.pt"], "none.pt"),
        (["--unit", "mV"], "in place of --rate and --unit"),
    ):
        assert prepare.main([*arguments, *extra, "--overwrite"]) == 1
        assert message in capsys.readouterr().err
    save(tmp_path, "ecgs_train_y.pt", READY[:2])
    assert prepare.main([*arguments, "--overwrite"]) == 1
    assert "choose one with --train-ecg" in capsys.readouterr().err
    assert prepare.main(["pt", "--preprocessed", "--output", str(tmp_path / "other")]) == 1
    assert "no ECGs: give --train-ecg" in capsys.readouterr().err
