"""What the tags of a DigitalMicrograph image say of its scale and of the microscope."""

import re
from datetime import date, datetime
from typing import Any

from em_pipeline.formats.base import ClaimSheet, positive
from em_pipeline.formats.units import length_nm, place_nm

SBF_SEM = "SBF-SEM"


def claim_voxel_size(sheet: ClaimSheet, tags: dict[str, Any], root: str, dimensions: int) -> None:
    """x and y from the calibrations; z of a 3-D image too, else from what the stage records per slice.

    Sources of the z pitch of a 2-D image: `Meta Data.Dimension info.2` (a scale with units) and
    `SBFSEM.Record.Slice thickness` (nanometres, as Gatan's 3View writes it).
    """
    for number, axis in enumerate("xyz"[:dimensions]):
        entry = _numbered(_at(tags, "ImageData", "Calibrations", "Dimension"), number)
        _claim_scale(sheet, axis, entry, f"{root}.ImageData.Calibrations.Dimension.{number}")
    entry = _numbered(_at(tags, "ImageTags", "Meta Data", "Dimension info"), 2)
    _claim_scale(sheet, "z", entry, f"{root}.ImageTags.Meta Data.Dimension info.2")
    thickness = _at(tags, "ImageTags", "SBFSEM", "Record", "Slice thickness")
    sheet.voxel_size(
        "z", positive(thickness), f"{root}.ImageTags.SBFSEM.Record.Slice thickness", f"{thickness} nm", "nm"
    )


def origin_nm(tags: dict[str, Any], dimensions: int) -> tuple[float, float, float]:
    """Position of the first voxel, z-y-x nm: minus Origin (in voxels) times Scale; 0 where uncalibrated or
    not finite.
    """
    position = {"z": 0.0, "y": 0.0, "x": 0.0}
    for number, axis in enumerate("xyz"[:dimensions]):
        entry = _numbered(_at(tags, "ImageData", "Calibrations", "Dimension"), number)
        scale = length_nm(entry.get("Scale"), entry.get("Units"))
        origin = entry.get("Origin")
        if scale is not None and isinstance(origin, int | float):
            # Adding zero turns -0.0 into 0.0.
            position[axis] = -origin * scale + 0.0
    return place_nm(**position)


def claim_acquisition(sheet: ClaimSheet, tags: dict[str, Any], root: str) -> None:
    """Microscope, voltage, magnification, current, dwell time and date, where the tags are filled in.

    GMS leaves unset numbers at zero and unset names empty or "Unknown"; those claim nothing.
    """
    microscope = _at(tags, "ImageTags", "Microscope Info")
    where = f"{root}.ImageTags.Microscope Info"
    name = microscope.get("Name") if isinstance(microscope, dict) else None
    if isinstance(name, str) and name.strip() and name.strip().lower() != "unknown":
        sheet.add("acquisition.microscope", name.strip(), f"{where}.Name", name)
    for field, path, factor in (
        ("accelerating_voltage_kv", ("Microscope Info", "Voltage"), 1e-3),
        ("magnification", ("Microscope Info", "Indicated Magnification"), 1.0),
        ("beam_current_pa", ("Microscope Info", "Probe Current (nA)"), 1e3),
        # DigiScan records microseconds per pixel.
        ("dwell_time_us", ("DigiScan", "Sample Time"), 1.0),
    ):
        raw = _at(tags, "ImageTags", *path)
        number = positive(raw)
        if number is not None:
            tag = f"{root}.ImageTags.{'.'.join(path)}"
            sheet.add(f"acquisition.{field}", round(number * factor, 9), tag, raw)
    if _at(tags, "ImageTags", "SBFSEM"):
        sheet.add("core.modality", SBF_SEM, f"{root}.ImageTags.SBFSEM", "present")
    _claim_date(sheet, tags, root)


def _claim_date(sheet: ClaimSheet, tags: dict[str, Any], root: str) -> None:
    for path, read in (
        (("DataBar", "Acquisition Date"), read_date),
        (("DigiScan", "TimeStamp"), _read_timestamp),
    ):
        raw = _at(tags, "ImageTags", *path)
        day = read(raw) if isinstance(raw, str) else None
        if day is not None and not sheet.has("core.imaging_start_date"):
            tag = f"{root}.ImageTags.{'.'.join(path)}"
            sheet.add("core.imaging_start_date", day.isoformat(), tag, raw)


def read_date(text: str) -> date | None:
    """A date as GMS writes it in the computer's locale; None where day and month could be swapped.

    With dots the day comes first (German locales); with slashes it is known only where one is above 12.
    """
    match = re.fullmatch(r"\s*(\d{1,2})([./])(\d{1,2})\2(\d{4})\s*", text)
    if match is None:
        return None
    first, separator, second, year = int(match[1]), match[2], int(match[3]), int(match[4])
    if separator == "." or first > 12 or first == second:
        day, month = first, second
    elif second > 12:
        day, month = second, first
    else:
        return None
    return _valid_date(year, month, day)


def _valid_date(year: int, month: int, day: int) -> date | None:
    try:
        return date(year, month, day)
    except ValueError:
        return None


def _read_timestamp(text: str) -> date | None:
    """`Mon Jun 11 22:26:45 2018`, as DigiScan writes it."""
    try:
        return datetime.strptime(text.strip(), "%a %b %d %H:%M:%S %Y").date()  # noqa: DTZ007
    except ValueError:
        return None


def _claim_scale(sheet: ClaimSheet, axis: str, entry: dict[str, Any], tag: str) -> None:
    scale, unit = entry.get("Scale"), entry.get("Units")
    nanometres = length_nm(scale, unit)
    sheet.voxel_size(axis, nanometres, f"{tag}.Scale", {"Scale": scale, "Units": unit}, unit)


def _numbered(group: Any, number: int) -> dict[str, Any]:
    """The group of that number, whether named by it or unnamed; empty where there is none."""
    if not isinstance(group, dict):
        return {}
    entry = group.get(f"TagGroup{number}", group.get(str(number)))
    return entry if isinstance(entry, dict) else {}


def _at(tags: Any, *path: str) -> Any:
    """The tag at `path`, or None."""
    for name in path:
        tags = tags.get(name) if isinstance(tags, dict) else None
    return tags
