"""Resting ECGs for tests in the XML of GE CardioSoft, laid out as UK Biobank's are."""

import numpy as np

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")


def xml(
    counts,
    leads=LEADS,
    rate="500",
    resolution="5",
    unit="uVperLsb",
    samples=None,
    strip=True,
    encoding="ISO-8859-1",
):
    """Bytes of a file.

    Args:
        counts: [L, T] integers of the recording, or one text per lead.
        samples: what the file says of their number; None: the truth, '': nothing.
        strip: whether the recording is in the file at all.
    """
    if samples is None:
        samples = np.shape(counts)[1]
    medians = np.full((len(leads), 600), 7)
    parts = [
        f'<?xml version="1.0" encoding="{encoding}" ?>\n<CardiologyXML>',
        "\t<ObservationType>RestECG</ObservationType>",
        "\t<ClinicalInfo>\n\t\t<DeviceInfo>\n\t\t\t<Desc>CardioSoft</Desc>",
        "\t\t</DeviceInfo>\n\t</ClinicalInfo>",
        "\t<PatientInfo>\n\t\t<Name>\n\t\t\t<FamilyName>Müller</FamilyName>\n\t\t</Name>",
        "\t</PatientInfo>\n\t<RestingECGMeasurements>",
        '\t\t<PQInterval units="ms"></PQInterval>\n\t\t<MedianSamples>',
        *_waveforms(medians, leads, "500", "5", "uVperLsb", 600),
        "\t\t</MedianSamples>\n\t</RestingECGMeasurements>\n\t<VectorLoops>",
        '\t\t<Resolution units="uVperLsb">5</Resolution>\n\t</VectorLoops>',
    ]
    if strip:
        waveforms = _waveforms(counts, leads, rate, resolution, unit, samples)
        parts += ["\t<StripData>", *waveforms, "\t</StripData>"]
    parts += [
        "\t<FullDisclosure>\n\t\t<FullDisclosureData>",
        "\t\t\t1,2,3,\n\t\t\t<SampleCountTotal>3</SampleCountTotal>",
        "\t\t</FullDisclosureData>\n\t</FullDisclosure>\n</CardiologyXML>\n",
    ]
    return "\n".join(parts).encode(encoding)


def text(row, width=300):
    """Values of a lead in lines, a comma at the end of each but the last."""
    lines = [row[start : start + width] for start in range(0, len(row), width)]
    return "\t\t" + ",\n\t\t\t".join(",".join(map(str, line)) for line in lines)


def _waveforms(counts, leads, rate, resolution, unit, samples):
    yield f"\t\t<NumberOfLeads>{len(leads)}</NumberOfLeads>"
    yield f'\t\t<SampleRate units="Hz">{rate}</SampleRate>'
    if samples != "":
        yield f"\t\t<ChannelSampleCountTotal>{samples}</ChannelSampleCountTotal>"
    yield f'\t\t<Resolution units="{unit}">{resolution}</Resolution>'
    for lead, row in zip(leads, counts, strict=True):
        values = row if isinstance(row, str) else text(row)
        yield f'\t\t<WaveformData lead="{lead}">{values}</WaveformData>'
