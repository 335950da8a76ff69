"""What is read from depositors' prose, and what is left alone."""

from collections.abc import Callable

import pytest

from em_pipeline.sources import free_text
from em_pipeline.sources.free_text import Reading

Reader = Callable[[str], Reading | None]


@pytest.mark.parametrize(
    ("reader", "text", "value"),
    [
        (free_text.accelerating_voltage_kv, "were 1.9kV accelerating voltage and", 1.9),
        (free_text.accelerating_voltage_kv, "a landing energy of 1.5 keV", 1.5),
        (free_text.accelerating_voltage_kv, "at 2 kV; later again at 2.0 kV", 2.0),
        (free_text.accelerating_voltage_kv, "at 2 kV, then 3 kV", None),
        (free_text.accelerating_voltage_kv, "model X2kVA", None),
        (free_text.beam_current_pa, "200pA current at", 200.0),
        (free_text.beam_current_pa, "0.8 nA", 800.0),
        (free_text.beam_current_pa, "200 pAmino", None),
        (free_text.dwell_time_us, "at 0.5 usec dwell time.", 0.5),
        (free_text.dwell_time_us, "a dwell time of 800 ns", 0.8),
        (free_text.dwell_time_us, "dwell time: 2 µs per pixel", 2.0),
        (free_text.dwell_time_us, "3 microseconds dwell", 3.0),
        (free_text.dwell_time_us, "exposed for 2 us in a bath", None),
        (free_text.beam_current_pa, "a current of 0.7 nA", 700.0),
        (free_text.accelerating_voltage_kv, "at 1.2 kV", 1.2),
        (free_text.scan_rate_mhz, "scanned at 2 MHz", 2.0),
        (free_text.scan_rate_mhz, "a rate of 500 kHz", 0.5),
        (free_text.scan_rate_mhz, "at 2 MHz, later 3 MHz", None),
        (free_text.duration_days, "imaged for 40 days", 40.0),
        (free_text.duration_days, "acquisition took 36 hours.", 1.5),
        (free_text.duration_days, "fixed for 40 days", None),
        (free_text.duration_days, "imaged at 5 days post fertilisation and 6 days later", None),
        (free_text.duration_days, "acquired over 5 days post fertilisation", None),
        (free_text.bias_v, "a stage bias of -1.5 kV", -1500.0),
        (free_text.bias_v, "with a bias of 0 V", 0.0),
        (free_text.bias_v, "without bias; 2 kV", None),
        (free_text.magnification, "a magnification of 5000x was", 5000.0),
        (free_text.magnification, "magnification: 25k×", 25000.0),
        (free_text.magnification, "magnified 5 times", None),
        (free_text.section_thickness_nm, "8nm/px in xy and 50nm per section (z).", 50.0),
        (free_text.section_thickness_nm, "a section thickness of 40 nm", 40.0),
        (free_text.section_thickness_nm, "slice thickness 10 nm", 10.0),
        (free_text.section_thickness_nm, "cut into 70 nm thick sections", 70.0),
        (free_text.section_thickness_nm, "8 nm pixels", None),
        (free_text.microscope, "on the FEI Magellan400 SEM were", "FEI Magellan400"),
        (free_text.microscope, "using a FEI Titan Krios G3 with Gatan K3", "FEI Titan Krios G3"),
        (free_text.microscope, "a Zeiss Merlin with", "Zeiss Merlin"),
        (free_text.microscope, "called Gatan 3ViewXP", None),
        (free_text.organism, "retina in zebrafish 55 hpf", "Danio rerio"),
        (free_text.organism, "human Pol kappa", "Homo sapiens"),
        (free_text.organism, "mouse and rat brains", None),
        (free_text.organism, "a rate of separation", None),
        (free_text.tissue, "Developing retina in", "retina"),
        (free_text.tissue, "hippocampus of the mouse brain", "hippocampus"),
        (free_text.tissue, "the brain", "brain"),
        (free_text.tissue, "kidney and liver", None),
    ],
)
def test_reading(reader: Reader, text: str, value: float | str | None) -> None:
    reading = reader(text)
    if value is None:
        assert reading is None
    else:
        assert reading is not None
        assert reading.value == (pytest.approx(value) if isinstance(value, float) else value)
        assert reading.quote in text
