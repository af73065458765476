"""What `interpret` writes for one ECG: pictures, and the numbers behind them."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Float32
from matplotlib.figure import Figure

from mmcl_jax import similarity_figures
from mmcl_jax.data.signals.leads import LEADS
from mmcl_jax.figures import png
from mmcl_jax.interpret.ecg import Attention, Occlusion
from mmcl_jax.interpret.ecg_map_figures import ecg_map

_CREDIT = "Research software, not for clinical use."


def write_maps(
    folder: pathlib.Path,
    name: str,
    ecg: Float32[np.ndarray, "12 T"],
    measured: Float[np.ndarray, "12 t"] | None,
    rate: float,
    attentions: Sequence[Attention],
    occluded: Occlusion,
) -> list[pathlib.Path]:
    """Writes attention*.png, occlusion*.png and maps.npz, and returns their paths.

    Args:
        name: of the record, for titles.
        ecg: preprocessed.
        measured: in mV, drawn in the place of `ecg` where it is there.
        rate: samples per second of both.
    """
    drawn = {"ecg": ecg, "unit": "standard deviations"}
    if measured is not None:
        drawn = {"ecg": measured, "unit": "mV"}
    draw = functools.partial(ecg_map, rate=rate, **drawn)
    files = _write(folder, _pictures(name, draw, attentions, occluded))
    arrays = {
        "record": name, "leads": np.array(LEADS), "rate": rate, "ecg": ecg,
        "occlusion": occluded.change, "occlusion_edges": occluded.edges,
        "columns": np.array([column.name for column in occluded.columns]),
        "units": np.array([column.unit for column in occluded.columns]),
        "values": occluded.value,
    }  # fmt: skip
    if measured is not None:
        arrays["measured_mV"] = measured
    for number, found in enumerate(attentions):
        arrays |= {
            f"attention/{number}/{field.name}": getattr(found, field.name)
            for field in dataclasses.fields(found)
        }
    np.savez_compressed(folder / "maps.npz", **arrays)
    return [*files, folder / "maps.npz"]


def write_similarity(
    folder: pathlib.Path, cmr: Mapping[str, np.ndarray], ecg: Mapping[str, np.ndarray]
) -> list[pathlib.Path]:
    """Writes cmr_similarity.png and ecg_similarity.png of one record, and returns their paths.

    Args:
        cmr, ecg: arrays of `interpret.similarity`.
    """
    names = [str(name) for name in cmr["record"]]
    frames = (cmr[name] for name in ("frames", "similarity", "whole", "box"))
    pictures = {
        "cmr_similarity.png": similarity_figures.cmr_similarity(*frames, names),
        "ecg_similarity.png": similarity_figures.ecg_similarity(
            ecg["ecg"][0], ecg["similarity"][0], names[0]
        ),
    }
    return _write(folder, pictures.items())


def _pictures(
    record: str,
    draw: Callable[..., Figure],
    attentions: Sequence[Attention],
    occluded: Occlusion,
) -> Iterator[tuple[str, Figure]]:
    """Names of files and what goes into them; one picture at a time is in memory."""
    names = _files("attention", [found.name for found in attentions])
    for file, found in zip(names, attentions, strict=True):
        values, edges = _over_windows(found)
        yield (
            file,
            draw(
                values=values * found.rollout[0].size,
                edges=edges,
                signed=False,
                title=f"{record}: attention rollout, {found.name}",
                meaning="attention, 1: an even share",
            ),
        )
    names = _files("occlusion", [column.name for column in occluded.columns])
    rows = zip(names, occluded.columns, occluded.value, occluded.change, strict=True)
    for file, column, value, change in rows:
        embedding = column.kind == "embedding"
        unit = f" [{column.unit}]" if column.unit else ""
        yield (
            file,
            draw(
                values=change,
                edges=occluded.edges,
                signed=not embedding,
                title=f"{record}: {column.name}" + ("" if embedding else f" {value:.4g}"),
                meaning="cosine distance when hidden" if embedding else f"change when hidden{unit}",
            ),
        )


def _files(kind: str, names: Sequence[str]) -> list[str]:
    """A file name for each; characters that a file system may not take become _."""
    if len(names) == 1:
        return [f"{kind}.png"]
    plain = [re.sub(r"[^A-Za-z0-9.-]+", "_", name) for name in names]
    return [
        f"{kind}_{name}.png" if plain.count(name) == 1 else f"{kind}_{number}_{name}.png"
        for number, name in enumerate(plain)
    ]


def _write(folder: pathlib.Path, pictures: Iterable[tuple[str, Figure]]) -> list[pathlib.Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, figure in pictures:
        files.append(folder / name)
        files[-1].write_bytes(png(figure, f"{figure.get_suptitle()}. {_CREDIT}"))
    return files


def _over_windows(found: Attention) -> tuple[Float[np.ndarray, "12 W"], Float[np.ndarray, " W+1"]]:
    """Mean of the windows at every moment, and the moments where it changes."""
    patches = np.arange(found.rollout.shape[2] + 1) * found.seconds
    bounds = found.start[:, None] + patches[None, :]  # [K, n + 1]
    edges = np.unique(np.round(bounds, 6))
    middle = (edges[:-1] + edges[1:]) / 2
    total, count = np.zeros((len(LEADS), len(middle))), np.zeros(len(middle))
    for window, bound in zip(found.rollout, bounds, strict=True):
        place = np.searchsorted(bound, middle) - 1
        inside = (place >= 0) & (place < window.shape[1])
        total[:, inside] += window[:, place[inside]]
        count += inside
    return total / np.maximum(count, 1)[None, :], edges
