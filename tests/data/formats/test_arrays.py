"""Arrays on disk: only the rows that are used are read, and what cannot be used is named."""

import os
import pickle

import numpy as np
import pytest

from mmcl_jax.data.formats import arrays

SIGNALS = np.random.default_rng(0).standard_normal((4, 12, 30)).astype(np.float32)


def write(folder, kind):
    path = folder / f"ecg.{kind.removeprefix('packed-')}"
    if kind == "npy":
        np.save(path, SIGNALS)
    elif kind == "npz":
        np.savez(path, other=np.zeros((2, 2)), ecg=SIGNALS)
    elif kind == "packed-npz":
        np.savez_compressed(path, other=np.zeros((2, 2)), ecg=SIGNALS)
    elif kind == "h5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            file["group/ecg"] = SIGNALS
            file["exam_id"] = np.arange(4)
    else:
        torch = pytest.importorskip("torch")
        torch.save(torch.from_numpy(SIGNALS), path)
    return path, {"npz": "ecg", "packed-npz": "ecg", "h5": "group/ecg"}.get(kind, "")


def file_behind(array):
    while isinstance(array, np.ndarray) and not isinstance(array, np.memmap):
        array = array.base
    return array


@pytest.mark.parametrize("kind", ["npy", "npz", "packed-npz", "h5", "pt"])
def test_rows_of_every_kind_of_file(tmp_path, kind):
    path, name = write(tmp_path, kind)
    rows = arrays.open_rows(path, name)
    assert len(rows) == 4
    np.testing.assert_array_equal(rows[2], SIGNALS[2])
    if kind in ("npy", "npz", "pt"):
        assert isinstance(file_behind(rows), np.memmap)
    assert arrays.open_rows(path, name) is rows

    ecgs = arrays.EcgArray(str(path), name, tuple("abcdefghijkl"), 100.0, "uV")
    ecgs = pickle.loads(pickle.dumps(ecgs))
    recording = ecgs.recording(3)
    np.testing.assert_array_equal(recording.signal, SIGNALS[3])
    assert (recording.rate, recording.units[5], recording.names[5]) == (100.0, "uV", "f")


def test_a_changed_file_is_opened_again(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((2, 3)))
    assert arrays.open_rows(path)[0][0] == 0
    path.unlink()
    np.save(path, np.ones((5, 3)))
    assert len(arrays.open_rows(path)) == 5


def test_leads_in_either_axis():
    for signal in (SIGNALS[0], SIGNALS[0].T):
        np.testing.assert_array_equal(arrays.leads_first(signal, 12), SIGNALS[0])
    for shape in ((12, 12), (8, 30), (12,), (1, 12, 30)):
        with pytest.raises(ValueError, match=r"expected \(12, samples\) or \(samples, 12\)"):
            arrays.leads_first(np.zeros(shape), 12)


def test_frames_in_either_axis():
    frames = np.arange(3 * 4 * 5).reshape(3, 4, 5)
    for image in (frames, frames.transpose(1, 2, 0)):
        np.testing.assert_array_equal(arrays.frames_first(image), frames)
    for shape in ((3, 5, 3), (4, 4, 4), (3, 4)):
        with pytest.raises(ValueError, match=r"expected \(3, H, W\) or \(H, W, 3\)"):
            arrays.frames_first(np.zeros(shape))


def test_a_list_of_tensors(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "images.pt"
    torch.save([torch.full((3, 4, 5), float(i)) for i in range(3)], path)
    images = arrays.CmrArray(str(path), "")
    assert len(images) == 3
    assert images.frames(2).shape == (3, 4, 5)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="a list of something else than arrays"):
        len(images)


def test_what_cannot_be_opened(tmp_path):
    path, _ = write(tmp_path, "npz")
    with pytest.raises(ValueError, match=r"ecg\.npz: expected one array, .*it holds other, ecg"):
        arrays.open_rows(path)
    with pytest.raises(ValueError, match="no array called 'ekg'; it holds other, ecg"):
        arrays.open_rows(path, "ekg")
    path, _ = write(tmp_path, "npy")
    with pytest.raises(ValueError, match="holds one array"):
        arrays.open_rows(path, "ecg")
    with pytest.raises(FileNotFoundError):
        arrays.open_rows(tmp_path / "none.npy")
    whole = path.read_bytes()
    for content in (b"", whole[:50], whole[:-1], b"record,CAD\n1,0\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"ecg\.npy: truncated, damaged or no array"):
            arrays.open_rows(path)
    path = tmp_path / "ecg.csv"
    path.write_text("1,2")
    with pytest.raises(ValueError, match="expected a file that ends in .npy, .npz"):
        arrays.open_rows(path)


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_objects_are_not_unpickled(tmp_path, name):
    path = tmp_path / name
    objects = np.array([[print, 1], [2, 3]], dtype=object)
    (np.save if name.endswith("npy") else np.savez)(path, objects)
    with pytest.raises(ValueError, match=r"no array of numbers|of type object, expected numbers"):
        arrays.open_rows(path)


def test_text_and_vectors_are_no_recordings(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.array([["a", "b"]]))
    with pytest.raises(ValueError, match="expected numbers"):
        arrays.open_rows(path)
    path.unlink()
    np.save(path, np.zeros(12))
    with pytest.raises(ValueError, match="expected one record per row"):
        arrays.open_rows(path)


def test_damaged_npz_and_hdf5(tmp_path):
    path, name = write(tmp_path, "npz")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="truncated or damaged zip"):
        arrays.open_rows(path, name)
    path, name = write(tmp_path, "h5")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="truncated, damaged or no HDF5 file"):
        arrays.open_rows(path, name)


def test_a_large_compressed_array_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "_LARGEST_COMPRESSED", 100)
    path, name = write(tmp_path, "packed-npz")
    with pytest.raises(ValueError, match="ecg.npy is compressed .* save it with numpy.save"):
        arrays.open_rows(path, name)


def test_a_row_that_no_recording_has_is_not_read(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        # A few kB on disk.
        file.create_dataset("x", (2, 12, 2**30), "float32", chunks=(1, 1, 2**20), compression=1)
    with pytest.raises(ValueError, match=r"one record has 48.0 GiB; .* of at most 8.0 GiB"):
        arrays.open_rows(tmp_path / "a.h5")


def test_hdf5_takes_no_values_from_other_files(tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "secret").write_bytes(bytes(48))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (2, 6), "f4", external=[(tmp_path / "secret", 0, 48)])
    with pytest.raises(ValueError, match="/x keeps its values in other files"):
        arrays.open_rows(tmp_path / "a.h5")


def test_a_pipe_is_no_array(tmp_path):
    os.mkfifo(tmp_path / "a.npy")
    with pytest.raises(ValueError, match="it is no file"):
        arrays.open_rows(tmp_path / "a.npy")
