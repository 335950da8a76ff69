"""Lengths as EM software writes them, in nanometres."""

import math

from em_pipeline.formats.base import positive

NANOMETRES = {
    "pm": 1e-3,
    "picometer": 1e-3,
    "a": 0.1,
    "Å": 0.1,
    "angstrom": 0.1,
    "nm": 1.0,
    "nanometer": 1.0,
    "nanometre": 1.0,
    "um": 1e3,
    "µm": 1e3,
    "micron": 1e3,
    "microns": 1e3,
    "micrometer": 1e3,
    "micrometre": 1e3,
    "mm": 1e6,
    "millimeter": 1e6,
    "millimetre": 1e6,
    "cm": 1e7,
    "centimeter": 1e7,
    "centimetre": 1e7,
    "m": 1e9,
    "meter": 1e9,
    "metre": 1e9,
}
# Old writers store "µ" as the six characters of its Java escape; Unicode has two micro signs and two Å.
SPELLINGS = {"\\u00b5": "µ", "\\u00B5": "µ", "μ": "µ", "\N{ANGSTROM SIGN}": "Å"}


def place_nm(z: float, y: float, x: float) -> tuple[float, float, float]:
    """A place in nanometres, z-y-x; 0 along an axis where what was read is infinite or no number."""
    found = [n if math.isfinite(n) else 0.0 for n in (z, y, x)]
    return found[0], found[1], found[2]


def spelled(unit: str) -> str:
    """`unit` with the signs that people read."""
    for written, meant in SPELLINGS.items():
        unit = unit.replace(written, meant)
    return unit


def length_nm(value: object, unit: object) -> float | None:
    """`value` `unit` in nanometres; None for what is not a positive length in a unit we know."""
    number = positive(value)
    if number is None or not isinstance(unit, str):
        return None
    name = spelled(unit.strip("\0 \t\r\n"))
    factor = NANOMETRES.get(name) or NANOMETRES.get(name.lower())
    return None if factor is None else number * factor
