"""Writes DigitalMicrograph 3 files of one section, laid out as a Gatan 3View records them.

A tree of tags, integers of the layout big-endian and values little-endian
(https://personal.ntu.edu.sg/cbb/info/dmformat/). The thumbnail comes first and its size varies from file to
file, so the image lies at another offset in each; whoever assumes a place or the first image reads wrong.
"""

import struct
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

GROUP, DATA = 20, 21
UINT16, INT32, UINT32, FLOAT32, FLOAT64, BOOLEAN, OCTET, ARRAY = 4, 3, 5, 6, 7, 8, 10, 20
IMAGE_UINT8, IMAGE_RGB = 6, 23
FORMATS = {INT32: "<i", UINT32: "<I", FLOAT32: "<f", FLOAT64: "<d", BOOLEAN: "<?"}
ELEMENTS = {"uint8": OCTET, "uint16": UINT16, "uint32": UINT32}


@dataclass(frozen=True)
class Section:
    """One section and what the microscope wrote beside it. Sizes in nanometres."""

    name: str
    plane: NDArray[np.uint8]
    pixel_size_nm: float
    thickness_nm: float
    acquired: datetime
    thumbnail: tuple[int, int] = (192, 192)
    voltage_v: float = 1900.0
    dwell_time_us: float = 0.5
    magnification: float = 2159.0
    microscope: str = "FEI Quanta"


def write_dm3(path: Path, section: Section) -> None:
    """Write `section` (plane y-x, uint8) to `path`."""
    tags = _group(_file_tags(section))
    # The length counts what follows the header's first three integers, but for the last four bytes.
    header = struct.pack(">III", 3, len(tags) - 4 + 8, 1)
    path.write_bytes(header + tags + bytes(8))


def _file_tags(section: Section) -> dict[str, Any]:
    low, high = (float(v) for v in np.percentile(section.plane[::4, ::4], (1, 99)))
    return {
        "DocumentObjectList": [
            {
                "AnnotationType": 20,
                "ImageDisplayInfo": {"HighLimit": np.float32(high), "LowLimit": np.float32(low)},
                "ImageDisplayType": 1,
                "ImageSource": 0,
            }
        ],
        "HasWindowPosition": True,
        "ImageList": [_thumbnail(section), _image(section)],
        "ImageSourceList": [{"ClassName": "ImageSource:Simple", "Id": [0], "ImageRef": 1}],
        "InImageMode": True,
        "Thumbnails": [{"ImageIndex": 0}],
    }


def _thumbnail(section: Section) -> dict[str, Any]:
    height, width = section.thumbnail
    rows = np.arange(height) * section.plane.shape[0] // height
    columns = np.arange(width) * section.plane.shape[1] // width
    grey = section.plane[np.ix_(rows, columns)].astype(np.uint32)
    return {
        "ImageData": _image_data(grey << 16 | grey << 8 | grey, IMAGE_RGB, pixel_size_um=1.0, units=""),
        "ImageTags": {"GMS Version": {"Created": "3.21.1374.0"}},
        "Name": f"Image Of {section.name}",
    }


def _image(section: Section) -> dict[str, Any]:
    pixel_size_um = section.pixel_size_nm / 1000
    return {
        "Description": f"pixel size : {pixel_size_um:.4f}µm x {pixel_size_um:.4f}µm",
        "ImageData": _image_data(section.plane, IMAGE_UINT8, pixel_size_um, "µm"),
        "ImageTags": _image_tags(section),
        "Name": section.name,
    }


def _image_data(pixels: NDArray[Any], data_type: int, pixel_size_um: float, units: str) -> dict[str, Any]:
    axis = {"Origin": np.float32(0), "Scale": np.float32(pixel_size_um), "Units": units}
    return {
        "Calibrations": {
            "Brightness": {"Origin": np.float32(0), "Scale": np.float32(1), "Units": ""},
            "Dimension": [axis, axis],
            "DisplayCalibratedUnits": True,
        },
        "Data": pixels,
        "DataType": data_type,
        "Dimensions": [pixels.shape[1], pixels.shape[0]],
        "PixelDepth": pixels.itemsize,
    }


def _image_tags(section: Section) -> dict[str, Any]:
    height, width = section.plane.shape
    third = {"Origin": np.float32(0), "Scale": np.float32(section.thickness_nm), "Units": "nm"}
    nothing = {"Origin": np.float32(0), "Scale": np.float32(1), "Units": ""}
    return {
        "DataBar": {
            "Acquisition Date": section.acquired.strftime("%d.%m.%Y"),
            "Acquisition Time": section.acquired.strftime("%H:%M:%S"),
            "Device Name": "DigiScan",
            "Signal Name": "3VBSED",
        },
        "DigiScan": {
            "Image Height": height,
            "Image Width": width,
            "Sample Time": section.dwell_time_us,
            "TimeStamp": section.acquired.strftime("%a %b %d %H:%M:%S %Y"),
        },
        "GMS Version": {"Created": "3.21.1374.0", "Saved": "3.21.1374.0"},
        "Meta Data": {"Dimension info": [nothing, nothing, third], "Format": "Image", "Signal": "DigiScan"},
        "Microscope Info": {
            "Cs(mm)": 0.0,
            "Field of View (µm)": width * section.pixel_size_nm / 1000,
            "Formatted Voltage": f"{section.voltage_v / 1000:g}kV",
            "Illumination Mode": "SEM",
            "Imaging Mode": "IMAGING",
            "Indicated Magnification": section.magnification,
            "Name": section.microscope,
            "Operation Mode": "SCANNING",
            "Probe Current (nA)": 0.0,
            "Voltage": section.voltage_v,
            "WD (mm)": 5.5,
        },
        "SBFSEM": {
            "Hardware": {"Frodo controller": {"Bias": -3.0, "Do Bias": True}},
            "Imaging": {
                "Record pixel size": section.pixel_size_nm,
                "Record pixel time": section.dwell_time_us,
                "Record scan height": height,
                "Record scan width": width,
            },
            "Record": {"Slice number": 250, "Slice thickness": section.thickness_nm},
        },
        "Session Info": {"Detector": "3VBSED", "Microscope": "", "Operator": "", "Specimen": ""},
    }


def _group(tags: dict[str, Any] | list[Any]) -> bytes:
    """A group's flags (sorted, open), number of tags, and the tags; a list's are nameless."""
    named = tags.items() if isinstance(tags, dict) else [("", value) for value in tags]
    return struct.pack(">??I", isinstance(tags, dict), False, len(tags)) + b"".join(
        _tag(name, value) for name, value in named
    )


def _tag(name: str, value: Any) -> bytes:
    label = name.encode("latin-1")
    kind, body = (GROUP, _group(value)) if isinstance(value, dict | list) else (DATA, _data(value))
    return struct.pack(">BH", kind, len(label)) + label + body


def _data(value: Any) -> bytes:
    if isinstance(value, str):
        value = np.frombuffer(value.encode("utf-16-le"), "<u2")
    if isinstance(value, np.ndarray):
        layout = [ARRAY, ELEMENTS[value.dtype.name], value.size]
        return _layout(layout) + value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes()
    kind = _scalar_kind(value)
    return _layout([kind]) + struct.pack(FORMATS[kind], value)


def _layout(numbers: list[int]) -> bytes:
    return b"%%%%" + struct.pack(f">I{len(numbers)}I", len(numbers), *numbers)


def _scalar_kind(value: bool | int | float | np.float32) -> int:
    if isinstance(value, bool):
        return BOOLEAN
    if isinstance(value, int):
        return INT32 if value < 0 else UINT32
    return FLOAT32 if isinstance(value, np.float32) else FLOAT64
