"""The 12 standard leads: order, names in any spelling, and those that follow from others.

Every array of the project holds them in the order of `LEADS`. Files do not (MIMIC-IV-ECG stores
aVR, aVF, aVL), so a reader maps by name and never by position.
"""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")

# Einthoven, Goldberger and Wilson leads: rows [start, stop) of a 12-lead array. Paper IV-A.
GROUPS = ((0, 3), (3, 6), (6, 12))

# Einthoven's law and the definition of the augmented leads, as factors of I and II.
FROM_I_AND_II = {
    "III": (-1.0, 1.0),
    "aVR": (-0.5, -0.5),
    "aVL": (1.0, -0.5),
    "aVF": (-0.5, 1.0),
}


def lead_name(text: str) -> str | None:
    """The standard name of a lead in any usual spelling; None when it is no standard lead.

    Known are 'AVR', 'avr', 'i', 'Lead II', 'ECG V1', 'MDC_ECG_LEAD_I', 'DIII', 'D3' and 'C1' to
    'C6'. '-aVR' of the Cabrera order is another signal than aVR, so it is not recognised.
    """
    name = re.sub(r"^(MDC_ECG_LEAD|ECG|EKG|LEAD)[\s_:]*", "", text.strip().upper())
    name = name.replace("_", "").replace(" ", "")
    return _SPELLINGS.get(name)


def arrange(
    signal: Float[np.ndarray, "C T"], names: Sequence[str]
) -> tuple[Float[np.ndarray, "12 T"], tuple[str, ...]]:
    """Puts the signals of a file into the order of `LEADS`; other signals are left out.

    III, aVR, aVL and aVF are derived where they are absent and I and II are there.

    Args:
        signal: one row per signal, all in the same unit.
        names: the name of each row as the file spells it.

    Returns:
        The 12 leads and remarks, one if any lead was derived.

    Raises:
        ValueError: a lead occurs twice, or is absent and cannot be derived.
    """
    rows: dict[str, np.ndarray] = {}
    for row, text in zip(signal, names, strict=True):
        name = lead_name(text)
        if name in rows:
            raise ValueError(f"lead {name} occurs twice among {', '.join(names)}")
        if name is not None:
            rows[name] = row

    derived = []
    if "I" in rows and "II" in rows:
        derived = [name for name in FROM_I_AND_II if name not in rows]
    for name in derived:
        of_i, of_ii = FROM_I_AND_II[name]
        rows[name] = of_i * rows["I"] + of_ii * rows["II"]

    if missing := [name for name in LEADS if name not in rows]:
        raise ValueError(
            f"leads {', '.join(missing)} are missing; found {', '.join(names) or 'none'} "
            "(only III, aVR, aVL and aVF can be derived, and only from I and II)"
        )
    flags = (f"derived from I and II: {', '.join(derived)}",) if derived else ()
    return np.stack([rows[name] for name in LEADS]), flags


_SPELLINGS = {name.upper(): name for name in LEADS}
_SPELLINGS |= {f"D{name}": name for name in ("I", "II", "III")}
_SPELLINGS |= {f"D{number}": name for number, name in enumerate(("I", "II", "III"), start=1)}
_SPELLINGS |= {f"C{number}": f"V{number}" for number in range(1, 7)}
