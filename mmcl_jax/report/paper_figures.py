"""Figures 4, 5 and 6 of the paper, and the calibration of the models, from all runs."""

import math
from collections.abc import Sequence

import numpy as np
import scipy.stats
from jaxtyping import Float

from mmcl_jax import figures as draw
from mmcl_jax import similarity_figures
from mmcl_jax.html_page import Html, join, paragraph, table
from mmcl_jax.report import drawings
from mmcl_jax.report.files import Figures
from mmcl_jax.report.inputs import Run
from mmcl_jax.report.paper_layout import DISEASE_NAMES, FIGURE_4, OURS, in_order, method_name
from mmcl_jax.report.paper_results import Results, Value, common
from mmcl_jax.report.paper_runs import Key
from mmcl_jax.statistics.calibration import calibration

_SUBJECTS = 6  # columns of Figure 6


def phenotype_section(results: Results, figures: Figures) -> Html:
    """Figure 4: 20 phenotypes predicted by our method, first seed."""
    found = [results.scores(Key(OURS), name) for name in FIGURE_4]
    found = [scores for scores in found if scores]
    if not found:
        return paragraph(f"No test prediction of a phenotype by {OURS} with all labels.")
    panels = [
        draw.Scatter(scores.label, scores.unit, scores.truth, scores.prediction[0])
        for scores in found
    ]
    counts = {len(scores.truth) for scores in found}
    n = " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))
    caption = (
        f"{method_name(OURS)}, seed {found[0].seeds[0]}. n = {n} test records with the phenotype, "
        "of which at most 500 are drawn. Orange: regression line of all. Dotted: perfect "
        "prediction. r: Pearson's correlation of all. The paper does not name its 20 phenotypes; "
        "these are all of both ventricles, then global and septal walls and strains."
    )
    figure = draw.phenotype_scatter(panels)
    alt = f"Predicted against measured {', '.join(panel.name for panel in panels)}"
    return figures.add("figure_4", figure, alt, caption)


def low_data_section(results: Results, figures: Figures) -> Html:
    """Figure 5: AUROC against the share of training labels."""
    fractions = results.fractions()
    if len(fractions) < 2:
        shares = ", ".join(f"{100 * fraction:g} %" for fraction in fractions) or "none"
        return paragraph(f"Needs runs with several shares of the training labels; found {shares}.")
    panels = [panel for name in DISEASE_NAMES if (panel := _low_data_panel(results, name))]
    if not panels:
        return paragraph("No run with several shares of the training labels predicts a disease.")
    caption = (
        "Test split. Lines: mean AUROC over training seeds. Shaded: 95 % confidence interval of "
        "that mean from Student's t over seeds, where there are several. n: records of the "
        "training set. Methods with one share of the labels are left out."
    )
    alt = f"AUROC of {', '.join(panel.title for panel in panels)} with fewer training labels"
    return figures.add("figure_5", drawings.low_data(panels), alt, caption)


def similarity_section(results: Results, figures: Figures) -> Html:
    """Figure 6: similarity of the ECG and places of the CMR frame, one row per method."""
    runs: dict[str, Run] = {}
    for run in results.runs:
        # Where several runs of a method have maps, those of the fine-tuned one come first.
        if run.cmr is not None and (run.predictions or run.config["name"] not in runs):
            runs[run.config["name"]] = run
    if not runs:
        return paragraph("No run holds interpret/cmr_similarity.npz.")
    # The last row is ours.
    names = sorted(in_order(runs), key=lambda name: name == OURS)
    records = common(runs[name].cmr["record"].tolist() for name in reversed(names))[:_SUBJECTS]
    if not records:
        return paragraph(f"The maps of {', '.join(names)} show no record in common.")
    maps = {name: _maps_of(runs[name], records) for name in names}
    frames, _ = maps[names[-1]]
    # Another cohort may have records of the same name, another crop shows other places.
    other = [name for name in names if not _same_pictures(maps[name][0], frames)]
    rows = {method_name(name): maps[name][1] for name in names if name not in other}
    figure = similarity_figures.cmr_similarity_of_methods(frames, rows, records)
    caption = (
        f"n = {len(records)} subjects. Cosine similarity (no unit, -1 to 1) between the ECG's "
        "projection and each location of the CMR feature map, enlarged bilinearly over the "
        "mid-phase frame; above each map its range. Qualitative: a high similarity is no proof of "
        "a cause."
    )
    if other:
        caption += (
            f" Left out, because their frames of these subjects are not those of "
            f"{method_name(names[-1])}: {', '.join(map(method_name, other))}."
        )
    alt = f"Similarity over the CMR frames of {', '.join(records)} by {', '.join(rows)}"
    return figures.add("figure_6", figure, alt, caption)


def calibration_section(results: Results, figures: Figures) -> tuple[Html, list[list]]:
    """Reliability diagrams of every method (first seed), and their bins as rows of a CSV."""
    parts, lines = [], []
    bins = [["target", "method", "seed", "from", "to", "n", "mean probability", "frequency"]]
    bins[0] += ["low", "high"]
    for target in DISEASE_NAMES:
        panels = {}
        for method in in_order(key.method for key in results.keys):
            scores = results.scores(Key(method), target)
            if scores is None:
                continue
            found = [calibration(scores.truth, row) for row in scores.prediction]
            panels[method_name(method)] = found[0]
            errors = [Value(tuple(getattr(f, name) for f in found)) for name in ("brier", "ece")]
            n, positives = len(scores.truth), scores.truth.mean()
            lines.append(
                [target, method_name(method), *map(_mean_sd, errors), f"{positives:.3f}",
                 f"{scores.prediction.mean():.3f}", f"{n:,}", str(len(found))]
            )  # fmt: skip
            bins += _bin_rows(target, method, scores.seeds[0], found[0])
        if panels:
            figure = drawings.reliability(f"{target}, test split, first seed", panels)
            alt = f"Reliability diagrams of {target}: {', '.join(panels)}"
            parts.append(figures.add(f"calibration_{target}", figure, alt))
    if not parts:
        return paragraph("No test prediction of a disease with all labels."), []
    text = (
        "Observed frequency against predicted probability in ten bins of equal width; bars: 95 % "
        "Wilson intervals; below, the test records of each bin (n). Brier score: mean squared "
        "difference of probability and label. ECE: expected calibration error. Both: 0 is best, "
        "mean ± sample standard deviation over seeds. Models that were fine-tuned on balanced sets "
        "predict for a prevalence of one half, so their probabilities exceed the frequencies."
    )
    header = ("target", "method", "Brier score", "ECE", "prevalence", "mean probability")
    grid = table((*header, "n", "seeds"), lines, numbers=range(2, 8))
    return join(paragraph(text), grid, *parts), bins


def _maps_of(
    run: Run, records: Sequence[str]
) -> tuple[Float[np.ndarray, "N H W 3"], Float[np.ndarray, "N h w"]]:
    """Frames and similarity maps of some records."""
    place = {record: i for i, record in enumerate(run.cmr["record"].tolist())}
    chosen = [place[record] for record in records]
    return run.cmr["frames"][chosen], run.cmr["similarity"][chosen]


def _same_pictures(one: Float[np.ndarray, "..."], other: Float[np.ndarray, "..."]) -> bool:
    """But for rounding."""
    return one.shape == other.shape and np.allclose(one, other, atol=0.01)


def _low_data_panel(results: Results, target: str) -> drawings.LowDataPanel | None:
    keys = [key for key in results.fine_tuned if results.scores(key, target)]
    curves, records = [], {}
    for method in in_order(key.method for key in keys):
        points = []
        for key in sorted((k for k in keys if k.method == method), key=lambda k: k.fraction):
            value = results.value(key, target, "auroc")
            if value is None:
                continue
            trained_on = results.scores(key, target).trained_on
            records.setdefault(key.fraction, set()).update(trained_on)
            points.append((key.fraction, value.mean, *_interval(value)))
        if len(points) > 1:
            curves.append(drawings.LowDataCurve(method_name(method), *zip(*points, strict=True)))
    if not curves:
        return None
    texts = {share: " to ".join(_ends(found)) for share, found in records.items()}
    tested = " to ".join(_ends({n for key in keys for n in results.n(key, target)}))
    return drawings.LowDataPanel(f"{target} ({tested} test records)", curves, texts)


def _interval(value: Value) -> tuple[float, float]:
    """95 % interval of the mean over seeds, by Student's t."""
    n = len(value.per_seed)
    if n < 2:
        return math.nan, math.nan
    half = scipy.stats.t.ppf(0.975, n - 1) * value.sd / math.sqrt(n)
    return value.mean - half, value.mean + half


def _ends(counts: set[int]) -> list[str]:
    return [f"{n:,}" for n in sorted({min(counts), max(counts)})] if counts else []


def _mean_sd(value: Value) -> str:
    return f"{value.mean:.3f}" + ("" if math.isnan(value.sd) else f" ± {value.sd:.3f}")


def _bin_rows(target: str, method: str, seed: int, found) -> Sequence[list]:
    columns = (found.predicted, found.observed, found.low, found.high)
    rows = []
    for i, count in enumerate(found.count):
        numbers = ["" if np.isnan(column[i]) else repr(float(column[i])) for column in columns]
        ends = [f"{edge:g}" for edge in found.edges[i : i + 2]]
        rows.append([target, method, seed, *ends, int(count), *numbers])
    return rows
