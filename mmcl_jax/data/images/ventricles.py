"""What a label map of the heart says: ventricular volumes, ejection fraction, mass.

Which number means what differs from data set to data set, so it has to be said. `translate` turns
a label map into the classes below and refuses one in which the myocardium does not surround the
left ventricle.
"""

import dataclasses
import math
import re

import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage

from mmcl_jax.data.images.wall_thickness import wall_thickness

# Classes of a translated label map; 0 is everything else.
LV, MYOCARDIUM, RV = 1, 2, 3
DENSITY = 1.05  # g/mL, of the myocardium


@dataclasses.dataclass(frozen=True)
class Convention:
    """Numbers of the left ventricle's cavity, its myocardium and the right ventricle's cavity."""

    lv: int
    myocardium: int
    rv: int | None

    @property
    def numbers(self) -> dict[int, int]:
        """Class by number of the label map."""
        pairs = {self.lv: LV, self.myocardium: MYOCARDIUM}
        return pairs if self.rv is None else pairs | {self.rv: RV}


CONVENTIONS = {
    "acdc": Convention(lv=3, myocardium=2, rv=1),
    "mms": Convention(lv=1, myocardium=2, rv=3),
    "ukb": Convention(lv=1, myocardium=2, rv=3),
    "sunnybrook": Convention(lv=1, myocardium=2, rv=None),
}


def convention(text: str) -> Convention:
    """The convention of a name, or of numbers such as 'lv=1,myo=2,rv=3' (rv may be left out).

    Raises:
        ValueError: the text is neither.
    """
    if text in CONVENTIONS:
        return CONVENTIONS[text]
    own = re.fullmatch(r"lv=(\d+),myo=(\d+)(?:,rv=(\d+))?", text.replace(" ", "").lower())
    numbers = [int(number) for number in own.groups() if number] if own else []
    if not numbers or 0 in numbers or len(set(numbers)) < len(numbers):
        raise ValueError(
            f"labels are {text!r}, expected one of {', '.join(CONVENTIONS)}, or three different "
            "numbers above 0 as in lv=1,myo=2,rv=3"
        )
    return Convention(*numbers, *([None] if len(numbers) == 2 else []))


def translate(
    values: Float[np.ndarray, "Z T H W"], convention: Convention
) -> UInt8[np.ndarray, "Z T H W"]:
    """The classes of a label map.

    Raises:
        ValueError: there are other numbers than those of the convention, no left ventricle, or the
            myocardium does not surround it.
    """
    classes = np.zeros(values.shape, np.uint8)
    known = values == 0
    for number, meaning in convention.numbers.items():
        here = values == number
        classes[here] = meaning
        known |= here
    if not known.all():
        strange = [f"{number:g}" for number in np.unique(values[~known])]
        expected = ", ".join(map(str, sorted({0, *convention.numbers})))
        raise ValueError(
            f"the label map holds {', '.join(strange[:5])}{', ...' if strange[5:] else ''}; the "
            f"convention knows {expected}; see --labels"
        )
    if not (classes == LV).any():
        raise ValueError(f"no voxel of the left ventricle (label {convention.lv})")
    _check_surrounded(classes, convention)
    return classes


def volumes(
    classes: UInt8[np.ndarray, "Z T H W"], which: int, voxel: float
) -> Float[np.ndarray, " T"]:
    """Volume of a class in mL, per frame.

    Args:
        voxel: volume of a voxel in mm3, with the gap between the slices.
    """
    return (classes == which).sum(axis=(0, 2, 3)) * voxel / 1000.0


def phenotypes(
    ed: UInt8[np.ndarray, "Z H W"],
    es: UInt8[np.ndarray, "Z H W"],
    *,
    spacing: tuple[float, float],
    distance: float,
    oriented: bool = True,
    cycle: float | None = None,
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Phenotypes by their name in `labels.PHENOTYPES`, and remarks.

    Volumes are sums of voxels. What cannot be told is left out: mass and wall thickness without
    myocardium at ED, the right ventricle and the segments of the wall without its label, the
    cardiac output without the duration of the cycle.

    Args:
        ed, es: classes at end-diastole and end-systole, slices along the normal of the stack.
        spacing: height and width of a pixel in mm.
        distance: of neighbouring slices in mm.
        oriented: see `wall_thickness`.
        cycle: duration of a heart beat in s.

    Raises:
        ValueError: the left ventricle is absent at ED or ES, or larger at ES.
    """
    frames = np.stack([ed, es], axis=1)
    voxel = math.prod(spacing) * distance
    edv, esv = volumes(frames, LV, voxel)
    if not (edv and esv):
        raise ValueError(f"no voxel of the left ventricle at {'ES' if edv else 'ED'}")
    if esv >= edv:
        raise ValueError(
            f"the left ventricle has {edv:.1f} mL at ED and {esv:.1f} mL at ES: ED and ES are "
            "exchanged, or the label maps are of something else"
        )
    values = _pump("LV", edv, esv)
    if cycle:
        values["LVCO"] = values["LVSV"] / 1000.0 * 60.0 / cycle
    flags = ()
    labelled = np.flatnonzero((ed == LV).any(axis=(1, 2)))
    if gaps := int(np.ptp(labelled)) + 1 - len(labelled):
        flags += (f"slices without a label amid those with one at ED: {gaps}",)
    if mass := volumes(frames, MYOCARDIUM, voxel)[0] * DENSITY:
        values["LVM"] = mass
        thickness, remarks = wall_thickness(
            cavity=ed == LV,
            myocardium=ed == MYOCARDIUM,
            rv=ed == RV,
            spacing=spacing,
            oriented=oriented,
        )
        values |= thickness
        flags += remarks
    rv_edv, rv_esv = volumes(frames, RV, voxel)
    if rv_edv > rv_esv > 0:
        values |= _pump("RV", rv_edv, rv_esv)
    elif rv_edv or rv_esv:
        flags += (f"right ventricle left out: {rv_edv:.1f} mL at ED, {rv_esv:.1f} mL at ES",)
    return {name: float(value) for name, value in values.items()}, flags


_SURROUNDED = 0.6  # of the border; the outflow tract leaves the basal slices open


def _pump(side: str, edv: float, esv: float) -> dict[str, float]:
    return {
        f"{side}EDV": edv,
        f"{side}ESV": esv,
        f"{side}SV": edv - esv,
        f"{side}EF": 100.0 * (edv - esv) / edv,
    }


def _check_surrounded(classes: UInt8[np.ndarray, "Z T H W"], convention: Convention) -> None:
    """Raises ValueError where the left ventricle is not what the myocardium surrounds."""
    # Where the myocardium is not drawn, as in systole of some data sets, nothing can be said.
    drawn = (classes == MYOCARDIUM).any(axis=(0, 2, 3)) * (classes == LV).sum(axis=(0, 2, 3))
    if not drawn.any():
        return
    frame = classes[:, np.argmax(drawn)]
    shares = {which: _share_of_myocardium(frame, which) for which in (LV, RV)}
    if shares[LV] >= _SURROUNDED and shares[LV] > shares[RV]:
        return
    reason = (
        f"label {convention.lv} cannot be the left ventricle: {shares[LV]:.0%} of its border is "
        f"label {convention.myocardium}, the myocardium, that should surround it"
    )
    if shares[RV] > shares[LV]:
        reason += f" (label {convention.rv}: {shares[RV]:.0%})"
    raise ValueError(f"{reason}; see --labels")


def _share_of_myocardium(classes: UInt8[np.ndarray, "Z H W"], which: int) -> float:
    """Share of the border of a class, within the slices, that is myocardium."""
    inside = classes == which
    if not inside.any():
        return 0.0
    cross = ndimage.generate_binary_structure(2, 1)[None]
    border = ndimage.binary_dilation(inside, cross) & ~inside
    return float((classes[border] == MYOCARDIUM).mean())
