"""The page of a prepared cohort: what it says, and that it is one safe file."""

import dataclasses
import html
import re

import numpy as np
import pytest
import tiny_source
from page_reader import PageReader

from mmcl_jax.data import cohort as cohorts
from mmcl_jax.data.preparing import preparation_page
from mmcl_jax.data.preparing.cohort_figures import histogram, write_preview
from mmcl_jax.data.signals.lead_statistics import lead_statistics
from mmcl_jax.data.subject import RefusedRecord
from mmcl_jax.data.targets.labels import Label


@dataclasses.dataclass(frozen=True)
class Source(tiny_source.TinySource):
    """Two refused records whose names are no UTF-8 and look like HTML; ages; mV of the leads."""

    labels = (
        *tiny_source.LABELS,
        Label("age", "regression", "demographics", "years", "<b>age</b>"),
    )

    def load(self, task):
        if task in (5, 17):
            reason = f"checksum {task} expected, <script>alert({task})</script> found"
            raise RefusedRecord(f"/data/<script>alert(1)</script>/caf\udce9{task}.hea", reason)
        subject = super().load(task)
        subject.labels["age"] = 40.0 + task
        if task == 2:
            subject.flags = ("saturated: V1", "few slices: 3")
        if task == 3:
            subject.flags = ("saturated: V1",)
        if subject.ecg is not None:
            subject.lead_statistics = lead_statistics(subject.ecg / 4)
        return subject


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "tiny <cohort>"
    source = Source(paired=10, without_ecg=(11, 28), without_cmr=(4,))
    cohorts.write(source, folder, workers=0, progress=False)
    write_preview(folder)
    file = preparation_page.write_page(folder)
    assert file == folder / "prepare_report.html"
    return file.read_text(encoding="utf-8")


def text_of(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def test_counts_reasons_remarks_and_labels(page):
    text = text_of(page)
    assert "Prepared from source tiny. 40 records read, 38 used, 2 refused." in text
    records = [n for n in range(40) if n not in (5, 17)]
    people = {n - 1 if n < 10 and n % 2 else n for n in records}
    # records, subjects, with ECG, with CMR, with both
    assert f"all 38 {len(people)} 36 37 35" in text
    assert re.search(r"train 28 \d+ 27 27 26 val", text)
    assert "2 checksum 5 expected, <script>alert(5)</script> found /data/<script>" in text
    assert "caf\\udce95.hea" in text
    assert "2 saturated V1 r002, r003" in text
    assert "1 few slices 3 r002" in text
    assert re.search(r"CAD \d+\.\d % \d+\.\d % \d+\.\d % 38 0\.0 %", text)
    assert re.search(r"LVEDV \d+\.\d, \d+\.\d mL .* 28 26\.3 %", text)
    assert "ecg.clip 4.0" in text
    assert cohorts.settings_hash(Source().settings) in text


def test_leads_in_millivolt_and_as_the_models_read_them(page):
    recorded, read = page.split("As recorded, in mV")[1].split("As the models read them")
    for part, scale in ((recorded, 0.25), (read, 1.0)):
        rows = re.findall(r"<tr><td>(I|aVF|V6)</td><td>([-.\d]+)</td><td>([-.\d]+)</td>", part)
        assert [name for name, _, _ in rows] == ["I", "aVF", "V6"]
        for _, mean, deviation in rows:
            assert float(mean) == pytest.approx(0, abs=0.01)
            assert float(deviation) == pytest.approx(scale, abs=0.01)
    assert "Over 36 ECGs" in recorded


def test_it_is_one_file_that_asks_for_nothing(page):
    assert "<script" not in page
    assert "<b>age" not in page
    assert "default-src 'none'" in page
    targets = re.findall(r"(?:src|href)=(.)(.)", page)
    assert {(quote, first) for quote, first in targets} == {('"', "d"), ('"', "#")}
    assert page.count("data:image/png;base64,") == 2  # the ages, and the examples

    assert PageReader(page).open == []


def test_a_cohort_with_little_in_it(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Bare(tiny_source.TinySource):
        labels = ()

        def load(self, task):
            return dataclasses.replace(super().load(task), labels={}, ecg=None)

    cohorts.write(Bare(count=2), tmp_path / "c", workers=0, progress=False)
    text = text_of(preparation_page.write_page(tmp_path / "c").read_text())
    for sentence in (
        "Refused None.",
        "remarks None.",
        "No record has an ECG.",
        "The source has no labels.",
        "There is no preview.png in the folder.",
    ):
        assert sentence in text
    with pytest.raises(FileNotFoundError, match="no cohort at"):
        preparation_page.write_page(tmp_path / "none")


def test_histogram():
    nan = np.full(3, np.nan)
    assert histogram({"train": nan}, "age [years]") is None
    figure = histogram({"train": np.array([40.0, 50, 60, np.nan]), "val": nan}, "age [years]")
    (axis,) = figure.axes
    assert axis.get_xlabel() == "age [years]"
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["train, 3"]
