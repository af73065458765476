"""From the NIfTI files of one examination to the CMR image, the heart box and the phenotypes."""

import dataclasses
import os
import pathlib

import numpy as np
from jaxtyping import Float32, UInt8

from mmcl_jax.data.formats import nifti
from mmcl_jax.data.formats.nifti import Volume
from mmcl_jax.data.images import cmr, left_ventricle, short_axis, ventricles
from mmcl_jax.data.subject import RefusedRecord

MID = ("refuse", "mean", "ed", "es")


@dataclasses.dataclass(frozen=True)
class Files:
    """The files of one examination; what it does not have is None.

    Attributes:
        cine, cine_labels: the whole cycle and its label map, four dimensions.
        ed, ed_labels, es, es_labels: the two phases, three dimensions.
        ed_frame, es_frame: their frames in the cine, counted from 0, where the data set says.
    """

    cine: pathlib.Path | None = None
    cine_labels: pathlib.Path | None = None
    ed: pathlib.Path | None = None
    ed_labels: pathlib.Path | None = None
    es: pathlib.Path | None = None
    es_labels: pathlib.Path | None = None
    ed_frame: int | None = None
    es_frame: int | None = None

    @property
    def label_maps(self) -> tuple[pathlib.Path, ...]:
        """Those that are there."""
        every = (self.cine_labels, self.ed_labels, self.es_labels)
        return tuple(path for path in every if path is not None)

    @property
    def path(self) -> pathlib.Path:
        """The file that a report names."""
        return next(p for p in (self.cine, self.ed, self.es, *self.label_maps) if p is not None)


@dataclasses.dataclass(frozen=True)
class Options:
    """How the files are read.

    Attributes:
        labels: convention of the label maps; None: they are not read.
        mid: what stands for the mid frame where there are only ED and ES: 'refuse' the record, the
            'mean' of the two, or 'ed' or 'es'.
        reverse_rows: see `nifti.read`.
    """

    labels: ventricles.Convention | None = None
    mid: str = "refuse"
    reverse_rows: bool = False

    def __post_init__(self):
        if self.mid not in MID:
            raise ValueError(f"mid is {self.mid!r}, expected one of {', '.join(MID)}")


@dataclasses.dataclass
class Examination:
    """What an examination gives: see `Subject` for the fields; `labels` are phenotypes."""

    image: UInt8[np.ndarray, "210 210 3"]
    box: tuple[int, int, int, int]
    labels: dict[str, float]
    flags: tuple[str, ...]


def prepare(files: Files, options: Options, settings: cmr.CmrSettings = cmr.DEFAULT) -> Examination:
    """Reads an examination.

    The slice is number Z // 2 along the normal of the stack, as for DICOM; where the label map
    shows no left ventricle there, the middle one of those that have it. ED and ES are the largest
    and the smallest cavity of a label map of the cycle; else the frames that the data set names, or
    those that are equal to the volumes of the two phases; else they follow from the blood pool.

    Raises:
        RefusedRecord: a file is absent or cannot be used, or the files contradict each other.
    """
    if files.cine is None:
        phases = _of_pair(files, options)
    else:
        cine = nifti.read(files.cine, options.reverse_rows)
        phases = _of_cine(files, cine, options)
        if phases is None:
            return _without_phases(files.cine, cine, settings)
    return _finish(files.path, phases, settings)


@dataclasses.dataclass
class _Phases:
    """The volumes of the three channels and, where there are label maps, the classes of two."""

    es: Float32[np.ndarray, "Z H W"]
    mid: Float32[np.ndarray, "Z H W"]
    ed: Float32[np.ndarray, "Z H W"]
    grid: Volume
    flags: tuple[str, ...]
    ed_classes: UInt8[np.ndarray, "Z H W"] | None = None
    es_classes: UInt8[np.ndarray, "Z H W"] | None = None


_FEW_SLICES = 7  # the published code drops such volumes
_EQUAL = 0.9  # of the voxels; pipelines clip the brightest and darkest 1 % of a phase


def _of_pair(files: Files, options: Options) -> _Phases:
    """The phases where there is no cine."""
    if files.ed is None or files.es is None:
        missing, there = ("ED", files.es) if files.ed is None else ("ES", files.ed)
        raise RefusedRecord(
            there or files.path, f"the volume of {missing} is absent, and there is no cine"
        )
    ed, es = (nifti.read(path, options.reverse_rows) for path in (files.ed, files.es))
    if options.mid == "refuse":
        raise RefusedRecord(
            files.ed, "no mid frame: only ED and ES, no cine; --mid says what may stand for it"
        )
    for path, volume in ((files.ed, ed), (files.es, es)):
        if volume.values.shape[1] != 1:
            raise RefusedRecord(path, f"{volume.values.shape[1]} frames, expected a single one")
    flags = _check_grid(files.es, es, ed, "the volume of ED")
    ed_values, es_values = ed.values[:, 0], es.values[:, 0]
    if np.array_equal(ed_values, es_values):
        raise RefusedRecord(files.es, "ED and ES are the same volume")
    mid = {"mean": (ed_values + es_values) / 2, "ed": ed_values, "es": es_values}[options.mid]
    stand_in = {"mean": "the mean of ED and ES", "ed": "ED", "es": "ES"}[options.mid]
    flags = (f"no mid frame: {stand_in} stands for it", *ed.flags, *flags)
    ed_classes, es_classes, remarks = _classes_of_phases(files, ed, options)
    return _Phases(es_values, mid, ed_values, ed, flags + remarks, ed_classes, es_classes)


def _of_cine(files: Files, cine: Volume, options: Options) -> _Phases | None:
    """The phases taken from a cine; None where nothing says which frames they are."""
    frames = cine.values.shape[1]
    if frames < 3:
        raise RefusedRecord(files.cine, f"{frames} frames in a cycle, expected at least 3")
    ed_classes = es_classes = None
    flags: tuple[str, ...] = ()
    given = _given_frames(files, cine, options)
    if files.cine_labels is not None and options.labels is not None:
        classes, flags = _classes(files.cine_labels, cine, options)
        ed, es = _by_cavity(files.cine_labels, classes)
        rule = "cavity of the label map"
        if given is not None and given != (ed, es):
            flags += (f"phases of the data set differ: ED {given[0]}, ES {given[1]}",)
        ed_classes, es_classes = classes[:, ed], classes[:, es]
    elif given is not None:
        ed, es = given
        rule = "the data set"
        ed_classes, es_classes, flags = _classes_of_phases(files, cine, options)
    elif files.label_maps and options.labels is not None:
        raise RefusedRecord(
            files.label_maps[0], "nothing says which frames of the cine the label maps belong to"
        )
    else:
        return None
    mid = cmr.mid_frame(ed, es, frames)
    remark = f"phases by {rule}: ES {es}, mid {mid}, ED {ed} of {frames} frames counted from 0"
    values = cine.values
    flags = (remark, *cine.flags, *flags)
    return _Phases(
        values[:, es], values[:, mid], values[:, ed], cine, flags, ed_classes, es_classes
    )


def _given_frames(files: Files, cine: Volume, options: Options) -> tuple[int, int] | None:
    """ED and ES by number, or by comparing the volumes of the phases with the frames."""
    frames = cine.values.shape[1]
    if files.ed_frame is not None and files.es_frame is not None:
        given = files.ed_frame, files.es_frame
    elif files.ed is not None and files.es is not None:
        given = tuple(_find_frame(path, cine, options) for path in (files.ed, files.es))
    else:
        return None
    if given[0] == given[1] or not all(0 <= number < frames for number in given):
        raise RefusedRecord(
            files.path,
            f"ED is frame {given[0]} and ES frame {given[1]}, expected two of {frames} frames "
            "counted from 0",
        )
    return given


def _find_frame(path: pathlib.Path, cine: Volume, options: Options) -> int:
    volume = nifti.read(path, options.reverse_rows)
    _check_grid(path, volume, cine, "the cine")
    equal = (cine.values == volume.values[:, :1]).mean(axis=(0, 2, 3))
    best = int(np.argmax(equal))
    if equal[best] < _EQUAL:
        raise RefusedRecord(
            path, f"no frame of the cine is this volume: {equal[best]:.0%} of the voxels at best"
        )
    return best


def _classes_of_phases(files: Files, grid: Volume, options: Options) -> tuple:
    """Classes [Z, H, W] of ED and of ES (None without label maps), and remarks."""
    paths = files.ed_labels, files.es_labels
    if options.labels is None or not files.label_maps:
        return None, None, ()
    if None in paths:
        missing = "ED" if paths[0] is None else "ES"
        raise RefusedRecord(files.label_maps[0], f"the label map of {missing} is absent")
    found, flags = [], ()
    for path in paths:
        classes, remarks = _classes(path, grid, options)
        if classes.shape[1] != 1:
            raise RefusedRecord(path, f"{classes.shape[1]} frames, expected a single one")
        found.append(classes[:, 0])
        flags += tuple(remark for remark in remarks if remark not in flags)
    return *found, flags


def _classes(
    path: pathlib.Path, image: Volume, options: Options
) -> tuple[UInt8[np.ndarray, "Z T H W"], tuple[str, ...]]:
    volume = nifti.read(path, options.reverse_rows)
    flags = _check_grid(path, volume, image, "the image")
    if volume.values.shape[1] not in (1, image.values.shape[1]):
        raise RefusedRecord(
            path, f"{volume.values.shape[1]} frames, the image has {image.values.shape[1]}"
        )
    try:
        return ventricles.translate(volume.values, options.labels), flags
    except ValueError as error:
        raise RefusedRecord(path, str(error)) from error


def _check_grid(
    path: pathlib.Path, volume: Volume, expected: Volume, named: str
) -> tuple[str, ...]:
    """Raises RefusedRecord where two volumes do not have the same voxels; remarks otherwise."""
    shapes = [v.values[:, 0].shape[::-1] for v in (volume, expected)]
    if shapes[0] != shapes[1]:
        found, wanted = (" x ".join(map(str, shape)) for shape in shapes)
        raise RefusedRecord(path, f"{found} voxels (columns x rows x slices), {named} has {wanted}")
    if not np.allclose(volume.affine[:3, :3], expected.affine[:3, :3], atol=0.05):
        raise RefusedRecord(
            path, f"its voxels have another size or direction by the affine than those of {named}"
        )
    apart = np.linalg.norm(volume.affine[:3, 3] - expected.affine[:3, 3])
    if apart < 0.5 * min(expected.spacing):
        return ()
    return (f"files apart by their affines, voxels are matched by number: {apart:.1f} mm",)


def _by_cavity(path: pathlib.Path, classes: UInt8[np.ndarray, "Z T H W"]) -> tuple[int, int]:
    """Frames of the largest and the smallest cavity among those that have one."""
    sizes = ventricles.volumes(classes, ventricles.LV, 1.0)
    labelled = np.flatnonzero(sizes)
    if len(labelled) < 2:
        raise RefusedRecord(
            path, f"the left ventricle is labelled in frame {labelled[0]} only, not at ED and ES"
        )
    return int(np.argmax(sizes)), int(labelled[np.argmin(sizes[labelled])])


def _without_phases(
    path: str | os.PathLike, volume: Volume, settings: cmr.CmrSettings
) -> Examination:
    """A cine alone is treated as one from DICOM."""
    positions = tuple(volume.distance * number for number in range(len(volume.values)))
    flags = volume.flags + _slice_remarks(volume)
    cine = short_axis.Cine(volume.values, positions, float(np.mean(volume.spacing)), flags)
    image, box, flags = short_axis.prepare(path, cine, settings)
    return Examination(image, box, {}, flags)


def _finish(path: pathlib.Path, phases: _Phases, settings: cmr.CmrSettings) -> Examination:
    grid, flags = phases.grid, phases.flags
    spacing = float(np.mean(grid.spacing))
    middle = len(phases.ed) // 2
    labels: dict[str, float] = {}
    try:
        if phases.ed_classes is not None and phases.es_classes is not None:
            labels, remarks = ventricles.phenotypes(
                phases.ed_classes,
                phases.es_classes,
                spacing=grid.spacing,
                distance=grid.distance,
                oriented=grid.oriented,
                cycle=grid.cycle,
            )
            flags += remarks
            left = (phases.ed_classes == ventricles.LV) | (
                phases.ed_classes == ventricles.MYOCARDIUM
            )
            if not left[middle].any():
                labelled = np.flatnonzero(left.any(axis=(1, 2)))
                middle = int(labelled[len(labelled) // 2])
                flags += (f"no left ventricle in the middle slice: slice {middle + 1} is taken",)
            box = cmr.box_around_mask(left[middle], size=settings.size)
        else:
            pair = np.stack([phases.es[middle], phases.ed[middle]])
            found = left_ventricle.find(pair, spacing)
            box, remarks = short_axis.heart_box(found, spacing, pair.shape[1:], settings)
            flags += remarks
        image = cmr.stack_frames(phases.es[middle], phases.mid[middle], phases.ed[middle], settings)
    except ValueError as error:
        raise RefusedRecord(path, str(error)) from error
    flags += _slice_remarks(grid) + short_axis.size_remarks(spacing)
    return Examination(image, box, labels, flags)


def _slice_remarks(volume: Volume) -> tuple[str, ...]:
    slices = len(volume.values)
    return (f"few slices: {slices}",) if slices <= _FEW_SLICES else ()
