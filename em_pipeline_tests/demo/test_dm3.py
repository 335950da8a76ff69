"""The DM3 writer, read by a reader that is not ours, and held against a recorded file's tags."""

import json
import re
import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rsciio.digitalmicrograph import file_reader

from em_pipeline.demo.dm3 import Section, write_dm3

PLANE = (np.arange(50 * 49) % 251).astype(np.uint8).reshape(50, 49)


def section(thumbnail: tuple[int, int] = (20, 20)) -> Section:
    return Section(
        name="3VBSED_slice_0000",
        plane=PLANE,
        pixel_size_nm=7.998250424861908,
        thickness_nm=50.0,
        acquired=datetime(2018, 6, 11, 22, 27, 16, tzinfo=UTC),
        thumbnail=thumbnail,
    )


def read(path: Path) -> dict[str, Any]:
    images: list[dict[str, Any]] = file_reader(str(path))
    assert len(images) == 1, "the thumbnail is no image"
    return images[0]


@pytest.mark.parametrize("thumbnail", [(20, 20), (38, 39)])
def test_another_reader_reads_the_same(thumbnail: tuple[int, int], tmp_path: Path) -> None:
    write_dm3(tmp_path / "a.dm3", section(thumbnail))
    image = read(tmp_path / "a.dm3")
    assert np.array_equal(image["data"], PLANE)
    assert [(axis["name"], axis["units"]) for axis in image["axes"]] == [("y", "µm"), ("x", "µm")]
    assert [axis["scale"] for axis in image["axes"]] == [0.007998250424861908] * 2
    tags = image["original_metadata"]["ImageList"]["TagGroup0"]["ImageTags"]
    assert tags["Meta Data"]["Dimension info"]["TagGroup2"] == {"Origin": 0.0, "Scale": 50.0, "Units": "nm"}
    assert tags["SBFSEM"]["Record"]["Slice thickness"] == 50.0
    assert tags["DataBar"]["Acquisition Date"] == "11.06.2018"
    assert tags["Microscope Info"]["Voltage"] == 1900.0


def test_the_header_tells_the_length(tmp_path: Path) -> None:
    write_dm3(tmp_path / "a.dm3", section())
    content = (tmp_path / "a.dm3").read_bytes()
    version, length, little = struct.unpack(">III", content[:12])
    assert (version, length, little) == (3, len(content) - 16, 1)


@pytest.mark.shared_data
def test_its_tags_are_those_of_a_recorded_file(shared_data: Path, tmp_path: Path) -> None:
    recorded = shared_data.parent / "sources" / "empiar" / "F57-8_test1_3VBSED_slice_0000_dm3_metadata.json"
    known = set(json.loads(recorded.read_text())["full_original_tags"])
    write_dm3(tmp_path / "a.dm3", section())
    missing = {path for path in paths_of(tmp_path / "a.dm3") if path not in known}
    assert not missing


def paths_of(path: Path) -> set[str]:
    """Tag paths as the recording writes them: nameless groups numbered from 0, the whole file below root."""
    from rsciio.digitalmicrograph._api import DigitalMicrographReader

    def walk(value: Any, at: str) -> set[str]:
        if isinstance(value, dict) and "offset" not in value:
            return {leaf for name, part in value.items() for leaf in walk(part, f"{at}.{plain(name)}")}
        return {f"{at}.Size"} if isinstance(value, dict) else {at}

    def plain(name: str) -> str:
        return re.sub(r"^(?:TagGroup|Data)(\d+)$", r"\1", name)

    with path.open("rb") as file:
        reader = DigitalMicrographReader(file)
        reader.parse_file()
        return walk(reader.tags_dict["root"], "root")
