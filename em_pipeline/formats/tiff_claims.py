"""What TIFF tags say of voxel size and microscope, by the software that wrote them.

The most specific source speaks first: FEI/Thermo Fisher (tag 34682), Zeiss (34118), TVIPS (37706), Gatan
(65003 to 65011), OME-XML, ImageJ, and last the plain resolution tags.
"""

import re
from collections.abc import Mapping
from datetime import date
from typing import Any

import tifffile
from defusedxml.ElementTree import ParseError, fromstring

from em_pipeline.formats.base import ClaimSheet, positive
from em_pipeline.formats.units import NANOMETRES, length_nm

# ImageJ takes these over from the resolution tags of whatever wrote the file first: dpi of a printer.
NOT_TRUSTED = ("inch", "inches", "in", "cm", "pixel", "pixels")
# ResolutionUnit centimetre is a scale only above this many pixels per cm (below 1 µm per pixel):
# printers and scanners reach at most 4800 dpi, which is 1890 per cm.
LEAST_PIXELS_PER_CM = 1e4
CENTIMETRE = 3
OME_DEFAULT_UNIT = "µm"  # https://www.openmicroscopy.org/Schemas/Documentation/Generated/OME-2016-06/
OME_AXES = {"x": "PhysicalSizeX", "y": "PhysicalSizeY", "z": "PhysicalSizeZ"}
# GMS writes units at 65003.. and scales at 65009.., of its dimensions 0 (x), 1 (y), 2 (z).
GATAN_TAGS = {"x": (65003, 65009), "y": (65004, 65010), "z": (65005, 65011)}


def claim_voxel_size(sheet: ClaimSheet, tif: tifffile.TiffFile) -> None:
    """Claim what the file knows; an axis that no source knows gets no claim."""
    _fei_scale(sheet, tif.fei_metadata or {})
    _zeiss_scale(sheet, tif.sem_metadata or {})
    _tvips_scale(sheet, tif.tvips_metadata or {})
    _gatan_scale(sheet, tif)
    _ome_scale(sheet, tif.pages.first.description or "")
    _imagej_scale(sheet, tif)
    _centimetre_scale(sheet, tif)


def claim_acquisition(sheet: ClaimSheet, tif: tifffile.TiffFile) -> None:
    """Microscope settings from FEI and Zeiss headers."""
    _fei_acquisition(sheet, tif.fei_metadata or {})
    _zeiss_acquisition(sheet, tif.sem_metadata or {})


def _fei_scale(sheet: ClaimSheet, fei: Mapping[str, Any]) -> None:
    scan = fei.get("Scan", {})
    for axis, name in (("x", "PixelWidth"), ("y", "PixelHeight")):
        metres = scan.get(name)
        sheet.voxel_size(axis, length_nm(metres, "m"), f"34682.Scan.{name}", f"{metres} m", "m")


def _fei_acquisition(sheet: ClaimSheet, fei: Mapping[str, Any]) -> None:
    beam = fei.get("Beam", {})
    column = str(beam.get("Beam", "EBeam"))
    system = fei.get("System", {}).get("SystemType")
    if isinstance(system, str) and system:
        sheet.add("acquisition.microscope", system, "34682.System.SystemType", system)
    _scaled(sheet, "accelerating_voltage_kv", beam.get("HV"), 1e-3, "34682.Beam.HV")
    current = fei.get(column, {}).get("BeamCurrent")
    _scaled(sheet, "beam_current_pa", current, 1e12, f"34682.{column}.BeamCurrent")
    _scaled(sheet, "dwell_time_us", fei.get("Scan", {}).get("Dwelltime"), 1e6, "34682.Scan.Dwelltime")
    created = fei.get("PrivateFei", {}).get("TimeOfCreation")
    match = re.match(r"(\d{2})\.(\d{2})\.(\d{4})\b", created) if isinstance(created, str) else None
    if match:
        day = date(int(match[3]), int(match[2]), int(match[1])).isoformat()
        sheet.add("core.imaging_start_date", day, "34682.PrivateFei.TimeOfCreation", created)


def _zeiss_scale(sheet: ClaimSheet, zeiss: Mapping[str, Any]) -> None:
    entry = zeiss.get("ap_pixel_size") or zeiss.get("ap_image_pixel_size")
    if isinstance(entry, tuple) and len(entry) == 3:
        for axis in "xy":
            sheet.voxel_size(axis, length_nm(entry[1], entry[2]), "34118.ap_pixel_size", entry, entry[2])


def _zeiss_acquisition(sheet: ClaimSheet, zeiss: Mapping[str, Any]) -> None:
    model = zeiss.get("dp_sem")
    if isinstance(model, tuple) and isinstance(model[-1], str) and model[-1]:
        sheet.add("acquisition.microscope", f"Zeiss {model[-1]}", "34118.dp_sem", model)
    for field, name, units in (
        ("accelerating_voltage_kv", "ap_actualkv", {"kV": 1.0, "V": 1e-3}),
        ("beam_current_pa", "ap_iprobe", {"fA": 1e-3, "pA": 1.0, "nA": 1e3, "µA": 1e6}),
        ("dwell_time_us", "dp_dwell_time", {"ns": 1e-3, "µs": 1.0, "us": 1.0, "ms": 1e3}),
        ("magnification", "ap_mag", {"X": 1.0, "K X": 1e3, "KX": 1e3}),
    ):
        entry = zeiss.get(name)
        if isinstance(entry, tuple) and len(entry) == 3 and entry[2] in units:
            _scaled(sheet, field, entry[1], units[entry[2]], f"34118.{name}", entry)


def _tvips_scale(sheet: ClaimSheet, tvips: Mapping[str, Any]) -> None:
    for axis, name in (("x", "PixelSizeX"), ("y", "PixelSizeY")):
        sheet.voxel_size(axis, positive(tvips.get(name)), f"37706.{name}", f"{tvips.get(name)} nm", "nm")


def _gatan_scale(sheet: ClaimSheet, tif: tifffile.TiffFile) -> None:
    tags = tif.pages.first.tags
    for axis, (unit_tag, scale_tag) in GATAN_TAGS.items():
        unit, scale = tags.valueof(unit_tag), tags.valueof(scale_tag)
        sheet.voxel_size(axis, length_nm(scale, unit), str(scale_tag), {"scale": scale, "unit": unit}, unit)


def _ome_scale(sheet: ClaimSheet, description: str) -> None:
    """PhysicalSize of the first Pixels element; a unit left out is µm by the schema."""
    if "<OME" not in description[:2000] and "<ome:OME" not in description[:2000]:
        return
    try:
        elements = [e for e in fromstring(description).iter() if e.tag.rpartition("}")[2] == "Pixels"]
    except ParseError:
        return
    attributes: Mapping[str, str] = elements[0].attrib if elements else {}
    for axis, name in OME_AXES.items():
        size, unit = attributes.get(name), attributes.get(f"{name}Unit", OME_DEFAULT_UNIT)
        value = _number(size)
        sheet.voxel_size(axis, length_nm(value, unit), f"OME.Image.Pixels.{name}", f"{size} {unit}", unit)


def _imagej_scale(sheet: ClaimSheet, tif: tifffile.TiffFile) -> None:
    """Pixels per unit in the resolution tags, the unit and the z spacing in the description."""
    imagej = tif.imagej_metadata or {}
    unit = imagej.get("unit")
    if not isinstance(unit, str) or unit.strip().lower() in NOT_TRUSTED:
        return
    tags = tif.pages.first.tags
    for axis, name in (("x", "XResolution"), ("y", "YResolution")):
        per_unit = _ratio(tags.valueof(name))
        if per_unit is not None:
            raw = {name: list(tags.valueof(name)), "unit": unit}
            sheet.voxel_size(axis, length_nm(1 / per_unit, unit), f"{name}, ImageJ unit", raw, unit)
    spacing = imagej.get("spacing")
    depth = length_nm(_number(spacing), unit)
    sheet.voxel_size("z", depth, "ImageJ spacing", {"spacing": spacing, "unit": unit}, unit)


def _centimetre_scale(sheet: ClaimSheet, tif: tifffile.TiffFile) -> None:
    """Resolution tags in pixels per cm, where no other source spoke and the scale is a microscope's.

    Pixels per inch are never taken: every image editor writes 72, 96 or 300 there.
    """
    tags = tif.pages.first.tags
    if tags.valueof("ResolutionUnit") != CENTIMETRE:
        return
    for axis, name in (("x", "XResolution"), ("y", "YResolution")):
        per_cm = _ratio(tags.valueof(name))
        known = sheet.has(f"core.voxel_size_nm.{axis}")
        if per_cm is not None and per_cm >= LEAST_PIXELS_PER_CM and not known:
            raw = {name: list(tags.valueof(name)), "ResolutionUnit": "centimetre"}
            sheet.voxel_size(axis, NANOMETRES["cm"] / per_cm, f"{name}, ResolutionUnit", raw, "centimetre")


def _scaled(sheet: ClaimSheet, field: str, value: Any, factor: float, tag: str, raw: Any = None) -> None:
    number = positive(value)
    if number is not None:
        sheet.add(f"acquisition.{field}", round(number * factor, 9), tag, value if raw is None else raw)


def _ratio(value: Any) -> float | None:
    if not isinstance(value, tuple) or len(value) != 2 or not value[1]:
        return None
    return positive(value[0] / value[1])


def _number(text: Any) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None
