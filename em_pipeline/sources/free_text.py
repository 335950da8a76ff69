"""What depositors write in prose: acquisition settings, section thickness, organism and tissue.

Every reader returns None where the text says nothing or says two different things: a wrong value with
evidence is worse than none. Patterns were written against the details of volume-EM entries of EMPIAR.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

NUMBER = r"(?<![\w.])(\d+(?:\.\d+)?)"
MICRO = r"(?:u|µ|μ|micro)"


@dataclass(frozen=True)
class Reading:
    """A value read from prose, and the words it was read from."""

    value: float | str
    quote: str


# Scale to the record's unit, by the unit as written in lower case.
_CURRENT_PA = {"pa": 1.0, "na": 1e3}
_TIME_US = {"ns": 1e-3, "us": 1.0, "µs": 1.0, "μs": 1.0, "usec": 1.0, "µsec": 1.0, "μsec": 1.0, "ms": 1e3}

_VOLTAGE = re.compile(rf"{NUMBER}\s*-?\s*ke?V\b")
_CURRENT = re.compile(rf"{NUMBER}\s*([pn]A)\b")
_DWELL_UNIT = rf"(ns|{MICRO}s(?:ec)?|microseconds?|ms)"
_DWELL = (
    re.compile(rf"{NUMBER}\s*{_DWELL_UNIT}\b[^.;,]{{0,20}}\bdwell", re.IGNORECASE),
    re.compile(rf"\bdwell(?:ing)?[ -]?time[^.;,\d]{{0,20}}{NUMBER}\s*{_DWELL_UNIT}\b", re.IGNORECASE),
)
_THICKNESS = (
    re.compile(rf"{NUMBER}\s*nm\s*(?:per|/)\s*(?:section|slice)\b", re.IGNORECASE),
    re.compile(
        rf"\b(?:section|slice|slicing|cutting|z)[ -]?(?:thickness|spacing|step|interval|depth)"
        rf"[^.;,\d]{{0,20}}{NUMBER}\s*nm\b",
        re.IGNORECASE,
    ),
    re.compile(rf"{NUMBER}\s*nm[ -](?:thick(?:ness)?\s+)?(?:sections|slices)\b", re.IGNORECASE),
)
_SCAN_RATE = re.compile(rf"{NUMBER}\s*([kM])Hz\b")
_DURATION = re.compile(
    r"\b(?:imag|acqui|record|scann)\w*\b[^.;\d]{0,30}\b(?:for|took|over|lasted|during|within|duration of)\s+"
    # An age is no duration.
    rf"{NUMBER}\s*(hours?|h|days?|weeks?)\b(?![ -]*(?:post|old|after|of age))",
    re.IGNORECASE,
)
_DAYS = {"h": 1 / 24, "d": 1.0, "w": 7.0}
_BIAS = re.compile(rf"\bbias(?:ed)?\b[^.;\d-]{{0,20}}(-?){NUMBER}\s*(k?)V\b", re.IGNORECASE)
_MAGNIFICATION = re.compile(rf"\bmagnification\b[^.;\d]{{0,20}}{NUMBER}\s*(k?)\s*[x×]?(?!\w)", re.IGNORECASE)
_MICROSCOPE = re.compile(
    r"\b(?:FEI|Thermo(?: ?Fisher)?(?: Scientific)?|Zeiss|ZEISS|JEOL|Hitachi|TESCAN|Tescan)\s+"
    r"(?:(?:Magellan|Quanta|Teneo|Apreo|Helios|Scios|Aquilos|Verios|Talos|Tecnai|Titan Krios|Glacios|"
    r"Merlin|Sigma|Gemini(?:SEM)?|Crossbeam|Auriga|NVision|Ultra|Supra|Leo|MultiSEM|JEM|JSM|Regulus|Amber|"
    r"Solaris)(?:[ -]?(?:G\d\w?|[A-Z]{0,2}\d+\w*|VolumeScope|VP|Plus))?|S-?\d{4}\w?|SU-?\d{4})"
)


def accelerating_voltage_kv(text: str) -> Reading | None:
    """Kilovolts, as in "1.9kV accelerating voltage"."""
    return _one(Reading(float(m[1]), m[0]) for m in _VOLTAGE.finditer(text))


def beam_current_pa(text: str) -> Reading | None:
    """Picoamperes, as in "200pA current" or "0.2 nA"."""
    return _one(Reading(float(m[1]) * _CURRENT_PA[m[2].lower()], m[0]) for m in _CURRENT.finditer(text))


def dwell_time_us(text: str) -> Reading | None:
    """Microseconds per pixel; only where the word dwell stands beside the number."""
    return _one(
        Reading(float(m[1]) * _TIME_US.get(m[2].lower(), 1.0), m[0])
        for pattern in _DWELL
        for m in pattern.finditer(text)
    )


def section_thickness_nm(text: str) -> Reading | None:
    """Nanometres between sections, as in "50nm per section" or "section thickness of 50 nm"."""
    return _one(Reading(float(m[1]), m[0]) for pattern in _THICKNESS for m in pattern.finditer(text))


def scan_rate_mhz(text: str) -> Reading | None:
    """Megahertz, as in "scanned at 2 MHz" or "500 kHz"."""
    return _one(
        Reading(float(m[1]) * (1e-3 if m[2] == "k" else 1.0), m[0]) for m in _SCAN_RATE.finditer(text)
    )


def duration_days(text: str) -> Reading | None:
    """Days that the imaging took; only where a word of imaging stands before the number."""
    return _one(Reading(float(m[1]) * _DAYS[m[2][0].lower()], m[0]) for m in _DURATION.finditer(text))


def bias_v(text: str) -> Reading | None:
    """Volts between stage and column, with their sign, as in "a stage bias of -1.5 kV"."""
    return _one(Reading(float(f"{m[1]}{m[2]}") * (1e3 if m[3] else 1.0), m[0]) for m in _BIAS.finditer(text))


def magnification(text: str) -> Reading | None:
    """Times, as in "magnification of 5000x" or "magnification: 25k"."""
    return _one(Reading(float(m[1]) * (1e3 if m[2] else 1.0), m[0]) for m in _MAGNIFICATION.finditer(text))


def microscope(text: str) -> Reading | None:
    """Maker and model, as written: a maker's name followed by one of its electron microscopes."""
    return _one(Reading(m[0], m[0]) for m in _MICROSCOPE.finditer(text))


# Words → NCBI Taxonomy's scientific name. Cell lines stand for their species.
ORGANISMS: dict[str, str] = {
    r"zebrafish|danio rerio": "Danio rerio",
    r"mouse|mice|murine|mus musculus": "Mus musculus",
    r"rats?|rattus norvegicus": "Rattus norvegicus",
    r"humans?|homo sapiens|hela|hek ?293\w?|u-?2 ?os": "Homo sapiens",
    r"drosophila(?: melanogaster)?|fruit fl(?:y|ies)": "Drosophila melanogaster",
    r"c\. ?elegans|caenorhabditis elegans": "Caenorhabditis elegans",
    r"arabidopsis(?: thaliana)?": "Arabidopsis thaliana",
    r"saccharomyces(?: cerevisiae)?|budding yeast": "Saccharomyces cerevisiae",
    r"platynereis(?: dumerilii)?": "Platynereis dumerilii",
    r"xenopus laevis": "Xenopus laevis",
    r"chlamydomonas(?: reinhardtii)?": "Chlamydomonas reinhardtii",
    r"chick(?:en)?|gallus gallus": "Gallus gallus",
}
# Words → UBERON's label of the tissue. A part stands before the whole that contains it.
TISSUES: tuple[tuple[str, str], ...] = (
    (r"retinas?|retinal", "retina"),
    (r"hippocamp(?:us|al)", "hippocampus"),
    (r"nucleus accumbens", "nucleus accumbens"),
    (r"cerebell(?:um|ar)", "cerebellum"),
    (r"(?:cerebral|visual|somatosensory|neo)[ -]?cort(?:ex|ical)", "cerebral cortex"),
    (r"kidneys?|renal", "kidney"),
    (r"livers?|hepatic", "liver"),
    (r"hearts?|cardiac", "heart"),
    (r"pancrea(?:s|tic)", "pancreas"),
    (r"lungs?", "lung"),
    (r"skeletal muscles?", "skeletal muscle"),
    (r"brains?", "brain"),
)


def organism(text: str) -> Reading | None:
    """The one species that the text names, by its scientific name."""
    return _one(
        Reading(name, match[0])
        for words, name in ORGANISMS.items()
        for match in re.finditer(rf"\b(?:{words})\b", text, re.IGNORECASE)
    )


def tissue(text: str) -> Reading | None:
    """The most specific tissue that the text names; None where it names two parts of equal rank."""
    found = [
        Reading(label, match[0])
        for words, label in TISSUES
        for match in re.finditer(rf"\b(?:{words})\b", text, re.IGNORECASE)
    ]
    parts = [reading for reading in found if reading.value != "brain"]
    return _one(parts or found)


def _one(readings: Iterable[Reading]) -> Reading | None:
    found = list(readings)
    return found[0] if len({reading.value for reading in found}) == 1 else None
